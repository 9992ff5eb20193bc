package hibernate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/store"
)

// Storage is an object's own keys and values, and its alarm. All that a turn
// writes is committed as one when the turn ends, awaits or calls Sync. Reads see
// the writes before them at once.
//
// Every call takes the ctx of a turn of the object and is [ErrOutsideTurn]
// without. Calls may block on the disk, and may fail with [ErrUnavailable].
// Keys are at most [Limits].Key bytes and order by bytes; the empty key is
// allowed. Encoded values are at most [Limits].Value bytes. One commit takes at most
// 8 MiB of keys and values, with 16 bytes for each write. What is over a limit is a
// *LimitError, and is not written.
type Storage struct {
	accessor
}

// A Txn is a transaction under way: a savepoint of its turn. Its calls are those
// of [Storage]; after Rollback, and after the function it was made for has
// returned, they are [ErrTxnDone].
type Txn struct {
	accessor
	depth  int
	rolled bool // Rollback was called; owned by the turn, like over
	over   bool // the function has returned
}

// A Reader is a [Storage] or a [Txn].
type Reader interface {
	reader(ctx context.Context) (*registry.Turn, error)
	settings() *class
}

// A Writer is a [Storage] or a [Txn].
type Writer interface {
	Reader
}

// accessor is what Storage and Txn have in common.
type accessor struct {
	state *State
	txn   *Txn // nil: plain storage
}

func (a *accessor) settings() *class { return a.state.class }

// reader checks that ctx is a turn that may use the storage now.
func (a *accessor) reader(ctx context.Context) (*registry.Turn, error) {
	t, err := a.state.turn(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.Check(); err != nil {
		return nil, err
	}
	if a.txn != nil && (a.txn.rolled || a.txn.over) {
		return nil, ErrTxnDone
	}
	return t, nil
}

// A PutOption changes how a write is treated.
type PutOption func(*putOptions)

type putOptions struct{ unconfirmed bool }

// AllowUnconfirmed lets output leave before the write is durable: what a client
// has seen may then be lost with the machine. A turn holds its output as soon as
// one of its writes is without it.
func AllowUnconfirmed() PutOption { return func(o *putOptions) { o.unconfirmed = true } }

func (c *class) checkKey(key string) error {
	if most := c.rt.opt.Limits.Key; len(key) > most {
		return c.rt.refused.Refuse(limit.Key, int64(most), int64(len(key)))
	}
	return nil
}

func (c *class) encodeValue(v any) ([]byte, error) {
	b, err := c.codec.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%w: storage value: %w", ErrInvalid, err)
	}
	return b, c.checkValue(b)
}

func (c *class) checkValue(b []byte) error {
	if most := c.rt.opt.Limits.Value; len(b) > most {
		return c.rt.refused.Refuse(limit.Value, int64(most), int64(len(b)))
	}
	return nil
}

// wrap makes errors of the store those of this package.
func wrap(err error) error {
	var size *store.CommitSizeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &size):
		return &LimitError{Limit: "bytes written in one commit", Max: int64(size.Max), Got: int64(size.Size)}
	case errors.Is(err, store.ErrHandle):
		return ErrReset
	case errors.Is(err, store.ErrSavepoint):
		return fmt.Errorf("%w: %w", ErrState, err)
	case errors.Is(err, store.ErrListOptions):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}

// GetBytes is the value of key as it is stored. The slice is the caller's.
func (a *accessor) GetBytes(ctx context.Context, key string) (value []byte, ok bool, err error) {
	t, err := a.reader(ctx)
	if err != nil {
		return nil, false, err
	}
	if err := a.settings().checkKey(key); err != nil {
		return nil, false, err
	}
	value, ok, err = t.Activation().Store.Get(key)
	return value, ok, wrap(err)
}

// PutBytes sets key to a copy of value.
func (a *accessor) PutBytes(ctx context.Context, key string, value []byte, o ...PutOption) error {
	if err := a.settings().checkValue(value); err != nil {
		return err
	}
	return a.put(ctx, []string{key}, [][]byte{value}, o)
}

