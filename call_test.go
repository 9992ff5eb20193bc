package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/hibernate-go/hibernate"
)

// A caller calls what it is told to.
type caller struct {
	state *hibernate.State
	ns    func() *hibernate.Namespace
	n     int
}

// An order is a chain of calls: the first of Path is called with the rest.
type order struct {
	Path   []string
	Pinned bool // call from inside a transaction
	Fail   string
	Panic  bool
}

var (
	count = hibernate.NewMethod("count", func(c *caller, ctx context.Context, by int) (int, error) {
		c.n += by
		return c.n, hibernate.Put(ctx, c.state.Storage(), "n", c.n)
	})
)

func relayMethod() *hibernate.Method[*caller, order, string] {
	return hibernate.NewMethod("relay", (*caller).Relay)
}

func (c *caller) Relay(ctx context.Context, o order) (string, error) {
	switch {
	case o.Panic && len(o.Path) == 0:
		panic("asked to")
	case o.Fail != "" && len(o.Path) == 0:
		return "", fmt.Errorf("%s: %w", o.Fail, errRelay)
	case len(o.Path) == 0:
		return c.state.Name(), nil
	}
	next := order{Path: o.Path[1:], Fail: o.Fail, Panic: o.Panic}
	call := func(ctx context.Context) (string, error) {
		m := hibernate.NewMethod("relay", func(c *caller, ctx context.Context, o order) (string, error) { return c.Relay(ctx, o) })
		return m.Call(ctx, c.ns().GetByName(o.Path[0]), next)
	}
	var got string
	var err error
	if o.Pinned {
		err = c.state.Storage().Transaction(ctx, func(ctx context.Context, _ *hibernate.Txn) error {
			got, err = call(ctx)
			return err
		})
	} else {
		got, err = call(ctx)
	}
	return c.state.Name() + ">" + got, err
}

var errRelay = errors.New("relay refused")

func newCallers(t *testing.T, dir string) *rig {
	r := newRig(t, dir, nil)
	serve(r, func(_ context.Context, s *hibernate.State) (*caller, error) {
		return &caller{state: s, ns: func() *hibernate.Namespace { return r.ns }}, nil
	}, nil)
	return r
}

var relay = relayMethod()

func TestCallRunsInTheOtherObject(t *testing.T) {
	r := newCallers(t, "")
	ctx := context.Background()
	for _, path := range [][]string{{"b"}, {"b", "c"}, {"a"}, {"b", "a"}, {"b", "c", "a"}, {"b", "a", "b", "a"}} {
		got, err := relay.Call(ctx, r.ns.GetByName("a"), order{Path: path})
		want := "a"
		for _, p := range path {
			want += ">" + p
		}
		if err != nil || got != want {
			t.Errorf("%v: %q, %v", path, got, err)
		}
	}
	// Also to an object that sleeps.
	r.hibernate()
	if got, err := relay.Call(ctx, r.ns.GetByName("a"), order{Path: []string{"b"}}); err != nil || got != "a>b" {
		t.Errorf("asleep: %q, %v", got, err)
	}
}

func TestCallThatWouldCloseACircleIsRefused(t *testing.T) {
	r := newCallers(t, "")
	for _, path := range [][]string{{"a"}, {"b", "a"}, {"b", "c", "a"}} {
		_, err := relay.Call(context.Background(), r.ns.GetByName("a"), order{Path: path, Pinned: true})
		if !errors.Is(err, hibernate.ErrReentrant) {
			t.Errorf("%v: %v", path, err)
		}
	}
	if got, err := relay.Call(context.Background(), r.ns.GetByName("a"), order{Path: []string{"b", "c"}, Pinned: true}); err != nil || got != "a>b>c" {
		t.Errorf("no circle: %q, %v", got, err)
	}
}

// TestCrossingCallsDoNotHang has two objects hold their turns and call each other
// at once: one of them is refused, or neither if they do not meet.
func TestCrossingCallsDoNotHang(t *testing.T) {
	r := newCallers(t, "")
	for range 200 {
		var wg sync.WaitGroup
		var errs [2]error
		for i, path := range [][2]string{{"a", "b"}, {"b", "a"}} {
			wg.Go(func() {
				_, errs[i] = relay.Call(context.Background(), r.ns.GetByName(path[0]), order{Path: path[1:], Pinned: true})
			})
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil && !errors.Is(err, hibernate.ErrReentrant) {
				t.Fatal(err)
			}
		}
		if errs[0] != nil && errs[1] != nil {
			t.Fatal("both were refused", errs)
		}
	}
}

