package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/hibernate-go/hibernate"
)

// patience is how long a test waits for something that must happen.
const patience = 20 * time.Second

// TestRoomHibernatesAndWakesWithItsHistory is the example in one test.
func TestRoomHibernatesAndWakesWithItsHistory(t *testing.T) {
	url := serve(t, t.TempDir(), 50*time.Millisecond)
	ann, ben := enter(t, url, "garden", "Ann"), enter(t, url, "garden", "Ben")
	ann.joined("Ben")
	ann.say("a1", "Good morning.")
	for _, c := range []*client{ann, ben} {
		if got := c.line(); got.Text != "Good morning." || got.Name != "Ann" || got.ClientID != "a1" {
			t.Fatalf("got %+v", got)
		}
	}

	first := asleep(t, url, "garden")
	ben.say("b1", "Are you still there?")
	if got := ann.line(); got.Text != "Are you still there?" || got.Name != "Ben" || got.Seq != 2 {
		t.Fatalf("Ann got %+v", got)
	}
	if again := asleep(t, url, "garden"); again != first+1 {
		t.Fatalf("constructed %d times before the message and %d after it", first, again)
	}

	// The attachments tell the new instance who is here, and storage what was said.
	cat := dial(t, url, "garden")
	cat.send(input{Type: "hello", Member: Member{Name: "Cat"}})
	w := cat.next("welcome")
	if got := names(w.Members); !slices.Equal(got, []string{"Ann", "Ben", "Cat"}) {
		t.Fatalf("members: %q", got)
	}
	if got := texts(w.History); !slices.Equal(got, []string{"Good morning.", "Are you still there?"}) {
		t.Fatalf("history: %q", got)
	}
}

func TestLeavingIsToldToTheOthers(t *testing.T) {
	for _, how := range []string{"close", "drop", "protocol error"} {
		for _, state := range []string{"awake", "asleep"} {
			t.Run(how+"/"+state, func(t *testing.T) {
				idle := time.Hour
				if state == "asleep" {
					idle = 20 * time.Millisecond
				}
				url := serve(t, t.TempDir(), idle)
				ann, ben := enter(t, url, "garden", "Ann"), enter(t, url, "garden", "Ben")
				ann.joined("Ben")
				if state == "asleep" {
					asleep(t, url, "garden")
				}
				switch how {
				case "close":
					ben.frame(ws.NewCloseFrame(ws.NewCloseFrameBody(ws.StatusNormalClosure, "")))
				case "drop":
					ben.conn.Close()
				case "protocol error":
					ben.frame(ws.NewFrame(ws.OpCode(0x3), true, nil))
				}
				if got := ann.next("left"); got.Member.Name != "Ben" {
					t.Fatalf("%q left", got.Member.Name)
				}
			})
		}
	}
}

func TestPingLeavesRoomAsleep(t *testing.T) {
	url := serve(t, t.TempDir(), 20*time.Millisecond)
	ann := enter(t, url, "garden", "Ann")
	before := asleep(t, url, "garden")
	for range 10 {
		ann.text("ping")
		if got := ann.read(); string(got) != "pong" {
			t.Fatalf("ping was answered with %q", got)
		}
	}
	if s := state(t, url, "garden"); s.InMemory || s.Constructed != before {
		t.Fatalf("constructed %d times before the pings; after them: %+v", before, s)
	}
}

func TestHistoryKeepsTheLastHundred(t *testing.T) {
	url := serve(t, t.TempDir(), time.Hour)
	ann := enter(t, url, "garden", "Ann")
	for i := range maxHistory + 5 {
		ann.say(fmt.Sprint("cid ", i), fmt.Sprint("text ", i))
		ann.line()
	}
	evict(t, url, "garden") // what the next instance finds is what storage holds
	history := enter(t, url, "garden", "Ben").history
	if len(history) != maxHistory || history[0].Text != "text 5" || history[maxHistory-1].Seq != maxHistory+5 {
		t.Fatalf("%d lines, from %+v to %+v", len(history), history[0], history[len(history)-1])
	}
}

func TestResentMessageIsStoredOnce(t *testing.T) {
	url := serve(t, t.TempDir(), time.Hour)
	ann := enter(t, url, "garden", "Ann")
	ann.say("same", "Hello?")
	first := ann.line()
	evict(t, url, "garden")
	ann.say("same", "Hello?")
	if again := ann.line(); again != first {
		t.Fatalf("first %+v, then %+v", first, again)
	}
	if history := enter(t, url, "garden", "Ben").history; len(history) != 1 {
		t.Fatalf("history: %q", texts(history))
	}
}

