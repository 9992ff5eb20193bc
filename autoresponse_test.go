package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// pairs sets the object's auto-responses.
func (r *rig) pairs(name string, pairs ...hibernate.AutoResponse) {
	r.t.Helper()
	r.must(name, func(ctx context.Context, a *actor) error { return a.state.SetWebSocketAutoResponse(ctx, pairs...) })
}

func pair(request, response string) hibernate.AutoResponse {
	return hibernate.AutoResponse{Request: request, Response: response}
}

// echoing answers every message with its kind and text.
func echoing() *script {
	return &script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		return ws.SendText(ctx, fmt.Sprintf("%d:%s", m.Kind, m.Data))
	}}
}

// TestAutoResponseMatchesWholeText covers semantics 7.2.
func TestAutoResponseMatchesWholeText(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(echoing(), nil)
		c := r.dial("/o/a")
		r.pairs("a", pair("ping", "pong"))
		for _, tc := range []struct {
			what string
			send func()
			want string
		}{
			{"the request", func() { c.send("ping") }, "text:pong"},
			{"other case", func() { c.send("Ping") }, "text:1:Ping"},
			{"a prefix", func() { c.send("pin") }, "text:1:pin"},
			{"a suffix", func() { c.send("pings") }, "text:1:pings"},
			{"binary", func() { c.sendBinary([]byte("ping")) }, "text:2:ping"},
			{"fragments", func() {
				c.frame(false, ws.OpText, "pi")
				c.frame(false, ws.OpContinuation, "")
				c.frame(true, ws.OpContinuation, "ng")
			}, "text:pong"},
			{"binary fragments", func() {
				c.frame(false, ws.OpBinary, "pi")
				c.frame(true, ws.OpContinuation, "ng")
			}, "text:2:ping"},
			{"empty", func() { c.send("") }, "text:1:"},
		} {
			t.Log(tc.what)
			pause(r)
			tc.send()
			c.expect(tc.want)
		}
		r.pairs("a", pair("", ""))
		pause(r)
		c.send("")
		c.expect("text:")
		c.sendBinary(nil)
		c.expect("text:2:")
	})
}

// TestAutoResponseLeavesObjectAsleep covers 7.3: no wake, no event, and an
// object in memory falls asleep under pings.
func TestAutoResponseLeavesObjectAsleep(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(echoing(), nil)
	c := r.dial("/o/a")
	r.pairs("a", pair("ping", "pong"))
	r.hibernate()
	for range 10 {
		c.send("ping")
		c.expect("text:pong")
	}
	if in := r.inspect("a"); in.InMemory() {
		t.Error("auto-responses woke the object")
	}
	r.instances(1)
	r.turn("a")
	r.until("the object to fall asleep under pings", func() bool {
		r.clock.Advance(2500 * time.Millisecond)
		c.send("ping")
		c.expect("text:pong")
		return r.rt.Stats().ObjectsInMemory == 0
	})
	r.instances(2)
	if n := r.rt.Stats().AutoResponses; n < 11 {
		t.Errorf("%d auto-responses counted", n)
	}
	if n := r.rt.Stats().Messages; n != 0 {
		t.Errorf("%d messages counted", n)
	}
}

