package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

// A door is something a handler waits at until the test opens it.
type door struct{ at, open chan struct{} }

func newDoor() *door { return &door{make(chan struct{}, 16), make(chan struct{})} }

// wait is for Await.
func (d *door) wait(context.Context) error {
	d.at <- struct{}{}
	<-d.open
	return nil
}

// pass lets through whoever waits, and all that come.
func (d *door) pass() { close(d.open) }

// later runs f in a turn of the object and gives its error to whoever asks.
func (r *rig) later(name string, f func(ctx context.Context, a *actor) error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- r.in(name, f) }()
	return done
}

func nothing(context.Context) error { return nil }

// TestTurnsAreSerial: whatever their cause, no two overlap.
func TestTurnsAreSerial(t *testing.T) {
	r := newRig(t, "", nil)
	inside := 0 // unguarded: the race detector watches too
	count := 0
	step := func() {
		if inside++; inside != 1 {
			t.Errorf("%d turns at once", inside)
		}
		count++
		inside--
	}
	r.act(&script{
		message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			step()
			return ws.SendText(ctx, "")
		},
		alarm: func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error { step(); a.tell("alarm"); return nil },
	}, nil)
	var all sync.WaitGroup
	for range 4 {
		c := r.dial("/o/a")
		all.Go(func() {
			for range 50 {
				c.send("x")
				c.next()
			}
		})
		all.Go(func() {
			for range 50 {
				if err := r.in("a", func(ctx context.Context, a *actor) error {
					step()
					_ = hibernate.Await(ctx, nothing)
					step()
					return nil
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	r.must("a", func(ctx context.Context, a *actor) error { return a.state.Storage().SetAlarm(ctx, epoch) })
	r.until("the alarm", func() bool { r.clock.Advance(time.Second); return len(r.play.events) > 0 })
	r.must("a", func(ctx context.Context, a *actor) error {
		if count != 4*50*3+1 {
			t.Errorf("%d steps", count)
		}
		return nil
	})
}

// TestReadModifyWriteNeedsNoLock (semantics 11.2).
func TestReadModifyWriteNeedsNoLock(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			for range 10 {
				if err := r.in("a", func(ctx context.Context, a *actor) error {
					n, _, err := hibernate.Get[int](ctx, a.state.Storage(), "n")
					if err != nil {
						return err
					}
					return hibernate.Put(ctx, a.state.Storage(), "n", n+1)
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	r.must("a", func(ctx context.Context, a *actor) error {
		if n, _, err := hibernate.Get[int](ctx, a.state.Storage(), "n"); n != 60 || err != nil {
			t.Errorf("n = %d, %v", n, err)
		}
		return nil
	})
}

// TestAwaitLetsOthersIn, also the next message of the same socket (4.3, 11.4).
func TestAwaitLetsOthersIn(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		d := newDoor()
		r := newRig(t, "", nil)
		r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			text := m.Text()
			if text == "wait" {
				if err := hibernate.Await(ctx, d.wait); err != nil {
					t.Error(err)
				}
			}
			return ws.SendText(ctx, fmt.Sprintf("%s done by %d", text, a.n))
		}}, nil)
		c := r.dial("/o/a")
		pause(r)
		c.send("wait")
		<-d.at
		c.send("overtakes")
		got := c.next()
		if !strings.HasPrefix(got, "text:overtakes done by ") {
			t.Fatal(got)
		}
		r.turn("a")
		d.pass()
		c.expect("text:wait done by " + strings.TrimPrefix(got, "text:overtakes done by "))
	})
}

// TestAwaitCommits what was written before, durably, and sends what was sent.
func TestAwaitCommits(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	r.act(&script{}, nil)
	c := r.dial("/o/a")
	d := newDoor()
	done := r.later("a", func(ctx context.Context, a *actor) error {
		_ = hibernate.Put(ctx, a.state.Storage(), "k", 1)
		_ = only(a).SendText(ctx, "before")
		_ = hibernate.Await(ctx, d.wait)
		_ = only(a).SendText(ctx, "after")
		return nil
	})
	<-d.at
	c.expect("text:before")
	if n := r.rt.Stats().Commits; n != 1 {
		t.Errorf("%d commits before the await began", n)
	}
	d.pass()
	c.expect("text:after")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAwaitReturnsItsFunctionsError, and its panic goes on in the turn.
func TestAwaitReturnsItsFunctionsError(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	mine := errors.New("mine")
	r.must("a", func(ctx context.Context, a *actor) error {
		if err := hibernate.Await(ctx, func(context.Context) error { return mine }); err != mine {
			t.Errorf("%v", err)
		}
		func() {
			defer func() {
				if v := recover(); v != "mine too" {
					t.Errorf("recovered %v", v)
				}
			}()
			_ = hibernate.Await(ctx, func(context.Context) error { panic("mine too") })
		}()
		return hibernate.Put(ctx, a.state.Storage(), "k", 1) // the turn goes on
	})
	r.instances(1)
}

// TestCtxIsRefusedOutsideItsTurn: while its handler awaits, after it has
// returned, in another object, and if it never was a turn's.
func TestCtxIsRefusedOutsideItsTurn(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	r.dial("/o/a")
	refused := func(when string, want error, ctx context.Context, a *actor) {
		st := a.state.Storage()
		ws := only(a)
		seq := func() error {
			for _, err := range st.ListBytes(ctx) {
				return err
			}
			return nil
		}
		calls := map[string]func() error{
			"Put":                      func() error { return hibernate.Put(ctx, st, "k", 1) },
			"Get":                      func() error { _, _, err := hibernate.Get[int](ctx, st, "k"); return err },
			"GetMany":                  func() error { _, err := hibernate.GetMany[int](ctx, st, "k"); return err },
			"Delete":                   func() error { _, err := st.Delete(ctx, "k"); return err },
			"DeleteAll":                func() error { return st.DeleteAll(ctx) },
			"List":                     seq,
			"Sync":                     func() error { return st.Sync(ctx) },
			"SetAlarm":                 func() error { return st.SetAlarm(ctx, epoch) },
			"Alarm":                    func() error { _, _, err := st.Alarm(ctx); return err },
			"DeleteAlarm":              func() error { return st.DeleteAlarm(ctx) },
			"Transaction":              func() error { return st.Transaction(ctx, func(context.Context, *hibernate.Txn) error { return nil }) },
			"SerializeAttachment":      func() error { return ws.SerializeAttachment(ctx, 1) },
			"SetWebSocketAutoResponse": func() error { return a.state.SetWebSocketAutoResponse(ctx) },
			"SetWebSocketEventTimeout": func() error { return a.state.SetWebSocketEventTimeout(ctx, 0) },
			"BlockConcurrencyWhile":    func() error { return a.state.BlockConcurrencyWhile(ctx, nothing) },
			"WaitUntil":                func() error { return a.state.WaitUntil(ctx, "x", func(context.Context) {}) },
			"Abort":                    func() error { return a.state.Abort(ctx, errors.New("x")) },
			"Send":                     func() error { return ws.SendText(ctx, "x") },
			"Close":                    func() error { return ws.Close(ctx, 1000, "") },
			"Broadcast":                func() error { _, err := a.state.Broadcast(ctx, hibernate.Text("x"), nil); return err },
		}
		for name, call := range calls {
			if err := call(); !errors.Is(err, want) {
				t.Errorf("%s %s: %v, want %v", name, when, err, want)
			}
		}
	}
	var self *actor
	var old context.Context
	r.must("a", func(ctx context.Context, a *actor) error {
		self, old = a, ctx
		refused("with no turn's ctx", hibernate.ErrOutsideTurn, context.Background(), a)
		_ = hibernate.Await(ctx, func(context.Context) error {
			refused("while awaiting", hibernate.ErrOutsideTurn, ctx, a)
			return nil
		})
		type key struct{}
		return hibernate.Put(context.WithValue(ctx, key{}, 1), a.state.Storage(), "derived", 1)
	})
	refused("after the turn", hibernate.ErrOutsideTurn, old, self)
	for _, ctx := range []context.Context{old, context.Background()} {
		if err := hibernate.Await(ctx, nothing); !errors.Is(err, hibernate.ErrOutsideTurn) {
			t.Errorf("Await outside: %v", err)
		}
	}
	if old.Err() == nil {
		t.Error("the ctx has not ended with its turn")
	}
	r.must("a", func(ctx context.Context, a *actor) error {
		refused("in the next turn", hibernate.ErrOutsideTurn, old, a)
		return nil
	})
	r.must("b", func(ctx context.Context, b *actor) error {
		refused("in another object", hibernate.ErrOutsideTurn, ctx, self)
		return nil
	})
}

// TestCtxEndsWithReset: an aborted turn's ctx ends with cause ErrReset and
// every further call with it fails (10.3, 10.5).
func TestCtxEndsWithReset(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	mine := errors.New("mine")
	err := r.in("a", func(ctx context.Context, a *actor) error {
		if err := a.state.Abort(ctx, mine); err != nil {
			t.Errorf("abort: %v", err)
		}
		<-ctx.Done()
		if cause := context.Cause(ctx); !errors.Is(cause, hibernate.ErrReset) || !errors.Is(cause, mine) {
			t.Errorf("cause %v", cause)
		}
		for name, err := range map[string]error{
			"put":   hibernate.Put(ctx, a.state.Storage(), "k", 1),
			"await": hibernate.Await(ctx, nothing),
			"abort": a.state.Abort(ctx, mine),
		} {
			if !errors.Is(err, hibernate.ErrReset) {
				t.Errorf("%s: %v", name, err)
			}
		}
		return nil
	})
	if !errors.Is(err, hibernate.ErrReset) || !errors.Is(err, mine) {
		t.Errorf("the call ended with %v", err)
	}
}

// TestAbortResets: the sockets are cut without Close frame or event, what was
// not committed is gone, storage stays, the next event constructs anew (10.3 to
// 10.6).
func TestAbortResets(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), nil)
	c, other := r.dial("/o/a"), r.dial("/o/b")
	d := newDoor()
	waiting := r.later("a", func(ctx context.Context, a *actor) error {
		err := hibernate.Await(ctx, d.wait)
		if !errors.Is(err, hibernate.ErrReset) {
			t.Errorf("a handler in Await resumed with %v", err)
		}
		if err := hibernate.Put(ctx, a.state.Storage(), "ghost", 1); !errors.Is(err, hibernate.ErrReset) {
			t.Errorf("it wrote: %v", err)
		}
		a.tell("ghost gone")
		return nil
	})
	<-d.at
	r.pairs("a", pair("p", "q"))
	_ = r.in("a", func(ctx context.Context, a *actor) error {
		st := a.state.Storage()
		_ = hibernate.Put(ctx, st, "committed", 1)
		_ = only(a).SendText(ctx, "committed")
		_ = st.Sync(ctx)
		_ = hibernate.Put(ctx, st, "dropped", 1)
		_ = only(a).SendText(ctx, "dropped")
		_ = a.state.Abort(ctx, errors.New("enough"))
		return nil
	})
	c.expect("text:committed", "eof")
	if err := <-waiting; !errors.Is(err, hibernate.ErrReset) {
		t.Errorf("the request in Await ended with %v", err)
	}
	r.must("a", func(ctx context.Context, a *actor) error {
		if a.n < 2 {
			t.Errorf("instance %d", a.n)
		}
		var keys []string
		for e, err := range a.state.Storage().ListBytes(ctx) {
			if err != nil {
				t.Error(err)
			}
			keys = append(keys, e.Key)
		}
		if !slices.Equal(keys, []string{"committed"}) {
			t.Errorf("keys %q", keys)
		}
		if n := len(a.state.WebSockets()); n != 0 {
			t.Errorf("%d sockets", n)
		}
		if n := len(a.state.WebSocketAutoResponses()); n != 0 {
			t.Errorf("%d auto-responses", n)
		}
		return nil
	})
	d.pass()
	r.hear("ghost gone")
	other.ping("untouched")
	other.expect("pong:untouched")
	if s := r.rt.Stats(); s.Resets != 1 || s.Sockets != 1 {
		t.Errorf("%+v", s)
	}
	r.silent()
}

// TestHandlersInAwaitResumeWithErrReset when another turn panics; the sockets
// stay.
func TestHandlersInAwaitResumeWithErrReset(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), nil)
	c := r.dial("/o/a")
	d := newDoor()
	waiting := r.later("a", func(ctx context.Context, a *actor) error {
		a.tell("%v", errors.Is(hibernate.Await(ctx, d.wait), hibernate.ErrReset))
		return nil
	})
	<-d.at
	err := r.in("a", func(ctx context.Context, a *actor) error { panic("disliked") })
	var p *hibernate.PanicError
	if !errors.As(err, &p) || p.Value != "disliked" || !strings.Contains(string(p.Stack), "turns_test.go") {
		t.Errorf("the call ended with %v", err)
	}
	if err := <-waiting; !errors.Is(err, hibernate.ErrReset) {
		t.Errorf("the one in Await ended with %v", err)
	}
	d.pass()
	r.hear("true")
	c.send("x")
	r.hear("message x")
	r.instances(2)
}

