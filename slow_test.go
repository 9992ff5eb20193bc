package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

// A feed is a class that sends: "n" sends n MiB to the socket that asked, and so
// does a request for /o/name?mib=n to the oldest one.
func feed() *script {
	s := closing()
	s.message = func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		var n int
		if _, err := fmt.Sscan(m.Text(), &n); err != nil {
			return err
		}
		return pour(ctx, ws, n)
	}
	return s
}

// pour sends n MiB in messages that begin with their number.
func pour(ctx context.Context, ws hibernate.WebSocket, n int) error {
	for i := range n {
		if err := ws.SendText(ctx, fmt.Sprintf("%06d", i)+strings.Repeat("x", 1<<20-6)); err != nil {
			return err
		}
	}
	return nil
}

// TestSlowReaderIsClosedWith1013 once more than Limits.SendQueue waits for it. Its
// handler is told why; WasClean tells whether it answered.
func TestSlowReaderIsClosedWith1013(t *testing.T) {
	const why = "peer does not read what it is sent"
	event := func(clean bool) string { return fmt.Sprintf("close 1013 %q %v, state 3", why, clean) }
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{SendQueue: 1 << 20}})
		r.act(feed(), nil)
		c, silent, honest := r.dial("/o/a"), r.dial("/o/a"), r.dial("/o/a")
		c.send("64") // more than the system's buffers take
		r.until("a refusal", func() bool { return r.rt.Stats().Refused.Of("SendQueue") == 1 })
		pause(r)
		for i := 0; ; i++ {
			got := c.next()
			if got == "close:1013 "+why {
				break
			}
			if !strings.HasPrefix(got, fmt.Sprintf("text:%06d", i)) {
				t.Fatalf("received %.20q, want message %d", got, i)
			}
		}
		c.close(1013, "")
		r.hear(event(true))
		c.expect("eof")

		silent.send("64")
		r.until("a refusal", func() bool { return r.rt.Stats().Refused.Of("SendQueue") == 2 })
		pause(r)
		r.clock.Advance(30 * time.Second) // CloseTimeout
		r.hear(event(false))
		honest.ping("alive")
		honest.expect("pong:alive")
		if n := r.rt.Stats().Buffered; n != 0 {
			t.Errorf("%d bytes are kept", n)
		}
		r.silent()
	})
}

// TestSlowReaderMayLoseTheOldest or be told to the sender, as ClassOptions say.
func TestSlowReaderMayLoseTheOldest(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{SendQueue: 4 << 20}})
	r.act(feed(), &hibernate.ClassOptions{SlowReader: hibernate.SlowReaderDropOldest})
	c := r.dial("/o/a")
	c.send("64")
	r.until("refusals", func() bool { return r.rt.Stats().Refused.Of("SendQueue") > 10 })
	r.turn("a")
	for last := -1; last != 63; {
		var n int
		if _, err := fmt.Sscanf(c.next(), "text:%06d", &n); err != nil {
			t.Fatal(err)
		}
		if n <= last {
			t.Fatalf("message %d behind %d", n, last)
		}
		last = n
	}
	c.send("1")
	if got := c.next(); !strings.HasPrefix(got, "text:000000x") {
		t.Errorf("received %.20q", got)
	}
}

// TestSlowReaderMayBeAnError: Send and Broadcast tell, nothing is lost of what they
// took, and others are sent to.
func TestSlowReaderMayBeAnError(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{SendQueue: 4 << 20}})
	r.act(feed(), &hibernate.ClassOptions{SlowReader: hibernate.SlowReaderError})
	slow := r.dial("/o/a")
	honest := r.dial("/o/a")
	var taken []string // by the slow one's queue: how each message begins
	refused := false
	for !refused {
		var err error
		for err == nil {
			begin := fmt.Sprintf("%06d", len(taken))
			err = r.in("a", func(ctx context.Context, a *actor) error {
				return a.state.WebSockets()[1].SendText(ctx, begin+strings.Repeat("x", 1<<20))
			})
			if err == nil {
				taken = append(taken, begin)
			}
		}
		if got := limit(err); !strings.HasPrefix(got, "bytes waiting for one peer ") || !strings.HasSuffix(got, "/4194304") {
			t.Fatal(got)
		}
		r.must("a", func(ctx context.Context, a *actor) error {
			n, err := a.state.Broadcast(ctx, hibernate.Text(strings.Repeat("y", 1<<20)), nil)
			if n == 2 && err == nil { // the system has taken more meanwhile
				taken = append(taken, "y")
				return nil
			}
			var le *hibernate.LimitError
			if n != 1 || !errors.As(err, &le) {
				t.Errorf("broadcast to %d, %v", n, err)
			}
			if all := a.state.WebSockets(); all[0].BufferedAmount() > 1<<20+10 || all[1].BufferedAmount() < 3<<20 {
				t.Errorf("%d and %d bytes wait", all[0].BufferedAmount(), all[1].BufferedAmount())
			}
			refused = true
			return nil
		})
		honest.next()
	}
	for _, begin := range taken {
		if got := slow.next(); !strings.HasPrefix(got, "text:"+begin) {
			t.Fatalf("received %.20q, want message %s", got, begin)
		}
	}
	slow.ping("x")
	slow.expect("pong:x")
}

