package store

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
)

// memDisk is what outlives a memEngine.
type memDisk struct {
	mu      sync.Mutex // guards the following
	epoch   uint64
	objects map[ID]*memObject
}

// memObject is never changed, a commit replaces it.
type memObject struct {
	head Header
	keys map[string][]byte
}

// memEngine is the contract in its plainest form: the model of it.
type memEngine struct {
	disk  *memDisk
	epoch uint64
	dead  chan struct{}

	// Guarded by disk.mu.
	open   map[ID]*openHeader
	closed bool
}

func newMemEngine(d *memDisk) *memEngine {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.objects == nil {
		d.objects = make(map[ID]*memObject)
	}
	d.epoch++
	return &memEngine{disk: d, epoch: d.epoch, dead: make(chan struct{}), open: make(map[ID]*openHeader)}
}

func (e *memEngine) Epoch() uint64         { return e.epoch }
func (e *memEngine) Limits() Limits        { return pebbleLimits }
func (e *memEngine) Dead() <-chan struct{} { return e.dead }
func (e *memEngine) Err() error            { return nil }

func (e *memEngine) Close() error {
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	e.closed = true
	return nil
}

// object returns an object, an empty one if it is not there. The caller holds disk.mu.
func (e *memEngine) object(id ID) *memObject {
	if o := e.disk.objects[id]; o != nil {
		return o
	}
	return &memObject{}
}

func (e *memEngine) Open(id ID, epoch uint64) (Header, error) {
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	if e.closed {
		return Header{}, errClosed
	}
	o := e.open[id]
	if o == nil {
		o = &openHeader{Header: e.object(id).head}
	}
	if o.Epoch > epoch {
		return Header{}, ErrFenced
	}
	e.open[id] = o
	o.refs++
	return o.Header, nil
}

func (e *memEngine) Release(id ID) {
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	if e.open[id].refs--; e.open[id].refs == 0 {
		delete(e.open, id)
	}
}

func (e *memEngine) Get(id ID, key string) ([]byte, bool, error) {
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	if e.closed {
		return nil, false, errClosed
	}
	v, ok := e.object(id).keys[key]
	return slices.Clone(v), ok, nil
}

func (e *memEngine) Has(id ID, key string) (bool, error) {
	_, ok, err := e.Get(id, key)
	return ok, err
}

type memCursor struct {
	e      *memEngine
	keys   []string
	values map[string][]byte
	i      int
	err    error
}

func (e *memEngine) Iterate(id ID, b Bounds) (Cursor, error) {
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	c := &memCursor{e: e, values: e.object(id).keys, i: -1}
	for k := range c.values {
		if b.contains(k) {
			c.keys = append(c.keys, k)
		}
	}
	slices.Sort(c.keys)
	if b.Reverse {
		slices.Reverse(c.keys)
	}
	return c, nil
}

func (c *memCursor) Next() bool {
	c.e.disk.mu.Lock()
	defer c.e.disk.mu.Unlock()
	if c.e.closed {
		c.err = errClosed
		return false
	}
	c.i++
	return c.i < len(c.keys)
}

func (c *memCursor) Key() []byte   { return []byte(c.keys[c.i]) }
func (c *memCursor) Value() []byte { return c.values[c.keys[c.i]] }
func (c *memCursor) Err() error    { return c.err }
func (c *memCursor) Close() error  { c.keys = nil; return nil }

func (e *memEngine) Commit(commits []Commit) []error {
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	answers := make([]error, len(commits))
	for i := range commits {
		c := &commits[i]
		old := e.object(c.ID)
		prev := old.head
		open := e.open[c.ID]
		if open != nil {
			prev = open.Header
		}
		switch {
		case e.closed:
			answers[i] = errClosed
			continue
		case c.check(pebbleLimits) != nil:
			answers[i] = ErrTooLarge
			continue
		case c.Epoch != e.disk.epoch || prev.Epoch > c.Epoch || prev.Seq != c.Seq:
			answers[i] = ErrFenced
			continue
		}
		next := &memObject{head: c.Head(prev), keys: make(map[string][]byte)}
		if !c.Clear {
			maps.Copy(next.keys, old.keys)
		}
		for k, v := range c.Writes {
			if v == nil {
				delete(next.keys, k)
			} else {
				next.keys[k] = slices.Clone(v)
			}
		}
		if open != nil {
			open.Header = next.head
		}
		if delete(e.disk.objects, c.ID); next.head.Exists {
			e.disk.objects[c.ID] = next
		}
	}
	return answers
}

func (e *memEngine) Due(ctx context.Context, after Due, before int64, limit int) ([]Due, error) {
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	var due []Due
	order := func(a, b Due) int {
		return cmp.Or(cmp.Compare(a.Due, b.Due), strings.Compare(string(a.ID[:]), string(b.ID[:])))
	}
	for id, o := range e.disk.objects {
		d := Due{ID: id, Class: o.head.Class, Due: o.head.Alarm.Due()}
		if d.Due != 0 && d.Due <= before && order(d, after) > 0 {
			due = append(due, d)
		}
	}
	slices.SortFunc(due, order)
	return due[:min(len(due), max(limit, 0))], ctx.Err()
}

func (e *memEngine) Class(ctx context.Context, class string, after ID, limit int) ([]Info, error) {
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	var infos []Info
	for id, o := range e.disk.objects {
		if o.head.Class == class && string(id[:]) > string(after[:]) && (len(o.keys) > 0 || o.head.Alarm != Alarm{}) {
			infos = append(infos, Info{ID: id, Name: o.head.Name})
		}
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(string(a.ID[:]), string(b.ID[:])) })
	return infos[:min(len(infos), max(limit, 0))], ctx.Err()
}

func (e *memEngine) Snapshot(context.Context, string) error { return ErrUnavailable }