// TestDoRunsATurn of this instance, for WaitUntil work.
func TestDoRunsATurn(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), nil)
	c := r.dial("/o/a")
	mine := errors.New("mine")
	r.must("a", func(ctx context.Context, a *actor) error {
		if err := a.state.Do(ctx, nothing); !errors.Is(err, hibernate.ErrReentrant) {
			t.Errorf("Do inside a turn: %v", err)
		}
		return a.state.WaitUntil(ctx, "work", func(outside context.Context) {
			a.tell("%v", hibernate.Put(outside, a.state.Storage(), "k", 1) == nil)
			err := a.state.Do(outside, func(ctx context.Context) error {
				if err := hibernate.Put(ctx, a.state.Storage(), "k", 2); err != nil {
					t.Error(err)
				}
				_ = only(a).SendText(ctx, "from Do")
				return mine
			})
			a.tell("%v", err == mine)
		})
	})
	r.hear("false", "true")
	c.expect("text:from Do")
}

// TestDoOfAGoneInstanceIsErrReset, and the ctx of its work ends.
func TestDoOfAGoneInstanceIsErrReset(t *testing.T) {
	for name, end := range map[string]func(ctx context.Context, a *actor){
		"abort": func(ctx context.Context, a *actor) { _ = a.state.Abort(ctx, errors.New("x")) },
		"panic": func(ctx context.Context, a *actor) { panic("x") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", nil)
			r.act(closing(), nil)
			c := r.dial("/o/a")
			r.must("a", func(ctx context.Context, a *actor) error {
				ws := only(a)
				return a.state.WaitUntil(ctx, "work", func(outside context.Context) {
					<-outside.Done()
					a.tell("%v", errors.Is(context.Cause(outside), hibernate.ErrReset))
					a.tell("%v", errors.Is(a.state.Do(outside, nothing), hibernate.ErrReset))
					a.tell("%v", errors.Is(a.state.Do(context.Background(), nothing), hibernate.ErrReset))
					a.tell("%v", errors.Is(ws.SendText(outside, "ghost"), hibernate.ErrReset))
				})
			})
			_ = r.in("a", func(ctx context.Context, a *actor) error { end(ctx, a); return nil })
			r.hear("true", "true", "true", "true")
			if name == "panic" {
				c.ping("p")
				c.expect("pong:p")
			}
		})
	}
	t.Run("hibernated", func(t *testing.T) {
		r := newRig(t, "", nil)
		r.act(closing(), nil)
		var kept *actor
		r.must("a", func(ctx context.Context, a *actor) error { kept = a; return nil })
		r.hibernate()
		if err := kept.state.Do(context.Background(), nothing); !errors.Is(err, hibernate.ErrReset) {
			t.Errorf("%v", err)
		}
		r.turn("a")
		if err := kept.state.Do(context.Background(), nothing); !errors.Is(err, hibernate.ErrReset) {
			t.Errorf("beside a new instance: %v", err)
		}
	})
}

