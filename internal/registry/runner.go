package registry

import (
	"sync"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
)

// A runner is a goroutine that may have the right to run an object's turns. Its
// address is its identity: a reset takes the right away by forgetting it.
type runner struct {
	reg     *Registry
	obj     *Object       // to run next; handed over with wake, or when the goroutine starts
	wake    chan struct{} // ends the wait in park: obj has work, or is nil and the goroutine is to end
	resumed chan struct{} // the right is handed back to a handler after its Await; made under the object's lock
	parked  bool          // owned like obj: the goroutine exists and waits
	next    *runner       // in runners.idle
}

// runners keeps a bounded number of goroutines that have no work for a while:
// their stacks have grown to what handlers need.
type runners struct {
	reg *Registry

	mu     sync.Mutex // guards the following
	idle   *runner
	n      int
	least  int // fewest idle since the last trim
	closed bool
	trim   alarm.Deadline
	set    bool           // trim is set
	ended  sync.WaitGroup // idle goroutines; Add under mu and before closed
}

const (
	maxIdleRunners = 128
	trimRunners    = time.Second
)

func (p *runners) init(r *Registry) {
	p.reg = r
	p.trim.F = p.trimIdle
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
	p.least = min(p.least, p.n)
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

// loop runs objects until there is room for no more idle runners.
func (r *runner) loop() {
	for {
		r.run()
		// run counts the end of its work before r can be given more.
		if !r.reg.runners.park(r) {
			return
		}
		<-r.wake
		if r.obj == nil {
			r.reg.runners.ended.Done()
			return
		}
		r.reg.runners.ended.Done()
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
	normal = true
}

// park makes r idle and reports whether its goroutine is to wait for work.
func (p *runners) park(r *runner) bool {
	p.mu.Lock()
	if p.closed || p.n >= maxIdleRunners {
		p.mu.Unlock()
		return false
	}
	if r.wake == nil {
		r.wake = make(chan struct{}, 1)
	}
	r.parked = true
	p.idle, r.next = r, p.idle
	p.n++
	p.ended.Add(1)
	set := !p.set
	p.set = true
	p.mu.Unlock()
	if set {
		p.reg.timers.Set(&p.trim, trimRunners)
	}
	return true
}

// trimIdle ends the runners that had no work for a while.
func (p *runners) trimIdle() {
	p.mu.Lock()
	n := (p.least + 1) / 2
	var drop []*runner
	for range n {
		r := p.idle
		p.idle, r.next = r.next, nil
		p.n--
		drop = append(drop, r)
	}
	p.least = p.n
	p.set = p.n > 0
	again := p.set
	p.mu.Unlock()
	for _, r := range drop {
		r.wake <- struct{}{}
	}
	if again {
		p.reg.timers.Set(&p.trim, trimRunners)
	}
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
