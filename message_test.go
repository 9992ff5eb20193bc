package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// TestMessagesArriveAsSent: kind, bytes, empty ones, whole after
// fragmentation, in order (semantics 4.1, 4.2, 4.4).
func TestMessagesArriveAsSent(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(echoing(), nil)
		c := r.dial("/o/a")
		for _, tc := range []struct {
			what string
			send func()
			want []string
		}{
			{"text", func() { c.send("é\x00") }, []string{"text:1:é\x00"}},
			{"binary", func() { c.sendBinary([]byte("b")) }, []string{"text:2:b"}},
			{"empty text", func() { c.send("") }, []string{"text:1:"}},
			{"empty binary", func() { c.sendBinary(nil) }, []string{"text:2:"}},
			{"64 KiB", func() { c.send(strings.Repeat("x", 65536)) }, []string{"text:1:" + strings.Repeat("x", 65536)}},
			{"fragments", func() {
				c.frame(false, ws.OpText, "a")
				c.frame(false, ws.OpContinuation, "")
				c.frame(false, ws.OpContinuation, "b\xc3")
				c.frame(true, ws.OpContinuation, "\xa9")
			}, []string{"text:1:abé"}},
			{"empty fragments", func() {
				c.frame(false, ws.OpText, "")
				c.frame(true, ws.OpContinuation, "")
			}, []string{"text:1:"}},
			{"a ping between fragments", func() {
				c.frame(false, ws.OpBinary, "a")
				c.ping("p")
				c.frame(true, ws.OpContinuation, "b")
			}, []string{"pong:p", "text:2:ab"}},
			{"a frame in pieces", func() {
				f := frame(true, ws.OpText, "piecemeal")
				for i := range f {
					c.write(f[i : i+1])
				}
			}, []string{"text:1:piecemeal"}},
			{"many in one write", func() {
				var b []byte
				for i := range 3 {
					b = append(b, frame(true, ws.OpText, fmt.Sprint(i))...)
				}
				c.write(b)
			}, []string{"text:1:0", "text:1:1", "text:1:2"}},
		} {
			t.Log(tc.what)
			pause(r)
			tc.send()
			c.expect(tc.want...)
		}
	})
}

// TestBacklogWakesOneInstance: a thousand messages sent at once to a
// hibernated object arrive in order in one new instance (4.5).
func TestBacklogWakesOneInstance(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		s := &script{}
		s.message = func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			return ws.SendText(ctx, fmt.Sprintf("%s by %d", m.Data, a.n))
		}
		r.act(s, nil)
		c := r.dial("/o/a")
		pause(r)
		before := r.play.made.Load()
		var b []byte
		for i := range 1000 {
			b = append(b, frame(true, ws.OpText, fmt.Sprint(i))...)
		}
		c.write(b)
		first := ""
		for i := range 1000 {
			got := c.next()
			if i == 0 {
				first = strings.TrimPrefix(got, "text:0 by ")
			}
			if want := fmt.Sprintf("text:%d by %s", i, first); got != want {
				t.Fatalf("received %q, want %q", got, want)
			}
		}
		if n := r.play.made.Load(); n > before+1 {
			t.Errorf("%d instances for one backlog", n-before)
		}
	})
}

// TestHandlerErrorKeepsWritesAndSends: it is logged, and that is all (4.6).
func TestHandlerErrorKeepsWritesAndSends(t *testing.T) {
	for _, await := range []bool{false, true} {
		t.Run(fmt.Sprintf("await=%v", await), func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
				r := newRig(t, "", nil)
				r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
					if m.Text() == "read" {
						v, _, err := hibernate.Get[string](ctx, a.state.Storage(), "k")
						if err != nil {
							return err
						}
						return ws.SendText(ctx, fmt.Sprintf("%s %d", v, a.n))
					}
					if err := hibernate.Put(ctx, a.state.Storage(), "k", "kept"); err != nil {
						t.Error(err)
					}
					_ = ws.SendText(ctx, fmt.Sprint(a.n))
					if await {
						_ = hibernate.Await(ctx, func(context.Context) error { return nil })
					}
					return errors.New("disliked")
				}}, nil)
				c := r.dial("/o/a")
				r.turn("a")
				pause(r)
				c.send("write")
				n := strings.TrimPrefix(c.next(), "text:")
				c.send("read")
				c.expect("text:kept " + n) // by the same instance
				// A message may go before the rest of a turn that awaited.
				r.until("the error", func() bool { return r.rt.Stats().HandlerErrors == 1 })
				if s := r.rt.Stats(); s.HandlerErrors != 1 || s.Panics != 0 || s.Resets != 0 {
					t.Errorf("%+v", s)
				}
				r.until("the log", func() bool { return strings.Contains(r.log.String(), "disliked") })
			})
		})
	}
}

