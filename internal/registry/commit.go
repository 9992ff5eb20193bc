package registry

import (
	"context"

	"github.com/hibernate-go/hibernate/internal/gate"
	"github.com/hibernate-go/hibernate/internal/mutation"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
)

// commit ends a stretch: its writes go to the store as one, its output to the
// gate behind them. last, if any, is told behind all other output. It returns why
// nothing of this happened. It is called by t, which has ended or is about to wait.
func (a *Activation) commit(t *Turn, last *Work) error {
	o := a.obj
	a.mu.Lock()
	if a.ended != nil {
		defer a.mu.Unlock()
		return resetError(a.ended)
	}
	outs, buf, size := a.outs, a.buf, a.outSize
	clear(a.undo)
	a.outs, a.buf, a.outSize, a.undo = nil, nil, 0, a.undo[:0]
	wrote := o.commitStore(a.Store, a.strict || !a.relaxed, a.alarmChanged)
	a.strict, a.relaxed, a.alarmChanged = false, false, false
	if last != nil && last.Done != nil {
		outs = append(outs, output{work: last})
	}
	through := len(outs) > 0 && o.gate.TakeThrough(outs)
	if !through && size > 0 {
		o.undelivered.Add(size)
		o.gate.Append(output{size: size})
	}
	a.mu.Unlock()
	if through {
		o.emit(t, outs)
		o.gate.PassedThrough()
		a.recycle(outs, buf)
	} else if len(outs) > 0 || wrote {
		o.gate.Drain()
		a.recycle(outs, nil)
	}
	if wrote && o.reg.cfg.Store.Behind() {
		// A disk that does not keep up slows down those who write.
		t.me.worker.DetachSelf()
		return o.reg.cfg.Store.Throttle(context.Background())
	}
	return nil
}

// emit lets output go that has been taken through the gate. Frames of a turn that
// was served are written when everything has been taken out of what was read.
func (o *Object) emit(t *Turn, outs []output) {
	w := t.me.worker
	for i := range outs {
		out := &outs[i]
		switch {
		case out.all != nil:
			for _, s := range out.all {
				s.Emit(out.frame)
			}
		case out.sock == nil:
			o.release(*out, nil)
		case t.more && w.Attached():
			if out.sock.Queue(out.frame) {
				w.Defer(out.sock)
			}
		case len(outs) == 1:
			out.sock.Emit(out.frame)
		default:
			o.release(*out, nil)
		}
	}
	o.released()
}

// recycle keeps the memory of output that has left for the next stretch.
func (a *Activation) recycle(outs []output, buf []byte) {
	if cap(outs) > 64 {
		outs = nil
	}
	if cap(buf) > 64*socket.MaxCopied {
		buf = nil
	}
	clear(outs)
	a.mu.Lock()
	if a.outs == nil && a.ended == nil {
		a.outs, a.buf = outs[:0], buf[:0]
	}
	a.mu.Unlock()
}

// commitStore hands the writes of st over and reports whether there were any.
// With hold, output waits for them.
func (o *Object) commitStore(st *store.Object, hold, alarm bool) bool {
	if !st.Dirty() {
		return false
	}
	seq := o.gate.Issue(hold && !mutation.Gate)
	o.reg.busy.Add(1)
	begun := o.reg.cfg.Clock.Now()
	st.Commit(func(err error) { // on the store's goroutine
		defer o.reg.busy.Add(-1)
		if hold {
			o.reg.stats.gateWait.add(o.reg.cfg.Clock.Now().Sub(begun))
		}
		if err != nil {
			o.commitFailed(seq, err)
		} else {
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

// barrier waits for what output waits for, or with all also for the writes that
// hold nothing back.
func (o *Object) barrier(ctx context.Context, all bool) error {
	durable := make(chan error, 1)
	hold := o.gate.Hold
	if all {
		hold = o.gate.HoldForAll
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
	if err := t.act.commit(t, nil); err != nil {
		return err
	}
	return t.act.obj.barrier(ctx, true)
}

// Flush commits and calls done when everything before is durable, or failed.
func (t *Turn) Flush(done func(error)) error {
	if err := t.Check(); err != nil {
		return err
	}
	if err := t.act.commit(t, nil); err != nil {
		return err
	}
	t.act.obj.gate.Hold(output{done: done})
	return nil
}
