package hibernate

import (
	"time"

	"github.com/hibernate-go/hibernate/internal/registry"
)

// Stats are sizes of now and counters since Open.
type Stats struct {
	Sockets         int64 // connected WebSockets
	ObjectsInMemory int64 // objects with an instance
	ObjectsAsleep   int64 // objects without one that have WebSockets

	Constructed   uint64 // instances made
	Hibernated    uint64 // instances dropped because they were idle or evicted
	Failed        uint64 // constructors that failed
	Resets        uint64 // objects reset
	Messages      uint64 // messages delivered to handlers
	AutoResponses uint64 // messages answered without a handler
	Panics        uint64 // handlers that panicked
	HandlerErrors uint64 // handlers that returned an error
	Vanished      uint64 // connections cut because the peer did not answer a ping

	Wakes    Wakes     // instances made, by what they were made for
	TurnTime Histogram // of handlers and constructors; empty without [Options].TurnTimes
	Refused  Refusals  // what met a limit
	Buffered int64     // bytes that [Limits].Buffered limits

	Commits     uint64        // turns whose writes are durable
	Syncs       uint64        // syncs of the disk that took: groups of commits
	MaxGroup    int           // commits in the largest group
	SyncTime    time.Duration // that syncs took, in sum
	MaxSyncTime time.Duration // the longest
	GateWait    Histogram     // from a turn's commit until its output may leave
	Pending     int           // commits that are not durable yet
	Revoked     int64         // goroutines of user code whose object was reset; see [Inspection]
}

// Stats reads the counters. It blocks nobody.
func (rt *Runtime) Stats() Stats {
	r, s := rt.reg.Stats(), rt.store.Stats()
	st := Stats{
		Sockets:         r.Sockets,
		ObjectsInMemory: r.InMemory,
		ObjectsAsleep:   max(r.Records-r.InMemory, 0),
		Constructed:     r.Constructed,
		Hibernated:      r.Hibernated,
		Failed:          r.Failed,
		Resets:          r.Reset,
		Messages:        r.Messages,
		AutoResponses:   r.AutoResponses,
		Panics:          r.Panics,
		HandlerErrors:   r.HandlerErrors,
		Vanished:        r.Vanished,
		Refused:         rt.refused.Load(),
		Buffered:        rt.pool.Len(),
		Commits:         s.Commits,
		Syncs:           s.Groups,
		MaxGroup:        s.MaxGroup,
		SyncTime:        s.SyncTime,
		MaxSyncTime:     s.MaxSyncTime,
		GateWait:        Histogram(r.GateWait),
		Pending:         s.Pending,
		Revoked:         r.Revoked,
	}
	for _, c := range rt.reg.Classes() {
		of := c.Stats()
		for i, n := range of.Wakes {
			st.Wakes[i] += n
		}
		st.TurnTime.Sum += of.Turns.Sum
		for i, n := range of.Turns.Buckets {
			st.TurnTime.Buckets[i] += n
		}
	}
	return st
}

// ClassStats are sizes of now and counters since [Register].
type ClassStats struct {
	Sockets         int64     // connected WebSockets
	ObjectsInMemory int64     // objects with an instance
	ObjectsAsleep   int64     // objects without one that have WebSockets
	Wakes           Wakes     // instances made, by what they were made for
	TurnTime        Histogram // of handlers and constructors; empty without [Options].TurnTimes
}

// Stats reads the counters of the class. It blocks nobody.
func (n *Namespace) Stats() ClassStats {
	s := n.class.reg.Stats()
	return ClassStats{s.Sockets, s.InMemory, max(s.Records-s.InMemory, 0), s.Wakes, Histogram(s.Turns)}
}

// Wakes counts instances made by what they were made for.
type Wakes [registry.CauseCount]uint64

// By is the count of one cause.
func (w Wakes) By(c Cause) uint64 {
	if int(c) >= len(w) {
		return 0
	}
	return w[c]
}

// A Histogram counts durations. Bucket i has those that are at most Bound(i) and in no
// earlier bucket; the last one has those above all bounds.
type Histogram struct {
	Sum     time.Duration                         // of all that were counted
	Buckets [registry.HistogramBuckets + 1]uint64 // how many, by length
}

// Bound is the upper bound of a bucket: 1 µs for the first, four times as much for
// each other. The last bucket has none, which is told as a negative duration.
func (Histogram) Bound(bucket int) time.Duration {
	if bucket >= registry.HistogramBuckets {
		return -1
	}
	return time.Microsecond << (2 * bucket)
}

// Count is the number of durations.
func (h Histogram) Count() (n uint64) {
	for _, b := range h.Buckets {
		n += b
	}
	return n
}

// Quantile is a bound that at least the share q of the durations, 0 to 1, keeps to:
// that of the bucket in which it lies, so up to four times too much. It is negative if
// they lie above all bounds, and zero if nothing was counted.
func (h Histogram) Quantile(q float64) time.Duration {
	n := h.Count()
	if n == 0 {
		return 0
	}
	seen := uint64(0)
	for i, b := range h.Buckets {
		if seen += b; seen > 0 && float64(seen) >= q*float64(n) {
			return h.Bound(i)
		}
	}
	return -1
}