// TestSlowReaderErrorKeepsWhatWasSent: what one turn has sent while the queue had room is
// more than twice what it takes, and arrives; who sends then is told.
func TestSlowReaderErrorKeepsWhatWasSent(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{SendQueue: 1 << 20}})
		s := feed()
		r.act(s, &hibernate.ClassOptions{SlowReader: hibernate.SlowReaderError})
		c := r.dial("/o/a")
		pause(r)
		c.send("64")
		r.until("output to pile up", func() bool { return r.rt.Stats().Buffered > 16<<20 })
		r.must("a", func(ctx context.Context, a *actor) error {
			if got := limit(only(a).SendText(ctx, "more")); !strings.HasPrefix(got, "bytes waiting for one peer ") {
				t.Errorf("sent to a queue that is full: %s", got)
			}
			return nil
		})
		for want := range 64 {
			if got := c.next(); !strings.HasPrefix(got, fmt.Sprintf("text:%06dx", want)) {
				t.Fatalf("received %.20q, want message %d", got, want)
			}
		}
		c.ping("x")
		c.expect("pong:x")
	})
}

// TestDrainWakesTheObject once, when a queue that was long is empty again. A
// WebSocket that is closing has none.
func TestDrainWakesTheObject(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		s := feed()
		s.drain = func(_ context.Context, a *actor, ws hibernate.WebSocket) error {
			a.tell("drain, %d wait, instance %d", ws.BufferedAmount(), a.n)
			return nil
		}
		r.act(s, &hibernate.ClassOptions{DrainThreshold: 1 << 20})
		c := r.dial("/o/a")
		stuff := func() {
			t.Helper()
			c.send("40")
			r.until("output to pile up", func() bool { return r.rt.Stats().Buffered > 20<<20 })
			r.turn("a")
			r.silent()
		}
		drain := func() {
			for range 40 {
				c.next()
			}
		}
		for range 2 {
			stuff()
			pause(r)
			n := s.made.Load()
			if r.rt.Stats().ObjectsInMemory == 0 {
				n++
			}
			drain()
			r.hear(fmt.Sprintf("drain, 0 wait, instance %d", n))
			r.turn("a")
			r.silent()
		}
		stuff()
		r.must("a", func(ctx context.Context, a *actor) error { return only(a).Close(ctx, 1000, "") })
		drain()
		c.expect("close:1000 ")
		c.close(1000, "")
		r.hear(`close 1000 "" true, state 3`)
		r.silent()
	})
}

// TestStuckReaderCostsTheOthersNothing: of many sockets one does not read, and all
// others get every message.
func TestStuckReaderCostsTheOthersNothing(t *testing.T) {
	const n, rounds = 2000, 3
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{SendQueue: 1 << 20}})
	r.act(feed(), nil)
	stuck := r.dial("/o/a")
	stuck.send("32")
	r.until("the stuck one to be given up", func() bool { return r.rt.Stats().Refused.Of("SendQueue") == 1 })
	others := make([]*client, n)
	for i := range others {
		others[i] = r.dial("/o/a")
	}
	for round := range rounds {
		r.must("a", func(ctx context.Context, a *actor) error {
			got, err := a.state.Broadcast(ctx, hibernate.Text(fmt.Sprint("round ", round)), nil)
			if got != n {
				t.Errorf("broadcast to %d, %v", got, err)
			}
			return err
		})
		for _, c := range others {
			c.expect(fmt.Sprint("text:round ", round))
		}
	}
	if got := r.rt.Stats().Refused.Of("SendQueue"); got != 1 {
		t.Errorf("%d refusals", got)
	}
}

// TestCrowdedRuntimeRefusesTheNewcomer and not the member: with Limits.Buffered
// taken up by peers that do not read, upgrades are answered 503, those who are
// connected go on, and when it has left there is room again.
func TestCrowdedRuntimeRefusesTheNewcomer(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Buffered: 16 << 20}})
		s := feed()
		s.http = func(a *actor, w http.ResponseWriter, q *http.Request) {
			if _, err := a.state.AcceptWebSocket(w, q, nil); err != nil {
				http.Error(w, limit(err), http.StatusServiceUnavailable)
			}
		}
		r.act(s, nil)
		member := r.dial("/o/b")
		slow := r.dial("/o/a")
		slow.send("40")
		r.until("output to pile up", func() bool { return r.rt.Stats().Buffered > 16<<20 })
		r.turn("a")
		pause(r)
		for _, name := range []string{"a", "c"} {
			if got := r.raw(upgrade("/o/" + name)).response().StatusCode; got != 503 {
				t.Errorf("a newcomer is answered %d", got)
			}
		}
		member.send("1")
		if got := member.next(); !strings.HasPrefix(got, "text:000000x") {
			t.Errorf("received %.20q", got)
		}
		for range 40 {
			slow.next()
		}
		r.until("room", func() bool { return r.rt.Stats().Buffered == 0 })
		r.dial("/o/c")
		r.refused(map[string]uint64{"Buffered": 2})
	})
}

// TestClassOptionsAreChecked by Register.
func TestClassOptionsAreChecked(t *testing.T) {
	r := newRig(t, "", nil)
	for _, o := range []hibernate.ClassOptions{{SlowReader: 3}, {DrainThreshold: -1}} {
		_, err := hibernate.Register(r.rt, "X", newEcho, &o)
		if !errors.Is(err, hibernate.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// badDrain's handler has the wrong signature.
type badDrain struct{}

func (*badDrain) WebSocketDrain(hibernate.WebSocket) {}

// TestDrainHandlerIsChecked like the others.
func TestDrainHandlerIsChecked(t *testing.T) {
	r := newRig(t, "", nil)
	_, err := hibernate.Register(r.rt, "X", func(context.Context, *hibernate.State) (*badDrain, error) { return &badDrain{}, nil }, nil)
	if !errors.Is(err, hibernate.ErrInvalid) || !strings.Contains(err.Error(), "WebSocketDrain") {
		t.Errorf("registered: %v", err)
	}
}
