package registry

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/mutation"
	"github.com/hibernate-go/hibernate/internal/store"
)

// A Turn is the exclusive use of an object by one handler. It is the context
// that the handler is given: valid from the handler's start to its return,
// except while it is in Await.
type Turn struct {
	act    *Activation
	work   *Work
	me     *runner
	parent context.Context // whose values the turn carries; not written once user code runs

	constructor bool  // immutable
	began       int64 // by the watch's clock, Unix milliseconds; immutable after begin

	// Guarded by act.mu.
	done    chan struct{} // made when somebody asks
	err     error         // why the turn ended
	away    bool          // in Await
	pinned  int           // over 0: inside something that gives the turn up to nobody
	blocks  int           // nested BlockConcurrencyWhile
	waiting bool          // the socket event still counts as waiting at the object
	warned  bool          // the log has said that the turn is long
}

type turnKey struct{}

// TurnOf is the turn that ctx belongs to, nil if to none.
func TurnOf(ctx context.Context) *Turn {
	t, _ := ctx.Value(turnKey{}).(*Turn)
	return t
}

// Deadline is none: a turn ends when its handler returns.
func (t *Turn) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done is closed when the turn has ended or was revoked.
func (t *Turn) Done() <-chan struct{} {
	t.act.mu.Lock()
	defer t.act.mu.Unlock()
	if t.done == nil {
		t.done = make(chan struct{})
		if t.err != nil {
			close(t.done)
		}
	}
	return t.done
}

// Err is nil while the turn lasts, then context.Canceled or ErrReset.
func (t *Turn) Err() error {
	t.act.mu.Lock()
	defer t.act.mu.Unlock()
	return t.err
}

// Value finds the turn itself, and the values of the request it runs for.
func (t *Turn) Value(key any) any {
	switch key.(type) {
	case turnKey:
		return t
	case outsideKey:
		return nil
	}
	if t.parent != nil {
		return t.parent.Value(key)
	}
	return nil
}

// Activation is the life that the turn belongs to.
func (t *Turn) Activation() *Activation { return t.act }

func (t *Turn) endLocked(err error) {
	if t.err == nil {
		t.err = err
		if t.done != nil {
			close(t.done)
		}
	}
}

// checkLocked reports why t may not use the object now.
func (t *Turn) checkLocked() error {
	a := t.act
	switch {
	case a.ended != nil:
		return resetError(a.ended)
	case a.current != t || t.away:
		return ErrOutsideTurn
	}
	return nil
}

// Check reports why t may not be used now: ErrReset, ErrOutsideTurn, or nil.
func (t *Turn) Check() error {
	t.act.mu.Lock()
	defer t.act.mu.Unlock()
	return t.checkLocked()
}

// Use calls f, which must not block, while no end of the turn can come between.
func (t *Turn) Use(f func() error) error {
	t.act.mu.Lock()
	defer t.act.mu.Unlock()
	if err := t.checkLocked(); err != nil {
		return err
	}
	return f()
}

// Wrote notes a write. With held, output after it waits until it is durable.
// The caller is inside Use.
func (t *Turn) Wrote(held bool) {
	if held {
		t.act.strict = true
	} else {
		t.act.relaxed = true
	}
	if mutation.Commit && !t.act.Store.InSavepoint() {
		t.act.obj.commitStore(t.act.Store, held, true)
	}
}

// resetError makes cause recognisable as ErrReset.
func resetError(cause error) error {
	if errors.Is(cause, ErrReset) || errors.Is(cause, store.ErrUnavailable) {
		return cause
	}
	return &ResetError{cause}
}

// A ResetError is ErrReset with its cause.
type ResetError struct{ Cause error }

func (e *ResetError) Error() string { return fmt.Sprintf("%v: %v", ErrReset, e.Cause) }

// Unwrap is both ErrReset and the cause.
func (e *ResetError) Unwrap() []error { return []error{ErrReset, e.Cause} }

// turn runs w in a turn of a.
func (o *Object) turn(me *runner, a *Activation, w *Work) {
	t := &Turn{act: a, work: w, me: me, parent: w.Values, waiting: w.sock != nil}
	if err := a.begin(t); err != nil {
		o.finish(w, resetError(err))
		return
	}
	if w.called {
		o.reg.calls.begun(w, t)
	}
	var limit *alarm.Deadline // most turns have none
	var d time.Duration
	switch {
	case w.sock != nil:
		d = o.EventTimeout()
	case w.Cause == CauseAlarm:
		d = alarmLimit
	}
	if d > 0 {
		limit = o.limitTurn(a, w, d)
	}
	if p := o.reg.cfg.Probe; p != nil {
		p.began(o, w)
	}
	err := o.call(t, func() error {
		if w.sock != nil {
			return o.class.Behavior.SocketEvent(t, a.Instance, w.sock, w.event)
		}
		return w.Run(t, a.Instance)
	})
	if limit != nil {
		o.reg.timers.Clear(limit)
	}
	o.conclude(t, err)
}

