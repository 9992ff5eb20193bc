package store

import (
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// pebbleCursor is a Cursor on a Pebble iterator. It fetches some rows at once
// and copies them: the engine's Close frees what Pebble returned, at any time.
type pebbleCursor struct {
	e       *pebbleEngine
	reverse bool

	// Owned by the cursor's goroutine.
	*rowBuffer     // nil once closed
	next       int // in ends, of the row to come
	start      int // in rows, of that row
	key, value []byte
	fetch      int // rows to fetch next time
	err        error

	shutdown atomic.Bool // set by the engine's Close

	mu      sync.Mutex       // held across a fetch, so that the engine's Close can end it
	it      *pebble.Iterator // nil once closed
	started bool
}

// rowBuffer holds fetched rows. The engine keeps some for later cursors.
type rowBuffer struct {
	rows []byte   // key and value of each one after the other
	ends []rowEnd // in rows
}

// rowEnd is where a row's key and its value end.
type rowEnd struct{ key, value int }

// A fetch starts small, for lists with a limit, and grows to these.
const (
	minFetch      = 4
	maxFetch      = 32
	maxFetchBytes = 4 << 10
	maxKeptBytes  = 64 << 10 // of a rowBuffer that is kept
)

func (e *pebbleEngine) Iterate(id ID, b Bounds) (Cursor, error) {
	return e.guardedIterate(&id, b)
}

func (e *pebbleEngine) guardedIterate(id *ID, b Bounds) (_ Cursor, err error) {
	if err := e.enter(); err != nil {
		return nil, err
	}
	defer e.finish(&err)
	keys := make([]byte, 0, 2*keyOffset+len(b.Lower)+len(b.Upper))
	keys = append(appendObjectKey(keys, id, kindKey), b.Lower...)
	lower := keys[:len(keys):len(keys)]
	if b.NoUpper {
		keys = appendObjectKey(keys, id, kindEnd)
	} else {
		keys = append(appendObjectKey(keys, id, kindKey), b.Upper...)
	}
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: keys[len(lower):]})
	if err != nil {
		return nil, err
	}
	buffer, _ := e.buffers.Get().(*rowBuffer)
	if buffer == nil {
		buffer = &rowBuffer{}
	}
	c := &pebbleCursor{e: e, reverse: b.Reverse, rowBuffer: buffer, fetch: minFetch, it: it}
	c.rows, c.ends = c.rows[:0], c.ends[:0]
	e.mu.Lock()
	e.cursors[c] = true
	e.mu.Unlock()
	return c, nil
}

func (c *pebbleCursor) Next() bool {
	if c.rowBuffer == nil || c.err != nil {
		return false
	}
	if c.shutdown.Load() {
		c.err = errClosed
		return false
	}
	if c.next == len(c.ends) {
		c.mu.Lock()
		c.guardedFetch()
		c.mu.Unlock()
		if c.err != nil || len(c.ends) == 0 {
			return false
		}
	}
	start, end := c.start, c.ends[c.next]
	c.key, c.value = c.rows[start:end.key:end.key], c.rows[end.key:end.value:end.value]
	c.start = end.value
	c.next++
	return true
}

// guardedFetch replaces the rows by the next ones. It needs no
// pebbleEngine.enter: closing the engine takes mu first.
func (c *pebbleCursor) guardedFetch() {
	c.rows, c.ends, c.next, c.start = c.rows[:0], c.ends[:0], 0, 0
	if c.it == nil {
		if c.shutdown.Load() {
			c.err = errClosed
		}
		return
	}
	if c.e.isDead() {
		c.err = c.e.Err()
		return
	}
	defer func() {
		if r := recover(); r != nil && r != any(fatalRead{}) {
			panic(r)
		}
		if c.e.isDead() {
			c.err = c.e.Err()
		}
	}()
	it, rows, ends := c.it, c.rows, c.ends
	for len(ends) < c.fetch && len(rows) < maxFetchBytes && c.step() {
		rows = append(rows, it.Key()[keyOffset:]...)
		key := len(rows)
		v, err := it.ValueAndErr()
		if err != nil {
			c.err = readError(err)
			return
		}
		rows = append(rows, v...)
		ends = append(ends, rowEnd{key, len(rows)})
	}
	if err := it.Error(); err != nil {
		c.err = readError(err)
	}
	c.rows, c.ends = rows, ends
	c.fetch = min(4*c.fetch, maxFetch)
}

func (c *pebbleCursor) step() bool {
	switch {
	case !c.started && c.reverse:
		c.started = true
		return c.it.Last()
	case !c.started:
		c.started = true
		return c.it.First()
	case !c.it.Valid(): // the end, seen before
		return false
	case c.reverse:
		return c.it.Prev()
	default:
		return c.it.Next()
	}
}

func (c *pebbleCursor) Key() []byte   { return c.key }
func (c *pebbleCursor) Value() []byte { return c.value }

func (c *pebbleCursor) Err() error { return c.err }

func (c *pebbleCursor) Close() error {
	c.shut()
	if b := c.rowBuffer; b != nil {
		c.rowBuffer = nil
		if cap(b.rows) <= maxKeptBytes {
			c.e.buffers.Put(b)
		}
	}
	return nil
}

// shut closes the iterator.
func (c *pebbleCursor) shut() {
	c.mu.Lock()
	it := c.it
	c.it = nil
	if it != nil && !c.e.isDead() {
		_ = it.Close() // repeats an error that Err has told
	}
	c.mu.Unlock()
	if it != nil {
		c.e.mu.Lock()
		delete(c.e.cursors, c)
		c.e.mu.Unlock()
	}
}