// TestDoGivesUpWithItsCtx while it waits for the turn.
func TestDoGivesUpWithItsCtx(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), nil)
	d := newDoor()
	var self *actor
	done := r.later("a", func(ctx context.Context, a *actor) error { self = a; return d.wait(ctx) })
	<-d.at
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := self.state.Do(ctx, func(context.Context) error { t.Error("it ran"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	d.pass()
	if err := <-done; err != nil {
		t.Error(err)
	}
	r.turn("a")
}

// TestCallInsideATurnOfItsOwn: giving the turn up makes room for it; where the
// turn is held it is ErrReentrant.
func TestCallInsideATurnOfItsOwn(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), nil)
	none := func(context.Context, *actor) error { return nil }
	call := func(ctx context.Context, a *actor) error {
		a.mu.Lock()
		a.count++
		n := a.count
		a.lines[n] = none
		a.mu.Unlock()
		_, err := line.Call(ctx, r.ns.GetByName("a"), n)
		return err
	}
	r.must("a", call)
	r.must("a", func(ctx context.Context, a *actor) error {
		return a.state.Storage().Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
			if err := call(ctx, a); !errors.Is(err, hibernate.ErrReentrant) {
				t.Errorf("in a transaction: %v", err)
			}
			return nil
		})
	})
}

