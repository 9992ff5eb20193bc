package hibernatetest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/hibernatetest"
	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// short is the patience of kits that are to lose it, and long enough for what they do before on a busy machine.
const short = 3 * time.Second

// A script is what the instances of class Room do; nil functions do nothing.
type script struct {
	construct func(ctx context.Context, r *room) error
	message   func(ctx context.Context, r *room, ws hibernate.WebSocket, m hibernate.Message) error
	close     func(ctx context.Context, r *room, ws hibernate.WebSocket, e hibernate.CloseEvent) error
	alarm     func(ctx context.Context, r *room, a hibernate.AlarmInfo) error
	class     *hibernate.ClassOptions
}

// A room follows a script.
type room struct {
	*script
	state *hibernate.State
	count int
	kept  []byte
}

func (r *room) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	if r.message == nil {
		return ws.Send(ctx, m)
	}
	return r.message(ctx, r, ws, m)
}

func (r *room) WebSocketClose(ctx context.Context, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
	if r.close == nil {
		return nil
	}
	return r.close(ctx, r, ws, e)
}

func (r *room) Alarm(ctx context.Context, a hibernate.AlarmInfo) error {
	if r.alarm == nil {
		return nil
	}
	return r.alarm(ctx, r, a)
}

// setup serves rooms at /room/{name}.
func (s *script) setup(rt *hibernate.Runtime) (http.Handler, error) {
	rooms, err := hibernate.Register(rt, "Room", func(ctx context.Context, st *hibernate.State) (*room, error) {
		r := &room{script: s, state: st}
		if s.construct != nil {
			return r, s.construct(ctx, r)
		}
		return r, nil
	}, s.class)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/room/{name}", rooms.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		if h.Header().Get("Authorization") == "bad" {
			return hibernate.Join{}, hibernate.Refuse(http.StatusForbidden, "not you")
		}
		protocol := ""
		if strings.Contains(h.Header().Get("Sec-WebSocket-Protocol"), "v2") {
			protocol = "v2"
		}
		return hibernate.Join{
			Object: rooms.GetByName(h.PathValue("name")), Tags: h.Query()["tag"], Protocol: protocol,
			Header: http.Header{"X-Room": {h.PathValue("name")}},
		}, nil
	}))
	return mux, nil
}

// count answers each message with how many were counted, in a field.
func countInField(ctx context.Context, r *room, ws hibernate.WebSocket, _ hibernate.Message) error {
	r.count++
	return ws.SendText(ctx, fmt.Sprint(r.count))
}

// countInStorage is countInField as it should be.
func countInStorage(ctx context.Context, r *room, ws hibernate.WebSocket, _ hibernate.Message) error {
	n, _, err := hibernate.Get[int](ctx, r.state.Storage(), "n")
	if err != nil {
		return err
	}
	if err := hibernate.Put(ctx, r.state.Storage(), "n", n+1); err != nil {
		return err
	}
	return ws.SendText(ctx, fmt.Sprint(n+1))
}

// A verdict is a *testing.T of somebody else's test: it keeps what that test says.
type verdict struct {
	testing.TB            // nil: what the kit calls is below
	mu         sync.Mutex // guards the following
	failures   []string
	logs       []string
	cleanups   []func()
}

func (v *verdict) Helper()           {}
func (v *verdict) Name() string      { return "TestOfSomebodyElse" }
func (v *verdict) Output() io.Writer { return io.Discard }
func (v *verdict) Cleanup(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cleanups = append(v.cleanups, f)
}

func (v *verdict) Failed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.failures) > 0
}

func (v *verdict) Errorf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.failures = append(v.failures, fmt.Sprintf(format, args...))
}

func (v *verdict) Logf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.logs = append(v.logs, fmt.Sprintf(format, args...))
}

func (v *verdict) Fatalf(format string, args ...any) {
	v.Errorf(format, args...)
	runtime.Goexit()
}

func (v *verdict) Fatal(args ...any) { v.Fatalf("%s", fmt.Sprint(args...)) }
func (v *verdict) FailNow()          { runtime.Goexit() }

// judge runs somebody else's test and returns what it failed with.
func judge(test func(t testing.TB)) string {
	v := &verdict{}
	run := func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		<-done
	}
	run(func() { test(v) })
	for _, f := range slices.Backward(v.cleanups) {
		run(f)
	}
	return strings.Join(append(v.failures, v.logs...), "\n")
}

