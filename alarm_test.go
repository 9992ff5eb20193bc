package hibernate_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/storetest"
)

// ringing tells of alarms, with the time since epoch that each was set for.
func ringing() *script {
	return &script{alarm: func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
		a.tell("alarm %v %v %d", i.Scheduled.Sub(epoch), i.IsRetry, i.RetryCount)
		return nil
	}}
}

// alarmAt is when the object's alarm is set for, since epoch.
func (r *rig) alarmAt(name string) string {
	r.t.Helper()
	var got string
	r.must(name, func(ctx context.Context, a *actor) error {
		at, ok, err := a.state.Storage().Alarm(ctx)
		if got = "none"; ok {
			got = at.Sub(epoch).String()
		}
		return err
	})
	return got
}

func (r *rig) setAlarm(name string, after time.Duration) {
	r.t.Helper()
	r.must(name, func(ctx context.Context, a *actor) error { return a.state.Storage().SetAlarm(ctx, epoch.Add(after)) })
}

// ring moves the clock until the next thing is told, at most by the given time,
// and returns what was told and how far the clock moved: a step further than it had
// to, at most.
func (r *rig) ring(most time.Duration) (told string, after time.Duration) {
	r.t.Helper()
	begin := r.clock.Now()
	for {
		r.until("quiet", func() bool { return r.rt.Quiet() || len(r.play.events) > 0 })
		after = r.clock.Now().Sub(begin)
		select {
		case told = <-r.play.events:
			return told, after
		default:
		}
		if after >= most {
			r.t.Fatalf("nothing was told in %v of the clock; log:\n%s", after, r.log)
		}
		r.clock.Advance(min(ringStep(most), most-after))
	}
}

// ringStep is how far the clock moves at once in a ring of the given time.
func ringStep(most time.Duration) time.Duration { return max(most/500, 50*time.Millisecond) }

// rings is ring where want must be told.
func (r *rig) rings(most time.Duration, want string) {
	r.t.Helper()
	if got, _ := r.ring(most); got != want {
		r.t.Fatalf("told %q, want %q", got, want)
	}
}

// TestAlarmRunsOnceWhenDue, awake or asleep, with the object's sockets left
// alone (semantics 13.3, 13.4, 9.4).
func TestAlarmRunsOnceWhenDue(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(ringing(), nil)
		c := r.dial("/o/a")
		r.setAlarm("a", time.Hour)
		pause(r)
		if got := r.alarmAt("a"); got != "1h0m0s" {
			t.Errorf("alarm at %s", got)
		}
		pause(r)
		r.clock.Advance(epoch.Add(time.Hour - time.Second).Sub(r.clock.Now()))
		r.turn("a")
		r.silent()
		r.rings(2*time.Second, "alarm 1h0m0s false 0")
		if got := r.alarmAt("a"); got != "none" {
			t.Errorf("alarm at %s", got)
		}
		r.clock.Advance(time.Hour)
		r.turn("a")
		r.silent()
		c.ping("p")
		c.expect("pong:p")
	})
}

// TestAlarmIsReplacedAndDeleted: there is one per object (13.1).
func TestAlarmIsReplacedAndDeleted(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(ringing(), nil)
	r.setAlarm("a", time.Hour)
	r.setAlarm("a", 2*time.Hour)
	r.setAlarm("b", 90*time.Minute)
	r.setAlarm("c", time.Minute)
	r.must("c", func(ctx context.Context, a *actor) error { return a.state.Storage().DeleteAlarm(ctx) })
	r.must("d", func(ctx context.Context, a *actor) error { return a.state.Storage().DeleteAlarm(ctx) })
	r.rings(100*time.Minute, "alarm 1h30m0s false 0")
	if got := r.alarmAt("c"); got != "none" {
		t.Errorf("deleted alarm at %s", got)
	}
	r.rings(time.Hour, "alarm 2h0m0s false 0")
	r.silent()
}

// TestAlarmTimes: the past is now, the epoch and before are ErrInvalid (13.1).
func TestAlarmTimes(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(ringing(), nil)
	r.must("a", func(ctx context.Context, a *actor) error {
		st := a.state.Storage()
		for _, at := range []time.Time{{}, time.Unix(0, 0), time.UnixMilli(-1)} {
			if err := st.SetAlarm(ctx, at); !errors.Is(err, hibernate.ErrInvalid) {
				t.Errorf("alarm at %v: %v", at, err)
			}
		}
		return st.SetAlarm(ctx, time.UnixMilli(1))
	})
	if told, after := r.ring(time.Second); told != "alarm 0s false 0" || after > time.Second {
		t.Errorf("%s after %v", told, after)
	}
}

