package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/examples/internal/exampletest"
	"github.com/hibernate-go/hibernate/internal/leak"
)

// TestMain lets the test binary be the whiteboard, so that a test can kill it.
func TestMain(m *testing.M) {
	if !exampletest.RunMain(main) {
		leak.Main(m)
	}
}

// TestBoardHibernatesAndWakesWithItsStrokes is the example in one test.
func TestBoardHibernatesAndWakesWithItsStrokes(t *testing.T) {
	srv := serve(t, 50*time.Millisecond)
	ann, ben := enter(t, srv, "garden", "Ann"), enter(t, srv, "garden", "Ben")
	if got := exampletest.Next[output](ann.Client, "joined").Guest.Name; got != "Ben" {
		t.Fatalf("%q joined", got)
	}
	ann.draw("a1", 10, 10, 20, 20)
	for _, g := range []*guest{ann, ben} {
		if s := g.stroke(); s.ID != "a1" || !slices.Equal(s.Points, []int16{10, 10, 20, 20}) {
			t.Fatalf("got %+v", s)
		}
	}

	exampletest.Until(t, "the board hibernates", func() bool { return !srv.state("garden").InMemory })
	before := srv.state("garden").Constructed
	ben.draw("b1", 30, 30)
	if s := ann.stroke(); s.ID != "b1" {
		t.Fatalf("got %+v", s)
	}
	if now := srv.state("garden").Constructed; now != before+1 {
		t.Fatalf("constructed %d times before the stroke and %d after it", before, now)
	}

	// The attachments tell the new instance who is here, and storage what was drawn.
	cat := enter(t, srv, "garden", "Cat")
	if got := names(cat.welcome.Guests); !slices.Equal(got, []string{"Ann", "Ben", "Cat"}) {
		t.Fatalf("guests: %q", got)
	}
	if got := cat.strokes(2); !slices.Equal(got, []string{"a1", "b1"}) {
		t.Fatalf("strokes: %q", got)
	}
}

// TestCursorsAreMemoryAlone: a newcomer sees where they are, unless the board has slept.
func TestCursorsAreMemoryAlone(t *testing.T) {
	srv := serve(t, time.Hour)
	ann, ben := enter(t, srv, "garden", "Ann"), enter(t, srv, "garden", "Ben")
	exampletest.Next[output](ann.Client, "joined")
	ann.Send(input{Type: "cursor", Trail: []int16{1, 2, 3, 4}, Drawing: true})
	if o := exampletest.Next[output](ben.Client, "cursor"); o.Who != ann.welcome.You || !slices.Equal(o.Trail, []int16{1, 2, 3, 4}) || !o.Drawing {
		t.Fatalf("got %+v", o)
	}
	cat := enter(t, srv, "garden", "Cat")
	if o := exampletest.Next[output](cat.Client, "cursor"); o.Who != ann.welcome.You || !slices.Equal(o.Trail, []int16{3, 4}) {
		t.Fatalf("got %+v", o)
	}
	commits := srv.rt.Stats().Commits
	ann.Send(input{Type: "cursor", Trail: []int16{5, 6}})
	exampletest.Next[output](cat.Client, "cursor")
	if now := srv.rt.Stats().Commits; now != commits {
		t.Fatalf("a cursor made %d commits", now-commits)
	}
	srv.evict()
	dan := enter(t, srv, "garden", "Dan")
	dan.draw("d1", 1, 1)
	if s := dan.stroke(); s.ID != "d1" { // and no cursor before it
		t.Fatalf("got %+v", s)
	}
}

// TestStrokesAreStoredInBatches, so that a wake reads few values however much was drawn.
func TestStrokesAreStoredInBatches(t *testing.T) {
	srv := serve(t, time.Hour)
	ann := enter(t, srv, "garden", "Ann")
	points := make([]int16, 2*maxStroke)
	const strokes = 2*batchPoints/maxStroke + 1 // two full batches and a begun one
	for i := range strokes {
		ann.draw(fmt.Sprint("s", i), points...)
		ann.stroke()
	}
	srv.evict()
	ben := enter(t, srv, "garden", "Ben")
	for _, want := range []int{batchPoints / maxStroke, batchPoints / maxStroke, 1} {
		if got := len(exampletest.Next[output](ben.Client, "strokes").Strokes); got != want {
			t.Fatalf("a batch of %d strokes, want %d", got, want)
		}
	}
}

func TestClearedBoardStaysEmpty(t *testing.T) {
	srv := serve(t, time.Hour)
	ann := enter(t, srv, "garden", "Ann")
	for i := range 3 {
		ann.draw(fmt.Sprint("s", i), make([]int16, 2*maxStroke)...)
		ann.stroke()
	}
	ann.Send(input{Type: "clear"})
	exampletest.Next[output](ann.Client, "cleared")
	srv.evict()
	ann.draw("new", 1, 1)
	ann.stroke()
	if got := enter(t, srv, "garden", "Ben").strokes(1); !slices.Equal(got, []string{"new"}) {
		t.Fatalf("strokes: %q", got)
	}
}

