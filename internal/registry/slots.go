package registry

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// slots are the rights to run a constructor. An object that finds none free waits in
// line without a goroutine, so that a storm of events for objects that sleep costs a
// place in the line for each and no more. One usher waits for all that are in line,
// in the order they came; it waits among the constructors that come back from an
// Await, whose goroutines are there anyway.
type slots struct {
	sem *semaphore.Weighted

	mu       sync.Mutex // guards the following, and Object.inLine
	line     []*Object
	ushering bool // there is an usher
}

func newSlots(n int64) *semaphore.Weighted { return semaphore.NewWeighted(n) }

// take takes a slot for the constructor of o and reports whether there was one. If
// not, o is in line, and is admitted later.
func (r *Registry) take(o *Object) bool {
	s := &r.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ushering && s.sem.TryAcquire(1) {
		return true
	}
	if o.inLine {
		return false
	}
	o.inLine = true
	s.line = append(s.line, o)
	r.lives.add()
	r.busy.Add(1)
	if !s.ushering {
		s.ushering = true
		go r.usher()
	}
	return false
}

// tryTake takes a slot if there is one and nobody is in line.
func (r *Registry) tryTake() bool {
	s := &r.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ushering && s.sem.TryAcquire(1)
}

// takeSlot waits for a slot.
func (r *Registry) takeSlot() {
	if err := r.slots.sem.Acquire(context.Background(), 1); err != nil {
		panic("BUG: acquire without a deadline failed: " + err.Error())
	}
}

// freeSlot gives a slot back.
func (r *Registry) freeSlot() { r.slots.sem.Release(1) }

// usher admits the objects in line, each with a slot, until there are none.
func (r *Registry) usher() {
	s := &r.slots
	for {
		r.takeSlot()
		s.mu.Lock()
		if len(s.line) == 0 {
			s.line, s.ushering = nil, false
			s.mu.Unlock()
			r.freeSlot()
			return
		}
		o := s.line[0]
		s.line[0] = nil
		s.line = s.line[1:]
		o.inLine = false
		s.mu.Unlock()
		if !o.admit() {
			r.freeSlot()
		}
		r.busy.Add(-1)
		r.lives.done()
	}
}

// admit has the object, for which a slot was taken, run, and reports whether it needs
// the slot: its work may have been taken back.
func (o *Object) admit() (needed bool) {
	o.mu.Lock()
	o.bringLocked()
	var run *runner
	empty := o.mail.first == nil
	if o.runner == nil && !empty {
		run = o.class.reg.runners.get()
		needed = o.constructsLocked()
		run.slot = needed
		o.runner = run
	}
	o.mu.Unlock()
	run.start(o)
	if empty {
		o.settle()
	}
	return needed
}

// constructsLocked reports whether the first work needs an instance that is not there.
func (o *Object) constructsLocked() bool {
	w := o.mail.first
	return o.act == nil && w.resume == nil && w.internal == nil && w.only == nil && w.Cause != CauseEvict
}

// dropSlot gives r's slot back, if it has one.
func (r *runner) dropSlot() {
	if r.slot {
		r.slot = false
		r.reg.freeSlot()
	}
}
