package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// TestPingIsAnsweredAsleep: with the same payload, without event, without
// waking, without restarting the idle time; unsolicited pongs are ignored
// (semantics 6.1).
func TestPingIsAnsweredAsleep(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(closing(), nil)
		c := r.dial("/o/a")
		r.turn("a")
		pause(r)
		n := r.play.made.Load()
		for _, p := range []string{"", "x", strings.Repeat("p", 125)} {
			c.ping(p)
			c.expect("pong:" + p)
		}
		c.frame(true, ws.OpPong, "unsolicited")
		c.ping("last")
		c.expect("pong:last")
		r.instances(n)
		r.until("the object to sleep under pings", func() bool {
			r.clock.Advance(2500 * time.Millisecond)
			c.ping("q")
			c.expect("pong:q")
			return r.rt.Stats().ObjectsInMemory == 0
		})
		r.instances(n)
		r.silent()
	})
}

// TestViolationIsAnErrorEvent: the client gets the close code, the object a
// WebSocketError and no close event; the socket is removed (5.13, 5.14, 6.2,
// and where 6.3 is lax, RFC 6455).
func TestViolationIsAnErrorEvent(t *testing.T) {
	unmasked := func(op ws.OpCode, p string) []byte {
		b, err := ws.CompileFrame(ws.NewFrame(op, true, []byte(p)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	with := func(b []byte, i int, bits byte) []byte { b[i] |= bits; return b }
	join := func(bs ...[]byte) (all []byte) {
		for _, b := range bs {
			all = append(all, b...)
		}
		return all
	}
	for _, tc := range []struct {
		name string
		in   []byte
		code int
	}{
		{"unknown data opcode", frame(true, 3, "x"), 1002},
		{"unknown control opcode", frame(true, 11, "x"), 1002},
		{"RSV1", with(frame(true, ws.OpText, "x"), 0, 0x40), 1002},
		{"RSV2", with(frame(true, ws.OpText, "x"), 0, 0x20), 1002},
		{"RSV3 on a ping", with(frame(true, ws.OpPing, "x"), 0, 0x10), 1002},
		{"continuation of nothing", frame(true, ws.OpContinuation, "x"), 1002},
		{"text inside a message", join(frame(false, ws.OpText, "x"), frame(true, ws.OpText, "y")), 1002},
		{"length of 16 bits for 125", []byte{0x82, 0xfe, 0, 125, 0, 0, 0, 0}, 1002},
		{"length of 64 bits for 65535", []byte{0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0}, 1002},
		{"length with the top bit", []byte{0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 1002},
		{"fragmented ping", frame(false, ws.OpPing, "x"), 1002},
		{"fragmented close", frame(false, ws.OpClose, ""), 1002},
		{"ping of 126 bytes", frame(true, ws.OpPing, strings.Repeat("x", 126)), 1002},
		{"pong of 126 bytes", frame(true, ws.OpPong, strings.Repeat("x", 126)), 1002},
		{"close of 126 bytes", frame(true, ws.OpClose, "\x03\xe8"+strings.Repeat("x", 124)), 1002},
		{"unmasked text", unmasked(ws.OpText, "x"), 1002},
		{"unmasked close", unmasked(ws.OpClose, ""), 1002},
		{"close of one byte", frame(true, ws.OpClose, "\x03"), 1002},
		{"close code 999", frame(true, ws.OpClose, "\x03\xe7"), 1002},
		{"close code 1004", frame(true, ws.OpClose, "\x03\xec"), 1002},
		{"close code 1005", frame(true, ws.OpClose, "\x03\xed"), 1002},
		{"close code 1006", frame(true, ws.OpClose, "\x03\xee"), 1002},
		{"close code 1015", frame(true, ws.OpClose, "\x03\xf7"), 1002},
		{"close code 0", frame(true, ws.OpClose, "\x00\x00"), 1002},
		{"close code 1016", frame(true, ws.OpClose, "\x03\xf8"), 1002},
		{"close code 2999", frame(true, ws.OpClose, "\x0b\xb7"), 1002},
		{"close code 5000", frame(true, ws.OpClose, "\x13\x88"), 1002},
		{"close reason not UTF-8", frame(true, ws.OpClose, "\x03\xe8\xff"), 1007},
		{"text not UTF-8", frame(true, ws.OpText, "ab\xff"), 1007},
		{"text cut in a character", frame(true, ws.OpText, "ab\xc3"), 1007},
		{"surrogate", frame(true, ws.OpText, "\xed\xa0\x80"), 1007},
		{"fragment not UTF-8", join(frame(false, ws.OpText, "ok"), frame(false, ws.OpContinuation, "\xff")), 1007},
		{"message not UTF-8 so far", frame(false, ws.OpText, "ab\xff"), 1007},
		{"frame not UTF-8 so far", frame(true, ws.OpText, "ab\xff"+strings.Repeat("x", 500))[:20], 1007},
		{"message over the limit", frame(true, ws.OpBinary, strings.Repeat("x", 1025)), 1009},
		{"fragments over the limit", join(frame(false, ws.OpText, strings.Repeat("x", 1000)), frame(true, ws.OpContinuation, strings.Repeat("x", 25))), 1009},
		{"too many fragments", join(frame(false, ws.OpText, "1"), frame(false, ws.OpContinuation, "2"), frame(false, ws.OpContinuation, "3"), frame(true, ws.OpContinuation, "4")), 1009},
		{"announced far over the limit", append([]byte{0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4}, "x"...), 1009},
	} {
		t.Run(tc.name, func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
				r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Message: 1024, Fragments: 3}})
				s := closing()
				s.fail = func(ctx context.Context, a *actor, ws hibernate.WebSocket, err error) error {
					var p *hibernate.ProtocolError
					if !errors.As(err, &p) || p.CloseCode() != tc.code || p.Error() == "" {
						t.Errorf("error %v, want a *ProtocolError of %d", err, tc.code)
					}
					if got := a.state.WebSockets("t"); len(got) != 1 || got[0] != ws {
						t.Errorf("listed in the handler: %v", got)
					}
					if s, _, err := hibernate.Attachment[string](ws); s != "mine" || err != nil {
						t.Errorf("attachment %q, %v", s, err)
					}
					_ = ws.SendText(ctx, "ignored")
					a.tell("error, state %d", ws.ReadyState())
					return nil
				}
				r.act(s, nil)
				c := r.dial("/o/a?tag=t")
				r.must("a", func(ctx context.Context, a *actor) error { return only(a).SerializeAttachment(ctx, "mine") })
				pause(r)
				c.write(append(frame(true, ws.OpText, "before"), tc.in...))
				if got := c.next(); !strings.HasPrefix(got, fmt.Sprintf("close:%d ", tc.code)) {
					t.Errorf("received %q, want %d", got, tc.code)
				}
				c.expect("eof")
				r.hear("message before", "error, state 2")
				r.gone("a")
			})
		})
	}
}

