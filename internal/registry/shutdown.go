package registry

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hibernate-go/hibernate/internal/socket"
)

// Drain stops alarms, refuses new work and waits until what is under way has ended and its output may leave, or ctx or
// the registry has ended.
func (r *Registry) Drain(ctx context.Context) error {
	ctx, stop := r.alive(ctx)
	defer stop()
	r.closing.Store(true)
	r.alarms.Stop()
	select {
	case <-r.lives.zero():
	case <-ctx.Done():
		return fmt.Errorf("turns were still running: %w", context.Cause(ctx))
	}
	r.each(func(o *Object) {
		if l := o.outlet(); l != nil && !l.gate.Quiet() && ctx.Err() == nil {
			_ = l.barrier(ctx, true) // a failed commit has been told where it failed
		}
	})
	if ctx.Err() != nil {
		return fmt.Errorf("writes were still on their way to the disk: %w", context.Cause(ctx))
	}
	return nil
}

// alive is a context that ends with ctx and with the registry.
func (r *Registry) alive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(r.life, func() { cancel(context.Cause(r.life)) })
	return ctx, func() { stop(); cancel(nil) }
}

// A Farewell is how sockets are closed when a runtime ends.
type Farewell struct {
	Code   uint16
	Reason string
	// Spread is the time over which the Close frames leave, so that those who come back do not come all at once. It is
	// shortened to a millisecond for each socket, and to half of the time that a context leaves.
	Spread time.Duration
}

// farewellStep is the mean time between two batches of Close frames.
const farewellStep = 10 * time.Millisecond

// Farewell closes every socket, without telling its object, and waits until the peers have answered or ctx or the
// registry has ended. It returns how many were cut instead, and why.
func (r *Registry) Farewell(ctx context.Context, f Farewell) (cut int, err error) {
	ctx, stop := r.alive(ctx)
	defer stop()
	all := r.detach()
	defer func() {
		for _, s := range all {
			s.Owner().(*Object).countSockets(-1)
		}
	}()
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })

	spread := min(f.Spread, time.Duration(len(all))*time.Millisecond)
	if end, ok := ctx.Deadline(); ok {
		spread = min(spread, time.Until(end)/2)
	}
	batches := max(1, int(spread/farewellStep))
	var told ward
	for i := range batches {
		if i > 0 {
			r.pause(ctx, time.Duration((0.5+rand.Float64())*float64(farewellStep)))
		}
		for _, s := range all[len(all)*i/batches : len(all)*(i+1)/batches] {
			if told.add(); !s.Goodbye(f.Code, f.Reason, told.gone) {
				told.gone(true)
			}
		}
	}
	select {
	case <-told.empty():
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	cut = told.silent()
	for _, s := range all {
		s.Cut()
	}
	return cut, err
}

// detach takes the sockets of all objects.
func (r *Registry) detach() (all []*socket.Socket) {
	r.each(func(o *Object) { all = append(all, o.detachSockets()...) })
	return all
}

// pause waits for d by the registry's clock, or until ctx ends.
func (r *Registry) pause(ctx context.Context, d time.Duration) {
	if ctx.Err() != nil {
		return
	}
	over := make(chan struct{})
	t := r.cfg.Clock.AfterFunc(d, func() { close(over) })
	select {
	case <-over:
	case <-ctx.Done():
		t.Stop()
	}
}

// A ward counts sockets whose peers have been told and have not answered.
type ward struct {
	mu     sync.Mutex // guards the following
	n      int        // have not answered
	cut    int        // never will
	nobody chan struct{}
}

func (w *ward) add() {
	w.mu.Lock()
	w.n++
	w.mu.Unlock()
}

// gone is called once for each add.
func (w *ward) gone(answered bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n--
	if !answered {
		w.cut++
	}
	if w.n == 0 && w.nobody != nil {
		close(w.nobody)
		w.nobody = nil
	}
}

// empty is closed when everybody is gone. It is called once, behind the last add.
func (w *ward) empty() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	nobody := make(chan struct{})
	if w.n == 0 {
		close(nobody)
	} else {
		w.nobody = nobody
	}
	return nobody
}

// silent is how many have not answered.
func (w *ward) silent() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n + w.cut
}

// Kill ends everything at once: instances, sockets, held output. It is for
// Close and for a store that died. Work that was queued fails with err.
func (r *Registry) Kill(err error) {
	r.closing.Store(true)
	r.end(err)
	r.alarms.Stop()
	r.each(func(o *Object) { o.kill(err) })
	r.timers.Stop()
}
