package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/examples/internal/exampletest"
	"github.com/hibernate-go/hibernate/internal/leak"
)

// TestMain lets the test binary be the program, so that a test can kill it.
func TestMain(m *testing.M) {
	if !exampletest.RunMain(main) {
		leak.Main(m)
	}
}

const secret = "a secret"

// TestEventReachesMoreDashboardsThanOneObjectHolds is the example in one test. The tree sleeps before each event.
func TestEventReachesMoreDashboardsThanOneObjectHolds(t *testing.T) {
	const perObject, dashboards, events = 200, 2000, 3
	lim := limits
	lim.SocketsPerObject = perObject
	srv := serve(t, lim, 20*time.Millisecond)
	all := make([]*exampletest.Client, dashboards)
	for i := range all {
		for all[i] == nil { // a full leaf refuses, and the next try goes elsewhere
			all[i], _ = exampletest.TryDial(t, srv.URL+"/feed/orders/ws", nil)
		}
	}
	for i := range events {
		exampletest.Until(t, "the tree hibernates", func() bool { return srv.awake("orders") == 0 })
		if p := srv.hook("orders", Event{ID: fmt.Sprint(i), Source: "shop", Text: fmt.Sprint("order ", i)}); p.Reached != dashboards || p.Event.Seq != uint64(i+1) {
			t.Fatalf("event %d: %+v", i, p)
		}
	}
	for i, c := range all {
		for want := range events {
			var e Event
			if text := c.Text(); json.Unmarshal([]byte(text), &e) != nil || e.Seq != uint64(want+1) || e.Text != fmt.Sprint("order ", want) {
				t.Fatalf("dashboard %d got %s as event %d", i, text, want+1)
			}
		}
	}
	largest := 0
	for _, n := range srv.tree("orders") {
		largest = max(largest, n.Dashboards)
	}
	t.Logf("%d dashboards, at most %d at one object", dashboards, largest)
}

func TestFullFeedRefuses(t *testing.T) {
	lim := limits
	lim.SocketsPerObject = 1
	srv := serve(t, lim, time.Hour)
	connected := 0
	for range 40 * leaves {
		if _, err := exampletest.TryDial(t, srv.URL+"/feed/orders/ws", nil); err == nil {
			connected++
		} else if !strings.Contains(err.Error(), "503") {
			t.Fatal(err)
		}
	}
	if connected != leaves {
		t.Fatalf("%d dashboards at %d leaves with room for one each", connected, leaves)
	}
}

// TestEventsAreNumberedOnceAndKept: one that is sent again keeps its number and goes out again.
func TestEventsAreNumberedOnceAndKept(t *testing.T) {
	srv := serve(t, limits, time.Hour)
	for i := range maxEvents + 5 {
		srv.hook("orders", Event{ID: fmt.Sprint(i), Source: "shop", Text: fmt.Sprint("order ", i)})
	}
	srv.evict()
	if p := srv.hook("orders", Event{ID: "50", Source: "shop", Text: "changed"}); p.Event.Seq != 51 || p.Event.Text != "order 50" {
		t.Fatalf("sent again: %+v", p)
	}
	all := exampletest.Get[[]Event](t, srv.URL+"/feed/orders/events")
	if len(all) != maxEvents || all[0].Seq != 6 || all[maxEvents-1].Seq != maxEvents+5 {
		t.Fatalf("%d events, from %+v to %+v", len(all), all[0], all[len(all)-1])
	}
	if missed := exampletest.Get[[]Event](t, fmt.Sprintf("%s/feed/orders/events?after=%d", srv.URL, maxEvents+3)); len(missed) != 2 {
		t.Fatalf("missed: %+v", missed)
	}
	if none := exampletest.Get[[]Event](t, srv.URL+"/feed/others/events"); none == nil || len(none) != 0 {
		t.Fatalf("another feed has %+v", none)
	}
}

// TestManySendersAtOnce: every dashboard sees every event, whatever the order they come in.
func TestManySendersAtOnce(t *testing.T) {
	const senders, dashboards = 50, 40
	srv := serve(t, limits, time.Hour)
	var all []*exampletest.Client
	for range dashboards {
		all = append(all, exampletest.Dial(t, srv.URL+"/feed/orders/ws", nil))
	}
	var sending sync.WaitGroup
	for i := range senders {
		sending.Go(func() {
			if status, text := srv.post("/hook/orders", signedEvent(t, Event{ID: fmt.Sprint(i), Source: "s", Text: "t"})); status != http.StatusOK {
				t.Errorf("%d %s", status, text)
			}
		})
	}
	sending.Wait()
	for i, c := range all {
		var seqs []uint64
		for range senders {
			var e Event
			if err := json.Unmarshal([]byte(c.Text()), &e); err != nil {
				t.Fatal(err)
			}
			seqs = append(seqs, e.Seq)
		}
		slices.Sort(seqs)
		if seqs = slices.Compact(seqs); len(seqs) != senders || seqs[0] != 1 || seqs[senders-1] != senders {
			t.Fatalf("dashboard %d saw %v", i, seqs)
		}
	}
}

