package registry

import (
	"context"
	"fmt"
	"sync"

	"github.com/hibernate-go/hibernate/internal/store"
)

// calls knows which turn waits for which work, to refuse a call that would close
// a circle. Only objects that a pinned turn holds can be part of one: whoever
// waits for such an object waits for what that turn waits for.
type calls struct {
	mu   sync.Mutex           // guards the following, and the fields of Turn and Work named call
	held map[store.ID]*Turn   // objects whose turn is pinned and waits for a call
	out  map[*Turn]*Work      // what a turn waits for
	on   map[*Work]callTarget // where that work is
}

type callTarget struct {
	id   store.ID
	turn *Turn // runs the work; nil: it still waits at the object
}

// enter notes that t is about to wait for w at the object id, or returns
// ErrReentrant if w could never run.
func (c *calls) enter(t *Turn, w *Work, id store.ID) error {
	pinned := t.Pinned()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held, c.out, c.on = map[store.ID]*Turn{}, map[*Turn]*Work{}, map[*Work]callTarget{}
	}
	if c.out[t] != nil {
		return fmt.Errorf("%w: a turn makes one call at a time", ErrState)
	}
	own := t.act.obj.id
	if pinned {
		c.held[own] = t
	}
	if c.circleLocked(t, id) {
		if pinned {
			delete(c.held, own)
		}
		return ErrReentrant
	}
	c.out[t] = w
	c.on[w] = callTarget{id: id}
	return nil
}

// circleLocked follows who must move before work at the object id can run, and
// reports whether that is t.
func (c *calls) circleLocked(t *Turn, id store.ID) bool {
	for {
		holder := c.held[id]
		for holder != nil && holder != t {
			at, waits := c.on[c.out[holder]]
			if !waits {
				return false // it is about to be told its result
			}
			if at.turn == nil {
				id = at.id
				break
			}
			holder = at.turn
			if c.out[holder] == nil && holder != t {
				return false // it is running
			}
		}
		if holder == nil {
			return false
		}
		if holder == t {
			return true
		}
	}
}

// begun notes that t runs w.
func (c *calls) begun(w *Work, t *Turn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.on[w]; ok {
		at.turn = t
		c.on[w] = at
	}
}

// leave notes that t waits no more.
func (c *calls) leave(t *Turn, w *Work) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.out, t)
	delete(c.on, w)
	if c.held[t.act.obj.id] == t {
		delete(c.held, t.act.obj.id)
	}
}

// Call posts w to an object and waits for its outcome. In a turn it gives the
// turn up meanwhile, as Await does. ctx ends the wait for a turn of the object;
// work that has begun is waited for.
func (r *Registry) Call(ctx context.Context, c *Class, id store.ID, name string, w *Work) error {
	// Where nobody else counts as busy the call does: from here until the work is
	// posted, and again from its outcome until the caller goes on.
	r.busy.Add(1)
	defer r.busy.Add(-1)
	done := make(chan error, 1)
	w.Done = func(err error) {
		r.busy.Add(1)
		done <- err
	}
	wait := func(ctx context.Context) error {
		if err := r.Post(c, id, name, w); err != nil {
			return err
		}
		r.busy.Add(-1)
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			if r.Withdraw(id, w) {
				r.busy.Add(1)
				return context.Cause(ctx)
			}
			return <-done
		}
	}
	t := TurnOf(ctx)
	if t == nil {
		return wait(ctx)
	}
	if err := t.Check(); err != nil {
		return err
	}
	if err := r.calls.enter(t, w, id); err != nil {
		return err
	}
	w.called = true
	defer r.calls.leave(t, w)
	return t.Await(ctx, BlockerCall, w.Cause.String()+" of "+c.Name, wait)
}
