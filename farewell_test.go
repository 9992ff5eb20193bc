package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

// shutdown begins a Shutdown and tells its outcome.
func (r *rig) shutdown(ctx context.Context) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- r.rt.Shutdown(ctx) }()
	return ended
}

// outcome is what c tells, which must be soon.
func outcome(t *testing.T, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(patience):
		t.Fatalf("it did not end in %v", patience)
		return nil
	}
}

// TestShutdownSpreadsItsGoodbyes: in batches, by the runtime's clock, a millisecond
// for each socket.
func TestShutdownSpreadsItsGoodbyes(t *testing.T) {
	const sockets, batch = 60, 10
	r := newRig(t, "", &hibernate.Options{ShutdownSpread: time.Minute, ShutdownCode: 1012})
	serve(r, newEcho, nil)
	var told atomic.Int64
	for i := range sockets {
		c := r.dial(fmt.Sprintf("/o/%d", i%7))
		go func() {
			defer told.Add(1)
			if got := c.next(); !strings.HasPrefix(got, "close:1012") {
				t.Errorf("received %q", got)
			}
			c.close(1012, "")
		}()
	}
	begun := r.clock.Now()
	ended := r.shutdown(context.Background())
	for n := batch; n < sockets; n += batch {
		var due time.Time
		r.until("the next batch to be due", func() (ok bool) {
			due, ok = r.clock.Next()
			// Lingering connections have deadlines too, but none so soon.
			return ok && due.Sub(begun) <= 2*sockets*time.Millisecond && told.Load() >= int64(n)
		})
		if got := told.Load(); got != int64(n) {
			t.Fatalf("%d were told, want %d", got, n)
		}
		if wait := due.Sub(r.clock.Now()); wait < 5*time.Millisecond || wait > 15*time.Millisecond {
			t.Errorf("the next batch is due in %v", wait)
		}
		r.clock.Advance(due.Sub(r.clock.Now()))
	}
	if err := outcome(t, ended); err != nil {
		t.Error(err)
	}
	r.until("the clients to count", func() bool { return told.Load() == sockets })
	if took := r.clock.Now().Sub(begun); took > 2*sockets*time.Millisecond {
		t.Errorf("they were told in %v", took)
	}
}

