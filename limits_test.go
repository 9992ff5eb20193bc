package hibernate_test

import (
	"context"
	"errors"
	"maps"
	"math"
	"net/http"
	"reflect"
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

// TestOptionsAreChecked by Open: what can never work is refused, and the error says what, and
// what would be allowed.
func TestOptionsAreChecked(t *testing.T) {
	opened := func(o hibernate.Options) error {
		rt, err := hibernate.Open("", &o)
		if err == nil {
			rt.Close()
		}
		return err
	}
	refused := func(o hibernate.Options, want string) {
		t.Helper()
		if err := opened(o); !errors.Is(err, hibernate.ErrInvalid) || !strings.HasSuffix(err.Error(), ": "+want) &&
			!strings.Contains(err.Error(), ": "+want+", ") {
			t.Errorf("want an error that says %q, got %v", want, err)
		}
	}
	fields := reflect.TypeFor[hibernate.Limits]()
	for i := range fields.NumField() {
		var l hibernate.Limits
		reflect.ValueOf(&l).Elem().Field(i).SetInt(-1)
		want := "Limits." + fields.Field(i).Name + " is -1"
		if fields.Field(i).Type == reflect.TypeFor[time.Duration]() {
			want += "ns"
		}
		refused(hibernate.Options{Limits: l}, want)
	}
	type limits = hibernate.Limits
	for want, o := range map[string]hibernate.Options{
		"Options.IdleTimeout is -1ns":                                   {IdleTimeout: -1},
		"Options.PingInterval is -1ns, PongTimeout 0s":                  {PingInterval: -1},
		"Options.PingInterval is 1s, PongTimeout 2s":                    {PingInterval: time.Second, PongTimeout: 2 * time.Second},
		"Options.PingInterval is 0s, PongTimeout 1s":                    {PongTimeout: time.Second},
		"Options.ShutdownCode is 1006":                                  {ShutdownCode: 1006},
		"Options.KeepAlive is 9h6m7.001s, at most 9h6m7s":               {KeepAlive: 32767*time.Second + time.Millisecond},
		"Options.UserTimeout is 596h31m23.648s, at most 596h31m23.647s": {UserTimeout: 1 << 31 * time.Millisecond},
		"Limits.Key is 65537, at most 65536":                            {Limits: limits{Key: 64<<10 + 1}},
		"Limits.Value is 8386545, at most 8386544":                      {Limits: limits{Value: 8<<20 - 2048 - 15}},
		"Limits.Value is 8323057, at most 8323056":                      {Limits: limits{Key: 64 << 10, Value: 8<<20 - 64<<10 - 15}},
		"Limits.Message is 2097152, at most 1048576":                    {Limits: limits{Message: 2 << 20, Buffered: 1 << 20}},
		"Limits.Message is 1073741825, at most 1073741824":              {Limits: limits{Message: 1<<30 + 1}},
	} {
		refused(o, want)
	}
	if math.MaxInt > math.MaxUint32 {
		most := int64(math.MaxUint32)
		refused(hibernate.Options{Limits: limits{Attachment: int(most + 1)}}, "Limits.Attachment is 4294967296, at most 4294967295")
	}
	for _, o := range []hibernate.Options{
		{Limits: limits{Key: 64 << 10, Value: 8<<20 - 64<<10 - 16}},
		{Limits: limits{Message: 1 << 20, Buffered: 1 << 20}},
		{Limits: limits{Buffered: 1000}}, // the default of Message is less then
		{PingInterval: time.Second},
		{KeepAlive: 32767 * time.Second, UserTimeout: math.MaxInt32 * time.Millisecond},
	} {
		if err := opened(o); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// TestLimitsMayBeAsLargeAsTheirTypes, where nothing bounds them: that is no limit.
func TestLimitsMayBeAsLargeAsTheirTypes(t *testing.T) {
	const forever = math.MaxInt64
	o := &hibernate.Options{
		IdleTimeout: forever, AwakeWarning: forever, WakeWarning: math.MaxInt, ShutdownSpread: forever,
		PingInterval: forever, PongTimeout: forever,
	}
	l := reflect.ValueOf(&o.Limits).Elem()
	for i := range l.NumField() {
		switch f := l.Field(i); l.Type().Field(i).Name {
		case "Key", "Value", "Attachment":
		default:
			f.SetInt(math.MaxInt64 >> (64 - f.Type().Bits()))
		}
	}
	r := newRig(t, "", o)
	s := &script{fail: failing}
	s.message = func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		if err := a.state.Storage().PutBytes(ctx, "key", m.Data[:1]); err != nil {
			return err
		}
		return ws.SendText(ctx, m.Text())
	}
	r.act(s, &hibernate.ClassOptions{
		CloseTimeout: forever, ConstructTimeout: forever, DrainThreshold: forever, CompressionMinSize: math.MaxInt,
	})
	c := r.dial("/o/a")
	long := strings.Repeat("x", 100_000)
	c.frame(false, ws.OpText, long)
	r.until("it to be counted", func() bool { return r.rt.Stats().Buffered == 100_000 })
	c.frame(true, ws.OpContinuation, "y")
	c.expect("text:" + long + "y")
	r.clock.Advance(time.Hour)
	c.send("z")
	c.expect("text:z")
	r.refused(map[string]uint64{})
}

// TestLargestKeyAndValueFitACommit.
func TestLargestKeyAndValueFitACommit(t *testing.T) {
	const key, value = 64 << 10, 8<<20 - 64<<10 - 16
	storage(t, &hibernate.Options{Limits: hibernate.Limits{Key: key, Value: value}}, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		k := strings.Repeat("k", key)
		if err := errors.Join(st.PutBytes(ctx, k, make([]byte, value)), st.Sync(ctx)); err != nil {
			t.Fatal(err)
		}
		if b, ok, err := st.GetBytes(ctx, k); len(b) != value || !ok || err != nil {
			t.Errorf("%d bytes, %v, %v", len(b), ok, err)
		}
	})
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
	fourth.sendBinary(make([]byte, 40<<10)) // to the limit
	r.until("the fourth to wait", func() bool { return r.rt.Stats().Messages == 4 })
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
