package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/hibernate-go/hibernate"
)

// A keeper writes each message and counts its close events.
type keeper struct {
	state   *hibernate.State
	closed  chan<- int
	ballast *[1 << 16]byte
}

func (k *keeper) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	if err := hibernate.Put(ctx, k.state.Storage(), m.Text(), true); err != nil {
		return err
	}
	return ws.Send(ctx, m)
}

func (k *keeper) WebSocketClose(_ context.Context, _ hibernate.WebSocket, e hibernate.CloseEvent) error {
	k.closed <- e.Code
	return nil
}

func TestShutdownSaysGoodbyeAndWakesNobody(t *testing.T) {
	for _, asleep := range []bool{false, true} {
		t.Run(fmt.Sprintf("asleep=%v", asleep), func(t *testing.T) {
			closed := make(chan int, 10)
			r := newRig(t, t.TempDir(), nil)
			serve(r, func(_ context.Context, s *hibernate.State) (*keeper, error) {
				return &keeper{state: s, closed: closed}, nil
			}, nil)
			c := r.dial("/o/a")
			c.send("kept")
			c.expect("text:kept")
			if asleep {
				r.hibernate()
			}
			before := r.rt.Stats().Constructed
			ended := make(chan error, 1)
			go func() { ended <- r.rt.Shutdown(context.Background()) }()
			if got := c.next(); !strings.HasPrefix(got, "close:1001") {
				t.Fatalf("received %q", got)
			}
			c.close(1001, "")
			c.expect("eof")
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			if n := r.rt.Stats().Constructed; n != before {
				t.Errorf("%d constructions during shutdown", n-before)
			}
			if len(closed) != 0 {
				t.Errorf("close event with code %d", <-closed)
			}
			if err := r.rt.Shutdown(context.Background()); err != nil {
				t.Errorf("second shutdown: %v", err)
			}
		})
	}
}

func TestShutdownCutsThoseThatDoNotAnswer(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, nil)
	c := r.dial("/o/a")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := r.rt.Shutdown(ctx)
	if err == nil || !strings.Contains(err.Error(), "1 WebSockets did not answer") {
		t.Fatalf("shutdown: %v", err)
	}
	if got := c.next(); !strings.HasPrefix(got, "close:1001") {
		t.Fatalf("received %q", got)
	}
	c.expect("eof")
}

// A sleeper waits in its handler until it is let go.
type sleeper struct{ started, let chan struct{} }

func (s *sleeper) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	s.started <- struct{}{}
	<-s.let
	return ws.Send(ctx, m)
}

func TestShutdownFinishesTurnsUntilItsContextEnds(t *testing.T) {
	s := &sleeper{make(chan struct{}), make(chan struct{})}
	r := newRig(t, "", nil)
	serve(r, func(context.Context, *hibernate.State) (*sleeper, error) { return s, nil }, nil)
	c := r.dial("/o/a")
	c.send("slow")
	<-s.started
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.rt.Shutdown(ctx) }()
	select {
	case err := <-ended:
		t.Fatalf("shutdown did not wait: %v", err)
	case <-time.After(20 * time.Millisecond): // it is waiting; nothing announces that
	}
	close(s.let)
	c.expect("text:slow")
	if got := c.next(); !strings.HasPrefix(got, "close:1001") {
		t.Fatalf("received %q", got)
	}
	c.close(1001, "")
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	cancel()
}

func TestCloseCutsOffRunningHandlers(t *testing.T) {
	s := &sleeper{make(chan struct{}), make(chan struct{})}
	r := newRig(t, "", nil)
	errs := make(chan error, 1)
	serve(r, func(context.Context, *hibernate.State) (*reporter, error) {
		return &reporter{s, errs}, nil
	}, nil)
	c := r.dial("/o/a")
	c.send("slow")
	<-s.started
	if err := r.rt.Close(); err != nil {
		t.Fatal(err)
	}
	c.expect("eof")
	close(s.let)
	if err := <-errs; !errors.Is(err, hibernate.ErrReset) && !errors.Is(err, hibernate.ErrUnavailable) {
		t.Fatalf("send after Close: %v", err)
	}
	if err := r.rt.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	<-r.rt.Done()
	if err := r.rt.Err(); err != nil {
		t.Fatalf("error after a Close: %v", err)
	}
}

// A reporter is a sleeper that tells what its handler returned.
type reporter struct {
	*sleeper
	errs chan error
}

func (p *reporter) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	err := p.sleeper.WebSocketMessage(ctx, ws, m)
	p.errs <- err
	return err
}

// TestHibernatedInstanceIsCollectable: nothing of the runtime keeps an instance
// that has hibernated, though its sockets stay.
func TestHibernatedInstanceIsCollectable(t *testing.T) {
	var mu sync.Mutex
	var made []weak.Pointer[keeper]
	r := newRig(t, "", nil)
	serve(r, func(_ context.Context, s *hibernate.State) (*keeper, error) {
		k := &keeper{state: s, closed: make(chan int, 1), ballast: new([1 << 16]byte)}
		mu.Lock()
		made = append(made, weak.Make(k))
		mu.Unlock()
		return k, nil
	}, nil)
	var clients []*client
	for i := range 10 {
		c := r.dial(fmt.Sprintf("/o/%d", i))
		c.send("x")
		c.expect("text:x")
		clients = append(clients, c)
	}
	r.hibernate()
	r.until("the collector", func() bool {
		runtime.GC()
		mu.Lock()
		defer mu.Unlock()
		for _, p := range made {
			if p.Value() != nil {
				return false
			}
		}
		return len(made) == 10
	})
	for _, c := range clients {
		c.send("y")
		c.expect("text:y")
	}
}