// TestWaitUntilKeepsInMemory, and may send, behind what is held (9.2).
func TestWaitUntilKeepsInMemory(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), &hibernate.ClassOptions{CloseTimeout: -1})
	c := r.dial("/o/a")
	d := newDoor()
	r.must("a", func(ctx context.Context, a *actor) error {
		ws := only(a)
		_ = ws.SendText(ctx, "1")
		return a.state.WaitUntil(ctx, "work", func(outside context.Context) {
			_ = d.wait(outside)
			if err := ws.SendText(outside, "2"); err != nil {
				t.Error(err)
			}
			if n, err := a.state.Broadcast(outside, hibernate.Text("3"), nil); n != 1 || err != nil {
				t.Errorf("broadcast reached %d: %v", n, err)
			}
			if err := ws.SerializeAttachment(outside, 1); !errors.Is(err, hibernate.ErrOutsideTurn) {
				t.Errorf("attachment: %v", err)
			}
			if err := ws.Close(outside, 4000, "4"); err != nil {
				t.Error(err)
			}
			a.tell("worked")
		})
	})
	<-d.at
	for range 10 {
		r.clock.Advance(time.Minute)
	}
	r.turn("a")
	r.instances(1)
	if err := r.rt.Evict(context.Background(), r.ns.IDFromName("a")); err == nil {
		t.Error("evicted while WaitUntil work is under way")
	}
	d.pass()
	r.hear("worked")
	c.expect("text:1", "text:2", "text:3", "close:4000 4")
	r.hibernate()
}