func (a *accessor) put(ctx context.Context, keys []string, values [][]byte, o []PutOption) error {
	t, err := a.reader(ctx)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := a.settings().checkKey(key); err != nil {
			return err
		}
	}
	var opt putOptions
	for _, f := range o {
		f(&opt)
	}
	return wrap(t.Use(func() error {
		if err := putAll(t.Activation().Store, keys, values); err != nil {
			return err
		}
		t.Wrote(!opt.unconfirmed)
		return nil
	}))
}

// putAll sets all keys or none: the commit may have room for some alone.
func putAll(o *store.Object, keys []string, values [][]byte) error {
	if len(keys) == 1 {
		return o.Put(keys[0], values[0])
	}
	depth := o.Begin()
	for i, key := range keys {
		if err := o.Put(key, values[i]); err != nil {
			o.Rollback(depth)
			return err
		}
	}
	o.Release(depth)
	return nil
}

// Delete deletes keys and returns how many of them existed. A key over its limit is
// a *LimitError, and nothing is deleted. If the commit has no room for all of them,
// which is one too, or its turn ends meanwhile, n tells how many were deleted.
func (a *accessor) Delete(ctx context.Context, keys ...string) (n int, err error) {
	t, err := a.reader(ctx)
	if err != nil {
		return 0, err
	}
	for _, key := range keys {
		if err := a.settings().checkKey(key); err != nil {
			return 0, err
		}
	}
	n, err = t.Activation().Store.Delete(func(write func() error) error {
		return t.Use(func() error {
			if err := write(); err != nil {
				return err
			}
			t.Wrote(true)
			return nil
		})
	}, keys...)
	return n, wrap(err)
}

// An Entry is a key and its value.
type Entry[V any] struct {
	Key   string
	Value V // the caller's
}

// Get is the value of key, decoded by the class's codec. ok is false, and v zero, if
// there is none. A stored value that does not go into a V is an error of the codec;
// others are those of [Storage].
func Get[V any](ctx context.Context, r Reader, key string) (v V, ok bool, err error) {
	t, err := r.reader(ctx)
	if err != nil {
		return v, false, err
	}
	if err := r.settings().checkKey(key); err != nil {
		return v, false, err
	}
	b, ok, err := t.Activation().Store.Get(key)
	if err != nil || !ok {
		return v, false, wrap(err)
	}
	return decode[V](r, key, b)
}

func decode[V any](r Reader, key string, b []byte) (v V, ok bool, err error) {
	if err := r.settings().codec.Unmarshal(b, &v); err != nil {
		return v, false, fmt.Errorf("storage value of key %q: %w", key, err)
	}
	return v, true, nil
}

// GetMany are those of keys that exist, sorted by key, each once, decoded as by [Get].
// More than [Limits].Keys of them are a *LimitError.
func GetMany[V any](ctx context.Context, r Reader, keys ...string) ([]Entry[V], error) {
	if rt := r.settings().rt; len(keys) > rt.opt.Limits.Keys {
		return nil, rt.refused.Refuse(limit.Keys, int64(rt.opt.Limits.Keys), int64(len(keys)))
	}
	sorted := slices.Clone(keys)
	slices.Sort(sorted)
	var list []Entry[V]
	for _, key := range slices.Compact(sorted) {
		v, ok, err := Get[V](ctx, r, key)
		if err != nil {
			return nil, err
		}
		if ok {
			list = append(list, Entry[V]{key, v})
		}
	}
	return list, nil
}

// Put sets key to v, encoded by the class's codec. v is not kept. What the codec does
// not take is [ErrInvalid]; a key or an encoded value over its limit is a *LimitError.
// The write is durable with the turn, and what the turn sends waits for that.
func Put[V any](ctx context.Context, w Writer, key string, v V, o ...PutOption) error {
	return PutMany(ctx, w, map[string]V{key: v}, o...)
}