// mustFail checks that somebody else's test fails and says all of these.
func mustFail(t *testing.T, test func(t testing.TB), want ...string) {
	t.Helper()
	got := judge(test)
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("the test fails with\n\n%s\n\nand does not say %q", got, w)
		}
	}
	t.Logf("the test fails with\n%s", got)
}

// mustPass checks that somebody else's test passes.
func mustPass(t *testing.T, test func(t testing.TB)) {
	t.Helper()
	if got := judge(test); got != "" {
		t.Errorf("the test should pass, and fails with\n%s", got)
	}
}

func TestStateInFieldsFailsTheTest(t *testing.T) {
	t.Parallel()
	count := func(f func(context.Context, *room, hibernate.WebSocket, hibernate.Message) error, evict bool) func(testing.TB) {
		return func(t testing.TB) {
			k := hibernatetest.New(t, (&script{message: f}).setup, &hibernatetest.Options{EvictEveryTurn: evict})
			c := k.Dial("/room/a")
			c.Send("x")
			c.Expect("1")
			c.Send("x")
			c.Expect("2")
		}
	}
	mustFail(t, count(countInField, true),
		`client 1 at /room/a:`, ` got text "1"`, `want text "2"`, "EvictEveryTurn", "last events", `Room/a`, `is constructed for a message, time 2`)
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, (&script{message: countInField}).setup, &hibernatetest.Options{EvictEveryTurn: true})
		c := k.Dial("/room/a")
		c.Send("x")
		c.Next()
		t.Fatal("something of its own")
	}, "something of its own", "the test has failed", "EvictEveryTurn", "last events", "Room/a")
	mustPass(t, count(countInField, false))
	mustPass(t, count(countInStorage, true))
}

func TestKeptSliceFailsTheTest(t *testing.T) {
	t.Parallel()
	keep := func(copied, awaits bool) func(testing.TB) {
		s := &script{message: func(ctx context.Context, r *room, ws hibernate.WebSocket, m hibernate.Message) error {
			before := r.kept
			if r.kept = m.Data; copied {
				r.kept = slices.Clone(m.Data)
			}
			if awaits {
				if err := hibernate.Await(ctx, func(context.Context) error { return nil }); err != nil {
					return err
				}
				before = r.kept
			}
			return ws.SendText(ctx, "last: "+string(before))
		}}
		return func(t testing.TB) {
			k := hibernatetest.New(t, s.setup, nil)
			c := k.Dial("/room/a")
			c.Send("first")
			if awaits {
				c.Expect("last: first")
				return
			}
			c.Expect("last: ")
			c.Send("second")
			c.Expect("last: first")
		}
	}
	mustFail(t, keep(false, false), `got text "last: !mess"`, `want text "last: first"`, "a slice of Message.Data was kept. Copy it.")
	mustFail(t, keep(false, true), `got text "last: !mess"`, "Copy it.")
	mustPass(t, keep(true, false))
	mustPass(t, keep(true, true))
}

// TestKitTellsOfCallsOutsideATurn: a handler may drop the error, and then nothing else
// tells why nothing comes.
func TestKitTellsOfCallsOutsideATurn(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]func(ctx context.Context, r *room, ws hibernate.WebSocket) error{
		"handler's ctx": func(ctx context.Context, _ *room, ws hibernate.WebSocket) error { return ws.SendText(ctx, "late") },
		"broadcast": func(ctx context.Context, r *room, _ hibernate.WebSocket) error {
			_, err := r.state.Broadcast(ctx, hibernate.Text("late"), nil)
			return err
		},
		"storage": func(ctx context.Context, r *room, _ hibernate.WebSocket) error {
			return hibernate.Put(ctx, r.state.Storage(), "k", 1)
		},
		"no turn's ctx": func(_ context.Context, _ *room, ws hibernate.WebSocket) error {
			return ws.SendText(context.Background(), "late")
		},
		"attachment": func(_ context.Context, _ *room, ws hibernate.WebSocket) error {
			return ws.SerializeAttachment(context.Background(), 1)
		},
		"no turn's ctx for storage": func(_ context.Context, r *room, _ hibernate.WebSocket) error {
			return hibernate.Put(context.Background(), r.state.Storage(), "k", 1)
		},
	} {
		s := &script{message: func(ctx context.Context, r *room, ws hibernate.WebSocket, _ hibernate.Message) error {
			go func() {
				<-ctx.Done()
				for range 100 {
					if err := late(ctx, r, ws); !errors.Is(err, hibernate.ErrOutsideTurn) {
						t.Errorf("%s: %v", name, err)
					}
				}
			}()
			return nil
		}}
		mustFail(t, func(t testing.TB) {
			k := hibernatetest.New(t, s.setup, nil)
			c := k.Dial("/room/a")
			c.Send("hello")
			c.Expect("late")
		}, `want text "late", and nothing came`, `message "hello"`, "a call is refused: ctx is not that of a running turn")
	}
}

