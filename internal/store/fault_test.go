package store

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// patience is how long a test waits for what must not hang.
const patience = 5 * time.Second

var errDisk = errors.New("injected: no space left on device")

// fault fails operations of the file system below the store.
type fault struct {
	match   func(errorfs.Op) bool
	from    int64 // the first to fail, counted from 0
	forever bool  // all after it fail too

	seen  atomic.Int64
	fired atomic.Pointer[errorfs.Op] // the first that failed
	off   atomic.Bool
}

func (f *fault) String() string { return "fault" }

func (f *fault) MaybeError(op errorfs.Op) error {
	if f.off.Load() || !f.match(op) {
		return nil
	}
	n := f.seen.Add(1) - 1
	if n < f.from || n > f.from && !f.forever {
		return nil
	}
	f.fired.CompareAndSwap(nil, &op)
	return errDisk
}

func kind(kinds ...errorfs.OpKind) func(errorfs.Op) bool {
	return func(op errorfs.Op) bool {
		for _, k := range kinds {
			if op.Kind == k {
				return true
			}
		}
		return false
	}
}

var faultKinds = []struct {
	name  string
	match func(errorfs.Op) bool
}{
	{"create", kind(errorfs.OpCreate, errorfs.OpReuseForWrite)},
	{"write", kind(errorfs.OpFileWrite, errorfs.OpFileWriteAt)},
	{"sync", kind(errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo)},
	{"close", kind(errorfs.OpFileClose)},
	{"rename", kind(errorfs.OpRename)},
	{"remove", kind(errorfs.OpRemove)},
	{"open directory", kind(errorfs.OpOpenDir)},
}

// TestFaults fails each operation of the disk in turn, once and from then on,
// with rotations of the WAL and flushes in between. No commit is answered with
// nil and lost, every one is answered, nothing hangs, and the directory opens
// again in this process.
func TestFaults(t *testing.T) {
	for _, k := range faultKinds {
		for _, forever := range []bool{false, true} {
			name := k.name + " once"
			if forever {
				name = k.name + " from then on"
			}
			t.Run(name, func(t *testing.T) {
				died, total := 0, 0
				for n := int64(0); ; n++ {
					f := &fault{match: k.match, from: n, forever: forever}
					dead := faultRun(t, f)
					if f.fired.Load() == nil {
						break
					}
					if total++; dead {
						died++
					}
					if n > 40 {
						n += n / 10 // most of them are alike
					}
				}
				t.Logf("%d operations failed, %d were deadly", total, died)
			})
		}
	}
}

// faultRun runs a workload over a fault and reports whether the store died.
func faultRun(t *testing.T, f *fault) (died bool) {
	t.Helper()
	mem := newCrashFS()
	cfg := smallConfig(&closeFS{errorfs.Wrap(mem, f), f})
	cfg.MemTableSize = 32 << 10
	cfg.MaxPending = 20
	var deaths atomic.Int32
	cfg.OnDead = func(error) { deaths.Add(1) }
	fail := func(format string, args ...any) {
		t.Helper()
		if op := f.fired.Load(); op != nil {
			t.Logf("failed operation: %+v", *op)
		}
		t.Fatalf(format, args...)
	}
	w := &crashWorkload{histories: newHistories()}
	within(t, func() {
		var err error
		if w.s, err = Open(cfg); err != nil {
			if !errors.Is(err, errDisk) || !strings.Contains(err.Error(), `"/db"`) {
				fail("open: %v", err)
			}
			return
		}
		defer func() {
			// What a disk does that is full for a while, but not of the WAL.
			f.off.Store(true)
			err := w.s.Close()
			if w.s.Err() == nil && err != nil {
				fail("close: %v", err)
			}
		}()
		ran := make(chan struct{})
		go func() {
			defer close(ran)
			w.run(uint64(f.from), 25)
		}()
		if f.forever {
			// Writes may wait for a table to be written: let them, then give in.
			select {
			case <-ran:
			case <-w.s.Dead():
			case <-time.After(20 * time.Millisecond):
			}
			f.off.Store(true)
		}
		<-ran
	})
	if w.s != nil {
		died = w.s.Err() != nil
		if died {
			within(t, func() {
				for w.answers.Load() < w.commits.Load() {
					time.Sleep(time.Millisecond)
				}
			})
			for _, err := range []error{w.s.Err(), w.s.Throttle(t.Context()), w.s.Object(crashID(0), "", "").Put("k", nil)} {
				if !errors.Is(err, ErrUnavailable) {
					fail("a dead store answers %v", err)
				}
			}
		} else if w.failures.Load() != 0 {
			fail("%d commits failed on a store that lives", w.failures.Load())
		}
		if w.answers.Load() != w.commits.Load() {
			fail("%d commits, %d answers", w.commits.Load(), w.answers.Load())
		}
	}

	// What was answered is there after a power failure, and the directory can be
	// opened again at once.
	f.off.Store(true)
	acked := w.acked()
	crashed := mem.cut(vfs.CrashCloneCfg{})
	verifyDir(t, crashed, "/db", w, acked)
	within(t, func() {
		for !verifyReopens(t, mem) { // once nothing of the dead store is under way
			time.Sleep(time.Millisecond)
		}
		for died && deaths.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
	})
	if n := deaths.Load(); n > 1 || n == 1 && !died {
		fail("OnDead was called %d times", n)
	}
	verifyDir(t, mem, "/db", w, acked)
	return died
}

