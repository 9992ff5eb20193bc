package hibernate_test

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/storetest"
)

var crashCuts = flag.Int("crash.cuts", 200, "how often TestCrash cuts the power")

const crashObjects = 6

// A clerkState is what an object holds after one of its commits.
type clerkState struct {
	keys    map[string]string
	alarm   int64 // when it was set for, in ms; 0: none
	retries int   // of that alarm
}

func (s clerkState) clone() clerkState {
	s.keys = maps.Clone(s.keys)
	return s
}

func (s clerkState) equal(o clerkState) bool {
	return s.alarm == o.alarm && s.retries == o.retries && maps.Equal(s.keys, o.keys)
}

func (s clerkState) String() string {
	text := fmt.Sprintf("alarm %d retries %d", s.alarm, s.retries)
	for k, v := range s.keys {
		text += fmt.Sprintf(" %s=%.6s/%d", k, v, len(v))
	}
	return text
}

// A clerkBook is what an object was told to hold, commit by commit, and how much
// of that the outside world knows.
type clerkBook struct {
	id store.ID // set when a runtime is opened with it

	mu     sync.Mutex // guards the following
	states []clerkState
	backed []int // for each state, the last one up to it that output waits for
	seen   int   // the highest state that any output vouched for
	rang   int64 // the time for which the last alarm that ran was set
}

func (b *clerkBook) last() (n int, s clerkState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n = len(b.states) - 1
	return n, b.states[n].clone()
}

// note adds the state that a commit leaves, which output awaits or not.
func (b *clerkBook) note(s clerkState, awaited bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.states)
	b.states = append(b.states, s)
	if !awaited {
		n = b.backed[n-1]
	}
	b.backed = append(b.backed, n)
}

// A clerkLife is the life of one runtime over some objects.
type clerkLife struct {
	t       *testing.T
	rt      *hibernate.Runtime
	ns      *hibernate.Namespace
	now     time.Time
	books   [crashObjects]*clerkBook
	outputs atomic.Int64 // seen outside
	refused atomic.Int64 // calls that failed for another reason than their turn's
}

// saw notes that the outside world knows of state n of an object.
func (l *clerkLife) saw(object, n int) {
	b := l.books[object]
	b.mu.Lock()
	b.seen = max(b.seen, b.backed[n])
	b.mu.Unlock()
	l.outputs.Add(1)
}

// synced notes that state n is said to be on disk, output or not.
func (l *clerkLife) synced(object, n int) {
	b := l.books[object]
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen = max(b.seen, n)
}

// seen are the states that the outside world knows of by now.
func (l *clerkLife) seen() (seen [crashObjects]int) {
	for i, b := range l.books {
		b.mu.Lock()
		seen[i] = b.seen
		b.mu.Unlock()
	}
	return seen
}

// newBooks begins books with the given states.
func newBooks(states [crashObjects]clerkState) (books [crashObjects]*clerkBook) {
	for i, s := range states {
		books[i] = &clerkBook{states: []clerkState{s}, backed: []int{0}}
	}
	return books
}

func noStates() (states [crashObjects]clerkState) {
	for i := range states {
		states[i].keys = map[string]string{}
	}
	return states
}

// clerkConfig takes little memory: a test may leave dead stores behind.
func clerkConfig(fs vfs.FS, dir string) store.Config {
	return store.Config{Dir: dir, FS: fs, CacheSize: 1 << 20, MemTableSize: 64 << 10}
}

