package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hibernate-go/hibernate/internal/storetest"
)

func mustOpen(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	must(t, err)
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

func get(t testing.TB, o *Object, key string) string {
	t.Helper()
	v, ok, err := o.Get(key)
	must(t, err)
	if !ok {
		return "(none)"
	}
	return string(v)
}

func TestCommittedWritesSurviveReopening(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	s := mustOpen(t, Config{Dir: dir})
	o := s.Object(ID{1}, "Room", "lobby")
	must(t, o.Put("k", []byte("v")))
	must(t, o.SetAlarm(Alarm{Next: 7}))
	must(t, commitWait(t, o))
	o.Close()
	must(t, s.Close())

	s = mustOpen(t, Config{Dir: dir})
	o = s.Object(ID{1}, "Room", "")
	if v := get(t, o, "k"); v != "v" {
		t.Fatalf("k = %q", v)
	}
	h, err := o.Header()
	must(t, err)
	if h != (Header{Epoch: 1, Seq: 1, Class: "Room", Name: "lobby", Alarm: Alarm{Next: 7}, Exists: true}) {
		t.Fatalf("header %+v", h)
	}
	d, ok, err := s.NextAlarm(t.Context())
	if err != nil || !ok || d != (Due{ID{1}, "Room", 7}) {
		t.Fatalf("next alarm %+v, %v, %v", d, ok, err)
	}
	infos, err := s.Objects(t.Context(), "Room", ID{}, 10)
	if err != nil || len(infos) != 1 || infos[0] != (Info{ID{1}, "lobby"}) {
		t.Fatalf("objects %v, %v", infos, err)
	}
	o.Close()
	if n := s.Stats().Objects; n != 0 {
		t.Fatalf("%d objects are open", n)
	}
	must(t, s.Close())
}

func TestCloseCommitsWhatIsQueued(t *testing.T) {
	noLeaks(t)
	mem := storetest.NewFS()
	s := mustOpen(t, smallConfig(mem))
	var answers int
	for i := range 100 {
		o := s.Object(ID{byte(i)}, "C", "")
		must(t, o.Put("k", []byte("v")))
		o.Commit(func(err error) {
			if answers++; err != nil {
				t.Errorf("answer %v", err)
			}
		})
		o.Close()
	}
	must(t, s.Close())
	must(t, s.Close())
	if answers != 100 {
		t.Fatalf("%d answers", answers)
	}
	if s.Err() != nil {
		t.Fatalf("a closed store is dead: %v", s.Err())
	}
	e := testPebble(t, mem.Cut(vfs.CrashCloneCfg{}))
	for i := range 100 {
		if ok, err := e.Has(ID{byte(i)}, "k"); !ok || err != nil {
			t.Fatalf("object %d: %v, %v", i, ok, err)
		}
	}
	checkConsistency(t, e)
	must(t, e.Close())
}

func TestClosedStoreAnswersUnavailable(t *testing.T) {
	noLeaks(t)
	s := mustOpen(t, Config{})
	o := s.Object(ID{1}, "C", "")
	must(t, o.Put("k", nil))
	l, err := s.Object(ID{2}, "C", "").List(ListOptions{})
	must(t, err)
	must(t, s.Close())
	if err := commitWait(t, o); !errors.Is(err, ErrUnavailable) {
		t.Errorf("commit: %v", err)
	}
	if l.Next() || !errors.Is(l.Err(), ErrUnavailable) {
		t.Errorf("list: %v", l.Err())
	}
	_, _, err = o.Get("k")
	_, err2 := del(o, "k")
	_, err3 := s.DueAlarms(t.Context(), Due{}, 1, 1)
	for _, err := range []error{err, err2, err3, o.Put("k", nil), o.DeleteAll(), s.Throttle(t.Context()), s.Snapshot(t.Context(), t.TempDir()+"/s")} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// TestOneSyncServesAllObjects holds one commit at the disk while others queue.
func TestOneSyncServesAllObjects(t *testing.T) {
	gate := &gatedEngine{testPebble(t, vfs.NewMem()), make(chan struct{})}
	s := New(gate, Config{})
	var wg sync.WaitGroup
	commit := func(i int) {
		wg.Add(1)
		o := s.Object(ID{byte(i)}, "C", "")
		must(t, o.Put("k", []byte{byte(i)}))
		o.Commit(func(err error) {
			must(t, err)
			wg.Done()
		})
		o.Close()
	}
	commit(0)
	gate.tokens <- struct{}{} // the committer has it, and waits no more
	wg.Wait()
	commit(1)
	for s.queued() > 0 { // until the committer has it
		time.Sleep(time.Microsecond)
	}
	for i := range 50 {
		commit(2 + i)
	}
	gate.tokens <- struct{}{}
	gate.tokens <- struct{}{}
	wg.Wait()
	if st := s.Stats(); st.Groups != 3 || st.MaxGroup != 50 || st.Commits != 52 || st.Pending != 0 || st.PendingBytes != 0 {
		t.Fatalf("%+v", st)
	}
	close(gate.tokens)
	must(t, s.Close())
}

// queued returns how many commits the committer has not taken yet.
func (s *Store) queued() int {
	s.qmu.Lock()
	defer s.qmu.Unlock()
	return len(s.queue)
}

// TestWhatWasWrittenLatelyIsAtHand: it is read without the engine, until there is too
// much of it, and never after it was deleted.
func TestWhatWasWrittenLatelyIsAtHand(t *testing.T) {
	eng := &countingEngine{Engine: testPebble(t, vfs.NewMem())}
	s := New(eng, Config{})
	o := s.Object(ID{1}, "C", "n")
	commit := func() {
		t.Helper()
		done := make(chan error)
		if !o.Commit(func(err error) { done <- err }) {
			t.Fatal("nothing was committed")
		}
		must(t, <-done)
	}
	value := strings.Repeat("v", 200)
	for i := range 100 {
		must(t, o.Put(fmt.Sprint(i), []byte(value)))
		commit()
		if v := get(t, o, fmt.Sprint(i)); v != value {
			t.Fatalf("key %d = %q", i, v)
		}
	}
	if n := eng.gets.Load(); n != 0 {
		t.Errorf("the engine was asked %d times for what had just been written", n)
	}
	if n := o.e.cache.bytes; n <= 0 || n > maxCache {
		t.Errorf("%d bytes are kept, of at most %d", n, maxCache)
	}
	if v := get(t, o, "0"); v != value || eng.gets.Load() != 1 {
		t.Errorf("key 0 = %q after asking the engine %d times", v, eng.gets.Load())
	}
	must(t, o.Put("long", make([]byte, maxCached)))
	commit()
	if v := get(t, o, "long"); len(v) != maxCached || eng.gets.Load() != 2 {
		t.Errorf("the long key has %d bytes after asking the engine %d times", len(v), eng.gets.Load())
	}
	if n, err := del(o, "99"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	commit()
	if _, ok, err := o.Get("99"); ok || err != nil {
		t.Errorf("a deleted key is there, %v", err)
	}
	must(t, o.DeleteAll())
	commit()
	for i := range 100 {
		if _, ok, err := o.Get(fmt.Sprint(i)); ok || err != nil {
			t.Fatalf("key %d is there after DeleteAll, %v", i, err)
		}
	}
	o.Close()
	must(t, s.Close())
}

// countingEngine counts reads of keys.
type countingEngine struct {
	Engine
	gets atomic.Int64
}

func (e *countingEngine) Get(id ID, key string) ([]byte, bool, error) {
	e.gets.Add(1)
	return e.Engine.Get(id, key)
}

func TestALaterHandleReadsPendingCommits(t *testing.T) {
	gate := &gatedEngine{testPebble(t, vfs.NewMem()), make(chan struct{})}
	s := New(gate, Config{})
	o := s.Object(ID{1}, "C", "n")
	must(t, o.Put("k", []byte("v")))
	must(t, o.SetAlarm(Alarm{Next: 4}))
	done := make(chan error)
	o.Commit(func(err error) { done <- err })
	o.Close()
	for s.queued() > 0 { // until it is in a group of its own
		time.Sleep(time.Microsecond)
	}
	o = s.Object(ID{1}, "C", "")
	if v := get(t, o, "k"); v != "v" {
		t.Errorf("k = %q", v)
	}
	if h, err := o.Header(); err != nil || h.Seq != 1 || h.Alarm.Next != 4 || h.Name != "n" {
		t.Errorf("header %+v, %v", h, err)
	}
	must(t, o.Put("k", []byte("w")))
	o.Commit(nil)
	gate.tokens <- struct{}{}
	must(t, <-done)
	if v := get(t, o, "k"); v != "w" { // the second is still pending
		t.Errorf("k = %q", v)
	}
	close(gate.tokens)
	o.Close()
	must(t, s.Close())
}

// TestStaleHandleIsFenced keeps using a handle after another one has committed.
func TestStaleHandleIsFenced(t *testing.T) {
	for _, pending := range []bool{true, false} {
		t.Run(fmt.Sprint("pending ", pending), func(t *testing.T) {
			gate := &gatedEngine{testPebble(t, vfs.NewMem()), make(chan struct{}, 10)}
			s := New(gate, Config{})
			stale, fresh := s.Object(ID{1}, "C", ""), s.Object(ID{1}, "C", "")
			if v := get(t, stale, "k"); v != "(none)" {
				t.Fatal(v)
			}
			must(t, fresh.Put("k", []byte("fresh")))
			var order []string
			fresh.Commit(func(err error) { order = append(order, fmt.Sprint("fresh ", err)) })
			if !pending {
				gate.tokens <- struct{}{}
				for s.Stats().Pending > 0 {
					time.Sleep(time.Microsecond)
				}
			}
			must(t, stale.Put("k", []byte("stale")))
			stale.Commit(func(err error) { order = append(order, fmt.Sprint("stale ", errors.Is(err, ErrFenced))) })
			must(t, stale.Put("k", []byte("stale")))
			stale.Commit(func(err error) { order = append(order, fmt.Sprint("stale ", errors.Is(err, ErrFenced))) })
			if v := get(t, fresh, "k"); v != "fresh" {
				t.Errorf("fresh reads %q", v)
			}
			must(t, fresh.Put("k", []byte("fresh again")))
			fresh.Commit(func(err error) { order = append(order, fmt.Sprint("fresh ", err)) })
			close(gate.tokens)
			stale.Close()
			fresh.Close()
			must(t, s.Close())
			if got := fmt.Sprint(order); got != "[fresh <nil> stale true stale true fresh <nil>]" {
				t.Error(got)
			}
			if st := s.Stats(); st.Fenced != 2 || st.Commits != 2 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestForeignWriterFencesTheObject has the engine itself refuse a commit.
func TestForeignWriterFencesTheObject(t *testing.T) {
	e := testPebble(t, vfs.NewMem())
	gate := &gatedEngine{e, make(chan struct{})}
	s := New(gate, Config{})
	o := s.Object(ID{1}, "C", "")
	must(t, o.Put("k", []byte("1")))
	if err := e.Commit([]Commit{{ID: ID{1}, Epoch: e.Epoch(), Writes: put("k", "foreign")}})[0]; err != nil {
		t.Fatal(err)
	}
	close(gate.tokens)
	if err := commitWait(t, o); !errors.Is(err, ErrFenced) {
		t.Fatalf("commit: %v", err)
	}
	if v := get(t, o, "k"); v != "foreign" {
		t.Errorf("the fenced handle reads %q, which nobody has", v)
	}
	must(t, o.Put("k", []byte("2")))
	if err := commitWait(t, o); !errors.Is(err, ErrFenced) {
		t.Fatalf("the next commit: %v", err)
	}
	fresh := s.Object(ID{1}, "C", "")
	if v := get(t, fresh, "k"); v != "foreign" {
		t.Fatalf("k = %q", v)
	}
	must(t, fresh.Put("k", []byte("3")))
	must(t, commitWait(t, fresh))
	o.Close()
	fresh.Close()
	if n := s.Stats().Objects; n != 0 {
		t.Errorf("%d objects are open", n)
	}
	if n := len(e.open); n != 0 {
		t.Errorf("the engine has %d objects open", n)
	}
	must(t, s.Close())
}

func TestThrottleBlocksUntilThereIsRoom(t *testing.T) {
	gate := &gatedEngine{testPebble(t, vfs.NewMem()), make(chan struct{})}
	s := New(gate, Config{MaxPending: 2})
	o := s.Object(ID{1}, "C", "")
	for range 2 {
		must(t, s.Throttle(t.Context()))
		must(t, o.Put("k", nil))
		o.Commit(nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Throttle(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("with too much pending: %v", err)
	}
	waited := make(chan error)
	go func() { waited <- s.Throttle(t.Context()) }()
	gate.tokens <- struct{}{}
	must(t, <-waited)
	close(gate.tokens)
	o.Close()
	must(t, s.Close())
}

// A keepingEngine remembers the last group it was given, which the store uses again.
type keepingEngine struct {
	Engine
	group []Commit
}

func (e *keepingEngine) Commit(group []Commit) []error {
	e.group = group
	return e.Engine.Commit(group)
}

// TestAnsweredWritesAreNotKept until the memory of their group is used for another.
func TestAnsweredWritesAreNotKept(t *testing.T) {
	e := &keepingEngine{Engine: newMemEngine(&memDisk{})}
	s := New(e, Config{})
	o := s.Object(ID{1}, "C", "")
	for i := range 2 * maxSpareWrites { // too many for their map to be used again
		must(t, o.Put(fmt.Sprint(i), []byte("value")))
	}
	must(t, commitWait(t, o))
	for i, c := range e.group {
		if c.Writes != nil {
			t.Errorf("commit %d of %d keeps %d writes", i, len(e.group), len(c.Writes))
		}
	}
	o.Close()
	must(t, s.Close())
}

func TestAWriteSetAboveTheLimitIsRefused(t *testing.T) {
	s := mustOpen(t, Config{})
	o := s.Object(ID{1}, "C", "")
	half := make([]byte, s.Limits().Commit/2)
	must(t, o.Put("a", half))
	if err := o.Put("b", half); !errors.Is(err, ErrTooLarge) {
		t.Errorf("second half: %v", err)
	}
	must(t, o.Put("a", half)) // replaces it
	o.Begin()
	if err := o.Put("a", half); !errors.Is(err, ErrTooLarge) {
		t.Errorf("in a savepoint: %v", err)
	}
	o.Rollback(1)
	if err := o.Put(strings.Repeat("k", s.Limits().Key+1), nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("key: %v", err)
	}
	must(t, commitWait(t, o))
	o.Close()
	if _, err := s.Object(ID{2}, strings.Repeat("c", 256), "").Header(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("class: %v", err)
	}
	must(t, s.Close())
}

func TestCommitInsideASavepointPanics(t *testing.T) {
	s := mustOpen(t, Config{})
	defer func() {
		if r := fmt.Sprint(recover()); !strings.HasPrefix(r, "BUG") {
			t.Errorf("panic %s", r)
		}
		must(t, s.Close())
	}()
	o := s.Object(ID{1}, "C", "")
	o.Begin()
	o.Commit(nil)
}

func TestAClosedHandleIsRefused(t *testing.T) {
	s := mustOpen(t, Config{})
	o := s.Object(ID{1}, "C", "")
	must(t, o.Put("k", nil))
	o.Close()
	o.Close()
	if o.Commit(func(error) { t.Error("called") }) {
		t.Error("committed")
	}
	if err := o.Put("k", nil); !errors.Is(err, ErrHandle) {
		t.Errorf("put: %v", err)
	}
	must(t, s.Close())
}

// TestDirectoriesAreTheOwnersAlone: the store's, and a snapshot's.
func TestDirectoriesAreTheOwnersAlone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("directories have no such mode on windows")
	}
	dir := filepath.Join(t.TempDir(), "db")
	s := mustOpen(t, Config{Dir: dir})
	defer s.Close()
	copied := filepath.Join(t.TempDir(), "copy")
	must(t, s.Snapshot(t.Context(), copied))
	for _, d := range []string{dir, copied} {
		info, err := os.Stat(d)
		must(t, err)
		if mode := info.Mode().Perm(); mode != 0o700 {
			t.Errorf("%s has mode %o", filepath.Base(d), mode)
		}
	}
}

// TestSnapshotOpens writes while snapshots are made, on a real disk and in
// memory, and opens them.
func TestSnapshotOpens(t *testing.T) {
	for _, inMemory := range []bool{false, true} {
		t.Run(fmt.Sprint("memory ", inMemory), func(t *testing.T) {
			noLeaks(t)
			cfg := Config{}
			if !inMemory {
				cfg.Dir = filepath.Join(t.TempDir(), "db")
			}
			s := mustOpen(t, cfg)
			w := &crashWorkload{s: s, histories: newHistories()}
			done := make(chan struct{})
			go func() {
				defer close(done)
				w.run(1, 30)
			}()
			for over, n := false, 0; !over || n == 0; n++ {
				select {
				case <-done:
					over = true
				default:
				}
				acked := w.acked()
				dir := filepath.Join(t.TempDir(), "copy")
				must(t, s.Snapshot(t.Context(), dir))
				verifyDir(t, vfs.Default, dir, w, acked)
				if err := s.Snapshot(t.Context(), dir); !errors.Is(err, os.ErrExist) {
					t.Fatalf("into a directory that is there: %v", err)
				}
			}
			if !inMemory {
				if err := s.Snapshot(t.Context(), filepath.Join(cfg.Dir, "in", "side")); err == nil {
					t.Error("a snapshot inside the directory")
				}
			}
			must(t, s.Close())
		})
	}
}

// TestFailedSnapshotLeavesTheStoreAlive fails each operation on the copy.
func TestFailedSnapshotLeavesTheStoreAlive(t *testing.T) {
	f := &storetest.Fault{Match: func(op errorfs.Op) bool {
		return strings.HasPrefix(op.Path, "/copy") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemoveAll
	}}
	mem := vfs.NewMem()
	s := mustOpen(t, smallConfig(errorfs.Wrap(mem, f)))
	o := s.Object(ID{1}, "C", "")
	must(t, o.Put("k", []byte("v")))
	must(t, commitWait(t, o))
	n := int64(0)
	for ; ; n++ {
		f.Again(n)
		err := s.Snapshot(t.Context(), "/copy")
		if f.Fired() == nil {
			must(t, err)
			break
		}
		if err == nil {
			must(t, mem.RemoveAll("/copy")) // a hint failed
		}
		must(t, o.Put("k", []byte("v")))
		must(t, commitWait(t, o))
	}
	t.Logf("%d operations failed", n)
	o.Close()
	must(t, s.Close())
}

func TestOpenNamesWhatIsWrong(t *testing.T) {
	noLeaks(t)
	used := t.TempDir()
	s := mustOpen(t, Config{Dir: used})
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(used, link))
	wd, err := os.Getwd()
	must(t, err)
	rel, err := filepath.Rel(wd, used)
	must(t, err)

	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))

	foreign := t.TempDir()
	db, err := pebble.Open(foreign, &pebble.Options{Logger: quiet{}})
	must(t, err)
	must(t, db.Set([]byte("theirs"), nil, pebble.Sync))
	must(t, db.Close())

	newer := t.TempDir()
	must(t, mustOpen(t, Config{Dir: newer}).Close())
	db, err = pebble.Open(newer, &pebble.Options{Logger: quiet{}, FormatMajorVersion: formatMajor})
	must(t, err)
	format := appendFormat(nil)
	format[len(format)-1]++
	must(t, db.Set(metaKey("format"), format, pebble.Sync))
	must(t, db.Close())

	newerPebble := t.TempDir()
	must(t, mustOpen(t, Config{Dir: newerPebble}).Close())
	must(t, os.WriteFile(filepath.Join(newerPebble, "marker.format-version.000999.999"), nil, 0o600))

	corrupt := t.TempDir()
	must(t, mustOpen(t, Config{Dir: corrupt}).Close())
	manifests, err := filepath.Glob(filepath.Join(corrupt, "MANIFEST-*"))
	must(t, err)
	for _, m := range manifests {
		b, err := os.ReadFile(m)
		must(t, err)
		for i := range b {
			b[i] ^= 0x55
		}
		must(t, os.WriteFile(m, b, 0o600))
	}

	unreadable := filepath.Join(t.TempDir(), "unreadable")
	must(t, os.Mkdir(unreadable, 0))

	for _, test := range []struct {
		name, dir string
		want      error
	}{
		{"opened twice", used, ErrLocked},
		{"opened by a link", link, ErrLocked},
		{"opened by a relative name", rel, ErrLocked},
		{"a file", file, nil},
		{"below a file", filepath.Join(file, "x"), nil},
		{"another program's", foreign, ErrFormat},
		{"newer format", newer, ErrFormat},
		{"newer Pebble", newerPebble, ErrFormat},
		{"corrupt", corrupt, ErrCorrupt},
		{"unreadable", unreadable, fs.ErrPermission},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.want == fs.ErrPermission && os.Getuid() == 0 {
				t.Skip("root reads everything")
			}
			s, err := Open(Config{Dir: test.dir})
			if err == nil {
				must(t, s.Close())
				t.Fatal("opened")
			}
			if test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), fmt.Sprintf("%q", test.dir)) {
				t.Errorf("error %v", err)
			}
			if errors.Is(err, ErrLocked) != (test.want == ErrLocked) {
				t.Errorf("locked: %v", err)
			}
			t.Log(err)
		})
	}
	// None of it has taken the lock away.
	if _, err := Open(Config{Dir: used}); !errors.Is(err, ErrLocked) {
		t.Errorf("opened again: %v", err)
	}
	must(t, s.Close())
	must(t, mustOpen(t, Config{Dir: used}).Close())
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

// readFS lets a test step in where tables are read.
type readFS struct {
	vfs.FS
	hook atomic.Pointer[func() error]
}

func (fs *readFS) read(f func() error) { fs.hook.Store(&f) }

type readFile struct {
	vfs.File
	fs *readFS
}

func (fs *readFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if !strings.HasSuffix(name, ".sst") {
		return fs.FS.Open(name, opts...)
	}
	f, err := fs.FS.Open(name, opts...)
	return &readFile{f, fs}, err
}

func (f *readFile) ReadAt(p []byte, off int64) (int, error) {
	if err := (*f.fs.hook.Load())(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

// withTables returns a file system with a store whose object 1 has 200 keys in
// tables.
func withTables(t *testing.T) *readFS {
	fs := &readFS{FS: vfs.NewMem()}
	fs.read(func() error { return nil })
	s := mustOpen(t, smallConfig(fs))
	o := s.Object(ID{1}, "C", "")
	for i := range 200 {
		must(t, o.Put(fmt.Sprint(i), make([]byte, 1000)))
		must(t, commitWait(t, o))
	}
	o.Close()
	must(t, s.Close())
	return fs
}

// readAll reads keys of withTables until one fails.
func readAll(e Engine) error {
	for i := range 200 {
		if _, _, err := e.Get(ID{1}, fmt.Sprint(i)); err != nil {
			return err
		}
	}
	return nil
}

// TestAnUnreadableTableFailsReadsNotTheStore: Pebble reports it, and goes on.
func TestAnUnreadableTableFailsReadsNotTheStore(t *testing.T) {
	fs := withTables(t)
	s := mustOpen(t, smallConfig(fs))
	fs.read(func() error { return storetest.ErrDisk })
	within(t, func() {
		if err := readAll(s.eng); !errors.Is(err, ErrUnavailable) || !errors.Is(err, storetest.ErrDisk) {
			t.Errorf("read: %v", err)
		}
		c, err := s.eng.Iterate(ID{1}, everything)
		if err == nil {
			for c.Next() {
			}
			err = c.Err()
			must(t, c.Close())
		}
		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, storetest.ErrDisk) {
			t.Errorf("list: %v", err)
		}
	})
	o := s.Object(ID{2}, "C", "")
	fs.read(func() error { return nil })
	must(t, o.Put("k", nil))
	must(t, commitWait(t, o))
	must(t, readAll(s.eng))
	o.Close()
	must(t, s.Close())
}

// TestFatalfUnderAReaderEndsTheStoreNotTheReader: a reader is not parked.
func TestFatalfUnderAReaderEndsTheStoreNotTheReader(t *testing.T) {
	for _, list := range []bool{false, true} {
		fs := withTables(t)
		s := mustOpen(t, smallConfig(fs))
		e := s.eng.(*pebbleEngine)
		within(t, func() {
			var once sync.Once
			logger := &pebbleLogger{log: s.cfg.Logger, g: e.g}
			fs.read(func() error {
				once.Do(func() { logger.Fatalf("iterator %s", "invariant") })
				return nil
			})
			var err error
			if list {
				var c Cursor
				c, err = e.Iterate(ID{1}, everything)
				must(t, err)
				for c.Next() {
				}
				err = c.Err()
			} else {
				err = readAll(e)
			}
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("read: %v", err)
			}
			<-s.Dead()
			if err := s.Close(); !errors.Is(err, ErrUnavailable) {
				t.Errorf("close: %v", err)
			}
		})
		if err := s.Err(); err == nil || !strings.Contains(err.Error(), "iterator invariant") {
			t.Errorf("store: %v", err)
		}
	}
}

// TestDeathAnswersEverything kills the engine under commits that queue behind
// one that hangs in a sync, and calls from all sides.
func TestDeathAnswersEverything(t *testing.T) {
	hang, died := make(chan struct{}), make(chan error, 1)
	f := &storetest.Fault{Match: func(op errorfs.Op) bool {
		return strings.HasSuffix(op.Path, ".log") && op.Kind == errorfs.OpFileSyncData
	}}
	f.Off.Store(true)
	slow := &storetest.Fault{Match: func(op errorfs.Op) bool {
		if f.Match(op) && !f.Off.Load() {
			<-hang
		}
		return false
	}}
	cfg := smallConfig(errorfs.Wrap(vfs.NewMem(), errorfs.Any(slow, f)))
	cfg.OnDead = func(err error) { died <- err }
	cfg.MaxPending = 10
	s := mustOpen(t, cfg)
	f.Off.Store(false)
	var mu sync.Mutex
	var answers []int
	objects := make([]*Object, 3)
	for i := range objects {
		objects[i] = s.Object(ID{byte(i)}, "C", "")
	}
	commit := func(n int) {
		o := objects[n%3]
		must(t, o.Put("k", []byte("v")))
		o.Commit(func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if !errors.Is(err, ErrUnavailable) || !errors.Is(err, storetest.ErrDisk) {
				t.Errorf("answer %v", err)
			}
			answers = append(answers, n)
		})
	}
	commit(0)
	for s.queued() > 0 {
		time.Sleep(time.Microsecond)
	}
	for n := range 30 {
		commit(n + 1)
	}
	throttled := make(chan error)
	go func() { throttled <- s.Throttle(t.Context()) }()
	close(hang)
	within(t, func() {
		if err := <-died; !errors.Is(err, ErrUnavailable) || !errors.Is(err, storetest.ErrDisk) {
			t.Errorf("OnDead: %v", err)
		}
		if err := <-throttled; !errors.Is(err, ErrUnavailable) {
			t.Errorf("Throttle: %v", err)
		}
		if err := s.Close(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Close: %v", err)
		}
		for s.Stats().Pending > 0 {
			time.Sleep(time.Microsecond)
		}
	})
	late := make(chan error, 1)
	objects[0].base.set("k", nil) // written before the death
	objects[0].Commit(func(err error) { late <- err })
	if err := <-late; !errors.Is(err, ErrUnavailable) {
		t.Errorf("a late commit: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(answers) != 31 {
		t.Fatalf("%d answers", len(answers))
	}
	last := [3]int{-1, -1, -1}
	for _, n := range answers {
		if n < last[n%3] {
			t.Errorf("answer %d after %d", n, last[n%3])
		}
		last[n%3] = n
	}
}

// TestCloseGivesUpOnADiskThatHangs leaves a sync unanswered.
func TestCloseGivesUpOnADiskThatHangs(t *testing.T) {
	hang := make(chan struct{})
	var on atomic.Bool
	slow := &storetest.Fault{Match: func(op errorfs.Op) bool {
		if on.Load() && strings.HasSuffix(op.Path, ".log") && op.Kind == errorfs.OpFileSyncData {
			<-hang
		}
		return false
	}}
	cfg := smallConfig(errorfs.Wrap(vfs.NewMem(), slow))
	cfg.CloseTimeout = 10 * time.Millisecond
	s := mustOpen(t, cfg)
	on.Store(true)
	o := s.Object(ID{1}, "C", "")
	must(t, o.Put("k", []byte("v")))
	answer := make(chan error, 1)
	o.Commit(func(err error) { answer <- err })
	within(t, func() {
		if err := s.Close(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Close: %v", err)
		}
		if err := <-answer; !errors.Is(err, ErrUnavailable) {
			t.Errorf("answer: %v", err)
		}
		if s.Err() == nil {
			t.Error("the store is not dead")
		}
		close(hang)
		// When the disk comes back, the directory is closed after all.
		for !verifyReopens(t, cfg.FS) {
			time.Sleep(time.Millisecond)
		}
	})
}

// TestLockOfAnotherProcess opens a directory that a child process holds.
func TestLockOfAnotherProcess(t *testing.T) {
	if dir := os.Getenv("STORE_TEST_HOLD"); dir != "" {
		s := mustOpen(t, Config{Dir: dir})
		fmt.Println("held")
		_, _ = io.Copy(io.Discard, os.Stdin)
		must(t, s.Close())
		return
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestLockOfAnotherProcess$")
	child.Env = append(os.Environ(), "STORE_TEST_HOLD="+dir)
	stdin, err := child.StdinPipe()
	must(t, err)
	stdout, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "held\n" {
		t.Fatal(line, err)
	}
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("open: %v", err)
	}
	must(t, stdin.Close())
	must(t, child.Wait())
	must(t, mustOpen(t, Config{Dir: dir}).Close())
}

// TestDeleteWritesWithinOnly: it reads outside, where its turn may end meanwhile, and what is refused then is not deleted.
func TestDeleteWritesWithinOnly(t *testing.T) {
	s := mustOpen(t, Config{})
	defer s.Close()
	o := s.Object(ID{1}, "C", "")
	defer o.Close()
	must(t, errors.Join(o.Put("a", nil), o.Put("b", nil)))
	over := errors.New("turn is over")
	turns := 1
	n, err := o.Delete(func(write func() error) error {
		if turns == 0 {
			return over
		}
		turns--
		return write()
	}, "a", "b")
	if n != 1 || err != over {
		t.Errorf("deleted %d, %v", n, err)
	}
	if got := fmt.Sprint(listed(t, o, ListOptions{})); got != "[b=]" {
		t.Errorf("left are %s", got)
	}
}
