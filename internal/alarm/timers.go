package alarm

import (
	"container/heap"
	"sync"
	"time"
)

// Timers keeps any number of deadlines behind one timer of its clock.
type Timers struct {
	clock Clock

	mu      sync.Mutex // guards the following and every Deadline's fields; not held while a call runs
	due     deadlines
	timer   Timer
	armed   time.Time // what timer is set for; zero: no timer
	stopped bool
}

// A Deadline is one entry of a Timers. The zero value with F set is ready. It
// may be set, moved and cleared any number of times, and must not be copied.
type Deadline struct {
	F func() // called once per Set, must not block; immutable after the first Set

	at    time.Time
	index int // place in the heap + 1; 0: not set
}

// NewTimers returns an empty set of deadlines on clock.
func NewTimers(clock Clock) *Timers { return &Timers{clock: clock} }

// Now is the time by the clock.
func (t *Timers) Now() time.Time { return t.clock.Now() }

// Set makes d due after the given time from now, instead of any earlier setting.
func (t *Timers) Set(d *Deadline, after time.Duration) {
	at := t.clock.Now().Add(after)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return
	}
	d.at = at
	if d.index == 0 {
		heap.Push(&t.due, d)
	} else {
		heap.Fix(&t.due, d.index-1)
	}
	t.armLocked()
}

// Clear forgets d and reports whether it was still set.
func (t *Timers) Clear(d *Deadline) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d.index == 0 {
		return false
	}
	heap.Remove(&t.due, d.index-1)
	return true
}

// Stop forgets every deadline; later Sets do nothing.
func (t *Timers) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	for _, d := range t.due {
		d.index = 0
	}
	t.due = nil
	if t.timer != nil {
		t.timer.Stop()
		t.timer, t.armed = nil, time.Time{}
	}
}

// armLocked sees to it that the clock calls no later than the first deadline.
// A timer that is too early is left alone: it finds nothing due and arms again.
func (t *Timers) armLocked() {
	if len(t.due) == 0 {
		return
	}
	first := t.due[0].at
	if t.timer != nil {
		if !first.Before(t.armed) {
			return
		}
		t.timer.Stop()
	}
	t.armed = first
	t.timer = t.clock.AfterFunc(first.Sub(t.clock.Now()), t.fire)
}

func (t *Timers) fire() {
	now := t.clock.Now()
	t.mu.Lock()
	t.timer, t.armed = nil, time.Time{}
	for len(t.due) > 0 && !t.due[0].at.After(now) {
		d := heap.Pop(&t.due).(*Deadline)
		t.mu.Unlock()
		d.F()
		t.mu.Lock()
	}
	t.armLocked()
	t.mu.Unlock()
}

// deadlines is a heap by time; each entry knows its place.
type deadlines []*Deadline

func (h deadlines) Len() int           { return len(h) }
func (h deadlines) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h deadlines) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}
func (h *deadlines) Push(x any) {
	d := x.(*Deadline)
	*h = append(*h, d)
	d.index = len(*h)
}
func (h *deadlines) Pop() any {
	old := *h
	d := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	d.index = 0
	return d
}