// TestShutdownLeavesTimeForTheAnswers: a context with a deadline shortens the
// spread, and those who were not told by its end are told then, and cut.
func TestShutdownLeavesTimeForTheAnswers(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{ShutdownSpread: time.Minute})
	serve(r, newEcho, nil)
	var clients []*client
	for range 40 {
		clients = append(clients, r.dial("/o/a"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := outcome(t, r.shutdown(ctx)) // the clock stands still
	var cut *hibernate.ShutdownError
	if !errors.As(err, &cut) || cut.Cut != 40 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	for _, c := range clients {
		if got := c.next(); !strings.HasPrefix(got, "close:1001") {
			t.Fatalf("received %q", got)
		}
		c.expect("eof")
	}
}

// TestSilentPeersHoldUpNoGoodbye: many that never answer, and one behind them.
func TestSilentPeersHoldUpNoGoodbye(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, nil)
	var clients []*client
	for range 400 {
		clients = append(clients, r.dial("/o/a"))
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := r.shutdown(ctx)
	for i, c := range clients {
		if got := c.next(); !strings.HasPrefix(got, "close:1001") {
			t.Fatalf("received %q", got)
		}
		if i%100 == 0 {
			c.close(1001, "")
			c.expect("eof")
		}
	}
	cancel()
	err := outcome(t, ended)
	var cut *hibernate.ShutdownError
	if !errors.As(err, &cut) || cut.Cut < 396 || cut.Cut > 397 { // the last answer may not have been seen

		t.Errorf("shutdown: %v", err)
	}
	if n := r.rt.Stats().Sockets; n != 0 {
		t.Errorf("%d sockets are left", n)
	}
}

// TestCloseTimeoutCutsWhoNeverAnswersTheGoodbye, without a deadline too.
func TestCloseTimeoutCutsWhoNeverAnswersTheGoodbye(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, &hibernate.ClassOptions{CloseTimeout: time.Minute})
	c := r.dial("/o/a")
	ended := r.shutdown(context.Background())
	if got := c.next(); !strings.HasPrefix(got, "close:1001") {
		t.Fatalf("received %q", got)
	}
	r.until("the close timeout", func() bool { _, ok := r.clock.Next(); return ok })
	r.clock.Advance(time.Minute)
	err := outcome(t, ended)
	var cut *hibernate.ShutdownError
	if !errors.As(err, &cut) || cut.Cut != 1 {
		t.Errorf("shutdown: %v", err)
	}
	c.expect("eof")
}

// TestShutdownReadsOnToTheAnswer past messages on their way, read before the
// goodbye and after it, of which nobody is told.
func TestShutdownReadsOnToTheAnswer(t *testing.T) {
	r := newRig(t, "", nil)
	started, let := make(chan struct{}), make(chan struct{})
	messages := 0 // of the object's turns
	r.act(&script{message: func(_ context.Context, _ *actor, _ hibernate.WebSocket, m hibernate.Message) error {
		if messages++; m.Text() == "slow" {
			close(started)
			<-let
		}
		return nil
	}}, nil)
	slow := r.dial("/o/slow")
	slow.send("slow")
	<-started
	before, after := r.dial("/o/a"), r.dial("/o/b")
	r.turn("a")
	ctx, cancel := context.WithCancel(context.Background())
	ended := r.shutdown(ctx)
	r.until("the door to close", func() bool { return r.in("a", func(context.Context, *actor) error { return nil }) != nil })
	// Read while the runtime drains: the first stops the reading, the rest is kept.
	before.write(append(append(frame(true, 1, "one"), frame(true, 1, "two")...), frame(true, 8, "\x03\xe9")...))
	r.until("the message to be read", func() bool { return r.rt.Stats().Messages == 2 })
	close(let)
	for _, c := range []*client{slow, before, after} {
		if got := c.next(); !strings.HasPrefix(got, "close:1001") {
			t.Fatalf("received %q", got)
		}
	}
	after.send("one")
	after.send("two")
	after.close(1001, "")
	slow.close(1001, "")
	for _, c := range []*client{slow, before, after} {
		c.expect("eof")
	}
	if err := outcome(t, ended); err != nil {
		t.Error(err)
	}
	cancel()
	if messages != 1 {
		t.Errorf("%d messages were handled, want that of before", messages)
	}
}

// TestShutdownLetsHeldOutputLeave, once it is durable, before the goodbye.
func TestShutdownLetsHeldOutputLeave(t *testing.T) {
	d := newDisk()
	r := newDiskRig(t, d, nil)
	serve(r, newScribe, nil)
	c := r.dial("/o/a")
	c.send("put")
	c.expect("text:put 1")
	start := d.stop()
	defer start()
	c.send("put")
	r.until("the sync", func() bool { return d.syncsWaiting() > 0 })
	ended := r.shutdown(context.Background())
	r.until("the door to close", func() bool {
		resp, err := http.Get(r.srv.URL + "/o/a")
		if err != nil {
			return false
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	start()
	c.expect("text:put 2")
	if got := c.next(); !strings.HasPrefix(got, "close:1001") {
		t.Fatalf("received %q", got)
	}
	c.close(1001, "")
	if err := outcome(t, ended); err != nil {
		t.Error(err)
	}
}

// TestShutdownWaitsForWaitUntilWork, which may store and send its result.
func TestShutdownWaitsForWaitUntilWork(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir, nil)
	started, let := make(chan struct{}), make(chan struct{})
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, _ hibernate.Message) error {
		return a.state.WaitUntil(ctx, "work", func(ctx context.Context) {
			close(started)
			<-let
			err := a.state.Do(ctx, func(ctx context.Context) error {
				return hibernate.Put(ctx, a.state.Storage(), "result", 42)
			})
			if err == nil {
				err = ws.SendText(ctx, "done")
			}
			if err != nil {
				t.Error(err)
			}
		})
	}}, nil)
	c := r.dial("/o/a")
	c.send("work")
	<-started
	ended := r.shutdown(context.Background())
	r.until("the door to close", func() bool { return r.in("b", func(context.Context, *actor) error { return nil }) != nil })
	close(let)
	c.expect("text:done")
	if got := c.next(); !strings.HasPrefix(got, "close:1001") {
		t.Fatalf("received %q", got)
	}
	c.close(1001, "")
	if err := outcome(t, ended); err != nil {
		t.Error(err)
	}

	again := newRig(t, dir, nil)
	again.act(&script{}, nil)
	again.must("a", func(ctx context.Context, a *actor) error {
		if v, ok, err := hibernate.Get[int](ctx, a.state.Storage(), "result"); v != 42 {
			t.Errorf("stored %d, %v, %v", v, ok, err)
		}
		return nil
	})
}

