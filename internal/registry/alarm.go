package registry

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/mutation"
	"github.com/hibernate-go/hibernate/internal/store"
)

const (
	alarmLimit   = 15 * time.Minute // of a handler (semantics §0)
	alarmRetries = 6                // counted ones (semantics 13.5)
	alarmBackoff = 2 * time.Second  // before the first retry, doubled for each other
	alarmJitter  = 0.25             // added to it, at most

	// An alarm whose handler sets it again at once, over and over, is a loop that
	// nobody meant: after so many runs in a row it is slowed down to the floor.
	alarmStreak = 100
	alarmFloor  = 100 * time.Millisecond
)

// alarmSource is the registry as the scheduler sees it.
type alarmSource Registry

// Pending reads the store's index of alarms.
func (r *alarmSource) Pending(after alarm.Entry, limit int) ([]alarm.Entry, error) {
	from := store.Due{ID: after.ID, Due: after.Due}
	due, err := r.cfg.Store.DueAlarms(context.Background(), from, math.MaxInt64, limit)
	if err != nil {
		return nil, err
	}
	entries := make([]alarm.Entry, len(due))
	for i, d := range due {
		entries[i] = alarm.Entry{ID: d.ID, Class: d.Class, Due: d.Due}
	}
	return entries, nil
}

// Fire queues an alarm at its object. Classes not registered yet wait.
func (r *alarmSource) Fire(e alarm.Entry, concluded func()) bool {
	reg := (*Registry)(r)
	c := reg.class(e.Class)
	if c == nil {
		return false
	}
	run := &alarmRun{reg: reg, class: c, id: e.ID, concluded: concluded}
	return reg.Post(c, e.ID, "", &Work{Cause: CauseAlarm, Run: run.run, Done: run.done}) == nil
}

// Busy counts a scan as work that Quiet waits for.
func (r *alarmSource) Busy(delta int) { r.busy.Add(int64(delta)) }

// An alarmRun is one run of an alarm handler, and what becomes of it.
type alarmRun struct {
	reg       *Registry
	class     *Class
	id        store.ID
	concluded func()
	at        int64 // scheduled time of the handler that was called, 0 if none was; owned by the turn, then by done
}

func (r *alarmRun) run(t *Turn, instance any) error {
	a := t.act
	al, err := a.Store.Alarm()
	if err != nil {
		return err
	}
	now := r.reg.cfg.Clock.Now().UnixMilli()
	if due := al.Due(); due == 0 || due > now {
		return nil // deleted or moved since it was found due
	}
	if al.Running == 0 {
		al.Running, al.Next = al.Next, 0
	}
	info := AlarmInfo{Scheduled: time.UnixMilli(al.Running), Retries: int(al.Retry)}
	begun := al
	if mutation.Alarm {
		begun = store.Alarm{Next: al.Next}
	}
	if err := t.setAlarm(begun, true); err != nil {
		return err
	}
	r.at = al.Running
	err = r.class.Behavior.Alarm(t, instance, info)
	if t.Use(func() error { t.returnedLocked(context.Canceled); return nil }) != nil {
		return err
	}
	al, readErr := a.Store.Alarm()
	if readErr != nil {
		return readErr
	}
	if err == nil || al.Next != 0 {
		al = store.Alarm{Next: t.slowAlarm(al.Next)} // done, or replaced by a new one (semantics 13.6)
	} else {
		al = retried(al, now, true)
	}
	if setErr := t.setAlarm(al, false); setErr != nil {
		return setErr
	}
	return err
}

// slowAlarm is when an alarm that was set for next may run.
func (t *Turn) slowAlarm(next int64) int64 {
	a, now := t.act, t.act.obj.class.reg.cfg.Clock.Now()
	floor := now.Add(alarmFloor).UnixMilli()
	if next == 0 || next >= floor {
		a.alarmStreak = 0
		return next
	}
	a.alarmStreak++
	if a.alarmStreak < alarmStreak {
		return next
	}
	if a.alarmStreak == alarmStreak {
		a.obj.log().Warn("alarm sets itself again at once, over and over; it is slowed down", "runs", alarmStreak, "to", alarmFloor)
	}
	return floor
}

