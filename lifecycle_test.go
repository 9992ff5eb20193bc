package hibernate_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/hibernate-go/hibernate"
)

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
	if in := r.inspect("a"); in.Wakes != 2 || !in.InMemory() {
		t.Fatalf("the object is %+v", in)
	}
	c.close(1000, "bye")
	c.expect("close:1000 ")
	c.expect("eof")
}
