package hibernate_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// A ledger is an object of the storage benchmarks.
type ledger struct{ state *hibernate.State }

// bump is a turn that reads a key of 128 bytes, changes it and writes it. It
// returns when the turn's output may leave.
func (l *ledger) bump(o ...hibernate.PutOption) error {
	return l.state.Do(context.Background(), func(ctx context.Context) error { return l.add(ctx, o...) })
}

func (l *ledger) add(ctx context.Context, o ...hibernate.PutOption) error {
	v, ok, err := l.state.Storage().GetBytes(ctx, "state")
	if err != nil {
		return err
	}
	if !ok {
		v = make([]byte, 128)
	}
	v[0]++
	return l.state.Storage().PutBytes(ctx, "state", v, o...)
}

// WebSocketMessage is the turn of bump, with a reply. That to a text is durable
// before it leaves, that to binary data need not be.
func (l *ledger) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	var o []hibernate.PutOption
	if m.Kind == hibernate.BinaryMessage {
		o = append(o, hibernate.AllowUnconfirmed())
	}
	if err := l.add(ctx, o...); err != nil {
		return err
	}
	return ws.Send(ctx, m)
}

var (
	// wake makes an instance and hands it out.
	wake = hibernate.NewMethod("wake", func(l *ledger, ctx context.Context, id int) (bool, error) {
		ledgers.Store(id, l)
		return true, nil
	})
	ledgers sync.Map
	// repeat runs a read b.N times in one turn.
	repeat = hibernate.NewMethod("repeat", func(l *ledger, ctx context.Context, n int) (bool, error) {
		for range n {
			if _, ok, err := l.state.Storage().GetBytes(ctx, "key-000500"); !ok || err != nil {
				return false, fmt.Errorf("read: %v, %v", ok, err)
			}
		}
		return true, nil
	})
	scan = hibernate.NewMethod("scan", func(l *ledger, ctx context.Context, times int) (n int, err error) {
		for range times {
			n = 0
			for _, err := range l.state.Storage().ListBytes(ctx) {
				if err != nil {
					return 0, err
				}
				n++
			}
		}
		return n, nil
	})
	fill = hibernate.NewMethod("fill", func(l *ledger, ctx context.Context, n int) (bool, error) {
		for i := range n {
			if err := l.state.Storage().PutBytes(ctx, fmt.Sprintf("key-%06d", i), make([]byte, 128)); err != nil {
				return false, err
			}
		}
		return true, nil
	})
)

func newLedgers(b *testing.B, dir string) (*hibernate.Runtime, *hibernate.Namespace) {
	b.Helper()
	rt, err := hibernate.Open(dir, nil)
	if err != nil {
		b.Fatal(err)
	}
	ns, err := hibernate.Register(rt, "Ledger", func(_ context.Context, s *hibernate.State) (*ledger, error) {
		return &ledger{state: s}, nil
	}, nil)
	if err != nil {
		b.Fatal(err)
	}
	return rt, ns
}

// newLedger wakes the object of s and returns its instance.
func newLedger(b *testing.B, s hibernate.Stub) *ledger {
	b.Helper()
	if _, err := wake.Call(context.Background(), s, 0); err != nil {
		b.Fatal(err)
	}
	l, _ := ledgers.LoadAndDelete(0)
	return l.(*ledger)
}

// rawPebble is Pebble alone, with the options that the store uses.
func rawPebble(b *testing.B, dir string) *pebble.DB {
	b.Helper()
	opts := &pebble.Options{MemTableSize: 16 << 20, MaxOpenFiles: 500, Logger: silent{}}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open(dir, opts)
	if err != nil {
		b.Fatal(err)
	}
	return db
}

type silent struct{}

func (silent) Infof(string, ...any)           {}
func (silent) Errorf(string, ...any)          {}
func (silent) Fatalf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }

