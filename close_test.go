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

const lost = `1006 "WebSocket disconnected without sending Close frame." false`

// closing tells of close and error events, with what holds in their handlers.
func closing() *script {
	return &script{
		message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			a.tell("message %s", m.Data)
			return nil
		},
		close: func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
			a.tell("close %d %q %v, state %d", e.Code, e.Reason, e.WasClean, ws.ReadyState())
			return nil
		},
		fail: func(ctx context.Context, a *actor, ws hibernate.WebSocket, err error) error {
			a.tell("error, state %d", ws.ReadyState())
			return nil
		},
	}
}

// gone fails unless the object has no socket left and nothing more was told.
func (r *rig) gone(name string) {
	r.t.Helper()
	r.must(name, func(ctx context.Context, a *actor) error {
		if n := len(a.state.WebSockets()); n != 0 {
			return fmt.Errorf("%d sockets are left", n)
		}
		return nil
	})
	r.silent()
}

// Each way of closing by the client, its event, and the automatic answer; with
// ManualCloseReply there is no answer and state 2 (semantics 5.1 to 5.4).
var clientCloses = []struct {
	name   string
	do     func(*client)
	event  string
	clean  bool
	answer []string // the automatic one
}{
	{"1000", func(c *client) { c.close(1000, "bye") }, `1000 "bye" true`, true, []string{"close:1000 ", "eof"}},
	{"4999", func(c *client) { c.close(4999, "é") }, `4999 "é" true`, true, []string{"close:4999 ", "eof"}},
	{"longest reason", func(c *client) { c.close(1001, strings.Repeat("x", 123)) }, `1001 "` + strings.Repeat("x", 123) + `" true`, true, []string{"close:1001 ", "eof"}},
	{"no code", func(c *client) { c.frame(true, ws.OpClose, "") }, `1005 "" true`, true, []string{"close:1005 ", "eof"}},
	{"drop", func(c *client) { c.drop() }, lost, false, nil},
	{"reset", func(c *client) { c.reset() }, lost, false, nil},
	{"half close", func(c *client) { c.halfClose() }, lost, false, []string{"eof"}},
	{"drop inside a frame", func(c *client) { c.write(frame(true, ws.OpText, "cut short")[:9]); c.drop() }, lost, false, nil},
	{"drop inside a message", func(c *client) { c.frame(false, ws.OpText, "cut"); c.drop() }, lost, false, nil},
	{"half close inside a header", func(c *client) { c.write([]byte{0x81}); c.halfClose() }, lost, false, []string{"eof"}},
}

// TestClientClosesAndIsAnswered by the runtime, which is the default.
func TestClientClosesAndIsAnswered(t *testing.T) {
	for _, tc := range clientCloses {
		t.Run(tc.name, func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
				r := newRig(t, "", nil)
				s := closing()
				s.close = func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
					if got := a.state.WebSockets("t"); len(got) != 1 || got[0] != ws || len(a.state.WebSockets()) != 1 {
						t.Errorf("listed in the handler: %v", got)
					}
					err := ws.SendText(ctx, "late")
					if e.WasClean && !errors.Is(err, hibernate.ErrClosed) || !e.WasClean && err != nil {
						t.Errorf("send in the handler: %v", err)
					}
					if err := ws.Close(ctx, 4321, "late"); err != nil {
						t.Errorf("close in the handler: %v", err)
					}
					a.tell("close %d %q %v, state %d", e.Code, e.Reason, e.WasClean, ws.ReadyState())
					return nil
				}
				r.act(s, nil)
				c := r.dial("/o/a?tag=t")
				pause(r)
				tc.do(c)
				state := 2
				if tc.clean {
					state = 3
				}
				c.expect(tc.answer...)
				if tc.clean { // what Close in the handler does to a lost connection is 2.7's
					r.hear(fmt.Sprintf("close %s, state %d", tc.event, state))
				} else {
					got := <-r.play.events
					if !strings.HasPrefix(got, "close "+tc.event+", state ") {
						t.Errorf("heard %q, want %q", got, tc.event)
					}
				}
				r.gone("a")
				if n := r.rt.Stats().Sockets; n != 0 {
					t.Errorf("%d sockets are counted", n)
				}
			})
		})
	}
}