// PutMany sets every key of m. It is all or nothing: if one of them cannot be
// set, none is.
func PutMany[V any](ctx context.Context, w Writer, m map[string]V, o ...PutOption) error {
	keys := make([]string, 0, len(m))
	values := make([][]byte, 0, len(m))
	for key, v := range m {
		b, err := w.settings().encodeValue(v)
		if err != nil {
			return err
		}
		keys, values = append(keys, key), append(values, b)
	}
	switch w := w.(type) {
	case *Storage:
		return w.put(ctx, keys, values, o)
	case *Txn:
		return w.put(ctx, keys, values, o)
	}
	return ErrInvalid
}

// A ListOption selects or orders what a list gives. All options combine; Start
// and StartAfter exclude each other.
type ListOption func(*listOptions)

type listOptions struct {
	store.ListOptions
	err error
}

// Start begins the list at key, included. With Reverse too it is the lower bound.
func Start(key string) ListOption { return func(o *listOptions) { o.Start = &key } }

// StartAfter begins the list behind key.
func StartAfter(key string) ListOption { return func(o *listOptions) { o.StartAfter = &key } }

// End ends the list before key. With Reverse too it is the upper bound.
func End(key string) ListOption { return func(o *listOptions) { o.End = &key } }

// Prefix restricts the list to keys that start with prefix.
func Prefix(prefix string) ListOption { return func(o *listOptions) { o.Prefix = prefix } }

// Reverse lists from the last key to the first.
func Reverse() ListOption { return func(o *listOptions) { o.Reverse = true } }

// Limit lists at most n entries. An n below 1 is [ErrInvalid].
func Limit(n int) ListOption {
	return func(o *listOptions) {
		o.Limit = n
		if n < 1 {
			o.err = fmt.Errorf("%w: list limit %d", ErrInvalid, n)
		}
	}
}

// ListBytes yields entries as they are stored, in order of their keys (semantics
// 12.5). It shows the state of when the loop begins: writes in the loop are
// allowed and not seen. After an error, which comes with a zero Entry, it ends.
func (a *accessor) ListBytes(ctx context.Context, o ...ListOption) iter.Seq2[Entry[[]byte], error] {
	return func(yield func(Entry[[]byte], error) bool) {
		for l, err := range a.list(ctx, o) {
			if err != nil {
				yield(Entry[[]byte]{}, err)
				return
			}
			if !yield(Entry[[]byte]{string(l.Key()), bytes.Clone(l.Value())}, nil) {
				return
			}
		}
	}
}

