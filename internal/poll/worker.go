package poll

import (
	"sync/atomic"
	"time"
)

// A Worker is a goroutine of the poller that makes callbacks. While a handler runs code that may take long or block, the
// connections behind its own must not wait. So it says [Worker.Enter] before and [Worker.Leave] after: if it does not come
// back for a while, or says [Worker.Detach], another goroutine goes on with the loop, and this one ends with its callback.
//
// What is only the loop's (fetched events, the reference to the connection being served, deferred flushes) belongs to
// whoever holds the token: the worker outside of Enter and Leave, and otherwise the first of its Leave and a takeover. Both
// are one compare-and-swap, so nobody acts on half of it.
//
// A nil Worker is a goroutine that may block as it likes: it is asked nothing and told nothing.
type Worker struct {
	// Local is the handlers' own, to recognise the goroutine by. It belongs to that goroutine.
	Local any
	// Waiting is how many connections wait for the callback to end, at its beginning. It belongs to its goroutine too.
	Waiting int

	loop  replacer
	token atomic.Uint64 // even: held by the worker; odd: up for grabs; tokenTaken: the loop went on without it; see tokenCall
	pace  *Pace         // of the code that runs; written before the token is put up

	// Held with the token.
	buf   []byte    // what is read into; the callback's for good once the loop is gone
	conn  *Conn     // being served; the callback's reference to it
	later []Flusher // to be flushed after the callback
}

const (
	tokenTaken = ^uint64(0)
	tokenCall  = 1 << 32 // each callback adds it, so that its turns can be told from others'
)

// replacer is the loop of a worker: replace has another goroutine go on, once the caller has taken the token.
type replacer interface{ replace(w *Worker) }

// A Flusher is something whose output was queued and not written.
type Flusher interface{ Flush() }

// Attached reports whether the goroutine still has its loop, that is, whether connections wait for it.
// It is for the worker's own goroutine, outside of Enter and Leave.
func (w *Worker) Attached() bool { return w != nil && w.token.Load() != tokenTaken }

// Enter says that code follows whose duration nobody knows. p remembers how it behaves.
func (w *Worker) Enter(p *Pace) {
	if !w.Attached() {
		return
	}
	w.pace = p
	w.token.Add(1)
}

// Leave ends what Enter began.
func (w *Worker) Leave() {
	if w == nil {
		return
	}
	if v := w.token.Load(); v&1 == 1 && v != tokenTaken {
		w.token.CompareAndSwap(v, v+1)
	}
}

// Detach hands the loop to another goroutine: the caller is about to block. Any goroutine may call it; outside of Enter and
// Leave it does nothing.
func (w *Worker) Detach() {
	if w == nil {
		return
	}
	if v := w.token.Load(); v&1 == 1 && v != tokenTaken && w.token.CompareAndSwap(v, tokenTaken) {
		w.loop.replace(w)
	}
}

// DetachSelf is Detach for the worker's own goroutine, also outside of Enter and Leave.
func (w *Worker) DetachSelf() {
	if w == nil {
		return
	}
	if v := w.token.Load(); v != tokenTaken && w.token.CompareAndSwap(v, tokenTaken) {
		w.loop.replace(w)
	}
}

// Defer has f flushed when the callback is over or the loop goes on without it. The worker must be Attached.
func (w *Worker) Defer(f Flusher) {
	if n := len(w.later); n > 0 && w.later[n-1] == f {
		return
	}
	w.later = append(w.later, f)
}

// flush writes what was deferred. The caller holds the token.
func (w *Worker) flush() {
	for i := 0; i < len(w.later); i++ {
		w.later[i].Flush()
		w.later[i] = nil
	}
	if cap(w.later) > 1024 {
		w.later = nil
	}
	w.later = w.later[:0]
}

// A Pace remembers whether code of one kind keeps loops waiting, so that it can be run elsewhere from the start.
// The zero value trusts it.
type Pace struct {
	skip    atomic.Int32 // runs still to be made elsewhere
	penalty atomic.Int32 // how many the last takeover has cost
	since   atomic.Int32 // runs on a loop since then, as far as they matter
}

const (
	minPenalty = 64
	maxPenalty = 1 << 16
	trusted    = 4096 // so many runs without a takeover, and the next one counts as the first
)

// Inline reports whether the next run may be made on a loop.
func (p *Pace) Inline() bool {
	if p.skip.Load() <= 0 {
		if p.since.Load() < trusted {
			p.since.Add(1)
		}
		return true
	}
	p.skip.Add(-1)
	return false
}

// slow notes a takeover. That a loop is not let run for a while by the system looks the same, so the first ones cost little.
func (p *Pace) slow() {
	n := int32(minPenalty)
	if p.since.Swap(0) < trusted {
		n = min(max(2*p.penalty.Load(), minPenalty), maxPenalty)
	}
	p.penalty.Store(n)
	p.skip.Store(n)
}

const (
	watchTick  = 2 * time.Millisecond
	watchCalls = 5  // ticks that one callback may take, though none of its turns takes one
	watchIdle  = 50 // ticks without a round until the watch sleeps
)