func verifyReopens(t *testing.T, fs vfs.FS) bool {
	t.Helper()
	s, err := Open(smallConfig(fs))
	if errors.Is(err, ErrLocked) {
		return false
	}
	must(t, err)
	must(t, s.Close())
	return true
}

// within fails the test if f hangs.
func within(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		panic("hangs")
	}
}

// closeFS fails the closing of files, which errorfs does not.
type closeFS struct {
	vfs.FS
	f *fault
}

type closeFile struct {
	vfs.File
	name string
	f    *fault
}

func (fs *closeFS) wrap(file vfs.File, name string, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &closeFile{file, name, fs.f}, nil
}

func (fs *closeFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := fs.FS.Create(name, c)
	return fs.wrap(file, name, err)
}

func (fs *closeFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := fs.FS.ReuseForWrite(from, to, c)
	return fs.wrap(file, to, err)
}

func (f *closeFile) Close() error {
	return errors.Join(f.f.MaybeError(errorfs.Op{Kind: errorfs.OpFileClose, Path: f.name}), f.File.Close())
}

// TestADiskFullOutsideTheLogOnlySlows fails every write of a table for a while:
// commits wait, and go on when there is room.
func TestADiskFullOutsideTheLogOnlySlows(t *testing.T) {
	f := &fault{forever: true, match: func(op errorfs.Op) bool {
		return strings.HasSuffix(op.Path, ".sst") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemove
	}}
	mem := newCrashFS()
	cfg := smallConfig(errorfs.Wrap(mem, f))
	cfg.MemTableSize = 32 << 10
	cfg.MaxPending = 20
	w := &crashWorkload{s: mustOpen(t, cfg), histories: newHistories()}
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		w.run(1, 100)
	}()
	within(t, func() {
		for f.seen.Load() < 5 { // a failed flush was tried again
			time.Sleep(time.Millisecond)
		}
		for last := int64(-1); w.answers.Load() != last; { // until commits wait
			last = w.answers.Load()
			time.Sleep(50 * time.Millisecond)
		}
	})
	select {
	case <-ran:
		t.Error("nothing waited")
	default:
	}
	if n := f.seen.Load(); n > 50 {
		t.Errorf("%d failed writes: it spins", n)
	}
	must(t, w.s.Err())
	f.off.Store(true)
	within(t, func() { <-ran })
	acked := w.acked()
	verifyDir(t, mem.cut(vfs.CrashCloneCfg{}), "/db", w, acked)
	must(t, w.s.Close())
	if w.answers.Load() != w.commits.Load() || w.failures.Load() != 0 {
		t.Errorf("%d commits, %d answers, %d failures", w.commits.Load(), w.answers.Load(), w.failures.Load())
	}
}
