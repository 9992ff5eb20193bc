package hibernate_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

// why is an inspection in short: its phase, what woke it, and its blockers with their ages.
func (r *rig) why(name string) string {
	r.t.Helper()
	in := r.inspect(name)
	s := string(in.Phase)
	if in.Wakes > 0 {
		s += fmt.Sprintf(" %d:%v", in.Wakes, in.Cause)
	}
	for _, b := range in.Blockers {
		s += fmt.Sprintf(" [%s %s %v]", b.Kind, b.Name, r.clock.Now().Sub(b.Since))
	}
	for _, b := range in.Revoked {
		s += fmt.Sprintf(" revoked[%s %s]", b.Kind, b.Name)
	}
	return s
}

func (r *rig) becomes(name, want string) {
	r.t.Helper()
	got := ""
	r.until(name+" to be "+want, func() bool { got = r.why(name); return got == want })
}

// TestInspectTellsPhaseAndCause from an object that nobody has heard of to one that sleeps.
func TestInspectTellsPhaseAndCause(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{
		message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			return hibernate.Put(ctx, a.state.Storage(), "k", m.Text())
		},
		alarm: func(context.Context, *actor, hibernate.AlarmInfo) error { return nil },
	}, nil)
	r.becomes("a", "absent")
	c := r.dial("/o/a?tag=x")
	r.becomes("a", "idle 1:request")
	r.hibernate()
	r.becomes("a", "hibernated 1:request")
	c.send("hello")
	r.becomes("a", "idle 2:message")
	in := r.inspect("a")
	if len(in.WebSockets) != 1 || !slices.Equal(in.WebSockets[0].Tags(), []string{"x"}) || in.Class != "Test" || in.Name != "a" ||
		!in.Woken.Equal(r.clock.Now().Truncate(time.Millisecond)) || in.Waiting != 0 || in.Held != 0 || !in.Alarm.IsZero() {
		t.Errorf("inspected %+v", in)
	}
	at := r.clock.Now().Add(time.Hour).Truncate(time.Millisecond)
	r.must("a", func(ctx context.Context, a *actor) error { return a.state.Storage().SetAlarm(ctx, at) })
	r.hibernate()
	if in := r.inspect("a"); !in.Alarm.Equal(at) || in.Phase != hibernate.PhaseHibernated {
		t.Errorf("asleep with an alarm: %+v", in)
	}
	c.drop()
	r.becomes("a", "idle 3:close")
	r.hibernate()
	r.becomes("a", "stored")
	if in := r.inspect("a"); !in.Alarm.Equal(at) || in.Name != "a" || in.Class != "Test" {
		t.Errorf("stored with an alarm: %+v", in)
	}
	r.clock.Advance(time.Hour)
	r.until("the alarm to wake the object", func() bool {
		r.clock.Advance(time.Second) // a look for alarms that was under way looks again after 30 s
		return r.why("a") == "idle 1:alarm"
	})
	if n := r.play.made.Load(); n != 4 {
		t.Errorf("%d instances were made, want 4: inspecting wakes nobody", n)
	}
}

