package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/examples/internal/exampletest"
	"github.com/hibernate-go/hibernate/hibernatetest"
	"github.com/hibernate-go/hibernate/internal/leak"
)

// TestMain lets the test binary be the whiteboard, so that a test can kill it.
func TestMain(m *testing.M) {
	if !exampletest.RunMain(main) {
		leak.Main(m)
	}
}

// boards runs a test twice: with boards that stay in memory, and with boards that are constructed anew
// before each event, so that nobody relies on a field of Board.
func boards(t *testing.T, test func(t *testing.T, k *hibernatetest.Kit)) {
	for name, evict := range map[string]bool{"stay": false, "evicted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, serve(t, evict))
		})
	}
}

func serve(t *testing.T, evict bool) *hibernatetest.Kit {
	return hibernatetest.New(t, routes, &hibernatetest.Options{EvictEveryTurn: evict, Runtime: hibernate.Options{Limits: limits}})
}

// TestBoardHibernatesAndWakesWithItsStrokes is the example in one test.
func TestBoardHibernatesAndWakesWithItsStrokes(t *testing.T) {
	boards(t, func(t *testing.T, k *hibernatetest.Kit) {
		garden := k.Object("Board", "garden")
		ann, ben := enter(t, k, "garden", "Ann"), enter(t, k, "garden", "Ben")
		if got := ann.next("joined").Guest.Name; got != "Ben" {
			t.Fatalf("%q joined", got)
		}
		ann.draw("a1", 10, 10, 20, 20)
		for _, g := range []*guest{ann, ben} {
			if s := g.stroke(); s.ID != "a1" || !slices.Equal(s.Points, []int16{10, 10, 20, 20}) {
				t.Fatalf("got %+v", s)
			}
		}
		k.Advance(time.Minute)
		k.AssertHibernated(garden)
		ben.draw("b1", 30, 30)
		if s := ann.stroke(); s.ID != "b1" {
			t.Fatalf("got %+v", s)
		}

		// The attachments tell the new instance who is here, and storage what was drawn.
		cat := enter(t, k, "garden", "Cat")
		if got := names(cat.welcome.Guests); !slices.Equal(got, []string{"Ann", "Ben", "Cat"}) {
			t.Fatalf("guests: %q", got)
		}
		if got := cat.strokes(2); !slices.Equal(got, []string{"a1", "b1"}) {
			t.Fatalf("strokes: %q", got)
		}
		k.Restart() // what somebody has seen is on disk
		if got := enter(t, k, "garden", "Ann").strokes(2); !slices.Equal(got, []string{"a1", "b1"}) {
			t.Fatalf("strokes after a restart: %q", got)
		}
	})
}

// TestCursorsAreMemoryAlone: a newcomer sees where they are, unless the board has slept.
func TestCursorsAreMemoryAlone(t *testing.T) {
	t.Parallel()
	k := serve(t, false)
	ann, ben := enter(t, k, "garden", "Ann"), enter(t, k, "garden", "Ben")
	ann.next("joined")
	ann.send(input{Type: "cursor", Trail: []int16{1, 2, 3, 4}, Drawing: true})
	if o := ben.next("cursor"); o.Who != ann.welcome.You || !slices.Equal(o.Trail, []int16{1, 2, 3, 4}) || !o.Drawing {
		t.Fatalf("got %+v", o)
	}
	cat := enter(t, k, "garden", "Cat")
	if o := cat.next("cursor"); o.Who != ann.welcome.You || !slices.Equal(o.Trail, []int16{3, 4}) {
		t.Fatalf("got %+v", o)
	}
	commits := k.Runtime().Stats().Commits
	ann.send(input{Type: "cursor", Trail: []int16{5, 6}})
	cat.next("cursor")
	if now := k.Runtime().Stats().Commits; now != commits {
		t.Fatalf("a cursor made %d commits", now-commits)
	}
	k.EvictAll()
	enter(t, k, "garden", "Dan").ExpectNothing()
}

// TestStrokesAreStoredInBatches, so that a wake reads few values however much was drawn.
func TestStrokesAreStoredInBatches(t *testing.T) {
	boards(t, func(t *testing.T, k *hibernatetest.Kit) {
		ann := enter(t, k, "garden", "Ann")
		points := make([]int16, 2*maxStroke)
		const strokes = 2*batchPoints/maxStroke + 1 // two full batches and a begun one
		for i := range strokes {
			ann.draw(fmt.Sprint("s", i), points...)
			ann.stroke()
		}
		k.EvictAll()
		ben := enter(t, k, "garden", "Ben")
		for _, want := range []int{batchPoints / maxStroke, batchPoints / maxStroke, 1} {
			if got := len(ben.next("strokes").Strokes); got != want {
				t.Fatalf("a batch of %d strokes, want %d", got, want)
			}
		}
	})
}

func TestClearedBoardStaysEmpty(t *testing.T) {
	boards(t, func(t *testing.T, k *hibernatetest.Kit) {
		ann := enter(t, k, "garden", "Ann")
		const strokes = batchPoints/maxStroke + 2 // more than a batch
		for i := range strokes {
			ann.draw(fmt.Sprint("s", i), make([]int16, 2*maxStroke)...)
			ann.stroke()
		}
		ann.send(input{Type: "clear"})
		ann.next("cleared")
		k.EvictAll()
		enter(t, k, "garden", "Ben").ExpectNothing()
		ann.next("joined")
		ann.draw("new", 1, 1)
		ann.stroke()
		if got := enter(t, k, "garden", "Cat").strokes(1); !slices.Equal(got, []string{"new"}) {
			t.Fatalf("strokes: %q", got)
		}
	})
}

