package registry

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/gate"
	"github.com/hibernate-go/hibernate/internal/mutation"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
)

// blockLimit is how long BlockConcurrencyWhile may take (semantics 10.2), and
// blockDepth how deep it may nest (semantics 11.7).
const (
	blockLimit = 30 * time.Second
	blockDepth = 64
)

// An Activation is one in-memory life of an object.
type Activation struct {
	obj      *Object
	Store    *store.Object // the object's storage; writes go through a Turn
	Instance any           // set by construct before the first event

	// Guarded by the object's lock.
	idle      alarm.Deadline
	idleArmed bool
	blockers  map[*Blocker]struct{}

	mu      sync.Mutex // guards the following
	current *Turn      // the turn that may use the object now; nil between turns
	ended   error      // why this life is over; set once
	done    chan struct{}
	turns   map[*Turn]struct{} // handlers that have not returned
	outs    []output           // of the current stretch, in order
	outSize int64
	undo    []undone
	relaxed bool // some write of the stretch holds nothing back
	strict  bool // some write of the stretch does

	alarmRunning bool // the alarm's handler has begun and not ended
	alarmChanged bool // in the current stretch
	alarmStreak  int  // runs in a row that set the next one for at once; owned by the alarm's turn
}

// An undone is how to take one effect of the current stretch back.
type undone func(o *Object)

// A Turn is the exclusive use of an object by one handler. It is the context
// that the handler is given: valid from the handler's start to its return,
// except while it is in Await.
type Turn struct {
	act    *Activation
	work   *Work
	me     *runner
	parent context.Context // whose values the turn carries

	// Guarded by act.mu.
	done    chan struct{} // made when somebody asks
	err     error         // why the turn ended
	away    bool          // in Await
	pinned  int           // over 0: inside something that gives the turn up to nobody
	blocks  int           // nested BlockConcurrencyWhile
	waiting bool          // the socket event still counts as waiting at the object
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

// WithValues makes the turn carry parent's values. It is called before user
// code sees the turn.
func (t *Turn) WithValues(parent context.Context) { t.parent = parent }

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

// Object is the record that a is a life of.
func (a *Activation) Object() *Object { return a.obj }

// Ended is nil while a lasts.
func (a *Activation) Ended() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended == nil {
		return nil
	}
	return resetError(a.ended)
}

// end closes a: nothing that was not committed has happened, and no call with
// one of its turns works any more. It returns the turns that were running.
func (a *Activation) end(cause error) (running []*Turn) {
	a.mu.Lock()
	if a.ended != nil {
		a.mu.Unlock()
		return nil
	}
	a.ended = cause
	a.current = nil
	undo := a.undo
	for _, out := range a.outs {
		if out.own {
			a.obj.gate.Append(out)
		}
	}
	a.undo, a.outs, a.outSize = nil, nil, 0
	for t := range a.turns {
		running = append(running, t)
		t.endLocked(resetError(cause))
	}
	close(a.done)
	a.mu.Unlock()
	a.obj.gate.Drain()
	a.obj.reg.timers.Clear(&a.idle)
	a.obj.takeBack(undo)
	a.Store.Close()
	return running
}

// takeBack undoes effects, the latest first.
func (o *Object) takeBack(undo []undone) {
	for i := len(undo) - 1; i >= 0; i-- {
		undo[i](o)
	}
}

// commit ends a stretch: its writes go to the store as one, its output to the
// gate behind them. last, if any, is told behind all other output. It returns why
// nothing of this happened.
func (a *Activation) commit(last *Work) error {
	o := a.obj
	a.mu.Lock()
	if a.ended != nil {
		defer a.mu.Unlock()
		return resetError(a.ended)
	}
	outs := a.outs
	clear(a.undo)
	a.outs, a.outSize, a.undo = nil, 0, a.undo[:0]
	wrote := o.commitStore(a.Store, a.strict || !a.relaxed, a.alarmChanged)
	a.strict, a.relaxed, a.alarmChanged = false, false, false
	if last != nil && last.Done != nil {
		outs = append(outs, output{work: last})
	}
	through := len(outs) > 0 && o.gate.TakeThrough(outs)
	a.mu.Unlock()
	if through {
		o.gate.PassThrough(outs)
	} else {
		o.gate.Drain()
	}
	a.recycle(outs)
	if wrote {
		// A disk that does not keep up slows down those who write.
		return o.reg.cfg.Store.Throttle(context.Background())
	}
	return nil
}