// limitTurn resets the object if w takes longer than d.
func (o *Object) limitTurn(a *Activation, w *Work, d time.Duration) *alarm.Deadline {
	limit := &alarm.Deadline{F: func() {
		o.log().Error("event took too long, object is reset", "cause", w.Cause.String(), "limit", d)
		o.fall(a, fmt.Errorf("%s event took longer than %v", w.Cause, d), true)
	}}
	o.reg.timers.Set(limit, d)
	return limit
}

// conclude ends t after its handler has returned err.
func (o *Object) conclude(t *Turn, err error) {
	a, w := t.act, t.work
	if p := o.reg.cfg.Probe; p != nil {
		p.ended(o, w, err)
	}
	if ended := a.Ended(); ended != nil {
		o.returned(t)
		o.finish(w, ended)
		o.eventOver(t)
		return
	}
	var panicked *PanicError
	crash := errors.As(err, &panicked) && panicked.own(err)
	if crash || err != nil && o.class.RollbackOnError && (w.sock != nil || w.Cause == CauseAlarm) {
		if crash {
			o.reg.stats.panics.Add(1)
			o.log().Error("handler panicked, turn is undone", "cause", w.Cause.String(), "panic", panicked.Value, "stack", string(panicked.Stack))
		} else {
			o.reg.stats.handlerErrors.Add(1)
			o.log().Error("handler failed, turn is undone", "cause", w.Cause.String(), "err", err)
		}
		t.leave(ErrReset)
		if w.lastEvent() {
			o.removeSocket(w.sock) // before fall lets the next turn look (semantics 2.4)
		}
		o.fall(a, err, false)
		o.finish(w, err) // whoever learns of it finds everything taken back
		o.eventOver(t)
		return
	}
	if err != nil {
		o.reg.stats.handlerErrors.Add(1)
		o.log().Error("handler failed", "cause", w.Cause.String(), "err", err)
	}
	t.leave(context.Canceled)
	if err := a.commit(w); err != nil {
		o.finish(w, err)
	}
	o.eventOver(t)
}

// own reports whether e is the handler's own panic rather than an error that it
// got from somewhere and returned.
func (e *PanicError) own(err error) bool { return err == error(e) }

// leave ends the turn: its context is over and the object is free.
func (t *Turn) leave(cause error) {
	a := t.act
	a.mu.Lock()
	delete(a.turns, t)
	if a.current == t {
		a.current = nil
	}
	t.endLocked(cause)
	a.mu.Unlock()
}

// returned says that the goroutine of a turn that is over has left user code.
func (o *Object) returned(t *Turn) {
	t.leave(ErrReset)
	o.reg.revoked.gone(t)
}

// eventOver says that the turn's socket event no longer waits at the object: its
// handler has returned, or lets others in (semantics 4.3, 2.4).
func (o *Object) eventOver(t *Turn) {
	w := t.work
	t.act.mu.Lock()
	was := t.waiting
	t.waiting = false
	t.act.mu.Unlock()
	if !was {
		return
	}
	if p := o.reg.cfg.Probe; p != nil {
		p.over(w)
	}
	if w.Cause == CauseDrain {
		w.sock.Drained()
		return
	}
	if w.lastEvent() {
		o.removeSocket(w.sock)
	}
	w.sock.Handled()
}

// call runs user code and turns a panic into a *PanicError. Goexit too: then
// call does not return, but its caller's work is done here.
func (o *Object) call(t *Turn, f func() error) (err error) {
	if o.reg.observes {
		x := observation{t: t}
		x.begin()
		defer x.end(&err)
	}
	returned := false
	defer func() {
		if returned {
			return
		}
		v := recover()
		if v == nil { // Goexit
			p := &PanicError{Value: errGoexit, Stack: debug.Stack()}
			err = p
			if t.pinned > 0 && t.act.Instance == nil {
				o.constructFailed(t.act, t.work, p)
				o.returned(t)
			} else {
				o.conclude(t, p)
			}
			return
		}
		err = &PanicError{Value: v, Stack: debug.Stack()}
	}()
	err = f()
	returned = true
	return err
}

var errGoexit = errors.New("runtime.Goexit called in a handler")

// Abort resets the object.
func (t *Turn) Abort(reason error) error {
	if err := t.Check(); err != nil {
		return err
	}
	t.act.obj.fall(t.act, &ResetError{reason}, true)
	return nil
}