func TestLeakedWorkFailsTheTest(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	for name, start := range map[string]func(ctx context.Context, r *room) error{
		"work": func(ctx context.Context, r *room) error {
			return r.state.WaitUntil(ctx, "poll the weather", func(context.Context) { <-release })
		},
		"goroutine": func(context.Context, *room) error {
			go func() { <-release }()
			return nil
		},
	} {
		s := &script{message: func(ctx context.Context, r *room, ws hibernate.WebSocket, m hibernate.Message) error {
			return errors.Join(start(ctx, r), ws.Send(ctx, m))
		}}
		want := []string{"1 goroutines that handlers started are still there", "TestLeakedWorkFailsTheTest", "kit_test.go"}
		if name == "work" {
			want = append(want, `WaitUntil work "poll the weather" of Room/a`)
		}
		mustFail(t, func(t testing.TB) {
			k := hibernatetest.New(t, s.setup, &hibernatetest.Options{Patience: short, Runtime: hibernate.Options{ProfileLabels: name == "goroutine"}})
			c := k.Dial("/room/a")
			c.Send("x")
			c.Expect("x")
		}, want...)
	}
	close(release)
	s := &script{message: func(ctx context.Context, r *room, ws hibernate.WebSocket, m hibernate.Message) error {
		return errors.Join(ws.Send(ctx, m), r.state.WaitUntil(ctx, "good work", func(ctx context.Context) { <-ctx.Done() }))
	}}
	mustPass(t, func(t testing.TB) {
		k := hibernatetest.New(t, s.setup, nil)
		c := k.Dial("/room/a")
		c.Send("x")
		c.Expect("x")
	})
}

func TestUnansweredExpectFailsTheTest(t *testing.T) {
	t.Parallel()
	silent := &script{message: func(ctx context.Context, r *room, _ hibernate.WebSocket, m hibernate.Message) error {
		switch m.Text() {
		case "alarm":
			return r.state.Storage().SetAlarm(ctx, time.Date(2026, 1, 2, 4, 4, 5, 0, time.UTC))
		case "await":
			return hibernate.Await(ctx, func(ctx context.Context) error { <-ctx.Done(); return nil })
		}
		return nil
	}}
	begin := time.Now()
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, silent.setup, &hibernatetest.Options{Patience: time.Minute})
		c := k.Dial("/room/a")
		c.Send("hello")
		c.Expect("welcome")
	}, `client 1 at /room/a: want text "welcome", and nothing came. Nothing is under way that could still send it.`, "nothing was received before", `message "hello"`)
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, silent.setup, &hibernatetest.Options{Patience: time.Minute})
		c := k.Dial("/room/a")
		c.Send("alarm")
		c.Expect("welcome")
	}, "an alarm of class Room is due in 1h0m0s of the kit's clock")
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("with nobody who could send, Expect took %v", took)
	}
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, silent.setup, &hibernatetest.Options{Patience: short})
		c := k.Dial("/room/a")
		c.Send("await")
		c.Expect("welcome")
	}, "and nothing came in "+short.String(), `Room/a is blocked`, `kept in memory by Await`)
}

func TestHandlerThatHoldsItsTurnFailsTheTest(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := &script{message: func(context.Context, *room, hibernate.WebSocket, hibernate.Message) error {
		<-release
		return nil
	}}
	mustFail(t, func(t testing.TB) {
		t.Cleanup(func() { close(release) })
		k := hibernatetest.New(t, s.setup, &hibernatetest.Options{Patience: short})
		c := k.Dial("/room/a")
		c.Send("x")
		k.Advance(time.Second)
	}, "Advance by 1s, at +0s: still at work after "+short.String(), "Room/a is running", `by turn "message"`, "WebSocketMessage", "hibernate.Await")
}

