package hibernate_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// refused fails unless exactly these limits have refused something, as often as said.
func (r *rig) refused(want map[string]uint64) {
	r.t.Helper()
	got := map[string]uint64{}
	for name, n := range r.rt.Stats().Refused.All() {
		if n > 0 {
			got[name] = n
		}
	}
	if !maps.Equal(got, want) {
		r.t.Errorf("refused %v, want %v", got, want)
	}
}

// failing is an actor's fail that tells the limit in the error and the close code.
func failing(_ context.Context, a *actor, _ hibernate.WebSocket, err error) error {
	var p *hibernate.ProtocolError
	if !errors.As(err, &p) {
		a.tell("%T", err)
		return nil
	}
	a.tell("%s, %d", limit(err), p.CloseCode())
	return nil
}

// TestLimitsOfReceivedMessages: what is over is answered 1009, told as a
// *LimitError and counted; a message may be as large as the limit says.
func TestLimitsOfReceivedMessages(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Message: 40 << 20, Fragments: 3}})
		s := &script{fail: failing}
		s.message = func(_ context.Context, a *actor, _ hibernate.WebSocket, m hibernate.Message) error {
			a.tell("%d bytes", len(m.Data))
			return nil
		}
		r.act(s, nil)
		c := r.dial("/o/a")
		pause(r)
		c.sendBinary(make([]byte, 40<<20))
		r.hear("41943040 bytes")
		pause(r)
		if _, err := c.conn.Write(frame(true, ws.OpBinary, strings.Repeat("x", 40<<20+1))[:100]); err != nil {
			t.Fatal(err)
		}
		r.hear("message bytes 41943041/41943040, 1009")
		c.expect("close:1009 message of at least 41943041 bytes, limit is 41943040", "eof")

		c = r.dial("/o/a")
		pause(r)
		c.frame(false, ws.OpText, "1")
		c.frame(false, ws.OpContinuation, "2")
		c.frame(false, ws.OpContinuation, "3")
		c.frame(true, ws.OpContinuation, "4")
		r.hear("fragments of a message 4/3, 1009")
		r.refused(map[string]uint64{"Message": 1, "Fragments": 1})
	})
}

// TestLimitsAreChecked by Open: none is negative.
func TestLimitsAreChecked(t *testing.T) {
	for name, l := range map[string]hibernate.Limits{
		"Message": {Message: -1}, "Fragments": {Fragments: -1}, "SendQueue": {SendQueue: -1}, "Keys": {Keys: -1},
	} {
		rt, err := hibernate.Open("", &hibernate.Options{Limits: l})
		if !errors.Is(err, hibernate.ErrInvalid) || !strings.Contains(err.Error(), "Limits."+name) {
			t.Errorf("%s: %v", name, err)
		}
		if rt != nil {
			rt.Close()
		}
	}
}

// TestLimitsOfHandshakes: a head that is too long is answered 431 at both doors, one
// that does not come is cut at the acceptor.
func TestLimitsOfHandshakes(t *testing.T) {
	d := serveBothDoors(t, &hibernate.Options{Limits: hibernate.Limits{HandshakeBytes: 1000, HandshakeTime: 3 * time.Second}}, newEcho, nil)
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{HandshakeBytes: 1000}})
	serve(r, newEcho, nil)
	for door, r := range map[string]*rig{"acceptor": d.rig, "net/http": r} {
		fits := upgrade("/o/a", "A: "+strings.Repeat("a", 700))
		r.raw(fits).switched()
		long := upgrade("/o/a", "A: "+strings.Repeat("a", 700), "B: "+strings.Repeat("b", 300))
		if got := r.raw(long).response().StatusCode; got != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: answered %d", door, got)
		}
		r.refused(map[string]uint64{"HandshakeBytes": 1})
	}
	if !acceptor {
		return
	}
	c := d.raw("GET /o/a HTTP/1.1\n")
	d.until("the connection to be accepted", func() bool { return d.rt.Waiting() == 1 })
	d.clock.Advance(3*time.Second - 1)
	d.refused(map[string]uint64{"HandshakeBytes": 1})
	d.clock.Advance(1)
	c.expect("eof")
	d.refused(map[string]uint64{"HandshakeBytes": 1, "HandshakeTime": 1})
}

