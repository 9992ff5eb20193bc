package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/hibernate-go/hibernate"
)

// patience is how long a test waits for something that must happen.
const patience = 30 * time.Second

// serve runs the chat's handler in this process and returns its URL.
func serve(t *testing.T, dir string, idle time.Duration) string {
	t.Helper()
	rt, err := hibernate.Open(dir, &hibernate.Options{IdleTimeout: idle, Limits: hibernate.Limits{Message: maxMessage}})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := routes(rt)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(func() {
		srv.Close()
		if err := rt.Close(); err != nil {
			t.Errorf("close the runtime: %v", err)
		}
	})
	return srv.URL
}

type roomState struct {
	Constructed uint64 `json:"constructed"`
	InMemory    bool   `json:"inMemory"`
}

func state(t *testing.T, url, room string) (s roomState) {
	t.Helper()
	get(t, url+"/room/"+room+"/state", &s)
	return s
}

func get(t *testing.T, url string, v any) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		t.Fatalf("GET %s: %s: %v", url, resp.Status, err)
	}
}

// asleep waits until the room has left memory and returns how often it was constructed.
func asleep(t *testing.T, url, room string) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if s := state(t, url, room); !s.InMemory && s.Constructed > 0 {
			return s.Constructed
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("room %s stays in memory", room)
		}
	}
}

// A client is one member's connection. Its methods fail the test.
type client struct {
	t       *testing.T
	conn    net.Conn
	r       io.Reader
	history []Line // from the welcome
}

func (c *client) Read(p []byte) (int, error)  { return c.r.Read(p) }
func (c *client) Write(p []byte) (int, error) { return c.conn.Write(p) }

func dial(t *testing.T, url, room string) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, br, _, err := ws.Dial(ctx, "ws"+strings.TrimPrefix(url, "http")+"/room/"+room+"/ws")
	if err != nil {
		t.Fatalf("dial room %s: %v", room, err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(3 * patience)); err != nil {
		t.Fatal(err)
	}
	if br == nil {
		br = bufio.NewReaderSize(conn, 512)
	}
	return &client{t: t, conn: conn, r: br}
}

// enter dials and says hello.
func enter(t *testing.T, url, room, name string) *client {
	t.Helper()
	c := dial(t, url, room)
	c.send(input{Type: "hello", Member: Member{Name: name, Colour: 200}})
	c.history = c.next("welcome").History
	return c
}

func (c *client) send(in input) {
	c.t.Helper()
	b, err := json.Marshal(in)
	if err != nil {
		c.t.Fatal(err)
	}
	c.text(string(b))
}

func (c *client) text(s string) {
	c.t.Helper()
	if err := wsutil.WriteClientText(c.conn, []byte(s)); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

func (c *client) say(cid, text string) {
	c.t.Helper()
	c.send(input{Type: "say", ClientID: cid, Text: text})
}

func (c *client) tryRead() ([]byte, error) {
	return wsutil.ReadServerText(c)
}

func (c *client) read() []byte {
	c.t.Helper()
	b, err := c.tryRead()
	if err != nil {
		c.t.Fatalf("read: %v", err)
	}
	return b
}

// next returns the next message, which must be of this type.
func (c *client) next(typ string) (o output) {
	c.t.Helper()
	b := c.read()
	if err := json.Unmarshal(b, &o); err != nil || o.Type != typ {
		c.t.Fatalf("got %s, want a %s (%v)", b, typ, err)
	}
	return o
}

func (c *client) line() Line {
	c.t.Helper()
	return *c.next("line").Line
}

func texts(lines []Line) (s []string) {
	for _, l := range lines {
		s = append(s, l.Text)
	}
	return s
}
