package gate

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// A sink collects what a gate releases.
type sink struct {
	Gate[string]
	got []string
}

func newSink() *sink {
	s := &sink{}
	s.Init(func(out string, err error) {
		if err != nil {
			out += ": " + err.Error()
		}
		s.got = append(s.got, out)
	}, func() {})
	return s
}

func (s *sink) expect(t *testing.T, want ...string) {
	t.Helper()
	if len(s.got) != len(want) || len(want) > 0 && !reflect.DeepEqual(s.got, want) {
		t.Fatalf("released %q, want %q", s.got, want)
	}
	s.got = nil
}

func TestOutputWithNothingOutstandingLeavesAtOnce(t *testing.T) {
	s := newSink()
	s.Hold("a")
	s.expect(t, "a")
}

func TestOutputWaitsForTheCommitsBeforeIt(t *testing.T) {
	s := newSink()
	one := s.Issue(true)
	s.Hold("a")
	two := s.Issue(true)
	s.Hold("b")
	s.expect(t)
	s.Open(one)
	s.expect(t, "a")
	s.Hold("c")
	s.expect(t)
	s.Open(two)
	s.expect(t, "b", "c")
	if !s.Quiet() {
		t.Fatal("gate is not quiet")
	}
}

// TestFailureIsOfWhatItFinds: what was durable before leaves without it, and what was not never does, though it was
// forgiven when others were let go.
func TestFailureIsOfWhatItFinds(t *testing.T) {
	s := newSink()
	letGo := s.release
	s.Init(func(out string, err error) {
		if out == "a" { // on the way meanwhile
			two := s.Issue(true)
			s.Hold("b")
			three := s.Issue(true)
			s.Hold("c")
			s.Confirm(two)
			s.Fail(three, errors.New("disk"))
			s.Hold("d")
			s.Forgive()
			s.Hold("e")
		}
		letGo(out, err)
	}, func() {})
	one := s.Issue(true)
	s.Hold("a")
	s.Open(one)
	s.expect(t, "a", "b", "c: disk", "d: disk", "e")
	if !s.Quiet() {
		t.Fatal("gate is not quiet")
	}
}

func TestFailureReleasesWithTheErrorUntilForgiven(t *testing.T) {
	s := newSink()
	one := s.Issue(true)
	s.Hold("a")
	s.Fail(one, errors.New("disk"))
	s.Hold("b")
	s.expect(t, "a: disk", "b: disk")
	s.Forgive()
	s.Hold("c")
	s.expect(t, "c")
}

// TestOutputIsTakenThroughOnlyWhereNothingWaits, nothing has failed, and nobody is letting others go; else it is held like
// any other. Whoever takes it through is overtaken by nobody.
func TestOutputIsTakenThroughOnlyWhereNothingWaits(t *testing.T) {
	s := newSink()
	take := func(want bool, outs ...string) {
		t.Helper()
		if through := s.TakeThrough(outs); through != want {
			t.Fatalf("%q taken through: %v, want %v", outs, through, want)
		}
	}
	take(true, "a")
	if s.Quiet() {
		t.Fatal("quiet while output is on its way")
	}
	take(false, "b", "c")
	s.Hold("d")
	s.expect(t)
	s.PassedThrough()
	s.expect(t, "b", "c", "d")

	one := s.Issue(true)
	take(false, "e")
	s.Drain()
	s.expect(t)
	s.Confirm(one)
	take(false, "f") // behind e, which waits to be drained
	s.Drain()
	s.expect(t, "e", "f")

	s.Fail(s.Issue(true), errors.New("disk"))
	take(false, "g")
	s.Drain()
	s.expect(t, "g: disk")
	s.Forgive()

	s.Issue(false)
	take(true, "h") // it need not wait
	s.PassedThrough()
	s.expect(t)
}

