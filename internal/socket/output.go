package socket

import (
	"github.com/hibernate-go/hibernate/internal/wire"
)

// writevMax is how many frames go into one system call.
const writevMax = 64

// Sendable reports whether a send makes sense now. To a connection that was lost
// or broken by its peer it silently does not; after Close it is ErrClosed.
func (s *Socket) Sendable() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flags&sentClose != 0 {
		return false, ErrClosed
	}
	return s.flags&(lost|failed|cut) == 0, nil
}

// StartClose marks s as closed from this side and reports whether a Close frame
// is to be sent: false if it was closed before, or the connection is gone.
func (s *Socket) StartClose() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flags&(sentClose|lost|failed|cut) != 0 {
		return false
	}
	s.flags |= sentClose
	return true
}

// UndoClose takes back a StartClose whose frame has not been emitted. Another
// Close frame may have been meanwhile, that of a violation.
func (s *Socket) UndoClose() {
	s.mu.Lock()
	if s.flags&slow == 0 {
		s.flags &^= sentClose
	}
	s.mu.Unlock()
	s.answerClose()
}

// Emit queues f and sends what can be sent. It is called once f may leave.
func (s *Socket) Emit(f Frame) {
	if s.Queue(f) {
		s.Flush()
	}
}

// Queue appends f to the output and reports whether a Flush is needed. Nothing
// follows a Close frame, and nothing goes to a connection that is gone.
func (s *Socket) Queue(f Frame) bool {
	s.mu.Lock()
	if s.flags&(wroteClose|lost|cut) != 0 {
		s.mu.Unlock()
		return false
	}
	b := s.busyLocked()
	if f.Last {
		s.flags |= wroteClose
	} else if s.tooMuchLocked(b, len(f.Bytes)) {
		return s.overflow(f)
	}
	s.appendLocked(b, f)
	flush := s.flags&opened != 0 && !b.writing && !b.full
	s.mu.Unlock()
	return flush
}

func (s *Socket) appendLocked(b *busy, f Frame) {
	b.out = append(b.out, f.Bytes)
	b.outSize += int64(len(f.Bytes))
	if b.full {
		s.stuckLocked(b)
	}
}

// Buffered is the number of bytes accepted for sending that the system has not
// taken yet.
func (s *Socket) Buffered() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy == nil {
		return 0
	}
	return s.busy.outSize
}

// Flush writes queued output until it is gone or the peer's window is full. One
// caller writes at a time; the others leave it to that one.
func (s *Socket) Flush() {
	s.mu.Lock()
	if s.flags&(lost|ended|cut) == lost {
		s.mu.Unlock()
		s.conn.Close()
		s.terminate()
		return
	}
	b := s.busy
	if b == nil || b.writing || b.full || s.flags&opened == 0 {
		s.mu.Unlock()
		return
	}
	b.writing = true
	for len(b.out) > 0 && !b.full {
		batch := b.out[:min(len(b.out), writevMax)]
		size := 0
		for _, f := range batch {
			size += len(f)
		}
		b.batch = len(batch)
		s.mu.Unlock()
		n, err := s.write(batch)
		s.mu.Lock()
		if err != nil || s.flags&lost != 0 || s.flags&cut != 0 && !b.last {
			// The reading side meets the same end, behind what is still unread.
			b.out, b.outSize = nil, 0
			s.flags |= wroteClose
			break
		}
		b.full = n < size
		b.outSize -= int64(n)
		for len(b.out) > 0 && n >= len(b.out[0]) {
			n -= len(b.out[0])
			b.out[0] = nil
			b.out = b.out[1:]
		}
		if n > 0 {
			b.out[0] = b.out[0][n:]
		}
	}
	b.writing = false
	full := b.full
	if len(b.out) == 0 {
		b.out = nil
	}
	finish := b.out == nil && s.finishLocked()
	if full || b.x != nil {
		s.stuckLocked(b)
	}
	drained := b.out == nil && s.drainedLocked()
	halfClosed := b.out == nil && b.deadline.F == nil && s.flags&(wroteClose|recvClose|failed|lost|cut) == wroteClose
	last := b.last
	s.restLocked()
	s.mu.Unlock()
	switch {
	case last:
		s.drop()
	case full:
		s.conn.NotifyWritable()
	case finish:
		s.finish()
	case halfClosed:
		s.awaitHandshake()
	}
	if drained {
		s.owner.Drained(s)
	}
}

func (s *Socket) write(batch [][]byte) (int, error) {
	if len(batch) == 1 {
		return s.conn.Write(batch[0])
	}
	return s.conn.Writev(batch)
}

// Writable is called by the poller when a full connection can take more.
func (s *Socket) Writable() {
	s.mu.Lock()
	if s.busy != nil {
		s.busy.full = false
	}
	s.mu.Unlock()
	s.Flush()
}

// closeFrame is the answer to a peer's Close: its code, no reason.
func closeFrame(code uint16) Frame {
	return Frame{Bytes: wire.AppendClose(nil, code, ""), Last: true}
}