// TestAutoResponseHoldsForAllSockets covers 7.1 and 7.4: for sockets accepted
// before and after, replaced and cleared as a whole, kept over hibernation.
func TestAutoResponseHoldsForAllSockets(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		s := echoing()
		s.construct = func(ctx context.Context, a *actor) error {
			a.tell("woken with %v", a.state.WebSocketAutoResponses())
			return nil
		}
		r.act(s, nil)
		r.pairs("a", pair("p", "early")) // before any socket
		r.hear("woken with []")
		c := r.dial("/o/a")
		other := r.dial("/o/b")
		r.hear("woken with []")
		c.send("p")
		c.expect("text:early")
		r.pairs("a", pair("p", "late"))
		d := r.dial("/o/a")
		pause(r)
		for _, x := range []*client{c, d} {
			x.send("p")
			x.expect("text:late")
		}
		other.send("p")
		other.expect("text:1:p")
		r.must("a", func(ctx context.Context, a *actor) error {
			if got := a.state.WebSocketAutoResponses(); !slices.Equal(got, []hibernate.AutoResponse{pair("p", "late")}) {
				t.Errorf("pairs %v", got)
			}
			return nil
		})
		r.pairs("a", pair("x", "1"), pair("y", "2"), pair("x", "3"))
		pause(r)
		c.send("p")
		c.expect("text:1:p")
		c.send("x")
		c.send("y")
		c.expect("text:1", "text:2")
		r.pairs("a")
		pause(r)
		d.send("x")
		d.expect("text:1:x")
		r.must("a", func(ctx context.Context, a *actor) error {
			if got := a.state.WebSocketAutoResponses(); len(got) != 0 {
				t.Errorf("pairs %v after clearing", got)
			}
			return nil
		})
	})
}

// TestAutoResponseLimits are bytes, 2,048 on each side, and 16 pairs; a
// refused call changes nothing.
func TestAutoResponseLimits(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(echoing(), nil)
	long := strings.Repeat("é", 1024)
	many := func(n int) (p []hibernate.AutoResponse) {
		for i := range n {
			p = append(p, pair(fmt.Sprint(i), ""))
		}
		return p
	}
	r.must("a", func(ctx context.Context, a *actor) error {
		for _, tc := range []struct {
			pairs []hibernate.AutoResponse
			want  string // end of the *LimitError; empty for none
		}{
			{[]hibernate.AutoResponse{pair(long, long)}, ""},
			{[]hibernate.AutoResponse{pair(long+"x", "")}, " 2049/2048"},
			{[]hibernate.AutoResponse{pair("ok", ""), pair("", long+"x")}, " 2049/2048"},
			{many(16), ""},
			{many(17), " 17/16"},
		} {
			before := a.state.WebSocketAutoResponses()
			err := a.state.SetWebSocketAutoResponse(ctx, tc.pairs...)
			after := a.state.WebSocketAutoResponses()
			if tc.want == "" {
				if err != nil || !slices.Equal(after, tc.pairs) {
					t.Errorf("%d pairs: %v, now %d", len(tc.pairs), err, len(after))
				}
			} else if !strings.HasSuffix(limit(err), tc.want) || !slices.Equal(after, before) {
				t.Errorf("%d pairs: %s, want %s; now %d, before %d", len(tc.pairs), limit(err), tc.want, len(after), len(before))
			}
		}
		if err := a.state.SetWebSocketAutoResponse(ctx, pair("x", "\xff")); !errors.Is(err, hibernate.ErrInvalid) {
			t.Errorf("a response that is not UTF-8: %v", err)
		}
		return nil
	})
	r.must("b", func(ctx context.Context, b *actor) error {
		if err := b.state.SetWebSocketAutoResponse(context.Background(), pair("a", "b")); !errors.Is(err, hibernate.ErrOutsideTurn) {
			t.Errorf("outside: %v", err)
		}
		return nil
	})
}

// TestAutoResponseTime covers 7.5: per socket, at receipt, kept over
// hibernation and clearing, zero before the first.
func TestAutoResponseTime(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(echoing(), nil)
		c := r.dial("/o/a?tag=c")
		r.dial("/o/a?tag=d")
		r.pairs("a", pair("p", "q"))
		look := func(want time.Time) {
			t.Helper()
			r.must("a", func(ctx context.Context, a *actor) error {
				if got := a.state.WebSockets("c")[0].AutoResponseTime(); !got.Equal(want) {
					t.Errorf("time %v, want %v", got, want)
				}
				if got := a.state.WebSockets("d")[0].AutoResponseTime(); !got.IsZero() {
					t.Errorf("time of the other %v", got)
				}
				return nil
			})
		}
		look(time.Time{})
		pause(r)
		r.clock.Advance(1500 * time.Millisecond)
		at := r.clock.Now()
		c.send("p")
		c.expect("text:q")
		look(at)
		r.clock.Advance(time.Second)
		pause(r)
		look(at)
		r.pairs("a")
		pause(r)
		look(at)
	})
}

