package registry

import (
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/socket"
)

// pulseBatch is how many sockets are asked or judged before others of the timer's
// calls have their turn.
const pulseBatch = 256

// A pulse asks silent peers whether they are there, for all sockets with one
// deadline. In each interval it walks twice over the shards, one at a time, so that
// the pings are spread over the interval: one walk asks, the other, a timeout
// behind, judges. It wakes nobody; what it finds dead is an event like every loss.
//
// Its fields are owned by the deadline's call, which is never made twice at once.
type pulse struct {
	reg      *Registry // immutable, like the next two
	step     time.Duration
	timeout  time.Duration
	deadline alarm.Deadline

	ask, judge walk
	left       []*socket.Socket // of the shard that is being walked over
	leftOf     *walk
	leftLate   bool
}

// A walk is one way round the shards.
type walk struct {
	due   time.Time // of the next shard
	shard int
}

// startPulse begins to ask, if that is wanted.
func (r *Registry) startPulse() {
	if r.cfg.PingInterval <= 0 {
		return
	}
	p := &pulse{reg: r, step: max(r.cfg.PingInterval/shardCount, 1), timeout: r.cfg.PongTimeout}
	p.deadline.F = p.beat
	now := r.cfg.Clock.Now()
	p.ask.due, p.judge.due = now.Add(p.step), now.Add(p.step).Add(p.timeout)
	r.timers.Set(&p.deadline, p.step)
}

// beat does the batch that is due and sets the next.
func (p *pulse) beat() {
	now := p.reg.cfg.Clock.Now()
	if len(p.left) == 0 {
		p.pick(now)
	}
	n := min(len(p.left), pulseBatch)
	for i, s := range p.left[:n] {
		switch {
		case p.leftOf == &p.ask:
			s.Ask()
		case s.Judge(p.leftLate):
			p.reg.stats.dead.Add(1)
		}
		p.left[i] = nil
	}
	if p.left = p.left[n:]; len(p.left) > 0 {
		p.reg.timers.Set(&p.deadline, time.Millisecond)
		return
	}
	p.left = nil
	next := p.ask.due
	if p.judge.due.Before(next) {
		next = p.judge.due
	}
	p.reg.timers.Set(&p.deadline, max(next.Sub(now), 0))
}

// pick takes the sockets of the shard whose turn it is. A walk that is behind by more
// than a round, because the machine slept, begins where it is; its verdicts are late.
func (p *pulse) pick(now time.Time) {
	w := &p.ask
	if p.judge.due.Before(w.due) {
		w = &p.judge
	}
	late := now.Sub(w.due)
	if late < 0 {
		return
	}
	p.leftOf, p.leftLate = w, late > p.timeout
	sh := &p.reg.shards[w.shard]
	sh.mu.Lock()
	objects := sh.objects.list()
	sh.mu.Unlock()
	for _, o := range objects {
		o.mu.Lock()
		for s := range o.sockets.OldestFirst() {
			p.left = append(p.left, s)
		}
		o.mu.Unlock()
	}
	w.shard = (w.shard + 1) % shardCount
	w.due = w.due.Add(p.step)
	if late > p.step*shardCount {
		// Both, or what was just asked would be judged by the old clock.
		p.ask.due, p.judge.due = now.Add(p.step), now.Add(p.step).Add(p.timeout)
		p.judge.shard = p.ask.shard
	}
}
