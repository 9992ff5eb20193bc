package registry

import (
	"context"
	"fmt"

	"github.com/hibernate-go/hibernate/internal/gate"
	"github.com/hibernate-go/hibernate/internal/mutation"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
)

// maxFrames is how many frames of an object may wait at its gate when a turn ends: more than thousands of clients
// await at once, and less than a second of writing.
const maxFrames = 8 << 10

// commit ends a stretch: its writes go to the store as one, its output to the
// gate behind them. last, if any, is told behind all other output. It returns why
// nothing of this happened. It is called by t, which has ended or is about to wait.
func (a *Activation) commit(t *Turn, last *Work) error {
	a.mu.Lock()
	if a.ended != nil {
		defer a.mu.Unlock()
		return resetError(a.ended)
	}
	return a.commitLocked(t, last)
}

// commitLocked is commit for an activation that lasts. It unlocks.
func (a *Activation) commitLocked(t *Turn, last *Work) error {
	o := a.obj
	outs, buf, size := a.outs, a.buf, a.outSize
	clear(a.undo)
	a.outs, a.buf, a.outSize, a.undo = a.spareOuts, a.spareBuf, 0, a.undo[:0]
	a.spareOuts, a.spareBuf = nil, nil
	wrote := a.live.commitStore(a.Store, a.strict || !a.relaxed, a.alarmChanged)
	a.strict, a.relaxed, a.alarmChanged = false, false, false
	if last != nil && last.Done != nil {
		outs = append(outs, output{work: last})
	}
	through := len(outs) > 0 && a.live.gate.TakeThrough(outs)
	if !through {
		if n := framesOf(outs); n > 0 {
			a.live.undelivered.Add(size)
			a.live.frames.Add(n)
			a.live.gate.Append(output{undelivered: size, frames: n})
		}
	}
	a.mu.Unlock()
	if through {
		a.live.emit(t, outs)
		a.live.gate.PassedThrough()
		a.recycle(outs, buf)
	} else if len(outs) > 0 || wrote {
		a.live.gate.Drain()
		a.recycle(outs, nil)
		if a.live.frames.Load() > maxFrames {
			// Whoever writes them does not keep up, or the disk: no turn follows until they have left.
			t.me.worker.DetachSelf()
			_ = a.live.barrier(context.Background(), false) // others are told of a failure
		}
	}
	if wrote && o.class.reg.cfg.Store.Behind() {
		// A disk that does not keep up slows down those who write.
		t.me.worker.DetachSelf()
		return o.class.reg.cfg.Store.Throttle(context.Background())
	}
	return nil
}

// emit lets output go that has been taken through the gate. Frames of a turn that
// was served are written when everything has been taken out of what was read.
func (l *live) emit(t *Turn, outs []output) {
	w := t.me.worker
	for i := range outs {
		out := &outs[i]
		switch {
		case out.all != nil:
			for _, s := range out.all {
				s.Emit(out.frame)
			}
		case out.sock == nil:
			l.release(*out, nil)
		case t.more && w.Attached():
			if out.sock.Queue(out.frame) {
				w.Defer(out.sock)
			}
		case len(outs) == 1:
			out.sock.Emit(out.frame)
		default:
			l.release(*out, nil)
		}
	}
	l.released()
}

// recycle keeps the memory of output that has left, or was copied, for a later stretch.
func (a *Activation) recycle(outs []output, buf []byte) {
	clear(outs)
	if cap(outs) <= 64 {
		a.spareOuts = outs[:0]
	}
	if cap(buf) <= 64*socket.MaxCopied {
		a.spareBuf = buf[:0]
	}
}

