package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/hibernatetest"
)

// TestBoardKeepsNothingInFieldsAlone builds the board anew before each event: what it forgets by that it
// would forget in production some day. Only the cursors may go.
func TestBoardKeepsNothingInFieldsAlone(t *testing.T) {
	t.Parallel()
	k := hibernatetest.New(t, routes, &hibernatetest.Options{EvictEveryTurn: true, Runtime: hibernate.Options{Limits: limits}})
	next := func(c *hibernatetest.Client, typ string) (o output) {
		t.Helper()
		if m := c.Next(); json.Unmarshal(m.Data, &o) != nil || o.Type != typ {
			t.Fatalf("got %.200s, want a %s", m.Text(), typ)
		}
		return o
	}
	enter := func(name string) (*hibernatetest.Client, output) {
		t.Helper()
		c := k.Dial("/ws?room=garden&name=" + name)
		c.Send(`{"type":"hello"}`)
		return c, next(c, "welcome")
	}
	draw := func(c *hibernatetest.Client, id string, points int) {
		t.Helper()
		b, err := json.Marshal(input{Type: "stroke", Stroke: Stroke{ID: id, Pen: 4, Points: make([]int16, 2*points)}})
		if err != nil {
			t.Fatal(err)
		}
		c.Send(string(b))
	}
	ann, _ := enter("Ann")
	ben, _ := enter("Ben")
	next(ann, "joined")
	const strokes = batchPoints/maxStroke + 2 // more than one batch
	var drawn []string
	for i := range strokes {
		drawn = append(drawn, fmt.Sprint("s", i))
		draw(ann, drawn[i], maxStroke)
		next(ann, "stroke")
		if s := next(ben, "stroke").Stroke; s.ID != drawn[i] {
			t.Fatalf("got %+v", s)
		}
	}
	draw(ann, "s1", maxStroke) // again, by a client that lost its connection
	next(ann, "stroke")
	ben.Send(`{"type":"cursor","trail":[1,2]}`)
	next(ann, "cursor")
	ben.Drop()
	if g := next(ann, "left").Guest; g.Name != "Ben" {
		t.Fatalf("%q left", g.Name)
	}

	seen := func() {
		t.Helper()
		cat, welcome := enter("Cat")
		if got := names(welcome.Guests); !slices.Contains(got, "Cat") || slices.Contains(got, "Ben") {
			t.Fatalf("guests: %q", got)
		}
		var got []string
		for len(got) < len(drawn) {
			for _, s := range next(cat, "strokes").Strokes {
				got = append(got, s.ID)
			}
		}
		if !slices.Equal(got, drawn) {
			t.Fatalf("strokes: %q", got)
		}
		cat.ExpectNothing()
	}
	seen()
	k.Restart() // what somebody has seen is on disk
	seen()
	ann, _ = enter("Ann")
	for range 2 {
		next(ann, "strokes")
	}
	ann.Send(`{"type":"clear"}`)
	next(ann, "cleared")
	drawn = nil
	seen()
}
