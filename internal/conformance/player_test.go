package conformance

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/conformance/probeserver"
)

// epoch is where the clocks begin.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A player plays one scenario against a server of its own, on a clock of its
// own. It is used by one goroutine.
type player struct {
	t      *testing.T
	name   string // of the object
	clock  *alarm.Fake
	dir    string // of the storage; empty: in memory
	probe  *probeserver.Server
	server *httptest.Server
	http   *http.Client

	issued   int64        // requests sent to the object by this server's life
	received atomic.Int64 // answers got
	canary   *client      // goes through the same poller as the clients
	clients  map[string]*client
	pending  map[string]chan any // outcomes of requests left running
	seen     int                 // events reported
}

// play plays sc and returns the outcome of each step.
func play(t *testing.T, sc *scenario) []any {
	p := &player{
		t:       t,
		name:    sc.Prefix + sc.Name,
		clock:   alarm.NewFake(epoch),
		http:    &http.Client{Transport: &http.Transport{}},
		clients: map[string]*client{},
		pending: map[string]chan any{},
	}
	if sc.Restarts {
		p.dir = t.TempDir()
	}
	p.start()
	defer p.stop()
	var outcomes []any
	for i, s := range sc.Steps {
		p.clock.Advance(time.Millisecond) // steps are never at the same time
		v, err := p.do(s)
		if err != nil {
			t.Fatalf("step %d (%s): %v", i+1, s.Do, err)
		}
		v = masked(asJSON(v), s.Mask)
		if m, ok := v.(object); ok && s.Sort {
			for _, key := range []string{"got", "events"} {
				if list, ok := m[key].([]any); ok {
					sorted(list)
				}
			}
		}
		outcomes = append(outcomes, v)
	}
	return ranked(outcomes)
}