// openClerks opens a runtime at a time and registers the class.
func openClerks(t *testing.T, cfg store.Config, o hibernate.Options, now time.Time, books [crashObjects]*clerkBook) (*clerkLife, error) {
	l := &clerkLife{t: t, now: now, books: books}
	o.Clock = alarm.NewFake(now)
	o.Logger = slog.New(slog.DiscardHandler)
	var err error
	if l.rt, err = hibernate.OpenStore(cfg, &o); err != nil {
		return nil, err
	}
	l.ns, err = hibernate.Register(l.rt, "Clerk", func(_ context.Context, s *hibernate.State) (*clerk, error) {
		n, err := strconv.Atoi(s.Name())
		return &clerk{l, n, s}, err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range books {
		id, err := hex.DecodeString(l.stub(i).ID().String())
		if err != nil {
			t.Fatal(err)
		}
		b.id = store.ID(id)
	}
	return l, nil
}

func (l *clerkLife) stub(object int) hibernate.Stub { return l.ns.GetByName(strconv.Itoa(object)) }

// A clerk writes random things, of which one commit is always recognisable as a
// whole, and answers with the number of the state it leaves.
type clerk struct {
	life   *clerkLife
	object int
	state  *hibernate.State
}

var errUnwanted = errors.New("unwanted")

// turn is one turn. What it does depends on the seed and on the state.
func (g *clerk) turn(ctx context.Context, seed int) (n int, err error) {
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	told := func(context.Context) error {
		g.life.saw(g.object, n)
		return nil
	}
	switch rng.IntN(12) {
	case 0, 1:
		return g.read(ctx)
	case 2:
		_, _ = g.write(ctx, rng, false)
		panic(errUnwanted)
	case 3:
		if n, err = g.write(ctx, rng, true); err == nil {
			err = g.state.Storage().Sync(ctx)
		}
		if err == nil {
			g.life.synced(g.object, n)
		}
	case 4:
		if n, err = g.write(ctx, rng, true); err == nil {
			err = hibernate.Await(ctx, told) // before f begins, all is durable
		}
	}
	if err != nil {
		return n, err
	}
	return g.write(ctx, rng, true)
}

// read checks that the object is as its last commit left it.
func (g *clerk) read(ctx context.Context) (n int, err error) {
	n, want := g.life.books[g.object].last()
	got := clerkState{keys: map[string]string{}, retries: want.retries}
	for e, err := range g.state.Storage().ListBytes(ctx) {
		if err != nil {
			return n, err
		}
		got.keys[e.Key] = string(e.Value)
	}
	at, ok, err := g.state.Storage().Alarm(ctx)
	if ok {
		got.alarm = at.UnixMilli()
	}
	if err == nil && !got.equal(want) {
		g.life.t.Errorf("object %d is not as it was left: %v, want %v", g.object, got, want)
	}
	return n, err
}

// write changes several keys and perhaps the alarm. With keep, what it does is
// noted as the next state.
func (g *clerk) write(ctx context.Context, rng *rand.Rand, keep bool) (n int, err error) {
	st := g.state.Storage()
	n, s := g.life.books[g.object].last()
	n++
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	set := func(w interface {
		PutBytes(context.Context, string, []byte, ...hibernate.PutOption) error
	}, s *clerkState, k, v string) {
		s.keys[k] = v
		do(w.PutBytes(ctx, k, []byte(v)))
	}
	value := fmt.Sprint(n) + strings.Repeat(".", rng.IntN(600))
	if rng.IntN(6) == 0 {
		for _, k := range []string{"a", "b"} { // output does not wait for this commit
			s.keys[k] = value
			do(st.PutBytes(ctx, k, []byte(value), hibernate.AllowUnconfirmed()))
		}
		if err := errors.Join(errs...); err != nil || !keep {
			return n, err
		}
		g.life.books[g.object].note(s, false)
		return n, nil
	}
	cleared := rng.IntN(12) == 0
	if cleared {
		do(st.DeleteAll(ctx))
		s = clerkState{keys: map[string]string{}}
	}
	if !cleared || rng.IntN(3) != 0 {
		set(st, &s, "a", value)
		for range rng.IntN(4) {
			set(st, &s, fmt.Sprint("k", rng.IntN(6)), value)
		}
		inside, roll := s.clone(), rng.IntN(3)
		err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
			set(tx, &inside, "t", value)
			k := fmt.Sprint("k", rng.IntN(6))
			_, err := tx.Delete(ctx, k)
			do(err)
			delete(inside.keys, k)
			if rng.IntN(4) == 0 {
				do(tx.SetAlarm(ctx, g.life.now.Add(time.Hour)))
				inside.alarm, inside.retries = g.life.now.Add(time.Hour).UnixMilli(), 0
			}
			switch roll {
			case 0:
				return errUnwanted
			case 1:
				return tx.Rollback(ctx)
			}
			return nil
		})
		if roll == 0 && errors.Is(err, errUnwanted) {
			err = nil
		} else if roll == 2 {
			s = inside
		}
		do(err)
		set(st, &s, "b", value)
	}
	switch rng.IntN(8) {
	case 0:
		do(st.SetAlarm(ctx, g.life.now)) // it runs at once
		s.alarm, s.retries = g.life.now.UnixMilli(), 0
	case 1:
		do(st.SetAlarm(ctx, g.life.now.Add(time.Hour))) // the next life runs it
		s.alarm, s.retries = g.life.now.Add(time.Hour).UnixMilli(), 0
	case 2:
		do(st.DeleteAlarm(ctx))
		s.alarm, s.retries = 0, 0
	}
	if err := errors.Join(errs...); err != nil || !keep {
		return n, err
	}
	g.life.books[g.object].note(s, true)
	return n, nil
}

