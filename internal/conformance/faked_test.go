package conformance

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/conformance/probeserver"
)

// fakedIdle is after how long an object hibernates, fakedWait how long the player
// waits for it.
const (
	fakedIdle = 10 * time.Second
	fakedWait = wait(12 * time.Second)
)

// epoch is where the clocks begin.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A fakedStage is a server of the player's own in this process, on a clock that
// only the player moves.
type fakedStage struct {
	p      *player
	clock  *alarm.Fake
	dir    string // of the storage; empty: in memory
	probe  *probeserver.Server
	server *httptest.Server
	canary *client // goes through the same poller as the clients
}

// playFaked plays sc on a faked clock.
func playFaked(t *testing.T, sc *scenario) ([]any, error) {
	p := newPlayer(t, sc, fakedWait)
	f := &fakedStage{p: p, clock: alarm.NewFake(epoch)}
	if sc.Restarts {
		f.dir = t.TempDir()
	}
	if err := f.start(); err != nil {
		return nil, err
	}
	p.stage = f
	return p.play(sc)
}

// start serves the storage in dir.
func (f *fakedStage) start() (err error) {
	f.probe, err = probeserver.Open(probeserver.Config{
		Dir: f.dir, Idle: fakedIdle, Clock: f.clock, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	f.server = httptest.NewServer(f.probe)
	f.p.issued = 0
	f.p.received.Store(0)
	return nil
}

func (f *fakedStage) stop() {
	if err := f.probe.Close(); err != nil {
		f.p.t.Errorf("close: %v", err)
	}
	f.server.CloseClientConnections()
	f.server.Close()
	if f.canary != nil {
		f.canary.conn.Close()
		<-f.canary.ended
		f.canary = nil
	}
}

// restart is a crash: the next server finds the files as they are now, without
// what closing this one would still have written.
func (f *fakedStage) restart(down time.Duration) error {
	f.settle()
	found := filepath.Join(f.p.t.TempDir(), "crashed")
	if err := os.CopyFS(found, os.DirFS(f.dir)); err != nil {
		return err
	}
	f.stop()
	f.p.leave()
	f.clock.Advance(down)
	f.dir = found
	return f.start()
}

func (f *fakedStage) tick() { f.clock.Advance(time.Millisecond) }

func (f *fakedStage) settle() { f.settleOr(never) }

// settleOr waits until nothing moves any more: what is still to come is up to the
// player or the clock. It returns early once ok is true.
//
// Nothing announces that a byte is not under way. So it looks, several times in a
// row and each time behind a round trip on a connection of the same kinds.
func (f *fakedStage) settleOr(ok func() bool) {
	f.p.t.Helper()
	// The poller takes at least so much from a connection that has it before it
	// turns to the next.
	const looks, gulp = 3, 64 << 10
	deadline := time.Now().Add(impatience)
	last := ""
	for calm := 0; calm < looks+int(f.sent()/gulp); {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			came, answered := f.probe.Requests()
			f.p.t.Fatalf("not quiet in %v: probe quiet %v; requests issued %d, came %d, answered %d, received %d",
				impatience, f.probe.Quiet(), f.p.issued, came, answered, f.p.received.Load())
		}
		f.roundTrip()
		state, still := f.look()
		if still && state == last {
			calm++
			continue
		}
		calm, last = 0, state
		time.Sleep(200 * time.Microsecond) // leave the processor to those we wait for
	}
	for _, c := range f.p.clients {
		c.sent.Store(0)
	}
}

// sent is how much clients have sent since everything was still.
func (f *fakedStage) sent() (n int64) {
	for _, c := range f.p.clients {
		n += c.sent.Load()
	}
	return n
}

// look reports whether nothing moves, and in which state.
func (f *fakedStage) look() (state string, still bool) {
	came, answered := f.probe.Requests()
	still = f.probe.Quiet() && came == f.p.issued && answered == f.p.received.Load()
	state = fmt.Sprint(came, answered, len(f.p.events(0)))
	for _, id := range slices.Sorted(maps.Keys(f.p.clients)) {
		c := f.p.clients[id]
		at, calm := c.calm()
		still = still && calm
		state += " " + id + " " + at
	}
	return state, still
}

// roundTrip goes to the server and back by HTTP, and through its poller if there
// are WebSockets: what was sent before has been read then, unless it has to wait.
func (f *fakedStage) roundTrip() {
	t := f.p.t
	t.Helper()
	resp, err := f.p.http.Get(f.server.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if len(f.p.clients) == 0 {
		return
	}
	if f.canary == nil {
		f.p.issued++
		prefix, _, _ := strings.Cut(f.p.name, "-")
		c, _, err := connect(f.addr(), "/"+prefix+"-canary/ws?p="+url.QueryEscape(`{"id":"canary"}`), nil, true)
		f.p.received.Add(1)
		if err != nil || c == nil {
			t.Fatalf("canary: %v", err)
		}
		f.canary = c
	}
	f.canary.send(ws.OpPing, nil)
	for deadline := time.Now().Add(impatience); !f.canary.has(1); {
		if time.Now().After(deadline) {
			t.Fatalf("canary: no pong in %v", impatience)
		}
		time.Sleep(20 * time.Microsecond) // the pong is under way
	}
	if _, over := f.canary.take(0); over {
		t.Fatal("canary: connection lost")
	}
}

func (f *fakedStage) addr() string { return f.server.Listener.Addr().String() }

// until moves the clock to what is due next whenever ok is false and nothing
// moves, in all by within.
func (f *fakedStage) until(within time.Duration, ok func() bool) bool {
	f.p.t.Helper()
	end := f.clock.Now().Add(within)
	for {
		if f.settleOr(ok); ok() {
			return true
		}
		if !f.clock.Now().Before(end) {
			return false
		}
		due := end
		if next, any := f.clock.Next(); any && next.Before(end) {
			due = next
		}
		f.clock.Advance(max(due.Sub(f.clock.Now()), 0))
	}
}

func (f *fakedStage) inside(method, path string, body any) []byte {
	r := httptest.NewRequest(method, "/"+f.p.name+path, strings.NewReader(text(body)))
	w := httptest.NewRecorder()
	f.probe.ServeHTTP(w, r)
	return w.Body.Bytes()
}