// TestWaitUntilPanicIsLogged and changes nothing else.
func TestWaitUntilPanicIsLogged(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), nil)
	r.must("a", func(ctx context.Context, a *actor) error {
		return a.state.WaitUntil(ctx, "shaky work", func(context.Context) { panic("disliked") })
	})
	r.until("the log", func() bool { return strings.Contains(r.log.String(), "disliked") })
	r.turn("a")
	r.instances(1)
	r.hibernate()
}

// TestWhatKeepsInMemory: running handlers and those in Await do; sockets and
// alarms do not (9.2, 9.3).
func TestWhatKeepsInMemory(t *testing.T) {
	for name, wait := range map[string]func(ctx context.Context, f func(context.Context) error) error{
		"running":  func(ctx context.Context, f func(context.Context) error) error { return f(ctx) },
		"awaiting": hibernate.Await,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", nil)
			r.act(closing(), nil)
			r.dial("/o/a")
			d := newDoor()
			done := r.later("a", func(ctx context.Context, a *actor) error {
				if err := a.state.Storage().SetAlarm(ctx, epoch.AddDate(1, 0, 0)); err != nil {
					t.Error(err)
				}
				return wait(ctx, d.wait)
			})
			<-d.at
			for range 10 {
				r.clock.Advance(time.Minute)
			}
			if in := r.inspect("a"); !in.InMemory() {
				t.Error("dropped from memory")
			}
			d.pass()
			if err := <-done; err != nil {
				t.Error(err)
			}
			r.instances(1)
			r.hibernate()
			if s := r.rt.Stats(); s.ObjectsAsleep != 1 || s.Sockets != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestEveryEventRestartsTheIdleTime (9.1).
func TestEveryEventRestartsTheIdleTime(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{IdleTimeout: time.Minute})
	r.act(closing(), nil)
	c := r.dial("/o/a")
	for range 5 {
		c.send("x")
		r.hear("message x")
		r.turn("a")
		r.clock.Advance(59 * time.Second)
	}
	r.instances(1)
	r.until("the idle time", func() bool { r.clock.Advance(time.Second); return r.rt.Stats().ObjectsInMemory == 0 })
}

// TestBlockConcurrencyWhileHoldsEvents, also while it awaits, and nests (11.7).
func TestBlockConcurrencyWhileHoldsEvents(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), nil)
	c := r.dial("/o/a")
	d := newDoor()
	mine := r.later("a", func(ctx context.Context, a *actor) error {
		err := a.state.BlockConcurrencyWhile(ctx, func(ctx context.Context) error {
			return a.state.BlockConcurrencyWhile(ctx, func(ctx context.Context) error {
				_ = hibernate.Await(ctx, d.wait)
				a.tell("block over")
				return nil
			})
		})
		a.tell("turn over")
		return err
	})
	<-d.at
	c.send("held")
	c.ping("barrier") // behind the message, which waits
	second := r.later("a", func(ctx context.Context, a *actor) error { return nil })
	r.silent()
	d.pass()
	r.hear("block over", "turn over", "message held")
	c.expect("pong:barrier")
	if err := errors.Join(<-mine, <-second); err != nil {
		t.Error(err)
	}
	r.instances(1)
}