// TestAlarmIsRetriedSixTimes, after 2 s doubled each time with up to a quarter
// of jitter, over hibernation; then it is dropped. Writes stay (13.3, 13.5).
func TestAlarmIsRetriedSixTimes(t *testing.T) {
	for _, asleep := range []bool{false, true} {
		t.Run(fmt.Sprintf("asleep=%v", asleep), func(t *testing.T) {
			r := newRig(t, "", nil)
			r.act(&script{alarm: func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
				st := a.state.Storage()
				_, set, err := st.Alarm(ctx)
				n, _, _ := hibernate.Get[int](ctx, st, "n")
				_ = hibernate.Put(ctx, st, "n", n+1)
				a.tell("alarm %v %v %d, set %v, %v, run %d", i.Scheduled.Sub(epoch), i.IsRetry, i.RetryCount, set, err, n)
				return errors.New("disliked")
			}}, nil)
			r.setAlarm("a", time.Second)
			const most = 3 * time.Minute
			delay := time.Second
			for run := range 7 {
				told, after := r.ring(most)
				if want := fmt.Sprintf("alarm 1s %v %d, set false, <nil>, run %d", run > 0, run, run); told != want {
					t.Fatalf("told %q, want %q", told, want)
				}
				if run > 0 && (after < delay || after > delay*5/4+ringStep(most)) {
					t.Errorf("retry %d came after %v, want %v and a quarter", run, after, delay)
				}
				if delay *= 2; run == 0 {
					delay = 2 * time.Second
				}
				want := "1s"
				if run == 6 {
					want = "none"
				}
				if got := r.alarmAt("a"); got != want {
					t.Errorf("after run %d the alarm is %s, want %s", run, got, want)
				}
				if asleep {
					r.evict("a")
				}
			}
			r.clock.Advance(24 * time.Hour)
			r.turn("a")
			r.silent()
		})
	}
}

// TestAlarmThatPanicsIsRetried with its writes undone, by a new instance.
func TestAlarmThatPanicsIsRetried(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{alarm: func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
		_, ok, _ := a.state.Storage().GetBytes(ctx, "k")
		put(t, ctx, a.state.Storage(), "k")
		a.tell("alarm %v %d, wrote %v", i.IsRetry, i.RetryCount, ok)
		if i.RetryCount < 2 {
			panic("disliked")
		}
		return nil
	}}, nil)
	r.setAlarm("a", time.Second)
	for run := range 3 {
		if told, _ := r.ring(time.Minute); told != fmt.Sprintf("alarm %v %d, wrote false", run > 0, run) {
			t.Errorf("told %q", told)
		}
	}
	if got := r.alarmAt("a"); got != "none" {
		t.Errorf("alarm at %s", got)
	}
	r.instances(3)
}

// TestAlarmSetOrDeletedByItsHandler that then fails: a new one replaces the
// retry, a deletion leaves none (13.6).
func TestAlarmSetOrDeletedByItsHandler(t *testing.T) {
	for _, fail := range []error{nil, errors.New("disliked")} {
		t.Run(fmt.Sprint("set, ", fail), func(t *testing.T) {
			r := newRig(t, "", nil)
			s := ringing()
			tell := s.alarm
			s.alarm = func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
				_ = tell(ctx, a, i)
				if i.Scheduled.Equal(epoch.Add(time.Second)) {
					if err := a.state.Storage().SetAlarm(ctx, epoch.Add(time.Hour)); err != nil {
						t.Error(err)
					}
					return fail
				}
				return nil
			}
			r.act(s, nil)
			r.setAlarm("a", time.Second)
			r.rings(2*time.Second, "alarm 1s false 0")
			if got := r.alarmAt("a"); got != "1h0m0s" {
				t.Errorf("alarm at %s", got)
			}
			r.rings(2*time.Hour, "alarm 1h0m0s false 0")
			r.turn("a")
			r.silent()
		})
		t.Run(fmt.Sprint("deleted, ", fail), func(t *testing.T) {
			r := newRig(t, "", nil)
			s := ringing()
			tell := s.alarm
			s.alarm = func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
				_ = tell(ctx, a, i)
				if err := a.state.Storage().DeleteAlarm(ctx); err != nil {
					t.Error(err)
				}
				return fail
			}
			r.act(s, nil)
			r.setAlarm("a", time.Second)
			r.rings(2*time.Second, "alarm 1s false 0")
			if got := r.alarmAt("a"); got != "none" {
				t.Errorf("alarm at %s", got)
			}
			r.clock.Advance(time.Hour)
			r.turn("a")
			r.silent()
		})
	}
}