func TestPanicFailsTheTest(t *testing.T) {
	t.Parallel()
	s := &script{message: func(context.Context, *room, hibernate.WebSocket, hibernate.Message) error { panic("ouch") }}
	test := func(allow bool) func(testing.TB) {
		return func(t testing.TB) {
			k := hibernatetest.New(t, s.setup, &hibernatetest.Options{AllowPanics: allow})
			c := k.Dial("/room/a")
			c.Send("x")
			c.ExpectNothing()
		}
	}
	mustFail(t, test(false), "a handler panicked", "message failed: handler panicked: ouch")
	mustPass(t, test(true))
}

func TestAdvanceHibernatesAndRunsAlarms(t *testing.T) {
	t.Parallel()
	var k *hibernatetest.Kit
	var rang []string
	s := &script{
		message: func(ctx context.Context, r *room, ws hibernate.WebSocket, m hibernate.Message) error {
			return errors.Join(ws.Send(ctx, m), r.state.Storage().SetAlarm(ctx, k.Now().Add(time.Hour)))
		},
		alarm: func(ctx context.Context, r *room, a hibernate.AlarmInfo) error {
			rang = append(rang, k.Now().Format(time.TimeOnly))
			if len(rang) < 3 {
				return r.state.Storage().SetAlarm(ctx, k.Now().Add(time.Hour))
			}
			return nil
		},
	}
	k = hibernatetest.New(t, s.setup, nil)
	a := k.Object("Room", "a")
	c := k.Dial("/room/a")
	k.AssertHibernated(a)
	c.Send("x")
	k.Advance(10 * time.Second)
	k.AssertHibernated(a)
	if due, set := k.Alarm(a); !set || due.Sub(k.Now()) != time.Hour-10*time.Second {
		t.Fatalf("alarm at %v, %v; it is %v", due, set, k.Now())
	}
	k.Advance(24 * time.Hour)
	if want := []string{"04:04:05", "05:04:05", "06:04:05"}; !slices.Equal(rang, want) {
		t.Fatalf("alarms rang at %q, want %q", rang, want)
	}
	k.AssertHibernated(a)
	if want := []hibernate.Cause{hibernate.CauseMessage, hibernate.CauseAlarm, hibernate.CauseAlarm, hibernate.CauseAlarm}; !slices.Equal(k.Wakes(a), want) {
		t.Fatalf("woken by %v, want %v", k.Wakes(a), want)
	}
	if got := k.Now().Format(time.DateTime); got != "2026-01-03 03:04:15" {
		t.Fatalf("the clock shows %s", got)
	}
	c.Expect("x")
	c.ExpectNothing()
}

func TestAssertHibernatedTellsWhy(t *testing.T) {
	t.Parallel()
	s := &script{message: func(ctx context.Context, r *room, ws hibernate.WebSocket, m hibernate.Message) error {
		if m.Text() == "work" {
			return r.state.WaitUntil(ctx, "tell the world", func(ctx context.Context) { <-ctx.Done() })
		}
		return nil
	}}
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, s.setup, nil)
		k.Dial("/room/a").Send("x")
		k.AssertHibernated(k.Object("Room", "a"))
	}, "Room/a should have left memory, and is there", "Room/a is idle, was woken last by a message, at +0s", "it hibernates after 10s without an event: Advance, or Evict it")
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, s.setup, nil)
		k.Dial("/room/a").Send("work")
		k.Advance(time.Minute)
		k.AssertHibernated(k.Object("Room", "a"))
	}, "Room/a is blocked", `kept in memory by WaitUntil "tell the world" for 1m0s`)
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, s.setup, nil)
		k.Dial("/room/a").Send("work")
		k.Evict(k.Object("Room", "a"))
	}, "Evict Room/a: object is busy", `WaitUntil "tell the world"`)
}

