package conformance

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// A stage is the server that a player plays against, and the time there.
type stage interface {
	// addr is where the server listens.
	addr() string
	// inside asks the probe for something that concerns no object.
	inside(method, path string, body any) []byte
	// tick keeps steps from being at the same time.
	tick()
	// settle waits until what the player has set off has come to rest, if the
	// stage can tell.
	settle()
	// until lets up to within go by, until ok. It reports whether ok came true.
	until(within time.Duration, ok func() bool) bool
	// restart kills the server and starts it on what that leaves.
	restart(down time.Duration) error
	// stop ends the player's use of the server.
	stop()
}

// A player plays one scenario. It is used by one goroutine.
type player struct {
	stage
	wait wait
	t    *testing.T
	name string // of the object
	http *http.Client

	issued   int64        // requests sent to the object by this server's life
	received atomic.Int64 // answers got
	clients  map[string]*client
	pending  map[string]chan any // outcomes of requests left running
	seen     int                 // events reported
}

func newPlayer(t *testing.T, sc *scenario, w wait) *player {
	return &player{
		wait:    w,
		t:       t,
		name:    sc.Prefix + sc.Name,
		http:    &http.Client{Transport: &http.Transport{}, Timeout: 4 * impatience}, // what never comes is noticed
		clients: map[string]*client{},
		pending: map[string]chan any{},
	}
}

// play plays sc on p's stage and returns the outcome of each step.
func (p *player) play(sc *scenario) ([]any, error) {
	defer func() {
		p.stop()
		p.leave()
	}()
	var outcomes []any
	for i, s := range sc.Steps {
		p.tick()
		v, err := p.do(s)
		if err != nil {
			return nil, fmt.Errorf("step %d (%s): %w", i+1, s.Do, err)
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
	return ranked(outcomes), nil
}

// leave ends what the player has with a server.
func (p *player) leave() {
	for _, c := range p.clients {
		c.conn.Close()
		<-c.ended
	}
	for _, outcome := range p.pending {
		outcome <- <-outcome // its goroutine has ended
	}
	p.http.CloseIdleConnections()
}

// impatience is how much real time a step may take.
const impatience = time.Minute

func never() bool { return false }

// pass lets d go by, with everything that falls due on the way.
func (p *player) pass(d time.Duration) {
	p.t.Helper()
	p.until(d, never)
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
	resp, err := p.http.Post("http://"+p.addr()+"/"+p.name+"/cmd", "application/json", strings.NewReader(text(object{"ops": ops})))
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
		query["ops"] = p.wait.inMilliseconds(s.Ops)
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
func (p *player) send(s *step, c *client) error {
	switch {
	case s.Ops != nil:
		m := object{"ops": p.wait.inMilliseconds(s.Ops)}
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
		p.inside(http.MethodPost, "/program", p.wait.inMilliseconds(s.Program))
		return nil, nil
	case "cmd":
		ops := p.wait.inMilliseconds(s.Ops)
		of := p.request(func() any { return p.command(ops) })
		if s.As == "" {
			return p.outcome(of, time.Minute), nil
		}
		p.pending[s.As] = of
		p.settle()
		return nil, nil
	case "join":
		return p.outcome(p.pending[s.As], p.wait.duration(s.Within, 20*time.Second)), nil
	case "events":
		return p.report(s), nil
	case "hibernate":
		p.pass(time.Duration(p.wait))
		return nil, nil
	case "sleep":
		p.pass(p.wait.duration(s.Ms, 0))
		return nil, nil
	case "restart":
		p.seen = 0
		return nil, p.restart(p.wait.duration(s.Ms, 0))
	}
	c := p.clients[s.ID]
	if c == nil {
		return nil, fmt.Errorf("no client %q", s.ID)
	}
	switch s.Do {
	case "send":
		return nil, p.send(s, c)
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
		p.until(p.wait.duration(s.Within, 10*time.Second), func() bool { return c.has(n) })
		got, _ := c.take(n)
		return object{"got": got}, nil
	case "quiet":
		p.pass(p.wait.duration(s.Ms, 400*time.Millisecond))
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
		p.until(p.wait.duration(s.Within, 10*time.Second), func() bool { return count() >= want })
	} else {
		p.settle()
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
