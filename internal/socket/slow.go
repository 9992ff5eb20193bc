package socket

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// A peer is slow when the system takes nothing more for it (busy.full) and what
// is queued behind is over a limit: Config.SendQueue, or, while the Pool is
// crowded, crowdedQueue. The frame at the head of the queue may be partly written
// and always stays.

// SlowReader says what happens when too much waits for a peer.
type SlowReader uint8

const (
	SlowClose      SlowReader = iota // it is closed with codeTryAgain
	SlowDropOldest                   // what has waited longest is dropped
	SlowError                        // Room tells, and what it has let in is kept; for more of what is Unasked it is closed
)

const (
	codeTryAgain = 1013 // "try again later", in the IANA registry of RFC 6455
	slowReason   = "peer does not read what it is sent"
	crowdedQueue = 64 << 10
	slowTimeout  = 30 * time.Second // how long a slow peer may leave its Close unread, where CloseTimeout is for ever
)

// A Pool counts the bytes that the connections of a runtime keep because of their
// peers: output that is not read, and messages that are not complete. It is safe
// for concurrent use; a nil one is never crowded.
type Pool struct {
	Limit int64 // immutable; 0: none
	n     atomic.Int64
}

// Len is the number of bytes.
func (p *Pool) Len() int64 {
	if p == nil {
		return 0
	}
	return p.n.Load()
}

// Crowded reports whether nobody new is to be let in.
func (p *Pool) Crowded() bool { return p != nil && p.Limit > 0 && p.n.Load() >= p.Limit }

// full reports whether nobody may keep more: a quarter is for those who are in.
func (p *Pool) full(more int64) bool {
	return p != nil && p.Limit > 0 && p.n.Load()+more-p.Limit > p.Limit/4
}

// tooMuchLocked reports whether n more bytes are too much for the queue. One
// message is not, however large, if nothing else waits.
func (s *Socket) tooMuchLocked(b *busy, n int) bool {
	size := b.outSize + int64(n)
	if len(b.out) == 0 || s.flags&opened == 0 {
		return false
	}
	if most := s.cfg().SendQueue; most > 0 && size > most {
		return true
	}
	return b.full && size > crowdedQueue && s.cfg().Pool.Crowded()
}

// overflowLocked is queueLocked for a frame that is too much.
func (s *Socket) overflowLocked(f Frame) (flush bool) {
	b := s.busy
	if !b.full && s.flags&writing == 0 { // nobody has asked the system yet
		s.mu.Unlock()
		s.Flush()
		s.mu.Lock()
		return s.queueLocked(f)
	}
	if s.takesLocked(b, f) {
		b.append(f, false)
		if b.full {
			s.stuckLocked(b)
		}
		return false
	}
	s.cfg().Refused.Count(limit.SendQueue)
	if s.cfg().SlowReader == SlowDropOldest {
		if s.makeRoomLocked(b, len(f.Bytes)) {
			b.append(f, false)
		}
		if b.full {
			s.stuckLocked(b)
		}
		return false
	}
	head := s.headLocked(b)
	clear(b.out[head:])
	b.out = b.out[:head]
	b.outSize = 0
	for _, p := range b.out {
		b.outSize += int64(len(p))
	}
	s.flags |= sentClose | wroteClose | slow
	b.append(Frame{Bytes: wire.AppendClose(nil, codeTryAgain, slowReason), Last: true}, false)
	if b.full {
		s.stuckLocked(b)
	}
	s.mu.Unlock()
	timeout := s.cfg().CloseTimeout
	if timeout <= 0 {
		timeout = slowTimeout
	}
	s.setDeadline(timeout)
	s.mu.Lock()
	return false // it is full, or being written
}

// takesLocked reports whether a frame that is too much is queued all the same.
func (s *Socket) takesLocked(b *busy, f Frame) bool {
	n, most := int64(len(f.Bytes)), s.cfg().SendQueue
	switch {
	case s.cfg().SlowReader != SlowError: // whoever writes comes to it, if somebody does
		return !b.full && b.outSize+n <= 2*most
	case !f.Unasked: // Room has let it in
		return true
	}
	if most == 0 || s.cfg().Pool.Crowded() {
		most = crowdedQueue
	}
	x := s.extraLocked()
	x.unasked += n
	return x.unasked <= most
}

