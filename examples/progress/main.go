// Command progress shows how far jobs are, without keeping anything awake for it.
//
// Open it and start a job. Its worker reports by HTTP every few seconds; in between the object that tracks the
// jobs is gone from memory, and the page's connections stay open without a ping.
// Everything the tracker does is in tracker.go; worker.go plays the machines that do the jobs; this file is
// the wiring.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
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
	"strings"
	"syscall"
	"time"

	"github.com/hibernate-go/hibernate"
)

const (
	maxQueueName = 60                      // bytes
	grace        = 1500 * time.Millisecond // for the requests, and again for the trackers
)

//go:embed page
var page embed.FS

// limits suit clients that say nothing, and reports.
var limits = hibernate.Limits{Message: 1 << 10, RequestBody: 4 << 10, SendQueue: 1 << 20}

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`host:port` to listen on")
	dir := flag.String("dir", "progress-data", "`directory` that keeps the jobs")
	idle := flag.Duration("idle", 2*time.Second, "a tracker without events leaves memory after this `duration`")
	token := flag.String("token", "", "`secret` that workers send; empty makes one up")
	pause := flag.Duration("pause", 6*time.Second, "mean `duration` between two reports of a worker")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	if err := run(ctx, os.Stdout, *addr, *dir, *idle, cmp.Or(*token, rand.Text()), *pause); err != nil {
		fmt.Fprintln(os.Stderr, "progress:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or the storage fails, and prints to out where.
func run(ctx context.Context, out io.Writer, addr, dir string, idle time.Duration, token string, pause time.Duration) error {
	rt, err := hibernate.Open(dir, &hibernate.Options{IdleTimeout: idle, Limits: limits})
	if err != nil {
		return err
	}
	defer rt.Close()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	working, dismiss := context.WithCancel(ctx)
	defer dismiss()
	workers := newWorkers(visitable(ln.Addr()), token, max(pause, time.Millisecond))
	handler, err := routes(rt, time.Now, token, func(queue string, job uint64) bool { return workers.Take(working, queue, job) })
	if err != nil {
		return err
	}

	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	fmt.Fprintf(out, "Progress is at %s/ (Ctrl-C ends it)\n", visitable(ln.Addr()))
	fmt.Fprintf(out, "Workers send the header  Authorization: Bearer %s\n", token)

	select {
	case err = <-served:
	case <-rt.Done():
		err = rt.Err()
	case <-ctx.Done():
	}
	dismiss()
	workers.Wait()
	return cmp.Or(err, shutdown(srv, rt))
}

// shutdown lets running requests and trackers finish, and cuts off what takes longer than grace.
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

// routes registers the Tracker class with rt. Workers have to know token; take has one of them begin a job,
// and reports false if all are busy.
func routes(rt *hibernate.Runtime, now func() time.Time, token string, take func(queue string, job uint64) bool) (http.Handler, error) {
	trackers, err := hibernate.Register(rt, "Tracker", newTracker(now), nil)
	if err != nil {
		return nil, err
	}
	files, err := fs.Sub(page, "page")
	if err != nil {
		return nil, err
	}

	tracker := trackers.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: trackers.GetByName(h.PathValue("queue"))}, nil
	})
	start := func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Title string `json:"title"`
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, limits.RequestBody)).Decode(&in); err != nil {
			http.Error(w, "A job must be a JSON object.", http.StatusBadRequest)
			return
		}
		if wrong := badTitle(in.Title); wrong != "" {
			http.Error(w, wrong, http.StatusBadRequest)
			return
		}
		queue := r.PathValue("queue")
		job, err := Begin.Call(r.Context(), trackers.GetByName(queue), in.Title)
		if err != nil {
			slog.Error("a job could not begin", "queue", queue, "err", err)
			http.Error(w, "The job could not begin.", http.StatusServiceUnavailable)
			return
		}
		if !take(queue, job.Number) { // nobody will report: its alarm shows that
			slog.Warn("all workers are busy", "queue", queue, "job", job.Number)
		}
		writeJSON(w, http.StatusCreated, job)
	}
	index := func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "index.html") }
	// Inspect looks without waking, so a page may ask as often as it likes.
	state := func(w http.ResponseWriter, r *http.Request) {
		t, err := rt.Inspect(r.Context(), trackers.IDFromName(r.PathValue("queue")))
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, http.StatusOK, map[string]any{"constructed": t.Wakes, "inMemory": t.InMemory(), "watchers": len(t.WebSockets)})
	}

	mux := http.NewServeMux()
	mux.Handle("GET /{$}", http.RedirectHandler("/q/studio", http.StatusFound))
	mux.Handle("GET /page/", http.StripPrefix("/page", http.FileServerFS(files)))
	mux.Handle("GET /q/{queue}", named(http.HandlerFunc(index)))
	mux.Handle("GET /q/{queue}/state", named(http.HandlerFunc(state)))
	mux.Handle("GET /q/{queue}/jobs", named(tracker))
	mux.Handle("POST /q/{queue}/jobs/{job}", workersOnly(token, named(tracker)))
	mux.Handle("GET /q/{queue}/jobs/{job}/ws", named(tracker))
	// Whoever sees the page may start and watch jobs. A program with accounts puts its middleware here; other
	// sites are kept out already, of this by the browser's Sec-Fetch-Site and of sockets by their Origin.
	mux.Handle("POST /q/{queue}/start", http.NewCrossOriginProtection().Handler(named(http.HandlerFunc(start))))
	return secured(mux), nil
}

// workersOnly answers 401 to a request without the workers' token, and wakes nobody for it.
func workersOnly(token string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if subtle.ConstantTimeCompare([]byte(got), []byte(token)) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "Only workers report, and they have a token.", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// named answers 400 to a queue's name that is longer than anyone wants to read.
func named(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := len(r.PathValue("queue")); n > maxQueueName {
			http.Error(w, fmt.Sprintf("A queue's name has at most %d bytes; this one has %d.", maxQueueName, n), http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

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
	return "http://" + net.JoinHostPort(host, port)
}
