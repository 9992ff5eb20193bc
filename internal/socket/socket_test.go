package socket

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/leak"
	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/wire"
)

func TestMain(m *testing.M) { leak.Main(m) }

// An owner records what it is told, and lets everything leave at once.
type owner struct {
	cfg    *Config
	mu     sync.Mutex
	auto   map[string]string
	hold   bool
	held   []func()
	events chan Event
}

func (o *owner) Config() *Config { return o.cfg }

func (o *owner) Serve(*poll.Worker, *Socket, Event) (bool, bool) { return false, false }
func (o *owner) Served(*poll.Worker)                             {}

func (o *owner) Deliver(s *Socket, e Event) bool { o.events <- e; return true }

func (o *owner) AutoResponse(s *Socket, text []byte) ([]byte, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	answer, ok := o.auto[string(text)]
	return wire.AppendFrame(nil, wire.Text, []byte(answer)), ok
}

func (o *owner) Hold(s *Socket, f Frame) {
	o.mu.Lock()
	if o.hold {
		o.held = append(o.held, func() { s.Emit(f) })
		o.mu.Unlock()
		return
	}
	o.mu.Unlock()
	s.Emit(f)
}

func (o *owner) Drained(s *Socket) { o.events <- Event{Kind: Drain}; s.Drained() }

func (o *owner) HoldBehindTurn(s *Socket, f Frame) { o.Hold(s, f) }
func (o *owner) Busy(int)                          {}

func (o *owner) release() {
	o.mu.Lock()
	held := o.held
	o.hold, o.held = false, nil
	o.mu.Unlock()
	for _, f := range held {
		f()
	}
}

// A bench is one socket and its peer.
type bench struct {
	t     *testing.T
	owner *owner
	s     *Socket
	peer  net.Conn
	r     *bufio.Reader
	clock *alarm.Fake
	poll  *poll.Poller
}

func eachPoller(t *testing.T, f func(t *testing.T, o poll.Options)) {
	t.Run("descriptors", func(t *testing.T) { f(t, poll.Options{}) })
	t.Run("goroutines", func(t *testing.T) { f(t, poll.Options{Goroutines: true}) })
}

func tcpPair(t *testing.T) (server, client net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return server, client
}

func newBench(t *testing.T, o poll.Options, cfg Config, early []byte) *bench {
	t.Helper()
	server, client := tcpPair(t)
	return newBenchOver(t, server, client, o, cfg, early)
}

func newBenchOver(t *testing.T, server, client net.Conn, o poll.Options, cfg Config, early []byte) *bench {
	t.Helper()
	b := &bench{t: t, owner: &owner{events: make(chan Event, 100), auto: map[string]string{}}, clock: alarm.NewFake(time.Unix(1e9, 0))}
	p, err := poll.New(o)
	if err != nil {
		t.Fatal(err)
	}
	b.poll = p
	timers := alarm.NewTimers(b.clock)
	cfg.Timers = timers
	if cfg.Wire.MaxMessage == 0 {
		cfg.Wire.MaxMessage = 1 << 20
	}
	cfg.Linger, cfg.LingerBytes = 2*time.Second, 1<<20
	b.peer, b.r = client, bufio.NewReader(client)
	var window wire.Window
	if cfg.Inflating != nil {
		window = 15
		cfg.Deflated = cfg.Wire
		cfg.Deflated.Deflate = &wire.Deflate{Level: 1}
	}
	b.owner.cfg = &cfg
	b.s = New(b.owner, NewTags([]string{"x"}), nil, window)
	t.Cleanup(func() {
		client.Close()
		b.s.Cut()
		p.Close()
		timers.Stop()
	})
	b.s.Emit(Frame{Bytes: wire.AppendFrame(nil, wire.Text, []byte("before"))})
	if err := b.s.Open(p.Group(Handler{}), server, []byte("HEAD\n"), early); err != nil {
		t.Fatal(err)
	}
	if line, err := b.r.ReadString('\n'); err != nil || line != "HEAD\n" {
		t.Fatalf("response %q, %v", line, err)
	}
	b.receive("text before")
	return b
}

func frame(op ws.OpCode, payload string) []byte {
	return ws.MustCompileFrame(ws.MaskFrame(ws.NewFrame(op, true, []byte(payload))))
}

