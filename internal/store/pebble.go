package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hibernate-go/hibernate/internal/mutation"
)

// Sizes of Pebble, settable in [Config].
const (
	defaultCacheSize    = 64 << 20
	defaultMemTableSize = 16 << 20
	defaultOpenFiles    = 500

	memTables     = 4       // full ones that may wait to be flushed before writes stall
	maxCommit     = 8 << 20 // bytes of one commit
	maxKey        = 64 << 10
	maxClass      = 255
	maxName       = 4 << 10
	retainedBatch = 1 << 20
)

// formatMajor is what this release writes. Raising it keeps older releases out
// of the directory, so it is raised alone and on purpose.
const formatMajor = pebble.FormatTableFormatV6

var pebbleLimits = Limits{Class: maxClass, Name: maxName, Key: maxKey, Commit: maxCommit}

// pebbleEngine is the Engine on Pebble.
//
// Pebble is written by the goroutine that calls Commit only, and by none once
// the grave is occupied: whoever waits for Pebble waits for that too.
type pebbleEngine struct {
	dir   string
	db    *pebble.DB
	g     *grave
	log   *slog.Logger
	epoch uint64
	fs    *graveFS
	mem   *vfs.MemFS // the file system of a store in memory, else nil

	copies atomic.Uint64  // snapshots made of mem
	reads  sync.WaitGroup // reads of Pebble under way
	useMu  sync.Mutex     // guards closed, and reads.Add against it
	closed bool

	buffers sync.Pool // of *rowBuffer

	mu      sync.Mutex             // guards the following
	open    map[ID]*openHeader     // what Commit checks against
	cursors map[*pebbleCursor]bool // closed by Close

	// writing is held, by a token in it, by whoever writes the log or needs it to
	// stand still. Its holder may park for good, so that waiting watches g.dead.
	writing chan struct{}

	rows rowSet // of Commit; empty between its calls
}

// openHeader is the engine's own copy of the header of an open object.
type openHeader struct {
	Header
	refs int
}

// openPebble opens or creates the store in cfg.Dir and raises its epoch.
func openPebble(cfg *Config) (*pebbleEngine, error) {
	e := &pebbleEngine{
		writing: make(chan struct{}, 1),
		dir:     cfg.Dir,
		g:       newGrave(),
		log:     cfg.Logger,
		open:    make(map[ID]*openHeader),
		cursors: make(map[*pebbleCursor]bool),
	}
	base := cfg.FS
	switch {
	case base != nil:
	case cfg.Dir == "":
		e.dir, e.mem = "/store", vfs.NewMem()
		base = e.mem
	default:
		// The lock is by name: one directory must have one.
		dir, err := filepath.Abs(cfg.Dir)
		if err == nil {
			err = os.MkdirAll(dir, 0o700) // what users store is nobody else's to read
		}
		if err == nil {
			dir, err = filepath.EvalSymlinks(dir)
		}
		if err != nil {
			return nil, fmt.Errorf("open storage directory %q: %w", cfg.Dir, err)
		}
		e.dir, base = dir, vfs.Default
	}
	e.dir = base.PathJoin(e.dir) // clean, as the grave compares names
	e.fs = &graveFS{FS: base, dir: e.dir, g: e.g, disk: e.mem == nil}

	opened := make(chan error, 1)
	go func() { opened <- e.openDB(cfg) }()
	var err error
	select {
	case err = <-opened:
	case <-e.g.dead:
	}
	if cause := e.g.cause(); cause != nil {
		e.g.unlock()
		err = cause
	}
	if err != nil {
		return nil, fmt.Errorf("open storage directory %q: %w", cfg.Dir, openCause(err))
	}
	return e, nil
}

// openCause adds the sentinel to an error of opening.
func openCause(err error) error {
	switch {
	case errors.Is(err, ErrLocked):
		return fmt.Errorf("%w, by this process or another: %w", ErrLocked, err)
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrFormat):
		return err
	case pebble.IsCorruptionError(err):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case strings.Contains(err.Error(), "format major version"):
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return err
}

// openDB runs on a goroutine of its own, which parks if a fatal write fails.
func (e *pebbleEngine) openDB(cfg *Config) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: pebble panicked: %v", ErrCorrupt, r)
		}
	}()
	cache := pebble.NewCache(cfg.CacheSize)
	defer cache.Unref()
	db, err := pebble.Open(e.dir, pebbleOptions(cfg, e.fs, cache))
	if err != nil {
		e.g.closeDirs()
		return err
	}
	if err := e.raise(db); err != nil {
		return errors.Join(err, db.Close())
	}
	e.db = db
	return nil
}

