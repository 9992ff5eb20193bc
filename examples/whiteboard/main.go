// Command whiteboard serves boards that leave memory while their pens stay connected.
//
// Open it in two tabs and draw. Let go, and after -idle the board is gone from memory, both tabs are still
// connected, and the next touch brings it back with all that was drawn.
// Everything a board does is in board.go; this file is the wiring.
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
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hibernate-go/hibernate"
)

const (
	maxName  = 40                      // characters, of a board and of a guest
	maxPens  = 100                     // connections of one board
	maxInput = 32 << 10                // bytes; a larger message closes its connection with 1009
	maxQueue = 8 << 20                 // bytes that may wait for one guest; who reads more slowly is disconnected
	grace    = 1500 * time.Millisecond // for the requests, and again for the boards
)

//go:embed page
var page embed.FS

var limits = hibernate.Limits{Message: maxInput, SocketsPerObject: maxPens, SendQueue: maxQueue}

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`host:port` to listen on")
	dir := flag.String("dir", "whiteboard-data", "`directory` that keeps the drawings")
	idle := flag.Duration("idle", 10*time.Second, "a board without events leaves memory after this `duration`")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	if err := run(ctx, os.Stdout, *addr, *dir, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "whiteboard:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or the storage fails, and prints to out where.
func run(ctx context.Context, out io.Writer, addr, dir string, idle time.Duration) error {
	rt, err := hibernate.Open(dir, &hibernate.Options{IdleTimeout: idle, Limits: limits})
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
	fmt.Fprintf(out, "The whiteboard is at %s (Ctrl-C ends it)\n", visitable(ln.Addr()))

	select {
	case err = <-served:
	case <-rt.Done():
		err = rt.Err()
	case <-ctx.Done():
	}
	return cmp.Or(err, shutdown(srv, rt))
}

// shutdown lets running requests and boards finish, and cuts off what takes longer than grace.
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

// routes registers the Board class with rt and gives every board a page, a WebSocket and its state.
func routes(rt *hibernate.Runtime) (http.Handler, error) {
	boards, err := hibernate.Register(rt, "Board", NewBoard, nil)
	if err != nil {
		return nil, err
	}
	files, err := fs.Sub(page, "page")
	if err != nil {
		return nil, err
	}

	// The query names the board and the guest. A program with accounts asks here who it is (a cookie, or
	// what its middleware left in h.Context()), refuses with 401 or 403, and takes the name from there.
	socket := boards.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		query := h.Query()
		room, name := query.Get("room"), strings.TrimSpace(query.Get("name"))
		if wrong := cmp.Or(checkName("room", room), checkName("name", name)); wrong != "" {
			return hibernate.Join{}, hibernate.Refuse(http.StatusBadRequest, wrong)
		}
		guest := Guest{ID: fmt.Sprintf("%016x", rand.Uint64()), Name: name, Hue: rand.IntN(360)}
		return hibernate.Join{Object: boards.GetByName(room), Attachment: guest}, nil
	})
	index := func(w http.ResponseWriter, r *http.Request) {
		if !r.URL.Query().Has("room") {
			http.Redirect(w, r, "/?room=sketch", http.StatusFound)
			return
		}
		http.ServeFileFS(w, r, files, "index.html")
	}
	// Inspect looks without waking, so a page may ask as often as it likes.
	state := func(w http.ResponseWriter, r *http.Request) {
		room := r.URL.Query().Get("room")
		if wrong := checkName("room", room); wrong != "" {
			http.Error(w, wrong, http.StatusBadRequest)
			return
		}
		board, err := rt.Inspect(r.Context(), boards.IDFromName(room))
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if err := json.NewEncoder(w).Encode(map[string]any{"constructed": board.Wakes, "inMemory": board.InMemory()}); err != nil {
			slog.Debug("state was not written", "err", err)
		}
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", index)
	mux.Handle("GET /page/", http.StripPrefix("/page", http.FileServerFS(files)))
	mux.Handle("/ws", socket)
	mux.HandleFunc("GET /state", state)
	return secured(mux), nil
}

// checkName says what is wrong with the query's value of key, if anything is.
func checkName(key, value string) string {
	if n := utf8.RuneCountInString(value); n < 1 || n > maxName || !utf8.ValidString(value) || strings.ContainsFunc(value, hidden) {
		return fmt.Sprintf("The query needs a %s of 1 to %d characters that can be seen.", key, maxName)
	}
	return ""
}

func hidden(c rune) bool { return !unicode.IsPrint(c) }

// secured has browsers load what this server serves, and nothing else.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
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
