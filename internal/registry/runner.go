package registry

import (
	"sync"

	"github.com/hibernate-go/hibernate/internal/poll"
)

// A runner is a goroutine that may have the right to run an object's turns. Its
// address is its identity: a reset takes the right away by forgetting it.
type runner struct {
	reg     *Registry
	obj     *Object       // to run next; set by start before the goroutine begins or is woken
	wake    chan struct{} // ends the wait in park: obj has work, or is nil and the goroutine is to end
	resumed chan struct{} // the right is handed back to a handler after its Await; made under the object's lock
	parked  bool          // owned like obj: the goroutine exists and waits
	slot    bool          // it may construct; owned by whoever started it
	next    *runner       // in runners.idle
	held    *Object       // whose right Serve has; owned by the goroutine
	worker  *poll.Worker  // immutable; whose goroutine it is, and connections may wait for; nil: nobody does
}

// maxIdleRunners is how many goroutines wait for work, for good. Their stacks have
// grown to what handlers need: growing a fresh one for a turn that reads storage
// was a seventh of its CPU.
const maxIdleRunners = 8

// runners keeps goroutines that have no work.
type runners struct {
	reg *Registry // immutable

	mu     sync.Mutex // guards the following
	idle   *runner
	n      int // in idle
	closed bool
	ended  sync.WaitGroup // parked goroutines; Add under mu and before closed
}

// get is a runner without work. It takes no other lock.
func (p *runners) get() *runner {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.idle
	if r == nil {
		return &runner{reg: p.reg}
	}
	p.idle, r.next = r.next, nil
	p.n--
	return r
}

// start has r run the turns of o. A nil r does nothing.
func (r *runner) start(o *Object) {
	if r == nil {
		return
	}
	r.reg.lives.add()
	r.reg.busy.Add(1)
	r.obj = o
	if r.parked {
		r.wake <- struct{}{}
		return
	}
	go r.loop()
}

// loop runs objects until it is not needed any more.
func (r *runner) loop() {
	if p := r.reg.cfg.Probe; p != nil {
		p.label()
	}
	for {
		r.run()
		if !r.reg.runners.park(r) {
			return
		}
		<-r.wake
		r.reg.runners.ended.Done()
		if r.obj == nil {
			return
		}
	}
}

// run runs the turns of one object until there is no work left or the right to do
// so is gone.
func (r *runner) run() {
	normal := false
	defer func() {
		if !normal { // Goexit in user code: this goroutine ends, the object goes on
			go r.loop()
			return
		}
		r.obj = nil
		r.reg.busy.Add(-1)
		r.reg.lives.done()
	}()
	for r.obj.step(r) {
	}
	r.dropSlot()
	normal = true
}

// park makes r idle and reports whether its goroutine is to wait for work.
func (p *runners) park(r *runner) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.n >= maxIdleRunners {
		return false
	}
	if r.wake == nil {
		r.wake = make(chan struct{}, 1)
	}
	r.parked = true
	p.idle, r.next = r, p.idle
	p.n++
	p.ended.Add(1)
	return true
}

// close ends the idle runners and waits for them. Others end with their work.
func (p *runners) close() {
	p.mu.Lock()
	p.closed = true
	idle := p.idle
	p.idle, p.n = nil, 0
	p.mu.Unlock()
	for r := idle; r != nil; {
		next := r.next
		r.next = nil
		r.wake <- struct{}{}
		r = next
	}
	p.ended.Wait()
}
