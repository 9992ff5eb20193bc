package socket

import "github.com/hibernate-go/hibernate/internal/wire"

// Goodbye sends s a Close frame for a runtime that ends, and has s read on to the peer's answer: messages on the way
// there are dropped, and the owner is told nothing more. It does not block.
//
// It reports whether an answer is to be waited for. Then gone is called once, from any goroutine: with true when the
// peer has answered or has gone by itself, with false when s was cut.
func (s *Socket) Goodbye(code uint16, reason string, gone func(answered bool)) bool {
	s.mu.Lock()
	if s.flags&(linked|lost|cut) != 0 {
		s.mu.Unlock()
		return false
	}
	// Nobody has the input side while an event waits, and Handled leaves it alone from now on. Nothing counts behind a
	// Close or a violation.
	take := s.flags&(waiting|recvClose|failed) == waiting
	s.passOnLocked()
	s.flags = s.flags&^waiting | ended
	s.busyLocked().gone = gone
	s.mu.Unlock()
	if s.StartClose() {
		s.Emit(Frame{Bytes: wire.AppendClose(nil, code, reason), Last: true})
	}
	if !take {
		return true
	}
	s.mu.Lock()
	rest := s.takeInLocked()
	s.mu.Unlock()
	if len(rest) == 0 || s.decode(nil, rest, true) {
		s.conn.Resume()
	}
	return true
}

// goneLocked is who has to be told that nothing will come of s any more, or nil.
func (s *Socket) goneLocked() func(answered bool) {
	if s.busy == nil || s.busy.gone == nil {
		return nil
	}
	gone := s.busy.gone
	s.busy.gone = nil
	return gone
}
