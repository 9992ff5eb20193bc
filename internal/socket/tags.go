package socket

import (
	"hash/maphash"
	"strings"
	"sync"
)

// Tags is the immutable list of tags of a socket, in one string: each behind its
// length in two bytes. The zero value is the empty list.
type Tags struct{ list string }

// NewTags makes Tags of list; none may be longer than 65,535 bytes.
func NewTags(list []string) Tags {
	size := 0
	for _, tag := range list {
		size += 2 + len(tag)
	}
	var b strings.Builder
	b.Grow(size)
	for _, tag := range list {
		b.WriteByte(byte(len(tag) >> 8))
		b.WriteByte(byte(len(tag)))
		b.WriteString(tag)
	}
	return Tags{b.String()}
}

// next splits the first tag off. ok is false if there is none.
func (t Tags) next() (first string, rest Tags, ok bool) {
	if t.list == "" {
		return "", t, false
	}
	n := 2 + (int(t.list[0])<<8 | int(t.list[1]))
	return t.list[2:n], Tags{t.list[n:]}, true
}

// All are the tags in order. The slice is the caller's.
func (t Tags) All() (list []string) {
	for tag, rest, ok := t.next(); ok; tag, rest, ok = rest.next() {
		list = append(list, tag)
	}
	return list
}

// HasAll reports whether every one of tags is among t.
func (t Tags) HasAll(tags []string) bool {
	for _, want := range tags {
		if !t.has(want) {
			return false
		}
	}
	return true
}

func (t Tags) has(want string) bool {
	for tag, rest, ok := t.next(); ok; tag, rest, ok = rest.next() {
		if tag == want {
			return true
		}
	}
	return false
}

// RecentTags lets sockets with the same tags share their memory: it remembers a
// bounded number of lists, the latest in each of its places. Lists that nobody
// shares cost nothing beside. The zero value is ready; it is safe for concurrent use.
type RecentTags struct {
	mu    sync.Mutex // guards the following
	seed  maphash.Seed
	lists []marks // with no attachment
}

const recentTags = 1024 // at most 2.6 MiB

// share is t without an attachment, in the memory of an equal list if one is remembered.
func (r *RecentTags) share(t Tags) marks {
	if r == nil || t == (Tags{}) {
		return newMarks(t, nil)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lists == nil {
		r.seed, r.lists = maphash.MakeSeed(), make([]marks, recentTags)
	}
	known := &r.lists[maphash.String(r.seed, t.list)%recentTags]
	if known.tags() != t {
		*known = newMarks(t, nil)
	}
	return *known
}