func TestTwoObjectsCallEachOtherManyTimesAtOnce(t *testing.T) {
	r := newCallers(t, "")
	const calls, at = 10_000, 100
	var wg sync.WaitGroup
	for i := range at {
		from, to := "a", "b"
		if i%2 == 1 {
			from, to = to, from
		}
		wg.Go(func() {
			for range calls / at {
				if got, err := relay.Call(context.Background(), r.ns.GetByName(from), order{Path: []string{to}}); err != nil || got != from+">"+to {
					t.Errorf("%q, %v", got, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestCallErrorsKeepTheirType(t *testing.T) {
	r := newCallers(t, "")
	ctx := context.Background()
	a := r.ns.GetByName("a")
	if _, err := relay.Call(ctx, a, order{Path: []string{"b"}, Fail: "no"}); !errors.Is(err, errRelay) {
		t.Errorf("method's error: %v", err)
	}
	var p *hibernate.PanicError
	if _, err := relay.Call(ctx, a, order{Path: []string{"b"}, Panic: true}); !errors.As(err, &p) || p.Value != "asked to" {
		t.Errorf("panic: %v", err)
	}
	other, err := hibernate.Register(r.rt, "Other", func(context.Context, *hibernate.State) (*echo, error) { return &echo{}, nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := relay.Call(ctx, other.GetByName("x"), order{}); !errors.Is(err, hibernate.ErrInvalid) {
		t.Errorf("object of another type: %v", err)
	}
	if _, err := relay.Call(ctx, r.ns.Get(other.IDFromName("x")), order{}); !errors.Is(err, hibernate.ErrInvalid) {
		t.Errorf("id of another class: %v", err)
	}
	if _, err := relay.Call(ctx, hibernate.Stub{}, order{}); !errors.Is(err, hibernate.ErrInvalid) {
		t.Errorf("zero stub: %v", err)
	}
	r.rt.Close()
	if _, err := relay.Call(ctx, a, order{}); !errors.Is(err, hibernate.ErrUnavailable) {
		t.Errorf("closed runtime: %v", err)
	}
}

func TestResultOfACallIsDurable(t *testing.T) {
	dir := t.TempDir()
	r := newCallers(t, dir)
	for i := range 10 {
		if n, err := count.Call(context.Background(), r.ns.GetByName("a"), 1); err != nil || n != i+1 {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if s := r.rt.Stats(); s.Commits != 10 {
		t.Errorf("%d commits were durable before the tenth result", s.Commits)
	}
}

func TestListShowsWhatExistsAndWakesNobody(t *testing.T) {
	dir := t.TempDir()
	r := newCallers(t, dir)
	for _, name := range []string{"stored", "stored and connected"} {
		if _, err := count.Call(context.Background(), r.ns.GetByName(name), 1); err != nil {
			t.Fatal(err)
		}
	}
	r.dial("/o/connected")
	r.dial("/o/" + "stored%20and%20connected")
	r.hibernate()
	r.until("the listing", func() bool { return len(list(t, r)) == 3 })
	got := list(t, r)
	for name, sockets := range map[string]int{"stored": 0, "connected": 1, "stored and connected": 1} {
		o, ok := got[name]
		if !ok || o.Sockets != sockets || o.InMemory || o.ID != r.ns.IDFromName(name) {
			t.Errorf("%q: %+v", name, o)
		}
	}
	if n := r.rt.Stats().ObjectsInMemory; n != 0 {
		t.Errorf("%d objects were woken", n)
	}
}

func list(t *testing.T, r *rig) map[string]hibernate.ObjectInfo {
	got := map[string]hibernate.ObjectInfo{}
	last := ""
	for o, err := range r.ns.List(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		if id := o.ID.String(); id <= last {
			t.Errorf("id %s after %s", id, last)
		} else {
			last = id
		}
		got[o.Name] = o
	}
	return got
}
