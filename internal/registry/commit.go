package registry

import (
	"context"

	"github.com/hibernate-go/hibernate/internal/gate"
	"github.com/hibernate-go/hibernate/internal/mutation"
	"github.com/hibernate-go/hibernate/internal/store"
)

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
	if err := t.act.commit(nil); err != nil {
		return err
	}
	return t.act.obj.barrier(ctx, true)
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