// TestAlarmSetWhileItsHandlerAwaits runs after it, not as a retry (13.7, 13.12).
func TestAlarmSetWhileItsHandlerAwaits(t *testing.T) {
	d := newDoor()
	r := newRig(t, "", nil)
	s := ringing()
	tell := s.alarm
	s.alarm = func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
		if i.Scheduled.Equal(epoch.Add(time.Second)) {
			_ = hibernate.Await(ctx, d.wait)
		}
		return tell(ctx, a, i)
	}
	r.act(s, nil)
	r.setAlarm("a", time.Second)
	r.pass(time.Second)
	<-d.at
	r.setAlarm("a", 3*time.Second)
	if got := r.alarmAt("a"); got != "3s" {
		t.Errorf("alarm at %s", got)
	}
	r.clock.Advance(10 * time.Second)
	r.turn("a")
	r.silent()
	d.pass()
	r.hear("alarm 1s false 0")
	r.rings(time.Minute, "alarm 3s false 0")
}

// TestAlarmInterruptedByAbortIsRetried in a new instance (13.10).
func TestAlarmInterruptedByAbortIsRetried(t *testing.T) {
	r := newRig(t, "", nil)
	s := ringing()
	tell := s.alarm
	s.alarm = func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
		_ = tell(ctx, a, i)
		if !i.IsRetry {
			_ = a.state.Abort(ctx, errors.New("enough"))
		}
		return nil
	}
	r.act(s, nil)
	r.setAlarm("a", time.Second)
	for _, want := range []string{"alarm 1s false 0", "alarm 1s true 1"} {
		r.rings(time.Minute, want)
	}
	r.instances(2)
}

// TestAlarmWhoseConstructorFailsIsNotCounted as tried (13.11).
func TestAlarmWhoseConstructorFailsIsNotCounted(t *testing.T) {
	r := newRig(t, "", nil)
	s := ringing()
	s.construct = func(ctx context.Context, a *actor) error {
		if a.n == 2 {
			a.tell("failed")
			return errors.New("disliked")
		}
		return nil
	}
	r.act(s, nil)
	r.setAlarm("a", time.Second)
	r.evict("a")
	for _, want := range []string{"failed", "alarm 1s false 0"} {
		r.rings(time.Hour, want)
	}
}

// TestAlarmSurvivesRestart, and one that was missed runs when its class is
// registered (13.9, 14.2).
func TestAlarmSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir, nil)
	r.act(ringing(), nil)
	r.setAlarm("missed", time.Hour)
	r.setAlarm("due", 5*time.Hour)
	r.shut()
	r = newRigAt(t, dir, nil, epoch.Add(2*time.Hour))
	r.act(ringing(), nil)
	if told, after := r.ring(time.Minute); told != "alarm 1h0m0s false 0" || after > 31*time.Second {
		t.Errorf("%s after %v", told, after)
	}
	if got := r.alarmAt("due"); got != "5h0m0s" {
		t.Errorf("alarm at %s", got)
	}
	r.rings(4*time.Hour, "alarm 5h0m0s false 0")
	r.silent()
}

// TestAlarmNeedsAHandler, which is not looked for in the constructor (13.2).
func TestAlarmNeedsAHandler(t *testing.T) {
	r := newRig(t, "", nil)
	var inConstructor error
	serve(r, func(ctx context.Context, s *hibernate.State) (*mute, error) {
		inConstructor = s.Storage().SetAlarm(ctx, epoch.Add(time.Hour))
		return &mute{s}, nil
	}, nil)
	set := hibernate.NewMethod("alarm", func(m *mute, ctx context.Context, _ int) (int, error) {
		st := m.state.Storage()
		if err := st.SetAlarm(ctx, epoch.Add(time.Hour)); !errors.Is(err, hibernate.ErrState) {
			t.Errorf("set: %v", err)
		}
		if _, _, err := st.Alarm(ctx); err != nil {
			t.Errorf("get: %v", err)
		}
		return 0, st.DeleteAlarm(ctx)
	})
	if _, err := set.Call(context.Background(), r.ns.GetByName("a"), 0); err != nil {
		t.Error(err)
	}
	if inConstructor != nil {
		t.Errorf("in the constructor: %v", inConstructor)
	}
}

