package store

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var update = flag.Bool("store.update", false, "rewrite testdata; the format is forever, so only to add to it")

func goldenID() (id ID) {
	for i := range id {
		id[i] = byte(i)
	}
	return id
}

var goldenHeaders = []Header{
	{Epoch: 1, Seq: 1, Class: "Room", Name: "lobby", Exists: true},
	{Epoch: 3, Seq: 300, Class: "Room", Exists: true, Alarm: Alarm{Next: 1764000000000}},
	{Epoch: 1 << 40, Seq: 1<<64 - 1, Class: "Über", Name: "名", Exists: true, Alarm: Alarm{Next: 1764000000001, Running: 1764000000000, Retry: 6, RetryAt: 1764000002000}},
}

// TestFormatIsForever compares the bytes of every kind of row to testdata.
func TestFormatIsForever(t *testing.T) {
	id := goldenID()
	var b bytes.Buffer
	row := func(name string, bytes []byte) { fmt.Fprintf(&b, "%s\n\t%x\n", name, bytes) }
	row("meta key format", metaKey("format"))
	row("meta value format", appendFormat(nil))
	row("meta key epoch", metaKey("epoch"))
	row("object key header", appendObjectKey(nil, &id, kindHeader))
	row(`object key "k\x00"`, append(appendObjectKey(nil, &id, kindKey), "k\x00"...))
	row(`class index "Room"`, appendClassKey(nil, "Room", &id))
	row("alarm index 1764000000000", appendAlarmKey(nil, 1764000000000, &id))
	for _, h := range goldenHeaders {
		row(fmt.Sprintf("header %+v", h), appendHeader(nil, &h))
	}
	compareGolden(t, "format.golden", b.Bytes())
}

func compareGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs:\n%s", path, got)
	}
}

// TestGoldenDirectoryOpens reads a directory that the first release wrote.
func TestGoldenDirectoryOpens(t *testing.T) {
	golden := filepath.Join("testdata", "v1")
	if *update {
		must(t, os.RemoveAll(golden))
		s := mustOpen(t, Config{})
		room := s.Object(goldenID(), "Room", "lobby")
		must(t, room.Put("", []byte("empty key")))
		must(t, room.Put("greeting", []byte("hello")))
		must(t, room.Put("gone", []byte("x")))
		must(t, commitWait(t, room))
		_, err := del(room, "gone")
		must(t, err)
		must(t, room.SetAlarm(Alarm{Next: 1764000000001, Running: 1764000000000, Retry: 1, RetryAt: 1764000002000}))
		must(t, commitWait(t, room))
		room.Close()
		other := s.Object(ID{0xff}, "Über", "")
		must(t, other.Put("k", nil))
		must(t, commitWait(t, other))
		other.Close()
		must(t, s.Snapshot(t.Context(), golden))
		must(t, s.Close())
	}
	mem := vfs.NewMem()
	ok, err := vfs.Clone(vfs.Default, mem, golden, "/db")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	e := testPebble(t, mem)
	state, err := stateOf(e, goldenID())
	must(t, err)
	want := modelState{
		keys:  map[string]string{"": "empty key", "greeting": "hello"},
		alarm: Alarm{Next: 1764000000001, Running: 1764000000000, Retry: 1, RetryAt: 1764000002000},
	}
	if !reflect.DeepEqual(state, want) {
		t.Errorf("state %v", state)
	}
	h, err := e.guardedHead(&ID{0xff})
	if err != nil || h != (Header{Epoch: 1, Seq: 1, Class: "Über", Exists: true}) {
		t.Errorf("header %+v, %v", h, err)
	}
	if e.Epoch() != 2 {
		t.Errorf("epoch %d", e.Epoch())
	}
	checkConsistency(t, e)
	must(t, e.Close())
}

func TestTruncatedHeaderIsCorrupt(t *testing.T) {
	for _, h := range goldenHeaders {
		b := appendHeader(nil, &h)
		for n := range b {
			if _, err := parseHeader(b[:n]); err == nil {
				t.Errorf("%d of %d bytes parse", n, len(b))
			}
		}
		if _, err := parseHeader(append(b, 0)); err == nil {
			t.Error("a longer header parses")
		}
	}
}

func FuzzHeader(f *testing.F) {
	for _, h := range goldenHeaders {
		f.Add(appendHeader(nil, &h))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		if got := appendHeader(nil, &h); !bytes.Equal(got, b) {
			t.Errorf("%x becomes %x", b, got)
		}
	})
}
