// Package alarm knows what time it is and what is due.
//
// It has three parts: a Clock that tests can replace, Timers (any number of
// deadlines behind one timer of the clock), and a Scheduler that runs the
// alarms which objects keep in storage.
package alarm

import (
	"sync"
	"time"
)

// A Clock tells the time and calls back later. Its methods are safe for
// concurrent use.
type Clock interface {
	// Now is the current wall-clock time.
	Now() time.Time
	// AfterFunc calls f once, d from now, on a goroutine of the clock's choice.
	AfterFunc(d time.Duration, f func()) Timer
}

// A Timer is one pending call of a Clock.
type Timer interface {
	// Stop prevents the call and reports whether it was still pending.
	Stop() bool
}

// Real is the system's clock.
type Real struct{}

// Now is time.Now.
func (Real) Now() time.Time { return time.Now() }

// AfterFunc is time.AfterFunc.
func (Real) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }

// Fake is a clock that moves only when told to.
type Fake struct {
	mu     sync.Mutex // guards the following; not held while a call runs
	now    time.Time
	timers []*fakeTimer
	seq    uint64
}

type fakeTimer struct {
	c   *Fake
	at  time.Time
	seq uint64 // breaks ties: first set, first called
	f   func()
}

// NewFake returns a clock that stands at t.
func NewFake(t time.Time) *Fake { return &Fake{now: t} }

// Now is the time the clock stands at.
func (c *Fake) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc calls f from a later Advance. A d of zero or less is due at once,
// and still waits for an Advance.
func (c *Fake) AfterFunc(d time.Duration, f func()) Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	t := &fakeTimer{c: c, at: c.now.Add(max(d, 0)), seq: c.seq, f: f}
	c.timers = append(c.timers, t)
	return t
}

func (t *fakeTimer) Stop() bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return t.c.removeLocked(t)
}

func (c *Fake) removeLocked(t *fakeTimer) bool {
	for i, o := range c.timers {
		if o == t {
			c.timers = append(c.timers[:i], c.timers[i+1:]...)
			return true
		}
	}
	return false
}

func (c *Fake) firstLocked() *fakeTimer {
	var first *fakeTimer
	for _, t := range c.timers {
		if first == nil || t.at.Before(first.at) || t.at.Equal(first.at) && t.seq < first.seq {
			first = t
		}
	}
	return first
}

// Next is when the earliest pending call is due.
func (c *Fake) Next() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.firstLocked(); t != nil {
		return t.at, true
	}
	return time.Time{}, false
}

// Advance moves the clock by d and makes, in order and on the caller's
// goroutine, every call that falls due on the way, also those that such a call
// sets up.
func (c *Fake) Advance(d time.Duration) {
	c.mu.Lock()
	end := c.now.Add(d)
	for {
		t := c.firstLocked()
		if t == nil || t.at.After(end) {
			break
		}
		c.removeLocked(t)
		if t.at.After(c.now) {
			c.now = t.at
		}
		c.mu.Unlock()
		t.f()
		c.mu.Lock()
	}
	if end.After(c.now) {
		c.now = end
	}
	c.mu.Unlock()
}
