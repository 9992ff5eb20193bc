// Package registry keeps objects: it finds them by id, runs their events one
// turn at a time, constructs an instance when there is none, and lets go of it
// when the object has been idle.
//
// An Object is the record that stays while the instance is gone: its sockets,
// auto-responses and whatever is still on its way out. An Activation is one
// in-memory life of it. A Turn is one stretch of exclusive work of one
// activation, and the context that user code holds.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
)

// Errors that calls of user code end in. The root package documents them.
var (
	ErrReset       = errors.New("object was reset")
	ErrOutsideTurn = errors.New("ctx is not that of a running turn of this object: its handler has returned or awaits, or it never was a turn")
	ErrReentrant   = errors.New("call would wait for itself")
	ErrState       = errors.New("not allowed in this state")
	ErrShutdown    = fmt.Errorf("%w: runtime is shutting down", store.ErrUnavailable)
)

// A LimitError says which limit was exceeded.
type LimitError = limit.Error

// A PanicError is what a handler panicked with.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("handler panicked: %v", e.Value) }

// Unwrap is the value, if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Config is the surroundings of a Registry. It is immutable.
type Config struct {
	Store            *store.Store
	Clock            alarm.Clock
	Logger           *slog.Logger
	IdleTimeout      time.Duration
	MaxConstructing  int64
	SocketsPerObject int
	Sockets          int
	Mailbox          int           // requests, calls and Do functions waiting at one object
	WaitingBytes     int64         // of messages waiting at one object
	Undelivered      int64         // bytes a turn may hold back for sockets
	AwakeWarning     time.Duration // age at which the log tells of a blocker; 0 or less: never
	WakeWarning      int           // wakes of an object in a minute that the log tells of; 0 or less: never
	EvictEveryTurn   bool
	Observer         Observer        // nil: none
	TurnTimes        bool            // measure turns
	ProfileLabels    bool            // goroutines of turns carry their class and event in profiles
	Refused          *limit.Counters // counts refusals; nil: nobody does
	Probe            *Probe          // of the users' test kit; nil: none
	Pool             *socket.Pool    // bytes kept by sockets; nil: nobody counts
	PingInterval     time.Duration   // silent peers are asked once in it; 0: never
	PongTimeout      time.Duration   // how long they have to answer; at most PingInterval
}

// A Behavior is what a class's instances do, in terms of this package. It runs
// user code: calls come on the goroutine of a turn, with no lock held.
type Behavior interface {
	// Construct makes the instance of a.
	Construct(ctx context.Context, a *Activation) (any, error)
	// HandlesSocket reports whether instances want socket events of kind k.
	HandlesSocket(k socket.EventKind) bool
	// SocketEvent tells instance of an event of s.
	SocketEvent(ctx context.Context, instance any, s *socket.Socket, e socket.Event) error
	// HandlesAlarm reports whether instances have an alarm handler.
	HandlesAlarm() bool
	// Alarm runs the alarm handler.
	Alarm(ctx context.Context, instance any, a AlarmInfo) error
}

// AlarmInfo is what an alarm handler is told.
type AlarmInfo struct {
	Scheduled time.Time
	Retries   int // counted failures before this run
}

// A Class is the description of one kind of object, immutable but for its counters.
type Class struct {
	Name             string
	Behavior         Behavior
	Sockets          *socket.Config
	RollbackOnError  bool
	ConstructTimeout time.Duration

	reg    *Registry // set by AddClass
	counts classCounts
	labels *[CauseCount]context.Context // for profiles, nil if they are not wanted; set by AddClass
	pace   poll.Pace                    // of its socket events
}

// A Registry is the set of all objects of a runtime.
type Registry struct {
	cfg      Config
	timers   *alarm.Timers
	alarms   *alarm.Scheduler
	slots    slots
	lives    census       // goroutines that run turns or WaitUntil work
	busy     atomic.Int64 // whatever is at work, for Quiet: it is handed on without a gap
	observes bool         // something is done around user code; immutable

	stats   counters
	closing atomic.Bool
	life    context.Context // until Kill
	end     context.CancelCauseFunc
	sockets atomic.Int64

	classMu sync.RWMutex // guards the following
	classes map[string]*Class

	shards [shardCount]shard
	calls  calls

	runners   runners
	releasers releasers
	watch     watch
	revoked   revoked
}

const shardCount = 64

// A shard is one part of the objects, by the leading bits of their id: the ids of a
// shard are below those of the next.
type shard struct {
	mu      sync.Mutex // guards the following
	objects index
	awake   *Activation // the first of those in memory
}

func shardOf(id store.ID) int { return int(id[0]) * shardCount / 256 }

type counters struct {
	constructed, hibernated, failed, resets atomic.Uint64
	events, messages, autoResponses         atomic.Uint64
	panics, handlerErrors, dead             atomic.Uint64
	gateWait                                histogram
	inMemory, records                       atomic.Int64
}

// New returns an empty registry. Start begins to run alarms.
func New(cfg Config) *Registry {
	r := &Registry{cfg: cfg, observes: cfg.observes(), timers: alarm.NewTimers(cfg.Clock), classes: map[string]*Class{}}
	r.runners.reg = r
	r.watch.init(r)
	r.life, r.end = context.WithCancelCause(context.Background())
	r.slots.sem = newSlots(cfg.MaxConstructing)
	r.alarms = alarm.NewScheduler(cfg.Clock, (*alarmSource)(r))
	r.startPulse()
	return r
}

// Timers are the registry's deadlines, for the sockets of its classes.
func (r *Registry) Timers() *alarm.Timers { return r.timers }