// TestMessageHasToBeCompletedInTime: whoever is late is closed with 1008, others are
// not, and a message that came in time is not late afterwards.
func TestMessageHasToBeCompletedInTime(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", &hibernate.Options{IdleTimeout: time.Second, Limits: hibernate.Limits{MessageTime: time.Minute}})
		s := &script{fail: failing}
		s.message = func(_ context.Context, a *actor, _ hibernate.WebSocket, m hibernate.Message) error {
			a.tell("%d bytes", len(m.Data))
			return nil
		}
		r.act(s, nil)
		late, inTime, idle, other := r.dial("/o/a"), r.dial("/o/a"), r.dial("/o/a"), r.dial("/o/other")
		ready(late, inTime, idle, other)
		pause(r)
		whole := frame(true, ws.OpText, strings.Repeat("x", 10000))
		late.frame(false, ws.OpText, "begun")
		r.read(other)
		r.clock.Advance(30 * time.Second)
		inTime.write(whole[:5000])
		r.read(other)
		r.clock.Advance(30*time.Second - 1)
		late.ping("a ping is no progress")
		late.expect("pong:a ping is no progress")
		r.silent()
		r.clock.Advance(1)
		r.hear("milliseconds for a message 60001/60000, 1008")
		late.expect("close:1008 message took longer than 1m0s", "eof")
		inTime.write(whole[5000:])
		r.hear("10000 bytes")
		r.clock.Advance(time.Hour)
		for _, c := range []*client{inTime, idle} {
			c.ping("alive")
			c.expect("pong:alive")
		}
		r.silent()
		r.refused(map[string]uint64{"MessageTime": 1})
		if n := r.rt.Stats().Buffered; n != 0 {
			t.Errorf("%d bytes are kept", n)
		}
	})
}

// TestMessageRateIsLimited: a second's worth may come at once, pings count, and what
// waits is refilled.
func TestMessageRateIsLimited(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{MessageRate: 10}})
		s := &script{fail: failing}
		s.construct = func(ctx context.Context, a *actor) error {
			return a.state.SetWebSocketAutoResponse(ctx, hibernate.AutoResponse{Request: "ping", Response: "pong"})
		}
		s.message = func(_ context.Context, a *actor, _ hibernate.WebSocket, m hibernate.Message) error {
			a.tell("%s", m.Data)
			return nil
		}
		r.act(s, nil)
		c, calm := r.dial("/o/a"), r.dial("/o/a")
		pause(r)
		bring := func(n int) {
			for i := range n {
				switch i % 3 {
				case 0:
					c.send("m")
					r.hear("m")
				case 1:
					c.ping("p")
					c.expect("pong:p")
				case 2:
					c.send("ping")
					c.expect("text:pong")
				}
			}
		}
		bring(10)
		r.clock.Advance(500 * time.Millisecond)
		bring(5)
		r.clock.Advance(time.Hour)
		bring(10)
		c.send("one too many")
		r.hear("messages per second 11/10, 1008")
		c.expect("close:1008 messages per second: 11 is over the limit of 10", "eof")
		calm.send("m")
		r.hear("m")
		r.refused(map[string]uint64{"MessageRate": 1})
	})
}