// done is called with nil when the outcome is durable, or with why the run was
// undone: then the failure is written down in a turn without an instance.
func (r *alarmRun) done(err error) {
	if err == nil || errors.Is(err, store.ErrUnavailable) {
		r.concluded()
		return
	}
	w := &Work{Cause: CauseAlarm, Done: func(error) { r.concluded() }}
	w.internal = func(st *store.Object) {
		al, err := st.Alarm()
		if err != nil || al.Due() == 0 {
			return
		}
		if al.Running == 0 {
			al.Running, al.Next = al.Next, 0
		}
		switch {
		case r.at != 0 && al.Running != r.at:
			return // another alarm was set since
		case al.Next != 0:
			al = store.Alarm{Next: al.Next}
		default:
			al = retried(al, r.reg.cfg.Clock.Now().UnixMilli(), r.at != 0)
		}
		_ = st.SetAlarm(al) // a store that is lost tells of the alarm as before, when it is opened again
	}
	if r.reg.Post(r.class, r.id, "", w) != nil {
		r.concluded()
	}
}

// retried is al after a failed run. A run whose handler was never called (the
// constructor failed) does not count (semantics 13.11).
func retried(al store.Alarm, now int64, count bool) store.Alarm {
	if al.Running == 0 {
		return al // deleted by the handler: no retry
	}
	wait := alarmBackoff << min(al.Retry, alarmRetries)
	wait += time.Duration(rand.Float64() * alarmJitter * float64(wait))
	if count {
		if al.Retry >= alarmRetries {
			return store.Alarm{Next: al.Next}
		}
		al.Retry++
	}
	al.RetryAt = max(now+wait.Milliseconds(), 1) // the clock may be anything
	return al
}

// setAlarm writes the header's alarm, and notes whether its handler runs.
func (t *Turn) setAlarm(al store.Alarm, running bool) error {
	return t.Use(func() error {
		t.act.alarmRunning = running
		return t.putAlarm(al)
	})
}

func (t *Turn) putAlarm(al store.Alarm) error {
	if err := t.act.Store.SetAlarm(al); err != nil {
		return err
	}
	t.act.alarmChanged = true
	t.Wrote(true)
	return nil
}

// SetAlarm sets the object's alarm instead of any other (semantics 13.1). While
// its handler runs the new one is kept beside it (13.12).
func (t *Turn) SetAlarm(at time.Time) error {
	if !t.act.obj.class.Behavior.HandlesAlarm() && t.act.Instance != nil {
		return fmt.Errorf("%w: class %q has no Alarm method", ErrState, t.act.obj.class.Name)
	}
	now := t.act.obj.class.reg.cfg.Clock.Now().UnixMilli()
	return t.changeAlarm(max(at.UnixMilli(), now))
}

// DeleteAlarm deletes the alarm, and the retries of a run that fails (13.6).
func (t *Turn) DeleteAlarm() error { return t.changeAlarm(0) }

func (t *Turn) changeAlarm(next int64) error {
	if err := t.Check(); err != nil {
		return err
	}
	al, err := t.act.Store.Alarm() // may read the header
	if err != nil {
		return err
	}
	return t.Use(func() error {
		if next == 0 || !t.act.alarmRunning {
			al = store.Alarm{}
		}
		al.Next = next
		return t.putAlarm(al)
	})
}

// Alarm is when the alarm is due: between retries the original time, while its
// handler runs only a new one (semantics 13.3).
func (t *Turn) Alarm() (time.Time, bool, error) {
	if err := t.Check(); err != nil {
		return time.Time{}, false, err
	}
	al, err := t.act.Store.Alarm()
	if err != nil {
		return time.Time{}, false, err
	}
	at := al.Next
	t.act.mu.Lock()
	if at == 0 && !t.act.alarmRunning {
		at = al.Running
	}
	t.act.mu.Unlock()
	if at == 0 {
		return time.Time{}, false, nil
	}
	return time.UnixMilli(at), true, nil
}

// DeleteAll deletes every key and the alarm.
func (t *Turn) DeleteAll() error {
	return t.Use(func() error {
		if err := t.act.Store.DeleteAll(); err != nil {
			return err
		}
		t.act.alarmChanged = true
		t.Wrote(true)
		return nil
	})
}