// TestClientClosesAndHandlerAnswers: with ManualCloseReply the handler's code
// is sent, behind what it sends, also after an await (5.5, 2.6, 4.8).
func TestClientClosesAndHandlerAnswers(t *testing.T) {
	for _, await := range []bool{false, true} {
		t.Run(fmt.Sprintf("await=%v", await), func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
				r := newRig(t, "", nil)
				s := closing()
				s.close = func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
					a.tell("state %d", ws.ReadyState())
					if await {
						_ = hibernate.Await(ctx, func(context.Context) error { return nil })
					}
					if err := ws.SendText(ctx, "last words"); err != nil {
						t.Error(err)
					}
					if err := ws.Close(ctx, 4321, "mine"); err != nil {
						t.Error(err)
					}
					a.tell("state %d, %v", ws.ReadyState(), ws.SendText(ctx, "too late") == hibernate.ErrClosed)
					return nil
				}
				r.act(s, &hibernate.ClassOptions{ManualCloseReply: true})
				c := r.dial("/o/a")
				pause(r)
				c.close(1000, "bye")
				r.hear("state 2", "state 3, true")
				c.expect("text:last words", "close:4321 mine", "eof")
				r.gone("a")
			})
		})
	}
}

// TestManualCloseReplyUnanswered: without an answer from the class the client
// gets none, and its connection is cut after CloseTimeout (5.4).
func TestManualCloseReplyUnanswered(t *testing.T) {
	for _, tc := range clientCloses {
		t.Run(tc.name, func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
				r := newRig(t, "", nil)
				r.act(closing(), &hibernate.ClassOptions{ManualCloseReply: true})
				c := r.dial("/o/a")
				pause(r)
				tc.do(c)
				r.hear("close " + tc.event + ", state 2")
				r.gone("a")
				if tc.clean {
					r.until("the connection to be cut", func() bool {
						r.clock.Advance(31 * time.Second)
						return r.rt.Stats().Sockets == 0
					})
					c.expect("eof")
				}
				r.turn("a")
				r.silent()
			})
		})
	}
}

// bothReplies runs a scenario with the automatic answer and without.
func bothReplies(t *testing.T, f func(t *testing.T, o *hibernate.ClassOptions, pause func(*rig))) {
	for _, manual := range []bool{false, true} {
		t.Run(fmt.Sprintf("manual=%v", manual), func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
				f(t, &hibernate.ClassOptions{ManualCloseReply: manual, CloseTimeout: -1}, pause)
			})
		})
	}
}

// TestObjectClosesFirst: the client gets the frame; its answer is the event,
// with the client's code; messages until then are delivered; the socket stays
// listed and CLOSING (2.5, 5.6, 5.7, 5.8, 5.11).
func TestObjectClosesFirst(t *testing.T) {
	for _, tc := range []struct {
		name  string
		end   func(*client)
		event string
	}{
		{"answer", func(c *client) { c.close(4000, "yours"); c.expect("eof") }, `close 4000 "yours" true, state 3`},
		{"own code", func(c *client) { c.close(3000, ""); c.expect("eof") }, `close 3000 "" true, state 3`},
		{"no code", func(c *client) { c.frame(true, ws.OpClose, ""); c.expect("eof") }, `close 1005 "" true, state 3`},
		{"drop", func(c *client) { c.drop() }, "close " + lost + ", state 3"},
		{"reset", func(c *client) { c.reset() }, "close " + lost + ", state 3"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bothReplies(t, func(t *testing.T, o *hibernate.ClassOptions, pause func(*rig)) {
				r := newRig(t, "", nil)
				r.act(closing(), o)
				c := r.dial("/o/a?tag=t")
				pause(r)
				r.must("a", func(ctx context.Context, a *actor) error { return only(a).Close(ctx, 4000, "ours") })
				c.expect("close:4000 ours")
				pause(r)
				c.send("between")
				r.hear("message between")
				c.ping("p") // is not answered: our Close was our last frame
				pause(r)
				r.must("a", func(ctx context.Context, a *actor) error {
					ws := a.state.WebSockets("t")[0]
					if ws != only(a) || ws.ReadyState() != hibernate.StateClosing {
						t.Errorf("state %d", ws.ReadyState())
					}
					if err := ws.SendText(ctx, "x"); !errors.Is(err, hibernate.ErrClosed) {
						t.Errorf("send: %v", err)
					}
					if err := ws.Close(ctx, 4001, "again"); err != nil {
						t.Errorf("second close: %v", err)
					}
					return nil
				})
				pause(r)
				tc.end(c)
				r.hear(tc.event)
				r.gone("a")
			})
		})
	}
}

