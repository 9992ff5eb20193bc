package hibernate_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

// only is the object's single socket.
func only(a *actor) hibernate.WebSocket {
	if all := a.state.WebSockets(); len(all) == 1 {
		return all[0]
	}
	return hibernate.WebSocket{}
}

// A seat is what tests attach.
type seat struct {
	Name  string
	Pos   []int
	At    time.Time
	Photo []byte
	Next  *seat
}

// TestAttachmentSurvivesHibernation covers semantics 3.1 and 3.5 for every
// codec: what comes back is a copy made at the call.
func TestAttachmentSurvivesHibernation(t *testing.T) {
	for name, codec := range map[string]hibernate.Codec{"default": nil, "CBOR": hibernate.CBOR(), "JSON": hibernate.JSON()} {
		t.Run(name, func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
				r := newRig(t, "", nil)
				r.act(&script{}, &hibernate.ClassOptions{Codec: codec})
				r.dial("/o/a")
				made := seat{Name: "é", Pos: []int{1, 2}, At: epoch.Add(time.Nanosecond), Photo: []byte{0, 255}, Next: &seat{Name: "n"}}
				r.must("a", func(ctx context.Context, a *actor) error {
					s := made
					s.Pos = []int{1, 2}
					if err := only(a).SerializeAttachment(ctx, &s); err != nil {
						return err
					}
					s.Name, s.Pos[0] = "changed", 9 // not seen
					return nil
				})
				pause(r)
				r.must("a", func(ctx context.Context, a *actor) error {
					got, ok, err := hibernate.Attachment[seat](only(a))
					if err != nil || !ok {
						t.Errorf("attachment: %v, %v", ok, err)
					}
					if !got.At.Equal(made.At) {
						t.Errorf("time %v, want %v", got.At, made.At)
					}
					if got.At = made.At; got.Next != nil {
						got.Next.At = time.Time{}
					}
					if !reflect.DeepEqual(got, made) {
						t.Errorf("got %+v, want %+v", got, made)
					}
					got.Pos[0] = 7 // a copy too
					again := seat{}
					if ok, err := only(a).DeserializeAttachment(&again); !ok || err != nil || again.Pos[0] != 1 {
						t.Errorf("again: %+v, %v, %v", again, ok, err)
					}
					return only(a).SerializeAttachment(ctx, "replaced")
				})
				pause(r)
				r.must("a", func(ctx context.Context, a *actor) error {
					if got, ok, err := hibernate.Attachment[string](only(a)); got != "replaced" || !ok || err != nil {
						t.Errorf("got %q, %v, %v", got, ok, err)
					}
					if _, ok, err := hibernate.Attachment[int](only(a)); err == nil || ok {
						t.Errorf("a string as int: %v, %v", ok, err)
					}
					return nil
				})
			})
		})
	}
}

// TestAttachmentNeverSetIsNotNil covers 3.2: nil can be stored and is not
// "never set".
func TestAttachmentNeverSetIsNotNil(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(&script{}, nil)
		r.dial("/o/a")
		pause(r)
		r.must("a", func(ctx context.Context, a *actor) error {
			v := "left alone"
			if ok, err := only(a).DeserializeAttachment(&v); ok || err != nil || v != "left alone" {
				t.Errorf("never set: %v, %v, %q", ok, err, v)
			}
			return only(a).SerializeAttachment(ctx, nil)
		})
		pause(r)
		r.must("a", func(ctx context.Context, a *actor) error {
			v, ok, err := hibernate.Attachment[*seat](only(a))
			if !ok || err != nil || v != nil {
				t.Errorf("nil stored: %v, %v, %v", v, ok, err)
			}
			return nil
		})
	})
}

// TestAttachmentOverLimitKeepsTheEarlier covers 3.3 and 3.4. A CBOR string of
// n bytes, 256 to 65,535, encodes in n+3.
func TestAttachmentOverLimitKeepsTheEarlier(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	r.dial("/o/a")
	longest := strings.Repeat("x", 16384-3)
	r.must("a", func(ctx context.Context, a *actor) error {
		ws := only(a)
		if err := ws.SerializeAttachment(ctx, longest); err != nil {
			t.Errorf("16,384 bytes: %v", err)
		}
		if got := limit(ws.SerializeAttachment(ctx, longest+"x")); !strings.HasSuffix(got, " 16385/16384") {
			t.Errorf("16,385 bytes: %s", got)
		}
		if err := ws.SerializeAttachment(ctx, func() {}); err == nil {
			t.Error("a function was attached")
		}
		if err := ws.SerializeAttachment(ctx, make(chan int)); err == nil {
			t.Error("a channel was attached")
		}
		if got, ok, err := hibernate.Attachment[string](ws); got != longest || !ok || err != nil {
			t.Errorf("kept %d bytes, %v, %v", len(got), ok, err)
		}
		return nil
	})
}

// TestAttachmentLimitIsSettable, and holds for the one given at accept, whose
// refusal leaves the request untouched (1.7).
func TestAttachmentLimitIsSettable(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Attachment: 8}})
	r.act(&script{http: func(a *actor, w http.ResponseWriter, q *http.Request) {
		_, err := a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Attachment: "12345678"})
		if got := limit(err); !strings.HasSuffix(got, " 9/8") {
			t.Errorf("9 bytes: %s", got)
		}
		if _, err := a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Attachment: "1234567"}); err != nil {
			t.Errorf("8 bytes: %v", err)
		}
	}}, nil)
	r.dial("/o/a")
	r.hibernate()
	r.must("a", func(ctx context.Context, a *actor) error {
		if got, ok, err := hibernate.Attachment[string](only(a)); got != "1234567" || !ok || err != nil {
			t.Errorf("got %q, %v, %v", got, ok, err)
		}
		return nil
	})
}

