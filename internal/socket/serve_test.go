package socket

import (
	"testing"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// A server is an owner that serves events, each by the next function.
type server struct {
	owner
	serve chan func(s *Socket, e Event) (kept bool)
}

func (o *server) Serve(_ *poll.Worker, s *Socket, e Event) (served, kept bool) {
	return true, (<-o.serve)(s, e)
}

// The input side of a socket whose event was passed on is another's, also if that one is just serving the next event.
func TestPassedOnInputIsNotTakenBack(t *testing.T) {
	o := &server{owner: owner{cfg: &Config{Wire: wire.Config{MaxMessage: 100}}, events: make(chan Event, 10)}, serve: make(chan func(*Socket, Event) bool, 2)}
	s := New(o, Tags{}, nil, 0)
	next, release, over := make(chan struct{}), make(chan struct{}), make(chan bool)
	o.serve <- func(s *Socket, e Event) bool {
		s.PassOn()
		s.Handled()
		go func() { over <- s.Input(new(poll.Worker), frame(ws.OpText, "second")) }()
		<-next
		return false
	}
	o.serve <- func(s *Socket, e Event) bool {
		close(next)
		<-release
		return true
	}
	if s.Input(new(poll.Worker), frame(ws.OpText, "first")) {
		t.Error("the goroutine that has passed its event on wants to read on")
	}
	s.mu.Lock()
	if s.flags&(serving|waiting) != serving|waiting {
		t.Error("it has ended the serving of the next event")
	}
	s.mu.Unlock()
	close(release)
	if !<-over {
		t.Error("nobody reads on")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flags&(serving|waiting) != 0 {
		t.Error("an event is still served")
	}
}

// An Input beside an event that is passed on meanwhile comes behind what was read with it.
func TestPassedOnInputKeepsItsOrder(t *testing.T) {
	o := &server{owner: owner{cfg: &Config{Wire: wire.Config{MaxMessage: 100}}, events: make(chan Event, 10)}, serve: make(chan func(*Socket, Event) bool, 1)}
	s := New(o, Tags{}, nil, 0)
	o.serve <- func(s *Socket, e Event) bool {
		s.PassOn()
		s.Handled() // delivers b
		s.Input(new(poll.Worker), frame(ws.OpText, "d"))
		return false
	}
	var in []byte
	for _, text := range []string{"a", "b", "c"} {
		in = append(in, frame(ws.OpText, text)...)
	}
	s.Input(new(poll.Worker), in)
	clear(in) // the poller's buffer
	for _, want := range []string{"b", "c", "d"} {
		select {
		case e := <-o.events:
			if string(e.Data) != want {
				t.Errorf("delivered %q, want %q", e.Data, want)
			}
		default:
			t.Fatalf("nothing was delivered, want %q", want)
		}
		s.Handled()
	}
}
