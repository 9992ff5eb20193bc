package socket

import (
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// silent are the connections of a peer that does not read, by what serves them: the system takes a fixed number of
// bytes, less than a chunk, and nothing more until the peer reads. TCP's buffers grow, and nobody knows when.
var silent = map[string]func(t *testing.T) (server, client net.Conn){
	"goroutines": func(*testing.T) (server, client net.Conn) { return net.Pipe() },
}

// eachSilent runs f with a bench of each form.
func eachSilent(t *testing.T, f func(t *testing.T, newBench func(Config) *bench)) {
	for name, pair := range silent {
		t.Run(name, func(t *testing.T) {
			f(t, func(cfg Config) *bench {
				t.Helper()
				server, client := pair(t)
				return newBenchOver(t, server, client, poll.Options{}, cfg, nil)
			})
		})
	}
}

const chunk = 256 << 10

// numbered is a large frame that begins with n.
func numbered(n int) Frame { return numberedOf(n, chunk) }

// numberedOf is a frame of size bytes that begins with n.
func numberedOf(n, size int) Frame {
	data := make([]byte, size)
	binary.BigEndian.PutUint32(data, uint32(n))
	return Frame{Bytes: wire.AppendFrame(nil, wire.Binary, data)}
}

// number reads the next numbered frame at the peer; a Close is its code, negative.
func (b *bench) number() int {
	b.t.Helper()
	f, err := b.frame()
	if err != nil {
		b.t.Fatal(err)
	}
	if f.Header.OpCode == ws.OpClose {
		code, _ := ws.ParseCloseFrameData(f.Payload)
		return -int(code)
	}
	return int(binary.BigEndian.Uint32(f.Payload))
}

// stuff sends the peer, which does not read, n numbered frames.
func (b *bench) stuff(n int) {
	for i := range n {
		b.s.Emit(numbered(i))
	}
}

func (b *bench) pooled(want int64) {
	b.t.Helper()
	if got := b.s.cfg().Pool.Len(); got != want {
		b.t.Fatalf("the pool counts %d bytes, want %d", got, want)
	}
}

// TestSlowPeerIsClosedWith1013: what it has been sent in part it still gets, then
// the Close, and the event says why.
func TestSlowPeerIsClosedWith1013(t *testing.T) {
	eachSilent(t, func(t *testing.T, newBench func(Config) *bench) {
		var refused limit.Counters
		b := newBench(Config{SendQueue: 1 << 20, Refused: &refused, Pool: &Pool{}})
		b.stuff(20)
		if n := b.s.Buffered(); n > chunk { // what is being written stays
			t.Errorf("%d bytes kept for a peer that was given up", n)
		}
		if _, err := b.s.Sendable(); !errors.Is(err, ErrClosed) || refused.Load()[limit.SendQueue] != 1 {
			t.Errorf("sending is %v, %d refusals", err, refused.Load()[limit.SendQueue])
		}
		b.noEvent()
		for want := 0; ; want++ {
			got := b.number()
			if got == -1013 {
				break
			}
			if got != want {
				t.Fatalf("frame %d, want %d", got, want)
			}
		}
		b.write(closing(1000))
		if e := b.event("close 1013"); !e.WasClean || e.Reason != slowReason {
			t.Errorf("event %+v", e)
		}
		if _, half := b.peer.(interface{ CloseWrite() error }); !half {
			b.clock.Advance(b.s.cfg().Linger) // it ends as a whole
		}
		b.receive("eof")
		b.s.Handled()
		b.noEvent()
		b.pooled(0)
	})
}

// TestSlowPeerThatNeverReadsIsCut when the time for its Close is over.
func TestSlowPeerThatNeverReadsIsCut(t *testing.T) {
	eachSilent(t, func(t *testing.T, newBench func(Config) *bench) {
		for given, want := range map[time.Duration]time.Duration{5 * time.Second: 5 * time.Second, -1: slowTimeout} {
			b := newBench(Config{SendQueue: 1 << 20, CloseTimeout: given, Pool: &Pool{}})
			b.stuff(20)
			b.clock.Advance(want - 1)
			b.noEvent()
			b.clock.Advance(1)
			if e := b.event("close 1013"); e.WasClean {
				t.Error("a close that nobody answered was clean")
			}
			b.s.Handled()
			b.pooled(0)
		}
	})
}

// TestSlowPeerLosesTheOldest: of what it reads in the end, the first frames were
// under way, and the last are the newest without a gap.
func TestSlowPeerLosesTheOldest(t *testing.T) {
	eachSilent(t, func(t *testing.T, newBench func(Config) *bench) {
		var refused limit.Counters
		b := newBench(Config{SendQueue: 1 << 20, SlowReader: SlowDropOldest, Refused: &refused, Pool: &Pool{}})
		const n = 50
		b.stuff(n)
		if got := b.s.Buffered(); got <= 1<<20-chunk || got > 1<<20 {
			t.Errorf("%d bytes wait, want up to 1 MiB", got)
		}
		last, gaps := -1, 0
		for last != n-1 {
			got := b.number()
			if got != last+1 {
				gaps++
			}
			if got <= last {
				t.Fatalf("frame %d behind %d", got, last)
			}
			last = got
		}
		if gaps != 1 || refused.Load()[limit.SendQueue] == 0 {
			t.Errorf("%d gaps, %d refusals", gaps, refused.Load()[limit.SendQueue])
		}
		b.noEvent()
		b.s.Emit(numbered(7))
		if got := b.number(); got != 7 {
			t.Errorf("frame %d, want 7", got)
		}
	})
}

// TestSlowPeerIsAnError for whoever asks for room, and is closed when as much again
// comes from those who do not.
func TestSlowPeerIsAnError(t *testing.T) {
	eachSilent(t, func(t *testing.T, newBench func(Config) *bench) {
		b := newBench(Config{SendQueue: 1 << 20, SlowReader: SlowError})
		sent := 0
		for ; b.s.Room(chunk) == nil; sent++ {
			if sent == 10 {
				t.Fatalf("room for more where %d bytes wait", b.s.Buffered())
			}
			b.s.Emit(numbered(sent))
		}
		var le *limit.Error
		if err := b.s.Room(chunk); !errors.As(err, &le) || !le.Of(limit.SendQueue) || le.Max != 1<<20 {
			t.Errorf("room: %v", err)
		}
		unasked := func(n int) Frame {
			f := numbered(n)
			f.Unasked = true
			return f
		}
		for range 2 { // what is read in between is forgotten
			for range 3 {
				b.s.Emit(unasked(sent))
				sent++
			}
			if ok, err := b.s.Sendable(); !ok {
				t.Fatalf("some answers ended it: %v", err)
			}
			for want := range sent {
				if got := b.number(); got != want {
					t.Fatalf("frame %d, want %d", got, want)
				}
			}
			b.s.mu.Lock() // whoever writes may be about to find the queue empty
			for b.s.busy != nil {
				b.s.mu.Unlock()
				runtime.Gosched()
				b.s.mu.Lock()
			}
			b.s.mu.Unlock()
			for sent = 0; b.s.Room(chunk) == nil; sent++ {
				b.s.Emit(numbered(sent))
			}
		}
		for range 4 {
			b.s.Emit(unasked(0))
		}
		if _, err := b.s.Sendable(); !errors.Is(err, ErrClosed) {
			t.Errorf("as much again waits that nobody has asked for, and sending is %v", err)
		}
	})
}

// TestWhatRoomLetsInIsTaken, whatever the queue has come to when it is emitted: the
// peer is not closed, and reads everything.
func TestWhatRoomLetsInIsTaken(t *testing.T) {
	const most = 1 << 20
	for name, send := range map[string]func(*bench) (frames int){
		"a large frame behind what is not flushed": func(b *bench) int {
			b.s.Queue(numbered(0))
			b.room(3 * most)
			b.s.Emit(numberedOf(1, 3*most))
			return 2
		},
		"frames that were let in together": func(b *bench) int {
			for range 5 {
				b.room(most)
			}
			for i := range 5 {
				b.s.Emit(numberedOf(i, most))
			}
			return 5
		},
		"while the pool is crowded": func(b *bench) int {
			b.room(chunk)
			pool := b.s.cfg().Pool
			pool.n.Add(pool.Limit)
			defer pool.n.Add(-pool.Limit)
			b.stuff(2)
			return 2
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachSilent(t, func(t *testing.T, newBench func(Config) *bench) {
				var refused limit.Counters
				b := newBench(Config{SendQueue: most, SlowReader: SlowError, Pool: &Pool{Limit: 1 << 40}, Refused: &refused})
				n := send(b)
				if ok, err := b.s.Sendable(); !ok || refused.Load()[limit.SendQueue] != 0 {
					t.Errorf("sending is %v, %d refusals", err, refused.Load()[limit.SendQueue])
				}
				for want := range n {
					if got := b.number(); got != want {
						t.Fatalf("frame %d, want %d", got, want)
					}
				}
				b.noEvent()
			})
		})
	}
}

