package registry

import (
	"bytes"
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
)

// A Phase is what an object is doing.
type Phase string

// The phases, from nothing to busy. The root package documents them.
const (
	PhaseAbsent       Phase = "absent"
	PhaseStored       Phase = "stored"
	PhaseHibernated   Phase = "hibernated"
	PhaseConstructing Phase = "constructing"
	PhaseIdle         Phase = "idle"
	PhaseBlocked      Phase = "blocked"
	PhaseRunning      Phase = "running"
)

// A BlockerKind is a way of keeping an activation in memory.
type BlockerKind string

// The kinds. The root package documents them.
const (
	BlockerTurn      BlockerKind = "turn"
	BlockerAwait     BlockerKind = "Await"
	BlockerCall      BlockerKind = "call"
	BlockerWaitUntil BlockerKind = "WaitUntil"
)

// A Blocker is something that keeps an activation in memory.
type Blocker struct {
	Kind  BlockerKind
	Name  string // of WaitUntil work, the class that is called, or the cause of a turn
	Since time.Time

	warned bool // the log has said so; guarded by the object's lock
}

// Wakes is what a record remembers of its object's activations, in 8 bytes.
type wakes struct {
	last   uint32 // when the last one began, Unix seconds
	counts uint32 // total since the record was made, recent in the minute of last, cause of the last
}

const (
	recentShift, totalShift = 4, 16
	maxRecent, maxTotal     = 1<<12 - 1, 1<<16 - 1 // more are not counted
)

func (w *wakes) cause() Cause   { return Cause(w.counts & (1<<recentShift - 1)) }
func (w *wakes) recent() uint32 { return w.counts >> recentShift & maxRecent }
func (w *wakes) total() uint32  { return w.counts >> totalShift }

// note counts an activation at now.
func (w *wakes) note(now time.Time, cause Cause) {
	s := uint32(now.Unix())
	recent := w.recent()
	if s/60 != w.last/60 {
		recent = 0
	}
	w.last = s
	w.counts = min(w.total()+1, maxTotal)<<totalShift | min(recent+1, maxRecent)<<recentShift | uint32(cause)
}

// time is when the object was last woken, zero if it never was.
func (w *wakes) time() time.Time {
	if w.total() == 0 {
		return time.Time{}
	}
	return time.Unix(int64(w.last), 0)
}

// census of one class.
type classCounts struct {
	sockets, inMemory, records atomic.Int64
	wakes                      [CauseCount]atomic.Uint64
	turns                      histogram
	warned                     atomic.Int64 // the last minute in which a frequent wake was logged
}

// ClassStats are the counters of a class.
type ClassStats struct {
	Sockets, InMemory, Records int64
	Wakes                      [CauseCount]uint64 // by Cause
	Turns                      Histogram
}

// Stats reads the counters.
func (c *Class) Stats() ClassStats {
	n := &c.counts
	s := ClassStats{Sockets: n.sockets.Load(), InMemory: n.inMemory.Load(), Records: n.records.Load(), Turns: n.turns.load()}
	for i := range s.Wakes {
		s.Wakes[i] = n.wakes[i].Load()
	}
	return s
}

// Classes are the registered classes, in order of their names.
func (r *Registry) Classes() []*Class {
	r.classMu.RLock()
	defer r.classMu.RUnlock()
	list := make([]*Class, 0, len(r.classes))
	for _, c := range r.classes {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *Class) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return list
}

// made lists a new activation. It is called before anybody else knows of a.
func (o *Object) made(a *Activation) {
	o.class.reg.stats.inMemory.Add(1)
	o.class.counts.inMemory.Add(1)
	sh := o.class.reg.shard(o.id)
	sh.mu.Lock()
	if a.next = sh.awake; a.next != nil {
		a.next.prev = a
	}
	sh.awake = a
	sh.mu.Unlock()
	o.class.reg.watch.start()
}

