package registry

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/mutation"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
)

// A Turn is the exclusive use of an object by one handler. It is the context
// that the handler is given: valid from the handler's start to its return,
// except while it is in Await.
type Turn struct {
	act    *Activation
	work   *Work          // nil: an event that is served
	sock   *socket.Socket // of a socket event
	me     *runner
	parent context.Context // whose values the turn carries; not written once user code runs
	began  int64           // by the watch's clock, Unix milliseconds; immutable after begin

	// Guarded by act.mu.
	done    chan struct{} // made when somebody asks
	err     error         // why the turn ended
	pinned  int32         // over 0: inside something that gives the turn up to nobody
	blocks  uint8         // nested BlockConcurrencyWhile
	away    bool          // in Await
	waiting bool          // the socket event still counts as waiting at the object
	warned  bool          // the log has said that the turn is long

	cause       Cause // immutable, like the following
	constructor bool
	more        bool // the served event is not the last of what was read
	kept        bool // the served event was not passed on; owned by the goroutine that serves it
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
		return a.obj.OutsideTurn()
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
		t.act.live.commitStore(t.act.Store, held, true)
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
	t := &Turn{act: a, work: w, sock: w.sock, me: me, parent: w.Values, cause: w.Cause, waiting: w.sock != nil}
	var e socket.Event
	var d time.Duration
	switch {
	case w.sock != nil:
		e, d = *w.event, o.EventTimeout()
	case w.Cause == CauseAlarm:
		d = alarmLimit
	}
	o.perform(t, e, d)
}

// perform runs t, which takes at most d if that is not 0.
func (o *Object) perform(t *Turn, e socket.Event, d time.Duration) {
	a, w := t.act, t.work
	if err := a.begin(t); err != nil {
		t.kept = true
		o.finish(w, resetError(err))
		return
	}
	if w != nil && w.called {
		o.class.reg.calls.begun(w, t)
	}
	var limit *alarm.Deadline // most turns have none
	if d > 0 {
		limit = o.limitTurn(a, t.cause, d)
	}
	if p := o.class.reg.cfg.Probe; p != nil {
		p.began(o, w)
	}
	err := o.call(t, func() error {
		if t.sock != nil {
			return o.class.Behavior.SocketEvent(t, a.Instance, t.sock, e)
		}
		return w.Run(t, a.Instance)
	})
	if limit != nil {
		o.class.reg.timers.Clear(limit)
	}
	o.conclude(t, err)
}

// limitTurn resets the object if a turn takes longer than d.
func (o *Object) limitTurn(a *Activation, cause Cause, d time.Duration) *alarm.Deadline {
	limit := &alarm.Deadline{F: func() {
		o.log().Error("event took too long, object is reset", "cause", cause.String(), "limit", d)
		o.fall(a, fmt.Errorf("%s event took longer than %v", cause, d), true)
	}}
	o.class.reg.timers.Set(limit, d)
	return limit
}

// conclude ends t after its handler has returned err.
func (o *Object) conclude(t *Turn, err error) {
	a, w := t.act, t.work
	if p := o.class.reg.cfg.Probe; p != nil {
		p.ended(o, w, err)
	}
	if err == nil && a.finish(t, w) {
		return
	}
	if ended := a.Ended(); ended != nil {
		o.returned(t)
		o.finish(w, ended)
		o.eventOver(t, true)
		return
	}
	if err != nil && o.failed(t, err) {
		t.leave(ErrReset)
		if t.lastEvent() {
			o.removeSocket(t.sock) // before fall lets the next turn look (semantics 2.4)
		}
		o.fall(a, err, false)
		o.finish(w, err) // whoever learns of it finds everything taken back
		o.eventOver(t, true)
		return
	}
	t.leave(context.Canceled)
	if err := a.commit(t, w); err != nil {
		o.finish(w, err)
	}
	o.eventOver(t, true)
}

// failed logs that t's handler has returned err, and reports whether it is to be undone.
func (o *Object) failed(t *Turn, err error) (undo bool) {
	// The handler's own panic, rather than one that it got from somewhere and returned.
	if p, ok := err.(*PanicError); ok {
		o.class.reg.stats.panics.Add(1)
		o.log().Error("handler panicked, turn is undone", "cause", t.cause.String(), "panic", p.Value, "stack", string(p.Stack))
		return true
	}
	o.class.reg.stats.handlerErrors.Add(1)
	if o.class.RollbackOnError && (t.sock != nil || t.cause == CauseAlarm) {
		o.log().Error("handler failed, turn is undone", "cause", t.cause.String(), "err", err)
		return true
	}
	o.log().Error("handler failed", "cause", t.cause.String(), "err", err)
	return false
}

// leave ends the turn: its context is over and the object is free.
func (t *Turn) leave(cause error) {
	t.act.mu.Lock()
	t.leaveLocked(cause)
	t.act.mu.Unlock()
}

func (t *Turn) leaveLocked(cause error) {
	a := t.act
	if len(a.turns) > 0 {
		delete(a.turns, t)
	}
	if a.current == t {
		a.current = nil
	}
	t.returnedLocked(cause)
}

// finish is the end of nearly every turn: leave, commit and eventOver under one
// lock. It reports false, and does nothing, if a has ended.
func (a *Activation) finish(t *Turn, w *Work) bool {
	o := a.obj
	a.mu.Lock()
	if a.ended != nil {
		a.mu.Unlock()
		return false
	}
	t.leaveLocked(context.Canceled)
	waiting := t.waiting
	t.waiting = false
	if err := a.commitLocked(t, w); err != nil {
		o.finish(w, err)
	}
	if waiting {
		o.over(t, true)
	}
	return true
}

// returned says that the goroutine of a turn that is over has left user code.
func (o *Object) returned(t *Turn) {
	t.leave(ErrReset)
	o.class.reg.revoked.gone(t)
}

// eventOver says that the turn's socket event no longer waits at the object: its
// handler is here again, or lets others in (semantics 4.3, 2.4).
func (o *Object) eventOver(t *Turn, here bool) {
	t.act.mu.Lock()
	was := t.waiting
	t.waiting = false
	t.act.mu.Unlock()
	if was {
		o.over(t, here)
	}
}

func (o *Object) over(t *Turn, here bool) {
	if p := o.class.reg.cfg.Probe; p != nil {
		p.over(t.work)
	}
	if t.cause == CauseDrain {
		t.sock.Drained()
		return
	}
	if t.lastEvent() {
		o.removeSocket(t.sock)
	}
	if t.work == nil {
		if here {
			t.kept = true
			return // whoever serves it goes on
		}
		t.sock.PassOn()
	}
	t.sock.Handled()
}

// call runs user code and turns a panic into a *PanicError. Goexit too: then
// call does not return, but its caller's work is done here.
func (o *Object) call(t *Turn, f func() error) (err error) {
	if o.class.reg.observes {
		x := observation{t: t}
		x.begin()
		defer x.end(&err)
	}
	w := t.me.worker
	returned := false
	defer func() {
		if returned {
			return
		}
		v := recover()
		if v == nil { // Goexit
			p := &PanicError{Value: errGoexit, Stack: debug.Stack()}
			err = p
			w.Detach()
			if t.constructor {
				o.constructFailed(t.act, t.work, p)
				o.returned(t)
			} else {
				o.eventOver(t, false)
				o.conclude(t, p)
			}
			return
		}
		w.Leave()
		err = &PanicError{Value: v, Stack: debug.Stack()}
	}()
	w.Enter(&o.class.pace)
	err = f()
	w.Leave()
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
