package store

import (
	"errors"
	"iter"
	"slices"
	"strings"
)

// ErrListOptions answers list options that contradict each other (semantics 12.6).
var ErrListOptions = errors.New("start and startAfter exclude each other")

// ListOptions select and order keys (semantics 12.5). All bounds combine by
// intersection; nil means none.
type ListOptions struct {
	Start      *string // inclusive
	StartAfter *string // exclusive
	End        *string // exclusive
	Prefix     string  // "" = none
	Limit      int     // entries at most; 0 = no limit
	Reverse    bool    // from the top down; Limit then counts from there
}

// bounds returns the interval of the options; ok is false if it is empty.
func (opt *ListOptions) bounds() (b Bounds, ok bool) {
	b = Bounds{Lower: opt.Prefix, NoUpper: true, Reverse: opt.Reverse}
	if opt.Start != nil {
		b.Lower = max(b.Lower, *opt.Start)
	}
	if opt.StartAfter != nil {
		b.Lower = max(b.Lower, *opt.StartAfter+"\x00")
	}
	if end, ok := prefixEnd(opt.Prefix); ok {
		b.Upper, b.NoUpper = end, false
	}
	if opt.End != nil && (b.NoUpper || *opt.End < b.Upper) {
		b.Upper, b.NoUpper = *opt.End, false
	}
	return b, b.NoUpper || b.Lower < b.Upper
}

func (b *Bounds) contains(key string) bool {
	return key >= b.Lower && (b.NoUpper || key < b.Upper)
}

// A List walks over keys as they were when it was opened: neither later writes
// of its owner nor commits change it. It belongs to one goroutine and must be
// closed; reaching the end or an error closes it. Until then it pins what the
// engine could else discard.
type List struct {
	rows   Cursor // of the engine; nil when exhausted or hidden
	row    bool   // rows is at a row not yet returned
	writes []write
	left   int // entries that may follow; negative = any number

	reverse bool

	key   []byte
	value []byte
	err   error
}

// write is a key that the write set or the overlay knows.
type write struct {
	key   string
	value []byte // nil = deleted
}

// List opens a list.
func (o *Object) List(opt ListOptions) (*List, error) {
	if opt.Start != nil && opt.StartAfter != nil {
		return nil, ErrListOptions
	}
	l := &List{left: -1, reverse: opt.Reverse}
	if opt.Limit > 0 {
		l.left = opt.Limit
	}
	b, ok := opt.bounds()
	if err := o.lock(); err != nil {
		return nil, err
	}
	if !ok {
		o.e.mu.Unlock()
		return l, nil
	}
	// The engine's rows first, then what lies over them: a commit seen in both
	// does no harm, but none must leave the overlay in between.
	for {
		if _, hides := o.pendingWrites(func(string) bool { return false }); hides {
			break
		}
		retired := o.e.retired
		o.e.mu.Unlock()
		rows, err := o.s.eng.Iterate(o.e.id, b)
		if err != nil {
			return nil, err
		}
		if err := o.lock(); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		if retired == o.e.retired {
			l.rows = rows
			break
		}
		o.e.mu.Unlock()
		err = rows.Close()
		if lockErr := o.lock(); lockErr != nil {
			return nil, errors.Join(err, lockErr)
		}
		if err != nil {
			o.e.mu.Unlock()
			return nil, err
		}
	}
	writes, hides := o.pendingWrites(b.contains)
	o.e.mu.Unlock()
	if hides && l.rows != nil {
		// Cleared while the rows were opened.
		if err := l.closeRows(); err != nil {
			return nil, err
		}
	}
	l.writes = make([]write, 0, len(writes))
	for k, v := range writes {
		l.writes = append(l.writes, write{k, v})
	}
	slices.SortFunc(l.writes, func(a, b write) int {
		if opt.Reverse {
			a, b = b, a
		}
		return strings.Compare(a.key, b.key)
	})
	return l, nil
}

func (l *List) closeRows() error {
	rows := l.rows
	l.rows, l.row = nil, false
	if rows == nil {
		return nil
	}
	return rows.Close()
}

// Next moves to the next entry, to the first one when it is first called. It
// reports false at the end and after an error.
func (l *List) Next() bool {
	for l.left != 0 && l.err == nil {
		if l.rows != nil && !l.row {
			if l.row = l.rows.Next(); !l.row {
				l.err = l.rows.Err()
				_ = l.closeRows() // what matters is in l.err
				continue
			}
		}
		if l.take() {
			l.left--
			return true
		}
		if l.rows == nil && len(l.writes) == 0 {
			break
		}
	}
	l.left, l.key, l.value, l.writes = 0, nil, nil, nil
	_ = l.closeRows()
	return false
}

// take consumes whichever of row and write comes first, both if they are the
// same key, and reports whether that is an entry.
func (l *List) take() bool {
	if len(l.writes) == 0 {
		if !l.row {
			return false
		}
		l.key, l.value, l.row = l.rows.Key(), l.rows.Value(), false
		return true
	}
	w := l.writes[0]
	if l.row {
		switch k := l.rows.Key(); {
		case string(k) == w.key:
			l.row = false
		case (string(k) < w.key) != l.reverse:
			l.key, l.value, l.row = k, l.rows.Value(), false
			return true
		}
	}
	l.writes = l.writes[1:]
	if w.value == nil {
		return false
	}
	l.key = append(l.key[:0:0], w.key...)
	l.value = append(l.value[:0:0], w.value...)
	return true
}

// Key returns the key of the entry, valid until the next call of Next or Close.
func (l *List) Key() []byte { return l.key }

// Value returns the value of the entry, valid like Key.
func (l *List) Value() []byte { return l.value }

// Err tells why Next reported false; nil at the end.
func (l *List) Err() error { return l.err }

// Close ends the list. It may be called more than once.
func (l *List) Close() {
	l.left = 0
	_ = l.closeRows()
}

// All returns the remaining entries, with keys and values of their own, and
// closes the list after the loop. Err then tells whether it was complete.
func (l *List) All() iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		defer l.Close()
		for l.Next() {
			if !yield(string(l.key), append(make([]byte, 0, len(l.value)), l.value...)) {
				return
			}
		}
	}
}
