package store

import (
	"context"
	"errors"
	"fmt"
)

var (
	// ErrFenced answers a commit or an open whose epoch or expected seq is not
	// the object's: somebody newer has written it.
	ErrFenced = errors.New("object was written by a newer owner")

	// ErrUnavailable answers every call once the engine is dead or closed, and
	// a read that the engine could not serve.
	ErrUnavailable = errors.New("storage unavailable")

	// ErrTooLarge answers a write above the engine's [Limits].
	ErrTooLarge = errors.New("write exceeds a storage limit")

	// ErrLocked is in the error of [Open] when the directory is in use, by this
	// process or another.
	ErrLocked = errors.New("directory is already in use")

	// ErrFormat is in the error of [Open] when the directory holds something
	// this version cannot read: a newer format, or not a store of ours.
	ErrFormat = errors.New("unknown storage format")

	// ErrCorrupt is in the error of [Open] and of reads when stored bytes
	// contradict their checksum or their format.
	ErrCorrupt = errors.New("storage is corrupt")
)

// An ID names an object. Its leading bits are uniform.
type ID [32]byte

// Alarm is what the header remembers of an object's alarms. Times are
// milliseconds since the Unix epoch, 0 means none.
type Alarm struct {
	Next    int64  // the alarm that is set
	Running int64  // scheduled time of the alarm being run or retried; stays until the handler's last commit
	Retry   uint32 // counted failures of Running
	RetryAt int64  // when Running is tried again; 0 = at once
}

// Due returns the time at which the object's alarms next want attention: what
// the index by time holds. 0 means never.
func (a Alarm) Due() int64 {
	switch {
	case a.Running == 0:
		return a.Next
	case a.RetryAt != 0:
		return a.RetryAt
	default:
		return a.Running
	}
}

// Header is an object's own record, written by each of its commits.
type Header struct {
	Epoch  uint64 // epoch of the last commit
	Seq    uint64 // number of the last commit; 0 = none
	Alarm  Alarm
	Class  string
	Name   string // "" = unknown
	Exists bool   // the engine holds a header; false is the zero Header, but for Seq while the object stays open
}

// Limits are what an engine can take. A commit above them is ErrTooLarge.
type Limits struct {
	Class  int // bytes of a class
	Name   int // bytes of a name
	Key    int // bytes of a key
	Commit int // bytes of one commit: keys, values and 16 for each of its writes
}

// Value is the size of the largest value that a commit has room for under a key of so
// many bytes.
func (l Limits) Value(key int) int { return l.Commit - key - writeOverhead }

// A CommitSizeError is the ErrTooLarge of a write for which its commit has no room.
type CommitSizeError struct{ Max, Size int }

// Error names both sizes.
func (e *CommitSizeError) Error() string {
	return fmt.Sprintf("commit of %d bytes, at most %d: %v", e.Size, e.Max, ErrTooLarge)
}

// Unwrap is ErrTooLarge.
func (e *CommitSizeError) Unwrap() error { return ErrTooLarge }

// writeOverhead is what a write counts toward Limits.Commit besides its bytes.
const writeOverhead = 16

// Commit is one object's atomic change.
type Commit struct {
	ID    ID
	Epoch uint64 // of the writer
	Seq   uint64 // that the header must have
	Class string // kept when the header is first written
	Name  string // kept when the header has none
	Alarm Alarm  // replaces the header's

	// Clear deletes every key before Writes is applied.
	Clear bool
	// Writes are the keys to set; a nil value deletes. The engine only reads it.
	Writes map[string][]byte
}

// Head returns the header that c makes of prev. A commit that clears, sets
// nothing and leaves no alarm removes the header with everything else: the
// object starts again at seq 0 under the next epoch or once nobody has it open.
// That cannot unfence anyone. A writer that expects a seq above 0 does not find
// it, one that expects 0 saw the object as empty as it is, and while the object
// is open the engine's copy goes on counting.
func (c *Commit) Head(prev Header) Header {
	next := Header{Epoch: c.Epoch, Seq: c.Seq + 1}
	if c.Clear && c.Alarm == (Alarm{}) && !c.sets() {
		return next
	}
	next.Alarm, next.Class, next.Name, next.Exists = c.Alarm, c.Class, c.Name, true
	if prev.Exists {
		next.Class = prev.Class
		if prev.Name != "" {
			next.Name = prev.Name
		}
	}
	return next
}

