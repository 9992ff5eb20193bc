package socket

import "iter"

// A List is an object's sockets in the order they were accepted. Its lock is
// the object's, and so is that of the sockets' links.
type List struct {
	first, last *Socket
	n           int
}

// Len is the number of sockets.
func (l *List) Len() int { return l.n }

// Add appends s.
func (l *List) Add(s *Socket) {
	s.prev, s.next, s.listed = l.last, nil, true
	if l.last != nil {
		l.last.next = s
	} else {
		l.first = s
	}
	l.last = s
	l.n++
}

// Remove takes s out and reports whether it was in.
func (l *List) Remove(s *Socket) bool {
	if !s.listed {
		return false
	}
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		l.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		l.last = s.prev
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
		for s := l.last; s != nil; {
			prev := s.prev
			if !yield(s) {
				return
			}
			s = prev
		}
	}
}

// Listed reports whether s is in its owner's list. It is called under the
// list's lock.
func Listed(s *Socket) bool { return s.listed }