// TestShutdownStartsNoAlarms: one that falls due meanwhile is the next runtime's.
func TestShutdownStartsNoAlarms(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir, nil)
	started, let := make(chan struct{}), make(chan struct{})
	r.act(&script{
		message: func(context.Context, *actor, hibernate.WebSocket, hibernate.Message) error {
			close(started)
			<-let
			return nil
		},
		alarm: func(_ context.Context, a *actor, _ hibernate.AlarmInfo) error { a.tell("alarm"); return nil },
	}, nil)
	r.must("b", func(ctx context.Context, a *actor) error {
		return a.state.Storage().SetAlarm(ctx, epoch.Add(time.Second))
	})
	c := r.dial("/o/a")
	c.send("slow")
	<-started
	ended := r.shutdown(context.Background())
	r.until("the door to close", func() bool { return r.in("b", func(context.Context, *actor) error { return nil }) != nil })
	r.clock.Advance(time.Minute)
	close(let)
	c.next()
	c.close(1001, "")
	if err := outcome(t, ended); err != nil {
		t.Error(err)
	}
	r.silent()

	again := newRigAt(t, dir, nil, epoch.Add(time.Minute))
	again.act(&script{alarm: func(_ context.Context, a *actor, _ hibernate.AlarmInfo) error { a.tell("alarm"); return nil }}, nil)
	again.hear("alarm")
}

// TestShutdownsWaitForTheFirst, and a Close cuts it short.
func TestShutdownsWaitForTheFirst(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, nil)
	c := r.dial("/o/a")
	first := r.shutdown(context.Background())
	if got := c.next(); !strings.HasPrefix(got, "close:1001") {
		t.Fatalf("received %q", got)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.rt.Shutdown(over); !errors.Is(err, context.Canceled) {
		t.Errorf("a Shutdown without time beside another: %v", err)
	}
	second := r.shutdown(context.Background())
	closed := make(chan error, 2)
	for range cap(closed) {
		go func() { closed <- r.rt.Close() }()
	}
	for range cap(closed) {
		if err := outcome(t, closed); err != nil {
			t.Error(err)
		}
	}
	c.expect("eof")
	for _, ended := range []<-chan error{first, second} {
		var cut *hibernate.ShutdownError
		if err := outcome(t, ended); !errors.As(err, &cut) || cut.Cut != 1 || !errors.Is(err, hibernate.ErrUnavailable) {
			t.Errorf("shutdown that Close has cut short: %v", err)
		}
	}
}

