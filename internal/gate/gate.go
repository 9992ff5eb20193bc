// Package gate decides which output may leave.
package gate

import (
	"iter"
	"sync"
)

// Seq numbers the commits of one object, from 1.
type Seq uint64

// A Gate holds an object's output until the commits before it are durable.
//
//   - Every Issue is answered by exactly one Open, Confirm or Fail, in order.
//   - Output leaves in the order of its Hold, each through one call of the
//     release function, never two at once.
//   - What a Fail finds that might not leave yet, and what comes until Forgive, is released with that error.
//
// The zero value with a release function (Init) is open.
type Gate[T any] struct {
	release  func(T, error) // immutable, like released; both are called without the lock
	released func()         // after each run of releases

	mu       sync.Mutex // guards the following; held only for arithmetic and lists
	issued   Seq        // last commit handed out
	awaited  Seq        // last one that output waits for
	durable  Seq        // this commit and all before it are on disk
	err      error      // first failed commit since the last Forgive
	held     []held[T]
	draining bool // someone is releasing; they will look again
}

// maxSpare is how much room for held output is kept.
const maxSpare = 16

type held[T any] struct {
	after Seq
	out   T
	err   error // that it is released with
}

// Init sets the function that lets output go, and one that is called after each
// run of such calls. It must be called before use.
func (g *Gate[T]) Init(release func(T, error), released func()) {
	g.release, g.released = release, released
}

// Issue announces a commit. If it is awaited, output held from now on waits for it
// and for all before it.
func (g *Gate[T]) Issue(awaited bool) Seq {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.issued++
	if awaited {
		g.awaited = g.issued
	}
	return g.issued
}

// Hold lets out go once everything awaited so far is durable: at once, on the
// caller's goroutine, if nothing is outstanding.
func (g *Gate[T]) Hold(out T) {
	g.Append(out)
	g.Drain()
}

// HoldForAll is Hold until everything issued so far is durable, awaited or not.
// What comes behind out waits with it.
func (g *Gate[T]) HoldForAll(out T) {
	g.mu.Lock()
	g.held = append(g.held, held[T]{g.issued, out, g.err})
	g.drainLocked()
}

// Append gives outs their place without letting anything go. Drain must follow.
// It is for callers whose own lock decides the order.
func (g *Gate[T]) Append(outs ...T) {
	if len(outs) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, out := range outs {
		g.held = append(g.held, held[T]{g.awaited, out, g.err})
	}
}

// TakeThrough is Append for output that may leave now. It reports whether it may;
// then the caller must let outs go and call PassedThrough, and nobody overtakes them.
func (g *Gate[T]) TakeThrough(outs []T) bool {
	g.mu.Lock()
	through := len(g.held) == 0 && !g.draining && g.durable >= g.awaited && g.err == nil
	if through {
		g.draining = true
	} else {
		for i := range outs {
			g.held = append(g.held, held[T]{g.awaited, outs[i], g.err})
		}
	}
	g.mu.Unlock()
	return through
}

// PassedThrough ends what TakeThrough has allowed.
func (g *Gate[T]) PassedThrough() {
	g.mu.Lock()
	g.draining = false
	g.drainLocked()
}

// Drain lets go what may leave, on the caller's goroutine.
func (g *Gate[T]) Drain() {
	g.mu.Lock()
	g.drainLocked()
}

// Open says that commit s and all before it are durable, and releases what
// waited for them on the caller's goroutine.
func (g *Gate[T]) Open(s Seq) {
	g.mu.Lock()
	g.confirmLocked(s)
	g.drainLocked()
}

// Confirm is Open without letting anything go. Drain must follow.
func (g *Gate[T]) Confirm(s Seq) {
	g.mu.Lock()
	g.confirmLocked(s)
	g.mu.Unlock()
}

func (g *Gate[T]) confirmLocked(s Seq) {
	if s > g.issued {
		g.mu.Unlock()
		panic("BUG: gate opened past what was issued")
	}
	g.durable = max(g.durable, s)
}

// Fail says that commit s did not become durable. What might not leave before, and
// what comes until Forgive, is released with the error.
func (g *Gate[T]) Fail(s Seq, err error) {
	g.mu.Lock()
	if g.err == nil {
		g.err = err
		for i := g.readyLocked(); i < len(g.held); i++ {
			g.held[i].err = err
		}
	}
	g.durable = max(g.durable, s)
	g.drainLocked()
}

// Forgive ends the effect of Fail, once nobody is left whose output must not leave.
func (g *Gate[T]) Forgive() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = nil
}

// Held yields what waits, in its order. The lock is held meanwhile.
func (g *Gate[T]) Held() iter.Seq[T] {
	return func(yield func(T) bool) {
		g.mu.Lock()
		defer g.mu.Unlock()
		for i := range g.held {
			if !yield(g.held[i].out) {
				return
			}
		}
	}
}

// Quiet reports whether nothing is outstanding or held.
func (g *Gate[T]) Quiet() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.durable == g.issued && len(g.held) == 0 && !g.draining
}

// readyLocked is how many of the first held wait for nothing any more.
func (g *Gate[T]) readyLocked() (n int) {
	for n < len(g.held) && (g.held[n].err != nil || g.held[n].after <= g.durable) {
		n++
	}
	return n
}

// drainLocked releases what may leave and unlocks.
func (g *Gate[T]) drainLocked() {
	if g.draining || len(g.held) == 0 {
		g.mu.Unlock()
		return
	}
	g.draining = true
	for {
		n := g.readyLocked()
		if n == 0 {
			break
		}
		ready := g.held[:n]
		g.held = g.held[n:]
		g.mu.Unlock()
		for i := range ready {
			g.release(ready[i].out, ready[i].err)
		}
		g.released()
		clear(ready)
		g.mu.Lock()
		if len(g.held) == 0 {
			g.held = nil
			if cap(ready) <= maxSpare {
				g.held = ready[:0]
			}
		}
	}
	g.draining = false
	g.mu.Unlock()
}
