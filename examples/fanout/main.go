// Command fanout shows what a webhook tells to more dashboards than one object can hold.
//
// Open it and send an event: it goes from the root of a tree of objects to its leaves, and from each leaf to the
// dashboards that are connected there. When nothing happens the whole tree is gone from memory, and every
// dashboard is still connected. -crowd 5000 adds some that nobody looks at.
// The tree is in feed.go; this file is the wiring.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	randv2 "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hibernate-go/hibernate"
)

const (
	maxHook = 16 << 10                // bytes of a webhook's body
	grace   = 1500 * time.Millisecond // for the requests, and again for the objects
)

//go:embed page
var page embed.FS

// limits suit dashboards, which say nothing.
var limits = hibernate.Limits{Message: 1 << 10, SendQueue: 1 << 20}

// feedName is a name that leaves no room for a second meaning of the names below it.
var feedName = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`host:port` to listen on")
	dir := flag.String("dir", "fanout-data", "`directory` that keeps the events")
	idle := flag.Duration("idle", 5*time.Second, "an object without events leaves memory after this `duration`")
	secret := flag.String("secret", "", "what senders sign with; empty makes one up")
	crowd := flag.Int("crowd", 0, "`number` of dashboards to connect that nobody looks at")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	if err := run(ctx, os.Stdout, *addr, *dir, *idle, cmp.Or(*secret, rand.Text()), *crowd); err != nil {
		fmt.Fprintln(os.Stderr, "fanout:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or the storage fails, and prints to out where.
func run(ctx context.Context, out io.Writer, addr, dir string, idle time.Duration, secret string, crowd int) error {
	rt, err := hibernate.Open(dir, &hibernate.Options{IdleTimeout: idle, Limits: limits})
	if err != nil {
		return err
	}
	defer rt.Close()
	handler, route, err := routes(rt, secret)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	// Dashboards come in by the thousand, so they are accepted without net/http and without a goroutine each.
	// Whatever else comes, and where there is no such door, goes to the handler.
	if ln, err = rt.WrapListener(ln, route); err != nil {
		return err
	}

	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	url := visitable(ln.Addr())
	fmt.Fprintf(out, "Fanout is at %s/ (Ctrl-C ends it)\n", url)
	fmt.Fprintf(out, "Webhooks are signed with %s\n", secret)
	var dashboards sync.WaitGroup
	gathered, dismiss := context.WithCancel(ctx)
	defer dismiss()
	if crowd > 0 {
		dashboards.Go(func() { gather(gathered, url+"/feed/"+firstFeed+"/ws", crowd) })
	}

	select {
	case err = <-served:
	case <-rt.Done():
		err = rt.Err()
	case <-ctx.Done():
	}
	dismiss()
	dashboards.Wait()
	return cmp.Or(err, shutdown(srv, rt))
}

// shutdown lets running requests and objects finish, and cuts off what takes longer than grace.
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

const firstFeed = "orders" // the one that the root of the site leads to

// routes registers the classes with rt and returns the handler of all requests, and the route by which dashboards
// find their leaf.
func routes(rt *hibernate.Runtime, secret string) (http.Handler, hibernate.Route, error) {
	feeds, relays, err := register(rt)
	if err != nil {
		return nil, nil, err
	}
	files, err := fs.Sub(page, "page")
	if err != nil {
		return nil, nil, err
	}

	// The path is taken apart by hand: at the door no mux has seen it. Who may watch can be asked here too, as
	// long as the answer needs no waiting; else leave the door away, and ask in a middleware before the handler.
	route := func(h *hibernate.Handshake) (hibernate.Join, error) {
		path, isSocket := strings.CutSuffix(h.Path(), "/ws")
		feed, isFeed := strings.CutPrefix(path, "/feed/")
		if !isSocket || !isFeed || !feedName.MatchString(feed) {
			return hibernate.Join{}, hibernate.Refuse(http.StatusNotFound, "There is no such feed.")
		}
		return hibernate.Join{Object: relays.GetByName(anyLeaf(feed))}, nil
	}

	publish := func(w http.ResponseWriter, r *http.Request, e Event) {
		if wrong := e.wrong(); wrong != "" {
			http.Error(w, wrong, http.StatusBadRequest)
			return
		}
		e.At = time.Now().UTC()
		began := time.Now()
		p, err := Publish.Call(r.Context(), feeds.GetByName(r.PathValue("feed")), e)
		if err != nil {
			slog.Error("an event did not reach everybody", "feed", r.PathValue("feed"), "id", e.ID, "reached", p.Reached, "err", err)
			http.Error(w, "The event did not reach everybody. Send it again.", http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, struct {
			Publication
			Milliseconds float64 `json:"milliseconds"`
		}{p, float64(time.Since(began).Microseconds()) / 1000})
	}
	hook := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxHook))
		if err != nil {
			http.Error(w, fmt.Sprintf("A webhook has at most %d bytes.", maxHook), http.StatusRequestEntityTooLarge)
			return
		}
		if !signed(secret, body, r.Header.Get("X-Signature-256")) {
			http.Error(w, "The signature is not that of this body.", http.StatusUnauthorized)
			return
		}
		var e Event
		if err := json.NewDecoder(bytes.NewReader(body)).Decode(&e); err != nil {
			http.Error(w, "An event must be a JSON object.", http.StatusBadRequest)
			return
		}
		publish(w, r, e)
	}
	try := func(w http.ResponseWriter, r *http.Request) { publish(w, r, example()) }
	events := func(w http.ResponseWriter, r *http.Request) {
		after, err := strconv.ParseUint(cmp.Or(r.URL.Query().Get("after"), "0"), 10, 64)
		if err != nil {
			http.Error(w, "after is the number of an event.", http.StatusBadRequest)
			return
		}
		list, err := Recent.Call(r.Context(), feeds.GetByName(r.PathValue("feed")), after)
		if err != nil {
			http.Error(w, "The events cannot be read now.", http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, list)
	}
	lookout := lookout{rt: rt, feeds: feeds, relays: relays}
	state := func(w http.ResponseWriter, r *http.Request) {
		nodes, err := lookout.look(r.Context(), r.PathValue("feed"))
		if err != nil {
			http.Error(w, "The tree cannot be looked at now.", http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, nodes)
	}
	index := func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "index.html") }

	mux := http.NewServeMux()
	mux.Handle("GET /{$}", http.RedirectHandler("/feed/"+firstFeed, http.StatusFound))
	mux.Handle("GET /page/", http.StripPrefix("/page", http.FileServerFS(files)))
	mux.Handle("GET /feed/{feed}", named(index))
	mux.Handle("GET /feed/{feed}/ws", relays.Handler(route))
	mux.Handle("GET /feed/{feed}/events", named(events))
	mux.Handle("GET /feed/{feed}/state", named(state))
	mux.Handle("POST /hook/{feed}", named(hook))
	// For the button on the page. Other sites are kept out of it by the browser's Sec-Fetch-Site.
	mux.Handle("POST /feed/{feed}/try", http.NewCrossOriginProtection().Handler(named(try)))
	return secured(mux), route, nil
}

// signed reports whether signature, "sha256=" and hexadecimal digits, is that of body.
func signed(secret string, body []byte, signature string) bool {
	digits, _ := strings.CutPrefix(signature, "sha256=")
	got, err := hex.DecodeString(digits)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return err == nil && hmac.Equal(got, mac.Sum(nil))
}

// example is an event for those who have no webhook at hand.
func example() Event {
	all := []Event{
		{Source: "shop", Text: "Order 4711: three raincoats to Bergen"},
		{Source: "payments", Text: "Invoice 2026-118 is paid"},
		{Source: "warehouse", Text: "The last blue umbrella has left the shelf"},
		{Source: "build", Text: "main is green again after 14 minutes"},
		{Source: "weather", Text: "Gale warning for Fisher and German Bight"},
	}
	e := all[randv2.IntN(len(all))]
	e.ID = rand.Text()
	return e
}

// named answers 404 to a name that no feed can have.
func named(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !feedName.MatchString(r.PathValue("feed")) {
			http.Error(w, "A feed's name has 1 to 40 of a-z, 0-9 and -.", http.StatusNotFound)
			return
		}
		next(w, r)
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		slog.Debug("an answer was not written", "err", err)
	}
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