// TestMessageAtTheLimitArrives.
func TestMessageAtTheLimitArrives(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Message: 1024, Fragments: 3}})
	r.act(closing(), nil)
	c := r.dial("/o/a")
	x := strings.Repeat("x", 1024)
	c.send(x)
	c.frame(false, ws.OpText, x[:1000])
	c.frame(false, ws.OpContinuation, x[1000:])
	c.frame(true, ws.OpContinuation, "")
	r.hear("message "+x, "message "+x)
}

// TestViolatorsInputIsDiscarded: a client that is still sending what was too
// large reads the close code and the end, not a reset.
func TestViolatorsInputIsDiscarded(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Message: 1024}})
	r.act(closing(), nil)
	c := r.dial("/o/a")
	sent := make(chan error, 1)
	big := frame(true, ws.OpBinary, strings.Repeat("x", 256<<10))
	go func() { _, err := c.conn.Write(big); sent <- err }()
	if got := c.next(); !strings.HasPrefix(got, "close:1009 ") {
		t.Errorf("received %q", got)
	}
	c.expect("eof")
	if err := <-sent; err != nil {
		t.Errorf("the rest was not taken: %v", err)
	}
	r.hear("error, state 2")
}

// TestUndeliveredOfOneTurnIsLimited.
func TestUndeliveredOfOneTurnIsLimited(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Undelivered: 1000}})
	r.act(closing(), nil)
	c := r.dial("/o/a")
	r.must("a", func(ctx context.Context, a *actor) error {
		if err := only(a).SendText(ctx, strings.Repeat("x", 600)); err != nil {
			t.Error(err)
		}
		if got := limit(only(a).SendText(ctx, strings.Repeat("y", 600))); !strings.HasSuffix(got, "/1000") {
			t.Error(got)
		}
		_ = hibernate.Await(ctx, func(context.Context) error { return nil })
		return only(a).SendText(ctx, strings.Repeat("z", 600))
	})
	c.expect("text:"+strings.Repeat("x", 600), "text:"+strings.Repeat("z", 600))
}