// pebbleOptions sets what is memory or format explicitly.
//
// Memory: the cache, up to memTables+1 memtables beside it, and for each open
// table file a descriptor and its index, which lives in the cache.
func pebbleOptions(cfg *Config, fs *graveFS, cache *pebble.Cache) *pebble.Options {
	o := &pebble.Options{
		Cache:                       cache,
		Comparer:                    pebble.DefaultComparer,
		FS:                          fs,
		FormatMajorVersion:          formatMajor,
		MemTableSize:                uint64(cfg.MemTableSize),
		MemTableStopWritesThreshold: memTables,
		MaxOpenFiles:                cfg.OpenFiles,
		L0CompactionThreshold:       2,
		L0StopWritesThreshold:       64,
		LBaseMaxBytes:               64 << 20,
		MaxManifestFileSize:         16 << 20,
		Logger:                      &pebbleLogger{log: cfg.Logger, g: fs.g},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) {
				cfg.Logger.Error("storage: background work failed, will be tried again", "err", err)
			},
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				cfg.Logger.Error("storage: corrupt file", "info", i.String())
			},
			WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
				cfg.Logger.Warn("storage: writes wait for the disk", "reason", i.Reason)
			},
		},
	}
	// BenchmarkTables: blocks of 16 KiB read a random key, a list and a waking
	// object faster than 4 and 32 KiB. The filter (of whole keys) made no
	// difference with all tables in the bottom level, where Pebble does not ask
	// it; it spares the levels above.
	for i := range o.Levels {
		o.Levels[i].BlockSize = 16 << 10
		o.Levels[i].IndexBlockSize = 64 << 10
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return o
}

// raise checks the format, or writes it into an empty directory, and writes the
// epoch of this opening.
func (e *pebbleEngine) raise(db *pebble.DB) error {
	b := db.NewBatch()
	defer b.Close()
	format, closer, err := db.Get(metaKey("format"))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		if empty, err := isEmpty(db); err != nil {
			return err
		} else if !empty {
			return fmt.Errorf("a Pebble database of another program: %w", ErrFormat)
		}
		if err := b.Set(metaKey("format"), appendFormat(nil), nil); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		err := checkFormat(format)
		if err := errors.Join(err, closer.Close()); err != nil {
			return err
		}
	}

	epoch, closer, err := db.Get(metaKey("epoch"))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
	case err != nil:
		return err
	case len(epoch) != 8:
		return errors.Join(fmt.Errorf("epoch %x: %w", epoch, ErrCorrupt), closer.Close())
	default:
		e.epoch = binary.BigEndian.Uint64(epoch)
		if err := closer.Close(); err != nil {
			return err
		}
	}
	e.epoch++
	if err := b.Set(metaKey("epoch"), binary.BigEndian.AppendUint64(nil, e.epoch), nil); err != nil {
		return err
	}
	return db.Apply(b, pebble.Sync)
}

func isEmpty(db *pebble.DB) (bool, error) {
	it, err := db.NewIter(nil)
	if err != nil {
		return false, err
	}
	empty := !it.First()
	return empty, errors.Join(it.Error(), it.Close())
}

func (e *pebbleEngine) Epoch() uint64         { return e.epoch }
func (e *pebbleEngine) Limits() Limits        { return pebbleLimits }
func (e *pebbleEngine) Dead() <-chan struct{} { return e.g.dead }

func (e *pebbleEngine) Err() error {
	if err := e.g.cause(); err != nil {
		return fmt.Errorf("storage failed: %w: %w", ErrUnavailable, err)
	}
	return nil
}

// isDead is Err != nil without the lock.
func (e *pebbleEngine) isDead() bool {
	select {
	case <-e.g.dead:
		return true
	default:
		return false
	}
}

var errClosed = fmt.Errorf("storage is closed: %w", ErrUnavailable)

// enter begins a read of Pebble. The caller ends it with finish.
func (e *pebbleEngine) enter() error {
	if e.isDead() {
		return e.Err()
	}
	e.useMu.Lock()
	defer e.useMu.Unlock()
	if e.closed {
		return errClosed
	}
	e.reads.Add(1)
	return nil
}