// together runs turn in n goroutines for a while, and returns how often per second.
func together(n int, turn func(i int) error) (perSecond float64, err error) {
	var wg sync.WaitGroup
	var stop atomic.Bool
	var count atomic.Int64
	var failed atomic.Pointer[error]
	begin := time.Now()
	for i := range n {
		wg.Go(func() {
			for !stop.Load() {
				if err := turn(i); err != nil {
					failed.Store(&err)
					return
				}
				count.Add(1)
			}
		})
	}
	time.Sleep(300 * time.Millisecond) // the time that is measured
	stop.Store(true)
	wg.Wait()
	if p := failed.Load(); p != nil {
		return 0, *p
	}
	return float64(count.Load()) / time.Since(begin).Seconds(), nil
}

// BenchmarkDurableTurns: as many callers as objects, each waiting for a turn that
// reads a key, writes it and is durable. Beside it, in slices of the same run,
// Pebble alone with as many synced writers of the same keys and headers.
func BenchmarkDurableTurns(b *testing.B) {
	for _, objects := range []int{64, 512} {
		b.Run(fmt.Sprintf("objects=%d", objects), func(b *testing.B) {
			rt, ns := newLedgers(b, b.TempDir())
			defer rt.Close()
			db := rawPebble(b, b.TempDir())
			defer db.Close()
			stubs := make([]hibernate.Stub, objects)
			objs := make([]*ledger, objects)
			keys := make([][2][]byte, objects)
			for i := range stubs {
				stubs[i] = ns.GetByName(fmt.Sprint(i))
				id := stubs[i].ID().String()
				keys[i] = [2][]byte{[]byte(id[:33] + "state"), []byte(id[:33])}
				objs[i] = newLedger(b, stubs[i])
				if err := objs[i].bump(); err != nil {
					b.Fatal(err)
				}
				if err := db.Set(keys[i][0], make([]byte, 128), pebble.NoSync); err != nil {
					b.Fatal(err)
				}
			}
			var ours, raw float64
			rounds := 0
			for b.Loop() {
				rounds++
				n, err := together(objects, func(i int) error { return objs[i].bump() })
				if err != nil {
					b.Fatal(err)
				}
				ours += n
				n, err = together(objects, func(i int) error {
					v, c, err := db.Get(keys[i][0])
					if err != nil {
						return err
					}
					v = append([]byte(nil), v...)
					c.Close()
					v[0]++
					batch := db.NewBatch()
					defer batch.Close()
					header := binary.AppendUvarint(make([]byte, 0, 24), uint64(v[0]))
					return errors.Join(batch.Set(keys[i][0], v, nil), batch.Set(keys[i][1], header[:24], nil), batch.Commit(pebble.Sync))
				})
				if err != nil {
					b.Fatal(err)
				}
				raw += n
			}
			s := rt.Stats()
			b.ReportMetric(ours/float64(rounds), "turns/s")
			b.ReportMetric(raw/float64(rounds), "raw/s")
			b.ReportMetric(ours/raw, "ratio")
			b.ReportMetric(float64(s.Commits)/float64(s.Syncs), "turns/sync")
		})
	}
}

// BenchmarkOneObject: 64 clients of one object, each waiting for its durable reply,
// beside the same turns whose reply does not wait. What pipelining buys is that the
// first come near the second, with many turns in each sync. Clients by=socket are
// WebSockets over loopback; by=call they are goroutines that call State.Do, so that
// there is nothing but the turn and the disk.
func BenchmarkOneObject(b *testing.B) {
	const clients = 64
	b.Run("by=socket", func(b *testing.B) {
		rt, ns := newLedgers(b, b.TempDir())
		defer rt.Close()
		askers := newAskers(b, ns, "one", clients)
		durable, loose := ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte("bump")))), ws.MustCompileFrame(ws.MaskFrame(ws.NewBinaryFrame([]byte("bump"))))
		benchmarkReplies(b, rt, clients, func(i int) error { return askers[i].ask(durable) }, func(i int) error { return askers[i].ask(loose) })
	})
	b.Run("by=call", func(b *testing.B) {
		rt, ns := newLedgers(b, b.TempDir())
		defer rt.Close()
		one := newLedger(b, ns.GetByName("one"))
		benchmarkReplies(b, rt, clients, func(int) error { return one.bump() }, func(int) error { return one.bump(hibernate.AllowUnconfirmed()) })
	})
}