// TestAutoResponseWhileHandlersWait covers 7.6: it is given while a handler
// awaits or holds the turn, unless an earlier message of the same socket waits.
func TestAutoResponseWhileHandlersWait(t *testing.T) {
	for _, held := range []bool{false, true} {
		t.Run(map[bool]string{false: "await", true: "held"}[held], func(t *testing.T) {
			enter, leave := make(chan bool), make(chan bool)
			r := newRig(t, "", nil)
			r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
				if m.Text() != "wait" {
					return ws.SendText(ctx, "got "+m.Text())
				}
				wait := func(ctx context.Context) error {
					return hibernate.Await(ctx, func(context.Context) error { enter <- true; <-leave; return nil })
				}
				if held {
					return a.state.BlockConcurrencyWhile(ctx, wait)
				}
				return wait(ctx)
			}}, nil)
			r.pairs("a", pair("p", "q"))
			c, d := r.dial("/o/a"), r.dial("/o/a")
			c.send("wait")
			<-enter
			d.send("p")
			d.expect("text:q")
			c.send("p") // the message before has been dispatched
			c.expect("text:q")
			d.send("m")
			d.send("p")
			if held {
				c.ping("barrier") // and d's message is surely not behind it
				c.expect("pong:barrier")
				leave <- true
			}
			d.expect("text:got m", "text:q")
			if !held {
				leave <- true
			}
		})
	}
}

// TestAutoResponseAfterClose covers 7.8: consumed and timed, but not answered.
func TestAutoResponseAfterClose(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		s := echoing()
		s.message = func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			a.tell("%s", m.Text())
			return nil
		}
		s.close = func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
			a.tell("closed %v", !ws.AutoResponseTime().IsZero())
			return nil
		}
		r.act(s, &hibernate.ClassOptions{CloseTimeout: -1})
		c := r.dial("/o/a")
		r.pairs("a", pair("p", "q"))
		r.must("a", func(ctx context.Context, a *actor) error { return only(a).Close(ctx, 4000, "done") })
		c.expect("close:4000 done")
		pause(r)
		c.send("p")
		c.send("m")
		r.hear("m")
		c.close(4000, "")
		c.expect("eof")
		r.hear("closed true")
	})
}

// TestAutoResponseIsUndoneWithItsTurn.
func TestAutoResponseIsUndoneWithItsTurn(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(echoing(), nil)
	c := r.dial("/o/a")
	r.pairs("a", pair("p", "first"))
	_ = r.in("a", func(ctx context.Context, a *actor) error {
		if err := a.state.SetWebSocketAutoResponse(ctx, pair("p", "second")); err != nil {
			t.Error(err)
		}
		panic("undo")
	})
	c.send("p")
	c.expect("text:first")
}

// TestAutoResponseIsLostWithTheProcess, like the connections (7.4, 14.1).
func TestAutoResponseIsLostWithTheProcess(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir, nil)
	r.act(echoing(), nil)
	r.pairs("a", pair("p", "q"))
	r.shut()
	r = newRig(t, dir, nil)
	r.act(echoing(), nil)
	c := r.dial("/o/a")
	c.send("p")
	c.expect("text:1:p")
}

// TestAutoResponseTakesItsPlaceBehindSends covers 7.7 for the sends that have
// left: what the object sent before is received before.
func TestAutoResponseTakesItsPlaceBehindSends(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(echoing(), nil)
	c := r.dial("/o/a")
	r.pairs("a", pair("p", "q"))
	big := strings.Repeat("x", 4<<20)
	r.must("a", func(ctx context.Context, a *actor) error { return only(a).SendText(ctx, big) })
	c.send("p")
	c.expect("text:"+big, "text:q")
}