// commitStore hands the writes of st over and reports whether there were any.
// With hold, output waits for them. st must not be closed meanwhile.
func (l *live) commitStore(st *store.Object, hold, alarm bool) bool {
	if !st.Dirty() {
		return false
	}
	o := l.obj
	seq := l.gate.Issue(hold && !mutation.Gate)
	o.class.reg.busy.Add(1)
	begun := o.class.reg.cfg.Clock.Now()
	st.Commit(func(err error) { // on the store's goroutine
		defer o.class.reg.busy.Add(-1)
		now := o.class.reg.cfg.Clock.Now()
		if hold {
			o.class.reg.stats.gateWait.add(now.Sub(begun))
		}
		switch {
		case err != nil:
			o.commitFailed(l, seq, err)
		case l.frames.Load() == 0: // nothing to write, at most somebody to tell
			l.gate.Open(seq)
		default:
			l.gate.Confirm(seq)
			o.class.reg.releasers.add(l)
		}
		if alarm && err == nil {
			o.class.reg.alarms.Wake()
		}
		o.mu.Lock()
		o.settleLocked(now)
	})
	return true
}

// commitFailed drops what was held for a commit that is not on disk. A store that
// lives on has refused this object alone: it is reset (semantics 10.4).
func (o *Object) commitFailed(l *live, seq gate.Seq, err error) {
	l.gate.Fail(seq, err)
	if o.class.reg.cfg.Store.Err() != nil {
		return // the runtime is dead
	}
	o.log().Error("commit failed, object is reset", "err", err)
	if a := o.activation(); a != nil {
		o.fall(a, err, true)
	}
	l.gate.Forgive()
}

// barrier waits for what output waits for, or with all also for the writes that
// hold nothing back.
func (l *live) barrier(ctx context.Context, all bool) error {
	durable := make(chan error, 1)
	hold := l.gate.Hold
	if all {
		hold = l.gate.HoldForAll
	}
	hold(output{done: func(err error) { durable <- err }})
	select {
	case err := <-durable:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Sync commits and waits until everything is durable.
func (t *Turn) Sync(ctx context.Context) error {
	if err := t.Check(); err != nil {
		return err
	}
	t.me.worker.Detach()
	if err := t.commit(); err != nil {
		return err
	}
	return t.act.live.barrier(ctx, true)
}

// Flush commits and calls done when everything before is durable, or failed.
func (t *Turn) Flush(done func(error)) error {
	if err := t.commit(); err != nil {
		return err
	}
	t.act.live.gate.Hold(output{done: done})
	return nil
}

// commit is Activation.commit in the middle of a turn, of which another goroutine may be in a transaction.
func (t *Turn) commit() error {
	a := t.act
	a.mu.Lock()
	err := t.checkLocked()
	if err == nil && a.Store.InSavepoint() {
		err = fmt.Errorf("%w: commit inside a transaction", ErrState)
	}
	if err != nil {
		a.mu.Unlock()
		return err
	}
	return a.commitLocked(t, nil)
}

// Begin opens a savepoint in the object's storage. It is called inside Pin, so that a turn
// that can be given up has none; one that ends drops those it has, as nobody can say any more
// whether their writes are meant.
func (t *Turn) Begin() (depth int, err error) {
	t.act.mu.Lock()
	defer t.act.mu.Unlock()
	if err := t.checkLocked(); err != nil {
		return 0, err
	}
	if t.err != nil {
		return 0, t.act.obj.OutsideTurn()
	}
	return t.act.Store.Begin(), nil
}

// End closes a savepoint and those inside it, and keeps what was written or drops it. It is an
// error if the turn has ended before, and with it the savepoint.
func (t *Turn) End(depth int, keep bool) error {
	a := t.act
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.ended != nil:
		return resetError(a.ended)
	case t.err != nil:
		return a.obj.OutsideTurn()
	case keep:
		a.Store.Release(depth)
	default:
		a.Store.Rollback(depth)
	}
	return nil
}

// returnedLocked says that the handler of t has returned: its context ends, and so do transactions that
// goroutines of its own are still in.
func (t *Turn) returnedLocked(cause error) {
	if t.pinned > 0 && t.err == nil {
		t.act.Store.Rollback(1)
	}
	t.endLocked(cause)
}