// finish ends a read. It is deferred: it recovers what pebbleLogger.Fatalf
// throws at readers, and lets no read of a dead instance succeed.
func (e *pebbleEngine) finish(err *error) {
	r := recover()
	e.reads.Done()
	if r != nil && r != any(fatalRead{}) {
		panic(r)
	}
	if e.isDead() {
		*err = e.Err()
	} else if *err != nil && !errors.Is(*err, ErrUnavailable) {
		*err = readError(*err)
	}
}

// readError adds the contract's error to one of Pebble's.
func readError(err error) error {
	if pebble.IsCorruptionError(err) && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("read storage: %w: %w: %w", ErrUnavailable, ErrCorrupt, err)
	}
	return fmt.Errorf("read storage: %w: %w", ErrUnavailable, err)
}

func (e *pebbleEngine) Open(id ID, epoch uint64) (Header, error) {
	e.mu.Lock()
	if o := e.open[id]; o != nil {
		defer e.mu.Unlock()
		if o.Epoch > epoch {
			return Header{}, ErrFenced
		}
		o.refs++
		return o.Header, nil
	}
	e.mu.Unlock()

	h, err := e.guardedHead(&id)
	if err != nil {
		return Header{}, err
	}
	if h.Epoch > epoch {
		return Header{}, ErrFenced
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	o := e.open[id]
	if o == nil {
		// Nobody had it open while it was read, and only who has writes it.
		o = &openHeader{Header: h}
		e.open[id] = o
	}
	o.refs++
	return o.Header, nil
}

func (e *pebbleEngine) Release(id ID) { e.release([]ID{id}) }

func (e *pebbleEngine) release(ids []ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		o := e.open[id]
		if o == nil {
			panic("BUG: store: object released more often than opened")
		}
		if o.refs--; o.refs == 0 {
			delete(e.open, id)
		}
	}
}

func (e *pebbleEngine) guardedHead(id *ID) (h Header, err error) {
	if err := e.enter(); err != nil {
		return Header{}, err
	}
	defer e.finish(&err)
	return e.readHead(id)
}

// readHead reads a header between enter and finish.
func (e *pebbleEngine) readHead(id *ID) (Header, error) {
	var buf [keyOffset]byte
	v, closer, err := e.db.Get(appendObjectKey(buf[:0], id, kindHeader))
	if errors.Is(err, pebble.ErrNotFound) {
		return Header{}, nil
	}
	if err != nil {
		return Header{}, err
	}
	h, err := parseHeader(v)
	return h, errors.Join(err, closer.Close())
}

func (e *pebbleEngine) Get(id ID, key string) ([]byte, bool, error) {
	return e.guardedGet(&id, key, true)
}

func (e *pebbleEngine) Has(id ID, key string) (bool, error) {
	_, ok, err := e.guardedGet(&id, key, false)
	return ok, err
}