func (c *Commit) sets() bool {
	for _, v := range c.Writes {
		if v != nil {
			return true
		}
	}
	return false
}

// check reports whether c keeps within l.
func (c *Commit) check(l Limits) error {
	size, key := 0, 0
	for k, v := range c.Writes {
		size += len(k) + len(v) + writeOverhead
		key = max(key, len(k))
	}
	if len(c.Class) > l.Class || len(c.Name) > l.Name || key > l.Key || size > l.Commit {
		return ErrTooLarge
	}
	return nil
}

// Bounds select an interval of an object's keys, Lower inclusive and Upper
// exclusive.
type Bounds struct {
	Lower   string
	Upper   string
	NoUpper bool // Upper is not a bound
	Reverse bool // from the top down
}

// Cursor walks over the keys of one object as they were when it was opened.
// It belongs to one goroutine, but the engine's Close may come at any time:
// then Next reports false and Err ErrUnavailable. It pins what it can still
// see until it is closed.
type Cursor interface {
	// Next moves to the next key, to the first one when it is first called.
	Next() bool
	// Key and Value are valid until the next call of Next or Close.
	Key() []byte
	Value() []byte
	// Err tells why Next reported false; nil at the end.
	Err() error
	Close() error
}

// Due is an object whose alarm wants attention at a time.
type Due struct {
	ID    ID
	Class string
	Due   int64 // ms since the Unix epoch
}

// Info is an object in a listing of its class.
type Info struct {
	ID   ID
	Name string // "" = unknown
}

// An Engine is the storage contract. Its methods may block and may fail; a
// failure that is not one of the contract's errors wraps ErrUnavailable. They
// are safe for concurrent use, except that Commit is called by one goroutine
// at a time.
type Engine interface {
	// Epoch is the epoch under which this engine was opened, above that of
	// every earlier one on the same storage.
	Epoch() uint64

	// Limits are constant.
	Limits() Limits

	// Open returns the header of an object, its zero value if there is none,
	// and keeps a copy that later commits are checked against, until as many
	// calls of Release. ErrFenced if the header was written under a later epoch.
	Open(id ID, epoch uint64) (Header, error)
	Release(id ID)

	// Get returns a copy of the value of a key.
	Get(id ID, key string) (value []byte, ok bool, err error)

	// Has reports whether a key exists.
	Has(id ID, key string) (bool, error)

	// Iterate opens a cursor.
	Iterate(id ID, b Bounds) (Cursor, error)

	// Commit applies commits of many objects in order and returns once they are
	// durable, with an answer for each: nil, ErrFenced, ErrTooLarge or
	// ErrUnavailable. Each is whole or absent. Of commits nothing but values is kept.
	// Once Dead is closed, it need not return at all.
	Commit(commits []Commit) []error

	// Due returns the objects whose Alarm.Due is at or before a time, earliest
	// first and those of one time in order of their ids, at most limit of them.
	// It begins behind after, whose Class does not matter: the zero Due is the
	// start, the last of one answer leads to the next.
	Due(ctx context.Context, after Due, before int64, limit int) ([]Due, error)

	// Class returns objects of a class that have keys or an alarm, in order of
	// their ids, those behind after, at most limit of them.
	Class(ctx context.Context, class string, after ID, limit int) ([]Info, error)

	// Snapshot writes a consistent copy into a new directory.
	Snapshot(ctx context.Context, dir string) error

	// Dead is closed when the engine has failed for good; Err then tells why.
	Dead() <-chan struct{}
	Err() error

	// Close makes everything durable and gives the storage back. It is called
	// after the last Commit and may come beside reads, which then fail. On a
	// dead engine it returns at once.
	Close() error
}

// prefixEnd returns the key behind all that start with prefix; ok is false if
// there is none.
func prefixEnd(prefix string) (end string, ok bool) {
	p := []byte(prefix) // bytes, not runes: strings.TrimRight takes U+FFFD for 0xff
	for len(p) > 0 && p[len(p)-1] == 0xff {
		p = p[:len(p)-1]
	}
	if len(p) == 0 {
		return "", false
	}
	p[len(p)-1]++
	return string(p), true
}