func closing(code int) []byte {
	return frame(ws.OpClose, string(ws.NewCloseFrameBody(ws.StatusCode(code), "")))
}

func (b *bench) write(p ...[]byte) {
	b.t.Helper()
	if _, err := b.peer.Write(bytes.Join(p, nil)); err != nil {
		b.t.Fatal(err)
	}
}

// reset ends the connection from the peer's side without a word.
func (b *bench) reset() {
	b.peer.(*net.TCPConn).SetLinger(0)
	b.peer.Close()
}

// hang is how long a test waits for what has to come, however busy the machine is.
const hang = 30 * time.Second

// frame reads the next frame at the peer.
func (b *bench) frame() (ws.Frame, error) {
	b.peer.SetReadDeadline(time.Now().Add(hang))
	return ws.ReadFrame(b.r)
}

// receive expects the next frame, "eof" or "reset" at the peer.
func (b *bench) receive(want string) {
	b.t.Helper()
	var got string
	switch f, err := b.frame(); {
	case errors.Is(err, syscall.ECONNRESET):
		got = "reset"
	case err == io.EOF:
		got = "eof"
	case err != nil:
		b.t.Fatalf("want %s: %v", want, err)
	default:
		got = map[ws.OpCode]string{ws.OpText: "text ", ws.OpPong: "pong ", ws.OpClose: "close "}[f.Header.OpCode]
		if f.Header.OpCode == ws.OpClose {
			if len(f.Payload) == 0 {
				got += "1005"
			} else {
				code, _ := ws.ParseCloseFrameData(f.Payload)
				got += fmt.Sprint(int(code))
			}
		} else {
			got += string(f.Payload)
		}
	}
	if got != want {
		b.t.Fatalf("peer received %q, want %q", got, want)
	}
}

func (b *bench) event(want string) Event {
	b.t.Helper()
	select {
	case e := <-b.owner.events:
		got := e.String()
		if e.Kind == Message {
			got = string(e.Data)
		}
		if !strings.HasPrefix(got, want) {
			b.t.Fatalf("event %q, want %q", got, want)
		}
		return e
	case <-time.After(hang):
		b.t.Fatalf("no event %q in %v", want, hang)
		return Event{}
	}
}

func (b *bench) noEvent() {
	b.t.Helper()
	select {
	case e := <-b.owner.events:
		b.t.Fatalf("unexpected event %v", e)
	default:
	}
}

func TestBytesReadBehindTheRequestAreDecodedFirst(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		whole := frame(ws.OpText, "second")
		b := newBench(t, o, Config{}, append(frame(ws.OpText, "first"), whole[:4]...))
		b.event("first")
		b.s.Handled()
		b.write(whole[4:])
		b.event("second")
	})
}

func TestOneEventWaitsAtATime(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{}, nil)
		b.owner.mu.Lock()
		b.owner.auto["ping"] = "pong"
		b.owner.mu.Unlock()
		b.write(frame(ws.OpText, "a"), frame(ws.OpText, "ping"), frame(ws.OpPing, "p"), frame(ws.OpText, "b"))
		b.event("a")
		b.noEvent()
		b.s.Handled()
		b.receive("text pong") // behind a, as semantics 7.6 has it
		b.receive("pong p")
		b.event("b")
		b.s.Handled()
		b.write(frame(ws.OpText, "ping"))
		b.receive("text pong")
	})
}

// TestResetWhileAnEventWaitsIsNoticedWithoutSpinning: HUP and ERR cannot be
// masked, so a connection that is not being read must not wake the loop for ever.
func TestResetWhileAnEventWaitsIsNoticedWithoutSpinning(t *testing.T) {
	b := newBench(t, poll.Options{}, Config{}, nil)
	b.write(frame(ws.OpText, "a"))
	b.event("a")
	b.reset()
	before := b.poll.Stats().Events
	// A second connection is a clock that ticks with the loop.
	other := newBenchOn(t, b)
	for range 50 {
		other.write(frame(ws.OpPing, "x"))
		other.receive("pong x")
	}
	if n := b.poll.Stats().Events - before; n > 150 {
		t.Errorf("%d events for a reset and 50 pings", n)
	}
	b.noEvent()
	b.s.Handled()
	b.event("close 1006")
}

