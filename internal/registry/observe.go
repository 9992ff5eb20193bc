package registry

import (
	"context"
	"math/bits"
	"runtime/pprof"
	"sync/atomic"
	"time"
)

// An Observer is told of turns, on their goroutines.
type Observer interface {
	// TurnStart is called before user code; the turn carries the values of what it
	// returns instead of those of ctx.
	TurnStart(ctx context.Context, o *Object, k TurnKind) context.Context
	// TurnEnd is called after it, with what TurnStart returned.
	TurnEnd(ctx context.Context, o *Object, k TurnKind, err error, took time.Duration)
}

// TurnKind says what a turn runs.
type TurnKind struct {
	Cause       Cause
	Constructor bool // the constructor, that Cause has made necessary
}

// observes reports whether anything is to be done around user code. Most runtimes
// do nothing, and a turn there pays for one comparison.
func (c *Config) observes() bool { return c.timed() || c.ProfileLabels }

// timed reports whether turns are measured.
func (c *Config) timed() bool { return c.Observer != nil || c.TurnTimes }

// An observation is one pass through user code that is looked at. It stays on the
// stack of the turn.
type observation struct {
	t     *Turn
	kind  TurnKind
	ctx   context.Context // what the observer has returned
	begun time.Time
}

// begin does what is to be done before the user code of x.t; end follows on the same
// goroutine.
func (x *observation) begin() {
	t := x.t
	o := t.act.obj
	cfg := &o.class.reg.cfg
	x.kind = TurnKind{t.cause, t.constructor}
	if o.class.labels != nil {
		pprof.SetGoroutineLabels(o.class.labels[x.kind.Cause])
	}
	if cfg.Observer != nil {
		x.ctx = t.parent
		if x.ctx == nil {
			x.ctx = context.Background()
		}
		x.ctx = cfg.Observer.TurnStart(x.ctx, o, x.kind)
		t.parent = x.ctx
	}
	if cfg.timed() {
		x.begun = cfg.Clock.Now()
	}
}

func (x *observation) end(err *error) {
	o := x.t.act.obj
	cfg := &o.class.reg.cfg
	if cfg.timed() {
		took := cfg.Clock.Now().Sub(x.begun)
		o.class.counts.turns.add(took)
		if cfg.Observer != nil {
			cfg.Observer.TurnEnd(x.ctx, o, x.kind, *err, took)
		}
	}
	if o.class.labels != nil {
		before := context.Background()
		if p := cfg.Probe; p != nil && p.Labels != nil {
			before = p.Labels
		}
		pprof.SetGoroutineLabels(before)
	}
}

// profileLabels are the labels of a class's turns, by cause, beside those of base: made
// once, because a turn must not allocate for them.
func profileLabels(base context.Context, class string) *[CauseCount]context.Context {
	var l [CauseCount]context.Context
	for c := range l {
		l[c] = pprof.WithLabels(base, pprof.Labels("class", class, "event", Cause(c).String()))
	}
	return &l
}

// HistogramBuckets is the number of a histogram's bounded buckets.
const HistogramBuckets = 14

// Histogram counts durations: bucket i those of at most 4^i µs that are in no
// earlier one, the last those above all bounds.
type Histogram struct {
	Sum     time.Duration
	Buckets [HistogramBuckets + 1]uint64
}

type histogram struct {
	sum     atomic.Int64
	buckets [HistogramBuckets + 1]atomic.Uint64
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.sum.Add(int64(d))
	us := uint64((d + time.Microsecond - 1) / time.Microsecond)
	i := 0
	if us > 1 {
		i = (bits.Len64(us-1) + 1) / 2
	}
	h.buckets[min(i, HistogramBuckets)].Add(1)
}

func (h *histogram) load() (s Histogram) {
	s.Sum = time.Duration(h.sum.Load())
	for i := range s.Buckets {
		s.Buckets[i] = h.buckets[i].Load()
	}
	return s
}