func (e *pebbleEngine) guardedGet(id *ID, key string, want bool) (value []byte, ok bool, err error) {
	if err := e.enter(); err != nil {
		return nil, false, err
	}
	defer e.finish(&err)
	var buf [keyOffset + 64]byte
	k := appendObjectKey(buf[:0], id, kindKey)
	v, closer, err := e.db.Get(append(k, key...))
	if err == pebble.ErrNotFound {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if want {
		value = append(make([]byte, 0, len(v)), v...)
	}
	return value, true, closer.Close()
}

// Commit writes one batch and syncs it. It is the only writer.
func (e *pebbleEngine) Commit(commits []Commit) []error {
	answers := make([]error, len(commits))
	if e.isDead() {
		return failAll(answers, e.Err())
	}
	b := e.db.NewBatch()
	rows := &e.rows
	defer func() {
		e.release(rows.opened)
		rows.reset()
	}()
	for i := range commits {
		answers[i] = e.check(rows, &commits[i])
	}
	if err := rows.appendTo(b); err != nil {
		e.g.bury(fmt.Errorf("build a batch: %w", err))
		return failAll(answers, e.Err())
	}
	if !b.Empty() {
		select {
		case e.writing <- struct{}{}:
		case <-e.g.dead:
			return failAll(answers, e.Err())
		}
		err := e.db.Apply(b, pebble.Sync)
		<-e.writing
		if err != nil {
			// Unknown what of it is there: as bad as a failed sync.
			e.g.bury(fmt.Errorf("apply a batch: %w", err))
		}
	}
	// If Fatalf was called meanwhile, Apply's nil means nothing.
	if e.isDead() {
		return failAll(answers, e.Err())
	}
	_ = b.Close() // gives memory back, nothing else
	return answers
}

func failAll(answers []error, err error) []error {
	for i := range answers {
		answers[i] = err
	}
	return answers
}

// check checks a commit and adds it to rows whole, or not at all. It moves the open
// header on, as later commits build on it.
func (e *pebbleEngine) check(rows *rowSet, c *Commit) error {
	if err := c.check(pebbleLimits); err != nil {
		return err
	}
	if c.Epoch != e.epoch {
		return ErrFenced
	}
	e.mu.Lock()
	o := e.open[c.ID]
	if o == nil {
		e.mu.Unlock()
		if _, err := e.Open(c.ID, c.Epoch); err != nil {
			return err
		}
		e.mu.Lock()
		o = e.open[c.ID]
	} else {
		o.refs++
	}
	rows.opened = append(rows.opened, c.ID)
	prev := o.Header
	if prev.Epoch > c.Epoch || prev.Seq != c.Seq && !mutation.Seq {
		e.mu.Unlock()
		return ErrFenced
	}
	next := c.Head(prev)
	o.Header = next
	e.mu.Unlock()
	rows.add(c, prev, next)
	return nil
}

// A rowSet is what a group of commits writes. Commits of one object become one:
// the group is whole or absent, so nobody can see what lies between them.
type rowSet struct {
	objects []objectRows
	index   map[ID]int
	opened  []ID // kept open until the batch is applied: two commits of one object build on each other
}

// reset empties r, and keeps memory for the next group.
func (r *rowSet) reset() {
	if cap(r.objects) > maxGroup {
		*r = rowSet{}
	}
	clear(r.objects)
	clear(r.index)
	r.objects, r.opened = r.objects[:0], r.opened[:0]
}

type objectRows struct {
	Commit
	prev, next Header
	merged     bool // Writes is a map of our own
}

func (r *rowSet) add(c *Commit, prev, next Header) {
	i, ok := r.index[c.ID]
	if !ok {
		if r.index == nil {
			r.index = map[ID]int{}
		}
		r.index[c.ID] = len(r.objects)
		r.objects = append(r.objects, objectRows{Commit: *c, prev: prev, next: next})
		return
	}
	o := &r.objects[i]
	o.next = next
	switch {
	case c.Clear:
		o.Clear, o.Writes, o.merged = true, c.Writes, false
	case len(c.Writes) > 0:
		if !o.merged {
			o.Writes, o.merged = maps.Clone(o.Writes), true
			if o.Writes == nil {
				o.Writes = map[string][]byte{}
			}
		}
		maps.Copy(o.Writes, c.Writes)
	}
}

func (r *rowSet) appendTo(b *pebble.Batch) error {
	for i := range r.objects {
		o := &r.objects[i]
		if err := appendCommit(b, &o.Commit, o.prev, o.next); err != nil {
			return err
		}
	}
	return nil
}

// appendCommit adds the rows of c, its header and what the indexes need.
func appendCommit(b *pebble.Batch, c *Commit, prev, next Header) error {
	var buf [512]byte
	var errs []error
	add := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if c.Clear && prev.Seq != 0 {
		from := appendObjectKey(buf[:0], &c.ID, kindKey)
		add(b.DeleteRange(from, appendObjectKey(nil, &c.ID, kindEnd), nil))
	}
	k := appendObjectKey(buf[:0], &c.ID, kindKey)
	for key, v := range c.Writes {
		k = append(k[:keyOffset], key...)
		switch {
		case v != nil:
			add(b.Set(k, v, nil))
		case !c.Clear:
			add(b.Delete(k, nil))
		}
	}
	k = appendObjectKey(k[:0], &c.ID, kindHeader)
	if next.Exists {
		h := appendHeader(k[len(k):], &next)
		add(b.Set(k, h, nil))
	} else if prev.Exists {
		add(b.Delete(k, nil))
	}
	switch k = k[:0]; {
	case next.Exists && !prev.Exists:
		add(b.Set(appendClassKey(k, next.Class, &c.ID), nil, nil))
	case prev.Exists && !next.Exists:
		add(b.Delete(appendClassKey(k, prev.Class, &c.ID), nil))
	}
	if was, is := prev.Alarm.Due(), next.Alarm.Due(); was != is {
		if was != 0 {
			add(b.Delete(appendAlarmKey(k[:0], was, &c.ID), nil))
		}
		if is != 0 {
			add(b.Set(appendAlarmKey(k[:0], is, &c.ID), []byte(next.Class), nil))
		}
	}
	return errors.Join(errs...)
}

func (e *pebbleEngine) Due(ctx context.Context, after Due, before int64, limit int) ([]Due, error) {
	return e.guardedDue(ctx, after, before, limit)
}

func (e *pebbleEngine) guardedDue(ctx context.Context, after Due, before int64, limit int) (due []Due, err error) {
	if before < after.Due || limit <= 0 {
		return nil, nil
	}
	if err := e.enter(); err != nil {
		return nil, err
	}
	defer e.finish(&err)
	upper := []byte{tableAlarm + 1}
	if before < 1<<63-1 {
		upper = appendAlarmKey(nil, before+1, &ID{})
	}
	it, err := e.db.NewIter(&pebble.IterOptions{
		LowerBound: append(appendAlarmKey(nil, after.Due, &after.ID), 0), // behind after
		UpperBound: upper,
	})
	if err != nil {
		return nil, err
	}
	for ok := it.First(); ok && len(due) < limit && ctx.Err() == nil; ok = it.Next() {
		at, id, err := parseAlarmKey(it.Key())
		if err != nil {
			return nil, errors.Join(err, it.Close())
		}
		class, err := it.ValueAndErr()
		if err != nil {
			return nil, errors.Join(err, it.Close())
		}
		due = append(due, Due{ID: id, Class: string(class), Due: at})
	}
	return due, errors.Join(it.Error(), it.Close(), ctx.Err())
}

func (e *pebbleEngine) Class(ctx context.Context, class string, after ID, limit int) ([]Info, error) {
	if len(class) > maxClass {
		return nil, nil
	}
	return e.guardedClass(ctx, class, after, limit)
}

func (e *pebbleEngine) guardedClass(ctx context.Context, class string, after ID, limit int) (infos []Info, err error) {
	if err := e.enter(); err != nil {
		return nil, err
	}
	defer e.finish(&err)
	lower := append(appendClassKey(nil, class, &after), 0)
	var last ID
	for i := range last {
		last[i] = 0xff
	}
	prefix := len(lower) - len(after) - 1
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: append(appendClassKey(nil, class, &last), 0)})
	if err != nil {
		return nil, err
	}
	keys, err := e.db.NewIter(&pebble.IterOptions{LowerBound: []byte{tableObject}, UpperBound: []byte{tableObject + 1}})
	if err != nil {
		return nil, errors.Join(err, it.Close())
	}
	for ok := it.First(); ok && len(infos) < limit && ctx.Err() == nil; ok = it.Next() {
		k := it.Key()
		if len(k) != prefix+len(after) {
			return nil, errors.Join(fmt.Errorf("class index key %x: %w", k, ErrCorrupt), it.Close(), keys.Close())
		}
		var id ID
		copy(id[:], k[prefix:])
		h, err := e.readHead(&id)
		if err != nil {
			return nil, errors.Join(err, it.Close(), keys.Close())
		}
		if h.Exists && (h.Alarm != Alarm{} || hasKeys(keys, &id)) {
			infos = append(infos, Info{ID: id, Name: h.Name})
		}
	}
	return infos, errors.Join(it.Error(), keys.Error(), it.Close(), keys.Close(), ctx.Err())
}