// newBenchOn is another socket on the poller of b.
func newBenchOn(t *testing.T, b *bench) *bench {
	server, client := tcpPair(t)
	x := &bench{t: t, owner: &owner{cfg: b.owner.cfg, events: make(chan Event, 100)}, peer: client, r: bufio.NewReader(client), clock: b.clock, poll: b.poll}
	x.s = New(x.owner, Tags{}, nil, 0)
	if err := x.s.Open(b.poll.Group(Handler{}), server, []byte("HEAD\n"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := x.r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); x.s.Cut() })
	return x
}

func TestPeersCloseIsAnsweredBehindHeldOutputThenEOF(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{}, nil)
		b.owner.hold = true
		b.owner.Hold(b.s, Frame{Bytes: wire.AppendFrame(nil, wire.Text, []byte("held"))})
		b.write(closing(4001))
		e := b.event("close 4001")
		if !e.WasClean || b.s.ReadyState() != Closed {
			t.Fatalf("%+v in state %d", e, b.s.ReadyState())
		}
		if _, err := b.s.Sendable(); err != ErrClosed {
			t.Fatalf("send after the answer: %v", err)
		}
		b.owner.release()
		b.receive("text held")
		b.receive("close 4001")
		b.receive("eof")
		b.s.Handled()
		b.noEvent()
	})
}

func TestManualReplyLeavesTheAnswerToTheHandler(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{ManualClose: true}, nil)
		b.write(closing(1000))
		b.event("close 1000")
		if got := b.s.ReadyState(); got != Closing {
			t.Fatalf("state %d", got)
		}
		b.s.Emit(Frame{Bytes: wire.AppendFrame(nil, wire.Text, []byte("last words"))})
		if !b.s.StartClose() {
			t.Fatal("cannot close")
		}
		b.s.Emit(closeFrame(4444))
		b.receive("text last words")
		b.receive("close 4444")
		b.receive("eof")
	})
}

// TestViolationEndsInEOFThoughInputArrives: closing a descriptor with unread
// input sends a reset, which can destroy the Close frame on its way.
func TestViolationEndsInEOFThoughInputArrives(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{}, nil)
		junk, _ := hex.DecodeString("f1") // RSV bits
		b.write(junk, bytes.Repeat([]byte{1}, 100<<10))
		b.event("error")
		b.write(bytes.Repeat([]byte{2}, 100<<10))
		b.receive("close 1002")
		b.receive("eof")
		b.s.Handled()
		b.noEvent()
	})
}

func TestDiscardingIsBounded(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{}, nil)
		b.write([]byte{0xf1, 0x80, 0, 0, 0, 0})
		b.event("error")
		b.receive("close 1002")
		b.receive("eof")
		// By bytes, of which so many may come: the peer that goes on sending is cut.
		if !b.s.Input(nil, make([]byte, b.owner.cfg.LingerBytes)) || !b.s.conn.Attached() {
			t.Fatal("cut before the limit")
		}
		b.peer.SetWriteDeadline(time.Now().Add(hang))
		var err error
		for range 4096 {
			if _, err = b.peer.Write(make([]byte, 4096)); err != nil {
				break
			}
		}
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("16 MiB were taken after the end: %v", err)
		}
	})
}

func TestLingerEndsByTime(t *testing.T) {
	b := newBench(t, poll.Options{}, Config{}, nil)
	b.write(closing(1000))
	b.event("close 1000")
	b.receive("close 1000")
	b.receive("eof")
	if !b.s.conn.Attached() {
		t.Fatal("connection is gone before its linger time")
	}
	b.clock.Advance(3 * time.Second)
	if b.s.conn.Attached() { // the loop may be about to leave it, and counts it until then
		t.Fatal("connection outlives its linger time")
	}
}

// TestAfterOurCloseThePeerGoesOn: nothing is shut down or discarded until the
// peer answers (semantics 2.5, 5.6, 5.7).
func TestAfterOurCloseThePeerGoesOn(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{}, nil)
		b.s.StartClose()
		b.s.Emit(closeFrame(4000))
		b.receive("close 4000")
		b.write(frame(ws.OpText, "still here"))
		b.event("still here")
		b.s.Handled()
		if got := b.s.ReadyState(); got != Closing {
			t.Fatalf("state %d", got)
		}
		b.write(closing(4001))
		b.event("close 4001")
		if got := b.s.ReadyState(); got != Closed {
			t.Fatalf("state %d", got)
		}
		b.receive("eof")
	})
}

