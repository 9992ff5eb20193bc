package socket

import (
	"fmt"
	"sync"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// uncounted is how many bytes of a message that is not complete a connection may
// keep without the Pool's knowing.
const uncounted = 4 << 10

// codePolicy is the close code for a peer that is slower or faster than it may be.
const codePolicy = 1008

// A Patience is how long the peers of a runtime may take to complete a message they
// have begun. All have the same time, so that those who have begun are in the order
// of their deadlines, and one alarm.Deadline serves them.
type Patience struct {
	timers   *alarm.Timers // immutable, like limit
	limit    time.Duration
	deadline alarm.Deadline

	mu          sync.Mutex // guards the following and what is in every begun; it is taken under Socket.mu
	first, last *begun
	armed       bool // deadline is set, or about to be
}

// A begun is a message that has begun.
type begun struct {
	s          *Socket   // immutable
	due        time.Time // immutable
	prev, next *begun
	listed     bool
}

// NewPatience is a Patience of d for each message.
func NewPatience(timers *alarm.Timers, d time.Duration) *Patience {
	p := &Patience{timers: timers, limit: d}
	p.deadline.F = p.expire
	return p
}

func (p *Patience) new(s *Socket) *begun { return &begun{s: s, due: p.timers.Now().Add(p.limit)} }

// begin enters b, and reports whether the deadline must be set.
func (p *Patience) begin(b *begun) (arm bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b.prev, b.listed = p.last, true
	if p.last != nil {
		p.last.next = b
	} else {
		p.first = b
	}
	p.last = b
	arm = !p.armed
	p.armed = true
	return arm
}

// end takes b out, if it is in.
func (p *Patience) end(b *begun) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeLocked(b)
}

func (p *Patience) removeLocked(b *begun) {
	if !b.listed {
		return
	}
	if b.prev != nil {
		b.prev.next = b.next
	} else {
		p.first = b.next
	}
	if b.next != nil {
		b.next.prev = b.prev
	} else {
		p.last = b.prev
	}
	b.prev, b.next, b.listed = nil, nil, false
}

// expire ends the connections whose time is up.
func (p *Patience) expire() {
	now := p.timers.Now()
	var late []*begun
	p.mu.Lock()
	for b := p.first; b != nil && !b.due.After(now); b = p.first {
		p.removeLocked(b)
		late = append(late, b)
	}
	var next time.Duration
	if p.armed = p.first != nil; p.armed {
		next = p.first.due.Sub(now)
	}
	armed := p.armed
	p.mu.Unlock()
	for _, b := range late {
		b.s.tooLate(b)
	}
	if armed {
		p.timers.Set(&p.deadline, next)
	}
}

// tooLate ends the connection if b is still what it has begun. It is not called by
// the input side, and leaves the decoder alone; who decodes finds the socket failed.
func (s *Socket) tooLate(b *begun) {
	s.mu.Lock()
	if s.flags&(cut|lost|failed|ended|waiting|recvClose) != 0 || s.busy == nil || s.busy.x == nil || s.busy.x.begun != b {
		s.mu.Unlock()
		return
	}
	s.busy.x.begun = nil
	s.flags |= failed | ended | waiting
	finish := s.finishLocked()
	s.mu.Unlock()
	s.owner.Busy(1)
	defer s.owner.Busy(-1)
	if finish {
		s.finish()
	}
	most := s.cfg().Patience.limit
	v := &wire.Error{Code: codePolicy, Reason: fmt.Sprintf("message took longer than %v", most)}
	err := s.cfg().Refused.Refuse(limit.MessageTime, most.Milliseconds(), most.Milliseconds()+1)
	s.owner.Hold(s, Frame{Bytes: wire.AppendClose(nil, v.Code, v.Reason), Last: true})
	s.owner.Deliver(s, Event{Kind: Error, Err: &overLimit{v, err}})
}

// keep is called by the input side when all input is decoded, or a message was
// completed, and there is or was one that is not complete: it is counted, and has to
// be completed in time. It reports whether to go on.
func (s *Socket) keep() (more bool) {
	n, rest := int64(s.dec.Buffered()), s.dec.AtRest()
	if n <= uncounted {
		n = 0
	}
	p := s.cfg().Patience
	var b *begun
	if !rest && !s.keeps && p != nil {
		b = p.new(s)
	}
	s.keeps = !rest
	s.mu.Lock()
	if s.flags&(cut|lost) != 0 {
		s.mu.Unlock()
		return false
	}
	x := s.extraLocked()
	var over int64
	if n > x.in && s.cfg().Pool.full(n-x.in) {
		over = s.cfg().Pool.Len() + n - x.in
	}
	x.in = n
	arm := false
	switch {
	case b != nil:
		x.begun = b
		arm = p.begin(b)
	case rest && x.begun != nil:
		p.end(x.begun)
		x.begun = nil
	}
	s.chargeLocked(s.busy)
	s.restLocked()
	s.mu.Unlock()
	if arm {
		p.timers.Set(&p.deadline, p.limit)
	}
	if over > 0 {
		s.Refuse(limit.Buffered, codeTryAgain, s.cfg().Pool.Limit, over)
		return false
	}
	return true
}

// arrived is called by the input side for each message and each ping, and reports
// whether to go on.
func (s *Socket) arrived() (more bool) {
	if s.keeps && !s.keep() {
		return false
	}
	rate := s.cfg().MessageRate
	if rate <= 0 || s.allowed(rate) {
		return true
	}
	s.Refuse(limit.MessageRate, codePolicy, int64(rate), int64(rate)+1)
	return false
}

// allowed takes one from a bucket that holds as many tokens as come in a second. The
// bucket is the time at which it is full again.
func (s *Socket) allowed(rate int) bool {
	now := s.cfg().Timers.Now().UnixNano()
	every := int64(time.Second) / int64(rate)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flags&(cut|lost) != 0 {
		return true
	}
	x := s.extraLocked()
	full := max(x.full, now)
	if full-now > int64(time.Second)-every {
		return false
	}
	x.full = full + every
	return true
}

// Refuse ends the connection because of a limit. It is called by the input side, also
// inside Owner.Deliver, which must then report true.
func (s *Socket) Refuse(id limit.ID, code uint16, most, got int64) {
	err := s.cfg().Refused.Refuse(id, most, got)
	s.fail(nil, &overLimit{&wire.Error{Code: code, Reason: err.Error()}, err})
}