func hasKeys(it *pebble.Iterator, id *ID) bool {
	var buf [keyOffset]byte
	k := appendObjectKey(buf[:0], id, kindKey)
	return it.SeekGE(k) && len(it.Key()) >= len(k) && string(it.Key()[:len(k)]) == string(k)
}

// Snapshot copies what is committed. In a store in memory dir is a directory
// of the real file system all the same.
func (e *pebbleEngine) Snapshot(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	target := dir
	if e.mem != nil {
		if _, err := os.Stat(dir); err == nil {
			return fmt.Errorf("snapshot into %q: %w", dir, os.ErrExist)
		}
		target = fmt.Sprint("/snapshot-", e.copies.Add(1))
	} else {
		abs, err := filepath.Abs(dir)
		if err == nil && e.dir == abs {
			err = os.ErrExist
		}
		if err != nil {
			return fmt.Errorf("snapshot into %q: %w", dir, err)
		}
		if strings.HasPrefix(abs, e.dir+string(filepath.Separator)) {
			return fmt.Errorf("snapshot into %q: is inside the storage directory", dir)
		}
	}
	done := make(chan error, 1)
	go func() { done <- e.guardedSnapshot(target, dir) }()
	var err error
	select {
	case err = <-done:
	case <-e.g.dead:
		err = e.Err()
	}
	if err != nil {
		return fmt.Errorf("snapshot into %q: %w", dir, err)
	}
	return nil
}

