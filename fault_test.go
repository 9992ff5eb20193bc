package hibernate_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/storetest"
)

// TestFaults fails each operation of the disk in turn, once and from then on. No
// output that anybody saw is lost, nothing hangs, and a runtime that cannot go on
// says so by all its means.
func TestFaults(t *testing.T) {
	for _, k := range storetest.Kinds() {
		for _, forever := range []bool{false, true} {
			name := k.Name + " once"
			if forever {
				name = k.Name + " from then on"
			}
			t.Run(name, func(t *testing.T) {
				died, total := 0, 0
				for n := int64(0); ; n += 1 + n/8 { // most of the later ones are alike
					f := &storetest.Fault{Match: k.Match, From: n, Forever: forever}
					dead := faultyLife(t, f)
					if t.Failed() {
						t.Fatalf("operation %d: %+v", n, f.Fired())
					}
					if f.Fired() == nil {
						break
					}
					if total++; dead {
						died++
					}
				}
				t.Logf("%d operations failed, %d were deadly", total, died)
			})
		}
	}
}

// faultyLife runs a workload over a fault and reports whether the runtime died.
func faultyLife(t *testing.T, f *storetest.Fault) (died bool) {
	t.Helper()
	disk := storetest.NewFS()
	cfg := clerkConfig(f.Wrap(disk), "/db")
	cfg.MemTableSize, cfg.MaxPending = 32<<10, 20
	var fatal atomic.Int32
	told := make(chan error, 10)
	o := hibernate.Options{OnFatal: func(err error) { fatal.Add(1); told <- err }}
	books := newBooks(noStates())
	inTime(t, "the life", func() {
		l, err := openClerks(t, cfg, o, epoch, books)
		if err != nil {
			if !errors.Is(err, storetest.ErrDisk) || !strings.Contains(err.Error(), `"/db"`) {
				t.Errorf("open: %v", err)
			}
			return
		}
		ran := make(chan struct{})
		wait := l.run(uint64(f.From), 60, f.From%4 == 0)
		go func() {
			defer close(ran)
			wait()
		}()
		if f.Forever { // writes may wait for a table to be written: let them, then give in
			select {
			case <-ran:
			case <-l.rt.Done():
			case <-time.After(20 * time.Millisecond):
			}
			f.Off.Store(true)
		}
		<-ran
		_, err = clerkTurn.Call(context.Background(), l.stub(0), 11)
		if died = errors.Is(err, hibernate.ErrUnavailable); died {
			deadTells(t, l, told)
		} else if n := l.refused.Load(); n > 0 {
			t.Errorf("%d calls failed on a runtime that lives", n)
		}
		f.Off.Store(true)
		if err := l.rt.Close(); err != nil && !died {
			t.Errorf("close: %v", err)
		}
	})
	if n := fatal.Load(); n > 1 || n == 1 && !died {
		t.Errorf("OnFatal was called %d times, died %v", n, died)
	}
	f.Off.Store(true)

	// What was seen is there after a power failure, and in the directory as it was
	// left, which opens again in this process.
	seen := (&clerkLife{books: books}).seen()
	verifyClerks(t, disk.Cut(vfs.CrashCloneCfg{}), "/db", books, seen)
	inTime(t, "opening again", func() {
		for {
			s, err := store.Open(clerkConfig(disk, "/db"))
			if err == nil {
				err = s.Close()
			} else if errors.Is(err, store.ErrLocked) {
				time.Sleep(time.Millisecond) // until nothing of the dead store is under way
				continue
			}
			if err != nil {
				t.Errorf("open again: %v", err)
			}
			return
		}
	})
	verifyClerks(t, disk, "/db", books, seen)
	return died
}

// deadTells checks all that a dead runtime says.
func deadTells(t *testing.T, l *clerkLife, told <-chan error) {
	t.Helper()
	<-l.rt.Done()
	for what, err := range map[string]error{"Err": l.rt.Err(), "OnFatal": <-told} {
		if !errors.Is(err, hibernate.ErrUnavailable) || !errors.Is(err, storetest.ErrDisk) && !strings.Contains(err.Error(), storetest.ErrDisk.Error()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	w := httptest.NewRecorder()
	l.stub(1).ServeHTTP(w, httptest.NewRequest("GET", "/?5", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("a request to a dead runtime: %d %s", w.Code, w.Body)
	}
	if _, err := clerkTurn.Call(context.Background(), l.stub(2), 5); !errors.Is(err, hibernate.ErrUnavailable) {
		t.Errorf("a call to a dead runtime: %v", err)
	}
	if err := l.rt.Snapshot(context.Background(), "/copy"); !errors.Is(err, hibernate.ErrUnavailable) {
		t.Errorf("a snapshot of a dead runtime: %v", err)
	}
}

// inTime ends the process if f hangs, so that all goroutines are shown.
func inTime(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		hangs(what)
	}
}
