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
	flags := s.flags
	s.mu.Unlock()
	if flags&sentClose != 0 {
		return false, ErrClosed
	}
	return flags&(lost|failed|cut) == 0, nil
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

// Emit sends f, or as much as can be sent, and queues the rest. It is called once f may leave.
func (s *Socket) Emit(f Frame) {
	s.mu.Lock()
	if s.busy != nil || f.Last || s.flags&(opened|writing|wroteClose|lost|cut) != opened {
		flush := s.queueLocked(f)
		s.mu.Unlock()
		if flush {
			s.Flush()
		}
		return
	}
	s.directLocked(f)
}

// directLocked writes f, without a queue, when there is none and nobody writes. It unlocks. f is not kept.
func (s *Socket) directLocked(f Frame) {
	s.flags |= writing
	s.mu.Unlock()
	n, err := s.conn.Write(f.Bytes)
	s.mu.Lock()
	if err == nil && n == len(f.Bytes) && s.busy == nil && s.flags&(lost|cut) == 0 {
		s.flags &^= writing
		s.mu.Unlock()
		return
	}
	if err == nil && n < len(f.Bytes) && s.flags&(lost|cut) == 0 {
		b := s.busyLocked()
		left := append([]byte(nil), f.Bytes[n:]...)
		b.out = append([][]byte{left}, b.out...)
		b.outSize += int64(len(left))
		b.full = true
	}
	s.wroteLocked(err)
}

// Queue appends f to the output and reports whether a Flush is needed. Nothing
// follows a Close frame, and nothing goes to a connection that is gone.
func (s *Socket) Queue(f Frame) bool {
	s.mu.Lock()
	flush := s.queueLocked(f)
	s.mu.Unlock()
	return flush
}

func (s *Socket) queueLocked(f Frame) (flush bool) {
	if s.flags&(wroteClose|lost|cut) != 0 {
		return false
	}
	b := s.busyLocked()
	if f.Last {
		s.flags |= wroteClose
	} else if s.tooMuchLocked(b, len(f.Bytes)) {
		return s.overflowLocked(f)
	}
	b.append(f, s.flags&writing == 0)
	if b.full {
		s.stuckLocked(b)
	}
	return s.flags&(opened|writing) == opened && !b.full
}

// copyBuffer is the size of the buffers that frames are copied to.
const copyBuffer = 4 << 10

// append adds f to out. extend says that the last buffer may grow: nobody is writing it.
func (b *busy) append(f Frame, extend bool) {
	b.outSize += int64(len(f.Bytes))
	switch n := len(b.out); {
	case f.Shared || len(f.Bytes) > MaxCopied:
		b.out, b.own = append(b.out, f.Bytes), false
	case b.full: // each by itself, as they may be dropped
		b.out, b.own = append(b.out, append([]byte(nil), f.Bytes...)), false
	case b.own && extend && n > 0 && cap(b.out[n-1])-len(b.out[n-1]) >= len(f.Bytes):
		b.out[n-1] = append(b.out[n-1], f.Bytes...)
	case n == 0:
		if b.buf == nil {
			b.buf = make([]byte, 0, copyBuffer)
		}
		b.out, b.own = append(b.out, append(b.buf, f.Bytes...)), true
	default:
		b.out, b.own = append(b.out, append(make([]byte, 0, copyBuffer), f.Bytes...)), true
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
		s.terminate(nil)
		return
	}
	b := s.busy
	if b == nil || b.full || s.flags&(opened|writing) != opened {
		s.mu.Unlock()
		return
	}
	s.flags |= writing
	s.writeLocked(b)
}

// writeLocked writes what is queued, gives up the right to write, and unlocks.
func (s *Socket) writeLocked(b *busy) {
	var err error
	for len(b.out) > 0 && !b.full {
		batch := b.out[:min(len(b.out), writevMax)]
		size := 0
		for _, f := range batch {
			size += len(f)
		}
		b.batch = len(batch)
		s.mu.Unlock()
		var n int
		n, err = s.write(batch)
		s.mu.Lock()
		if err != nil || s.flags&lost != 0 || s.flags&cut != 0 && !b.last {
			break
		}
		b.full = n < size
		b.outSize -= int64(n)
		done := 0
		for done < len(b.out) && n >= len(b.out[done]) {
			n -= len(b.out[done])
			b.out[done] = nil
			done++
		}
		if done == len(b.out) {
			b.out, b.own = b.out[:0], false
		} else {
			b.out = b.out[done:]
			b.out[0] = b.out[0][n:]
		}
	}
	s.wroteLocked(err)
}

// wroteLocked ends the writing that was done with result err, goes on with what was queued meanwhile, and unlocks.
func (s *Socket) wroteLocked(err error) {
	b := s.busy
	if err != nil || s.flags&lost != 0 || s.flags&cut != 0 && (b == nil || !b.last) {
		// The reading side meets the same end, behind what is still unread.
		s.flags |= wroteClose
		if b != nil {
			b.out, b.outSize, b.own = nil, 0, false
		}
	} else if b != nil && len(b.out) > 0 && !b.full {
		s.writeLocked(b)
		return
	}
	s.flags &^= writing
	if b == nil {
		finish := s.finishLocked()
		s.mu.Unlock()
		if finish {
			s.finish()
		}
		return
	}
	empty := len(b.out) == 0
	full, last := b.full && !empty, b.last
	finish := empty && s.finishLocked()
	if empty && b.x != nil {
		b.x.unasked = 0
	}
	if full || b.x != nil {
		s.stuckLocked(b)
	}
	drained := empty && s.drainedLocked()
	halfClosed := empty && b.deadline.F == nil && s.flags&(wroteClose|recvClose|failed|lost|cut) == wroteClose
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
