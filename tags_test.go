package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// numbered is n tags that differ.
func numbered(n int) []string {
	var tags []string
	for i := range n {
		tags = append(tags, fmt.Sprintf("t%d", i))
	}
	return tags
}

// TestTagsOfAccept holds semantics 1.4 to 1.8 against the tags a socket is
// accepted with.
func TestTagsOfAccept(t *testing.T) {
	ten := numbered(10)
	for _, tc := range []struct {
		name string
		tags []string
		want []string
		fail bool // with a *LimitError
	}{
		{name: "none", tags: nil, want: nil},
		{name: "empty list", tags: []string{}, want: nil},
		{name: "empty tag", tags: []string{""}, want: []string{""}},
		{name: "duplicates", tags: []string{"z", "a", "z", "m", "a"}, want: []string{"z", "a", "m"}},
		{name: "ten", tags: ten, want: ten},
		{name: "eleven", tags: numbered(11), fail: true},
		{name: "thirty of one", tags: slices.Repeat([]string{"x"}, 30), want: []string{"x"}},
		{name: "duplicate after the tenth", tags: append(numbered(10), "t0"), fail: true},
		{name: "duplicate before the tenth", tags: append([]string{"t0"}, ten...), want: ten},
		{name: "256 bytes", tags: []string{strings.Repeat("x", 256)}, want: []string{strings.Repeat("x", 256)}},
		{name: "257 bytes", tags: []string{strings.Repeat("x", 257)}, fail: true},
		{name: "256 bytes in 128 characters", tags: []string{strings.Repeat("é", 128)}, want: []string{strings.Repeat("é", 128)}},
		{name: "258 bytes in 129 characters", tags: []string{strings.Repeat("é", 129)}, fail: true},
		{name: "long one last", tags: []string{"a", strings.Repeat("x", 257)}, fail: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, "", nil)
			r.act(&script{http: func(a *actor, w http.ResponseWriter, q *http.Request) {
				ws, err := a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Tags: tc.tags})
				if tc.fail {
					var l *hibernate.LimitError
					if !errors.As(err, &l) {
						t.Errorf("accept: %v, want a *LimitError", err)
					}
					if n := len(a.state.WebSockets()); n != 0 {
						t.Errorf("%d sockets after the refused accept", n)
					}
					ws, err = a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Tags: []string{"other"}})
				}
				if err != nil {
					t.Error(err)
					return
				}
				want := tc.want
				if tc.fail {
					want = []string{"other"}
				}
				if got := ws.Tags(); !slices.Equal(got, want) {
					t.Errorf("tags %q, want %q", got, want)
				}
			}}, nil)
			r.dial("/o/a")
			want := tc.want
			if tc.fail {
				want = []string{"other"}
			}
			for _, when := range []string{"awake", "asleep"} {
				r.must("a", func(ctx context.Context, a *actor) error {
					all := a.state.WebSockets()
					if len(all) != 1 || !slices.Equal(all[0].Tags(), want) {
						t.Errorf("%s: %d sockets, tags %q, want %q", when, len(all), all[0].Tags(), want)
					}
					for _, tag := range want {
						if by := a.state.WebSockets(tag); !slices.Equal(by, all) {
							t.Errorf("%s: not found by tag %q", when, tag)
						}
					}
					if n := len(a.state.WebSockets("unknown")); n != 0 {
						t.Errorf("%s: unknown tag finds %d sockets", when, n)
					}
					return nil
				})
				r.hibernate()
			}
		})
	}
}

// TestOrderOfWebSockets: newest first without a tag, oldest first with tags
// (semantics 2.1), also after departures and hibernation.
func TestOrderOfWebSockets(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(&script{close: func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
			a.tell("closed %s", ws.Tags()[0])
			return nil
		}}, nil)
		r.dial("/o/a?tag=1&tag=all&tag=odd")
		two := r.dial("/o/a?tag=2&tag=all")
		r.dial("/o/a?tag=3&tag=odd&tag=all")
		pause(r)
		r.dial("/o/a?tag=4&tag=all&tag=odd")
		pause(r)
		look := func(want string, tags ...string) {
			t.Helper()
			r.must("a", func(ctx context.Context, a *actor) error {
				var got []string
				for _, ws := range a.state.WebSockets(tags...) {
					got = append(got, ws.Tags()[0])
				}
				if s := strings.Join(got, " "); s != want {
					t.Errorf("WebSockets(%q) = %q, want %q", tags, s, want)
				}
				return nil
			})
		}
		look("4 3 2 1")
		look("1 2 3 4", "all")
		look("1 3 4", "odd")
		look("1 3 4", "odd", "all")
		look("1 3 4", "all", "odd")
		look("3", "odd", "3")
		look("", "2", "odd")
		look("", "all", "nobody")
		two.close(1000, "")
		r.hear("closed 2")
		pause(r)
		look("4 3 1")
		look("1 3 4", "all")
		look("", "2")
	})
}

// TestNoSocketsIsAnEmptyList covers 2.2.
func TestNoSocketsIsAnEmptyList(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	r.must("a", func(ctx context.Context, a *actor) error {
		if n := len(a.state.WebSockets()) + len(a.state.WebSockets("x")) + len(a.state.WebSockets("")); n != 0 {
			t.Errorf("%d sockets", n)
		}
		return nil
	})
}