// TestWhatWasReleasedIsNotKept in the room that is kept for others.
func TestWhatWasReleasedIsNotKept(t *testing.T) {
	s := newSink()
	one := s.Issue(true)
	for range maxSpare / 2 {
		s.Hold("a")
	}
	s.Open(one)
	if cap(s.held) == 0 {
		t.Fatal("no room is kept")
	}
	for i, h := range s.held[:cap(s.held)] {
		if h.out != "" {
			t.Errorf("%d of %d is kept", i, cap(s.held))
		}
	}
	two := s.Issue(true)
	for range 2 * maxSpare {
		s.Hold("b")
	}
	s.Open(two)
	if n := cap(s.held); n > maxSpare {
		t.Errorf("room for %d is kept", n)
	}
}

func TestOutputHeldDuringAReleaseKeepsItsPlace(t *testing.T) {
	var got []string
	var g Gate[string]
	g.Init(func(out string, _ error) {
		got = append(got, out)
		if out == "a" {
			g.Hold("c") // behind b, which is already on its way
		}
	}, func() {})
	g.Append("a", "b")
	g.Drain()
	if want := []string{"a", "b", "c"}; !reflect.DeepEqual(got, want) {
		t.Fatalf("released %q, want %q", got, want)
	}
}

// TestReleaseOrderIsHoldOrder holds from several goroutines while commits become
// durable in another.
func TestReleaseOrderIsHoldOrder(t *testing.T) {
	var g Gate[[2]int]
	last := map[int]int{}
	n := 0
	g.Init(func(out [2]int, _ error) { // the gate calls it one at a time
		if out[1] != last[out[0]]+1 {
			t.Errorf("goroutine %d: %d after %d", out[0], out[1], last[out[0]])
		}
		last[out[0]] = out[1]
		n++
	}, func() {})
	commits := make(chan Seq, 100)
	var holders, opener sync.WaitGroup
	opener.Go(func() {
		for s := range commits {
			g.Open(s)
		}
	})
	var order sync.Mutex // commits are issued and opened in one order
	for id := range 4 {
		holders.Go(func() {
			for i := range 2000 {
				if i%3 == 0 {
					order.Lock()
					commits <- g.Issue(true)
					order.Unlock()
				}
				g.Hold([2]int{id, i + 1})
			}
		})
	}
	holders.Wait()
	close(commits)
	opener.Wait()
	if n != 8000 || !g.Quiet() {
		t.Fatalf("released %d of 8000, quiet %v", n, g.Quiet())
	}
}

// TestGateModel compares a gate with the obvious model.
func TestGateModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSink()
		type item struct {
			after Seq
			name  string
		}
		var issued, durable Seq
		var waiting []item
		var want []string
		settle := func() {
			for len(waiting) > 0 && waiting[0].after <= durable {
				want = append(want, waiting[0].name)
				waiting = waiting[1:]
			}
		}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				issued = s.Issue(true)
			case 1:
				name := fmt.Sprint(i)
				waiting = append(waiting, item{issued, name})
				s.Hold(name)
			case 2:
				if durable < issued {
					durable++
					s.Open(durable)
				}
			case 3:
				if durable < issued {
					durable++
					s.Confirm(durable)
					if len(s.got) != len(want) {
						t.Fatalf("confirmed, and released %q", s.got)
					}
					s.Drain()
				}
			}
			settle()
			if len(s.got) != len(want) || len(want) > 0 && !reflect.DeepEqual(s.got, want) {
				t.Fatalf("released %q, want %q", s.got, want)
			}
		}
	})
}

func TestOutputPassesCommitsThatItNeedNotWaitFor(t *testing.T) {
	s := newSink()
	loose := s.Issue(false)
	s.Hold("a")
	s.expect(t, "a")
	s.HoldForAll("b") // unless it says so; then what comes behind keeps its place
	s.Hold("c")
	s.expect(t)
	if s.Quiet() {
		t.Fatal("quiet with a commit outstanding")
	}
	s.Open(loose)
	s.expect(t, "b", "c")
	loose, strict := s.Issue(false), s.Issue(true)
	s.Hold("d")
	s.Open(loose)
	s.expect(t)
	s.Open(strict)
	s.expect(t, "d")
}
