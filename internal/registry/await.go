package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
)

// blockLimit is how long BlockConcurrencyWhile may take (semantics 10.2), and
// blockDepth how deep it may nest (semantics 11.7).
const (
	blockLimit = 30 * time.Second
	blockDepth = 64
)

// Await gives the turn up while f runs. What was written is committed and durable
// before f begins, because f may tell it to the outside world (semantics 11.5).
// Inside something that holds the turn it only waits.
func (t *Turn) Await(ctx context.Context, kind BlockerKind, name string, f func(context.Context) error) (err error) {
	a, o := t.act, t.act.obj
	a.mu.Lock()
	if err := t.checkLocked(); err != nil {
		a.mu.Unlock()
		return err
	}
	pinned := t.pinned > 0
	t.away = true
	a.mu.Unlock()
	t.me.worker.Detach()
	if pinned {
		o.eventOver(t, false)
		if a.Instance == nil {
			// A constructor that waits for another object must not keep that
			// one's constructor from running.
			o.class.reg.freeSlot()
			defer o.class.reg.takeSlot()
		}
		o.class.reg.busy.Add(-1)
		defer func() {
			o.class.reg.busy.Add(1)
			a.mu.Lock()
			t.away = false
			if a.ended != nil {
				err = errors.Join(resetError(a.ended), err)
			}
			a.mu.Unlock()
		}()
		return f(ctx)
	}
	if err := a.commit(t, nil); err != nil {
		a.mu.Lock()
		t.away = false
		a.mu.Unlock()
		return err
	}
	o.eventOver(t, false)
	b := o.addBlocker(a, kind, name)
	o.giveUp(t)
	defer func() { // also when f panics: the panic goes on in the turn
		gone := o.takeUp(t)
		o.dropBlocker(a, b)
		if gone != nil {
			err = errors.Join(gone, err)
		}
	}()
	o.class.reg.busy.Add(-1)
	defer o.class.reg.busy.Add(1)
	if err := a.live.barrier(ctx, false); err != nil {
		return err
	}
	return f(ctx)
}

// giveUp lets other turns run.
func (o *Object) giveUp(t *Turn) {
	a := t.act
	a.mu.Lock()
	if a.current == t {
		a.current = nil
		a.setAsideLocked(t)
	}
	a.mu.Unlock()
	o.mu.Lock()
	o.bringLocked()
	if o.runner == t.me {
		o.runner = nil
	}
	next := o.claimLocked()
	o.mu.Unlock()
	next.start(o)
}

// takeUp waits for the turn of t to go on. It returns why it never will.
func (o *Object) takeUp(t *Turn) error {
	a := t.act
	o.mu.Lock()
	o.bringLocked()
	switch {
	case o.act != a:
		o.mu.Unlock()
		<-a.done
		return a.Ended()
	case o.runner == nil && o.mail.first == nil:
		o.runner = t.me
	default:
		if t.me.resumed == nil {
			t.me.resumed = make(chan struct{}, 1)
		}
		o.mail.push(&Work{resume: t.me})
		next := o.claimLocked()
		o.mu.Unlock()
		next.start(o)
		o.class.reg.busy.Add(-1)
		<-t.me.resumed
		o.class.reg.busy.Add(1)
		o.mu.Lock()
	}
	o.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended != nil {
		return resetError(a.ended)
	}
	delete(a.turns, t)
	a.current = t
	t.away = false
	return nil
}

// Pin calls f, during which Await gives the turn up to nobody.
func (t *Turn) Pin(f func() error) error {
	a := t.act
	a.mu.Lock()
	if err := t.checkLocked(); err != nil {
		a.mu.Unlock()
		return err
	}
	t.pinned++
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		t.pinned--
		a.mu.Unlock()
	}()
	return f()
}

// Pinned reports whether the turn is inside something that holds it.
func (t *Turn) Pinned() bool {
	t.act.mu.Lock()
	defer t.act.mu.Unlock()
	return t.pinned > 0
}

// Block is BlockConcurrencyWhile: f runs with the turn pinned, and the object is
// reset if f fails or takes longer than 30 s (semantics 10.2).
func (t *Turn) Block(ctx context.Context, f func(context.Context) error) error {
	o, a := t.act.obj, t.act
	err := t.Use(func() error {
		if t.blocks >= blockDepth {
			return fmt.Errorf("%w: BlockConcurrencyWhile nested %d deep", ErrState, blockDepth)
		}
		t.blocks++
		return nil
	})
	if err != nil {
		return err
	}
	limit := alarm.Deadline{F: func() {
		o.log().Error("BlockConcurrencyWhile took too long, object is reset", "limit", blockLimit)
		o.fall(a, fmt.Errorf("BlockConcurrencyWhile took longer than %v", blockLimit), true)
	}}
	o.class.reg.timers.Set(&limit, blockLimit)
	defer func() {
		o.class.reg.timers.Clear(&limit)
		a.mu.Lock()
		t.blocks--
		a.mu.Unlock()
	}()
	err = t.Pin(func() error { return f(ctx) })
	if err != nil && a.Ended() == nil {
		o.log().Error("BlockConcurrencyWhile failed, object is reset", "err", err)
		o.fall(a, err, true)
	}
	return err
}
