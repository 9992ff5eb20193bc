package store

import (
	"testing"
)

func mustOpen(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// commitWait commits o and waits for the answer.
func commitWait(t testing.TB, o *Object) error {
	t.Helper()
	done := make(chan error, 1)
	if !o.Commit(func(err error) { done <- err }) {
		t.Fatal("nothing to commit")
	}
	return <-done
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCommittedWritesSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, Config{Dir: dir})
	o := s.Object(ID{1}, "Room", "lobby")
	must(t, o.Put("k", []byte("v")))
	must(t, o.SetAlarm(Alarm{Next: 7}))
	must(t, commitWait(t, o))
	o.Close()
	must(t, s.Close())

	s = mustOpen(t, Config{Dir: dir})
	defer s.Close()
	o = s.Object(ID{1}, "Room", "")
	defer o.Close()
	v, ok, err := o.Get("k")
	if err != nil || !ok || string(v) != "v" {
		t.Fatalf("Get = %q, %v, %v", v, ok, err)
	}
	h, err := o.Header()
	must(t, err)
	if h != (Header{Epoch: 1, Seq: 1, Class: "Room", Name: "lobby", Alarm: Alarm{Next: 7}, Exists: true}) {
		t.Fatalf("header %+v", h)
	}
}