// room fails unless there is room for n bytes.
func (b *bench) room(n int) {
	b.t.Helper()
	if err := b.s.Room(n); err != nil {
		b.t.Fatal(err)
	}
}

// TestRoomIsRefusedWhileSomebodyWrites, once Emit would close the peer: whoever asks is told.
func TestRoomIsRefusedWhileSomebodyWrites(t *testing.T) {
	timers := alarm.NewTimers(alarm.NewFake(time.Unix(1e9, 0)))
	defer timers.Stop()
	s := New(&owner{cfg: &Config{SendQueue: 1 << 20, SlowReader: SlowError, Timers: timers}}, Tags{}, nil, 0)
	s.flags |= opened | writing
	for n := 0; s.Room(chunk) == nil; n++ {
		if s.Emit(numbered(n)); n == 20 {
			break
		}
	}
	if got := s.Buffered(); got <= 1<<20 || got > 2<<20 {
		t.Errorf("%d bytes wait when room is refused, want more than 1 MiB and not more than 2", got)
	}
	if ok, err := s.Sendable(); !ok {
		t.Errorf("a peer for which there was room was closed: %v", err)
	}
}

// TestDrainFollowsALongQueueOnce.
func TestDrainFollowsALongQueueOnce(t *testing.T) {
	eachSilent(t, func(t *testing.T, newBench func(Config) *bench) {
		b := newBench(Config{DrainOver: 1 << 20, Pool: &Pool{}})
		b.s.Emit(numbered(0))
		if got := b.number(); got != 0 {
			t.Fatalf("frame %d", got)
		}
		b.noEvent() // it was never over
		for range 2 {
			const n = 8
			b.stuff(n)
			// Whoever has sent what the peer has just read may still be about to find the system full.
			for give := time.Now().Add(hang); b.s.cfg().Pool.Len() <= 1<<20; runtime.Gosched() {
				if time.Now().After(give) {
					t.Fatalf("the pool counts %d bytes of %d", b.s.cfg().Pool.Len(), b.s.Buffered())
				}
			}
			b.noEvent()
			for i := range n {
				if got := b.number(); got != i {
					t.Fatalf("frame %d, want %d", got, i)
				}
			}
			b.event("drain")
			b.noEvent()
			b.pooled(0)
		}
	})
}

