package store

import (
	"bytes"
	"fmt"
	"maps"
	"sync"
	"testing"
)

// checkConsistency fails if the rows of a store contradict each other: an index
// without its header, a header without its index, keys without a header, or a
// row of no known form.
func checkConsistency(t testing.TB, e *pebbleEngine) {
	t.Helper()
	want := map[string]string{ // indexes, by the headers
		string(metaKey("format")): string(appendFormat(nil)),
	}
	got := map[string]string{}
	headers := map[ID]bool{}
	it, err := e.db.NewIter(nil)
	must(t, err)
	for ok := it.First(); ok; ok = it.Next() {
		k, v := bytes.Clone(it.Key()), bytes.Clone(it.Value())
		switch {
		case bytes.Equal(k, metaKey("epoch")):
		case k[0] != tableObject:
			got[string(k)] = string(v)
		case k[keyOffset-1] == kindHeader:
			h, err := parseHeader(v)
			must(t, err)
			id := ID(k[1:])
			headers[id] = true
			want[string(appendClassKey(nil, h.Class, &id))] = ""
			if due := h.Alarm.Due(); due != 0 {
				want[string(appendAlarmKey(nil, due, &id))] = h.Class
			}
			if h.Epoch > e.epoch || h.Seq == 0 {
				t.Errorf("header %+v under epoch %d", h, e.epoch)
			}
		default:
			if k[keyOffset-1] != kindKey || !headers[ID(k[1:])] {
				t.Errorf("row %x without a header", k)
			}
		}
	}
	must(t, it.Error())
	must(t, it.Close())
	for k, v := range got {
		if w, ok := want[k]; !ok || w != v {
			t.Errorf("index row %q = %q has no header", k, v)
		}
	}
	for k := range want {
		if _, ok := got[k]; !ok {
			t.Errorf("index row %q is missing", k)
		}
	}
}

// stateOf reads a whole object.
func stateOf(e Engine, id ID) (modelState, error) {
	m := modelState{keys: map[string]string{}}
	h, err := e.Open(id, e.Epoch())
	if err != nil {
		return m, err
	}
	e.Release(id)
	m.alarm = h.Alarm
	c, err := e.Iterate(id, everything)
	if err != nil {
		return m, err
	}
	for c.Next() {
		m.keys[string(c.Key())] = string(c.Value())
	}
	return m, c.Err()
}

func (m modelState) String() string {
	s := fmt.Sprintf("%d keys, alarm %+v:", len(m.keys), m.alarm)
	for k, v := range m.keys {
		s += fmt.Sprintf(" %s=%d:%.8q", k, len(v), v)
	}
	return s
}

func (m modelState) equal(o modelState) bool { return m.alarm == o.alarm && maps.Equal(m.keys, o.keys) }

// history is what an object was told to hold, by commit. It is written by the
// goroutine that commits, acked by the answers.
type history struct {
	mu     sync.Mutex // guards the following
	states []modelState
	acked  int // states[acked] was answered with nil
}

// verify fails unless an object is as one of its commits left it, none earlier
// than the one acked, and returns that state.
func (h *history) verify(t testing.TB, e Engine, id ID, acked int) modelState {
	t.Helper()
	got, err := stateOf(e, id)
	must(t, err)
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(h.states) - 1; i >= 0; i-- {
		if h.states[i].equal(got) {
			if i < acked {
				t.Fatalf("object %x: commit %d was answered, the disk has %d of %d", id[:2], acked, i, len(h.states)-1)
			}
			return got
		}
	}
	t.Fatalf("object %x holds no commit whole:\n%v\nacked %d of %d: %v", id[:2], got, acked, len(h.states)-1, h.states[acked])
	return got
}