// guardedSnapshot runs on a goroutine of its own, which parks if the engine dies.
func (e *pebbleEngine) guardedSnapshot(target, dir string) (err error) {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.reads.Done()
	if _, err := e.fs.Stat(target); err == nil {
		return os.ErrExist
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	defer func() {
		// Pebble panics when the directory of the copy cannot be synced.
		if r := recover(); r != nil {
			err = fmt.Errorf("pebble panicked: %v", r)
		}
		if err != nil {
			_ = e.fs.RemoveAll(target) // half a copy; err says that there is none
		}
	}()
	// Pebble copies the log byte by byte. Of one that is being written, the copy
	// can lack a piece and have the next, which is corruption when it is opened.
	select {
	case e.writing <- struct{}{}:
	case <-e.g.dead:
		return e.Err()
	}
	err = func() error {
		defer func() { <-e.writing }()
		return e.db.Checkpoint(target)
	}()
	if err != nil {
		return err
	}
	if e.mem == nil {
		return nil
	}
	ok, err := vfs.Clone(e.mem, vfs.Default, target, dir, vfs.CloneSync)
	if err == nil && !ok {
		err = os.ErrNotExist
	}
	return errors.Join(err, e.mem.RemoveAll(target))
}

// Close gives the directory back. A cursor still open is closed under its
// owner's feet, who then sees ErrUnavailable.
func (e *pebbleEngine) Close() error {
	closed := make(chan error, 1)
	go func() { closed <- e.closeDB() }()
	select {
	case err := <-closed:
		if err != nil {
			return fmt.Errorf("close storage directory %q: %w", e.dir, err)
		}
		return nil
	case <-e.g.dead:
		e.g.unlock()
		return e.Err()
	}
}

// closeDB runs on a goroutine of its own, which parks if the engine dies.
func (e *pebbleEngine) closeDB() error {
	e.useMu.Lock()
	was := e.closed
	e.closed = true
	e.useMu.Unlock()
	if was {
		return nil
	}
	e.reads.Wait()
	if e.isDead() {
		e.g.park()
	}
	e.mu.Lock()
	cursors := make([]*pebbleCursor, 0, len(e.cursors))
	for c := range e.cursors {
		cursors = append(cursors, c)
	}
	e.mu.Unlock()
	for _, c := range cursors {
		c.shutdown.Store(true)
		c.shut()
	}
	return e.db.Close()
}

// pebbleLogger passes Pebble's log on and turns its last words into a burial.
type pebbleLogger struct {
	log *slog.Logger
	g   *grave
}

func (l *pebbleLogger) Infof(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("pebble: " + fmt.Sprintf(format, args...))
	}
}

func (l *pebbleLogger) Errorf(format string, args ...any) {
	l.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

// fatalRead is thrown by Fatalf at a goroutine that reads.
type fatalRead struct{}

// Fatalf does not return, as Pebble expects. A goroutine that came in through
// one of our guarded reads is thrown out again to its caller; Pebble's own and
// the committer's park.
func (l *pebbleLogger) Fatalf(format string, args ...any) {
	l.g.bury(fmt.Errorf("pebble: "+format, args...))
	var pcs [64]uintptr
	for skip := 0; ; skip += len(pcs) {
		n := runtime.Callers(skip, pcs[:])
		frames := runtime.CallersFrames(pcs[:n])
		for {
			f, more := frames.Next()
			if strings.Contains(f.Function, "internal/store.(*pebble") && strings.Contains(f.Function, ").guarded") {
				panic(fatalRead{})
			}
			if !more {
				break
			}
		}
		if n < len(pcs) {
			break
		}
	}
	l.g.park()
}
