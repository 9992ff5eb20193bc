package hibernatetest

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/store"
)

// Object is a stub of the object with the given name, of a class that setup has
// registered. It belongs to the runtime of now; the kit's methods take it after a
// Restart too.
func (k *Kit) Object(class, name string) hibernate.Stub {
	k.t.Helper()
	return k.namespace(class).GetByName(name)
}

func (k *Kit) namespace(class string) *hibernate.Namespace {
	k.t.Helper()
	var known []string
	for _, ns := range k.rt.Namespaces() {
		if ns.Class() == class {
			return ns
		}
		known = append(known, ns.Class())
	}
	k.t.Fatalf("hibernatetest: setup registered no class %q, but %q", class, known)
	return nil
}

// classOf is the class that an ID belongs to, empty if setup registered none.
func (k *Kit) classOf(id hibernate.ID) string {
	for _, ns := range k.rt.Namespaces() {
		if _, err := ns.IDFromString(id.String()); err == nil {
			return ns.Class()
		}
	}
	return ""
}

// current is s in the runtime of now.
func (k *Kit) current(s hibernate.Stub) hibernate.Stub {
	k.t.Helper()
	class := k.classOf(s.ID())
	if class == "" {
		k.t.Fatalf("hibernatetest: the object %s is of no class that setup registered", s.ID())
	}
	ns := k.namespace(class)
	if s.Name() != "" {
		return ns.GetByName(s.Name())
	}
	return ns.Get(s.ID())
}

// inspect looks at an object without waking it.
func (k *Kit) inspect(id hibernate.ID) hibernate.Inspection {
	k.t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), k.opt.Patience, errPatience)
	defer cancel()
	i, err := k.rt.Inspect(ctx, id)
	if err != nil {
		k.fatalf("inspect %s: %v", id, err)
	}
	return i
}

// title names an object in a failure.
func (k *Kit) title(s hibernate.Stub) string {
	return title(k.classOf(s.ID()), s.Name(), s.ID().String())
}

// describe tells what an object does, and in further lines what keeps it in memory.
func (k *Kit) describe(id hibernate.ID, name string) string {
	i := k.inspect(id)
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %s", title(k.classOf(id), name, id.String()), i.Phase)
	if i.Wakes > 0 {
		fmt.Fprintf(&b, ", was woken last by a %s, at +%v", i.Cause, i.Woken.Sub(k.start))
	}
	for _, w := range i.Blockers {
		fmt.Fprintf(&b, "\n\t\tkept in memory by %s %q for %v", w.Kind, w.Name, k.clock.Now().Sub(w.Since))
	}
	return b.String()
}

// Evict drops the object's instance as if it had been idle, once everything has
// settled. It fails the test if the object is busy: a handler in Await, or WaitUntil
// work.
func (k *Kit) Evict(s hibernate.Stub) {
	k.t.Helper()
	k.settle("Evict " + k.title(s))
	ctx, cancel := context.WithTimeoutCause(context.Background(), k.opt.Patience, errPatience)
	defer cancel()
	if err := k.rt.Evict(ctx, s.ID()); err != nil {
		k.fatalf("Evict %s: %v\n\t%s", k.title(s), err, k.describe(s.ID(), s.Name()))
	}
}

// EvictAll is [Kit.Evict] of all objects.
func (k *Kit) EvictAll() {
	k.t.Helper()
	k.settle("EvictAll")
	ctx, cancel := context.WithTimeoutCause(context.Background(), k.opt.Patience, errPatience)
	defer cancel()
	if err := k.rt.EvictAll(ctx); err != nil {
		k.fatalf("EvictAll: %v%s", err, k.atWork())
	}
}