// TestBlockConcurrencyWhileResets when it fails, panics or takes over 30 s
// (10.2).
func TestBlockConcurrencyWhileResets(t *testing.T) {
	mine := errors.New("mine")
	t.Run("error", func(t *testing.T) {
		r := newRig(t, "", nil)
		r.act(closing(), nil)
		c := r.dial("/o/a")
		err := r.in("a", func(ctx context.Context, a *actor) error {
			_ = only(a).SendText(ctx, "dropped")
			err := a.state.BlockConcurrencyWhile(ctx, func(context.Context) error { return mine })
			if !errors.Is(err, mine) {
				t.Errorf("returned %v", err)
			}
			if err := hibernate.Put(ctx, a.state.Storage(), "k", 1); !errors.Is(err, hibernate.ErrReset) {
				t.Errorf("put after it: %v", err)
			}
			return nil
		})
		if !errors.Is(err, hibernate.ErrReset) {
			t.Errorf("the call ended with %v", err)
		}
		c.expect("eof")
		r.turn("a")
		r.instances(2)
	})
	t.Run("panic", func(t *testing.T) {
		r := newRig(t, "", nil)
		r.act(closing(), nil)
		c := r.dial("/o/a")
		err := r.in("a", func(ctx context.Context, a *actor) error {
			return a.state.BlockConcurrencyWhile(ctx, func(context.Context) error { panic("disliked") })
		})
		if err == nil {
			t.Error("the call succeeded")
		}
		c.ping("p") // a panic undoes the turn; the sockets stay
		c.expect("pong:p")
		r.turn("a")
		r.instances(2)
	})
	t.Run("too long", func(t *testing.T) {
		r := newRig(t, "", nil)
		r.act(closing(), nil)
		c := r.dial("/o/a")
		d := newDoor()
		done := r.later("a", func(ctx context.Context, a *actor) error {
			return a.state.BlockConcurrencyWhile(ctx, func(ctx context.Context) error { return hibernate.Await(ctx, d.wait) })
		})
		<-d.at
		r.clock.Advance(29 * time.Second)
		c.ping("in time")
		c.expect("pong:in time")
		r.clock.Advance(2 * time.Second)
		if err := <-done; !errors.Is(err, hibernate.ErrReset) {
			t.Errorf("the call ended with %v", err)
		}
		c.expect("eof")
		r.turn("a")
		r.instances(2)
		d.pass()
	})
	t.Run("too deep", func(t *testing.T) {
		r := newRig(t, "", nil)
		r.act(closing(), nil)
		r.must("a", func(ctx context.Context, a *actor) error {
			deepest := 0
			var down func(ctx context.Context, n int) error
			down = func(ctx context.Context, n int) error {
				return a.state.BlockConcurrencyWhile(ctx, func(ctx context.Context) error {
					deepest = n
					if n == 64 {
						if err := down(ctx, 65); !errors.Is(err, hibernate.ErrState) {
							t.Errorf("level 65: %v", err)
						}
						return nil
					}
					return down(ctx, n+1)
				})
			}
			err := down(ctx, 1)
			if deepest != 64 {
				t.Errorf("reached level %d", deepest)
			}
			return err
		})
	})
}