func TestRunAlarm(t *testing.T) {
	t.Parallel()
	var told []hibernate.AlarmInfo
	fail := errors.New("not yet")
	s := &script{
		message: func(ctx context.Context, r *room, ws hibernate.WebSocket, m hibernate.Message) error {
			return r.state.Storage().SetAlarm(ctx, time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))
		},
		alarm: func(_ context.Context, _ *room, a hibernate.AlarmInfo) error {
			if told = append(told, a); len(told) == 1 {
				return fail
			}
			return nil
		},
	}
	k := hibernatetest.New(t, s.setup, nil)
	a := k.Object("Room", "a")
	c := k.Dial("/room/a")
	c.Send("x")
	k.EvictAll()
	if err := k.RunAlarm(a); !errors.Is(err, fail) {
		t.Fatalf("the first run: %v", err)
	}
	if err := k.RunAlarm(a); err != nil {
		t.Fatalf("the second run: %v", err)
	}
	if len(told) != 2 || !told[0].Scheduled.Equal(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)) || told[0].IsRetry || told[1].RetryCount != 1 {
		t.Fatalf("the handler was told %+v", told)
	}
	if due, set := k.Alarm(a); set {
		t.Fatalf("another alarm is set for %v", due)
	}
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, s.setup, nil)
		_ = k.RunAlarm(k.Object("Room", "b"))
	}, "RunAlarm of Room/b: no alarm is set", "Room/b is absent")
}

func TestRestartKeepsWhatIsDurable(t *testing.T) {
	t.Parallel()
	k := hibernatetest.New(t, (&script{message: countInStorage}).setup, nil)
	a, url := k.Object("Room", "a"), k.URL
	c := k.Dial("/room/a")
	for n := range 3 {
		c.Send("x")
		c.Expect(fmt.Sprint(n + 1))
		k.Restart()
		if k.URL != url {
			t.Fatalf("the URL was %s and is %s", url, k.URL)
		}
		k.AssertHibernated(a)
		c = k.Dial("/room/a")
	}
	if got := k.Wakes(a); len(got) != 3 {
		t.Fatalf("woken by %v", got)
	}
	if err := hibernatetest.RunInObject(k, a, func(ctx context.Context, r *room) error {
		if n, _, err := hibernate.Get[int](ctx, r.state.Storage(), "n"); n != 3 || err != nil {
			t.Errorf("stored %d, %v", n, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, (&script{}).setup, nil)
		c := k.Dial("/room/a")
		k.Restart()
		c.Send("x")
	}, `client 1 at /room/a sends text "x": its connection is gone: the runtime was restarted`)
}

// TestRestartLosesWhatIsNot: a write that nobody waited for.
func TestRestartLosesWhatIsNot(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	s := &script{message: func(ctx context.Context, r *room, ws hibernate.WebSocket, m hibernate.Message) error {
		if err := countInStorage(ctx, r, ws, m); err != nil || m.Text() != "hold" {
			return err
		}
		<-hold
		return nil
	}}
	k := hibernatetest.New(t, s.setup, nil)
	c := k.Dial("/room/a")
	c.Send("x")
	c.Expect("1")
	c.Send("hold")
	k.Restart() // while the turn is under way, or before it began
	close(hold)
	c = k.Dial("/room/a")
	c.Send("x")
	c.Expect("2")
}

func TestRunInObject(t *testing.T) {
	t.Parallel()
	k := hibernatetest.New(t, (&script{message: countInField}).setup, nil)
	a := k.Object("Room", "a")
	c := k.Dial("/room/a?tag=blue")
	c.Send("x")
	count := 0
	if err := hibernatetest.RunInObject(k, a, func(_ context.Context, r *room) error {
		if count = r.count; len(r.state.WebSockets("blue")) != 1 {
			t.Error("the socket has no tag")
		}
		return nil
	}); err != nil || count != 1 {
		t.Fatalf("counted %d, %v", count, err)
	}
	refused := errors.New("no")
	if err := hibernatetest.RunInObject(k, a, func(context.Context, *room) error { return refused }); !errors.Is(err, refused) {
		t.Fatalf("the function's error came as %v", err)
	}
	if err := hibernatetest.RunInObject(k, a, func(context.Context, *script) error { return nil }); !errors.Is(err, hibernate.ErrInvalid) {
		t.Fatalf("another type: %v", err)
	}
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, (&script{}).setup, nil)
		_ = hibernatetest.RunInObject(k, k.Object("Room", "a"), func(context.Context, *room) error {
			t.Fatal("fatal in the object")
			return nil
		})
		t.Error("it went on")
	}, "fatal in the object")
	release := make(chan struct{})
	mustFail(t, func(t testing.TB) {
		t.Cleanup(func() { close(release) })
		k := hibernatetest.New(t, (&script{}).setup, &hibernatetest.Options{Patience: short})
		_ = hibernatetest.RunInObject(k, k.Object("Room", "a"), func(context.Context, *room) error { <-release; return nil })
	}, "RunInObject of Room/a: not done after "+short.String(), "Room/a is running", "TestRunInObject")
	mustFail(t, func(t testing.TB) {
		k := hibernatetest.New(t, (&script{}).setup, nil)
		k.Object("Rum", "a")
	}, `setup registered no class "Rum", but ["Room"]`)
}