// TestInspectNamesBlockersAndTheirAge, those of goroutines that a reset has revoked too.
func TestInspectNamesBlockersAndTheirAge(t *testing.T) {
	r := newRig(t, "", nil)
	gate := map[string]chan struct{}{}
	for _, name := range []string{"await", "work", "turn", "call", "other"} {
		gate[name] = make(chan struct{})
	}
	wait := func(name string) func(context.Context) error {
		return func(context.Context) error { <-gate[name]; return nil }
	}
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		switch m.Text() {
		case "await":
			return hibernate.Await(ctx, wait("await"))
		case "work":
			return a.state.WaitUntil(ctx, "tidy up", func(ctx context.Context) { _ = wait("work")(ctx) })
		case "turn":
			return wait("turn")(ctx)
		case "abort":
			return a.state.Abort(ctx, nil)
		}
		return nil
	}}, nil)
	c := r.dial("/o/a")
	c.send("await")
	r.becomes("a", "blocked 1:request [Await  0s]")
	r.clock.Advance(time.Minute)
	c.send("work")
	r.becomes("a", "blocked 1:request [Await  1m0s] [WaitUntil tidy up 0s]")
	r.clock.Advance(time.Minute)
	c.send("turn")
	r.becomes("a", "running 1:request [Await  2m0s] [WaitUntil tidy up 1m0s] [turn message 0s]")
	r.clock.Advance(time.Minute)
	if in := r.inspect("a"); in.Blockers[2].Since.Add(time.Minute).Sub(r.clock.Now()).Abs() > time.Second {
		t.Errorf("the turn began %v before now, want a minute", r.clock.Now().Sub(in.Blockers[2].Since))
	}
	behind := make(chan error, 1)
	go func() { behind <- r.in("a", func(context.Context, *actor) error { return nil }) }()
	r.until("an event to wait", func() bool { return r.inspect("a").Waiting > 0 })
	if err := r.rt.Evict(cancelled(), r.ns.IDFromName("a")); err == nil {
		t.Error("evicted an object whose handler runs")
	}
	close(gate["turn"])
	if err := <-behind; err != nil {
		t.Error(err)
	}
	r.becomes("a", "blocked 1:request [Await  3m0s] [WaitUntil tidy up 2m0s]")
	c.send("abort")
	r.becomes("a", "absent revoked[turn message] revoked[WaitUntil tidy up]")
	close(gate["await"])
	close(gate["work"])
	r.becomes("a", "absent")

	// A call to an object that does not answer.
	call := r.later("b", func(ctx context.Context, a *actor) error {
		_, err := line.Call(ctx, r.ns.GetByName("c"), r.next(func(context.Context, *actor) error { <-gate["other"]; return nil }))
		return err
	})
	r.becomes("b", "blocked 1:call [call call of Test 0s]")
	r.becomes("c", "running 1:call [turn call 0s]")
	close(gate["other"])
	r.becomes("b", "idle 1:call")
	if err := <-call; err != nil {
		t.Error(err)
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// TestResidentAndListAreInOrder of IDs, from any ID on, and know what is in memory.
func TestResidentAndListAreInOrder(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	names := map[string]bool{}
	for i := range 40 {
		name := fmt.Sprint("room", i)
		names[name] = true
		if i%2 == 0 {
			r.dial("/o/" + name)
			r.turn(name)
			r.evict(name)
		} else {
			r.must(name, func(ctx context.Context, a *actor) error { return a.state.Storage().PutBytes(ctx, "k", nil) })
		}
	}
	var all []hibernate.ObjectInfo
	for o := range r.rt.Resident(hibernate.ID{}) {
		if o.InMemory != (o.Sockets == 0) || o.Wakes != 1 || o.Class != "Test" || o.Cause == 0 {
			t.Errorf("listed %+v", o)
		}
		delete(names, o.Name)
		all = append(all, o)
	}
	if len(all) != 40 || len(names) != 0 || !slices.IsSortedFunc(all, func(a, b hibernate.ObjectInfo) int { return strings.Compare(a.ID.String(), b.ID.String()) }) {
		t.Fatalf("%d objects, without %v, or out of order", len(all), names)
	}
	i := 17
	for o := range r.rt.Resident(all[i-1].ID) {
		if o.ID != all[i].ID {
			t.Fatalf("behind %d objects comes another than without", i)
		}
		i++
	}
	i = 0
	for o := range r.rt.Awake(all[9].ID) {
		if !o.InMemory || strings.Compare(o.ID.String(), all[9].ID.String()) <= 0 {
			t.Errorf("awake: %+v", o)
		}
		i++
	}
	if want := len(slices.DeleteFunc(slices.Clone(all[10:]), func(o hibernate.ObjectInfo) bool { return !o.InMemory })); i != want {
		t.Errorf("%d objects are awake behind the tenth, want %d", i, want)
	}
	i = 0
	for o, err := range r.ns.List(context.Background()) {
		if err != nil || o != all[i] {
			t.Fatalf("listed %+v, %v, want %+v", o, err, all[i])
		}
		i++
	}
	if i != 40 {
		t.Errorf("List has %d objects", i)
	}
	r.hibernate()
	if s := r.ns.Stats(); s.Sockets != 20 || s.ObjectsInMemory != 0 || s.ObjectsAsleep != 20 || s.Wakes.By(hibernate.CauseRequest) != 20 || s.Wakes.By(hibernate.CauseCall) != 20 {
		t.Errorf("stats of the class: %+v", s)
	}
}

// TestLogTellsWhatKeepsAnObjectAwake once for each blocker that is old.
func TestLogTellsWhatKeepsAnObjectAwake(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{AwakeWarning: time.Minute})
	free := make(chan struct{})
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		switch m.Text() {
		case "work":
			return a.state.WaitUntil(ctx, "upstream", func(ctx context.Context) { <-free })
		default:
			<-free
			return nil
		}
	}}, nil)
	c := r.dial("/o/a")
	c.send("work")
	r.becomes("a", "blocked 1:request [WaitUntil upstream 0s]")
	r.clock.Advance(30 * time.Second)
	c.send("turn")
	r.becomes("a", "running 1:request [WaitUntil upstream 30s] [turn message 0s]")
	r.clock.Advance(32 * time.Second)
	if log := r.log.String(); strings.Count(log, "kept awake") != 0 && !strings.Contains(log, "upstream") {
		t.Errorf("too early:\n%s", log)
	}
	r.clock.Advance(10 * time.Minute)
	log := r.log.String()
	for _, want := range []string{`by=WaitUntil what=upstream`, `by=turn what=message`} {
		if strings.Count(log, want) != 1 {
			t.Errorf("%q is not once in the log:\n%s", want, log)
		}
	}
	if !strings.Contains(log, "class=Test id="+r.ns.IDFromName("a").String()+" name=a") {
		t.Errorf("the log does not name the object:\n%s", log)
	}
	close(free)
	r.becomes("a", "idle 1:request")
}

// TestLogTellsWhatWakesAnObjectOften once a minute.
func TestLogTellsWhatWakesAnObjectOften(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{WakeWarning: 3})
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		return ws.Send(ctx, m)
	}}, nil)
	c := r.dial("/o/a")
	for minute := range 2 {
		for range 10 {
			r.evict("a")
			c.send("again")
			c.expect("text:again")
		}
		if n := strings.Count(r.log.String(), "object is woken often"); n != minute+1 {
			t.Fatalf("said %d times after %d minutes:\n%s", n, minute+1, r.log)
		}
		r.clock.Advance(time.Minute)
	}
	if !strings.Contains(r.log.String(), "cause=message wakes=4") {
		t.Errorf("the log does not say what and how often:\n%s", r.log)
	}
}

// TestNothingTicksWhileEverythingSleeps: the timer that looks after what is awake goes with the last of it.
func TestNothingTicksWhileEverythingSleeps(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	soon := func() bool {
		at, ok := r.clock.Next()
		return ok && at.Sub(r.clock.Now()) <= time.Second
	}
	r.dial("/o/a")
	r.turn("a")
	if !soon() {
		t.Error("nothing ticks while an object is in memory")
	}
	r.hibernate()
	r.clock.Advance(2 * time.Second)
	if soon() {
		t.Error("something ticks while everything sleeps")
	}
	r.turn("a")
	if !soon() {
		t.Error("nothing ticks once an object is in memory again")
	}
}
