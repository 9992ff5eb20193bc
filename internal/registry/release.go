package registry

import "sync"

// maxReleasers is how many goroutines release output at once, however many objects have some.
const maxReleasers = 16

// releasers write what has waited for commits, beside the store's goroutine, which answers everybody: what one object
// sends to thousands keeps no other object's output waiting.
type releasers struct {
	mu      sync.Mutex // guards the following
	queue   []*live    // in order of add; each once
	running int

	ended sync.WaitGroup // for close
}

// add has the gate of l drained.
func (p *releasers) add(l *live) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.queued {
		return
	}
	l.queued = true
	l.obj.class.reg.busy.Add(1)
	p.queue = append(p.queue, l)
	if p.running < maxReleasers {
		p.running++
		p.ended.Go(p.run)
	}
}

// run drains gates until there are no more.
func (p *releasers) run() {
	for l := p.next(); l != nil; l = p.next() {
		l.gate.Drain()
		l.obj.settle()
		l.obj.class.reg.busy.Add(-1)
	}
}

// next takes a gate to drain. Where there is none, its caller ends.
func (p *releasers) next() *live {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		p.queue = nil
		p.running--
		return nil
	}
	l := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	l.queued = false // what comes from now on may not be seen any more
	return l
}

// close waits for what is being released. Nothing is added any more.
func (p *releasers) close() { p.ended.Wait() }