func TestClientsOfAllKinds(t *testing.T) {
	t.Parallel()
	s := &script{message: func(ctx context.Context, r *room, ws hibernate.WebSocket, m hibernate.Message) error {
		if m.Text() == "close" {
			return ws.Close(ctx, 4000, "enough")
		}
		return ws.Send(ctx, m)
	}}
	k := hibernatetest.New(t, s.setup, nil)
	c := k.DialWith("/room/a", &hibernatetest.DialOptions{Protocols: []string{"v1", "v2"}})
	if c.Protocol() != "v2" || c.Header().Get("X-Room") != "a" {
		t.Fatalf("protocol %q, header %v", c.Protocol(), c.Header())
	}
	c.SendBinary([]byte{0, 1})
	c.ExpectBinary([]byte{0, 1})
	c.Send("")
	if m := c.Next(); m.Kind != hibernate.TextMessage || len(m.Data) != 0 {
		t.Fatalf("got %+v", m)
	}
	c.Send("close")
	if reason := c.ExpectClose(4000); reason != "enough" {
		t.Fatalf("the reason is %q", reason)
	}
	c = k.Dial("/room/a")
	c.Close(4001, "bye")
	c.ExpectClose(4001)
	c = k.Dial("/room/a")
	c.Close(0, "")
	c.ExpectClose(1005)
	k.Settle()
	if n := k.Runtime().Stats().Sockets; n != 0 {
		t.Fatalf("%d sockets are left", n)
	}

	_, err := k.TryDial("/room/a", &hibernatetest.DialOptions{Header: http.Header{"Authorization": {"bad"}}})
	if refused := (*hibernatetest.HandshakeError)(nil); !errors.As(err, &refused) || refused.Status != http.StatusForbidden || refused.Body != "not you\n" {
		t.Fatalf("refused with %+v", err)
	}
	mustFail(t, func(t testing.TB) { hibernatetest.New(t, s.setup, nil).Dial("/elsewhere") }, "Dial /elsewhere: status 404: 404 page not found")
	mustFail(t, func(t testing.TB) {
		c := hibernatetest.New(t, s.setup, nil).Dial("/room/a")
		c.Send("x")
		c.ExpectNothing()
	}, `client 1 at /room/a: want nothing, and 1 things came; the first is text "x"`)
	mustFail(t, func(t testing.TB) {
		c := hibernatetest.New(t, s.setup, nil).Dial("/room/a")
		c.Send("x")
		c.ExpectClose(1000)
	}, ` got text "x"`, "want close 1000")
	mustFail(t, func(t testing.TB) {
		c := hibernatetest.New(t, s.setup, nil).Dial("/room/a")
		c.Close(1000, "")
		c.Send("x")
	}, `client 1 at /room/a sends text "x": it has sent a Close before`)
}

// TestEndsAreHandledWhenSettled, however a connection ends.
func TestEndsAreHandledWhenSettled(t *testing.T) {
	t.Parallel()
	for _, manual := range []bool{false, true} {
		for how, end := range map[string]func(c *hibernatetest.Client){
			"1000": func(c *hibernatetest.Client) { c.Close(1000, "") },
			"1006": func(c *hibernatetest.Client) { c.Drop() },
		} {
			t.Run(fmt.Sprint(how, " manual ", manual), func(t *testing.T) {
				t.Parallel()
				var ended []string
				s := &script{class: &hibernate.ClassOptions{ManualCloseReply: manual}}
				s.close = func(_ context.Context, _ *room, _ hibernate.WebSocket, e hibernate.CloseEvent) error {
					ended = append(ended, fmt.Sprint(e.Code))
					return nil
				}
				k := hibernatetest.New(t, s.setup, nil)
				for range 20 {
					ended = nil
					c := k.Dial("/room/a")
					end(c)
					k.Settle()
					if !slices.Equal(ended, []string{how}) {
						t.Fatalf("the object was told of %q", ended)
					}
				}
				k.Advance(time.Minute)
				k.AssertHibernated(k.Object("Room", "a"))
			})
		}
	}
}