// TestWaitingBytesOfAnObjectAreLimited: what its sockets bring while it is busy. One
// message may always wait.
func TestWaitingBytesOfAnObjectAreLimited(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{WaitingBytes: 100 << 10}})
	s := &script{fail: failing}
	goOn := make(chan struct{})
	s.message = func(_ context.Context, a *actor, _ hibernate.WebSocket, m hibernate.Message) error {
		a.tell("%d bytes", len(m.Data))
		<-goOn
		return nil
	}
	r.act(s, nil)
	first, second, third, fourth := r.dial("/o/a"), r.dial("/o/a"), r.dial("/o/a"), r.dial("/o/a")
	first.sendBinary(make([]byte, 200<<10))
	r.hear("204800 bytes")
	second.sendBinary(make([]byte, 60<<10))
	r.until("the second to wait", func() bool { return r.rt.Stats().Messages == 2 })
	third.sendBinary(make([]byte, 50<<10))
	third.expect("close:1013 bytes waiting for one object: 112640 is over the limit of 102400", "eof")
	fourth.sendBinary(make([]byte, 40<<10))
	close(goOn)
	r.hear("61440 bytes")
	r.hear("bytes waiting for one object 112640/102400, 1013")
	r.hear("40960 bytes")
	r.refused(map[string]uint64{"WaitingBytes": 1})
}

// TestCrowdedRuntimeRefusesMessagesThatGrow: a quarter over Limits.Buffered is for
// those who are connected; whoever needs more then is told to try again.
func TestCrowdedRuntimeRefusesMessagesThatGrow(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Buffered: 1 << 20}})
		s := &script{fail: failing}
		s.message = func(_ context.Context, a *actor, _ hibernate.WebSocket, m hibernate.Message) error {
			a.tell("%d bytes", len(m.Data))
			return nil
		}
		r.act(s, nil)
		a, b, c, other := r.dial("/o/a"), r.dial("/o/a"), r.dial("/o/a"), r.dial("/o/other")
		ready(a, b, c, other)
		pause(r)
		part := strings.Repeat("x", 600<<10)
		for i, c := range []*client{a, b} {
			c.frame(false, ws.OpText, part)
			r.until("it to be counted", func() bool { return r.rt.Stats().Buffered == int64(i+1)*600<<10 })
		}
		c.frame(false, ws.OpText, part)
		got := <-r.play.events
		if !strings.HasPrefix(got, "bytes buffered by the runtime ") || !strings.HasSuffix(got, "/1048576, 1013") {
			t.Errorf("heard %q", got)
		}
		a.frame(true, ws.OpContinuation, "")
		r.hear("614400 bytes")
		other.send("small ones pass")
		r.hear("15 bytes")
		b.drop()
		c.drop()
		r.until("room", func() bool { return r.rt.Stats().Buffered == 0 })
		r.refused(map[string]uint64{"Buffered": 1})
	})
}

// TestUndeliveredOfAnObjectIsLimited: what several turns have sent while the disk
// does not answer, and WaitUntil work beside them, counts together.
func TestUndeliveredOfAnObjectIsLimited(t *testing.T) {
	d := newDisk()
	r := newDiskRig(t, d, &hibernate.Options{Limits: hibernate.Limits{Undelivered: 1000}})
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		if m.Text() == "outside" {
			return a.state.WaitUntil(ctx, "send", func(ctx context.Context) {
				a.tell("%s", limit(ws.SendText(ctx, strings.Repeat("o", 400))))
			})
		}
		if err := a.state.Storage().PutBytes(ctx, "k", m.Data); err != nil {
			return err
		}
		a.tell("%s", limit(ws.SendText(ctx, strings.Repeat("t", 400))))
		return nil
	}}, nil)
	c := r.dial("/o/a")
	ready(c)
	start := d.stop()
	defer start()
	c.send("1")
	r.hear("<nil>")
	c.send("outside")
	r.hear("<nil>")
	for _, m := range []string{"3", "outside"} {
		c.send(m)
		r.hear("bytes sent and not yet durable 1212/1000")
	}
	start()
	for _, what := range []string{"t", "o"} {
		c.expect("text:" + strings.Repeat(what, 400))
	}
	r.turn("a")
	c.send("4")
	r.hear("<nil>")
	c.expect("text:" + strings.Repeat("t", 400))
	r.refused(map[string]uint64{"Undelivered": 2})
}