func TestUnansweredCloseEndsInOne1006(t *testing.T) {
	b := newBench(t, poll.Options{}, Config{CloseTimeout: 30 * time.Second}, nil)
	b.s.StartClose()
	b.s.Emit(closeFrame(4000))
	b.receive("close 4000")
	b.clock.Advance(31 * time.Second)
	b.event("close 1006")
	b.receive("eof")
	b.s.Handled()
	b.noEvent()
}

func TestBigOutputArrivesWholeAtASlowPeer(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{}, nil)
		const n = 64
		for i := range n {
			b.s.Emit(Frame{Bytes: wire.AppendFrame(nil, wire.Text, bytes.Repeat([]byte{'a' + byte(i%26)}, 200<<10))})
		}
		for i := range n {
			f, err := b.frame()
			if err != nil || len(f.Payload) != 200<<10 || f.Payload[0] != 'a'+byte(i%26) {
				t.Fatalf("frame %d: %d bytes, %v", i, len(f.Payload), err)
			}
		}
	})
}

func TestNothingIsKeptAtRest(t *testing.T) {
	b := newBench(t, poll.Options{}, Config{}, nil)
	for range 3 {
		b.write(frame(ws.OpText, "m"), frame(ws.OpText, "n"))
		b.event("m")
		b.s.Handled()
		b.event("n")
		b.s.Emit(Frame{Bytes: wire.AppendFrame(nil, wire.Text, []byte("answer"))})
		b.receive("text answer")
		b.s.Handled()
	}
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if b.s.busy != nil || !b.s.dec.AtRest() {
		t.Fatalf("at rest with %+v", b.s.busy)
	}
}

func TestUndoneCloseStillAnswersThePeer(t *testing.T) {
	b := newBench(t, poll.Options{}, Config{}, nil)
	b.s.StartClose()
	b.write(closing(1000))
	b.event("close 1000")
	b.s.UndoClose()
	b.receive("close 1000")
	b.receive("eof")
}

// TestManySmallMessagesCostTheirSize: what was read behind one is kept, not copied
// again for each.
func TestManySmallMessagesCostTheirSize(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{}, nil)
		const n = 5000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		b.write(bytes.Repeat(frame(ws.OpText, "t"), n))
		for range n {
			b.event("t")
			b.s.Handled()
		}
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 2000*n {
			t.Errorf("%d messages of 7 bytes took %d bytes of memory", n, took)
		}
	})
}

// TestFailedWriteEndsAConnectionThatHasFailed: one that is not read any more, as its
// peer broke the protocol, and whose Close is still held.
func TestFailedWriteEndsAConnectionThatHasFailed(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{}, nil)
		b.owner.mu.Lock()
		b.owner.hold = true
		b.owner.mu.Unlock()
		b.write([]byte{0xf1, 0x80, 0, 0, 0, 0})
		b.event("error")
		b.reset()
		b.s.Emit(Frame{Bytes: wire.AppendFrame(nil, wire.Text, []byte("to nobody"))})
		b.owner.release()
		b.s.Handled()
		b.clock.Advance(3 * time.Second)
		if b.s.conn.Attached() { // the loop may be about to leave it, and counts it until then
			t.Error("the connection is left")
		}
	})
}

// TestPingsAreAnsweredTogether, each and in order.
func TestPingsAreAnsweredTogether(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{}, nil)
		b.owner.mu.Lock()
		b.owner.auto["ping"] = "pong"
		b.owner.mu.Unlock()
		const n = 1000
		var input []byte
		for i := range n {
			input = append(input, frame(ws.OpPing, fmt.Sprint(i))...)
			input = append(input, frame(ws.OpText, "ping")...)
		}
		go b.peer.Write(append(input, frame(ws.OpText, "message")...))
		for i := range n {
			b.receive(fmt.Sprint("pong ", i))
			b.receive("text pong")
		}
		b.event("message")
	})
}