func TestRoomsAreApart(t *testing.T) {
	url := serve(t, t.TempDir(), time.Hour)
	ann, ben := enter(t, url, "garden", "Ann"), enter(t, url, "cellar", "Ben")
	ann.say("a", "above")
	ben.say("b", "below")
	if got := ben.line(); got.Text != "below" || got.Seq != 1 {
		t.Fatalf("Ben got %+v", got)
	}
}

// TestRefusals says what is wrong, to the sender alone, and the connection goes on.
func TestRefusals(t *testing.T) {
	url := serve(t, t.TempDir(), time.Hour)
	for name, c := range map[string]struct {
		joined bool
		send   string
		want   string // part of the answer
		cid    string
	}{
		"not JSON":         {false, `{`, "JSON", ""},
		"say before hello": {false, `{"type":"say","cid":"x","text":"hi"}`, "hello", "x"},
		"no name":          {false, `{"type":"hello","name":"  "}`, "1 to 24 characters", ""},
		"long name":        {false, `{"type":"hello","name":"` + strings.Repeat("é", 25) + `"}`, "25", ""},
		"invisible name":   {false, `{"type":"hello","name":"a\u202eb"}`, "can be seen", ""},
		"second hello":     {true, `{"type":"hello","name":"Eve"}`, "once", ""},
		"no cid":           {true, `{"type":"say","text":"hi"}`, "cid", ""},
		"long cid":         {true, `{"type":"say","cid":"` + strings.Repeat("c", 65) + `","text":"hi"}`, "cid", ""},
		"empty text":       {true, `{"type":"say","cid":"y","text":" \n "}`, "empty", "y"},
		"long text":        {true, `{"type":"say","cid":"z","text":"` + strings.Repeat("é", maxText+1) + `"}`, "2001", "z"},
	} {
		t.Run(name, func(t *testing.T) {
			room := strings.ReplaceAll(name, " ", "-")
			member := dial(t, url, room)
			if c.joined {
				member = enter(t, url, room, "Ann")
			}
			member.text(c.send)
			got := member.next("error")
			if !strings.Contains(got.Text, c.want) || got.ClientID != c.cid {
				t.Fatalf("the answer is %q for cid %q", got.Text, got.ClientID)
			}
			if !c.joined {
				member.send(input{Type: "hello", Member: Member{Name: "Ann"}})
				member.next("welcome")
			}
			member.say("fine", "fine")
			member.line()
		})
	}
}

func TestOversizedMessageClosesWith1009(t *testing.T) {
	url := serve(t, t.TempDir(), time.Hour)
	ann := enter(t, url, "garden", "Ann")
	ann.text(strings.Repeat("a", maxMessage+1))
	_, err := ann.tryRead()
	var closed wsutil.ClosedError
	if !errors.As(err, &closed) || closed.Code != ws.StatusMessageTooBig {
		t.Fatalf("the connection ended with %v, want a Close with 1009", err)
	}
}

// ---- helpers ----

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
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	mux.HandleFunc("POST /evict", func(w http.ResponseWriter, r *http.Request) {
		if err := rt.EvictAll(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(func() {
		srv.Close()
		if err := rt.Close(); err != nil {
			t.Errorf("close the runtime: %v", err)
		}
	})
	return srv.URL
}

// evict takes all rooms of a server started by serve out of memory, without waiting for them to be idle.
func evict(t *testing.T, url, room string) {
	t.Helper()
	resp, err := http.Post(url+"/evict", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if s := state(t, url, room); resp.StatusCode != http.StatusOK || s.InMemory {
		t.Fatalf("evict: %s, %+v", resp.Status, s)
	}
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

func (c *client) frame(f ws.Frame) {
	c.t.Helper()
	if err := ws.WriteFrame(c.conn, ws.MaskFrame(f)); err != nil {
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

func (c *client) joined(name string) {
	c.t.Helper()
	if got := c.next("joined").Member.Name; got != name {
		c.t.Fatalf("%q joined, want %q", got, name)
	}
}

func names(members []Member) (s []string) {
	for _, m := range members {
		s = append(s, m.Name)
	}
	return s
}

func texts(lines []Line) (s []string) {
	for _, l := range lines {
		s = append(s, l.Text)
	}
	return s
}
