package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

var (
	// ErrSavepoint answers DeleteAll inside a savepoint (semantics 12.13).
	ErrSavepoint = errors.New("not possible inside a transaction")

	// ErrHandle answers the use of an Object after its Close.
	ErrHandle = errors.New("use of a closed storage handle")
)

// An entry is what all handles of one id share: the header as it will be, and
// the overlay of commits that are not durable yet. It exists while there is a
// handle or a pending commit.
type entry struct {
	id      ID
	handles int // guarded by Store.mu

	mu      sync.Mutex    // guards the following, and the handles' write sets
	loading chan struct{} // closed when the header has been read or not; nil if nobody reads it
	loaded  bool          // the engine has the object open
	gone    bool          // nobody finds this entry any more
	poison  error         // answer to every further commit: an earlier one failed
	head    Header        // after all pending commits
	pending int           // commits on their way
	retired uint64        // commits that have left the overlay
	cleared uint64        // Seq of the last pending commit that cleared, 0 = none
	overlay map[string]pendingWrite
	cache   cache // of what has left the overlay
}

// A cache keeps small values that were written lately, so that an object that reads
// what it has written need not ask the engine. Nobody but handles of the entry
// writes the object, so it is never stale. Its lock is the entry's.
type cache struct {
	values map[string][]byte // nil value = deleted; never changed
	bytes  int
}

// maxCache and maxCached are the bytes of one object's cache and of a value in it,
// keys and writeOverhead included.
const (
	maxCache  = 4 << 10
	maxCached = 1 << 10
)

func (c *cache) put(key string, value []byte) {
	c.drop(key)
	n := len(key) + len(value) + writeOverhead
	if n > maxCached {
		return
	}
	if c.bytes+n > maxCache {
		*c = cache{}
	}
	if c.values == nil {
		c.values = make(map[string][]byte)
	}
	c.values[key] = value
	c.bytes += n
}

func (c *cache) drop(key string) {
	if old, ok := c.values[key]; ok {
		c.bytes -= len(key) + len(old) + writeOverhead
		delete(c.values, key)
	}
}

// pendingWrite is the last pending write of a key.
type pendingWrite struct {
	value []byte // nil = deleted; never changed
	seq   uint64 // Header.Seq after its commit
}

// layer is a write set, or a savepoint on top of one.
type layer struct {
	clear  bool // everything below is deleted; only of the lowest layer
	alarm  *Alarm
	writes map[string][]byte // nil value = deleted
	bytes  int
}

func (l *layer) dirty() bool { return l.clear || l.alarm != nil || len(l.writes) > 0 }

func (l *layer) set(key string, value []byte) {
	if l.writes == nil {
		l.writes = make(map[string][]byte)
	}
	if old, ok := l.writes[key]; ok {
		l.bytes -= len(key) + len(old) + writeOverhead
	}
	l.writes[key] = value
	l.bytes += len(key) + len(value) + writeOverhead
}

// An Object is a handle on one object's storage: what one activation uses.
//
// It is opened without reading anything; the first call that needs the header
// reads it and may block. Writes gather in the handle's write set until Commit
// or Undo. Reads see the write set, then what is committed, durable or not.
//
// A handle expects to be the only one that commits. Its first use fixes the
// seq that its next commit expects; if another handle of the object commits
// after that, every further commit of this one is answered ErrFenced.
//
// Safe for concurrent use. No lock is held while the engine reads.
type Object struct {
	s     *Store
	e     *entry
	class string

	// Guarded by e.mu.
	touched atomic.Bool // something may have been written since the last Commit or Undo

	name   string // "" until known; the next commit writes it where the header has none
	bound  bool   // seq is set
	closed bool   // Close was called
	seq    uint64 // that the next commit expects
	base   layer  // written since the last Commit or Undo
	saves  []*layer
}

// Object returns a handle on an object. class and name are written into the
// header with its first commit; name "" means unknown, and a name that becomes
// known later is added then.
func (s *Store) Object(id ID, class, name string) *Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[id]
	if e == nil {
		e = &entry{id: id}
		s.entries[id] = e
	}
	e.handles++
	return &Object{s: s, e: e, class: class, name: name}
}

// SetName makes the object's name known to a handle that was opened without. A
// handle learns by itself the name that the header has, and so writes it again
// when the header was removed meanwhile.
func (o *Object) SetName(name string) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	o.setName(name)
}

// setName is SetName while e.mu is held.
func (o *Object) setName(name string) {
	if o.name == "" {
		o.name = name
	}
}

// Close ends the handle and drops its uncommitted writes. Commits under way go on.
func (o *Object) Close() {
	s, e := o.s, o.e
	s.mu.Lock()
	e.mu.Lock()
	release := false
	if !o.closed {
		o.closed, o.base, o.saves = true, layer{}, nil
		e.handles--
		release = s.dropLocked(e)
	}
	e.mu.Unlock()
	s.mu.Unlock()
	if release {
		s.eng.Release(e.id)
	}
}