// list yields a cursor at each entry.
func (a *accessor) list(ctx context.Context, o []ListOption) iter.Seq2[*store.List, error] {
	return func(yield func(*store.List, error) bool) {
		t, err := a.reader(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		var opt listOptions
		for _, f := range o {
			f(&opt)
		}
		if opt.err != nil {
			yield(nil, opt.err)
			return
		}
		l, err := t.Activation().Store.List(opt.ListOptions)
		if err != nil {
			yield(nil, wrap(err))
			return
		}
		defer l.Close()
		for l.Next() {
			if !yield(l, nil) {
				return
			}
		}
		if err := l.Err(); err != nil {
			yield(nil, wrap(err))
		}
	}
}

func (a *accessor) lister() *accessor { return a }

// List is [Storage.ListBytes] with values decoded as by [Get]. One that cannot be
// decoded ends the list with an error.
func List[V any](ctx context.Context, r Reader, o ...ListOption) iter.Seq2[Entry[V], error] {
	return func(yield func(Entry[V], error) bool) {
		a, ok := r.(interface{ lister() *accessor })
		if !ok {
			yield(Entry[V]{}, ErrInvalid)
			return
		}
		for l, err := range a.lister().list(ctx, o) {
			if err != nil {
				yield(Entry[V]{}, err)
				return
			}
			key := string(l.Key())
			v, _, err := decode[V](r, key, l.Value())
			if err != nil {
				yield(Entry[V]{}, err)
				return
			}
			if !yield(Entry[V]{key, v}, nil) {
				return
			}
		}
	}
}

// DeleteAll deletes every key and the alarm. Writes after it are kept (semantics
// 12.16). Inside a transaction it is [ErrState] (12.13).
func (s *Storage) DeleteAll(ctx context.Context) error {
	t, err := s.reader(ctx)
	if err != nil {
		return err
	}
	return wrap(t.DeleteAll())
}

// DeleteAll is [ErrState]: everything cannot be deleted inside a transaction.
func (tx *Txn) DeleteAll(ctx context.Context) error {
	if _, err := tx.reader(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%w: DeleteAll inside a transaction", ErrState)
}

// Sync commits what was written and waits until all of it is durable (semantics
// 12.9). What was sent before it leaves then. Inside a transaction it is
// [ErrState].
func (s *Storage) Sync(ctx context.Context) error {
	t, err := s.reader(ctx)
	if err != nil {
		return err
	}
	return t.Sync(ctx)
}

// SetAlarm has the object's Alarm method called at at, instead of any alarm set
// before. A time in the past is now. Times are milliseconds of the wall clock;
// one at or before the Unix epoch is [ErrInvalid]. A class without an Alarm method
// gets [ErrState], except in the constructor (semantics 13.1, 13.2).
//
// The alarm is durable: it survives hibernation and restarts, and one that was
// missed while the process was down runs when the class is registered again.
func (a *accessor) SetAlarm(ctx context.Context, at time.Time) error {
	t, err := a.reader(ctx)
	if err != nil {
		return err
	}
	if at.UnixMilli() <= 0 {
		return fmt.Errorf("%w: alarm time %v", ErrInvalid, at)
	}
	return wrap(t.SetAlarm(at))
}

// Alarm is when the alarm is due, ok is false if none is set. While the handler
// runs that is only a new one; between retries it is the original time
// (semantics 13.3).
func (a *accessor) Alarm(ctx context.Context) (at time.Time, ok bool, err error) {
	t, err := a.reader(ctx)
	if err != nil {
		return time.Time{}, false, err
	}
	at, ok, err = t.Alarm()
	return at, ok, wrap(err)
}

// DeleteAlarm deletes the alarm. Called by its handler, a failure of that handler
// is not tried again (semantics 13.6).
func (a *accessor) DeleteAlarm(ctx context.Context) error {
	t, err := a.reader(ctx)
	if err != nil {
		return err
	}
	return wrap(t.DeleteAlarm())
}

// Transaction runs f with the turn held, and undoes what f wrote - also through
// plain Storage calls - if it returns an error or panics. It returns f's error.
// Messages sent in f are not taken back (semantics 12.10 to 12.15). Transactions
// nest. ctx of f is that of the turn. In a goroutine of the handler's own that is still in f
// when the handler returns, what f wrote is undone and the error is [ErrOutsideTurn].
func (s *Storage) Transaction(ctx context.Context, f func(ctx context.Context, tx *Txn) error) error {
	t, err := s.reader(ctx)
	if err != nil {
		return err
	}
	return t.Pin(func() error {
		depth, err := t.Begin()
		if err != nil {
			return err
		}
		tx := &Txn{accessor: accessor{state: s.state}, depth: depth}
		tx.txn = tx
		done := false
		defer func() {
			tx.over = true
			if !done {
				_ = t.End(depth, false) // f's error or panic says more
			}
		}()
		if err := f(ctx, tx); err != nil {
			return err
		}
		done = true
		if tx.rolled {
			return nil
		}
		return t.End(depth, true)
	})
}

// Rollback undoes what was written since the transaction began. Further calls of
// tx are [ErrTxnDone], a second Rollback does nothing. Transaction still returns
// what its function returns (semantics 12.11).
func (tx *Txn) Rollback(ctx context.Context) error {
	if tx.over {
		return ErrTxnDone
	}
	if tx.rolled {
		return nil
	}
	t, err := tx.reader(ctx)
	if err != nil {
		return err
	}
	tx.rolled = true
	return t.Use(func() error { t.Activation().Store.Rollback(tx.depth); return nil })
}

var (
	_ Writer = (*Storage)(nil)
	_ Writer = (*Txn)(nil)
)