// TestCloseNoCodeSendsAnEmptyFrame (5.8).
func TestCloseNoCodeSendsAnEmptyFrame(t *testing.T) {
	bothReplies(t, func(t *testing.T, o *hibernate.ClassOptions, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(closing(), o)
		c := r.dial("/o/a")
		pause(r)
		r.must("a", func(ctx context.Context, a *actor) error { return only(a).CloseNoCode(ctx) })
		c.expect("close:1005 ")
		c.frame(true, ws.OpClose, "")
		c.expect("eof")
		r.hear(`close 1005 "" true, state 3`)
	})
}

// TestCloseChecksItsArguments before the state; the socket stays open (5.9).
func TestCloseChecksItsArguments(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), &hibernate.ClassOptions{CloseTimeout: -1})
	c := r.dial("/o/a")
	check := func(ctx context.Context, ws hibernate.WebSocket) {
		for _, code := range []int{-1, 0, 1, 999, 1004, 1005, 1006, 1015, 5000, 65536, 1 << 20} {
			if err := ws.Close(ctx, code, ""); !errors.Is(err, hibernate.ErrInvalid) {
				t.Errorf("code %d: %v", code, err)
			}
		}
		var l *hibernate.LimitError
		for _, reason := range []string{strings.Repeat("x", 124), strings.Repeat("é", 62)} {
			if err := ws.Close(ctx, 1000, reason); !errors.As(err, &l) || l.Max != 123 || l.Got != 124 {
				t.Errorf("reason of %d bytes: %v", len(reason), err)
			}
		}
		if err := ws.Close(ctx, 1000, "\xff"); !errors.Is(err, hibernate.ErrInvalid) {
			t.Errorf("reason that is not UTF-8: %v", err)
		}
	}
	r.must("a", func(ctx context.Context, a *actor) error {
		check(ctx, only(a))
		if only(a).ReadyState() != hibernate.StateOpen {
			t.Errorf("state %d", only(a).ReadyState())
		}
		return only(a).SendText(ctx, "still open")
	})
	c.expect("text:still open")
	r.must("a", func(ctx context.Context, a *actor) error {
		if err := only(a).Close(ctx, 1000, strings.Repeat("x", 123)); err != nil {
			t.Error(err)
		}
		check(ctx, only(a)) // also once closed
		return nil
	})
	c.expect("close:1000 " + strings.Repeat("x", 123))
}

// TestEveryValidCloseCodeIsSent.
func TestEveryValidCloseCodeIsSent(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), nil)
	for _, code := range []int{1000, 1001, 1003, 1007, 1011, 1014, 1016, 2000, 2999, 3000, 4999} {
		c := r.dial("/o/a")
		r.must("a", func(ctx context.Context, a *actor) error {
			return a.state.WebSockets()[0].Close(ctx, code, "why")
		})
		c.expect(fmt.Sprintf("close:%d why", code))
	}
}

// TestBothCloseAtOnce: the client sees the object's frame, the event carries
// the client's code (5.10).
func TestBothCloseAtOnce(t *testing.T) {
	bothReplies(t, func(t *testing.T, o *hibernate.ClassOptions, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(closing(), o)
		c := r.dial("/o/a")
		pause(r)
		r.must("a", func(ctx context.Context, a *actor) error {
			err := only(a).Close(ctx, 4001, "object")
			c.close(4002, "client") // before the object's frame has left
			return err
		})
		c.expect("close:4001 object", "eof")
		r.hear(`close 4002 "client" true, state 3`)
		r.gone("a")
	})
}

// TestMessagesBeforeTheEndComeFirst, then the one close event (5.16).
func TestMessagesBeforeTheEndComeFirst(t *testing.T) {
	for name, end := range map[string]func(*client){
		"close": func(c *client) { c.close(1000, "") },
		"drop":  func(c *client) { c.drop() },
		"half":  func(c *client) { c.halfClose() },
	} {
		t.Run(name, func(t *testing.T) {
			bothReplies(t, func(t *testing.T, o *hibernate.ClassOptions, pause func(*rig)) {
				r := newRig(t, "", nil)
				s := closing()
				s.close = func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
					a.tell("close %d", e.Code)
					return nil
				}
				r.act(s, o)
				c := r.dial("/o/a")
				pause(r)
				var b []byte
				for i := range 20 {
					b = append(b, frame(true, ws.OpText, fmt.Sprint(i))...)
				}
				c.write(b)
				end(c)
				for i := range 20 {
					r.hear(fmt.Sprintf("message %d", i))
				}
				if name == "close" {
					r.hear("close 1000")
				} else {
					r.hear("close 1006")
				}
				r.gone("a")
			})
		})
	}
}

