package hibernate

import (
	"bytes"
	"context"
	"iter"
	"time"

	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/store"
)

// A Cause says why a turn runs, and so why an object was woken. Its String is one
// lower-case word.
type Cause = registry.Cause

// The causes. The zero Cause is none.
const (
	CauseMessage = registry.CauseMessage // a WebSocket's message
	CauseClose   = registry.CauseClose   // a WebSocket that was closed or lost
	CauseError   = registry.CauseError   // a WebSocket whose peer broke the protocol
	CauseRequest = registry.CauseRequest // an HTTP request, or an upgrade that the class handles
	CauseAlarm   = registry.CauseAlarm
	CauseCall    = registry.CauseCall  // a [Method]
	CauseDo      = registry.CauseDo    // [State.Do]; it never wakes
	CauseEvict   = registry.CauseEvict // [Runtime.Evict]; it never wakes
	CauseDrain   = registry.CauseDrain // a WebSocket whose peer has caught up
)

// Causes are all causes that wake objects.
func Causes() []Cause {
	return []Cause{CauseMessage, CauseClose, CauseError, CauseRequest, CauseAlarm, CauseCall, CauseDrain}
}

// A Phase is what an object is doing.
type Phase = registry.Phase

// The phases.
const (
	PhaseAbsent       = registry.PhaseAbsent       // nothing is known of it, or stored
	PhaseStored       = registry.PhaseStored       // it has storage or an alarm, and nothing in memory
	PhaseHibernated   = registry.PhaseHibernated   // it has WebSockets, or commits under way, and no instance
	PhaseConstructing = registry.PhaseConstructing // its constructor runs
	PhaseRunning      = registry.PhaseRunning      // a handler runs
	PhaseBlocked      = registry.PhaseBlocked      // no handler runs, and its blockers keep it in memory
	PhaseIdle         = registry.PhaseIdle         // it hibernates after [Options].IdleTimeout
)

// A Blocker is something that keeps an object in memory, and since when.
type Blocker struct {
	Kind BlockerKind
	// Name is the name of WaitUntil work, the class that a call waits for, or the
	// cause of a turn ("constructor" for that). It is empty for an Await.
	Name string
	// Since is when it began; of a turn to a second.
	Since time.Time
}

// A BlockerKind is a way of keeping an object in memory.
type BlockerKind = registry.BlockerKind

// The kinds of blockers.
const (
	BlockerTurn      = registry.BlockerTurn      // a handler that runs
	BlockerAwait     = registry.BlockerAwait     // a handler in [Await]
	BlockerCall      = registry.BlockerCall      // a handler that waits for another object
	BlockerWaitUntil = registry.BlockerWaitUntil // work given to [State.WaitUntil]
)

// An Inspection is what is known of one object at one moment.
type Inspection struct {
	ID    ID
	Class string // empty if nothing is known of the object
	Name  string // empty if it has none or it is not known
	Phase Phase

	// Wakes is how many instances were made, at most 65,535, since the object's record came into
	// memory (a record goes with the last WebSocket and instance), Woken the second when the
	// last was, and Cause what for.
	Wakes uint64
	Woken time.Time
	Cause Cause

	// Blockers keep the object in memory, the oldest first.
	Blockers []Blocker
	// Revoked are goroutines of user code that go on although the object was taken
	// from them by a reset. They can touch nothing of it, and keep nothing but
	// themselves in memory.
	Revoked []Blocker

	// Waiting is the number of events that wait for a turn.
	Waiting int
	// Held is the number of outputs that wait for commits to be durable, HeldBytes
	// the size of their frames and of those that the current turn has sent.
	Held      int
	HeldBytes int64
	// WebSockets are the object's, the newest first.
	WebSockets []WebSocket
	// Alarm is when the alarm handler runs next, retries included; zero if it will
	// not. A change in the current turn does not show before its commit.
	Alarm time.Time
}

// InMemory reports whether the object has an instance.
func (i *Inspection) InMemory() bool {
	switch i.Phase {
	case PhaseConstructing, PhaseRunning, PhaseBlocked, PhaseIdle:
		return true
	}
	return false
}

