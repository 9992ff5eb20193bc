package socket

import "github.com/hibernate-go/hibernate/internal/wire"

// A peer that is silent is asked with a ping whether it is there (RFC 6455 §5.5.2).
// Whatever it sends is an answer. The registry calls Ask of each socket once in an
// interval, and Judge some time later; between the two a socket keeps one bit, and
// poll.Conn another.

// unaskable are the states in which a ping cannot be sent or its answer not be
// seen: an event that waits keeps input from being read, and what a peer does that
// is slow or closing has deadlines of its own.
const unaskable = waiting | recvClose | sentClose | wroteClose | lost | failed | cut | ended | discarding

// Ask sends a ping to a peer that was not heard of since the last Ask.
func (s *Socket) Ask() {
	heard := s.conn.Heard()
	s.mu.Lock()
	s.flags &^= asked // a question that a late Judge was to forget
	ask := !heard && s.flags&(unaskable|opened) == opened && (s.busy == nil || !s.busy.full)
	if ask {
		s.flags |= asked
	}
	s.mu.Unlock()
	if ask {
		s.Emit(Frame{Bytes: pingFrame, Unasked: true})
	}
}

var pingFrame = wire.AppendFrame(nil, wire.Ping, nil)

// Judge ends the connection if its peer was asked and not heard of since, as if it
// had been lost. With late, which says that the time may have passed while nobody
// could read, it only forgets the question.
func (s *Socket) Judge(late bool) (dead bool) {
	s.mu.Lock()
	dead = s.flags&asked != 0
	s.flags &^= asked
	dead = dead && !late && s.flags&unaskable == 0 && (s.busy == nil || !s.busy.full)
	s.mu.Unlock()
	if dead = dead && !s.conn.Heard(); dead {
		s.drop()
		s.terminate(nil)
	}
	return dead
}