// dropLocked forgets e if nobody needs it, and reports whether the engine must
// be told. The caller holds mu and e.mu.
func (s *Store) dropLocked(e *entry) (release bool) {
	if e.handles > 0 || e.pending > 0 || e.gone && !e.loaded {
		return false
	}
	s.unlistLocked(e)
	release, e.loaded = e.loaded, false
	return release
}

// unlistLocked makes e unknown to later handles. The caller holds mu and e.mu.
func (s *Store) unlistLocked(e *entry) {
	if !e.gone {
		e.gone = true
		delete(s.entries, e.id)
	}
}

// forget drops entries whose last pending commit was answered, and takes
// poisoned ones out of the way of later handles.
func (s *Store) forget(idle []*entry) {
	if len(idle) == 0 {
		return
	}
	var release []ID
	s.mu.Lock()
	for _, e := range idle {
		e.mu.Lock()
		if e.poison != nil {
			s.unlistLocked(e)
		}
		if s.dropLocked(e) {
			release = append(release, e.id)
		}
		e.mu.Unlock()
	}
	s.mu.Unlock()
	for _, id := range release {
		s.eng.Release(id)
	}
}

// retire takes an answered commit out of the overlay, and reports whether
// forget should look at the entry.
func (e *entry) retire(c *commit, err error) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	seq := c.Seq + 1
	for k := range c.Writes {
		if w, ok := e.overlay[k]; ok && w.seq == seq {
			delete(e.overlay, k)
			e.cache.put(k, w.value)
		}
	}
	if e.cleared == seq {
		e.cleared = 0
	}
	e.pending--
	e.retired++
	if err != nil {
		e.cache = cache{}
	}
	if err != nil && e.poison == nil {
		e.poison = err
	}
	return e.pending == 0 || e.poison != nil
}

// lock binds the handle to the object's header, reading it if need be, and
// returns with e.mu held unless it fails.
func (o *Object) lock() error {
	if err := o.s.over.Load(); err != nil {
		return *err
	}
	e := o.e
	e.mu.Lock()
	for !o.bound || !e.loaded {
		switch {
		case o.closed:
			e.mu.Unlock()
			return ErrHandle
		case e.loaded:
			o.bound, o.seq = true, e.head.Seq
			o.setName(e.head.Name)
		case e.loading != nil:
			loading := e.loading
			e.mu.Unlock()
			select {
			case <-loading:
			case <-o.s.dead:
				return o.s.Err()
			}
			e.mu.Lock()
		default:
			if err := o.load(); err != nil {
				return err
			}
		}
	}
	if o.closed {
		e.mu.Unlock()
		return ErrHandle
	}
	return nil
}

// load reads the header. The caller holds e.mu, which load releases meanwhile
// and for good if it fails.
func (o *Object) load() error {
	s, e := o.s, o.e
	if len(o.class) > s.limits.Class || len(o.name) > s.limits.Name {
		e.mu.Unlock()
		return fmt.Errorf("class of %d and name of %d bytes: %w", len(o.class), len(o.name), ErrTooLarge)
	}
	loading := make(chan struct{})
	e.loading = loading
	e.mu.Unlock()
	h, err := s.eng.Open(e.id, s.epoch)
	e.mu.Lock()
	e.loading = nil
	close(loading)
	if err == nil && e.gone {
		// The last handle was closed meanwhile.
		e.mu.Unlock()
		s.eng.Release(e.id)
		return ErrHandle
	}
	if err != nil {
		e.mu.Unlock()
		return err
	}
	e.head, e.loaded = h, true
	return nil
}

// Header returns the header as it will be once everything committed is
// durable, with the alarm of the current write set. Class and Name are the
// handle's where the header has none.
func (o *Object) Header() (Header, error) {
	if err := o.lock(); err != nil {
		return Header{}, err
	}
	defer o.e.mu.Unlock()
	h := o.e.head
	h.Alarm = o.alarmLocked()
	if h.Class == "" {
		h.Class = o.class
	}
	if h.Name == "" {
		h.Name = o.name
	}
	return h, nil
}

// top returns the layer that writes go to. The caller holds e.mu.
func (o *Object) top() *layer {
	if n := len(o.saves); n > 0 {
		return o.saves[n-1]
	}
	return &o.base
}