func TestCutIsTheEndWithoutClose(t *testing.T) {
	t.Parallel()
	s := &script{message: func(ctx context.Context, r *room, _ hibernate.WebSocket, _ hibernate.Message) error {
		return r.state.Abort(ctx, errors.New("broken"))
	}}
	k := hibernatetest.New(t, s.setup, nil)
	c := k.Dial("/room/a")
	c.Send("x")
	c.ExpectClose(1006)
}

func TestPausedClientIsDisconnectedWhenItsQueueIsFull(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 1<<20)
	s := &script{message: func(ctx context.Context, r *room, _ hibernate.WebSocket, _ hibernate.Message) error {
		_, err := r.state.Broadcast(ctx, hibernate.Text(big), nil)
		return err
	}}
	k := hibernatetest.New(t, s.setup, &hibernatetest.Options{Runtime: hibernate.Options{Limits: hibernate.Limits{SendQueue: 8 << 20}}})
	slow, fast := k.Dial("/room/a"), k.Dial("/room/a")
	slow.Pause()
	for range 40 {
		fast.Send("more")
		fast.Expect(big)
	}
	k.Advance(time.Minute) // it does not answer the Close that it does not read
	if n := k.Runtime().Stats().Sockets; n != 1 {
		t.Fatalf("%d sockets are left", n)
	}
	patient := k.Dial("/room/b")
	patient.Pause()
	patient.Send("x")
	k.Settle()
	mustFail(t, func(t testing.TB) {
		c := hibernatetest.New(t, s.setup, nil).Dial("/room/a")
		c.Pause()
		c.Expect("x")
	}, "it is paused: Resume it first")
	patient.Resume()
	patient.Expect(big)
}

func TestHandshakesOverHTTP(t *testing.T) {
	t.Parallel()
	k := hibernatetest.New(t, (&script{}).setup, nil)
	resp, err := http.Get(k.URL + "/room/a")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Fatalf("a plain request is answered %s", resp.Status)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	for _, c := range []struct {
		want  string
		setup func(*hibernate.Runtime) (http.Handler, error)
		o     *hibernatetest.Options
	}{
		{"New without a setup", nil, nil},
		{"the kit brings its own", (&script{}).setup, &hibernatetest.Options{Runtime: hibernate.Options{Clock: (*noClock)(nil)}}},
		{"Options.Patience is -1s", (&script{}).setup, &hibernatetest.Options{Patience: -time.Second}},
		{"setup: wrong wiring", func(*hibernate.Runtime) (http.Handler, error) { return nil, errors.New("wrong wiring") }, nil},
		{"Options.IdleTimeout is -1s", (&script{}).setup, &hibernatetest.Options{Runtime: hibernate.Options{IdleTimeout: -time.Second}}},
	} {
		mustFail(t, func(t testing.TB) { hibernatetest.New(t, c.setup, c.o) }, c.want)
	}
	synctest.Test(t, func(t *testing.T) {
		mustFail(t, func(t testing.TB) { hibernatetest.New(t, (&script{}).setup, nil) }, "in a bubble of testing/synctest")
	})
}

type noClock struct{ hibernate.Clock }

// TestAdvanceIsQuickBesideWork: an object in memory is looked after once a second.
func TestAdvanceIsQuickBesideWork(t *testing.T) {
	t.Parallel()
	s := &script{message: func(ctx context.Context, r *room, _ hibernate.WebSocket, _ hibernate.Message) error {
		return r.state.WaitUntil(ctx, "work", func(ctx context.Context) { <-ctx.Done() })
	}}
	k := hibernatetest.New(t, s.setup, nil)
	k.Dial("/room/a").Send("x")
	begin := time.Now()
	k.Advance(24 * time.Hour)
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("a day took %v", took)
	}
}