// Alarm fails sometimes, once for each alarm, and sometimes sets the next one.
func (g *clerk) Alarm(ctx context.Context, i hibernate.AlarmInfo) error {
	b := g.life.books[g.object]
	n, s := b.last()
	n++
	if at := i.Scheduled.UnixMilli(); at != s.alarm || i.RetryCount != s.retries {
		g.life.t.Errorf("alarm of object %d at %d, retry %d; want %v", g.object, at, i.RetryCount, s)
	}
	rang := s.alarm
	for _, k := range []string{"a", "b"} {
		s.keys[k] = fmt.Sprint(n)
		if err := g.state.Storage().PutBytes(ctx, k, []byte(s.keys[k])); err != nil {
			return err
		}
	}
	var failed error
	switch {
	case n%3 == 0 && s.retries == 0:
		s.retries++
		failed = errUnwanted
	case n%5 == 0:
		s.alarm, s.retries = g.life.now.Add(time.Hour).UnixMilli(), 0
		if err := g.state.Storage().SetAlarm(ctx, time.UnixMilli(s.alarm)); err != nil {
			return err
		}
	default:
		s.alarm, s.retries = 0, 0
	}
	b.mu.Lock()
	b.rang = rang
	b.mu.Unlock()
	b.note(s, true)
	return failed
}

func (g *clerk) WebSocketMessage(ctx context.Context, c hibernate.WebSocket, m hibernate.Message) error {
	if m.Text() == "end" {
		return c.SendText(ctx, "end")
	}
	seed, err := strconv.Atoi(m.Text())
	if err != nil {
		return err
	}
	n, err := g.turn(ctx, seed)
	if err != nil {
		return err
	}
	return c.SendText(ctx, strconv.Itoa(n))
}

func (g *clerk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" {
		_, _ = g.state.AcceptWebSocket(w, r, nil)
		return
	}
	seed, _ := strconv.Atoi(r.URL.RawQuery)
	n, err := g.turn(r.Context(), seed)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, n)
}

var clerkTurn = hibernate.NewMethod("turn", (*clerk).turn)

// run has objects called, asked by HTTP and sent messages from all sides, about n
// times each, until that is done or the runtime ends. It returns what waits.
func (l *clerkLife) run(seed uint64, n int, sockets bool) (wait func()) {
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(g)))
			for range n {
				object := rng.IntN(crashObjects)
				if g == 0 {
					w := httptest.NewRecorder()
					l.stub(object).ServeHTTP(w, httptest.NewRequest("GET", fmt.Sprint("/?", rng.IntN(1<<30)), nil))
					if w.Code == http.StatusOK {
						n, err := strconv.Atoi(w.Body.String())
						if err != nil {
							l.t.Errorf("response %q", w.Body)
						}
						l.saw(object, n)
					}
				} else if n, err := clerkTurn.Call(context.Background(), l.stub(object), rng.IntN(1<<30)); err == nil {
					l.saw(object, n)
				} else if !errors.Is(err, errUnwanted) {
					l.refused.Add(1)
				}
				select {
				case <-l.rt.Done():
					return
				default:
				}
			}
		})
	}
	if !sockets {
		return wg.Wait
	}
	srv := httptest.NewServer(l.ns.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: l.ns.GetByName(h.Query().Get("o"))}, nil
	}))
	r := &rig{t: l.t, srv: srv}
	for g := range 2 {
		c, err := r.dialer(fmt.Sprint("/?o=", g), ws.Dialer{})
		if err != nil {
			continue // the runtime is gone already
		}
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(100+g)))
			for range n {
				if wsutil.WriteClientText(c.conn, []byte(strconv.Itoa(rng.IntN(1<<30)))) != nil {
					return
				}
			}
			wsutil.WriteClientText(c.conn, []byte("end"))
		})
		wg.Go(func() {
			defer c.conn.Close()
			c.conn.SetReadDeadline(time.Now().Add(patience))
			for {
				f, err := ws.ReadFrame(c.br)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					l.t.Error("nothing came for a long time")
				}
				if err != nil || f.Header.OpCode != ws.OpText || string(f.Payload) == "end" {
					return
				}
				n, err := strconv.Atoi(string(f.Payload))
				if err != nil {
					l.t.Errorf("frame %q", f.Payload)
				}
				l.saw(g, n)
			}
		})
	}
	return func() {
		wg.Wait()
		srv.CloseClientConnections()
		srv.Close()
	}
}