// AssertHibernated fails the test unless, once everything has settled, the objects
// are out of memory. It tells what keeps those in memory that are not. Objects that
// never were in memory pass.
func (k *Kit) AssertHibernated(objects ...hibernate.Stub) {
	k.t.Helper()
	k.settle("AssertHibernated")
	for _, s := range objects {
		i := k.inspect(s.ID())
		if !i.InMemory() {
			continue
		}
		hint := ""
		if i.Phase == hibernate.PhaseIdle {
			idle := k.opt.Runtime.IdleTimeout
			if idle == 0 {
				idle = 10 * time.Second
			}
			hint = fmt.Sprintf("\n\t\tit hibernates after %v without an event: Advance, or Evict it", idle)
		}
		k.fatalf("%s should have left memory, and is there\n\t%s%s", k.title(s), k.describe(s.ID(), s.Name()), hint)
	}
}

// Wakes are the causes for which the object was constructed since the test began,
// in order, Restarts included. The first 10,000 are kept.
func (k *Kit) Wakes(s hibernate.Stub) []hibernate.Cause {
	k.t.Helper()
	k.settle("Wakes of " + k.title(s))
	return k.log.wakes(s.ID().String())
}

// Alarm is when the object's alarm is due, once everything has settled. It does not
// wake the object.
func (k *Kit) Alarm(s hibernate.Stub) (due time.Time, set bool) {
	k.t.Helper()
	k.settle("Alarm of " + k.title(s))
	due = k.inspect(s.ID()).Alarm
	return due, !due.IsZero()
}

// RunAlarm runs the object's alarm now, whenever it is due, without moving the
// clock, and returns the handler's error: then the alarm is tried again as
// [hibernate.AlarmHandler] says. The handler is told the time that the alarm was set for. It
// fails the test if no alarm is set.
func (k *Kit) RunAlarm(s hibernate.Stub) error {
	k.t.Helper()
	s = k.current(s)
	k.settle("RunAlarm of " + k.title(s))
	before, _ := k.log.alarms(s.ID().String())
	ctx, cancel := context.WithTimeoutCause(context.Background(), k.opt.Patience, errPatience)
	defer cancel()
	var id store.ID
	_, _ = hex.Decode(id[:], []byte(s.ID().String())) // never fails
	set, err := k.reg.RunAlarm(ctx, k.reg.Class(k.classOf(s.ID())), id)
	if err != nil {
		k.fatalf("RunAlarm of %s: %v", k.title(s), err)
	}
	if !set {
		k.settle("RunAlarm of " + k.title(s)) // the object's record goes behind the answer
		k.fatalf("RunAlarm of %s: no alarm is set\n\t%s", k.title(s), k.describe(s.ID(), s.Name()))
	}
	k.settle("RunAlarm of " + k.title(s))
	after, failed := k.log.alarms(s.ID().String())
	if after == before {
		k.fatalf("RunAlarm of %s: its handler has not ended\n\t%s", k.title(s), k.describe(s.ID(), s.Name()))
	}
	return failed
}

// RunInObject runs f in a turn of the object, which is constructed if need be, and
// returns f's error once the turn is durable. f may look at the object's fields, and
// everything that a handler may do; T is what the class's constructor returns. In f,
// t.Fatal ends the test as it does outside.
//
// It is a call: an object that it wakes has [hibernate.CauseCall] among its Wakes.
func RunInObject[T any](k *Kit, s hibernate.Stub, f func(ctx context.Context, object T) error) (err error) {
	k.t.Helper()
	s = k.current(s)
	what := "RunInObject of " + k.title(s)
	k.settle(what)
	run := hibernate.NewMethod("hibernatetest.RunInObject", func(object T, ctx context.Context, _ struct{}) (struct{}, error) {
		return struct{}{}, f(ctx, object)
	})
	k.await(what, func(ctx context.Context) {
		_, err = run.Call(ctx, s, struct{}{})
	})
	var panicked *hibernate.PanicError
	if k.t.Failed() && errors.As(err, &panicked) {
		k.t.FailNow() // in f, on another goroutine
	}
	return err
}
