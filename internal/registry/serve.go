package registry

import (
	"time"

	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/socket"
)

// Serve runs the turn of an event on the goroutine that has read it, if the object
// has nothing else to do: no mailbox, no second goroutine, no copy of the message.
// Should the handler take long, the poller goes on without that goroutine; a class
// that makes it do so is served by runners for a while.
func (o *Object) Serve(w *poll.Worker, s *socket.Socket, e socket.Event) (served, kept bool) {
	reg := o.class.reg
	if reg.cfg.EvictEveryTurn || reg.cfg.Probe != nil || !o.class.Behavior.HandlesSocket(e.Kind) || !o.class.pace.Inline() {
		return false, false
	}
	me, ok := w.Local.(*runner)
	if !ok {
		me = &runner{reg: reg, worker: w}
		w.Local = me
	}
	reg.lives.add() // before the look at closing: who stops it waits for the lives
	a, ok := o.take(me, s)
	if !ok {
		reg.lives.done()
		return false, false
	}
	reg.busy.Add(1)
	defer o.yield(me, e.More) // also after a Goexit
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

// wakeBurst is how many connections wait for the loop when it leaves constructing to runners.
const wakeBurst = 8

// take takes the right to run turns, for an event of s, if nobody has it and nothing
// waits. a is nil if an instance has to be constructed, for which there is a slot.
func (o *Object) take(me *runner, s *socket.Socket) (a *Activation, ok bool) {
	o.mu.Lock()
	if ok = socket.Listed(s) && !o.class.reg.closing.Load(); ok {
		o.bringLocked()
		ok = o.runner == nil && o.mail.first == nil
	}
	if ok && o.act == nil {
		// Many that wake at once are woken side by side.
		ok = me.worker.Waiting < wakeBurst && o.class.reg.tryTake()
	}
	if ok {
		a = o.act
		o.runner, me.slot = me, a == nil
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
// object has something else to do.
func (o *Object) runHere(a *Activation, w *Work) bool {
	reg := o.class.reg
	if reg.cfg.EvictEveryTurn || reg.cfg.Probe != nil {
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
	defer o.yield(me, false) // also after a Goexit
	o.turn(me, a, w)
	return true
}

// yield gives back the right that Serve or runHere has taken, to a runner if there is work.
func (o *Object) yield(me *runner, more bool) {
	now := me.time(more)
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

// time is the time of the runtime's clock. Events behind which more was read may have
// that of the first of their callback: a look at the clock is a twentieth of a turn.
func (r *runner) time(more bool) time.Time {
	if r.worker == nil {
		return r.reg.cfg.Clock.Now()
	}
	if serial := r.worker.Serial; !more || r.callback != serial || r.now.IsZero() {
		r.now, r.callback = r.reg.cfg.Clock.Now(), serial
	}
	return r.now
}
