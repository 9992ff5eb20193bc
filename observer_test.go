package hibernate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

type spanKey struct{}

// A tracer writes down what an Observer is told, each turn as a child of the one in its ctx.
type tracer struct {
	mu    sync.Mutex
	lines []string
}

func (tr *tracer) TurnStart(ctx context.Context, t hibernate.TurnInfo) context.Context {
	parent, _ := ctx.Value(spanKey{}).(string)
	span := fmt.Sprintf("%s/%s:%v", parent, t.Name, t.Cause)
	if t.Constructor {
		span += "+"
	}
	return context.WithValue(ctx, spanKey{}, span)
}

func (tr *tracer) TurnEnd(ctx context.Context, t hibernate.TurnInfo, err error, took time.Duration) {
	line := fmt.Sprintf("%v %v", ctx.Value(spanKey{}), took)
	if err != nil {
		line += " " + err.Error()
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.lines = append(tr.lines, line)
}

func (tr *tracer) take() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	s := strings.Join(tr.lines, "\n")
	tr.lines = nil
	return s
}

// TestObserverIsToldOfEveryTurn with its cause, outcome and time, and its context is in the handler's.
func TestObserverIsToldOfEveryTurn(t *testing.T) {
	tr := &tracer{}
	r := newRig(t, "", &hibernate.Options{Observer: tr})
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		defer a.tell("%v", ctx.Value(spanKey{}))
		switch m.Text() {
		case "call":
			_, err := line.Call(ctx, r.ns.GetByName("b"), r.next(func(context.Context, *actor) error { return nil }))
			return err
		case "wait":
			return hibernate.Await(ctx, func(context.Context) error { r.clock.Advance(3 * time.Second); return nil })
		case "panic":
			panic("oh")
		case "exit":
			runtime.Goexit()
		}
		return errors.New("no")
	}}, nil)
	c := r.dial("/o/a")
	for _, step := range []struct{ send, want string }{
		{"", "/a:request+ 0s\n/a:request 0s"},
		{"call", "/a:message/b:call+ 0s\n/a:message/b:call 0s\n/a:message 0s"},
		{"wait", "/a:message 3s"},
		{"fail", "/a:message 0s no"},
		{"panic", "/a:message 0s handler panicked: oh"},
		{"exit", "/a:message+ 0s\n/a:message 0s handler panicked: runtime.Goexit called in a handler"},
	} {
		if step.send != "" {
			c.send(step.send)
			r.hear("/a:message")
		}
		got := ""
		r.until("turns to be told", func() bool {
			if more := tr.take(); more != "" {
				got = strings.TrimPrefix(got+"\n"+more, "\n")
			}
			return len(got) >= len(step.want)
		})
		if got != step.want {
			t.Errorf("after %q:\n%s\nwant\n%s", step.send, got, step.want)
		}
	}
}

// TestTurnsAreTimedWhenAsked, and commits always.
func TestTurnsAreTimedWhenAsked(t *testing.T) {
	for _, asked := range []bool{false, true} {
		r := newRig(t, "", &hibernate.Options{TurnTimes: asked})
		r.act(&script{}, nil)
		r.must("a", func(ctx context.Context, a *actor) error {
			r.clock.Advance(5 * time.Millisecond)
			return a.state.Storage().PutBytes(ctx, "k", nil)
		})
		s := r.rt.Stats()
		if s.TurnTime != r.ns.Stats().TurnTime {
			t.Errorf("the only class's times are %+v, those of all %+v", r.ns.Stats().TurnTime, s.TurnTime)
		}
		if h := s.TurnTime; asked && (h.Count() != 2 || h.Sum != 5*time.Millisecond || h.Quantile(1) != 16384*time.Microsecond) || !asked && h.Count() != 0 {
			t.Errorf("asked %v: turns took %+v", asked, h)
		}
		if s.GateWait.Count() != s.Commits || s.Commits != 1 || s.Pending != 0 || s.MaxGroup != 1 || s.SyncTime <= 0 {
			t.Errorf("commits: %+v", s)
		}
	}
}

// TestHistogramPutsDurationsInTheirBuckets, the bounds included.
func TestHistogramPutsDurationsInTheirBuckets(t *testing.T) {
	var h hibernate.Histogram
	if h.Quantile(0.5) != 0 || h.Bound(0) != time.Microsecond || h.Bound(2) != 16*time.Microsecond || h.Bound(len(h.Buckets)-1) >= 0 {
		t.Errorf("bounds %v %v %v", h.Bound(0), h.Bound(2), h.Bound(len(h.Buckets)-1))
	}
	h.Buckets[1], h.Buckets[3], h.Buckets[len(h.Buckets)-1] = 90, 9, 1
	for q, want := range map[float64]time.Duration{0: h.Bound(1), 0.9: h.Bound(1), 0.91: h.Bound(3), 0.99: h.Bound(3), 1: -1} {
		if got := h.Quantile(q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
}

// TestTurnsAreLabelledInProfilesWhenAsked with class and event, and their goroutines not when they are done.
func TestTurnsAreLabelledInProfilesWhenAsked(t *testing.T) {
	profile := func() string {
		var b bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	const labels = `labels: {"class":"Test", "event":"message"}`
	for _, asked := range []bool{false, true} {
		r := newRig(t, "", &hibernate.Options{ProfileLabels: asked})
		free := make(chan struct{})
		r.act(&script{
			http: func(a *actor, w http.ResponseWriter, q *http.Request) { _, _ = a.state.AcceptWebSocket(w, q, nil) },
			message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
				a.tell("in")
				<-free
				return nil
			},
		}, nil)
		r.dial("/o/a").send("x")
		r.hear("in")
		if is := strings.Contains(profile(), labels); is != asked {
			t.Errorf("asked %v, labelled %v", asked, is)
		}
		close(free)
		r.turn("a")
		if strings.Contains(profile(), labels) {
			t.Error("labelled after the turn")
		}
	}
}