// benchmarkReplies compares turns in slices of one run.
func benchmarkReplies(b *testing.B, rt *hibernate.Runtime, clients int, durable, loose func(i int) error) {
	var confirmed, unconfirmed float64
	var commits, syncs uint64
	rounds := 0
	for b.Loop() {
		rounds++
		before := rt.Stats()
		n, err := together(clients, durable)
		if err != nil {
			b.Fatal(err)
		}
		confirmed += n
		after := rt.Stats()
		commits, syncs = commits+after.Commits-before.Commits, syncs+after.Syncs-before.Syncs
		if n, err = together(clients, loose); err != nil {
			b.Fatal(err)
		}
		unconfirmed += n
	}
	b.ReportMetric(confirmed/float64(rounds), "durable/s")
	b.ReportMetric(unconfirmed/float64(rounds), "unconfirmed/s")
	b.ReportMetric(confirmed/unconfirmed, "ratio")
	b.ReportMetric(float64(commits)/float64(syncs), "turns/sync")
}

// An asker is a WebSocket client that waits for each reply.
type asker struct {
	conn  net.Conn
	reply [6]byte
}

// newAskers connects n clients to an object.
func newAskers(b *testing.B, ns *hibernate.Namespace, object string, n int) []*asker {
	b.Helper()
	srv := httptest.NewServer(ns.Handler(func(*hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: ns.GetByName(object)}, nil
	}))
	b.Cleanup(srv.Close)
	askers := make([]*asker, n)
	for i := range askers {
		conn, _, _, err := ws.Dial(context.Background(), "ws"+strings.TrimPrefix(srv.URL, "http"))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		askers[i] = &asker{conn: conn}
	}
	return askers
}

// ask sends a frame of four bytes and awaits them.
func (a *asker) ask(frame []byte) error {
	if _, err := a.conn.Write(frame); err != nil {
		return err
	}
	if _, err := io.ReadFull(a.conn, a.reply[:]); err != nil {
		return err
	}
	if got := a.reply[2:]; string(got) != "bump" {
		return fmt.Errorf("reply %q", got)
	}
	return nil
}