// unmade takes an activation that is over off the list, once.
func (o *Object) unmade(a *Activation) {
	o.class.reg.stats.inMemory.Add(-1)
	o.class.counts.inMemory.Add(-1)
	sh := o.class.reg.shard(o.id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if a.prev != nil {
		a.prev.next = a.next
	} else {
		sh.awake = a.next
	}
	if a.next != nil {
		a.next.prev = a.prev
	}
	a.prev, a.next = nil, nil
}

// woken notes a new activation that w caused, and complains if there are too many.
func (o *Object) woken(w *Work) {
	reg, now := o.class.reg, o.class.reg.cfg.Clock.Now()
	o.mu.Lock()
	o.wakes.note(now, w.Cause)
	n := int(o.wakes.recent())
	o.mu.Unlock()
	o.class.counts.wakes[w.Cause].Add(1)
	reg.stats.constructed.Add(1)
	if limit := reg.cfg.WakeWarning; limit <= 0 || n <= limit {
		return
	}
	// One line a minute for each class: what wakes one object often wakes many.
	this := now.Unix() / 60
	if last := o.class.counts.warned.Load(); last != this && o.class.counts.warned.CompareAndSwap(last, this) {
		o.log().Warn("object is woken often", "cause", w.Cause.String(), "wakes", n, "within", time.Minute)
	}
}

// watch is the one timer that looks after what is awake: it keeps a time that costs
// nothing to read, and says in the log what has kept an object in memory for long.
type watch struct {
	reg      *Registry // immutable
	deadline alarm.Deadline
	now      atomic.Int64 // Unix milliseconds, at most one tick old while something is in memory
	running  atomic.Bool  // the deadline is set, or tick is about to set it

	looked time.Time // the last look for long blockers; owned by tick
}

const (
	watchTick  = time.Second
	maxWarning = 10 // lines of one look
)

func (w *watch) init(r *Registry) {
	w.reg = r
	w.deadline.F = w.tick
}

// start sets the timer going, if it is not.
func (w *watch) start() {
	if w.running.CompareAndSwap(false, true) {
		now := w.reg.cfg.Clock.Now()
		w.now.Store(now.UnixMilli())
		w.reg.timers.Set(&w.deadline, watchTick)
	}
}

func (w *watch) tick() {
	now := w.reg.cfg.Clock.Now()
	w.now.Store(now.UnixMilli())
	if limit := w.reg.cfg.AwakeWarning; limit > 0 && now.Sub(w.looked) >= max(limit/4, watchTick) {
		w.looked = now
		w.look(now, limit)
	}
	if w.reg.stats.inMemory.Load() > 0 {
		w.reg.timers.Set(&w.deadline, watchTick)
		return
	}
	w.running.Store(false)
	if w.reg.stats.inMemory.Load() > 0 { // made meanwhile, and found it running
		w.start()
	}
}

// look warns of blockers that are older than limit, once each.
func (w *watch) look(now time.Time, limit time.Duration) {
	lines, more := 0, 0
	for a := range w.reg.awake() {
		for _, b := range a.longBlockers(now.Add(-limit)) {
			if lines == maxWarning {
				more++
				continue
			}
			lines++
			a.obj.log().Warn("object is kept awake", "by", string(b.Kind), "what", b.Name, "for", now.Sub(b.Since).Truncate(time.Second))
		}
	}
	if more > 0 {
		w.reg.cfg.Logger.Warn("further objects are kept awake", "blockers", more)
	}
}

// longBlockers are those from before a time that the log has not told of. It takes
// them for told.
func (a *Activation) longBlockers(before time.Time) (old []Blocker) {
	o := a.obj
	o.mu.Lock()
	for b := range a.blockers {
		if !b.warned && b.Since.Before(before) {
			b.warned = true
			old = append(old, *b)
		}
	}
	o.mu.Unlock()
	a.mu.Lock()
	if t := a.current; t != nil && !t.warned && time.UnixMilli(t.began).Before(before) {
		t.warned = true
		old = append(old, t.blocker())
	}
	a.mu.Unlock()
	return old
}

// blocker describes a turn that runs.
func (t *Turn) blocker() Blocker {
	name := t.cause.String()
	if t.constructor {
		name = "constructor"
	}
	return Blocker{Kind: BlockerTurn, Name: name, Since: time.UnixMilli(t.began)}
}

// revoked are the goroutines that still run user code of an activation that has
// been taken from them.
type revoked struct {
	mu   sync.Mutex // guards the following
	live map[any]revokedOne
	n    atomic.Int64 // len(live)
}

type revokedOne struct {
	id store.ID
	b  Blocker
}

// add counts the goroutine of a *Turn or *Blocker. The caller holds the lock under
// which that is taken off its activation's list.
func (r *revoked) add(who any, id store.ID, b Blocker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live == nil {
		r.live = map[any]revokedOne{}
	}
	r.live[who] = revokedOne{id, b}
	r.n.Store(int64(len(r.live)))
}

// gone says that the goroutine has returned.
func (r *revoked) gone(who any) {
	if r.n.Load() == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, who)
	r.n.Store(int64(len(r.live)))
}

func (r *revoked) of(id store.ID) (list []Blocker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.live {
		if x.id == id {
			list = append(list, x.b)
		}
	}
	return list
}

// revoke counts the goroutines of an activation that has ended and that have not
// returned: gone follows for each.
func (o *Object) revoke(a *Activation) {
	a.mu.Lock()
	for t := range a.turns {
		o.class.reg.revoked.add(t, o.id, t.blocker())
	}
	a.mu.Unlock()
	o.mu.Lock()
	for b := range a.blockers {
		if b.Kind == BlockerWaitUntil {
			o.class.reg.revoked.add(b, o.id, *b)
		}
	}
	o.mu.Unlock()
}

// awake yields the activations in memory, without a lock.
func (r *Registry) awake() iter.Seq[*Activation] {
	return func(yield func(*Activation) bool) {
		var list []*Activation
		for i := range r.shards {
			sh := &r.shards[i]
			list = list[:0]
			sh.mu.Lock()
			for a := sh.awake; a != nil; a = a.next {
				list = append(list, a)
			}
			sh.mu.Unlock()
			for _, a := range list {
				if !yield(a) {
					return
				}
			}
		}
	}
}