// verifyClerks opens a directory without a runtime and returns what its objects
// hold. It fails unless that is what one of their commits left, and none before
// what the outside world has seen.
func verifyClerks(t *testing.T, fs vfs.FS, dir string, books [crashObjects]*clerkBook, seen [crashObjects]int) (states [crashObjects]clerkState) {
	t.Helper()
	st, err := store.Open(clerkConfig(fs, dir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}()
	alarms := 0
	for i, b := range books {
		got := readClerk(t, st, b.id)
		if got.alarm != 0 {
			alarms++
		}
		b.mu.Lock()
		n := len(b.states) - 1
		for n >= 0 && !b.states[n].equal(got) {
			n--
		}
		switch {
		case n < 0:
			t.Fatalf("object %d holds no commit whole: %v\nof %d, seen was %d: %v", i, got, len(b.states)-1, seen[i], b.states[seen[i]])
		case n < seen[i]:
			t.Fatalf("object %d: output told of commit %d, the disk has %d of %d", i, seen[i], n, len(b.states)-1)
		}
		b.mu.Unlock()
		states[i] = got
	}
	due, err := st.DueAlarms(t.Context(), store.Due{}, 1<<63-1, 100)
	if err != nil || len(due) != alarms {
		t.Fatalf("the index has %v (%v) for %d alarms", due, err, alarms)
	}
	return states
}

func readClerk(t *testing.T, st *store.Store, id store.ID) clerkState {
	t.Helper()
	o := st.Object(id, "Clerk", "")
	defer o.Close()
	h, err := o.Header()
	if err != nil {
		t.Fatal(err)
	}
	s := clerkState{keys: map[string]string{}, alarm: h.Alarm.Running, retries: int(h.Alarm.Retry)}
	if s.alarm == 0 {
		s.alarm = h.Alarm.Next
	}
	rows, err := o.List(store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		s.keys[string(rows.Key())] = string(rows.Value())
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return s
}

// alarmsRing fails unless every alarm of states runs, as they are all due.
func (l *clerkLife) alarmsRing(states [crashObjects]clerkState) {
	l.t.Helper()
	for i, s := range states {
		if s.alarm == 0 {
			continue
		}
		end := time.Now().Add(patience)
		for rang := int64(0); rang != s.alarm; {
			if time.Now().After(end) {
				l.t.Fatalf("the alarm of object %d does not run: %v", i, s)
			}
			runtime.Gosched()
			l.books[i].mu.Lock()
			rang = l.books[i].rang
			l.books[i].mu.Unlock()
		}
	}
}

// TestCrash cuts the power at any moment of a random workload, again and again on
// what the last cut left. All output that was seen is backed by what is found then,
// turns are whole or absent, and the alarms of what is found run.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	fs, states := storetest.NewFS(), noStates()
	var outputs, lost, alarms, snapshots int
	for cut := range *crashCuts {
		if cut%50 == 49 { // the files would grow for ever
			fs, states = storetest.NewFS(), noStates()
		}
		now := epoch.Add(time.Duration(cut) * 2 * time.Hour)
		l, err := openClerks(t, clerkConfig(fs, "/db"), hibernate.Options{EvictEveryTurn: rng.IntN(4) == 0}, now, newBooks(states))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range states {
			if s.alarm != 0 {
				alarms++
			}
		}
		l.alarmsRing(states)

		// Cut after a random number of outputs, or when nothing is left to cut.
		after, done := int64(rng.IntN(100)), make(chan struct{})
		wait := l.run(rng.Uint64(), 30, rng.IntN(3) == 0)
		go func() {
			defer close(done)
			wait()
		}()
		var dirs []string
		for over := false; !over; runtime.Gosched() {
			select {
			case <-done:
				over = true
			default:
				over = l.outputs.Load() >= after
			}
			if over && rng.IntN(10) == 0 {
				dir := fmt.Sprint("/copy-", cut)
				seen := l.seen()
				if err := l.rt.Snapshot(t.Context(), dir); err != nil {
					t.Fatal(err)
				}
				verifyClerks(t, fs, dir, l.books, seen)
				dirs = append(dirs, dir)
				snapshots++
			}
		}
		seen := l.seen()
		crashed := fs.Cut(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 0, 50, 90, 100}[rng.IntN(5)], RNG: rng})
		outputs += int(l.outputs.Load())
		if err := l.rt.Close(); err != nil {
			t.Fatal(err)
		}
		<-done
		states = verifyClerks(t, crashed, "/db", l.books, seen)
		for i, b := range l.books {
			if n, s := b.last(); n > seen[i] && !s.equal(states[i]) {
				lost++
			}
		}
		for _, dir := range dirs {
			if err := crashed.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		fs = crashed
		if t.Failed() {
			t.Fatalf("in cut %d", cut)
		}
	}
	t.Logf("%d cuts, %d outputs before them, %d times an object lost turns that nobody had seen, %d alarms ran after a cut, %d snapshots", *crashCuts, outputs, lost, alarms, snapshots)
}