// start serves the storage in dir.
func (p *player) start() {
	p.t.Helper()
	var err error
	p.probe, err = probeserver.Open(probeserver.Config{
		Dir: p.dir, Idle: idleTime, Clock: p.clock, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.server = httptest.NewServer(p.probe)
	p.issued = 0
	p.received.Store(0)
}

// stop ends the server and every connection to it.
func (p *player) stop() {
	if err := p.probe.Close(); err != nil {
		p.t.Errorf("close: %v", err)
	}
	p.server.CloseClientConnections()
	p.server.Close()
	p.http.CloseIdleConnections()
	for _, c := range p.clients {
		c.conn.Close()
		<-c.ended
	}
	if p.canary != nil {
		p.canary.conn.Close()
		<-p.canary.ended
		p.canary = nil
	}
	for _, outcome := range p.pending {
		outcome <- <-outcome // its goroutine has ended
	}
}

// restart is a crash: the next server finds the files as they are now, without
// what closing this one would still have written.
func (p *player) restart(down time.Duration) error {
	p.settle(nil)
	found := filepath.Join(p.t.TempDir(), "crashed")
	if err := os.CopyFS(found, os.DirFS(p.dir)); err != nil {
		return err
	}
	p.stop()
	p.clock.Advance(down)
	p.dir, p.seen = found, 0
	p.start()
	return nil
}

// impatience is how much real time a step may take.
const impatience = 30 * time.Second

// settle waits until nothing moves any more: what is still to come is up to the
// player or the clock. It returns early once ok, which may be nil, is true.
//
// Nothing announces that a byte is not under way. So it looks, several times in a
// row and each time behind a round trip on a connection of the same kinds.
func (p *player) settle(ok func() bool) {
	p.t.Helper()
	// The poller takes at least so much from a connection that has it before it
	// turns to the next.
	const looks, gulp = 3, 64 << 10
	deadline := time.Now().Add(impatience)
	last := ""
	for calm := 0; calm < looks+int(p.sent()/gulp); {
		if ok != nil && ok() {
			return
		}
		if time.Now().After(deadline) {
			came, answered := p.probe.Requests()
			p.t.Fatalf("not quiet in %v: probe quiet %v; requests issued %d, came %d, answered %d, received %d",
				impatience, p.probe.Quiet(), p.issued, came, answered, p.received.Load())
		}
		p.roundTrip()
		state, still := p.look()
		if still && state == last {
			calm++
			continue
		}
		calm, last = 0, state
		time.Sleep(200 * time.Microsecond) // leave the processor to those we wait for
	}
	for _, c := range p.clients {
		c.sent.Store(0)
	}
}

// sent is how much clients have sent since everything was still.
func (p *player) sent() (n int64) {
	for _, c := range p.clients {
		n += c.sent.Load()
	}
	return n
}

// look reports whether nothing moves, and in which state.
func (p *player) look() (state string, still bool) {
	came, answered := p.probe.Requests()
	still = p.probe.Quiet() && came == p.issued && answered == p.received.Load()
	state = fmt.Sprint(came, answered, len(p.events(0)))
	for _, id := range slices.Sorted(maps.Keys(p.clients)) {
		c := p.clients[id]
		at, calm := c.calm()
		still = still && calm
		state += " " + id + " " + at
	}
	return state, still
}

// roundTrip goes to the server and back by HTTP, and through its poller if there
// are WebSockets: what was sent before has been read then, unless it has to wait.
func (p *player) roundTrip() {
	p.t.Helper()
	resp, err := p.http.Get(p.server.URL + "/")
	if err != nil {
		p.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if len(p.clients) == 0 {
		return
	}
	if p.canary == nil {
		p.issued++
		prefix, _, _ := strings.Cut(p.name, "-")
		c, _, err := connect(p.addr(), "/"+prefix+"-canary/ws?p="+url.QueryEscape(`{"id":"canary"}`), nil, true)
		p.received.Add(1)
		if err != nil || c == nil {
			p.t.Fatalf("canary: %v", err)
		}
		p.canary = c
	}
	p.canary.send(ws.OpPing, nil)
	for !p.canary.has(1) {
		time.Sleep(20 * time.Microsecond) // the pong is under way
	}
	if _, over := p.canary.take(0); over {
		p.t.Fatal("canary: connection lost")
	}
}

func (p *player) addr() string { return p.server.Listener.Addr().String() }

// until waits for ok. While it is false and nothing moves, the clock goes to what
// is due next, in all by within. It reports whether ok came true.
func (p *player) until(within time.Duration, ok func() bool) bool {
	p.t.Helper()
	end := p.clock.Now().Add(within)
	for {
		if p.settle(ok); ok() {
			return true
		}
		if !p.clock.Now().Before(end) {
			return false
		}
		p.advance(end)
	}
}

// advance moves the clock to what is due next, at most to end.
func (p *player) advance(end time.Time) {
	if due, any := p.clock.Next(); any && due.Before(end) {
		end = due
	}
	p.clock.Advance(max(end.Sub(p.clock.Now()), 0))
}

// pass lets d go by, with everything that falls due on the way.
func (p *player) pass(d time.Duration) {
	p.t.Helper()
	p.until(d, func() bool { return false })
}

// inside asks the probe for something that concerns no object.
func (p *player) inside(method, path string, body any) []byte {
	r := httptest.NewRequest(method, "/"+p.name+path, strings.NewReader(text(body)))
	w := httptest.NewRecorder()
	p.probe.ServeHTTP(w, r)
	return w.Body.Bytes()
}

// events are the log entries from number from on.
func (p *player) events(from int) []object {
	var list []object
	if err := json.Unmarshal(p.inside(http.MethodGet, fmt.Sprintf("/events?from=%d", from), nil), &list); err != nil {
		panic("BUG: " + err.Error())
	}
	return list
}

// request runs f, which sends one request to the object, beside the player, and
// returns where its outcome will be.
func (p *player) request(f func() any) chan any {
	outcome := make(chan any, 1)
	p.issued++
	go func() {
		v := f()
		p.received.Add(1)
		outcome <- v
	}()
	return outcome
}

// outcome waits for a request.
func (p *player) outcome(of chan any, within time.Duration) any {
	p.t.Helper()
	if !p.until(within, func() bool { return len(of) == 1 }) {
		return object{"timeout": true}
	}
	v := <-of
	of <- v
	return v
}

// command has the object run operations.
func (p *player) command(ops any) any {
	resp, err := p.http.Post(p.server.URL+"/"+p.name+"/cmd", "application/json", strings.NewReader(text(object{"ops": ops})))
	if err != nil {
		return object{"transport": "failed"}
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	var v object
	if json.Unmarshal(body, &v) != nil {
		return object{"status": resp.StatusCode}
	}
	if resp.StatusCode != http.StatusOK {
		v["status"] = resp.StatusCode
	}
	return v
}

// connect opens a WebSocket to the object.
func (p *player) connect(s *step) (any, error) {
	query := object{"id": s.ID}
	if s.Ops != nil {
		query["ops"] = inMilliseconds(s.Ops)
	}
	if s.Tags != nil {
		query["tags"] = s.Tags
	}
	if s.Protocol != "" {
		query["protocol"] = s.Protocol
	}
	if s.Refuse != 0 {
		query["refuse"] = s.Refuse
	}
	type answered struct {
		c    *client
		resp *http.Response
		err  error
	}
	of := p.request(func() any {
		c, resp, err := connect(p.addr(), "/"+p.name+"/ws?p="+url.QueryEscape(text(query)), s.Protocols, s.ManualClose)
		return answered{c, resp, err}
	})
	a, ok := p.outcome(of, impatience).(answered)
	switch {
	case !ok:
		return nil, errors.New("no answer to the handshake")
	case a.err != nil:
		return nil, a.err
	}
	out := object{"status": a.resp.StatusCode}
	if a.c == nil {
		var body object
		if json.NewDecoder(a.resp.Body).Decode(&body) == nil {
			out["body"] = body
		}
		return out, nil
	}
	p.clients[s.ID] = a.c
	var results any
	if err := json.Unmarshal([]byte(a.resp.Header.Get("X-Probe-Results")), &results); err != nil {
		return nil, err
	}
	out["results"] = results
	if protocol := a.resp.Header.Get("Sec-WebSocket-Protocol"); protocol != "" {
		out["protocol"] = protocol
	}
	return out, nil
}

// send sends what the step describes as one or more messages.
func (s *step) send(c *client) error {
	switch {
	case s.Ops != nil:
		m := object{"ops": inMilliseconds(s.Ops)}
		if s.Reply != nil {
			m["reply"] = *s.Reply
		}
		c.send(ws.OpText, []byte(text(m)))
	case s.Size > 0 && s.Bin != "":
		c.send(ws.OpBinary, bytes.Repeat([]byte{0x5a}, s.Size))
	case s.Size > 0:
		c.send(ws.OpText, bytes.Repeat([]byte("x"), s.Size))
	case s.Text != nil:
		c.sendText(*s.Text, s.Repeat)
	default:
		b, err := base64.StdEncoding.DecodeString(s.Bin)
		if err != nil {
			return err
		}
		c.send(ws.OpBinary, b)
	}
	return nil
}

// sendFrames sends the step's frames.
func (s *step) sendFrames(c *client) error {
	for _, f := range s.Frames {
		payload := []byte(f.Text)
		if f.Bin != "" {
			var err error
			if payload, err = base64.StdEncoding.DecodeString(f.Bin); err != nil {
				return err
			}
		}
		if f.Size > 0 {
			payload = bytes.Repeat([]byte("y"), f.Size)
		}
		c.sendFrame(ws.OpCode(f.Op), f.Fin, f.Rsv, payload, f.Bare)
	}
	return nil
}

// do takes a step and returns what was observed.
func (p *player) do(s *step) (any, error) {
	switch s.Do {
	case "connect":
		return p.connect(s)
	case "program":
		p.inside(http.MethodPost, "/program", inMilliseconds(s.Program))
		return nil, nil
	case "cmd":
		ops := inMilliseconds(s.Ops)
		of := p.request(func() any { return p.command(ops) })
		if s.As == "" {
			return p.outcome(of, time.Minute), nil
		}
		p.pending[s.As] = of
		p.settle(nil)
		return nil, nil
	case "join":
		return p.outcome(p.pending[s.As], duration(s.Within, 20*time.Second)), nil
	case "events":
		return p.report(s), nil
	case "hibernate":
		p.pass(hibernationWait)
		return nil, nil
	case "sleep":
		p.pass(duration(s.Ms, 0))
		return nil, nil
	case "restart":
		return nil, p.restart(duration(s.Ms, 0))
	}
	c := p.clients[s.ID]
	if c == nil {
		return nil, fmt.Errorf("no client %q", s.ID)
	}
	switch s.Do {
	case "send":
		return nil, s.send(c)
	case "frames":
		return nil, s.sendFrames(c)
	case "raw":
		b, err := hex.DecodeString(s.Hex)
		c.write(b)
		return nil, err
	case "ping":
		c.send(ws.OpPing, []byte(*s.Text))
	case "close":
		c.sendClose(s.Code, s.Reason)
	case "drop":
		_ = c.conn.SetLinger(0)
		c.conn.Close()
	case "hangup":
		c.conn.Close()
	case "fin":
		_ = c.conn.CloseWrite()
	case "recv":
		n := max(s.N, 1)
		p.until(duration(s.Within, 10*time.Second), func() bool { return c.has(n) })
		got, _ := c.take(n)
		return object{"got": got}, nil
	case "quiet":
		p.pass(duration(s.Ms, 400*time.Millisecond))
		got, _ := c.take(0)
		return object{"got": got}, nil
	default:
		return nil, fmt.Errorf("unknown verb %q", s.Do)
	}
	return nil, nil
}

// report reports the events since the last report.
func (p *player) report(s *step) any {
	count := func() (n int) {
		for _, e := range p.events(p.seen) {
			if e["ev"] == s.Until.Ev {
				n++
			}
		}
		return n
	}
	if s.Until != nil {
		want := max(s.Until.Count, 1)
		p.until(duration(s.Within, 10*time.Second), func() bool { return count() >= want })
	} else {
		p.settle(nil)
	}
	fresh := p.events(p.seen)
	p.seen += len(fresh)
	if s.Summary {
		return summary(fresh)
	}
	all, bySocket := []any{}, map[string][]any{}
	for _, e := range fresh {
		id, _ := e["id"].(string)
		all = append(all, e)
		bySocket[id] = append(bySocket[id], e)
	}
	if s.Group {
		return object{"events": bySocket}
	}
	return object{"events": all}
}

// summary counts events and digests the texts of messages.
func summary(events []object) any {
	counts := map[string]int{}
	var texts []string
	for _, e := range events {
		counts[fmt.Sprintf("%v/%v", e["ev"], e["n"])]++
		if s, ok := e["text"].(string); ok {
			texts = append(texts, s)
		}
	}
	out := object{"counts": counts}
	if n := len(texts); n > 0 {
		out["first"], out["last"], out["fnv"] = texts[0], texts[n-1], digest([]byte(strings.Join(texts, "\n")))
	}
	return out
}
