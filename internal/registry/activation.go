package registry

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/store"
)

// An Activation is one in-memory life of an object.
type Activation struct {
	obj      *Object
	live     *live         // the object's, as long as a lasts
	Store    *store.Object // the object's storage; writes go through a Turn
	Instance any           // set by construct before the first event

	// Guarded by the object's lock.
	idle      alarm.Deadline
	idleArmed bool
	idleSince time.Time
	blockers  map[*Blocker]struct{}

	prev, next *Activation // in the shard's list; guarded by the shard's lock

	spareOuts []output // to be outs and buf again; owned by who runs the object's turns
	spareBuf  []byte

	mu      sync.Mutex // guards the following
	current *Turn      // the turn that may use the object now; nil between turns
	ended   error      // why this life is over; set once
	done    chan struct{}
	turns   map[*Turn]struct{} // handlers in Await; after the end, all that have not returned
	outs    []output           // of the current stretch, in order
	buf     []byte             // the small frames of outs
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
	if a.current != nil {
		a.setAsideLocked(a.current)
	}
	a.current = nil
	undo := a.undo
	for _, out := range a.outs {
		if out.own {
			a.live.gate.Append(out)
		}
	}
	a.undo, a.outs, a.buf, a.outSize = nil, nil, nil, 0
	for t := range a.turns {
		running = append(running, t)
		t.endLocked(resetError(cause))
	}
	close(a.done)
	a.mu.Unlock()
	a.live.gate.Drain()
	a.obj.class.reg.timers.Clear(&a.idle)
	a.obj.takeBack(undo)
	a.Store.Close()
	return running
}

func (a *Activation) setAsideLocked(t *Turn) {
	if a.turns == nil {
		a.turns = map[*Turn]struct{}{}
	}
	a.turns[t] = struct{}{}
}

// takeBack undoes effects, the latest first.
func (o *Object) takeBack(undo []undone) {
	for i := len(undo) - 1; i >= 0; i-- {
		undo[i](o)
	}
}

// begin makes t the current turn of its activation.
func (a *Activation) begin(t *Turn) error {
	t.began = a.obj.class.reg.watch.now.Load()
	a.mu.Lock()
	ended := a.ended
	if ended == nil {
		a.current = t
	}
	a.mu.Unlock()
	return ended
}

// construct makes a new instance, in a turn of its own. If that fails the object
// is reset, and w and what had come to wait meanwhile fail with it: they shared
// the construction (semantics 9.4, 9.8). It returns nil then.
func (o *Object) construct(me *runner, w *Work) *Activation {
	reg := o.class.reg
	if !me.slot {
		me.worker.DetachSelf()
		reg.takeSlot()
		me.slot = true
	}
	defer me.dropSlot()
	a := &Activation{
		obj:      o,
		Store:    reg.cfg.Store.Object(o.id, o.class.Name, o.Name()),
		blockers: map[*Blocker]struct{}{},
		done:     make(chan struct{}),
	}
	a.idle.F = func() { o.idleCheck(a) }
	o.made(a)
	o.mu.Lock()
	o.bringLocked()
	if o.runner != me {
		o.mu.Unlock()
		o.unmade(a)
		a.Store.Close()
		o.finish(w, ErrReset)
		return nil
	}
	o.act, a.live = a, o.live
	o.mu.Unlock()
	o.woken(w)

	t := &Turn{act: a, work: w, me: me, parent: w.Values, pinned: 1, constructor: true, cause: w.Cause}
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
	if p := reg.cfg.Probe; p != nil {
		p.woken(o, w)
	}
	err := o.call(t, func() error {
		if o.Name() == "" {
			if h, err := a.Store.Header(); err == nil && h.Name != "" {
				o.setName(h.Name)
			}
		}
		instance, err := o.class.Behavior.Construct(t, a)
		a.Instance = instance
		return err
	})
	if limit.F != nil {
		reg.timers.Clear(&limit)
	}
	if err != nil {
		if p := reg.cfg.Probe; p != nil {
			p.ended(o, w, err)
		}
		o.constructFailed(a, w, err)
		o.returned(t)
		return nil
	}
	if a.Ended() != nil { // it was reset meanwhile
		o.returned(t)
		o.finish(w, a.Ended())
		return nil
	}
	t.leave(context.Canceled)
	if err := a.commit(t, nil); err != nil {
		o.finish(w, err)
		return nil
	}
	return a
}

// constructFailed resets the object after a failed construction.
func (o *Object) constructFailed(a *Activation, w *Work, err error) {
	o.class.reg.stats.failed.Add(1)
	o.mu.Lock()
	o.bringLocked()
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