// TestRollbackOnErrorUndoesTheTurn as a panic does.
func TestRollbackOnErrorUndoesTheTurn(t *testing.T) {
	testUndone(t, &hibernate.ClassOptions{RollbackOnError: true}, func() error { return errors.New("disliked") })
}

// TestPanicUndoesTheTurn: writes, sends, closes and attachments since the last
// commit are undone; the sockets stay, the next message meets a new instance.
func TestPanicUndoesTheTurn(t *testing.T) {
	testUndone(t, nil, func() error { panic("disliked") })
}

// TestGoexitIsAPanic and ends no loop.
func TestGoexitIsAPanic(t *testing.T) {
	testUndone(t, nil, func() error { runtime.Goexit(); return nil })
}

func testUndone(t *testing.T, o *hibernate.ClassOptions, end func() error) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			st := a.state.Storage()
			switch m.Text() {
			case "read":
				v, ok, err := hibernate.Get[string](ctx, st, "k")
				if err != nil {
					return err
				}
				_, set, err := st.Alarm(ctx)
				if err != nil {
					return err
				}
				at, _, err := hibernate.Attachment[string](ws)
				if err != nil {
					return err
				}
				return ws.SendText(ctx, fmt.Sprintf("%q %v, alarm %v, attachment %q, state %d, instance %d", v, ok, set, at, ws.ReadyState(), a.n))
			case "bad":
				_ = hibernate.Put(ctx, st, "k", "undone")
				_ = st.SetAlarm(ctx, r.clock.Now().AddDate(1, 0, 0))
				_ = ws.SendText(ctx, "undone")
				_ = ws.SerializeAttachment(ctx, "undone")
				ws.Close(ctx, 4000, "undone")
				return end()
			case "await":
				_ = hibernate.Put(ctx, st, "k", "kept")
				_ = ws.SendText(ctx, "kept")
				_ = ws.SerializeAttachment(ctx, "kept")
				_ = hibernate.Await(ctx, func(context.Context) error { return nil })
				_ = hibernate.Put(ctx, st, "k", "undone")
				_ = ws.SendText(ctx, "undone")
				a.tell("holds the turn again")
				return end()
			}
			return nil
		}}, o)
		c, d := r.dial("/o/a"), r.dial("/o/a")
		r.turn("a")
		pause(r)
		n := r.play.made.Load()
		c.send("bad")
		c.send("read")
		if got := c.next(); got == fmt.Sprintf(`text:"" false, alarm false, attachment "", state 1, instance %d`, n) ||
			!strings.HasPrefix(got, `text:"" false, alarm false, attachment "", state 1, instance `) {
			t.Fatalf("after the undone turn: %s", got)
		}
		n = r.play.made.Load()
		pause(r)
		c.send("await")
		c.expect("text:kept")
		r.hear("holds the turn again") // until then the next message could go first
		c.send("read")
		if got := c.next(); got == fmt.Sprintf(`text:"kept" true, alarm false, attachment "kept", state 1, instance %d`, n) ||
			!strings.HasPrefix(got, `text:"kept" true, alarm false, attachment "kept", state 1, instance `) {
			t.Fatalf("after the turn undone behind an await: %s", got)
		}
		d.ping("alive")
		d.expect("pong:alive")
		s := r.rt.Stats()
		if o == nil && s.Panics != 2 || s.Sockets != 2 {
			t.Errorf("%+v", s)
		}
		if log := r.log.String(); o == nil && !strings.Contains(log, "message_test.go") {
			t.Errorf("the stack was not logged:\n%s", log)
		}
	})
}

// A mute has no handlers.
type mute struct{ state *hibernate.State }

var muteSend = hibernate.NewMethod("send", func(m *mute, ctx context.Context, s string) (int, error) {
	all := m.state.WebSockets()
	for _, ws := range all {
		if err := ws.SendText(ctx, s); err != nil {
			return 0, err
		}
	}
	return len(all), nil
})

// TestMissingHandlersDropEvents silently; sends work, and a client's Close
// removes the socket (4.7).
func TestMissingHandlersDropEvents(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		serve(r, func(_ context.Context, s *hibernate.State) (*mute, error) { return &mute{s}, nil }, nil)
		send := func(s string) int {
			t.Helper()
			n, err := muteSend.Call(context.Background(), r.ns.GetByName("a"), s)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		c, d, e := r.dial("/o/a"), r.dial("/o/a"), r.dial("/o/a")
		pause(r)
		c.send("dropped")
		if n := send("x"); n != 3 {
			t.Fatalf("%d sockets", n)
		}
		c.expect("text:x")
		d.expect("text:x")
		e.expect("text:x")
		pause(r)
		c.close(1000, "")
		c.expect("close:1000 ", "eof")
		e.frame(true, 3, "")
		e.expect("close:1002 use of reserved op code", "eof")
		r.until("two sockets to go", func() bool { return send("y") == 1 })
	})
}

