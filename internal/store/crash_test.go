package store

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hibernate-go/hibernate/internal/storetest"
)

var cuts = flag.Int("store.cuts", 200, "how often TestCrash cuts the power")

const crashObjects = 12

func crashID(i int) ID { return ID{0: byte(i), 1: 0xcc} }

// crashWorkload writes to all objects from several goroutines until stop. Each
// commit changes many keys, so that half of one is seen.
type crashWorkload struct {
	s         *Store
	histories [crashObjects]*history
	commits   atomic.Int64 // handed over
	answers   atomic.Int64
	failures  atomic.Int64 // of those, errors
}

// run commits about n times for each object. It returns when the store fails,
// or all commits are handed over.
func (w *crashWorkload) run(seed uint64, n int) {
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(g)))
			objects := map[int]*Object{}
			for range n * crashObjects / 3 {
				i := rng.IntN(crashObjects/3)*3 + g
				if objects[i] == nil {
					objects[i] = w.s.Object(crashID(i), "Crash", "")
				}
				if !w.turn(rng, objects[i], w.histories[i]) {
					break
				}
				if rng.IntN(5) == 0 {
					objects[i].Close()
					delete(objects, i)
				}
			}
			for _, o := range objects {
				o.Close()
			}
		})
	}
	wg.Wait()
}

func (w *crashWorkload) turn(rng *rand.Rand, o *Object, h *history) bool {
	h.mu.Lock()
	n := len(h.states)
	state := h.states[n-1].clone()
	h.mu.Unlock()
	if rng.IntN(10) == 0 {
		if o.DeleteAll() != nil {
			return false
		}
		state = modelState{keys: map[string]string{}}
		if rng.IntN(2) == 0 && n > 1 {
			return w.commit(o, h, state)
		}
	}
	value := fmt.Sprint(n) + strings.Repeat(".", rng.IntN(1200))
	for range 1 + rng.IntN(6) {
		k := fmt.Sprint("k", rng.IntN(10))
		if o.Put(k, []byte(value)) != nil {
			return false
		}
		state.keys[k] = value
	}
	depth := o.Begin()
	undone := fmt.Sprint("k", rng.IntN(10))
	if _, err := del(o, undone, "never"); err != nil {
		return false
	}
	if rng.IntN(2) == 0 {
		o.Rollback(depth)
	} else {
		o.Release(depth)
		delete(state.keys, undone)
	}
	if rng.IntN(3) == 0 {
		state.alarm = Alarm{Next: int64(n)}
		if o.SetAlarm(state.alarm) != nil {
			return false
		}
	}
	return w.commit(o, h, state)
}

func (w *crashWorkload) commit(o *Object, h *history, state modelState) bool {
	h.mu.Lock()
	n := len(h.states)
	h.states = append(h.states, state)
	h.mu.Unlock()
	w.commits.Add(1)
	o.Commit(func(err error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if w.answers.Add(1); err != nil {
			w.failures.Add(1)
		} else if h.acked == n-1 {
			h.acked = n
		} else {
			panic(fmt.Sprintf("answer to commit %d came after that to %d", n, h.acked))
		}
	})
	return w.s.Throttle(context.Background()) == nil
}

func newHistories() (hs [crashObjects]*history) {
	for i := range hs {
		hs[i] = &history{states: []modelState{{keys: map[string]string{}}}}
	}
	return hs
}

func (w *crashWorkload) acked() (n [crashObjects]int) {
	for i, h := range w.histories {
		h.mu.Lock()
		n[i] = h.acked
		h.mu.Unlock()
	}
	return n
}

// TestCrash cuts the power at any moment of a random workload, again and again
// on what the last cut left.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	fs := storetest.NewFS()
	histories := newHistories()
	var answered, lost int64
	for cut := range *cuts {
		if cut%20 == 19 { // the histories would grow for ever
			fs, histories = storetest.NewFS(), newHistories()
		}
		cfg := smallConfig(fs)
		cfg.MaxPending = 1 + rng.IntN(40)
		w := &crashWorkload{s: mustOpen(t, cfg), histories: histories}
		done := make(chan struct{})
		seed, turns := rng.Uint64(), 1+rng.IntN(20)
		go func() {
			defer close(done)
			w.run(seed, turns)
		}()

		// Cut after a random number of answers, or when nothing is left to cut.
		after := int64(rng.IntN(150))
		var acked [crashObjects]int
		var snapshots []string
		for over := false; !over; runtime.Gosched() {
			select {
			case <-done:
				over = true
			default:
				over = w.answers.Load() >= after
			}
			if rng.IntN(2000) == 0 {
				dir := fmt.Sprintf("/snapshot-%d-%d", cut, len(snapshots))
				acked := w.acked()
				must(t, w.s.Snapshot(context.Background(), dir))
				verifyDir(t, fs, dir, w, acked)
				snapshots = append(snapshots, dir)
			}
		}
		acked = w.acked()
		after = w.answers.Load()
		crashed := fs.Cut(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 0, 50, 90, 100}[rng.IntN(5)], RNG: rng})
		answered += after
		<-done
		must(t, w.s.Close())
		if w.answers.Load() != w.commits.Load() || w.failures.Load() != 0 {
			t.Fatalf("%d commits, %d answers, %d failures", w.commits.Load(), w.answers.Load(), w.failures.Load())
		}
		lost += w.commits.Load() - after

		states := verifyDir(t, crashed, "/db", w, acked)
		for i, h := range histories {
			h.states, h.acked = []modelState{states[i]}, 0
		}
		fs = crashed
		for _, dir := range snapshots {
			must(t, fs.RemoveAll(dir))
		}
	}
	t.Logf("%d cuts, %d commits answered before them, %d after", *cuts, answered, lost)
}

// verifyDir opens a directory and verifies all of it.
func verifyDir(t *testing.T, fs vfs.FS, dir string, w *crashWorkload, acked [crashObjects]int) (states [crashObjects]modelState) {
	t.Helper()
	cfg := smallConfig(fs)
	cfg.Dir = dir
	cfg.setDefaults()
	e, err := openPebble(&cfg)
	must(t, err)
	for i := range states {
		states[i] = w.histories[i].verify(t, e, crashID(i), acked[i])
	}
	checkConsistency(t, e)
	must(t, e.Close())
	return states
}