// TestEventTimeoutResets a socket event that takes longer, Awaits included;
// requests are not bounded (8.1, 8.2).
func TestEventTimeoutResets(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		d := newDoor()
		r := newRig(t, "", nil)
		s := closing()
		s.message = func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			a.tell("%v", errors.Is(hibernate.Await(ctx, d.wait), hibernate.ErrReset))
			return nil
		}
		r.act(s, nil)
		c := r.dial("/o/a")
		r.must("a", func(ctx context.Context, a *actor) error {
			if err := a.state.SetWebSocketEventTimeout(ctx, -1); !errors.Is(err, hibernate.ErrInvalid) {
				t.Errorf("negative timeout: %v", err)
			}
			if got := limit(a.state.SetWebSocketEventTimeout(ctx, 604801*time.Second)); !strings.HasSuffix(got, " 604801000/604800000") {
				t.Errorf("timeout over the limit: %s", got)
			}
			if err := a.state.SetWebSocketEventTimeout(ctx, 604800*time.Second); err != nil {
				t.Error(err)
			}
			return a.state.SetWebSocketEventTimeout(ctx, time.Second)
		})
		pause(r)
		e := newDoor()
		request := r.later("a", func(ctx context.Context, a *actor) error {
			if got := a.state.WebSocketEventTimeout(); got != time.Second {
				t.Errorf("timeout %v", got)
			}
			return hibernate.Await(ctx, e.wait)
		})
		<-e.at
		r.clock.Advance(5 * time.Second)
		e.pass()
		if err := <-request; err != nil {
			t.Errorf("a request was bounded: %v", err)
		}
		c.send("x")
		<-d.at
		n := r.play.made.Load()
		r.clock.Advance(2 * time.Second)
		c.expect("eof")
		d.pass()
		r.hear("true")
		r.turn("a")
		r.instances(n + 1)
		r.must("a", func(ctx context.Context, a *actor) error {
			if got := a.state.WebSocketEventTimeout(); got != 0 {
				t.Errorf("timeout after the reset %v", got)
			}
			return nil
		})
	})
}

