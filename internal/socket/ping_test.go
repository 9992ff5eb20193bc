package socket

import (
	"testing"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate/internal/poll"
)

// asked is Ask, and expects a ping at the peer or none.
func (b *bench) asked(want bool) {
	b.t.Helper()
	b.s.Ask()
	b.s.Emit(Frame{Bytes: pongFrame})
	got := false
	for {
		f, err := b.frame()
		if err != nil {
			b.t.Fatal(err)
		}
		if f.Header.OpCode == ws.OpPong {
			break
		}
		got = got || f.Header.OpCode == ws.OpPing
	}
	if got != want {
		b.t.Fatalf("asked: %v, want %v", got, want)
	}
}

var pongFrame = ws.MustCompileFrame(ws.NewPongFrame(nil))

// heard has the peer send something, and waits until it was read.
func (b *bench) heard() {
	b.t.Helper()
	b.write(frame(ws.OpPing, "read"))
	b.receive("pong read")
}

// TestAnyByteIsAnAnswer, and silence is the end; what was not asked is not judged.
func TestAnyByteIsAnAnswer(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		b := newBench(t, o, Config{}, nil)
		b.asked(false) // it has just come
		b.asked(true)
		b.heard()
		if b.s.Judge(false) {
			t.Fatal("it has answered")
		}
		b.asked(true)
		if b.s.Judge(true) || b.s.Judge(false) {
			t.Fatal("what is judged late is forgotten")
		}
		b.heard()
		b.asked(false)
		if b.s.Judge(false) {
			t.Fatal("it was not asked")
		}
		b.asked(true)
		b.noEvent()
		if !b.s.Judge(false) || b.s.Judge(false) {
			t.Fatal("it is dead, and once")
		}
		b.event("close 1006")
		b.receive("eof")
		b.s.Handled()
		b.noEvent()
	})
}

// TestNobodyIsAskedBehindAClose, to which the peer may still answer.
func TestNobodyIsAskedBehindAClose(t *testing.T) {
	b := newBench(t, poll.Options{}, Config{}, nil)
	b.s.Ask()
	if b.s.StartClose() {
		b.s.Emit(closeFrame(1000))
	}
	b.s.Ask()
	b.receive("close 1000")
	if b.s.Judge(false) {
		t.Error("a peer that may still answer the Close was judged")
	}
}

// TestNobodyIsAskedBehindOutput that the peer does not read.
func TestNobodyIsAskedBehindOutput(t *testing.T) {
	eachSilent(t, func(t *testing.T, newBench func(Config) *bench) {
		b := newBench(Config{})
		b.s.Ask()
		b.stuff(1)
		before := b.s.Buffered()
		b.s.Ask()
		if b.s.Buffered() != before {
			t.Error("a peer that does not read was asked")
		}
		if b.s.Judge(false) {
			t.Error("a peer that could not read the ping was judged")
		}
	})
}
