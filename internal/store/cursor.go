package store

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// pebbleCursor is a Cursor on a Pebble iterator.
type pebbleCursor struct {
	e       *pebbleEngine
	reverse bool

	mu      sync.Mutex       // held across a step, so that the engine's Close can end it
	it      *pebble.Iterator // nil once closed
	started bool
	key     []byte // copies: Close of the engine may free what Pebble returned
	value   []byte
	err     error
}

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
	c := &pebbleCursor{e: e, reverse: b.Reverse, it: it}
	e.mu.Lock()
	e.cursors[c] = true
	e.mu.Unlock()
	return c, nil
}

func (c *pebbleCursor) Next() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.guardedNext()
}

// guardedNext needs no pebbleEngine.enter: Close takes c.mu first.
func (c *pebbleCursor) guardedNext() (ok bool) {
	if c.it == nil {
		return false
	}
	if c.e.isDead() {
		c.err = c.e.Err()
		return false
	}
	defer func() {
		if r := recover(); r != nil && r != any(fatalRead{}) {
			panic(r)
		}
		if c.e.isDead() {
			ok, c.err = false, c.e.Err()
		}
	}()
	switch {
	case !c.started && c.reverse:
		ok = c.it.Last()
	case !c.started:
		ok = c.it.First()
	case c.reverse:
		ok = c.it.Prev()
	default:
		ok = c.it.Next()
	}
	c.started = true
	if ok {
		v, err := c.it.ValueAndErr()
		if err != nil {
			c.err, ok = readError(err), false
		}
		c.key = append(c.key[:0], c.it.Key()[keyOffset:]...)
		c.value = append(c.value[:0], v...)
	} else if err := c.it.Error(); err != nil {
		c.err = readError(err)
	}
	return ok
}

func (c *pebbleCursor) Key() []byte   { return c.key }
func (c *pebbleCursor) Value() []byte { return c.value }

func (c *pebbleCursor) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *pebbleCursor) Close() error {
	c.shut(nil)
	return nil
}

// shut closes the iterator and lets Err answer err from then on.
func (c *pebbleCursor) shut(err error) {
	c.mu.Lock()
	it := c.it
	c.it = nil
	if it != nil {
		if err != nil {
			c.err = err
		}
		if !c.e.isDead() {
			_ = it.Close() // repeats an error that Err has told
		}
	}
	c.mu.Unlock()
	if it != nil {
		c.e.mu.Lock()
		delete(c.e.cursors, c)
		c.e.mu.Unlock()
	}
}
