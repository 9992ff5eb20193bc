package registry

import (
	"context"
	"runtime/pprof"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
)

// A Probe is what the users' test kit hangs into a registry. It is immutable.
type Probe struct {
	// Poison overwrites the bytes of a message once its handler has returned or
	// awaits, so that a slice of them that was kept shows at once.
	Poison bool
	// Labels are the pprof labels of goroutines that run turns, and so of those
	// that user code starts there. Nil sets none.
	Labels context.Context
	// Woken is told of each construction before it begins, and Began and Ended of
	// each turn. They run in the turn, with no lock held, and must not block.
	// Nil is told nothing.
	Woken func(o *Object, c Cause)
	Began func(o *Object, c Cause, e socket.Event)
	Ended func(o *Object, c Cause, err error)
	// Refused is told of each call that ends in ErrOutsideTurn. It runs where the call
	// was made, with locks of the object held, so it may ask o for its ID and class
	// and nothing else. Nil is told nothing.
	Refused func(o *Object)
}

// Poison is what overwrites a message, over and over. It is valid UTF-8, so that it
// can be sent and be read in the failure of a test.
const Poison = "!message kept after its turn"

func poison(b []byte) {
	for len(b) > 0 {
		b = b[copy(b, Poison):]
	}
}

func (p *Probe) woken(o *Object, w *Work) {
	if p.Woken != nil {
		p.Woken(o, w.Cause)
	}
}

func (p *Probe) began(o *Object, w *Work) {
	if p.Began != nil {
		var e socket.Event
		if w.event != nil {
			e = *w.event
		}
		p.Began(o, w.Cause, e)
	}
}

func (p *Probe) ended(o *Object, w *Work, err error) {
	if p.Ended != nil {
		p.Ended(o, w.Cause, err)
	}
}

// OutsideTurn is ErrOutsideTurn, for a call that o refuses. Locks may be held.
func (o *Object) OutsideTurn() error {
	if p := o.class.reg.cfg.Probe; p != nil && p.Refused != nil {
		p.Refused(o)
	}
	return ErrOutsideTurn
}

// over is called when a message's handler may not read it any more.
func (p *Probe) over(w *Work) {
	if p.Poison && w.event != nil && w.event.Kind == socket.Message {
		poison(w.event.Data)
	}
}

// labels are the pprof labels of goroutines that run turns, between turns.
func (c *Config) labels() context.Context {
	if c.Probe != nil && c.Probe.Labels != nil {
		return c.Probe.Labels
	}
	return context.Background()
}

// label is called by a goroutine that is going to run turns.
func (p *Probe) label() {
	if p.Labels != nil {
		pprof.SetGoroutineLabels(p.Labels)
	}
}

// Class is the class that was registered by name, nil if none was.
func (r *Registry) Class(name string) *Class { return r.class(name) }

// Under reports whether a turn, also one in Await, or WaitUntil work has not ended.
func (r *Registry) Under() bool { return r.lives.n.Load() > 0 }

// NextAlarm is the alarm that is due first, if there is one.
func (r *Registry) NextAlarm() (e alarm.Entry, ok bool) {
	due, err := (*alarmSource)(r).Pending(alarm.Entry{}, 1)
	if err != nil || len(due) == 0 {
		return alarm.Entry{}, false
	}
	return due[0], true
}

// labelWork is label for a goroutine that is going to run WaitUntil work.
func (p *Probe) labelWork(o *Object, name string) {
	if p.Labels == nil {
		return
	}
	pprof.SetGoroutineLabels(pprof.WithLabels(p.Labels, pprof.Labels(
		"class", o.class.Name, "object", o.Name(), "work", name)))
}

// RunAlarm makes the alarm of an object due now, without waking it, and reports
// whether there is one. The scheduler runs it next.
func (r *Registry) RunAlarm(ctx context.Context, c *Class, id store.ID) (set bool, err error) {
	done := make(chan error, 1)
	w := &Work{Cause: CauseAlarm, Done: func(err error) { done <- err }}
	w.internal = func(st *store.Object) {
		al, readErr := st.Alarm()
		if err = readErr; err != nil || al.Due() == 0 {
			return
		}
		if al.Running == 0 {
			al.Running, al.Next = al.Next, 0
		}
		al.RetryAt = r.cfg.Clock.Now().UnixMilli()
		err = st.SetAlarm(al)
		set = err == nil
	}
	if err := r.Post(c, id, "", w); err != nil {
		return false, err
	}
	select {
	case bad := <-done:
		if bad != nil {
			return false, bad
		}
		return set, err
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}
