package registry

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// A diary is the behaviour of an object that notes what it is told, in order.
type diary struct {
	message func(*Turn, string) // called in the turn of each message

	mu      sync.Mutex // guards the following
	entries []string
}

func (d *diary) note(s string) {
	d.mu.Lock()
	d.entries = append(d.entries, s)
	d.mu.Unlock()
}

func (d *diary) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.entries)
}

func (*diary) Construct(context.Context, *Activation) (any, error) { return new(int), nil }
func (*diary) HandlesSocket(k socket.EventKind) bool               { return k == socket.Message }
func (*diary) HandlesAlarm() bool                                  { return true }

func (d *diary) Alarm(context.Context, any, AlarmInfo) error { d.note("alarm"); return nil }

func (d *diary) SocketEvent(ctx context.Context, _ any, _ *socket.Socket, e socket.Event) error {
	d.note(string(e.Data))
	d.message(TurnOf(ctx), string(e.Data))
	return nil
}

// A reading is an object with one connection, whose input a worker of the poller's hands over: one that no watch takes
// the loop away from, so that turns are passed on for no reason but the one that is tested.
type reading struct {
	*testing.T
	*diary
	reg    *Registry
	class  *Class
	id     store.ID
	s      *socket.Socket
	worker poll.Worker
}

// eachReading runs f with an object that is asleep, and with one that is awake.
func eachReading(t *testing.T, f func(r *reading)) {
	for _, state := range []string{"asleep", "awake"} {
		t.Run(state, func(t *testing.T) {
			st, err := store.Open(store.Config{})
			if err != nil {
				t.Fatal(err)
			}
			r := &reading{T: t, diary: &diary{message: func(*Turn, string) {}}, id: sha256.Sum256([]byte("read"))}
			r.reg = New(Config{Store: st, Clock: alarm.NewFake(time.Unix(1e9, 0)), Logger: slog.New(slog.DiscardHandler), IdleTimeout: time.Hour, MaxConstructing: 1})
			t.Cleanup(func() {
				r.reg.Kill(context.Canceled)
				if err := st.Close(); err != nil {
					t.Error(err)
				}
				r.reg.Close()
			})
			r.class = &Class{Name: "Diary", Behavior: r.diary, Sockets: &socket.Config{Wire: wire.Config{MaxMessage: 1 << 10}, Timers: r.reg.Timers()}}
			if err := r.reg.AddClass(r.class); err != nil {
				t.Fatal(err)
			}
			if r.s, err = r.reg.Join(r.class, r.id, "read", socket.Tags{}, nil, 0); err != nil {
				t.Fatal(err)
			}
			if state == "awake" {
				r.call("wake")
				r.rests()
				r.entries = nil
			}
			f(r)
			r.rests()
		})
	}
}

// input hands over one read of messages, and of some bytes behind them.
func (r *reading) input(behind string, messages ...string) {
	var p []byte
	for _, m := range messages {
		p = append(p, 0x81, 0x80|byte(len(m)), 0, 0, 0, 0)
		p = append(p, m...)
	}
	r.s.Input(&r.worker, append(p, behind...))
}

// call is a call from elsewhere.
func (r *reading) call(text string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := &Work{Cause: CauseCall, Run: func(*Turn, any) error { r.note(text); return nil }}
	if err := r.reg.Call(ctx, r.class, r.id, "read", w); err != nil {
		r.Errorf("%s: %v", text, err)
	}
}

// until waits for what is in other goroutines' hands.
func (r *reading) until(what string, ok func() bool) {
	r.Helper()
	for deadline := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			r.Fatalf("not in %v: %s; noted %q", patience, what, r.read())
		}
	}
}

// rests waits until nobody has the right to run turns, and nothing is under way.
func (r *reading) rests() {
	r.Helper()
	r.until("it rests", func() bool { return r.reg.busy.Load() == 0 })
}

// TestWhatWaitsForAnObjectComesBeforeTheRestOfARead: the right to run turns, which is kept from one message of a read to
// the next, is given to whatever else waits for the object meanwhile.
func TestWhatWaitsForAnObjectComesBeforeTheRestOfARead(t *testing.T) {
	for _, other := range []string{"call", "alarm", "do"} {
		t.Run(other, func(t *testing.T) {
			eachReading(t, func(r *reading) {
				var others sync.WaitGroup
				r.message = func(turn *Turn, text string) {
					if text != "2" {
						return
					}
					if turn.work != nil || turn.me.held == nil {
						r.Error("the message is not served with a right that was kept")
					}
					a := turn.act
					others.Go(func() {
						switch other {
						case "call":
							r.call(other)
						case "do":
							if err := a.Do(context.Background(), func(*Turn) error { r.note(other); return nil }); err != nil {
								r.Error(err)
							}
						case "alarm":
							if !(*alarmSource)(r.reg).Fire(alarm.Entry{ID: r.id, Class: r.class.Name}, func() {}) {
								r.Error("no alarm")
							}
						}
					})
					if other == "alarm" {
						if err := turn.SetAlarm(time.Time{}); err != nil {
							r.Error(err)
						}
					}
					r.until(other+" waits", func() bool {
						a.obj.mu.Lock()
						defer a.obj.mu.Unlock()
						return a.obj.mail.first != nil
					})
				}
				r.input("", "1", "2", "3", "4")
				want := []string{"1", "2", other, "3", "4"}
				r.until("all is done", func() bool { return len(r.read()) >= len(want) })
				others.Wait()
				if got := r.read(); !slices.Equal(got, want) {
					r.Errorf("order %q, want %q", got, want)
				}
			})
		})
	}
}

// TestARightIsKeptNoLongerThanTheRead, whatever is the last in it.
func TestARightIsKeptNoLongerThanTheRead(t *testing.T) {
	for name, behind := range map[string]string{"nothing": "", "half a frame": "\x81\x85", "a pong": "\x8a\x80\x00\x00\x00\x00"} {
		t.Run(name, func(t *testing.T) {
			eachReading(t, func(r *reading) {
				for i := range 3 {
					r.input(behind, "1", "2")
					r.call("call")
					if got, want := r.read(), []string{"1", "2", "call"}; !slices.Equal(got, want) {
						r.Fatalf("read %d: order %q, want %q", i, got, want)
					}
					if behind == "\x81\x85" {
						return
					}
					r.rests()
					r.entries = nil
				}
			})
		})
	}
}