// TestHandlesOfOneConnectionAreEqual, in every call and event, also across
// hibernation, where Go does better than 2.3.
func TestHandlesOfOneConnectionAreEqual(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		var kept hibernate.WebSocket
		r := newRig(t, "", nil)
		r.act(&script{
			http: func(a *actor, w http.ResponseWriter, q *http.Request) {
				ws, err := a.state.AcceptWebSocket(w, q, nil)
				if err != nil {
					t.Error(err)
				}
				if q.URL.RawQuery == "keep" {
					kept = ws
				}
			},
			message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
				a.tell("%v", ws == kept)
				return nil
			},
			close: func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
				a.tell("%v", ws == kept)
				return nil
			},
		}, nil)
		c, d := r.dial("/o/a?keep"), r.dial("/o/a")
		pause(r)
		c.send("x")
		r.hear("true")
		d.send("x")
		r.hear("false")
		pause(r)
		r.must("a", func(ctx context.Context, a *actor) error {
			seen := map[hibernate.WebSocket]bool{kept: true}
			for _, ws := range a.state.WebSockets() {
				seen[ws] = true
			}
			if len(seen) != 2 {
				t.Errorf("two connections have %d handles", len(seen))
			}
			return nil
		})
		c.close(1000, "")
		r.hear("true")
	})
}

// TestZeroWebSocketIsClosed: it answers like a connection that is gone and
// was closed.
func TestZeroWebSocketIsClosed(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	r.must("a", func(ctx context.Context, a *actor) error {
		var ws hibernate.WebSocket
		if err := ws.SendText(ctx, "x"); !errors.Is(err, hibernate.ErrClosed) {
			t.Errorf("send: %v", err)
		}
		if err := ws.Close(ctx, 1000, ""); !errors.Is(err, hibernate.ErrClosed) {
			t.Errorf("close: %v", err)
		}
		if err := ws.SerializeAttachment(ctx, 1); !errors.Is(err, hibernate.ErrClosed) {
			t.Errorf("attachment: %v", err)
		}
		if ws.ReadyState() != hibernate.StateClosed || ws.Tags() != nil || !ws.AutoResponseTime().IsZero() {
			t.Errorf("state %v, tags %q, time %v", ws.ReadyState(), ws.Tags(), ws.AutoResponseTime())
		}
		return nil
	})
}

// TestSecondAcceptIsRefused and leaves the socket and its tags as they are
// (semantics 1.2).
func TestSecondAcceptIsRefused(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{http: func(a *actor, w http.ResponseWriter, q *http.Request) {
		ws, err := a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Tags: []string{"first"}})
		if err != nil {
			t.Error(err)
		}
		if _, err := a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Tags: []string{"second"}}); !errors.Is(err, hibernate.ErrState) {
			t.Errorf("second accept: %v, want ErrState", err)
		}
		if got := a.state.WebSockets(); len(got) != 1 || got[0] != ws || !slices.Equal(ws.Tags(), []string{"first"}) {
			t.Errorf("sockets %v, tags %q", got, ws.Tags())
		}
		_ = ws.SendText(q.Context(), "hello")
	}}, nil)
	r.dial("/o/a").expect("text:hello")
}

// TestSocketsOfObjectAreLimited: one more than Limits.SocketsPerObject is a
// *LimitError, closing sockets count, and room is made when one goes.
func TestSocketsOfObjectAreLimited(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{SocketsPerObject: 2}})
	r.act(&script{
		http: func(a *actor, w http.ResponseWriter, q *http.Request) {
			if _, err := a.state.AcceptWebSocket(w, q, nil); err != nil {
				a.tell("%s", limit(err))
				http.Error(w, err.Error(), http.StatusTooManyRequests)
			}
		},
		close: func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
			a.tell("closed")
			return nil
		},
	}, nil)
	c := r.dial("/o/a")
	r.dial("/o/a")
	if got := r.raw(upgrade("/o/a")).response().StatusCode; got != 429 {
		t.Fatalf("status %d", got)
	}
	r.dial("/o/b") // another object has its own limit
	c.close(1000, "")
	r.hear("WebSockets of one object 3/2", "closed")
	r.turn("a")
	r.dial("/o/a")
}

// TestSocketsOfRuntimeAreLimited: over Limits.Sockets an upgrade is answered 503,
// and there is room again when a connection has gone.
func TestSocketsOfRuntimeAreLimited(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Sockets: 1}})
	serve(r, newEcho, nil)
	first := r.dial("/o/a")
	_, _, _, err := ws.Dial(t.Context(), "ws"+strings.TrimPrefix(r.srv.URL, "http")+"/o/b")
	if status, ok := err.(ws.StatusError); !ok || int(status) != http.StatusServiceUnavailable {
		t.Fatalf("second socket: %v", err)
	}
	first.close(1000, "")
	first.expect("close:1000 ", "eof")
	r.until("room", func() bool { return r.rt.Stats().Sockets == 0 })
	again := r.dial("/o/b")
	again.send("x")
	again.expect("text:x 1")
}