// closeEvent is e, or for a peer that was closed because it did not read, that.
func (s *Socket) closeEvent(e Event) Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flags&slow != 0 {
		e.Code, e.Reason = codeTryAgain, slowReason
	}
	return e
}

// headLocked is the number of frames that have to stay: they are being written, or the
// first has been in part.
func (s *Socket) headLocked(b *busy) int {
	if s.flags&writing != 0 {
		return b.batch
	}
	return min(len(b.out), 1)
}

// makeRoomLocked drops the oldest frames until n bytes fit, and reports whether
// they do.
func (s *Socket) makeRoomLocked(b *busy, n int) bool {
	most := s.cfg().SendQueue
	if s.cfg().Pool.Crowded() {
		most = min(most, crowdedQueue)
	}
	head, i := s.headLocked(b), 0
	for size := b.outSize + int64(n); size > most && head+i < len(b.out); i++ {
		size -= int64(len(b.out[head+i]))
		b.outSize -= int64(len(b.out[head+i]))
	}
	b.own = b.own && i == 0
	if s.flags&writing != 0 { // the writer looks at the head where it is
		b.out = slices.Delete(b.out, head, head+i)
	} else { // not one move for each message that is dropped
		copy(b.out[i:], b.out[:head])
		clear(b.out[:i])
		b.out = b.out[i:]
	}
	return b.outSize+int64(n) <= most
}

// Room is an error if n more bytes are too much for the queue and the class wants
// to be told. If it is nil the frame is taken whenever it is emitted, however much has
// been let in meanwhile: the owner bounds what it holds. While somebody writes nobody
// knows what the system still takes, and twice as much may wait.
func (s *Socket) Room(n int) error {
	if s.cfg().SlowReader != SlowError {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.busy
	if b == nil || !s.tooMuchLocked(b, n) {
		return nil
	}
	size, most := b.outSize+int64(n), s.cfg().SendQueue
	if b.full || s.flags&writing != 0 && size > 2*most {
		return s.cfg().Refused.Refuse(limit.SendQueue, most, size)
	}
	return nil
}

// extra is what few of the busy connections need. It is guarded by Socket.mu.
type extra struct {
	charged int64  // what the Pool counts for this connection
	in      int64  // of that, for a message that is not complete
	begun   *begun // what has to be complete in time
	full    int64  // when the bucket of Config.MessageRate is, Unix nanoseconds
	unasked int64  // bytes of Unasked frames that were too much, since the queue was empty
}

func (s *Socket) extraLocked() *extra {
	b := s.busyLocked()
	if b.x == nil {
		b.x = new(extra)
	}
	return b.x
}

// chargeLocked brings what the Pool counts in line with what is kept.
func (s *Socket) chargeLocked(b *busy) {
	if s.busy != b { // gone: letGo was before
		return
	}
	var keeps int64
	if p := s.cfg().Pool; p != nil {
		if b.full {
			keeps = b.outSize
		}
		if b.x == nil {
			if keeps == 0 {
				return
			}
			b.x = new(extra)
		}
		keeps += b.x.in
		p.n.Add(keeps - b.x.charged)
		b.x.charged = keeps
	}
	if b.x != nil && *b.x == (extra{}) {
		b.x = nil
	}
}

// letGo ends what the Pool counts and the Patience waits for, for a connection that
// is gone.
func (b *busy) letGo(c *Config) {
	if b.x == nil {
		return
	}
	if b.x.charged != 0 {
		c.Pool.n.Add(-b.x.charged)
	}
	if b.x.begun != nil {
		c.Patience.end(b.x.begun)
	}
	b.x = nil
}

// stuckLocked notes how much waits for a peer that takes nothing more.
func (s *Socket) stuckLocked(b *busy) {
	if over := s.cfg().DrainOver; over > 0 && b.outSize > over {
		s.flags |= stuffed
	}
	s.chargeLocked(b)
}

// drainedLocked reports whether the owner is to be told that the queue is empty
// again.
func (s *Socket) drainedLocked() bool {
	if s.flags&stuffed == 0 {
		return false
	}
	s.flags &^= stuffed
	if s.flags&(draining|sentClose|wroteClose|recvClose|lost|failed|cut|ended) != 0 {
		return false
	}
	s.flags |= draining
	return true
}

// Drained says that the handler that the owner's Drained has asked for has run.
func (s *Socket) Drained() {
	s.mu.Lock()
	s.flags &^= draining
	s.mu.Unlock()
}