func TestWebhooksAreChecked(t *testing.T) {
	srv := serve(t, limits, time.Hour)
	fine := Event{ID: "1", Source: "shop", Text: "order"}
	with := func(change func(*Event)) signedBody {
		e := fine
		change(&e)
		return signedEvent(t, e)
	}
	forged := signedEvent(t, fine)
	forged.body = bytes.Replace(forged.body, []byte("order"), []byte("ordre"), 1)
	unsigned := signedEvent(t, fine)
	unsigned.signature = ""
	odd := signedEvent(t, fine)
	odd.signature = "sha256=xyz"
	for name, c := range map[string]struct {
		path   string
		send   signedBody
		status int
		text   string
	}{
		"unsigned":        {"/hook/orders", unsigned, http.StatusUnauthorized, "signature"},
		"forged":          {"/hook/orders", forged, http.StatusUnauthorized, "signature"},
		"odd signature":   {"/hook/orders", odd, http.StatusUnauthorized, "signature"},
		"no id":           {"/hook/orders", with(func(e *Event) { e.ID = "" }), http.StatusBadRequest, "id of 1"},
		"long id":         {"/hook/orders", with(func(e *Event) { e.ID = strings.Repeat("i", maxID+1) }), http.StatusBadRequest, "id of 1"},
		"no source":       {"/hook/orders", with(func(e *Event) { e.Source = "" }), http.StatusBadRequest, "source of 1"},
		"long text":       {"/hook/orders", with(func(e *Event) { e.Text = strings.Repeat("é", maxText+1) }), http.StatusBadRequest, "text of 1"},
		"not JSON":        {"/hook/orders", sign([]byte("{")), http.StatusBadRequest, "JSON"},
		"very long":       {"/hook/orders", sign(make([]byte, maxHook+1)), http.StatusRequestEntityTooLarge, ""},
		"odd name":        {"/hook/Orders", signedEvent(t, fine), http.StatusNotFound, "a-z"},
		"name of a relay": {"/hook/orders%2F1", signedEvent(t, fine), http.StatusNotFound, "a-z"},
	} {
		t.Run(name, func(t *testing.T) {
			if status, text := srv.post(c.path, c.send); status != c.status || !strings.Contains(text, c.text) {
				t.Fatalf("%d %q, want %d with %q", status, text, c.status, c.text)
			}
		})
	}
	for _, path := range []string{"/feed/Orders/ws", "/feed/a/b/ws", "/feed//ws"} {
		if _, err := exampletest.TryDial(t, srv.URL+path, nil); err == nil {
			t.Errorf("%s was accepted", path)
		}
	}
	if n := srv.awake("orders"); n != 0 {
		t.Fatalf("%d objects were woken", n)
	}
}

// TestCrowdAndRestart has the whole program run with a crowd, be interrupted, and know its events again.
func TestCrowdAndRestart(t *testing.T) {
	const crowd = 300
	dir := t.TempDir()
	p := exampletest.Start(t, "-addr", "127.0.0.1:0", "-dir", dir, "-idle", "50ms", "-secret", secret, "-crowd", fmt.Sprint(crowd))
	srv := &server{t: t, URL: p.URL}
	exampletest.Until(t, "the crowd is there and the tree asleep", func() bool {
		n := 0
		for _, o := range srv.tree(firstFeed) {
			n += o.Dashboards
		}
		return n == crowd && srv.awake(firstFeed) == 0
	})
	first := srv.hook(firstFeed, Event{ID: "1", Source: "shop", Text: "order"})
	if first.Reached != crowd {
		t.Fatalf("reached %d of %d", first.Reached, crowd)
	}
	p.Interrupt()
	p = exampletest.Start(t, "-addr", "127.0.0.1:0", "-dir", dir)
	if got := exampletest.Get[[]Event](t, p.URL+"/feed/"+firstFeed+"/events"); len(got) != 1 || got[0] != first.Event {
		t.Fatalf("after the restart: %+v, want %+v", got, first.Event)
	}
}

// ---- helpers ----

type server struct {
	t   *testing.T
	rt  *hibernate.Runtime // nil: it is another process
	URL string
}

// serve runs the program's server in this process, door included.
func serve(t *testing.T, lim hibernate.Limits, idle time.Duration) *server {
	t.Helper()
	rt, err := hibernate.Open(t.TempDir(), &hibernate.Options{IdleTimeout: idle, Limits: lim})
	if err != nil {
		t.Fatal(err)
	}
	handler, route, err := routes(rt, secret)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if ln, err = rt.WrapListener(ln, route); err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handler}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		srv.Close()
		<-ended
		if err := rt.Close(); err != nil {
			t.Errorf("close the runtime: %v", err)
		}
	})
	return &server{t, rt, "http://" + ln.Addr().String()}
}

func (s *server) evict() {
	s.t.Helper()
	if err := s.rt.EvictAll(context.WithoutCancel(s.t.Context())); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) tree(feed string) []node {
	s.t.Helper()
	return exampletest.Get[[]node](s.t, s.URL+"/feed/"+feed+"/state")
}

// awake counts the objects of a tree that are in memory.
func (s *server) awake(feed string) (n int) {
	s.t.Helper()
	for _, o := range s.tree(feed) {
		if o.InMemory {
			n++
		}
	}
	return n
}

// A signedBody is what a webhook sends.
type signedBody struct {
	body      []byte
	signature string
}

func sign(body []byte) signedBody {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return signedBody{body, "sha256=" + hex.EncodeToString(mac.Sum(nil))}
}

func signedEvent(t *testing.T, e Event) signedBody {
	t.Helper()
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return sign(b)
}

// post may be called from any goroutine.
func (s *server) post(path string, b signedBody) (status int, text string) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.URL+path, bytes.NewReader(b.body))
	if err != nil {
		return 0, err.Error()
	}
	req.Header.Set("X-Signature-256", b.signature)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(answer)
}

// hook sends an event as a webhook does.
func (s *server) hook(feed string, e Event) (p Publication) {
	s.t.Helper()
	status, text := s.post("/hook/"+feed, signedEvent(s.t, e))
	if err := json.Unmarshal([]byte(text), &p); status != http.StatusOK || err != nil {
		s.t.Fatalf("webhook: %d %q", status, text)
	}
	return p
}
