package store

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hibernate-go/hibernate/internal/storetest"
)

// patience is how long a test waits for what must not hang.
const patience = 30 * time.Second

// TestFaults fails each operation of the disk in turn, once and from then on,
// with rotations of the WAL and flushes in between. No commit is answered with
// nil and lost, every one is answered, nothing hangs, and the directory opens
// again in this process.
func TestFaults(t *testing.T) {
	for _, k := range storetest.Kinds() {
		for _, forever := range []bool{false, true} {
			name := k.Name + " once"
			if forever {
				name = k.Name + " from then on"
			}
			t.Run(name, func(t *testing.T) {
				died, total := 0, 0
				for n := int64(0); ; n++ {
					f := &storetest.Fault{Match: k.Match, From: n, Forever: forever}
					dead := faultRun(t, f)
					if f.Fired() == nil {
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
func faultRun(t *testing.T, f *storetest.Fault) (died bool) {
	t.Helper()
	mem := storetest.NewFS()
	cfg := smallConfig(f.Wrap(mem))
	cfg.MemTableSize = 32 << 10
	cfg.MaxPending = 20
	var deaths atomic.Int32
	cfg.OnDead = func(error) { deaths.Add(1) }
	fail := func(format string, args ...any) {
		t.Helper()
		if op := f.Fired(); op != nil {
			t.Logf("failed operation: %+v", *op)
		}
		t.Fatalf(format, args...)
	}
	w := &crashWorkload{histories: newHistories()}
	within(t, func() {
		var err error
		if w.s, err = Open(cfg); err != nil {
			if !errors.Is(err, storetest.ErrDisk) || !strings.Contains(err.Error(), `"/db"`) {
				fail("open: %v", err)
			}
			return
		}
		defer func() {
			// What a disk does that is full for a while, but not of the WAL.
			f.Off.Store(true)
			err := w.s.Close()
			if w.s.Err() == nil && err != nil {
				fail("close: %v", err)
			}
		}()
		ran := make(chan struct{})
		go func() {
			defer close(ran)
			w.run(uint64(f.From), 25)
		}()
		if f.Forever {
			// Writes may wait for a table to be written: let them, then give in.
			select {
			case <-ran:
			case <-w.s.Dead():
			case <-time.After(20 * time.Millisecond):
			}
			f.Off.Store(true)
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
	f.Off.Store(true)
	acked := w.acked()
	crashed := mem.Cut(vfs.CrashCloneCfg{})
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

// TestADiskFullOutsideTheLogOnlySlows fails every write of a table for a minute: commits wait, tables are tried again
// ever less often, at last once in a second, and commits go on when there is room.
func TestADiskFullOutsideTheLogOnlySlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const minute, most = 60, 10 + 60 // seconds, and attempts in it: ten until they are a second apart
		f := &storetest.Fault{Forever: true}
		f.Match = func(op errorfs.Op) bool {
			if f.Seen() > 10*most {
				panic("it spins") // and time stands still
			}
			return strings.HasSuffix(op.Path, ".sst") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemove
		}
		mem := storetest.NewFS()
		cfg := smallConfig(f.Wrap(mem))
		cfg.MemTableSize = 32 << 10
		cfg.MaxPending = 20
		w := &crashWorkload{s: mustOpen(t, cfg), histories: newHistories()}
		ran := make(chan struct{})
		go func() {
			defer close(ran)
			w.run(1, 100)
		}()
		synctest.Wait()
		answered := w.answers.Load()
		time.Sleep(minute * time.Second)
		synctest.Wait()
		select {
		case <-ran:
			t.Error("nothing waited")
		default:
		}
		if n := w.answers.Load() - answered; n != 0 || answered == 0 {
			t.Errorf("%d commits are answered at once, and %d in the minute", answered, n)
		}
		if n := f.Seen(); n < most/2 || n > most {
			t.Errorf("%d failed writes in a minute", n)
		}
		must(t, w.s.Err())
		f.Off.Store(true)
		<-ran
		acked := w.acked()
		verifyDir(t, mem.Cut(vfs.CrashCloneCfg{}), "/db", w, acked)
		must(t, w.s.Close())
		if w.answers.Load() != w.commits.Load() || w.failures.Load() != 0 {
			t.Errorf("%d commits, %d answers, %d failures", w.commits.Load(), w.answers.Load(), w.failures.Load())
		}
	})
}