// TestSendAfterCloseIsErrClosed; what was sent before leaves first, the Close
// frame last, and a second close does nothing (4.8, 4.9).
func TestSendAfterCloseIsErrClosed(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(echoing(), nil)
		c := r.dial("/o/a")
		pause(r)
		r.must("a", func(ctx context.Context, a *actor) error {
			ws := only(a)
			for i := range 3 {
				if err := ws.SendText(ctx, fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			}
			if err := ws.Close(ctx, 4001, "first"); err != nil {
				t.Error(err)
			}
			if err := ws.SendText(ctx, "late"); !errors.Is(err, hibernate.ErrClosed) {
				t.Errorf("send after close: %v", err)
			}
			if err := ws.Close(ctx, 4002, "second"); err != nil {
				t.Errorf("second close: %v", err)
			}
			if n, err := a.state.Broadcast(ctx, hibernate.Text("late"), nil); n != 0 || err != nil {
				t.Errorf("broadcast reached %d: %v", n, err)
			}
			return nil
		})
		c.expect("text:0", "text:1", "text:2", "close:4001 first")
	})
}

// TestSendRefusesWhatIsNoMessage, and what is sent is copied at the call.
func TestSendRefusesWhatIsNoMessage(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(echoing(), nil)
	c := r.dial("/o/a")
	r.must("a", func(ctx context.Context, a *actor) error {
		ws := only(a)
		for _, m := range []hibernate.Message{hibernate.Text("\xff"), {}, {Kind: 3}} {
			if err := ws.Send(ctx, m); !errors.Is(err, hibernate.ErrInvalid) {
				t.Errorf("send of %v: %v", m, err)
			}
			if _, err := a.state.Broadcast(ctx, m, nil); !errors.Is(err, hibernate.ErrInvalid) {
				t.Errorf("broadcast of %v: %v", m, err)
			}
		}
		b := []byte("before")
		_ = ws.Send(ctx, hibernate.Binary(b))
		copy(b, "after!")
		_ = ws.Send(ctx, hibernate.Binary(nil))
		return ws.Send(ctx, hibernate.Text(""))
	})
	c.expect("bin:before", "bin:", "text:")
}

// TestBroadcastReachesTheSelected: by tags, all of them, and without Except.
func TestBroadcastReachesTheSelected(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(echoing(), nil)
		c := r.dial("/o/a?tag=c&tag=x")
		d := r.dial("/o/a?tag=d&tag=x&tag=y")
		e := r.dial("/o/a?tag=e")
		pause(r)
		r.must("a", func(ctx context.Context, a *actor) error {
			cast := func(s string, want int, o *hibernate.BroadcastOptions) {
				if n, err := a.state.Broadcast(ctx, hibernate.Text(s), o); n != want || err != nil {
					t.Errorf("%s reached %d: %v", s, n, err)
				}
			}
			cast("all", 3, nil)
			cast("x", 2, &hibernate.BroadcastOptions{Tags: []string{"x"}})
			cast("xy", 1, &hibernate.BroadcastOptions{Tags: []string{"x", "y"}})
			cast("not d", 2, &hibernate.BroadcastOptions{Except: a.state.WebSockets("d")})
			cast("x not d", 1, &hibernate.BroadcastOptions{Tags: []string{"x"}, Except: a.state.WebSockets("d")})
			cast("end", 3, nil)
			return nil
		})
		c.expect("text:all", "text:x", "text:not d", "text:x not d", "text:end")
		d.expect("text:all", "text:x", "text:xy", "text:end")
		e.expect("text:all", "text:not d", "text:end")
	})
}

// TestSendsBeforeHandshakeFollowIt, in order (1.9).
func TestSendsBeforeHandshakeFollowIt(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{http: acceptAnd(t, func(ctx context.Context, a *actor, ws hibernate.WebSocket) {
		_ = ws.SendText(ctx, "1")
		_ = hibernate.Await(ctx, func(context.Context) error { return nil })
		_ = ws.SendText(ctx, "2")
		ws.Close(ctx, 4000, "3")
	})}, nil)
	r.dial("/o/a").expect("text:1", "text:2", "close:4000 3")
}

// TestSendToAnotherObjectsSocketIsRefused: a ctx is good for its own object.
func TestSendToAnotherObjectsSocketIsRefused(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(echoing(), nil)
	c := r.dial("/o/a")
	var theirs hibernate.WebSocket
	r.must("a", func(ctx context.Context, a *actor) error { theirs = only(a); return nil })
	r.must("b", func(ctx context.Context, b *actor) error {
		if err := theirs.SendText(ctx, "x"); !errors.Is(err, hibernate.ErrOutsideTurn) {
			t.Errorf("send: %v", err)
		}
		if err := theirs.Close(ctx, 1000, ""); !errors.Is(err, hibernate.ErrOutsideTurn) {
			t.Errorf("close: %v", err)
		}
		return nil
	})
	c.send("still open")
	c.expect("text:1:still open")
}