// find looks a key up in the write set and the overlay. known is false if the
// engine must be asked; then a nil value means nothing. The caller holds e.mu.
func (o *Object) find(key string) (value []byte, known bool) {
	for i := len(o.saves) - 1; i >= 0; i-- {
		if v, ok := o.saves[i].writes[key]; ok {
			return v, true
		}
	}
	if v, ok := o.base.writes[key]; ok || o.base.clear {
		return v, true
	}
	if w, ok := o.e.overlay[key]; ok {
		return w.value, true
	}
	if o.e.cleared != 0 {
		return nil, true
	}
	value, known = o.e.cache.values[key]
	return value, known
}

// Get returns the value of a key. The slice belongs to the caller.
func (o *Object) Get(key string) (value []byte, ok bool, err error) {
	if err := o.lock(); err != nil {
		return nil, false, err
	}
	v, known := o.find(key)
	o.e.mu.Unlock()
	if !known {
		return o.s.eng.Get(o.e.id, key)
	}
	if v == nil {
		return nil, false, nil
	}
	return append(make([]byte, 0, len(v)), v...), true, nil
}

// Put sets a key. It copies value.
func (o *Object) Put(key string, value []byte) error {
	if len(key) > o.s.limits.Key {
		return fmt.Errorf("key of %d bytes: %w", len(key), ErrTooLarge)
	}
	value = append(make([]byte, 0, len(value)), value...)
	if err := o.lock(); err != nil {
		return err
	}
	defer o.e.mu.Unlock()
	return o.set(key, value)
}

// set writes to the top layer if one commit can hold that. The caller holds e.mu.
func (o *Object) set(key string, value []byte) error {
	n := len(key) + len(value) + writeOverhead + o.base.bytes
	if old, ok := o.top().writes[key]; ok {
		n -= len(key) + len(old) + writeOverhead
	}
	for _, l := range o.saves {
		n += l.bytes
	}
	if n > o.s.limits.Commit {
		return &CommitSizeError{o.s.limits.Commit, n}
	}
	o.touched.Store(true)
	if l := o.top(); l.writes == nil {
		l.writes = spareWrites.Get().(map[string][]byte)
	}
	o.top().set(key, value)
	return nil
}

// spareWrites keeps the maps of write sets that were answered: for most turns the
// map is a quarter of what storing something allocates.
var spareWrites = sync.Pool{New: func() any { return make(map[string][]byte) }}

// maxSpareWrites is the size of a write set from which on its map is not kept.
const maxSpareWrites = 64

// recycle keeps the map of a commit that was answered.
func (c *commit) recycle() {
	if c.Writes != nil && len(c.Writes) <= maxSpareWrites {
		clear(c.Writes)
		spareWrites.Put(c.Writes)
	}
	c.Writes = nil
}

// Delete deletes keys and returns how many of them existed. It reads, and so blocks;
// only what it calls within for, once for each key or more, writes and does not block.
func (o *Object) Delete(within func(write func() error) error, keys ...string) (existed int, err error) {
	for _, key := range keys {
		if len(key) > o.s.limits.Key {
			continue
		}
		for done := false; !done; {
			retired, asked, exists, err := o.exists(key)
			if err != nil {
				return existed, err
			}
			err = within(func() error {
				if err := o.lock(); err != nil {
					return err
				}
				defer o.e.mu.Unlock()
				v, known := o.find(key)
				if !known && (!asked || retired != o.e.retired) {
					return nil // it has changed meanwhile: again
				}
				done = true
				if known && v == nil || !known && !exists {
					return nil
				}
				if err := o.set(key, nil); err != nil {
					return err
				}
				existed++
				return nil
			})
			if err != nil {
				return existed, err
			}
		}
	}
	return existed, nil
}

// exists asks the engine for a key that is not known otherwise. retired is the
// entry's from before.
func (o *Object) exists(key string) (retired uint64, asked, ok bool, err error) {
	if err := o.lock(); err != nil {
		return 0, false, false, err
	}
	_, known := o.find(key)
	retired = o.e.retired
	o.e.mu.Unlock()
	if known {
		return retired, false, false, nil
	}
	ok, err = o.s.eng.Has(o.e.id, key)
	return retired, true, ok, err
}

// DeleteAll deletes every key and the alarm. Writes after it are kept.
func (o *Object) DeleteAll() error {
	if err := o.lock(); err != nil {
		return err
	}
	defer o.e.mu.Unlock()
	if len(o.saves) > 0 {
		return ErrSavepoint
	}
	o.touched.Store(true)
	o.base = layer{clear: true, alarm: &Alarm{}}
	return nil
}

func (o *Object) alarmLocked() Alarm {
	for i := len(o.saves) - 1; i >= 0; i-- {
		if a := o.saves[i].alarm; a != nil {
			return *a
		}
	}
	if o.base.alarm != nil {
		return *o.base.alarm
	}
	return o.e.head.Alarm
}

// Alarm returns the alarm as the write set leaves it.
func (o *Object) Alarm() (Alarm, error) {
	if err := o.lock(); err != nil {
		return Alarm{}, err
	}
	defer o.e.mu.Unlock()
	return o.alarmLocked(), nil
}