func TestResentStrokeIsStoredOnce(t *testing.T) {
	srv := serve(t, time.Hour)
	ann := enter(t, srv, "garden", "Ann")
	ann.draw("same", 1, 1)
	ann.stroke()
	srv.evict()
	ann.draw("same", 1, 1)
	ann.stroke()
	ann.draw("next", 1, 1)
	ann.stroke()
	if got := enter(t, srv, "garden", "Ben").strokes(2); !slices.Equal(got, []string{"same", "next"}) {
		t.Fatalf("strokes: %q", got)
	}
}

func TestLeavingIsToldToTheOthers(t *testing.T) {
	srv := serve(t, time.Hour)
	ann, ben := enter(t, srv, "garden", "Ann"), enter(t, srv, "garden", "Ben")
	exampletest.Next[output](ann.Client, "joined")
	srv.evict()
	ben.Drop()
	if got := exampletest.Next[output](ann.Client, "left").Guest; got.Name != "Ben" || got.ID != ben.welcome.You {
		t.Fatalf("%+v left", got)
	}
}

// TestRefusals says what is wrong, to the sender alone, and the connection goes on.
func TestRefusals(t *testing.T) {
	srv := serve(t, time.Hour)
	stroke := func(change func(*Stroke)) input {
		s := Stroke{ID: "x", Pen: 1, Points: []int16{1, 1}}
		change(&s)
		return input{Type: "stroke", Stroke: s}
	}
	long := strings.Repeat("x", maxID+1)
	for name, c := range map[string]struct {
		send any
		want string
	}{
		"not an object":       {"hello", "JSON object"},
		"fractions":           {map[string]any{"type": "cursor", "trail": []float64{1.5, 2}}, "whole numbers"},
		"second hello":        {input{Type: "hello"}, "once"},
		"no trail":            {input{Type: "cursor"}, "1 to 64"},
		"half a point":        {input{Type: "cursor", Trail: []int16{1, 2, 3}}, "on the board"},
		"long trail":          {input{Type: "cursor", Trail: make([]int16, 2*maxTrail+2)}, "1 to 64"},
		"off the board":       {stroke(func(s *Stroke) { s.Points = []int16{1, height + 1} }), "on the board"},
		"negative":            {stroke(func(s *Stroke) { s.Points = []int16{-1, 1} }), "on the board"},
		"no points":           {stroke(func(s *Stroke) { s.Points = nil }), "1 to 500"},
		"too long":            {stroke(func(s *Stroke) { s.Points = make([]int16, 2*maxStroke+2) }), "1 to 500"},
		"no id":               {stroke(func(s *Stroke) { s.ID = "" }), "id of 1 to"},
		"long id":             {stroke(func(s *Stroke) { s.ID = long }), "id of 1 to"},
		"unknown ink":         {stroke(func(s *Stroke) { s.Ink = inks }), "inks 0 to 5"},
		"pen of no thickness": {stroke(func(s *Stroke) { s.Pen = 0 }), "pens 1 to"},
	} {
		t.Run(name, func(t *testing.T) {
			g := enter(t, srv, name, "Ann")
			g.Send(c.send)
			if got := exampletest.Next[output](g.Client, "error"); !strings.Contains(got.Text, c.want) {
				t.Fatalf("the answer is %q", got.Text)
			}
			g.draw("fine", 1, 1)
			g.stroke()
		})
	}
	t.Run("before hello", func(t *testing.T) {
		c := exampletest.Dial(t, srv.socket("garden", "Ann"), nil)
		c.Send(input{Type: "stroke", Stroke: Stroke{ID: "x", Pen: 1, Points: []int16{1, 1}}})
		if got := exampletest.Next[output](c, "error"); got.ID != "x" || !strings.Contains(got.Text, "hello") {
			t.Fatalf("got %+v", got)
		}
	})
}

func TestFullBoardSaysSo(t *testing.T) {
	srv := serve(t, time.Hour)
	ann := enter(t, srv, "garden", "Ann")
	points := make([]int16, 2*maxStroke)
	for i := range maxPoints / maxStroke {
		ann.draw(fmt.Sprint("s", i), points...)
		ann.stroke()
	}
	ann.draw("over", 1, 1)
	if got := exampletest.Next[output](ann.Client, "error"); got.ID != "over" || !strings.Contains(got.Text, "full") {
		t.Fatalf("got %+v", got)
	}
}

