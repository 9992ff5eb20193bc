package hibernate_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/alarm"
)

// epoch is where fake clocks begin.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A rig is a runtime with a fake clock behind an HTTP server.
type rig struct {
	t     *testing.T
	rt    *hibernate.Runtime
	clock *alarm.Fake
	srv   *httptest.Server
	ns    *hibernate.Namespace
}

func newRig(t *testing.T, dir string, o *hibernate.Options) *rig {
	t.Helper()
	if o == nil {
		o = &hibernate.Options{}
	}
	r := &rig{t: t, clock: alarm.NewFake(epoch)}
	o.Clock = r.clock
	rt, err := hibernate.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	r.rt = rt
	t.Cleanup(func() {
		if r.srv != nil {
			r.srv.CloseClientConnections()
			r.srv.Close()
		}
		if err := rt.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return r
}

// serve registers a class and serves it below /o/{name}.
func serve[T any](r *rig, construct func(context.Context, *hibernate.State) (T, error), o *hibernate.ClassOptions) {
	r.t.Helper()
	ns, err := hibernate.Register(r.rt, "Test", construct, o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.ns = ns
	mux := http.NewServeMux()
	mux.Handle("/o/{name}", ns.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: ns.GetByName(h.PathValue("name")), Tags: h.Query()["tag"]}, nil
	}))
	r.srv = httptest.NewServer(mux)
}

// A client is one WebSocket seen from outside.
type client struct {
	t    *testing.T
	conn net.Conn
	rd   *wsutil.Reader
}

func (r *rig) dial(path string) *client {
	r.t.Helper()
	conn, br, _, err := ws.Dial(context.Background(), "ws"+strings.TrimPrefix(r.srv.URL, "http")+path)
	if err != nil {
		r.t.Fatal(err)
	}
	c := &client{t: r.t, conn: conn}
	r.t.Cleanup(func() { conn.Close() })
	if br != nil {
		c.rd = wsutil.NewReader(br, ws.StateClientSide)
	} else {
		c.rd = wsutil.NewReader(conn, ws.StateClientSide)
	}
	return c
}

func (c *client) send(text string) {
	c.t.Helper()
	if err := wsutil.WriteClientText(c.conn, []byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) close(code int, reason string) {
	c.t.Helper()
	body := ws.NewCloseFrameBody(ws.StatusCode(code), reason)
	if err := wsutil.WriteClientMessage(c.conn, ws.OpClose, body); err != nil {
		c.t.Fatal(err)
	}
}

// next is the next thing received: "text:…", "bin:…", "close:code reason", "pong:…", "eof".
func (c *client) next() string {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	h, err := c.rd.NextFrame()
	if err != nil {
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			c.t.Fatal("nothing came in 10 s")
		}
		return "eof"
	}
	p := make([]byte, h.Length)
	for n := 0; n < len(p); {
		m, err := c.rd.Read(p[n:])
		n += m
		if err != nil && n < len(p) {
			c.t.Fatal(err)
		}
	}
	if len(p) == 0 {
		c.rd.Discard()
	}
	switch h.OpCode {
	case ws.OpText:
		return "text:" + string(p)
	case ws.OpBinary:
		return "bin:" + string(p)
	case ws.OpPong:
		return "pong:" + string(p)
	case ws.OpClose:
		code, reason := ws.ParseCloseFrameData(p)
		if len(p) == 0 {
			code = 1005
		}
		return fmt.Sprintf("close:%d %s", code, reason)
	}
	return fmt.Sprintf("op %d", h.OpCode)
}

func (c *client) expect(want string) {
	c.t.Helper()
	if got := c.next(); got != want {
		c.t.Fatalf("received %q, want %q", got, want)
	}
}

// hibernate moves the clock past the idle time and waits until nothing is in
// memory.
func (r *rig) hibernate() {
	r.t.Helper()
	r.until("objects to settle", func() bool {
		r.clock.Advance(11 * time.Second)
		return r.rt.Stats().ObjectsInMemory == 0
	})
}

// until polls for something that no event announces.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited 10 s for %s; stats %+v", what, r.rt.Stats())
		}
		time.Sleep(time.Millisecond) // the thing waited for is in another goroutine's hands
	}
}

// An echo answers with what it got and how many messages its instance has seen.
type echo struct{ seen int }

func newEcho(context.Context, *hibernate.State) (*echo, error) { return &echo{}, nil }

func (e *echo) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	e.seen++
	return ws.SendText(ctx, fmt.Sprintf("%s %d", m.Text(), e.seen))
}

func TestSocketOutlivesItsObject(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, nil)
	c := r.dial("/o/a")
	if n := r.rt.Stats().Constructed; n != 0 {
		t.Fatalf("joining constructed %d instances", n)
	}
	c.send("one")
	c.expect("text:one 1")
	c.send("two")
	c.expect("text:two 2")
	r.hibernate()
	if s := r.rt.Stats(); s.Sockets != 1 || s.ObjectsAsleep != 1 {
		t.Fatalf("asleep: %+v", s)
	}
	c.send("three")
	c.expect("text:three 1")
	if n, in := r.rt.Resident(r.ns.IDFromName("a")); n != 2 || !in {
		t.Fatalf("constructed %d times, in memory %v", n, in)
	}
	c.close(1000, "bye")
	c.expect("close:1000 ")
	c.expect("eof")
}
