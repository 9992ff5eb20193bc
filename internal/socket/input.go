package socket

import (
	"errors"
	"fmt"
	"time"

	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// The input side has one owner at a time. It is the poller's goroutine until an
// event is delivered, nobody while the event waits, and then the caller of
// Handled until it has decoded what was left and resumed the poller. An event
// that is served leaves it where it is, unless PassOn is called meanwhile.

// Input takes bytes that the poller has read.
func (s *Socket) Input(w *poll.Worker, p []byte) (more bool) {
	s.mu.Lock()
	if s.flags&discarding != 0 {
		b := s.busyLocked()
		b.discarded += len(p)
		over := b.discarded > s.cfg().LingerBytes
		s.mu.Unlock()
		if over {
			s.drop()
		}
		return !over
	}
	stop := s.flags&(cut|lost|failed|recvClose) != 0
	if !stop && s.flags&waiting != 0 {
		b := s.busyLocked()
		b.in = append(b.in, p...)
		s.mu.Unlock()
		return false
	}
	s.mu.Unlock()
	if stop {
		return true // nothing counts behind a Close or a violation
	}
	more = s.decode(w, p, false)
	s.owner.Served(w)
	return more
}

// decode takes items out of p until an event is delivered, and reports whether
// it came to the end of p without one. It keeps p only if it is the socket's own:
// a copy for each message would be 300 MiB for 64 KiB of the smallest.
//
// Pongs that follow each other are written together: 64 KiB of pings would be
// thousands of system calls, for which all other connections wait.
func (s *Socket) decode(w *poll.Worker, p []byte, own bool) (more bool) {
	for flush := false; ; {
		it, n, err := s.dec.Next(p, s.wire())
		p = p[n:]
		if flush && (err != nil || it.Kind != wire.Ping) {
			flush = false
			s.Flush()
		}
		if err != nil {
			s.fail(w, err)
			return false
		}
		switch it.Kind {
		case wire.None:
			return !s.keeps && s.dec.AtRest() || s.keep()
		case wire.Ping:
			if s.cfg().MessageRate > 0 && !s.arrived() {
				if flush {
					s.Flush()
				}
				return false
			}
			// A pong goes behind what was queued before, never inside a frame.
			flush = s.Queue(Frame{Bytes: wire.AppendFrame(nil, wire.Pong, it.Data), Unasked: true}) || flush
		case wire.Pong:
		case wire.Close:
			s.peerClosed(w, it)
			// With the answer under way, the end of the stream can wait for it.
			// Nobody may ever answer by hand, so then it is looked out for.
			return s.cfg().ManualClose
		case wire.Text, wire.Binary:
			if (s.keeps || s.cfg().MessageRate > 0) && !s.arrived() {
				return false
			}
			if it.Compressed {
				var ok bool
				if it, ok = s.inflate(w, it, p, own); !ok {
					return false
				}
			}
			if s.autoRespond(it) {
				continue
			}
			if p, own, more = s.message(w, it, p, own); !more {
				return false
			}
		}
	}
}

// autoRespond answers a message that the object need not be woken for.
func (s *Socket) autoRespond(it wire.Item) bool {
	if it.Kind != wire.Text {
		return false
	}
	frame, ok := s.owner.AutoResponse(s, it.Data)
	if ok {
		if ok, _ := s.Sendable(); ok {
			s.Emit(Frame{Bytes: frame, Unasked: true})
		}
	}
	return ok
}

// message has one message served or delivered; rest was read behind it, and own says
// whose it is. more says that left, which is rest or what is left of it, is to be decoded now.
func (s *Socket) message(w *poll.Worker, it wire.Item, rest []byte, own bool) (left []byte, _, more bool) {
	e := Event{Kind: Message, Text: it.Kind == wire.Text, Data: it.Data, More: len(rest) > 0}
	s.mu.Lock()
	switch {
	case s.flags&(cut|lost|failed) != 0:
		s.mu.Unlock()
		return nil, false, false
	case s.flags&ended != 0: // see Goodbye
		s.mu.Unlock()
		return rest, own, true
	}
	s.flags |= waiting
	if w != nil {
		s.flags |= serving
		if len(rest) > 0 {
			s.busyLocked().rest = rest
		}
		s.mu.Unlock()
		if served, kept := s.owner.Serve(w, s, e); served {
			// What was passed on is another's: serving may be set again, for the next event.
			return rest, own, kept && s.served()
		}
		s.mu.Lock()
		if s.flags&serving == 0 { // Goodbye has taken the input side
			s.mu.Unlock()
			return nil, false, false
		}
		s.flags &^= serving
		if s.busy != nil {
			s.busy.rest = nil
		}
	}
	s.keepLocked(rest, own)
	s.mu.Unlock()
	if !it.Owned {
		e.Data = append(make([]byte, 0, len(it.Data)), it.Data...)
	}
	if s.owner.Deliver(s, e) {
		return nil, false, false
	}
	s.mu.Lock()
	if s.flags&waiting == 0 { // Goodbye has taken the input side
		s.mu.Unlock()
		return nil, false, false
	}
	s.flags &^= waiting
	gone := s.flags&lost != 0
	left = s.takeInLocked()
	s.mu.Unlock()
	if gone {
		s.terminate(w)
		return nil, false, false
	}
	return left, true, true
}

// keepLocked keeps what was read behind an event that waits.
func (s *Socket) keepLocked(rest []byte, own bool) {
	if len(rest) == 0 {
		return
	}
	if !own {
		rest = append([]byte(nil), rest...)
	}
	s.busyLocked().in = rest
}

// served ends the serving of a message and reports whether to go on decoding.
func (s *Socket) served() (more bool) {
	s.mu.Lock()
	if s.flags&serving == 0 { // passed on
		s.mu.Unlock()
		return false
	}
	s.flags &^= serving | waiting
	if b := s.busy; b != nil {
		b.rest = nil
		s.restLocked()
	}
	state := s.flags & (lost | ended | cut)
	s.mu.Unlock()
	if state == lost {
		s.terminate(nil)
	}
	return state == 0
}

// PassOn takes the input side away from the goroutine that serves an event, which
// is going to wait. Handled must follow. If no event is being served it does nothing.
func (s *Socket) PassOn() {
	s.mu.Lock()
	s.passOnLocked()
	s.mu.Unlock()
}

func (s *Socket) passOnLocked() {
	if s.flags&serving == 0 {
		return
	}
	s.flags &^= serving
	if b := s.busy; b != nil && b.rest != nil {
		b.in, b.rest = append([]byte(nil), b.rest...), nil
	}
}

// tell has the last event served or delivered.
func (s *Socket) tell(w *poll.Worker, e Event) {
	if w != nil {
		if served, _ := s.owner.Serve(w, s, e); served {
			return
		}
	}
	s.owner.Deliver(s, e)
}

func (s *Socket) takeInLocked() (in []byte) {
	if s.busy != nil {
		in, s.busy.in = s.busy.in, nil
		s.restLocked()
	}
	return in
}

// Handled says that the event delivered last no longer waits: its handler has
// returned, or has let other events in. It decodes what was read behind it.
func (s *Socket) Handled() {
	s.mu.Lock()
	s.flags &^= waiting
	if s.flags&(lost|ended|cut) == lost {
		s.mu.Unlock()
		s.terminate(nil)
		return
	}
	if s.flags&(cut|ended) != 0 {
		s.mu.Unlock()
		return
	}
	rest := s.takeInLocked()
	s.mu.Unlock()
	if len(rest) == 0 || s.decode(nil, rest, true) {
		s.conn.Resume()
	}
}

// peerClosed begins or completes the closing handshake.
func (s *Socket) peerClosed(w *poll.Worker, it wire.Item) {
	s.mu.Lock()
	if s.flags&(cut|lost|failed) != 0 {
		s.mu.Unlock()
		return
	}
	parted := s.flags&ended != 0 // see Goodbye
	s.flags |= recvClose | ended | waiting
	s.closeCode = it.Code
	s.dec.Drop()
	finish := s.finishLocked()
	s.mu.Unlock()
	s.owner.Busy(1)
	defer s.owner.Busy(-1)
	if finish {
		s.finish()
	} else if s.cfg().ManualClose {
		s.awaitHandshake()
	}
	s.answerClose()
	if !parted {
		s.tell(w, s.closeEvent(Event{Kind: Close, Code: int(it.Code), Reason: it.Reason, WasClean: true}))
	}
}

// answerClose answers the peer's Close, unless the handler has to or Close was
// sent before. The answer goes behind all output of the object that is held.
func (s *Socket) answerClose() {
	s.mu.Lock()
	answer := !s.cfg().ManualClose && s.flags&(recvClose|sentClose|lost|cut) == recvClose
	if answer {
		s.flags |= sentClose
	}
	code := s.closeCode
	s.mu.Unlock()
	if answer {
		s.owner.HoldBehindTurn(s, closeFrame(code))
	}
}

// fail ends the connection for a violation of the protocol.
func (s *Socket) fail(w *poll.Worker, err error) {
	var violation *wire.Error
	if !errors.As(err, &violation) {
		violation = &wire.Error{Code: 1002, Reason: err.Error()}
	}
	if violation.Code == codeTooBig {
		err = s.cfg().tooBig(violation)
	}
	s.mu.Lock()
	if s.flags&(cut|lost|failed) != 0 {
		s.mu.Unlock()
		return
	}
	parted := s.flags&ended != 0
	s.flags |= failed | ended | waiting
	if !parted { // else the caller may be inflateAside, and the input side another's
		s.dec.Drop()
	}
	finish := s.finishLocked()
	s.mu.Unlock()
	s.owner.Busy(1)
	defer s.owner.Busy(-1)
	if finish {
		s.finish()
	}
	s.owner.Hold(s, Frame{Bytes: wire.AppendClose(nil, violation.Code, violation.Reason), Last: true})
	if !parted {
		s.tell(w, Event{Kind: Error, Err: err})
	}
}

// End is called by the poller when no input will come any more.
func (s *Socket) End(w *poll.Worker, err error) {
	s.mu.Lock()
	s.flags |= lost
	s.dec.Drop()
	s.mu.Unlock()
	s.owner.Busy(1)
	defer s.owner.Busy(-1)
	s.drop()
	s.terminate(w)
}

// terminate tells the one Close event of a lost connection, unless an event
// still waits (Handled comes back to it) or the last one has been delivered.
func (s *Socket) terminate(w *poll.Worker) {
	s.mu.Lock()
	if s.flags&(ended|waiting|cut) != 0 {
		s.mu.Unlock()
		return
	}
	s.flags |= ended | waiting
	s.mu.Unlock()
	s.tell(w, s.closeEvent(Event{Kind: Close, Code: 1006, Reason: "WebSocket disconnected without sending Close frame."}))
}

// finishLocked reports whether the caller must call finish: the peer has ended
// its side, or broken it, and our Close frame has been written.
func (s *Socket) finishLocked() bool {
	if s.flags&(recvClose|failed) == 0 || s.flags&wroteClose == 0 || s.flags&(linked|cut|lost|opened) != opened {
		return false
	}
	if b := s.busy; s.flags&writing != 0 || b != nil && len(b.out) > 0 {
		return false
	}
	s.flags |= linked | discarding
	return true
}

// finish shuts down writing and waits, for a bounded time and a bounded number
// of bytes, for the peer's end of stream, so that the peer reads our Close and
// then EOF rather than a reset.
func (s *Socket) finish() {
	s.mu.Lock()
	gone := s.goneLocked()
	s.mu.Unlock()
	if gone != nil {
		gone(true) // before the peer sees the end: nobody is to count it as silent afterwards
	}
	// A connection that cannot be shut down by half only waits.
	if err := s.conn.CloseWrite(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		s.drop()
		return
	}
	s.setDeadline(s.cfg().Linger)
	s.conn.Resume()
}

func (s *Socket) setDeadline(after time.Duration) {
	s.mu.Lock()
	b := s.busyLocked()
	if b.deadline.F == nil {
		b.deadline.F = s.expire
	}
	d := &b.deadline
	gone := s.flags&cut != 0
	s.mu.Unlock()
	if !gone {
		s.cfg().Timers.Set(d, after)
	}
}

// awaitHandshake bounds the time that one side's Close may go unanswered.
func (s *Socket) awaitHandshake() {
	if s.cfg().CloseTimeout > 0 {
		s.setDeadline(s.cfg().CloseTimeout)
	}
}

// expire ends a connection whose deadline has passed.
func (s *Socket) expire() {
	s.drop()
	s.terminate(nil)
}

// drop closes the descriptor. Its peer sees the end of the stream, or a reset
// if it was still sending.
func (s *Socket) drop() {
	s.conn.Close()
	s.mu.Lock()
	left := s.flags&lost != 0 // by the peer, or given up
	s.flags |= lost
	gone := s.goneLocked()
	b := s.busy
	s.busy = nil
	if b != nil {
		b.letGo(s.cfg())
	}
	s.mu.Unlock()
	if b != nil && b.deadline.F != nil {
		s.cfg().Timers.Clear(&b.deadline)
	}
	if gone != nil {
		gone(left)
	}
}

// Cut ends the connection at once, without Close frame and without events. Output
// that was queued is still offered to the system, not waited for.
func (s *Socket) Cut() {
	s.mu.Lock()
	s.flags |= cut
	if s.flags&writing != 0 {
		s.busyLocked().last = true // the writer drops the connection
		s.mu.Unlock()
		return
	}
	if b := s.busy; b != nil && len(b.out) > 0 && !b.full && s.flags&(opened|lost) == opened {
		b.last = true
		s.flags |= writing
		s.writeLocked(b)
		return
	}
	s.mu.Unlock()
	s.drop()
}

// String names the violation or the end for logs.
func (e Event) String() string {
	switch e.Kind {
	case Message:
		return fmt.Sprintf("message of %d bytes", len(e.Data))
	case Close:
		return fmt.Sprintf("close %d", e.Code)
	case Drain:
		return "drain"
	}
	return fmt.Sprintf("error %v", e.Err)
}