// TestAttachmentIsUndoneWithItsTurn: a panic takes it back to what the last
// commit left; an error does not.
func TestAttachmentIsUndoneWithItsTurn(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	r.dial("/o/a")
	want := func(want string) {
		t.Helper()
		r.must("a", func(ctx context.Context, a *actor) error {
			if got, _, err := hibernate.Attachment[string](only(a)); got != want || err != nil {
				t.Errorf("attachment %q, %v; want %q", got, err, want)
			}
			return nil
		})
	}
	set := func(ctx context.Context, a *actor, s string) {
		if err := only(a).SerializeAttachment(ctx, s); err != nil {
			t.Error(err)
		}
	}
	_ = r.in("a", func(ctx context.Context, a *actor) error { set(ctx, a, "1"); return errors.New("refused") })
	want("1")
	_ = r.in("a", func(ctx context.Context, a *actor) error { set(ctx, a, "2"); set(ctx, a, "3"); panic("undo") })
	want("1")
	_ = r.in("a", func(ctx context.Context, a *actor) error {
		set(ctx, a, "4")
		_ = hibernate.Await(ctx, func(context.Context) error { return nil })
		set(ctx, a, "5")
		panic("undo")
	})
	want("4")
}

// TestAttachmentInCloseHandler: readable and writable there and readable on a
// kept handle, gone with the connection otherwise (2.7, 3.5).
func TestAttachmentInCloseHandler(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		var kept hibernate.WebSocket
		r := newRig(t, "", nil)
		r.act(&script{close: func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
			if !e.WasClean {
				return nil // the next connection's, as the test ends
			}
			got, ok, err := hibernate.Attachment[string](ws)
			if got != "mine" || !ok || err != nil {
				t.Errorf("in the handler: %q, %v, %v", got, ok, err)
			}
			if err := ws.SerializeAttachment(ctx, "last"); err != nil {
				t.Error(err)
			}
			kept = ws
			a.tell("closed")
			return nil
		}}, nil)
		c := r.dial("/o/a")
		r.must("a", func(ctx context.Context, a *actor) error { return only(a).SerializeAttachment(ctx, "mine") })
		pause(r)
		c.close(1000, "")
		r.hear("closed")
		pause(r)
		r.turn("a")
		if got, ok, err := hibernate.Attachment[string](kept); got != "last" || !ok || err != nil {
			t.Errorf("on a kept handle: %q, %v, %v", got, ok, err)
		}
		r.dial("/o/a")
		r.must("a", func(ctx context.Context, a *actor) error {
			if _, ok, err := hibernate.Attachment[string](only(a)); ok || err != nil {
				t.Errorf("the next connection has an attachment: %v, %v", ok, err)
			}
			return nil
		})
	})
}

// TestAttachmentNeedsATurnToWrite: reading may happen anywhere.
func TestAttachmentNeedsATurnToWrite(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	r.dial("/o/a")
	var ws hibernate.WebSocket
	var old context.Context
	r.must("a", func(ctx context.Context, a *actor) error {
		ws, old = only(a), ctx
		return ws.SerializeAttachment(ctx, "x")
	})
	for _, ctx := range []context.Context{context.Background(), old} {
		if err := ws.SerializeAttachment(ctx, "y"); !errors.Is(err, hibernate.ErrOutsideTurn) {
			t.Errorf("outside: %v", err)
		}
	}
	if got, ok, err := hibernate.Attachment[string](ws); got != "x" || !ok || err != nil {
		t.Errorf("%q, %v, %v", got, ok, err)
	}
}

// TestCodecsKeepWhatTheyPromise: CBOR keeps times, byte slices and keys that
// are not strings.
func TestCodecsKeepWhatTheyPromise(t *testing.T) {
	c := hibernate.CBOR()
	round := func(in, out any) {
		t.Helper()
		b, err := c.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Unmarshal(b, out); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []time.Time{epoch, epoch.Add(123456789), time.Unix(0, 0).UTC(), time.UnixMilli(-1).UTC()} {
		var got time.Time
		if round(at, &got); !got.Equal(at) {
			t.Errorf("time %v came back as %v", at, got)
		}
	}
	m := map[int]string{-1: "a", 1 << 40: "b"}
	var gotM map[int]string
	if round(m, &gotM); !reflect.DeepEqual(gotM, m) {
		t.Errorf("map %v", gotM)
	}
	var gotB []byte
	if round([]byte{0, 1, 255}, &gotB); !bytes.Equal(gotB, []byte{0, 1, 255}) {
		t.Errorf("bytes %v", gotB)
	}
	var gotF float64
	if round(math.Inf(-1), &gotF); !math.IsInf(gotF, -1) {
		t.Errorf("float %v", gotF)
	}
	var any1 any
	if round(map[string]any{"at": epoch}, &any1); any1 == nil {
		t.Error("nothing came back")
	}
}
