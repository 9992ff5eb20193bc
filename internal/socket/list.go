package socket

import "iter"

// A List is an object's sockets in the order they were accepted. Its lock is
// the object's, and so is that of the sockets' links.
//
// A nil next ends the list; the first socket's prev is the last.
type List struct {
	first *Socket
	n     int
}

// Len is the number of sockets.
func (l *List) Len() int { return l.n }

// Add appends s.
func (l *List) Add(s *Socket) {
	s.listed = true
	l.n++
	if l.first == nil {
		l.first, s.prev = s, s
		return
	}
	last := l.first.prev
	last.next, s.prev, l.first.prev = s, last, s
}

// Remove takes s out and reports whether it was in.
func (l *List) Remove(s *Socket) bool {
	if !s.listed {
		return false
	}
	switch {
	case s == l.first:
		if l.first = s.next; l.first != nil {
			l.first.prev = s.prev
		}
	case s.next == nil:
		s.prev.next, l.first.prev = nil, s.prev
	default:
		s.prev.next, s.next.prev = s.next, s.prev
	}
	s.prev, s.next, s.listed = nil, nil, false
	l.n--
	return true
}

// OldestFirst yields the sockets in the order they were accepted.
func (l *List) OldestFirst() iter.Seq[*Socket] {
	return func(yield func(*Socket) bool) {
		for s := l.first; s != nil; {
			next := s.next
			if !yield(s) {
				return
			}
			s = next
		}
	}
}

// NewestFirst yields the sockets in the opposite order.
func (l *List) NewestFirst() iter.Seq[*Socket] {
	return func(yield func(*Socket) bool) {
		if l.first == nil {
			return
		}
		for s := l.first.prev; ; {
			prev, first := s.prev, s == l.first
			if !yield(s) || first {
				return
			}
			s = prev
		}
	}
}

// Listed reports whether s is in its owner's list. It is called under the
// list's lock.
func Listed(s *Socket) bool { return s.listed }