func TestBadRequestsAreAnsweredClearly(t *testing.T) {
	srv := serve(t, time.Hour)
	upgrade := map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket",
		"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
	}
	long := strings.Repeat("n", maxName+1)
	for _, c := range []struct {
		name, path string
		header     map[string]string
		status     int
		text       string
	}{
		{"the root leads to a board", "/", nil, http.StatusFound, ""},
		{"the page", "/?room=garden", nil, http.StatusOK, "<!doctype html>"},
		{"its script", "/page/whiteboard.js", nil, http.StatusOK, "WebSocket"},
		{"the state of a board nobody entered", "/state?room=garden", nil, http.StatusOK, `"inMemory":false`},
		{"state of no room", "/state", nil, http.StatusBadRequest, "room"},
		{"no upgrade", "/ws?room=garden&name=Ann", nil, http.StatusUpgradeRequired, "pgrade"},
		{"no room", "/ws?name=Ann", upgrade, http.StatusBadRequest, "room of 1 to 40"},
		{"no name", "/ws?room=garden&name=+", upgrade, http.StatusBadRequest, "name of 1 to 40"},
		{"long room", "/ws?name=Ann&room=" + long, upgrade, http.StatusBadRequest, "room of 1 to 40"},
		{"room that cannot be seen", "/ws?name=Ann&room=%00", upgrade, http.StatusBadRequest, "seen"},
		{"nothing there", "/elsewhere", nil, http.StatusNotFound, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || !strings.Contains(string(body), c.text) {
				t.Fatalf("%s %.200q, want %d with %q", resp.Status, body, c.status, c.text)
			}
			if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") {
				t.Fatalf("Content-Security-Policy: %q", csp)
			}
		})
	}
}

// TestStrokesSurviveKillAndInterrupt: what was acknowledged is there again.
func TestStrokesSurviveKillAndInterrupt(t *testing.T) {
	dir := t.TempDir()
	var drawn []string
	for i, end := range []func(*exampletest.Process){(*exampletest.Process).Kill, (*exampletest.Process).Interrupt, (*exampletest.Process).Kill} {
		p := exampletest.Start(t, "-addr", "127.0.0.1:0", "-dir", dir)
		srv := &server{URL: p.URL}
		ann := enter(t, srv, "garden", "Ann")
		if got := ann.strokes(len(drawn)); !slices.Equal(got, drawn) {
			t.Fatalf("strokes %q, want %q", got, drawn)
		}
		for j := range 3 {
			id := fmt.Sprint("s", i, "-", j)
			ann.draw(id, 1, 1, 2, 2)
			ann.stroke()
			drawn = append(drawn, id)
		}
		end(p)
	}
}

// ---- helpers ----

// A server is the whiteboard's handler in this process.
type server struct {
	t   *testing.T
	rt  *hibernate.Runtime // nil: it is another process
	URL string
}

func serve(t *testing.T, idle time.Duration) *server {
	t.Helper()
	rt, err := hibernate.Open(t.TempDir(), &hibernate.Options{IdleTimeout: idle, Limits: limits})
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
	return &server{t, rt, srv.URL}
}

func (s *server) evict() {
	s.t.Helper()
	if err := s.rt.EvictAll(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

type state struct {
	Constructed uint64 `json:"constructed"`
	InMemory    bool   `json:"inMemory"`
}

func (s *server) state(room string) state {
	s.t.Helper()
	return exampletest.Get[state](s.t, s.URL+"/state?room="+room)
}

func (s *server) socket(room, name string) string {
	return s.URL + "/ws?" + url.Values{"room": {room}, "name": {name}}.Encode()
}

// A guest is a client that has said hello.
type guest struct {
	*exampletest.Client
	t       *testing.T
	welcome output
}

func enter(t *testing.T, s *server, room, name string) *guest {
	t.Helper()
	g := &guest{Client: exampletest.Dial(t, s.socket(room, name), nil), t: t}
	g.Send(input{Type: "hello"})
	g.welcome = exampletest.Next[output](g.Client, "welcome")
	return g
}

func (g *guest) draw(id string, points ...int16) {
	g.t.Helper()
	g.Send(input{Type: "stroke", Stroke: Stroke{ID: id, Ink: 1, Pen: 4, Points: points}})
}

func (g *guest) stroke() Stroke {
	g.t.Helper()
	return *exampletest.Next[output](g.Client, "stroke").Stroke
}

// strokes reads n strokes of the welcome and returns their IDs.
func (g *guest) strokes(n int) (ids []string) {
	g.t.Helper()
	for len(ids) < n {
		for _, s := range exampletest.Next[output](g.Client, "strokes").Strokes {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func names(guests []Guest) (s []string) {
	for _, g := range guests {
		s = append(s, g.Name)
	}
	return s
}