// TestAlarmWaitsForBlockConcurrencyWhile (13.7).
func TestAlarmWaitsForBlockConcurrencyWhile(t *testing.T) {
	d := newDoor()
	r := newRig(t, "", nil)
	r.act(ringing(), nil)
	r.setAlarm("a", time.Second)
	done := r.later("a", func(ctx context.Context, a *actor) error {
		return a.state.BlockConcurrencyWhile(ctx, func(ctx context.Context) error {
			_ = hibernate.Await(ctx, d.wait)
			a.tell("block over")
			return nil
		})
	})
	<-d.at
	r.clock.Advance(2 * time.Second)
	r.silent()
	d.pass()
	r.hear("block over")
	r.rings(time.Minute, "alarm 1s false 0")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAlarmIsUndoneWithItsTurn, set or deleted.
func TestAlarmIsUndoneWithItsTurn(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(ringing(), nil)
	r.setAlarm("a", time.Hour)
	for _, change := range []func(context.Context, *hibernate.Storage) error{
		func(ctx context.Context, st *hibernate.Storage) error {
			return st.SetAlarm(ctx, epoch.Add(time.Second))
		},
		func(ctx context.Context, st *hibernate.Storage) error { return st.DeleteAlarm(ctx) },
	} {
		_ = r.in("a", func(ctx context.Context, a *actor) error {
			if err := change(ctx, a.state.Storage()); err != nil {
				t.Error(err)
			}
			panic("undo")
		})
		if got := r.alarmAt("a"); got != "1h0m0s" {
			t.Errorf("alarm at %s", got)
		}
	}
	r.clock.Advance(time.Minute)
	r.turn("a")
	r.silent()
	if log := r.log.String(); !strings.Contains(log, "undo") {
		t.Errorf("log:\n%s", log)
	}
}

// TestNameSurvivesAnEmptyObject that only an alarm, which knows no names, has woken.
func TestNameSurvivesAnEmptyObject(t *testing.T) {
	dir := t.TempDir()
	for life := range 3 {
		r := newRigAt(t, dir, nil, epoch.Add(time.Duration(life)*time.Hour))
		r.act(&script{alarm: func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
			st := a.state.Storage()
			if err := errors.Join(st.DeleteAll(ctx), st.Sync(ctx), st.SetAlarm(ctx, r.clock.Now().Add(time.Minute)), st.Sync(ctx)); err != nil {
				t.Error(err)
			}
			a.tell("alarm of %q", a.state.Name())
			return nil
		}}, nil)
		if life == 0 {
			r.setAlarm("a", 30*time.Minute)
		} else {
			r.rings(time.Second, `alarm of "a"`)
			r.until("the alarm to end", r.rt.Quiet)
		}
		r.shut()
	}
}

// TestAlarmLoopIsSlowedDown to 100 ms once a handler has set its alarm for sooner
// than that 100 times in a row; the next that is set later ends it.
func TestAlarmLoopIsSlowedDown(t *testing.T) {
	r := newRig(t, "", nil)
	var runs, delay atomic.Int64
	r.act(&script{alarm: func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
		runs.Add(1)
		return a.state.Storage().SetAlarm(ctx, r.clock.Now().Add(time.Duration(delay.Load())))
	}}, nil)
	after := func(d time.Duration, want int64) {
		t.Helper()
		r.pass(d)
		if n := runs.Load(); n != want {
			t.Fatalf("%d runs, want %d", n, want)
		}
	}
	r.setAlarm("a", 0)
	after(0, 100)
	for n := range int64(5) {
		after(99*time.Millisecond, 100+n)
		after(time.Millisecond, 101+n)
	}
	if n := strings.Count(r.log.String(), "slowed down"); n != 1 {
		t.Errorf("%d warnings", n)
	}

	delay.Store(int64(100 * time.Millisecond))
	after(100*time.Millisecond, 106)
	for n := range int64(150) { // this slow, it may go on for ever
		after(100*time.Millisecond, 107+n)
	}
	delay.Store(0)
	after(100*time.Millisecond, 256+100)
	if n := strings.Count(r.log.String(), "slowed down"); n != 2 {
		t.Errorf("%d warnings", n)
	}
}

