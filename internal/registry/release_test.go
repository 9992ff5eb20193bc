package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
)

// patience only guards against hanging.
const patience = 30 * time.Second

// awaken has a turn of an object and returns its instance's activation.
func (c *crowd) awaken(name string) *Activation {
	c.tb.Helper()
	var a *Activation
	done := make(chan error, 1)
	w := &Work{Run: func(t *Turn, _ any) error { a = t.act; return nil }, Done: func(err error) { done <- err }}
	if err := c.reg.Post(c.class, store.ID(sha256.Sum256([]byte(name))), name, w); err != nil {
		c.tb.Fatal(err)
	}
	if err := <-done; err != nil {
		c.tb.Fatal(err)
	}
	return a
}

// TestOutputOfOneObjectDelaysNoOther: that of many objects takes its time at once, while others are told that their
// writes are durable, and are sent frames.
func TestOutputOfOneObjectDelaysNoOther(t *testing.T) {
	defer time.AfterFunc(2*patience, func() { panic("hangs: somebody is never told") }).Stop()
	c := newCrowd(t)
	write := func(turn *Turn) error {
		turn.Wrote(true)
		return turn.act.Store.Put("key", []byte("value"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var released sync.WaitGroup
	held, free := make(chan struct{}), make(chan struct{})
	defer released.Wait()
	defer close(free)
	for i := range maxReleasers - 1 {
		name := string(rune('a' + i))
		a := c.awaken(name)
		s, err := c.reg.Join(c.class, a.obj.id, name, socket.Tags{}, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		send := (*Turn).Send
		if i%2 == 0 {
			send = (*Turn).CloseSocket
		}
		released.Go(func() {
			if err := a.Do(context.Background(), func(turn *Turn) error {
				if err := errors.Join(send(turn, s, socket.Frame{Bytes: []byte{0x88, 0}, Last: true}), write(turn)); err != nil {
					return err
				}
				return turn.Flush(func(error) {
					select {
					case held <- struct{}{}:
					case <-ctx.Done():
					}
					<-free
				})
			}); err != nil {
				t.Error(err)
			}
		})
	}
	for range maxReleasers - 1 {
		select {
		case <-held:
		case <-ctx.Done():
			t.Fatal("one waits for another")
		}
	}
	other := c.awaken("other")
	if err := other.Do(ctx, write); err != nil {
		t.Error("to be told:", err)
	}
	s, err := c.reg.Join(c.class, other.obj.id, "other", socket.Tags{}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Do(ctx, func(turn *Turn) error {
		if err := turn.Send(s, socket.Frame{Bytes: []byte{0x81, 0}}); err != nil {
			return err
		}
		return write(turn)
	}); err != nil {
		t.Error("behind a frame:", err)
	}
}

// TestTurnsWaitForOutputThatDoesNotKeepUp: however slowly frames are written, few more than a turn's are kept.
func TestTurnsWaitForOutputThatDoesNotKeepUp(t *testing.T) {
	c := newCrowd(t)
	a := c.awaken("a")
	s, err := c.reg.Join(c.class, a.obj.id, "a", socket.Tags{}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Repeat([]*socket.Socket{s}, maxFrames/2)
	writing, written := make(chan struct{}), make(chan struct{})
	a.live.gate.Append(output{done: func(error) { close(writing); <-written }})
	var turns sync.WaitGroup
	defer turns.Wait()
	turns.Go(a.live.gate.Drain)
	<-writing
	var begun atomic.Int64
	for range 10 {
		turns.Go(func() {
			if err := a.Do(context.Background(), func(turn *Turn) error {
				begun.Add(1)
				if n := a.live.frames.Load(); n > maxFrames {
					t.Errorf("a turn begins while %d frames wait", n)
				}
				return turn.SendAll(all, socket.Frame{Bytes: []byte{0x81, 0}, Shared: true})
			}); err != nil {
				t.Error(err)
			}
		})
	}
	c.until(func() bool { return begun.Load() > 3 || a.waits() })
	close(written)
}

// waits reports whether somebody waits for what is held.
func (a *Activation) waits() bool {
	for out := range a.live.gate.Held() {
		if out.done != nil {
			return true
		}
	}
	return false
}

// TestNothingStaysOfOutputThatAnotherReleased: the poller has a frame to hold while an object's commit is confirmed, and
// so releases all of its output.
func TestNothingStaysOfOutputThatAnotherReleased(t *testing.T) {
	c := newCrowd(t)
	a := c.awaken("a")
	o, l := a.obj, a.live
	s, err := c.reg.Join(c.class, o.id, "a", socket.Tags{}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	seq := l.gate.Issue(true)
	releasing, free, released := make(chan struct{}), make(chan struct{}), make(chan struct{})
	l.gate.Append(output{done: func(error) { close(releasing); <-free }})
	if err := c.reg.Evict(t.Context(), o.id); err != nil {
		t.Fatal(err)
	}
	l.gate.Confirm(seq)
	go func() {
		defer close(released)
		o.Hold(s, socket.Frame{Bytes: []byte{0x8a, 0}})
	}()
	<-releasing
	c.reg.releasers.add(l)
	c.until(c.reg.Quiet)
	close(free)
	<-released
	if o.outlet() != nil {
		t.Error("an object at rest keeps what only others need")
	}
}

// TestARecordGoesWithItsLastOutput, though its instance was gone before, and leaves nothing that counts as busy.
func TestARecordGoesWithItsLastOutput(t *testing.T) {
	c := newCrowd(t)
	a := c.awaken("o")
	commit := a.live.gate.Issue(true)
	released := make(chan error, 1)
	a.live.gate.Hold(output{done: func(err error) { released <- err }})
	c.until(func() bool {
		c.clock.Advance(crowdIdle)
		return c.reg.Stats().InMemory == 0
	})
	if n := c.reg.Stats().Records; n != 1 || len(released) != 0 {
		t.Errorf("%d records, and %d outputs that left, before the commit is durable", n, len(released))
	}
	a.live.gate.Confirm(commit)
	c.reg.releasers.add(a.live)
	if err := <-released; err != nil {
		t.Error(err)
	}
	c.until(func() bool { return c.reg.Stats().Records == 0 && c.reg.busy.Load() == 0 })
}

// TestSentOutputIsNotKept in the memory that the next turn's takes.
func TestSentOutputIsNotKept(t *testing.T) {
	c := newCrowd(t)
	a := c.awaken("o")
	s, err := c.reg.Join(c.class, a.obj.id, "o", socket.Tags{}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	do := func(f func(*Turn) error) {
		t.Helper()
		if err := a.Do(context.Background(), f); err != nil {
			t.Fatal(err)
		}
	}
	for _, wrote := range []bool{false, true} {
		do(func(turn *Turn) error {
			if wrote {
				turn.Wrote(true)
				if err := turn.act.Store.Put("key", []byte("value")); err != nil {
					return err
				}
			}
			return turn.Send(s, socket.Frame{Bytes: []byte{0x81, 0}})
		})
		do(func(turn *Turn) error {
			kept := turn.act.spareOuts
			if cap(kept) == 0 {
				t.Error("no memory is kept")
			}
			for _, out := range kept[:cap(kept)] {
				if out.sock != nil || out.frame.Bytes != nil || out.work != nil {
					t.Errorf("%+v is kept, written %v", out, wrote)
				}
			}
			return nil
		})
	}
}
