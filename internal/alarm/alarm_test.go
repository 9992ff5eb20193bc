package alarm

import (
	"bytes"
	"cmp"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

var start = time.UnixMilli(1_700_000_000_000)

func TestFakeClockCallsInOrderOfTime(t *testing.T) {
	c := NewFake(start)
	var got []string
	at := func(name string, d time.Duration) Timer {
		return c.AfterFunc(d, func() { got = append(got, name+" "+c.Now().Sub(start).String()) })
	}
	at("late", 3*time.Second)
	at("soon", time.Second)
	at("same", time.Second)
	stopped := at("never", 2*time.Second)
	if !stopped.Stop() || stopped.Stop() {
		t.Fatal("Stop does not report what was pending")
	}
	c.Advance(2 * time.Second)
	c.Advance(2 * time.Second)
	if want := []string{"soon 1s", "same 1s", "late 3s"}; !reflect.DeepEqual(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestDeadlinesMoveAndClear(t *testing.T) {
	c := NewFake(start)
	timers := NewTimers(c)
	var got []string
	make := func(name string) *Deadline {
		return &Deadline{F: func() { got = append(got, name) }}
	}
	a, b, d := make("a"), make("b"), make("d")
	timers.Set(a, time.Second)
	timers.Set(b, 2*time.Second)
	timers.Set(d, 3*time.Second)
	timers.Set(a, 4*time.Second)
	if !timers.Clear(b) || timers.Clear(b) {
		t.Fatal("Clear does not report what was set")
	}
	c.Advance(3 * time.Second)
	c.Advance(time.Second)
	if want := []string{"d", "a"}; !reflect.DeepEqual(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	timers.Set(a, time.Second)
	timers.Stop()
	timers.Set(b, time.Second)
	c.Advance(time.Hour)
	if len(got) != 2 {
		t.Fatalf("called after Stop: %q", got)
	}
}

func TestTimersUseOneTimerOfTheClock(t *testing.T) {
	c := NewFake(start)
	timers := NewTimers(c)
	for i := range 1000 {
		timers.Set(&Deadline{F: func() {}}, time.Duration(1000-i)*time.Millisecond)
	}
	c.mu.Lock()
	n := len(c.timers)
	c.mu.Unlock()
	if n != 1 {
		t.Fatalf("%d timers for 1000 deadlines", n)
	}
	timers.Stop()
}

// A shelf is a Source in memory.
type shelf struct {
	mu        sync.Mutex
	entries   []Entry
	fired     []string
	open      map[string]func()
	refuse    map[string]bool
	maxListed int // at once
	listed    int
	busy      atomic.Int64
}

func (s *shelf) Busy(delta int) { s.busy.Add(int64(delta)) }

func (s *shelf) Pending(after Entry, limit int) ([]Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	behind := func(e Entry, after Entry) int {
		if c := cmp.Or(cmp.Compare(e.Due, after.Due), bytes.Compare(e.ID[:], after.ID[:])); c != 0 {
			return c
		}
		return -1
	}
	i, _ := slices.BinarySearchFunc(s.entries, after, behind)
	n := min(limit, len(s.entries)-i)
	s.maxListed = max(s.maxListed, n)
	s.listed += n
	return slices.Clone(s.entries[i : i+n]), nil
}

func (s *shelf) Fire(e Entry, concluded func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse[e.Class] {
		return false
	}
	s.fired = append(s.fired, string(e.ID[:1]))
	s.open[string(e.ID[:])] = concluded
	return true
}

// finish takes the alarm out and concludes it.
func (s *shelf) finish(id string) {
	var key [32]byte
	copy(key[:], id)
	s.mu.Lock()
	for i, e := range s.entries {
		if e.ID == key {
			s.entries = append(s.entries[:i], s.entries[i+1:]...)
			break
		}
	}
	concluded := s.open[string(key[:])]
	delete(s.open, string(key[:]))
	s.mu.Unlock()
	concluded()
}

func entry(id string, due time.Time) Entry {
	e := Entry{Class: "C", Due: due.UnixMilli()}
	copy(e.ID[:], id)
	return e
}

func (s *shelf) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.fired) != len(want) || len(want) > 0 && !reflect.DeepEqual(s.fired, want) {
		t.Fatalf("fired %q, want %q", s.fired, want)
	}
}

func TestSchedulerFiresWhatIsDueOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		src := &shelf{open: map[string]func(){}, entries: []Entry{entry("a", now.Add(-time.Hour)), entry("b", now.Add(time.Minute))}}
		s := NewScheduler(Real{}, src)
		defer s.Wait()
		defer s.Stop()
		s.Wake()
		src.expect(t, "a")
		s.Wake() // still under way: not again
		src.expect(t, "a")
		time.Sleep(time.Minute)
		src.expect(t, "a", "b")
		src.finish("a")
		src.finish("b")
		time.Sleep(time.Hour)
		src.expect(t, "a", "b")
	})
}

func TestSchedulerBoundsWhatRunsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &shelf{open: map[string]func(){}}
		for i := range 3000 {
			e := entry("x", time.Now())
			e.ID[1], e.ID[2] = byte(i>>8), byte(i)
			src.entries = append(src.entries, e)
		}
		s := NewScheduler(Real{}, src)
		defer s.Wait()
		defer s.Stop()
		s.Wake()
		synctest.Wait()
		done := 0
		for done < 3000 {
			src.mu.Lock()
			if n := len(src.open); n > maxRunning {
				t.Errorf("%d run at once", n)
			}
			ids := make([]string, 0, len(src.open))
			for id := range src.open {
				ids = append(ids, id)
			}
			src.mu.Unlock()
			if len(ids) == 0 {
				t.Fatalf("stuck after %d", done)
			}
			for _, id := range ids {
				src.finish(id)
				done++
			}
			synctest.Wait()
		}
		if src.maxListed > window {
			t.Errorf("listed %d at once", src.maxListed)
		}
	})
}

func TestSchedulerPassesOverWhatCannotRunYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := entry("o", time.Now().Add(-time.Second))
		other.Class = "Other"
		src := &shelf{open: map[string]func(){}, refuse: map[string]bool{"Other": true}, entries: []Entry{other, entry("a", time.Now())}}
		s := NewScheduler(Real{}, src)
		defer s.Wait()
		defer s.Stop()
		s.Wake()
		src.expect(t, "a")
		src.mu.Lock()
		src.refuse = nil
		src.mu.Unlock()
		s.Reconsider() // its class was registered
		src.expect(t, "a", "o")
	})
}

// TestSchedulerLooksPastAnyNumberThatCannotRun, a window at a time, and not at
// all of them for each alarm that is set.
func TestSchedulerLooksPastAnyNumberThatCannotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 100_000
		now := time.Now()
		src := &shelf{open: map[string]func(){}, refuse: map[string]bool{"Other": true}}
		for i := range many {
			e := entry("o", now.Add(-time.Hour).Add(time.Duration(i/100)*time.Millisecond))
			e.ID[1], e.ID[2], e.Class = byte(i%100>>8), byte(i%100), "Other"
			src.entries = append(src.entries, e)
		}
		src.entries = append(src.entries, entry("a", now))
		s := NewScheduler(Real{}, src)
		defer s.Wait()
		defer s.Stop()
		s.Wake()
		src.expect(t, "a")
		src.finish("a")
		src.expect(t, "a")
		listed := func() int {
			src.mu.Lock()
			defer src.mu.Unlock()
			n := src.listed
			src.listed = 0
			return n
		}
		listed()
		for range 10 {
			src.mu.Lock()
			src.entries = append(src.entries, entry("b", now))
			src.mu.Unlock()
			s.Wake()
			synctest.Wait()
			src.finish("b")
			synctest.Wait()
		}
		if n := listed(); n > 20*200 {
			t.Errorf("read %d entries for ten alarms", n)
		}
		time.Sleep(2 * relook)
		if n := listed(); n < many || n > 4*many {
			t.Errorf("read %d entries when it looked again", n)
		}
		src.mu.Lock()
		atOnce := src.maxListed
		src.mu.Unlock()
		if atOnce > window {
			t.Errorf("listed %d at once", atOnce)
		}
		s.Reconsider()
		synctest.Wait()
		if n := listed(); n < many {
			t.Errorf("read %d entries when a class was registered", n)
		}
	})
}

// TestSchedulerTriesAgainWhatWasRefused when nothing else is pending.
func TestSchedulerTriesAgainWhatWasRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &shelf{open: map[string]func(){}, refuse: map[string]bool{"C": true}, entries: []Entry{entry("a", time.Now())}}
		s := NewScheduler(Real{}, src)
		defer s.Wait()
		defer s.Stop()
		s.Wake()
		src.expect(t)
		src.mu.Lock()
		src.refuse = nil
		src.mu.Unlock()
		time.Sleep(relook)
		src.expect(t, "a")
	})
}

func TestSchedulerLooksAgainForAClockThatWasSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewFake(start)
		src := &shelf{open: map[string]func(){}, entries: []Entry{entry("a", start.Add(time.Hour))}}
		s := NewScheduler(c, src)
		defer s.Wait()
		defer s.Stop()
		s.Wake()
		synctest.Wait() // the scan is on its own goroutine
		if n := src.busy.Load(); n != 0 {
			t.Fatalf("busy with %d scans after the first", n)
		}
		at, ok := c.Next()
		if !ok || at.Sub(start) > relook {
			t.Fatalf("next look at %v, %v", at.Sub(start), ok)
		}
	})
}