// TestAutomaticAnswerIsBehindEarlierOutput: what earlier messages of the
// socket are answered comes before it.
func TestAutomaticAnswerIsBehindEarlierOutput(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, t.TempDir(), nil)
		s := closing()
		s.message = func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			if err := hibernate.Put(ctx, a.state.Storage(), "k", m.Text()); err != nil {
				return err
			}
			return ws.SendText(ctx, m.Text())
		}
		r.act(s, nil)
		c := r.dial("/o/a")
		pause(r)
		c.write(append(append(frame(true, ws.OpText, "1"), frame(true, ws.OpText, "2")...), frame(true, ws.OpClose, "\x03\xe8")...))
		c.expect("text:1", "text:2", "close:1000 ", "eof")
		r.hear(`close 1000 "" true, state 3`)
	})
}

// TestInputBehindCloseIsIgnored (RFC 6455 §5.5.1).
func TestInputBehindCloseIsIgnored(t *testing.T) {
	bothReplies(t, func(t *testing.T, o *hibernate.ClassOptions, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(closing(), o)
		c := r.dial("/o/a")
		pause(r)
		c.write(append(frame(true, ws.OpClose, "\x03\xe8"), frame(true, ws.OpText, "ignored")...))
		state := 3
		if o.ManualCloseReply {
			state = 2
		}
		r.hear(fmt.Sprintf(`close 1000 "" true, state %d`, state))
		r.gone("a")
	})
}

// TestCloseWhileHandlerAwaits: the event is delivered meanwhile. The handler
// can still send and close after a clean Close that it is to answer itself;
// after a drop both are ignored (5.15).
func TestCloseWhileHandlerAwaits(t *testing.T) {
	for _, drop := range []bool{false, true} {
		t.Run(fmt.Sprintf("drop=%v", drop), func(t *testing.T) {
			enter, leave := make(chan bool), make(chan bool)
			r := newRig(t, "", nil)
			s := closing()
			s.message = func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
				_ = hibernate.Await(ctx, func(context.Context) error { enter <- true; <-leave; return nil })
				a.tell("send %v", ws.SendText(ctx, "still there?"))
				a.tell("close %v", ws.Close(ctx, 4000, "late"))
				return nil
			}
			r.act(s, &hibernate.ClassOptions{ManualCloseReply: true})
			c := r.dial("/o/a")
			c.send("x")
			<-enter
			if drop {
				c.drop()
				r.hear("close " + lost + ", state 2")
			} else {
				c.close(1000, "")
				r.hear(`close 1000 "" true, state 2`)
			}
			leave <- true
			r.hear("send <nil>", "close <nil>")
			if !drop {
				c.expect("text:still there?", "close:4000 late", "eof")
			}
			r.gone("a")
		})
	}
}

// TestCloseHandlerFailureChangesNothing: the socket is removed (2.4, 5.12).
func TestCloseHandlerFailureChangesNothing(t *testing.T) {
	for name, end := range map[string]func() error{
		"error": func() error { return errors.New("disliked") },
		"panic": func() error { panic("disliked") },
	} {
		t.Run(name, func(t *testing.T) {
			bothReplies(t, func(t *testing.T, o *hibernate.ClassOptions, pause func(*rig)) {
				r := newRig(t, "", nil)
				s := closing()
				s.close = func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
					a.tell("closed")
					return end()
				}
				r.act(s, o)
				c, d := r.dial("/o/a?tag=c"), r.dial("/o/a?tag=d")
				pause(r)
				c.close(1000, "")
				r.hear("closed")
				r.must("a", func(ctx context.Context, a *actor) error {
					if all := a.state.WebSockets(); len(all) != 1 || all[0].Tags()[0] != "d" {
						t.Errorf("%d sockets", len(all))
					}
					return nil
				})
				d.ping("alive")
				d.expect("pong:alive")
				r.silent()
			})
		})
	}
}