// SetAlarm replaces the alarm.
func (o *Object) SetAlarm(a Alarm) error {
	if a.Next < 0 || a.Running < 0 || a.RetryAt < 0 {
		panic("BUG: store: negative alarm")
	}
	if err := o.lock(); err != nil {
		return err
	}
	defer o.e.mu.Unlock()
	o.touched.Store(true)
	o.top().alarm = &a
	return nil
}

// Begin opens a savepoint and returns its depth, which is at least 1.
func (o *Object) Begin() (depth int) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	o.saves = append(o.saves, &layer{})
	return len(o.saves)
}

// InSavepoint reports whether a savepoint is open, which keeps Commit away.
func (o *Object) InSavepoint() bool {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	return len(o.saves) > 0
}

// Release merges the savepoint, and those opened inside it, into the one below.
// After Undo it does nothing.
func (o *Object) Release(depth int) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	for len(o.saves) >= depth {
		top := o.top()
		o.saves = o.saves[:len(o.saves)-1]
		below := o.top()
		for k, v := range top.writes {
			below.set(k, v)
		}
		if top.alarm != nil {
			below.alarm = top.alarm
		}
	}
}

// Rollback drops the savepoint and those opened inside it. After Undo it does
// nothing.
func (o *Object) Rollback(depth int) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	if len(o.saves) >= depth {
		clear(o.saves[depth-1:])
		o.saves = o.saves[:depth-1]
	}
}

// Dirty reports whether there is something to commit.
func (o *Object) Dirty() bool {
	if !o.touched.Load() {
		return false
	}
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	if o.base.dirty() {
		return true
	}
	for _, l := range o.saves {
		if l.dirty() {
			return true
		}
	}
	return false
}

// Undo drops everything since the last Commit, savepoints included.
func (o *Object) Undo() {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	o.base, o.saves = layer{}, nil
	o.touched.Store(false)
}

// Commit hands the write set to the committer and returns at once. done, which
// may be nil, is called exactly once and in commit order for each object, on the
// one goroutine that answers, so it must neither block nor call Close: with nil once the commit and
// all before it are durable, else with ErrFenced or ErrUnavailable. Commit
// reports false, without a call, if there was nothing to commit.
//
// From then on this handle and later ones of the object read the writes. A
// commit that fails for another reason than the store's death takes all later
// ones with it; handles opened after its answer see what is on disk.
//
// All savepoints must be closed.
func (o *Object) Commit(done func(error)) bool {
	e := o.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(o.saves) > 0 {
		panic("BUG: store: commit inside a savepoint")
	}
	if !o.base.dirty() {
		return false
	}
	// Something was written, so the handle is bound and the header is loaded.
	c := &commit{
		Commit: Commit{
			ID: e.id, Epoch: o.s.epoch, Seq: o.seq,
			Class: o.class, Name: o.name, Alarm: o.alarmLocked(),
			Clear: o.base.clear, Writes: o.base.writes,
		},
		e:     e,
		bytes: o.base.bytes,
		done:  done,
	}
	o.base = layer{}
	o.touched.Store(false)
	switch {
	case e.poison != nil:
		c.doomed = e.poison
	case o.seq != e.head.Seq:
		c.doomed = ErrFenced
	default:
		e.push(c)
		o.seq = e.head.Seq
	}
	o.s.enqueue(c)
	return true
}

// push adds a commit to the overlay. The caller holds e.mu.
func (e *entry) push(c *commit) {
	e.head = c.Head(e.head)
	e.pending++
	if c.Clear {
		e.cleared = e.head.Seq
		clear(e.overlay)
		e.cache = cache{}
	}
	if e.overlay == nil {
		e.overlay = make(map[string]pendingWrite, len(c.Writes))
	}
	for k, v := range c.Writes {
		e.overlay[k] = pendingWrite{value: v, seq: e.head.Seq}
	}
}

// pendingWrites returns a copy of the write set over the overlay: what a list
// must lay over the engine's keys, and whether it hides all of them. The caller
// holds e.mu.
func (o *Object) pendingWrites(in func(key string) bool) (writes map[string][]byte, hides bool) {
	add := func(m map[string][]byte) {
		for k, v := range m {
			if in(k) {
				if writes == nil {
					writes = make(map[string][]byte)
				}
				writes[k] = v
			}
		}
	}
	hides = o.base.clear || o.e.cleared != 0
	if !o.base.clear {
		for k, w := range o.e.overlay {
			if in(k) {
				if writes == nil {
					writes = make(map[string][]byte)
				}
				writes[k] = w.value
			}
		}
	}
	add(o.base.writes)
	for _, l := range o.saves {
		add(l.writes)
	}
	return writes, hides
}
