package main

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/hibernatetest"
)

// TestRoomKeepsNothingInFieldsAlone builds the room anew before each event: what it forgets by that it
// would forget in production some day.
func TestRoomKeepsNothingInFieldsAlone(t *testing.T) {
	t.Parallel()
	k := hibernatetest.New(t, routes, &hibernatetest.Options{
		EvictEveryTurn: true,
		Runtime:        hibernate.Options{Limits: hibernate.Limits{Message: maxMessage}},
	})
	next := func(c *hibernatetest.Client, typ string) (o output) {
		t.Helper()
		if m := c.Next(); json.Unmarshal(m.Data, &o) != nil || o.Type != typ {
			t.Fatalf("got %s, want a %s", m.Text(), typ)
		}
		return o
	}
	enter := func(name string) (*hibernatetest.Client, output) {
		t.Helper()
		c := k.Dial("/room/garden/ws")
		c.Send(`{"type":"hello","name":"` + name + `"}`)
		return c, next(c, "welcome")
	}
	ann, _ := enter("Ann")
	ben, _ := enter("Ben")
	next(ann, "joined")
	for i, text := range []string{"one", "two", "three"} {
		ann.Send(`{"type":"say","cid":"` + text + `","text":"` + text + `"}`)
		for _, c := range []*hibernatetest.Client{ann, ben} {
			if l := next(c, "line").Line; l.Text != text || l.Name != "Ann" || l.Seq != uint64(i+1) {
				t.Fatalf("got %+v", l)
			}
		}
	}
	ann.Send(`{"type":"say","cid":"two","text":"two"}`) // again, by a client that lost its connection
	if l := next(ann, "line").Line; l.Seq != 2 {
		t.Fatalf("got %+v", l)
	}
	_, welcome := enter("Cat")
	if got := texts(welcome.History); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Fatalf("history: %q", got)
	}
	if got := names(welcome.Members); !slices.Equal(got, []string{"Ann", "Ben", "Cat"}) {
		t.Fatalf("members: %q", got)
	}
	next(ann, "joined")
	ben.Drop()
	if got := next(ann, "left").Member; got.Name != "Ben" {
		t.Fatalf("%q left", got.Name)
	}

	k.Restart() // what somebody has seen is on disk
	_, welcome = enter("Dan")
	if got := texts(welcome.History); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Fatalf("history after the restart: %q", got)
	}
}