// recycle keeps the memory of outs, which have been released or copied, for the
// next stretch.
func (a *Activation) recycle(outs []output) {
	if cap(outs) == 0 || cap(outs) > 64 {
		return
	}
	clear(outs)
	a.mu.Lock()
	if a.outs == nil {
		a.outs = outs[:0]
	}
	a.mu.Unlock()
}

// commitStore hands the writes of st over and reports whether there were any.
// With hold, output waits for them.
func (o *Object) commitStore(st *store.Object, hold, alarm bool) bool {
	if !st.Dirty() {
		return false
	}
	hold = hold && !mutation.Gate
	var seq gate.Seq
	if hold {
		seq = o.gate.Issue()
	}
	o.reg.busy.Add(1)
	st.Commit(func(err error) { // on the store's goroutine
		defer o.reg.busy.Add(-1)
		switch {
		case err != nil:
			o.commitFailed(seq, err)
		case hold:
			o.gate.Open(seq)
		}
		if alarm && err == nil {
			o.reg.alarms.Wake()
		}
		o.settle()
	})
	return true
}

// commitFailed drops what was held for a commit that is not on disk. A store that
// lives on has refused this object alone: it is reset (semantics 10.4).
func (o *Object) commitFailed(seq gate.Seq, err error) {
	o.gate.Fail(seq, err)
	if o.reg.cfg.Store.Err() != nil {
		return // the runtime is dead
	}
	o.log().Error("commit failed, object is reset", "err", err)
	o.mu.Lock()
	a := o.act
	o.mu.Unlock()
	if a != nil {
		o.fall(a, err, true)
	}
	o.gate.Forgive()
}