// BenchmarkBesideABroadcast is a durable turn while another object stores and
// broadcasts to its members as fast as it can.
func BenchmarkBesideABroadcast(b *testing.B) {
	for _, members := range []int{0, 5000} {
		b.Run(fmt.Sprintf("members=%d", members), func(b *testing.B) {
			rt, ns := newLedgers(b, b.TempDir())
			defer rt.Close()
			for _, a := range newAskers(b, ns, "crowd", members) {
				go io.Copy(io.Discard, a.conn)
			}
			crowd, one := newLedger(b, ns.GetByName("crowd")), newLedger(b, ns.GetByName("one"))
			var stop atomic.Bool
			stopped := make(chan error)
			go func() {
				var err error
				for members > 0 && err == nil && !stop.Load() {
					err = crowd.state.Do(context.Background(), func(ctx context.Context) error {
						_, err := crowd.state.Broadcast(ctx, hibernate.Text("to all"), nil)
						return errors.Join(err, crowd.add(ctx))
					})
				}
				stopped <- err
			}()
			var took []time.Duration
			for b.Loop() {
				begin := time.Now()
				if err := one.bump(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begin))
			}
			stop.Store(true)
			if err := <-stopped; err != nil {
				b.Fatal(err)
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// BenchmarkTurnRead is one read of a warm key inside a turn, and with Pebble alone.
func BenchmarkTurnRead(b *testing.B) {
	b.Run("in=turn", func(b *testing.B) {
		dir := b.TempDir()
		loadLedger(b, dir)
		rt, ns := newLedgers(b, dir)
		defer rt.Close()
		if _, err := repeat.Call(context.Background(), ns.GetByName("one"), 1); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		b.ResetTimer()
		if _, err := repeat.Call(context.Background(), ns.GetByName("one"), b.N); err != nil {
			b.Fatal(err)
		}
	})
	b.Run("in=pebble", func(b *testing.B) {
		db := loadPebble(b)
		defer db.Close()
		b.ReportAllocs()
		for b.Loop() {
			v, c, err := db.Get([]byte("0123456789abcdef0123456789abcdef-key-000500"))
			if err != nil {
				b.Fatal(err)
			}
			_ = append([]byte(nil), v...)
			c.Close()
		}
	})
}

// BenchmarkTurnList lists 1,000 keys as bytes inside a turn, and with Pebble's
// iterator.
func BenchmarkTurnList(b *testing.B) {
	b.Run("in=turn", func(b *testing.B) {
		dir := b.TempDir()
		loadLedger(b, dir)
		rt, ns := newLedgers(b, dir)
		defer rt.Close()
		b.ResetTimer()
		if n, err := scan.Call(context.Background(), ns.GetByName("one"), b.N); n != 1000 || err != nil {
			b.Fatal(n, err)
		}
	})
	b.Run("in=pebble", func(b *testing.B) {
		db := loadPebble(b)
		defer db.Close()
		for b.Loop() {
			n := 0
			it, err := db.NewIter(nil)
			if err != nil {
				b.Fatal(err)
			}
			for ok := it.First(); ok; ok = it.Next() {
				_ = string(it.Key())
				_ = append([]byte(nil), it.Value()...)
				n++
			}
			it.Close()
			if n != 1000 {
				b.Fatal(n)
			}
		}
	})
}

// loadLedger writes 1,000 keys and closes, so that they are read from tables.
func loadLedger(b *testing.B, dir string) {
	rt, ns := newLedgers(b, dir)
	if _, err := fill.Call(context.Background(), ns.GetByName("one"), 1000); err != nil {
		b.Fatal(err)
	}
	if err := rt.Close(); err != nil {
		b.Fatal(err)
	}
}

func loadPebble(b *testing.B) *pebble.DB {
	dir := b.TempDir()
	db := rawPebble(b, dir)
	for i := range 1000 {
		if err := db.Set(fmt.Appendf(nil, "0123456789abcdef0123456789abcdef-key-%06d", i), make([]byte, 128), pebble.NoSync); err != nil {
			b.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	return rawPebble(b, dir)
}

// silentObserver hears and says nothing.
type silentObserver struct{}

func (silentObserver) TurnStart(ctx context.Context, _ hibernate.TurnInfo) context.Context {
	return ctx
}
func (silentObserver) TurnEnd(context.Context, hibernate.TurnInfo, error, time.Duration) {}

// BenchmarkWatchedTurn is a turn that does nothing, and what it costs to look at it.
func BenchmarkWatchedTurn(b *testing.B) {
	for name, o := range map[string]hibernate.Options{
		"by=nobody": {}, "by=labels": {ProfileLabels: true}, "by=times": {TurnTimes: true}, "by=observer": {Observer: silentObserver{}},
	} {
		b.Run(name, func(b *testing.B) {
			rt, err := hibernate.Open("", &o)
			if err != nil {
				b.Fatal(err)
			}
			defer rt.Close()
			ns, err := hibernate.Register(rt, "Ledger", func(_ context.Context, s *hibernate.State) (*ledger, error) {
				return &ledger{state: s}, nil
			}, nil)
			if err != nil {
				b.Fatal(err)
			}
			l := newLedger(b, ns.GetByName("a"))
			b.ReportAllocs()
			for b.Loop() {
				if err := l.state.Do(context.Background(), func(context.Context) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