// Inspect tells what an object is doing, what keeps it in memory and what woke it.
// It never wakes the object and counts as no event of it. It reads the object's
// header from storage; ctx bounds the wait for that. On error what is known without
// storage is returned with it.
func (rt *Runtime) Inspect(ctx context.Context, id ID) (Inspection, error) {
	r, err := rt.reg.Inspect(ctx, id.key)
	in := Inspection{
		ID: id, Class: r.Class, Name: r.Name, Phase: r.Phase,
		Wakes: r.Wakes, Woken: r.Woken, Cause: r.Cause,
		Blockers: blockers(r.Blockers), Revoked: blockers(r.Revoked),
		Waiting: r.Waiting, Held: r.Held, HeldBytes: r.HeldBytes, Alarm: r.Alarm,
	}
	for _, s := range r.Sockets {
		in.WebSockets = append(in.WebSockets, WebSocket{s})
	}
	return in, err
}

func blockers(list []registry.Blocker) (out []Blocker) {
	for _, b := range list {
		out = append(out, Blocker{b.Kind, b.Name, b.Since})
	}
	return out
}

// ObjectInfo is an object in a listing.
type ObjectInfo struct {
	ID       ID
	Class    string
	Name     string // empty if it has none or it is not known
	InMemory bool   // there is an instance
	Sockets  int
	Blockers int // WaitUntil work, and handlers in Await or a call

	// As in an [Inspection].
	Wakes uint64
	Woken time.Time
	Cause Cause
}

func objectInfo(l registry.Listed) ObjectInfo {
	return ObjectInfo{ID{l.ID}, l.Class.Name, l.Name, l.InMemory, l.Sockets, l.Blockers, l.Wakes, l.Woken, l.Cause}
}

// Resident yields the objects of all classes that have something in memory - an
// instance, WebSockets, or commits under way - in order of their IDs, behind after;
// the zero ID is before all. It wakes none of them and reads no storage. What
// changes meanwhile may or may not be seen. It reads a 64th of the IDs at a time:
// whoever breaks off early leaves the rest alone.
func (rt *Runtime) Resident(after ID) iter.Seq[ObjectInfo] { return rt.list(after, false) }

// Awake is Resident, but yields only objects that have an instance, and passes by the
// others without looking at them.
func (rt *Runtime) Awake(after ID) iter.Seq[ObjectInfo] { return rt.list(after, true) }

func (rt *Runtime) list(after ID, awake bool) iter.Seq[ObjectInfo] {
	return func(yield func(ObjectInfo) bool) {
		for l := range rt.reg.Resident(after.key, awake) {
			if (l.InMemory || !awake) && !yield(objectInfo(l)) {
				return
			}
		}
	}
}

// List yields the objects that have storage, an alarm, a WebSocket or an instance,
// in order of their IDs. It wakes none of them. What changes meanwhile may or may
// not be seen. It reads storage in pages and may block; after an error it ends.
func (n *Namespace) List(ctx context.Context) iter.Seq2[ObjectInfo, error] {
	c := n.class
	return func(yield func(ObjectInfo, error) bool) {
		next, stop := iter.Pull(c.resident())
		defer stop()
		l, more := next()
		const page = 256
		var after store.ID
		for {
			stored, err := c.rt.store.Objects(ctx, c.name, after, page)
			if err != nil {
				yield(ObjectInfo{}, err)
				return
			}
			for _, s := range stored {
				for more && bytes.Compare(l.ID[:], s.ID[:]) < 0 {
					if !yield(objectInfo(l), nil) {
						return
					}
					l, more = next()
				}
				o := ObjectInfo{ID: ID{s.ID}, Class: c.name}
				if more && l.ID == s.ID {
					o = objectInfo(l)
					l, more = next()
				}
				if o.Name == "" {
					o.Name = s.Name
				}
				if !yield(o, nil) {
					return
				}
				after = s.ID
			}
			if len(stored) < page {
				break
			}
		}
		for ; more; l, more = next() {
			if !yield(objectInfo(l), nil) {
				return
			}
		}
	}
}

// resident are the class's objects that have a record, in order of their ids.
func (c *class) resident() iter.Seq[registry.Listed] {
	return func(yield func(registry.Listed) bool) {
		for l := range c.rt.reg.Resident(store.ID{}, false) {
			if l.Class == c.reg && !yield(l) {
				return
			}
		}
	}
}

// Namespaces are those of all registered classes, in order of their names.
func (rt *Runtime) Namespaces() []*Namespace {
	var list []*Namespace
	for _, c := range rt.reg.Classes() {
		list = append(list, &Namespace{c.Behavior.(*class)})
	}
	return list
}

// Class is the name the class was registered by.
func (n *Namespace) Class() string { return n.class.name }