// barrier waits until everything that was committed is durable.
func (o *Object) barrier(ctx context.Context) error {
	durable := make(chan error, 1)
	o.gate.Hold(output{done: func(err error) { durable <- err }})
	select {
	case err := <-durable:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// begin makes t the current turn of its activation.
func (a *Activation) begin(t *Turn) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended != nil {
		return a.ended
	}
	a.current = t
	a.turns[t] = struct{}{}
	return nil
}

// construct makes a new instance, in a turn of its own. If that fails the object
// is reset, and w and what had come to wait meanwhile fail with it: they shared
// the construction (semantics 9.4, 9.8). It returns nil then.
func (o *Object) construct(me *runner, w *Work) *Activation {
	reg := o.reg
	reg.takeSlot()
	defer reg.constructing.Release(1)
	a := &Activation{
		obj:      o,
		Store:    reg.cfg.Store.Object(o.id, o.class.Name, o.Name()),
		blockers: map[*Blocker]struct{}{},
		turns:    map[*Turn]struct{}{},
		done:     make(chan struct{}),
	}
	a.idle.F = func() { o.idleCheck(a) }
	o.mu.Lock()
	if o.runner != me {
		o.mu.Unlock()
		a.Store.Close()
		o.finish(w, ErrReset)
		return nil
	}
	o.act = a
	o.constructed++
	o.mu.Unlock()
	reg.stats.constructed.Add(1)
	reg.stats.inMemory.Add(1)

	t := &Turn{act: a, work: w, me: me, pinned: 1}
	if err := a.begin(t); err != nil {
		o.finish(w, resetError(err))
		return nil
	}
	var limit alarm.Deadline
	if d := o.class.ConstructTimeout; d > 0 {
		limit.F = func() {
			o.constructFailed(a, w, fmt.Errorf("constructor took longer than %v", d))
		}
		reg.timers.Set(&limit, d)
	}
	if o.Name() == "" {
		if h, err := a.Store.Header(); err == nil && h.Name != "" {
			o.setName(h.Name)
		}
	}
	err := o.call(t, func() error {
		instance, err := o.class.Behavior.Construct(t, a)
		a.Instance = instance
		return err
	})
	if limit.F != nil {
		reg.timers.Clear(&limit)
	}
	if err != nil {
		o.constructFailed(a, w, err)
		return nil
	}
	if a.Ended() != nil { // it was reset meanwhile
		o.finish(w, a.Ended())
		return nil
	}
	t.leave(context.Canceled)
	if err := a.commit(nil); err != nil {
		o.finish(w, err)
		return nil
	}
	return a
}

// takeSlot waits, in fair order, until few enough constructors run.
func (r *Registry) takeSlot() {
	if err := r.constructing.Acquire(context.Background(), 1); err != nil {
		panic("BUG: acquire without a deadline failed: " + err.Error())
	}
}

// constructFailed resets the object after a failed construction.
func (o *Object) constructFailed(a *Activation, w *Work, err error) {
	o.reg.stats.failed.Add(1)
	o.mu.Lock()
	if o.act != a {
		o.mu.Unlock()
		o.finish(w, err)
		return
	}
	var shared []*Work
	for x := o.mail.first; x != nil; {
		next := x.next
		if x.resume == nil && x.sock == nil {
			o.mail.remove(x)
			shared = append(shared, x)
		}
		x = next
	}
	o.mu.Unlock()
	o.log().Error("constructor failed", "cause", w.Cause.String(), "err", err)
	first := o.settleWork(w) // else fall tells it in its own words
	o.fall(a, err, true)
	for _, x := range append(shared, w) {
		if (x != w || first) && x.Done != nil {
			x.Done(err)
		}
	}
}

// turn runs w in a turn of a.
func (o *Object) turn(me *runner, a *Activation, w *Work) {
	t := &Turn{act: a, work: w, me: me, waiting: w.sock != nil}
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
	if ended := a.Ended(); ended != nil {
		t.leave(ended)
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
		if w.sock != nil && w.event.Kind != socket.Message {
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
	if w.event.Kind != socket.Message {
		o.removeSocket(w.sock)
	}
	w.sock.Handled()
}

// call runs user code and turns a panic into a *PanicError. Goexit too: then
// call does not return, but its caller's work is done here.
func (o *Object) call(t *Turn, f func() error) (err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		v := recover()
		if v == nil { // Goexit
			p := &PanicError{Value: errGoexit, Stack: debug.Stack()}
			if t.pinned > 0 && t.act.Instance == nil {
				o.constructFailed(t.act, t.work, p)
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

// Await gives the turn up while f runs. What was written is committed and durable
// before f begins, because f may tell it to the outside world (semantics 11.5).
// Inside something that holds the turn it only waits.
func (t *Turn) Await(ctx context.Context, name string, f func(context.Context) error) (err error) {
	a, o := t.act, t.act.obj
	a.mu.Lock()
	if err := t.checkLocked(); err != nil {
		a.mu.Unlock()
		return err
	}
	pinned := t.pinned > 0
	t.away = true
	a.mu.Unlock()
	if pinned {
		o.eventOver(t)
		if a.Instance == nil {
			// A constructor that waits for another object must not keep that
			// one's constructor from running.
			o.reg.constructing.Release(1)
			defer o.reg.takeSlot()
		}
		o.reg.busy.Add(-1)
		defer func() {
			o.reg.busy.Add(1)
			a.mu.Lock()
			t.away = false
			if a.ended != nil {
				err = errors.Join(resetError(a.ended), err)
			}
			a.mu.Unlock()
		}()
		return f(ctx)
	}
	if err := a.commit(nil); err != nil {
		a.mu.Lock()
		t.away = false
		a.mu.Unlock()
		return err
	}
	o.eventOver(t)
	b := o.addBlocker(a, name)
	o.giveUp(t)
	defer func() { // also when f panics: the panic goes on in the turn
		gone := o.takeUp(t)
		o.dropBlocker(a, b)
		if gone != nil {
			err = errors.Join(gone, err)
		}
	}()
	o.reg.busy.Add(-1)
	defer o.reg.busy.Add(1)
	if err := o.barrier(ctx); err != nil {
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
	}
	a.mu.Unlock()
	o.mu.Lock()
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
		o.reg.busy.Add(-1)
		<-t.me.resumed
		o.reg.busy.Add(1)
		o.mu.Lock()
	}
	o.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended != nil {
		return resetError(a.ended)
	}
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
	o.reg.timers.Set(&limit, blockLimit)
	defer func() {
		o.reg.timers.Clear(&limit)
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

// Abort resets the object.
func (t *Turn) Abort(reason error) error {
	if err := t.Check(); err != nil {
		return err
	}
	t.act.obj.fall(t.act, &ResetError{reason}, true)
	return nil
}

// Sync commits and waits until everything is durable.
func (t *Turn) Sync(ctx context.Context) error {
	if err := t.Check(); err != nil {
		return err
	}
	if err := t.act.commit(nil); err != nil {
		return err
	}
	return t.act.obj.barrier(ctx)
}

// Flush commits and calls done when everything before is durable, or failed.
func (t *Turn) Flush(done func(error)) error {
	if err := t.Check(); err != nil {
		return err
	}
	if err := t.act.commit(nil); err != nil {
		return err
	}
	t.act.obj.gate.Hold(output{done: done})
	return nil
}

// Do runs f as a turn of a and waits for it.
func (a *Activation) Do(ctx context.Context, f func(*Turn) error) error {
	if t := TurnOf(ctx); t != nil && t.Check() == nil {
		return fmt.Errorf("%w: Do inside a turn", ErrReentrant)
	}
	if err := a.Ended(); err != nil {
		return err
	}
	var result error
	done := make(chan error, 1)
	w := &Work{
		Cause: CauseDo,
		only:  a,
		Run:   func(t *Turn, _ any) error { result = f(t); return nil },
		Done:  func(err error) { done <- err },
	}
	o := a.obj
	if err := o.post(w, ""); err != nil {
		if err == errRemoved {
			err = ErrReset
		}
		return err
	}
	select {
	case err := <-done:
		if err != nil {
			return err
		}
		return result
	case <-ctx.Done():
		if o.withdraw(w) {
			return context.Cause(ctx)
		}
	}
	if err := <-done; err != nil {
		return err
	}
	return result
}

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

// WaitUntil runs f beside the turns, and keeps the object in memory meanwhile.
func (t *Turn) WaitUntil(name string, f func(context.Context)) error {
	if err := t.Check(); err != nil {
		return err
	}
	a, o := t.act, t.act.obj
	b := o.addBlocker(a, name)
	o.reg.lives.add()
	go func() {
		defer o.reg.lives.done()
		defer o.dropBlocker(a, b)
		defer func() {
			if v := recover(); v != nil {
				o.log().Error("WaitUntil work panicked", "work", name, "panic", v, "stack", string(debug.Stack()))
			}
		}()
		f(&Outside{act: a, values: t.parent})
	}()
	return nil
}

// Send queues a frame of the current stretch for s.
func (t *Turn) Send(s *socket.Socket, f socket.Frame) error {
	a := t.act
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := t.checkLocked(); err != nil {
		return err
	}
	if ok, err := s.Sendable(); !ok {
		return err
	}
	size := a.outSize + int64(len(f.Bytes))
	if limit := a.obj.reg.cfg.Undelivered; limit > 0 && size > limit {
		return &LimitError{Limit: "bytes sent in one turn", Max: limit, Got: size}
	}
	a.outSize = size
	a.outs = append(a.outs, output{sock: s, frame: f})
	return nil
}

// CloseSocket closes s in the current stretch.
func (t *Turn) CloseSocket(s *socket.Socket, f socket.Frame) error {
	a := t.act
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := t.checkLocked(); err != nil {
		return err
	}
	if s.StartClose() {
		a.undo = append(a.undo, func(*Object) { s.UndoClose() })
		a.outs = append(a.outs, output{sock: s, frame: f})
	}
	return nil
}

// Send queues a frame behind everything the object has held.
func (x *Outside) Send(s *socket.Socket, f socket.Frame) error {
	if err := x.act.Ended(); err != nil {
		return err
	}
	if ok, err := s.Sendable(); !ok {
		return err
	}
	x.act.obj.gate.Hold(output{sock: s, frame: f})
	return nil
}

// CloseSocket closes s behind everything the object has held.
func (x *Outside) CloseSocket(s *socket.Socket, f socket.Frame) error {
	if err := x.act.Ended(); err != nil {
		return err
	}
	if s.StartClose() {
		x.act.obj.gate.Hold(output{sock: s, frame: f})
	}
	return nil
}

// SetAttachment replaces the attachment of s in the current stretch.
func (t *Turn) SetAttachment(s *socket.Socket, b []byte) error {
	return t.Use(func() error {
		before := s.SetAttachment(b)
		t.act.undo = append(t.act.undo, func(*Object) { s.SetAttachment(before) })
		return nil
	})
}

// SetAutoResponses replaces the pairs in the current stretch.
func (t *Turn) SetAutoResponses(pairs []Pair) error {
	return t.set(func(o *Object) { pairs, o.auto = o.auto, pairs })
}

// SetEventTimeout replaces the event timeout in the current stretch.
func (t *Turn) SetEventTimeout(d time.Duration) error {
	return t.set(func(o *Object) { d, o.timeout = o.timeout, d })
}

// set calls swap under the object's lock, and again to undo it.
func (t *Turn) set(swap func(*Object)) error {
	locked := func(o *Object) {
		o.mu.Lock()
		swap(o)
		o.mu.Unlock()
	}
	return t.Use(func() error {
		locked(t.act.obj)
		t.act.undo = append(t.act.undo, locked)
		return nil
	})
}

// Accept lists a new socket. It is not connected yet.
func (t *Turn) Accept(tags *socket.Tags, attachment []byte) (*socket.Socket, error) {
	o := t.act.obj
	s := socket.New(o, o.class.Sockets, tags, attachment)
	err := t.Use(func() error {
		if err := o.list(s); err != nil {
			return err
		}
		t.act.undo = append(t.act.undo, func(o *Object) {
			if o.removeSocket(s) {
				s.Cut()
			}
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Join lists a new socket without a turn, and without waking the object.
func (r *Registry) Join(c *Class, id store.ID, name string, tags *socket.Tags, attachment []byte) (*socket.Socket, error) {
	for {
		if r.closing.Load() {
			return nil, ErrShutdown
		}
		o := r.object(c, id, name)
		s := socket.New(o, c.Sockets, tags, attachment)
		if err := o.list(s); err != errRemoved {
			if err != nil {
				o.settle()
				return nil, err
			}
			return s, nil
		}
	}
}

// list adds s to the object's sockets, within the limits.
func (o *Object) list(s *socket.Socket) error {
	cfg := &o.reg.cfg
	if n := o.reg.sockets.Add(1); cfg.Sockets > 0 && n > int64(cfg.Sockets) {
		o.reg.sockets.Add(-1)
		return &LimitError{Limit: limitSockets, Max: int64(cfg.Sockets), Got: n}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.removed {
		o.reg.sockets.Add(-1)
		return errRemoved
	}
	if n := o.sockets.Len(); cfg.SocketsPerObject > 0 && n >= cfg.SocketsPerObject {
		o.reg.sockets.Add(-1)
		return &LimitError{Limit: limitObjectSockets, Max: int64(cfg.SocketsPerObject), Got: int64(n) + 1}
	}
	o.sockets.Add(s)
	return nil
}

// Unlist takes back a socket that was accepted and never connected, without an
// event.
func Unlist(s *socket.Socket) {
	o := s.Owner().(*Object)
	if o.removeSocket(s) {
		o.settle()
	}
	s.Cut()
}

// Activation is the life that the work belongs to.
func (x *Outside) Activation() *Activation { return x.act }

// Evict drops the instance of an object behind what waits for it.
func (r *Registry) Evict(ctx context.Context, id store.ID) error {
	o := r.find(id)
	if o == nil {
		return nil
	}
	done := make(chan error, 1)
	w := &Work{Cause: CauseEvict, Done: func(err error) { done <- err }}
	if err := o.post(w, ""); err == errRemoved {
		return nil
	} else if err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		if o.withdraw(w) {
			return context.Cause(ctx)
		}
		return <-done
	}
}

// EvictAll evicts every object that is in memory.
func (r *Registry) EvictAll(ctx context.Context) error {
	var errs []error
	r.each(func(o *Object) {
		if !r.Residence(o.id).InMemory {
			return
		}
		if err := r.Evict(ctx, o.id); err != nil {
			errs = append(errs, fmt.Errorf("object %x: %w", o.id, err))
		}
	})
	return errors.Join(errs...)
}
