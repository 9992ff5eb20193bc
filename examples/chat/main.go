// Command chat serves chat rooms that leave memory while their members stay connected.
//
// Open it in two tabs, chat, and wait: after -idle without a message the room is gone from
// memory, both tabs are still connected, and the next message brings it back with its history.
// Everything a room does is in room.go; this file is the wiring.
package main

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/hibernate-go/hibernate"
)

const (
	maxRoomName = 100                     // bytes
	maxMessage  = 16 << 10                // bytes; a larger one closes its connection with 1009
	grace       = 1500 * time.Millisecond // for the requests, and again for the rooms
)

//go:embed page
var page embed.FS

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`host:port` to listen on")
	dir := flag.String("dir", "chat-data", "`directory` that keeps the history")
	idle := flag.Duration("idle", 10*time.Second, "a room without events leaves memory after this `duration`")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	if err := run(ctx, os.Stdout, *addr, *dir, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or the storage fails, and prints to out where.
func run(ctx context.Context, out io.Writer, addr, dir string, idle time.Duration) error {
	rt, err := hibernate.Open(dir, &hibernate.Options{
		IdleTimeout: idle,
		Limits:      hibernate.Limits{Message: maxMessage},
	})
	if err != nil {
		return err
	}
	defer rt.Close()
	handler, err := routes(rt)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}

	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	fmt.Fprintf(out, "Chat is at %s (Ctrl-C ends it)\n", visitable(ln.Addr()))

	select {
	case err = <-served:
	case <-rt.Done():
		err = rt.Err()
	case <-ctx.Done():
	}
	return cmp.Or(err, shutdown(srv, rt))
}

// shutdown lets running requests and rooms finish, and cuts off what takes longer than grace.
// Nothing that a client has seen can be lost by that: it was durable before it left.
func shutdown(srv *http.Server, rt *hibernate.Runtime) error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		srv.Close()
	}
	ctx, cancel = context.WithTimeout(context.Background(), grace)
	defer cancel()
	err := rt.Shutdown(ctx)
	if ctx.Err() != nil {
		slog.Warn("not everybody left in time", "err", err)
		return nil
	}
	return err
}

// routes registers the Room class with rt and gives every room a page, a WebSocket and its state.
func routes(rt *hibernate.Runtime) (http.Handler, error) {
	rooms, err := hibernate.Register(rt, "Room", NewRoom, nil)
	if err != nil {
		return nil, err
	}
	files, err := fs.Sub(page, "page")
	if err != nil {
		return nil, err
	}

	// A room per path: the name finds the object, wherever and whenever it was last in memory.
	socket := rooms.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: rooms.GetByName(h.PathValue("name"))}, nil
	})
	// Inspect looks without waking, so a page may ask as often as it likes.
	state := func(w http.ResponseWriter, r *http.Request) {
		room, err := rt.Inspect(r.Context(), rooms.IDFromName(r.PathValue("name")))
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, map[string]any{"constructed": room.Wakes, "inMemory": room.InMemory()})
	}
	index := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
		http.ServeFileFS(w, r, files, "index.html")
	}
	stats := func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, map[string]any{"goroutines": runtime.NumGoroutine(), "runtime": rt.Stats()})
	}

	mux := http.NewServeMux()
	mux.Handle("GET /{$}", http.RedirectHandler("/room/lobby", http.StatusFound))
	mux.Handle("GET /page/", http.StripPrefix("/page", http.FileServerFS(files)))
	mux.Handle("GET /room/{name}", named(http.HandlerFunc(index)))
	mux.Handle("GET /room/{name}/state", named(http.HandlerFunc(state)))
	mux.Handle("/room/{name}/ws", named(socket))
	mux.HandleFunc("GET /stats", stats)
	return mux, nil
}

// named answers 400 to a room name that is longer than anyone wants to read.
func named(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := len(r.PathValue("name")); n > maxRoomName {
			http.Error(w, fmt.Sprintf("A room's name has at most %d bytes; this one has %d.", maxRoomName, n), http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		slog.Debug("state was not written", "err", err)
	}
}

// visitable is the URL that a browser on this machine can open.
func visitable(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port) + "/"
}
