package registry

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// A crowd is many objects with one connection each, over nothing: what a client would send is handed to the sockets.
type crowd struct {
	tb      testing.TB
	reg     *Registry
	class   *Class
	clock   *alarm.Fake
	sockets []*socket.Socket
	counter counter
}

// counter is the behaviour of objects that count messages.
type counter struct{ messages atomic.Int64 }

func (*counter) Construct(context.Context, *Activation) (any, error) { return new([8]int64), nil }
func (*counter) HandlesSocket(k socket.EventKind) bool               { return k == socket.Message }
func (*counter) HandlesAlarm() bool                                  { return false }
func (*counter) Alarm(context.Context, any, AlarmInfo) error         { return nil }

func (c *counter) SocketEvent(context.Context, any, *socket.Socket, socket.Event) error {
	c.messages.Add(1)
	return nil
}

const crowdIdle = 10 * time.Second

// newCrowd has no objects yet.
func newCrowd(tb testing.TB) *crowd {
	tb.Helper()
	st, err := store.Open(store.Config{})
	if err != nil {
		tb.Fatal(err)
	}
	c := &crowd{tb: tb, clock: alarm.NewFake(time.Unix(1e9, 0))}
	c.reg = New(Config{Store: st, Clock: c.clock, Logger: slog.New(slog.DiscardHandler), IdleTimeout: crowdIdle, MaxConstructing: 64})
	tb.Cleanup(func() {
		c.reg.Kill(context.Canceled)
		if err := st.Close(); err != nil {
			tb.Error(err)
		}
		c.reg.Close()
	})
	c.class = &Class{Name: "Crowd", Behavior: &c.counter, Sockets: &socket.Config{Wire: wire.Config{MaxMessage: 1 << 10}, Timers: c.reg.Timers()}}
	if err := c.reg.AddClass(c.class); err != nil {
		tb.Fatal(err)
	}
	return c
}

// add makes n objects more and wakes each once. At the end all are asleep.
func (c *crowd) add(n int) {
	c.tb.Helper()
	all := make([]*socket.Socket, n)
	for i := range all {
		name := strconv.Itoa(len(c.sockets) + i)
		s, err := c.reg.Join(c.class, store.ID(sha256.Sum256([]byte(name))), name, socket.Tags{}, nil, 0)
		if err != nil {
			c.tb.Fatal(err)
		}
		all[i] = s
	}
	c.wake(all)
	c.sockets = append(c.sockets, all...)
}

// wake has the objects of sockets count a message, some thousands at a time, and hibernate.
func (c *crowd) wake(sockets []*socket.Socket) {
	c.tb.Helper()
	const atOnce = 4096
	for i := 0; i < len(sockets); i += atOnce {
		some := sockets[i:min(i+atOnce, len(sockets))]
		want := c.counter.messages.Load() + int64(len(some))
		for k, s := range some {
			mask := uint32(i + k)
			message := binary.LittleEndian.AppendUint32([]byte{0x81, 0x81}, mask)
			s.Input(nil, append(message, 'x'^byte(mask))) // the socket may overwrite it
		}
		c.until(func() bool { return c.counter.messages.Load() == want })
		c.until(func() bool {
			c.clock.Advance(crowdIdle)
			return c.reg.Stats().InMemory == 0
		})
	}
}

// until waits for what is in other goroutines' hands.
func (c *crowd) until(ok func() bool) {
	c.tb.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			c.tb.Fatalf("waited a minute; %+v", c.reg.Stats())
		}
	}
}

// newCrowdOf has a thousand objects, so that it has what the store and the registry need anyway, and room for n more.
func newCrowdOf(tb testing.TB, n int) *crowd {
	tb.Helper()
	c := newCrowd(tb)
	c.sockets = make([]*socket.Socket, 0, 1000+n)
	c.add(1000)
	return c
}

// bytesPerObject is what n sleeping objects more with a connection each keep alive, divided by n.
func (c *crowd) bytesPerObject(n int) float64 {
	c.tb.Helper()
	before := liveHeap()
	c.add(n)
	grown := float64(liveHeap()) - float64(before)
	all := len(c.sockets)
	if s := c.reg.Stats(); s.Records != int64(all) || s.InMemory != 0 || s.Hibernated != uint64(all) {
		c.tb.Fatalf("%d objects: %+v", all, s)
	}
	return grown / float64(n)
}

func liveHeap() uint64 {
	runtime.GC()
	runtime.GC() // what pools held is gone after the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkHibernatedObjects makes objects with a connection each, wakes all of them once and lets them hibernate. What
// one keeps is to be the same for a hundred thousand and for a million.
func BenchmarkHibernatedObjects(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprintf("objects=%d", n), func(b *testing.B) {
			var perObject float64
			for b.Loop() {
				perObject = newCrowdOf(b, n).bytesPerObject(n)
			}
			b.ReportMetric(perObject, "B/object")
		})
	}
}

// TestSleepingObjectsCostTheSameHoweverMany: one that joins many costs no more than one that joins few. It may cost less,
// for what there is once whatever the number (goroutines, pools, buffers that have grown) is shared by more. Many are
// doubled, so that the indexes are as full afterwards as they were. They are a million if HIBERNATE_SLOW asks for it.
func TestSleepingObjectsCostTheSameHoweverMany(t *testing.T) {
	few, many := 16_000, 128_000
	if os.Getenv("HIBERNATE_SLOW") != "" {
		few, many = 125_000, 1_000_000
	}
	c := newCrowdOf(t, many)
	a := c.bytesPerObject(few)
	c.add(many/2 - few)
	b := c.bytesPerObject(many / 2)
	t.Logf("%.0f B for each of %d, %.0f B for each of %d more", a, few, b, many/2)
	if b > 1.15*a {
		t.Errorf("each of %d costs %.0f B, and each from there to %d costs %.0f B", few, a, many, b)
	}
}