// TestAlarmRetriesGoOnAfterACrash with their number, also after one that comes
// while a retry runs: that one runs again.
func TestAlarmRetriesGoOnAfterACrash(t *testing.T) {
	fs := storetest.NewFS()
	now, waits := epoch, true // waits: the next run is not due yet
	// live runs n retries from the first on, and cuts the power: in the last one if
	// inside, else when its outcome is on disk.
	live := func(first, n int, inside bool) {
		t.Helper()
		r := newDiskRig(t, &disk{FS: fs}, &hibernate.Options{Logger: slog.New(slog.DiscardHandler)})
		r.clock.Advance(now.Sub(epoch))
		hold := make(chan struct{})
		r.act(&script{alarm: func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
			a.tell("alarm %v %d", i.Scheduled.Sub(epoch), i.RetryCount)
			if inside && i.RetryCount == first+n-1 {
				_ = hibernate.Await(ctx, func(ctx context.Context) error {
					a.tell("waits")
					<-hold
					return nil
				})
			}
			return errors.New("disliked")
		}}, nil)
		if first == 0 {
			r.setAlarm("a", time.Second)
		}
		if waits {
			r.turn("a")
			r.until("quiet", r.rt.Quiet)
			r.silent()
		}
		waits = !inside
		for i := range n {
			r.rings(5*time.Minute, fmt.Sprint("alarm 1s ", first+i))
		}
		if inside {
			r.hear("waits")
		} else {
			r.until("quiet", r.rt.Quiet)
		}
		r.silent()
		fs, now = fs.Cut(vfs.CrashCloneCfg{}), r.clock.Now()
		close(hold)
		r.shut()
	}
	live(0, 3, false) // the first run and two retries
	live(3, 1, true)
	live(3, 2, false)
	live(5, 2, true)
	live(6, 1, false)
	r := newDiskRig(t, &disk{FS: fs}, &hibernate.Options{Logger: slog.New(slog.DiscardHandler)})
	r.clock.Advance(now.Sub(epoch))
	r.act(ringing(), nil)
	if got := r.alarmAt("a"); got != "none" {
		t.Errorf("alarm at %s", got)
	}
	r.clock.Advance(time.Hour)
	r.turn("a")
	r.silent()
}

// pendingAlarms opens a runtime over n alarms, half of them overdue in front and of
// a class that nobody registers, the others far ahead, and sets one between. It
// returns how long it took to run that, and what the heap has grown by since.
func pendingAlarms(t testing.TB, n int) (took time.Duration, grown int64) {
	fs := vfs.NewMem()
	cfg := store.Config{Dir: "data", FS: fs, CacheSize: 1 << 20, MemTableSize: 1 << 20}
	st, err := store.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		var id store.ID
		binary.BigEndian.PutUint64(id[:], uint64(i))
		class, due := "Gone", epoch.Add(-time.Hour)
		if i%2 == 0 {
			class, due = "Test", epoch.Add(time.Hour)
		}
		o := st.Object(id, class, "")
		if err := o.SetAlarm(store.Alarm{Next: due.UnixMilli() + int64(i%1000)}); err != nil {
			t.Fatal(err)
		}
		o.Commit(nil)
		o.Close()
		if err := st.Throttle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}

	clock := alarm.NewFake(epoch)
	rt, err := hibernate.OpenStore(cfg, &hibernate.Options{Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what finalizers let go
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, began := heap(), time.Now()
	s := &script{events: make(chan string, 10), lines: map[int]func(context.Context, *actor) error{}}
	s.alarm = ringing().alarm
	ns, err := hibernate.Register(rt, "Test", func(_ context.Context, st *hibernate.State) (*actor, error) {
		return &actor{script: s, state: st}, nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.lines[0] = func(ctx context.Context, a *actor) error { return a.state.Storage().SetAlarm(ctx, epoch) }
	if _, err := line.Call(t.Context(), ns.GetByName("a"), 0); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.events:
	case <-time.After(patience):
		t.Fatal("the alarm in between does not run")
	}
	took = time.Since(began)
	for deadline := time.Now().Add(patience); !rt.Quiet(); time.Sleep(time.Millisecond) { // the scan ends
		if time.Now().After(deadline) {
			t.Fatalf("the runtime is not quiet in %v", patience)
		}
	}
	grown = heap() - before
	runtime.KeepAlive(rt)
	return took, grown
}

// TestPendingAlarmsCostNoMemory where each kept in memory would cost 56 bytes.
func TestPendingAlarmsCostNoMemory(t *testing.T) {
	if _, grown := pendingAlarms(t, 100_000); grown > 2<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// BenchmarkPendingAlarms runs one alarm among a million others, half a million of
// them in front; ns/op is mostly the making of them.
func BenchmarkPendingAlarms(b *testing.B) {
	const n = 1_000_000
	for b.Loop() {
		took, grown := pendingAlarms(b, n)
		b.ReportMetric(float64(grown)/n, "heap-B/alarm")
		b.ReportMetric(took.Seconds()*1000, "ms-to-run")
	}
}