// TestConstructorFailureCutsSockets: the event is lost, every socket is cut
// without Close frame or event, storage stays, the next event tries again (9.8).
func TestConstructorFailureCutsSockets(t *testing.T) {
	for name, fail := range map[string]func(ctx context.Context, a *actor) error{
		"error": func(context.Context, *actor) error { return errors.New("disliked") },
		"panic": func(context.Context, *actor) error { panic("disliked") },
		"block": func(ctx context.Context, a *actor) error {
			return a.state.BlockConcurrencyWhile(ctx, func(context.Context) error { return errors.New("disliked") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", nil)
			s := closing()
			s.construct = func(ctx context.Context, a *actor) error {
				if a.n == 2 {
					if err := hibernate.Put(ctx, a.state.Storage(), "failed", 1); err != nil {
						t.Error(err)
					}
					_, _ = a.state.Broadcast(ctx, hibernate.Text("dropped"), nil)
					return fail(ctx, a)
				}
				return nil
			}
			r.act(s, nil)
			c, d := r.dial("/o/a"), r.dial("/o/a")
			r.must("a", func(ctx context.Context, a *actor) error {
				return hibernate.Put(ctx, a.state.Storage(), "k", 1)
			})
			r.pairs("a", pair("p", "q"))
			r.hibernate()
			c.send("lost")
			c.expect("eof")
			d.expect("eof")
			r.must("a", func(ctx context.Context, a *actor) error {
				if n := len(a.state.WebSockets()) + len(a.state.WebSocketAutoResponses()); n != 0 {
					t.Errorf("%d sockets and auto-responses are left", n)
				}
				got, err := hibernate.GetMany[int](ctx, a.state.Storage(), "k", "failed")
				if len(got) != 1 || got[0].Key != "k" || err != nil {
					t.Errorf("storage %v, %v", got, err)
				}
				return nil
			})
			r.instances(3)
			r.silent()
			if log := r.log.String(); !strings.Contains(log, "disliked") {
				t.Errorf("not logged:\n%s", log)
			}
			if s := r.rt.Stats(); s.Resets != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestConstructTimeoutFailsTheEvent.
func TestConstructTimeoutFailsTheEvent(t *testing.T) {
	d := newDoor()
	r := newRig(t, "", nil)
	r.act(&script{construct: func(ctx context.Context, a *actor) error {
		if a.n == 1 {
			_ = d.wait(ctx)
			return hibernate.Put(ctx, a.state.Storage(), "ghost", 1)
		}
		return nil
	}}, &hibernate.ClassOptions{ConstructTimeout: 5 * time.Second})
	done := r.later("a", func(ctx context.Context, a *actor) error { t.Error("it ran"); return nil })
	<-d.at
	r.clock.Advance(6 * time.Second)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "constructor") {
		t.Errorf("the call ended with %v", err)
	}
	r.turn("a") // while the old goroutine still runs
	d.pass()
	r.instances(2)
}

// TestWakersShareOneConstruction, and events that come while it awaits wait for
// it (9.4, 9.7).
func TestWakersShareOneConstruction(t *testing.T) {
	d := newDoor()
	r := newRig(t, "", nil)
	s := closing()
	s.construct = func(ctx context.Context, a *actor) error {
		if a.n == 2 {
			_ = hibernate.Await(ctx, d.wait)
			// In the constructor after waking everything works (9.6).
			for _, ws := range a.state.WebSockets() {
				v, _, err := hibernate.Attachment[string](ws)
				if err != nil {
					t.Error(err)
				}
				_ = ws.SendText(ctx, "woken, "+v)
			}
			a.tell("constructed")
		}
		return nil
	}
	r.act(s, nil)
	c, e := r.dial("/o/a"), r.dial("/o/a")
	r.must("a", func(ctx context.Context, a *actor) error {
		for _, ws := range a.state.WebSockets() {
			_ = ws.SerializeAttachment(ctx, "attached")
		}
		return nil
	})
	r.hibernate()
	c.send("1")
	<-d.at
	e.close(1000, "")
	calls := []<-chan error{r.later("a", func(context.Context, *actor) error { return nil }), r.later("a", func(context.Context, *actor) error { return nil })}
	c.send("2")
	r.silent()
	d.pass()
	r.hear("constructed", "message 1")
	c.expect("text:woken, attached")
	for _, call := range calls {
		if err := <-call; err != nil {
			t.Error(err)
		}
	}
	got := []string{<-r.play.events, <-r.play.events}
	slices.Sort(got)
	if want := []string{`close 1000 "" true, state 3`, "message 2"}; !slices.Equal(got, want) {
		t.Errorf("heard %q, want %q", got, want)
	}
	r.instances(2)
}

// TestEvictEveryTurnForgetsFields between any two events.
func TestEvictEveryTurnForgetsFields(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{EvictEveryTurn: true})
	serve(r, newEcho, nil)
	c := r.dial("/o/a")
	for range 3 {
		c.send("x")
		c.expect("text:x 1")
	}
}

// TestWaitingRequestsAreLimited: more than Limits.Waiting are a *LimitError.
func TestWaitingRequestsAreLimited(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Waiting: 2}})
	r.act(&script{http: func(a *actor, w http.ResponseWriter, q *http.Request) { io.WriteString(w, "ok") }}, nil)
	d := newDoor()
	first := r.later("a", func(ctx context.Context, a *actor) error { return d.wait(ctx) })
	<-d.at
	none := func(context.Context, *actor) error { return nil }
	results := make(chan error, 3)
	for range 3 {
		go func() { results <- r.in("a", none) }()
	}
	if got := limit(<-results); !strings.HasSuffix(got, " 3/2") {
		t.Errorf("the third ended with %s", got)
	}
	resp, err := r.srv.Client().Get(r.srv.URL + "/o/a")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a request got %s", resp.Status)
	}
	d.pass()
	if err := errors.Join(<-first, <-results, <-results); err != nil {
		t.Error(err)
	}
}
