package hibernate_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

// A storm counts what goes on while many objects are woken at once.
type storm struct {
	mu    sync.Mutex // guards the following
	order []string   // names, in the order of their first constructor

	hold        chan struct{} // constructors wait for its end
	now         atomic.Int64  // constructors running
	constructed atomic.Int64  // the most at once
	goroutines  atomic.Int64  // the most at once
	events      atomic.Int64
}

func raise(to *atomic.Int64, n int64) {
	for old := to.Load(); n > old && !to.CompareAndSwap(old, n); old = to.Load() {
	}
}

type stormy struct{ *storm }

func (s *storm) make(_ context.Context, st *hibernate.State) (stormy, error) {
	s.mu.Lock()
	s.order = append(s.order, st.Name())
	s.mu.Unlock()
	raise(&s.constructed, s.now.Add(1))
	<-s.hold
	s.now.Add(-1)
	return stormy{s}, nil
}

func (s stormy) note() error {
	raise(&s.goroutines, int64(runtime.NumGoroutine()))
	s.events.Add(1)
	return nil
}

func (s stormy) WebSocketMessage(context.Context, hibernate.WebSocket, hibernate.Message) error {
	return s.note()
}

func (s stormy) WebSocketClose(context.Context, hibernate.WebSocket, hibernate.CloseEvent) error {
	return s.note()
}

// TestWakeStormIsBounded: messages for thousands of sleeping objects, and then the
// loss of all their sockets at once, run no more constructors than Limits say, in the
// order they came, and take a few goroutines, not one for each object.
func TestWakeStormIsBounded(t *testing.T) {
	n := 5000
	if testing.Short() {
		n = 500
	}
	const width, spare = 4, 60
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Constructing: width}})
	s := &storm{hold: make(chan struct{})}
	serve(r, s.make, nil)
	cs := make([]*client, n)
	for i := range cs {
		cs[i] = r.dial(fmt.Sprint("/o/", i))
	}
	before := runtime.NumGoroutine()
	const ordered = 100
	for i, c := range cs {
		c.send("wake up")
		if i < ordered {
			r.until("the message to arrive", func() bool { return r.rt.Stats().Messages == uint64(i+1) })
		}
	}
	r.until("messages to arrive", func() bool { return r.rt.Stats().Messages == uint64(n) })
	if got := runtime.NumGoroutine(); got > before+width+spare {
		t.Errorf("%d goroutines while %d objects wait, %d before", got, n, before)
	}
	close(s.hold)
	r.until("messages to be handled", func() bool { return s.events.Load() == int64(n) })
	s.mu.Lock()
	out := 0 // of order; admitted goroutines race with each other, and a few are late
	for i, name := range s.order[:ordered] {
		var at int
		if _, err := fmt.Sscan(name, &at); err != nil {
			t.Error(err)
		}
		if at < i-ordered/4 || at > i+ordered/4 {
			out++
		}
	}
	if out > ordered/10 {
		t.Errorf("objects were constructed in the order %v", s.order[:ordered])
	}
	s.mu.Unlock()

	r.hibernate()
	s.events.Store(0)
	for _, c := range cs {
		c.drop()
	}
	r.until("close events", func() bool { return s.events.Load() == int64(n) })
	if got := s.constructed.Load(); got > width {
		t.Errorf("%d constructors ran at once, the limit is %d", got, width)
	}
	if got := s.goroutines.Load(); got > int64(before+width+spare) {
		t.Errorf("%d goroutines at once, %d before", got, before)
	}
	r.until("all to leave", func() bool {
		r.clock.Advance(11 * time.Second)
		return r.rt.Stats().ObjectsInMemory == 0 && r.rt.Stats().Sockets == 0
	})
}

// TestWithdrawnWorkLeavesNoRecord: who waits in line and gives up, leaves nothing
// behind, and the line goes on.
func TestWithdrawnWorkLeavesNoRecord(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Constructing: 1}})
	begun, goOn := make(chan struct{}, 1), make(chan struct{})
	r.act(&script{construct: func(_ context.Context, a *actor) error {
		if a.state.Name() == "first" {
			begun <- struct{}{}
			<-goOn
		}
		return nil
	}}, nil)
	call := func(ctx context.Context, name string) error {
		_, err := line.Call(ctx, r.ns.GetByName(name), 0)
		return err
	}
	nothing := func(context.Context, *actor) error { return nil }
	r.play.lines[0] = nothing
	first := make(chan error)
	go func() { first <- call(context.Background(), "first") }()
	<-begun
	ctx, cancel := context.WithCancel(context.Background())
	second := make(chan error)
	go func() { second <- call(ctx, "second") }()
	r.until("the second to wait", func() bool { return r.rt.Stats().ObjectsAsleep == 1 })
	cancel()
	if err := <-second; err != context.Canceled {
		t.Errorf("the second: %v", err)
	}
	close(goOn)
	if err := <-first; err != nil {
		t.Error(err)
	}
	r.until("the record to go", func() bool { return r.rt.Stats().ObjectsAsleep == 0 })
	r.turn("third")
	r.instances(2)
}
