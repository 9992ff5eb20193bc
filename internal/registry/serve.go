package registry

import (
	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/socket"
)

// Serve runs the turn of an event on the goroutine that has read it, if the object
// has nothing else to do: no mailbox, no second goroutine, no copy of the message.
// Should the handler take long, the poller goes on without that goroutine; a class
// that makes it do so is served by runners for a while.
//
// The right to run turns is kept from one event of a read to the next.
func (o *Object) Serve(w *poll.Worker, s *socket.Socket, e socket.Event) (served, kept bool) {
	reg := o.class.reg
	if reg.cfg.EvictEveryTurn || reg.cfg.Probe != nil || !o.class.Behavior.HandlesSocket(e.Kind) {
		return false, false
	}
	me, ok := w.Local.(*runner)
	if !ok {
		me = &runner{reg: reg, worker: w}
		w.Local = me
	}
	if !o.class.pace.Inline() {
		me.letGo()
		return false, false
	}
	if me.held == nil {
		reg.lives.add() // before the look at closing: who stops it waits for the lives
		reg.busy.Add(1)
	}
	a, ok := o.take(me, s)
	if !ok {
		if me.held == nil {
			reg.busy.Add(-1)
			reg.lives.done()
		}
		me.letGo()
		return false, false
	}
	me.held = o
	defer func() { // also after a Goexit
		if !kept || !e.More || !w.Attached() {
			me.letGo()
		}
	}()
	cause := o.count(e.Kind)
	if a == nil {
		if a = o.construct(me, newEvent(cause, s, e)); a == nil {
			return true, true
		}
	}
	t := &Turn{act: a, sock: s, me: me, cause: cause, waiting: true, more: e.More}
	o.perform(t, e, o.EventTimeout())
	return true, t.kept
}

// Served gives back the right that Serve has kept.
func (o *Object) Served(w *poll.Worker) {
	if w == nil {
		return
	}
	if me, ok := w.Local.(*runner); ok {
		me.letGo()
	}
}

// letGo gives back the right that Serve has taken, if it has.
func (r *runner) letGo() {
	if o := r.held; o != nil {
		r.held = nil
		o.yield(r)
	}
}

// wakeBurst is how many connections wait for the loop when it leaves constructing to runners.
const wakeBurst = 8

// take takes the right to run turns, for an event of s, if nobody else has it and nothing
// waits. a is nil if an instance has to be constructed, for which there is a slot.
func (o *Object) take(me *runner, s *socket.Socket) (a *Activation, ok bool) {
	o.mu.Lock()
	if ok = socket.Listed(s) && !o.class.reg.closing.Load(); ok {
		o.bringLocked()
		ok = o.mail.first == nil && (o.runner == nil && me.held == nil || o.runner == me)
	}
	if ok && o.act == nil {
		// Many that wake at once are woken side by side.
		ok = me.worker.Waiting < wakeBurst && o.class.reg.tryTake()
		me.slot = ok
	}
	if ok {
		a, o.runner = o.act, me
	}
	o.mu.Unlock()
	return a, ok
}

// count counts an event of a socket.
func (o *Object) count(k socket.EventKind) Cause {
	o.class.reg.stats.events.Add(1)
	switch k {
	case socket.Message:
		o.class.reg.stats.messages.Add(1)
		return CauseMessage
	case socket.Close:
		return CauseClose
	}
	return CauseError
}

// runHere runs w in a turn of a on the caller's goroutine, and reports false if the
// object has something else to do. The caller's goroutine keeps the labels that its
// owner has given it, so a turn with labels is not run there.
func (o *Object) runHere(a *Activation, w *Work) bool {
	reg := o.class.reg
	if reg.cfg.EvictEveryTurn || reg.cfg.Probe != nil || o.class.labels != nil {
		return false
	}
	reg.lives.add()
	o.mu.Lock()
	if o.live == nil || o.act != a || o.runner != nil || o.mail.first != nil {
		o.mu.Unlock()
		reg.lives.done()
		return false
	}
	me := &runner{reg: reg}
	o.runner = me
	o.mu.Unlock()
	reg.busy.Add(1)
	defer o.yield(me) // also after a Goexit
	o.turn(me, a, w)
	return true
}

// yield gives back the right to run turns, to a runner if there is work.
func (o *Object) yield(me *runner) {
	now := o.class.reg.cfg.Clock.Now()
	o.mu.Lock()
	o.bringLocked()
	if o.runner != me {
		o.mu.Unlock()
	} else if o.runner = nil; o.mail.first == nil {
		o.settleLocked(now)
	} else {
		next := o.claimLocked()
		o.mu.Unlock()
		next.start(o)
	}
	o.class.reg.busy.Add(-1)
	o.class.reg.lives.done()
}