// TestEndingWhileObjectsWake: Shutdown waits for constructors and the events that
// woke the objects; Close cuts them off.
func TestEndingWhileObjectsWake(t *testing.T) {
	for _, close := range []bool{false, true} {
		t.Run(fmt.Sprintf("close=%v", close), func(t *testing.T) {
			const objects = 20
			r := newRig(t, "", nil)
			waking, let := make(chan struct{}, objects), make(chan struct{})
			var wake atomic.Bool
			r.act(&script{
				construct: func(context.Context, *actor) error {
					if wake.Load() {
						waking <- struct{}{}
						<-let
					}
					return nil
				},
				message: func(ctx context.Context, _ *actor, ws hibernate.WebSocket, m hibernate.Message) error {
					return ws.Send(ctx, m)
				},
			}, nil)
			var clients []*client
			for i := range objects {
				clients = append(clients, r.dial(fmt.Sprintf("/o/%d", i)))
				r.turn(fmt.Sprint(i))
			}
			r.hibernate()
			wake.Store(true)
			for _, c := range clients {
				c.send("x")
				<-waking
			}
			if close {
				if err := r.rt.Close(); err != nil {
					t.Error(err)
				}
				let <- struct{}{} // they still run
				for range objects - 1 {
					let <- struct{}{}
				}
				for _, c := range clients {
					c.expect("eof")
				}
				if err := r.rt.Shutdown(context.Background()); err != nil {
					t.Errorf("shutdown after Close: %v", err)
				}
				return
			}
			ended := r.shutdown(context.Background())
			for range objects {
				let <- struct{}{}
			}
			for _, c := range clients {
				c.expect("text:x")
				if got := c.next(); !strings.HasPrefix(got, "close:1001") {
					t.Fatalf("received %q", got)
				}
				c.close(1001, "")
			}
			if err := outcome(t, ended); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCloseLosesNothingDurable: not even what its turn did not wait for.
func TestCloseLosesNothingDurable(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir, nil)
	serve(r, newScribe, nil)
	const objects, writes = 10, 20
	for i := range objects {
		c := r.dial(fmt.Sprintf("/o/%d", i))
		for n := range writes {
			c.send("loose")
			c.expect(fmt.Sprintf("text:loose %d", n+1))
		}
	}
	if err := r.rt.Close(); err != nil {
		t.Fatal(err)
	}
	again := newRig(t, dir, nil)
	serve(again, newScribe, nil)
	for i := range objects {
		c := again.dial(fmt.Sprintf("/o/%d", i))
		c.send("read")
		c.expect(fmt.Sprintf("text:read %d", writes))
	}
}

// TestServerShutsDownBeforeTheRuntime is the documented order, at both doors: plain
// requests end, WebSockets stay and are served until the runtime says goodbye.
func TestServerShutsDownBeforeTheRuntime(t *testing.T) {
	for _, door := range []string{"http", "acceptor"} {
		t.Run(door, func(t *testing.T) {
			var r *rig
			if door == "http" {
				r = newRig(t, "", nil)
				serve(r, newEcho, nil)
			} else {
				r = serveBothDoors(t, nil, newEcho, nil).rig
			}
			c := r.dial("/o/a")
			c.send("x")
			c.expect("text:x 1")
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := r.srv.Config.Shutdown(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := http.Get(r.srv.URL); err == nil {
				t.Error("a request was answered after the server's Shutdown")
			}
			c.send("y")
			c.expect("text:y 2")
			r.hibernate()
			ended := r.shutdown(ctx)
			if got := c.next(); !strings.HasPrefix(got, "close:1001") {
				t.Fatalf("received %q", got)
			}
			c.close(1001, "")
			c.expect("eof")
			if err := outcome(t, ended); err != nil {
				t.Error(err)
			}
			if s := r.rt.Stats(); s.Constructed != 1 || s.Sockets != 0 {
				t.Errorf("at the end: %+v", s)
			}
		})
	}
}

// TestRuntimeShutsDownBeforeTheServer is the other order: requests are refused.
func TestRuntimeShutsDownBeforeTheServer(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, nil)
	if err := r.rt.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	c := r.raw(upgrade("/o/a"))
	if resp := c.response(); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("answered %s", resp.Status)
	}
}

func TestShutdownCodeIsChecked(t *testing.T) {
	for _, code := range []int{-1, 1, 999, 1005, 1006, 1015, 5000, 1 << 20} {
		if rt, err := hibernate.Open("", &hibernate.Options{ShutdownCode: code}); !errors.Is(err, hibernate.ErrInvalid) {
			t.Errorf("code %d: %v", code, err)
			if err == nil {
				rt.Close()
			}
		}
	}
}
