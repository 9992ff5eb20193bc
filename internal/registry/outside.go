package registry

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// Do runs f as a turn of a, which carries the values of ctx, and waits for it.
func (a *Activation) Do(ctx context.Context, f func(*Turn) error) error {
	if t := TurnOf(ctx); t != nil && t.Check() == nil {
		return fmt.Errorf("%w: Do inside a turn", ErrReentrant)
	}
	if err := a.Ended(); err != nil {
		return err
	}
	var result error
	done := answers.Get().(chan error)
	w := &Work{
		Cause:  CauseDo,
		Values: ctx,
		only:   a,
		Run:    func(t *Turn, _ any) error { result = f(t); return nil },
		Done:   func(err error) { done <- err },
	}
	o := a.obj
	if ctx.Err() != nil || !o.runHere(a, w) {
		if err := o.post(w, ""); err != nil {
			if err == errRemoved {
				err = ErrReset
			}
			return err
		}
	}
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		if o.withdraw(w) {
			answers.Put(done)
			return context.Cause(ctx)
		}
		err = <-done
	}
	answers.Put(done)
	if err != nil {
		return err
	}
	return result
}

// answers keeps channels for the one answer of a Do.
var answers = sync.Pool{New: func() any { return make(chan error, 1) }}

// An Outside is the context of work that runs beside the turns of an
// activation: it may send, and ends with the activation.
type Outside struct {
	act    *Activation
	values context.Context
}

type outsideKey struct{}

// OutsideOf is the outside work that ctx belongs to, nil if to none.
func OutsideOf(ctx context.Context) *Outside {
	x, _ := ctx.Value(outsideKey{}).(*Outside)
	return x
}

// Deadline is none.
func (x *Outside) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done is closed when the activation is over.
func (x *Outside) Done() <-chan struct{} { return x.act.done }

// Err is nil while the activation lasts, then ErrReset.
func (x *Outside) Err() error { return x.act.Ended() }

// Value finds the outside work itself, and the values of the turn's request.
func (x *Outside) Value(key any) any {
	if key == (outsideKey{}) {
		return x
	}
	if x.values != nil {
		return x.values.Value(key)
	}
	return nil
}

// Activation is the life that the work belongs to.
func (x *Outside) Activation() *Activation { return x.act }

// WaitUntil runs f beside the turns, and keeps the object in memory meanwhile.
func (t *Turn) WaitUntil(name string, f func(context.Context)) error {
	if err := t.Check(); err != nil {
		return err
	}
	a, o := t.act, t.act.obj
	b := o.addBlocker(a, BlockerWaitUntil, name)
	o.class.reg.lives.add()
	go func() {
		defer o.class.reg.lives.done()
		defer o.dropBlocker(a, b)
		defer func() {
			if v := recover(); v != nil {
				o.log().Error("WaitUntil work panicked", "work", name, "panic", v, "stack", string(debug.Stack()))
			}
		}()
		if p := o.class.reg.cfg.Probe; p != nil {
			p.labelWork(o, name)
		}
		f(&Outside{act: a, values: t.parent})
	}()
	return nil
}