func TestResentStrokeIsStoredOnce(t *testing.T) {
	boards(t, func(t *testing.T, k *hibernatetest.Kit) {
		ann := enter(t, k, "garden", "Ann")
		for _, id := range []string{"same", "same", "next", "same"} {
			ann.draw(id, 1, 1)
			ann.stroke()
		}
		ben := enter(t, k, "garden", "Ben")
		if got := ben.strokes(2); !slices.Equal(got, []string{"same", "next"}) {
			t.Fatalf("strokes: %q", got)
		}
		ben.ExpectNothing()
	})
}

func TestLeavingIsToldToTheOthers(t *testing.T) {
	for how, leave := range map[string]func(*guest){
		"close":          func(g *guest) { g.Close(1000, "") },
		"drop":           func(g *guest) { g.Drop() },
		"protocol error": func(g *guest) { g.Send(strings.Repeat("a", maxInput+1)) },
	} {
		t.Run(how, func(t *testing.T) {
			boards(t, func(t *testing.T, k *hibernatetest.Kit) {
				ann, ben := enter(t, k, "garden", "Ann"), enter(t, k, "garden", "Ben")
				ann.next("joined")
				leave(ben)
				if got := ann.next("left").Guest; got.Name != "Ben" || got.ID != ben.welcome.You {
					t.Fatalf("%+v left", got)
				}
			})
		})
	}
}

// TestRefusals says what is wrong, to the sender alone, and the connection goes on.
func TestRefusals(t *testing.T) {
	t.Parallel()
	k := serve(t, true)
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
			g := enter(t, k, name, "Ann")
			g.send(c.send)
			if got := g.next("error"); !strings.Contains(got.Text, c.want) {
				t.Fatalf("the answer is %q", got.Text)
			}
			g.draw("fine", 1, 1)
			g.stroke()
		})
	}
	t.Run("before hello", func(t *testing.T) {
		g := dial(t, k, "garden", "Ann")
		g.send(input{Type: "stroke", Stroke: Stroke{ID: "x", Pen: 1, Points: []int16{1, 1}}})
		if got := g.next("error"); got.ID != "x" || !strings.Contains(got.Text, "hello") {
			t.Fatalf("got %+v", got)
		}
	})
}

func TestFullBoardSaysSo(t *testing.T) {
	t.Parallel()
	k := serve(t, false)
	ann := enter(t, k, "garden", "Ann")
	points := make([]int16, 2*maxStroke)
	for i := range maxPoints / maxStroke {
		ann.draw(fmt.Sprint("s", i), points...)
		ann.stroke()
	}
	ann.draw("over", 1, 1)
	if got := ann.next("error"); got.ID != "over" || !strings.Contains(got.Text, "full") {
		t.Fatalf("got %+v", got)
	}
}

func TestBadRequestsAreAnsweredClearly(t *testing.T) {
	t.Parallel()
	k := serve(t, false)
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
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, k.URL+c.path, nil)
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
		c := exampletest.Dial(t, p.URL+socket("garden", "Ann"), nil)
		c.Send(input{Type: "hello"})
		exampletest.Next[output](c, "welcome")
		if i > 0 {
			if got := ids(exampletest.Next[output](c, "strokes").Strokes); !slices.Equal(got, drawn) {
				t.Fatalf("strokes %q, want %q", got, drawn)
			}
		}
		for j := range 3 {
			id := fmt.Sprint("s", i, "-", j)
			c.Send(input{Type: "stroke", Stroke: Stroke{ID: id, Pen: 4, Points: []int16{1, 1, 2, 2}}})
			exampletest.Next[output](c, "stroke")
			drawn = append(drawn, id)
		}
		end(p)
	}
}

// ---- helpers ----

// A guest is one connection. Its methods fail the test.
type guest struct {
	*hibernatetest.Client
	t       *testing.T
	welcome output
}

func socket(room, name string) string {
	return "/ws?" + url.Values{"room": {room}, "name": {name}}.Encode()
}

func dial(t *testing.T, k *hibernatetest.Kit, room, name string) *guest {
	t.Helper()
	return &guest{Client: k.Dial(socket(room, name)), t: t}
}

// enter dials and says hello.
func enter(t *testing.T, k *hibernatetest.Kit, room, name string) *guest {
	t.Helper()
	g := dial(t, k, room, name)
	g.send(input{Type: "hello"})
	g.welcome = g.next("welcome")
	return g
}

func (g *guest) send(v any) {
	g.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		g.t.Fatal(err)
	}
	g.Send(string(b))
}

// next returns the next message, which must be of this type.
func (g *guest) next(typ string) (o output) {
	g.t.Helper()
	if m := g.Next(); json.Unmarshal(m.Data, &o) != nil || o.Type != typ {
		g.t.Fatalf("got %.200s, want a %s", m.Text(), typ)
	}
	return o
}

func (g *guest) draw(id string, points ...int16) {
	g.t.Helper()
	g.send(input{Type: "stroke", Stroke: Stroke{ID: id, Ink: 1, Pen: 4, Points: points}})
}

func (g *guest) stroke() Stroke {
	g.t.Helper()
	return *g.next("stroke").Stroke
}

// strokes reads n strokes of the welcome and returns their IDs.
func (g *guest) strokes(n int) (got []string) {
	g.t.Helper()
	for len(got) < n {
		got = append(got, ids(g.next("strokes").Strokes)...)
	}
	return got
}

func ids(strokes []Stroke) (s []string) {
	for _, stroke := range strokes {
		s = append(s, stroke.ID)
	}
	return s
}

func names(guests []Guest) (s []string) {
	for _, g := range guests {
		s = append(s, g.Name)
	}
	return s
}