// Clock is the registry's clock.
func (r *Registry) Clock() alarm.Clock { return r.cfg.Clock }

// AddClass makes c known. Its alarms run from now on.
func (r *Registry) AddClass(c *Class) error {
	r.classMu.Lock()
	if _, ok := r.classes[c.Name]; ok {
		r.classMu.Unlock()
		return fmt.Errorf("class %q is already registered", c.Name)
	}
	if r.cfg.ProfileLabels {
		c.labels = profileLabels(r.cfg.labels(), c.Name)
	}
	c.reg = r
	r.classes[c.Name] = c
	r.classMu.Unlock()
	r.alarms.Reconsider()
	return nil
}

func (r *Registry) class(name string) *Class {
	r.classMu.RLock()
	defer r.classMu.RUnlock()
	return r.classes[name]
}

func (r *Registry) shard(id store.ID) *shard { return &r.shards[shardOf(id)] }

// Object returns the record of id, and makes one if there is none. The caller
// must post to it: a record without sockets or work is removed when it settles.
func (r *Registry) object(c *Class, id store.ID, name string) *Object {
	sh := r.shard(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	o := sh.objects.find(id)
	if o == nil {
		o = &Object{class: c, id: id, name: strings.Clone(name)} // it may be a piece of a request
		sh.objects.add(o)
		r.stats.records.Add(1)
		c.counts.records.Add(1)
	}
	return o
}

// find returns the record of id, if there is one.
func (r *Registry) find(id store.ID) *Object {
	sh := r.shard(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.objects.find(id)
}

// each calls f for every record, without a lock.
func (r *Registry) each(f func(*Object)) {
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		objects := sh.objects.list()
		sh.mu.Unlock()
		for _, o := range objects {
			f(o)
		}
	}
}

// Post queues w at the object with the given id, and constructs an instance for
// it if there is none. name may be empty if it is not known. w.Done tells the
// outcome, unless Post returns an error.
func (r *Registry) Post(c *Class, id store.ID, name string, w *Work) error {
	r.lives.add() // as in Serve
	defer r.lives.done()
	for {
		if r.closing.Load() {
			return ErrShutdown
		}
		if err := r.cfg.Store.Err(); err != nil {
			return err
		}
		err := r.object(c, id, name).post(w, name)
		if err != errRemoved {
			return err
		}
	}
}

// Stats are counters of a registry, since it was made, and sizes of now.
type Stats struct {
	Sockets, InMemory, Records             int64
	Constructed, Hibernated, Failed, Reset uint64
	Events, Messages, AutoResponses        uint64
	Panics, HandlerErrors, Vanished        uint64
	GateWait                               Histogram
	Revoked                                int64
}

// Stats reads the counters.
func (r *Registry) Stats() Stats {
	s := &r.stats
	return Stats{
		Sockets: r.sockets.Load(), InMemory: s.inMemory.Load(), Records: s.records.Load(),
		Constructed: s.constructed.Load(), Hibernated: s.hibernated.Load(), Failed: s.failed.Load(), Reset: s.resets.Load(),
		Events: s.events.Load(), Messages: s.messages.Load(), AutoResponses: s.autoResponses.Load(),
		Panics: s.panics.Load(), HandlerErrors: s.handlerErrors.Load(), Vanished: s.dead.Load(), GateWait: s.gateWait.load(), Revoked: r.revoked.n.Load(),
	}
}

// Quiet reports whether nothing is running or under way: whatever happens next
// comes from outside or from the clock.
func (r *Registry) Quiet() bool {
	return r.busy.Load() == 0
}

// A census counts goroutines. Unlike a sync.WaitGroup it may grow while somebody
// waits for it.
type census struct {
	n atomic.Int64

	mu   sync.Mutex // guards the following
	none chan struct{}
	wait atomic.Bool // none is there
}

func (c *census) add() { c.n.Add(1) }

func (c *census) done() {
	if c.n.Add(-1) == 0 && c.wait.Load() {
		c.tell()
	}
}

func (c *census) tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.none != nil && c.n.Load() == 0 {
		close(c.none)
		c.none = nil
		c.wait.Store(false)
	}
}

// zero is closed the next time that the count is seen to be zero.
func (c *census) zero() <-chan struct{} {
	c.mu.Lock()
	if c.none == nil {
		c.none = make(chan struct{})
		c.wait.Store(true)
	}
	none := c.none
	c.mu.Unlock()
	c.tell()
	return none
}

// Close waits for the registry's own goroutines. It follows Kill and the end of the store.
func (r *Registry) Close() {
	r.alarms.Wait()
	r.runners.close()
	r.releasers.close()
}

// Evict drops the instance of an object behind what waits for it.
func (r *Registry) Evict(ctx context.Context, id store.ID) error {
	o := r.find(id)
	if o == nil {
		return nil
	}
	done := make(chan error, 1)
	w := &Work{Cause: CauseEvict, Done: func(err error) { done <- err }}
	if err := o.post(w, ""); err == errRemoved {
		return nil
	} else if err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		if o.withdraw(w) {
			return context.Cause(ctx)
		}
		return <-done
	}
}

// EvictAll evicts every object that is in memory.
func (r *Registry) EvictAll(ctx context.Context) error {
	var errs []error
	r.each(func(o *Object) {
		if l, _ := o.listed(); !l.InMemory {
			return
		}
		if err := r.Evict(ctx, o.id); err != nil {
			errs = append(errs, fmt.Errorf("object %x: %w", o.id, err))
		}
	})
	return errors.Join(errs...)
}