// TestCrowdedPoolShortensQueues: peers that do not read are slow earlier when the
// runtime has no room, those that do are not.
func TestCrowdedPoolShortensQueues(t *testing.T) {
	eachSilent(t, func(t *testing.T, newBench func(Config) *bench) {
		pool := &Pool{Limit: 1 << 20}
		b := newBench(Config{Pool: pool})
		for n := 0; !pool.Crowded(); n++ {
			if n == 10 {
				t.Fatalf("%d bytes wait, and the pool counts %d", b.s.Buffered(), pool.Len())
			}
			b.s.Emit(numbered(0))
		}
		before := pool.Len()
		for n := range 10 { // another peer, which reads
			c := newBenchOn(t, b)
			c.s.Emit(numbered(n))
			if got := c.number(); got != n {
				t.Fatalf("frame %d, want %d", got, n)
			}
		}
		if ok, err := b.s.Sendable(); !ok {
			t.Fatalf("nothing more was sent, and sending is %v", err)
		}
		b.s.Emit(numbered(1))
		if _, err := b.s.Sendable(); !errors.Is(err, ErrClosed) {
			t.Errorf("the pool is crowded, and sending to a slow peer is %v", err)
		}
		if pool.Len() >= before {
			t.Errorf("the pool has %d bytes, and had %d", pool.Len(), before)
		}
	})
}