// Listed is an object in a listing.
type Listed struct {
	ID       store.ID
	Class    *Class
	Name     string // "" if it is not known
	InMemory bool
	Sockets  int
	Blockers int
	Wakes    uint64
	Woken    time.Time
	Cause    Cause
}

// Resident yields the objects that have a record, or an activation, in order of their
// ids, behind after. It reads a shard at a time and holds no lock while it yields.
func (r *Registry) Resident(after store.ID, awake bool) iter.Seq[Listed] {
	return func(yield func(Listed) bool) {
		var page []*Object
		for i := shardOf(after); i < shardCount; i++ {
			page = page[:0]
			add := func(o *Object) {
				if bytes.Compare(o.id[:], after[:]) > 0 {
					page = append(page, o)
				}
			}
			sh := &r.shards[i]
			sh.mu.Lock()
			if awake {
				for a := sh.awake; a != nil; a = a.next {
					add(a.obj)
				}
			} else {
				for o := range sh.objects.all() {
					add(o)
				}
			}
			sh.mu.Unlock()
			slices.SortFunc(page, func(a, b *Object) int { return bytes.Compare(a.id[:], b.id[:]) })
			for _, o := range page {
				if l, ok := o.listed(); ok && !yield(l) {
					return
				}
			}
		}
	}
}

func (o *Object) listed() (Listed, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := Listed{
		ID: o.id, Class: o.class, Name: o.name, Sockets: o.sockets.Len(),
		Wakes: uint64(o.wakes.total()), Woken: o.wakes.time(), Cause: o.wakes.cause(),
	}
	if o.live != nil && o.act != nil {
		l.InMemory = true
		l.Blockers = len(o.act.blockers)
	}
	return l, !o.removed
}

// An Inspection is what is known of an object without waking it.
type Inspection struct {
	Class, Name string
	Phase       Phase
	Wakes       uint64 // activations since its record was made
	Woken       time.Time
	Cause       Cause
	Blockers    []Blocker // oldest first
	Revoked     []Blocker
	Waiting     int   // events in the mailbox
	Held        int   // outputs at the gate
	HeldBytes   int64 // of frames at the gate and in the current stretch
	Sockets     []*socket.Socket
	Alarm       time.Time // when the handler runs next; zero: never
}

// Inspect looks at an object without waking it. It reads the header in storage;
// ctx bounds the wait for that, not the reading itself.
func (r *Registry) Inspect(ctx context.Context, id store.ID) (Inspection, error) {
	in := Inspection{Phase: PhaseAbsent}
	if o := r.find(id); o != nil {
		o.inspect(&in)
	}
	in.Revoked = oldestFirst(r.revoked.of(id))
	type answer struct {
		head store.Header
		err  error
	}
	read := make(chan answer, 1)
	go func() {
		st := r.cfg.Store.Object(id, "", "")
		defer st.Close()
		head, err := st.Header()
		read <- answer{head, err}
	}()
	var head store.Header
	select {
	case a := <-read:
		if a.err != nil {
			return in, a.err
		}
		head = a.head
	case <-ctx.Done():
		return in, context.Cause(ctx)
	}
	if head.Exists {
		if in.Phase == PhaseAbsent {
			in.Phase = PhaseStored
		}
		in.Class = head.Class
		if in.Name == "" {
			in.Name = head.Name
		}
	}
	if due := head.Alarm.Due(); due != 0 {
		in.Alarm = time.UnixMilli(due)
	}
	return in, nil
}

func (o *Object) inspect(in *Inspection) {
	o.mu.Lock()
	var a *Activation
	live := o.live
	in.Class, in.Name, in.Phase = o.class.Name, o.name, PhaseHibernated
	in.Wakes, in.Woken, in.Cause = uint64(o.wakes.total()), o.wakes.time(), o.wakes.cause()
	if live != nil {
		a = live.act
		for w := live.mail.first; w != nil; w = w.next {
			if w.resume == nil {
				in.Waiting++
			}
		}
	}
	in.Sockets = make([]*socket.Socket, 0, o.sockets.Len())
	for s := range o.sockets.NewestFirst() {
		in.Sockets = append(in.Sockets, s)
	}
	if a != nil {
		in.Phase = PhaseIdle
		for b := range a.blockers {
			in.Phase = PhaseBlocked
			in.Blockers = append(in.Blockers, *b)
		}
	}
	o.mu.Unlock()
	if live == nil {
		return
	}
	for out := range live.gate.Held() {
		if !out.counts() {
			in.Held++
		}
		in.HeldBytes += int64(len(out.frame.Bytes))
	}
	if a == nil {
		return
	}
	a.mu.Lock()
	in.HeldBytes += a.outSize
	if t := a.current; t != nil {
		in.Phase = PhaseRunning
		if t.constructor {
			in.Phase = PhaseConstructing
		}
		in.Blockers = append(in.Blockers, t.blocker())
	}
	a.mu.Unlock()
	in.Blockers = oldestFirst(in.Blockers)
}

func oldestFirst(list []Blocker) []Blocker {
	slices.SortStableFunc(list, func(a, b Blocker) int { return a.Since.Compare(b.Since) })
	return list
}