// TestKeptHandleOfGoneConnection: sends and closes are ignored, tags stay
// readable; the state is 3 after our close and 2 after a drop (2.7).
func TestKeptHandleOfGoneConnection(t *testing.T) {
	for _, tc := range []struct {
		name     string
		ours     bool
		end      func(*client)
		state    hibernate.ReadyState
		sendFail bool
	}{
		{"drop", false, func(c *client) { c.drop() }, hibernate.StateClosing, false},
		{"our close, drop", true, func(c *client) { c.drop() }, hibernate.StateClosed, true},
		{"our close, answer", true, func(c *client) { c.close(1000, "") }, hibernate.StateClosed, true},
		{"their close", false, func(c *client) { c.close(1000, "") }, hibernate.StateClosed, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
				r := newRig(t, "", nil)
				s := closing()
				s.close = func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
					a.tell("closed")
					return nil
				}
				r.act(s, &hibernate.ClassOptions{CloseTimeout: -1})
				c := r.dial("/o/a?tag=t")
				var kept hibernate.WebSocket
				r.must("a", func(ctx context.Context, a *actor) error {
					kept = only(a)
					if tc.ours {
						return kept.Close(ctx, 1000, "")
					}
					return nil
				})
				tc.end(c)
				r.hear("closed")
				pause(r)
				r.must("a", func(ctx context.Context, a *actor) error {
					if got := kept.ReadyState(); got != tc.state {
						t.Errorf("state %d, want %d", got, tc.state)
					}
					if err := kept.SendText(ctx, "x"); (err == nil) == tc.sendFail || err != nil && !errors.Is(err, hibernate.ErrClosed) {
						t.Errorf("send: %v", err)
					}
					if err := kept.Close(ctx, 1000, ""); err != nil {
						t.Errorf("close: %v", err)
					}
					if got := kept.Tags(); len(got) != 1 || got[0] != "t" {
						t.Errorf("tags %q", got)
					}
					return nil
				})
			})
		})
	}
}

// TestCloseTimeoutCutsASilentPeer: one event with 1006, once.
func TestCloseTimeoutCutsASilentPeer(t *testing.T) {
	for _, tc := range []struct {
		name  string
		given time.Duration
		want  time.Duration
	}{{"default", 0, 30 * time.Second}, {"5s", 5 * time.Second, 5 * time.Second}} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, "", nil)
			r.act(closing(), &hibernate.ClassOptions{CloseTimeout: tc.given})
			c := r.dial("/o/a")
			r.must("a", func(ctx context.Context, a *actor) error { return only(a).Close(ctx, 4000, "") })
			c.expect("close:4000 ")
			c.send("in time")
			r.hear("message in time")
			r.evict("a")
			r.until("the peer to be cut off", func() bool {
				r.clock.Advance(time.Second)
				return r.rt.Stats().Sockets == 0
			})
			if after := r.clock.Now().Sub(epoch); after < tc.want {
				t.Errorf("cut off after %v", after)
			}
			r.hear("close " + lost + ", state 3")
			c.expect("eof")
			r.gone("a")
		})
	}
}

// TestCloseTimeoutCanBeForEver (2.5).
func TestCloseTimeoutCanBeForEver(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), &hibernate.ClassOptions{CloseTimeout: -1})
	c := r.dial("/o/a")
	r.must("a", func(ctx context.Context, a *actor) error { return only(a).Close(ctx, 4000, "") })
	c.expect("close:4000 ")
	r.hibernate()
	r.clock.Advance(1000 * time.Hour)
	c.send("still here")
	r.hear("message still here")
	c.close(1000, "")
	r.hear(`close 1000 "" true, state 3`)
}

// TestRuntimeCloseCutsConnections without Close frames or events (14.1).
func TestRuntimeCloseCutsConnections(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(closing(), nil)
		c := r.dial("/o/a")
		r.turn("a")
		pause(r)
		if err := r.rt.Close(); err != nil {
			t.Error(err)
		}
		c.expect("eof")
		r.silent()
		<-r.rt.Done()
		if err := r.rt.Err(); err != nil {
			t.Error(err)
		}
		if err := r.in("a", nil); !errors.Is(err, hibernate.ErrUnavailable) {
			t.Errorf("call after close: %v", err)
		}
	})
}
