// Package hibernatetest tests classes of package hibernate: on the engine of
// production, with storage in memory and a clock that moves when it is told to.
//
//	func TestRoom(t *testing.T) {
//		k := hibernatetest.New(t, routes, &hibernatetest.Options{EvictEveryTurn: true})
//		ann := k.Dial("/room/garden")
//		ann.Send("hello")
//		ann.Expect("welcome")
//		k.Advance(time.Minute)
//		k.AssertHibernated(k.Object("Room", "garden"))
//	}
//
// A [Kit] finds what otherwise shows in production:
//
//   - State that is kept in fields and nowhere else. [Options].EvictEveryTurn builds
//     the object anew before each event, as if it had hibernated just then.
//   - A slice of [hibernate.Message].Data that is kept after the turn. The kit writes
//     over the bytes of each message as soon as its handler has returned or awaits.
//   - Goroutines of handlers, and WaitUntil work, that go on when the runtime has
//     been closed. They fail the test at its end, with their stacks.
//   - What was promised and not yet on disk. [Kit.Restart] is a power failure.
//   - Handlers that panic, which the runtime survives. They fail the test at its end.
//
// # Time
//
// Idle times, alarms and timeouts are driven by the kit's clock, which stands still
// until [Kit.Advance]. That runs whatever falls due on the way, each thing to its
// end before the clock goes on, and so is the same in every run. What the kit waits
// for on the clock on the wall is bounded by [Options].Patience.
//
// # Parallel tests
//
// Each Kit is a world of its own, so tests that have one may call t.Parallel. A Kit
// does not work in a bubble of testing/synctest: clients are real connections,
// and whoever waits for the network is not durably blocked in the eyes of a bubble,
// so its time would never move. New says so.
//
// A Kit and its clients belong to the goroutine of the test, unless a method says
// otherwise.
package hibernatetest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/seam"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/storetest"
)

// Options configure a [Kit]. The zero value is ready for use.
type Options struct {
	// EvictEveryTurn builds an object anew before each event that finds it without
	// other work under way, so that state kept in fields by mistake shows at once.
	EvictEveryTurn bool

	// Runtime is what production gives [hibernate.Open]. Its Clock must be nil: the
	// kit brings its own. A nil Logger writes to the test's log.
	Runtime hibernate.Options

	// Start is where the clock stands at first. Zero is 2026-01-02 03:04:05 UTC.
	Start time.Time

	// Patience is how long, on the clock on the wall, the kit waits for what has to
	// happen before it fails the test. Zero is 10 s.
	Patience time.Duration

	// AllowPanics lets a test pass though a handler panicked.
	AllowPanics bool
}

// A Kit is a runtime for one test, and an HTTP server in front of it.
type Kit struct {
	// URL is that of the server, like "http://127.0.0.1:12345". It is the same
	// after a Restart.
	URL string

	t      testing.TB
	setup  func(*hibernate.Runtime) (http.Handler, error)
	opt    Options
	clock  *alarm.Fake
	start  time.Time
	log    *history
	labels context.Context // of goroutines that run user code
	id     string          // the label's value
	srv    *http.Server
	addr   string
	door   atomic.Pointer[http.Handler] // what the server serves; nil: nothing, it restarts

	rt      *hibernate.Runtime
	reg     *registry.Registry
	disk    storetest.FS
	told    bool   // a failure has shown the log
	panics  uint64 // of runtimes before this one
	clients []*Client
	readers sync.WaitGroup // goroutines of clients
}

// New opens a runtime with storage in memory, calls setup with it, and serves the
// handler that setup returns until the test ends. What goes wrong fails the test.
// o may be nil.
//
// setup registers the classes, as the program does when it starts; it is called
// again by each [Kit.Restart]. Often it is the program's own function, which then must
// not count on being called once in a process: a registry of metrics, for instance, is
// one that it makes itself. A nil handler serves nothing.
//
// At the end of the test the kit closes everything, and fails the test if it has
// passed so far and a handler panicked, or goroutines that handlers started are
// still there.
func New(t testing.TB, setup func(rt *hibernate.Runtime) (http.Handler, error), o *Options) *Kit {
	t.Helper()
	if o == nil {
		o = &Options{}
	}
	k := &Kit{t: t, setup: setup, opt: *o, disk: storetest.NewFS()}
	switch {
	case time.Now().Year() < 2001: // the clock of a bubble begins at 2000-01-01
		t.Fatal("hibernatetest: New in a bubble of testing/synctest: its time stands still while anybody waits for the network, " +
			"as clients do. Call it outside, and move time with Advance.")
	case setup == nil:
		t.Fatal("hibernatetest: New without a setup: it has to register the classes, and does so again after a Restart")
	case o.Runtime.Clock != nil:
		t.Fatal("hibernatetest: Options.Runtime.Clock is set: the kit brings its own, see Options.Start and Kit.Clock")
	case o.Patience < 0:
		t.Fatalf("hibernatetest: Options.Patience is %v", o.Patience)
	}
	if k.opt.Patience == 0 {
		k.opt.Patience = 10 * time.Second
	}
	if k.start = o.Start; k.start.IsZero() {
		k.start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	}
	k.clock = alarm.NewFake(k.start)
	k.log = &history{clock: k.clock, start: k.start, objects: map[string]*life{}}
	k.id = fmt.Sprintf("%016x", rand.Uint64())
	k.labels = pprof.WithLabels(context.Background(), pprof.Labels("hibernatetest", k.id))
	out := &output{t: t}
	if k.opt.Runtime.Logger == nil {
		k.opt.Runtime.Logger = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	}

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("hibernatetest: %v", err)
	}
	k.addr = ln.Addr().String()
	k.URL = "http://" + k.addr
	k.srv = &http.Server{
		Handler:           http.HandlerFunc(k.serve),
		ErrorLog:          slog.NewLogLogger(k.opt.Runtime.Logger.Handler(), slog.LevelInfo),
		ReadHeaderTimeout: k.opt.Patience,
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = k.srv.Serve(ln) // ends with ErrServerClosed
	}()
	t.Cleanup(func() {
		t.Helper()
		k.close()
		<-served
		out.stop()
	})
	k.open()
	return k
}

// withoutTime drops the time of a log line, which is not the kit's.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// An output writes to the log of a test that has not ended.
type output struct {
	mu sync.Mutex // guards the following
	t  testing.TB // nil: it has ended
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.t == nil {
		return len(p), nil
	}
	return o.t.Output().Write(p)
}

func (o *output) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.t = nil
}

// open opens a runtime on the kit's disk.
func (k *Kit) open() {
	k.t.Helper()
	opt := k.opt.Runtime
	opt.Clock = k.clock
	opt.EvictEveryTurn = opt.EvictEveryTurn || k.opt.EvictEveryTurn
	probe := &registry.Probe{Poison: true, Labels: k.labels, Woken: k.log.woken, Began: k.log.began, Ended: k.log.ended, Refused: k.log.refused}
	cfg := store.Config{Dir: "data", FS: k.disk, CacheSize: 1 << 20, MemTableSize: 1 << 20}
	rt, reg, err := seam.Open(cfg, &opt, probe)
	if err != nil {
		k.t.Fatalf("hibernatetest: open the runtime: %v", err)
	}
	k.rt, k.reg = rt.(*hibernate.Runtime), reg
	handler, err := k.setup(k.rt)
	if err != nil {
		k.t.Fatalf("hibernatetest: setup: %v", err)
	}
	if handler == nil {
		handler = http.NotFoundHandler()
	}
	k.door.Store(&handler)
}

func (k *Kit) serve(w http.ResponseWriter, r *http.Request) {
	h := k.door.Load()
	if h == nil {
		http.Error(w, "the runtime restarts", http.StatusServiceUnavailable)
		return
	}
	(*h).ServeHTTP(w, r)
}

// Runtime is the runtime of now: a Restart opens another. It may be called from
// the goroutine of the test only, and the result be used by any.
func (k *Kit) Runtime() *hibernate.Runtime { return k.rt }

// Clock is the kit's clock, for code that asks one for the time. It may be used by any
// goroutine.
func (k *Kit) Clock() hibernate.Clock { return k.clock }

// Restart is a power failure and the start of the program after it. Handlers are cut off,
// connections break without a Close frame, everything in memory is gone, and so
// is what was not on disk. Then a new runtime is opened on what is left, and setup is called with
// it. Restart waits for nothing: [Kit.Settle] before it has everything on disk.
//
// Clients stay cut; dial anew. Stubs from before work with all methods of the kit, as
// those of [Kit.Object] do.
func (k *Kit) Restart() {
	k.t.Helper()
	k.door.Store(nil)
	for _, c := range k.clients { // before the cut: what they see from now on never left
		c.sever("the runtime was restarted")
	}
	k.reg.Kill(fmt.Errorf("%w: the test cut the power", hibernate.ErrUnavailable)) // nothing leaves any more
	disk := k.disk.Crash()
	k.shut()
	k.disk = disk
	k.log.note("the runtime is restarted")
	k.open()
}

// shut closes the runtime.
func (k *Kit) shut() {
	if k.rt == nil {
		return
	}
	if err := k.rt.Close(); err != nil && k.rt.Err() == nil {
		k.t.Errorf("hibernatetest: close the runtime: %v", err)
	}
	k.panics += k.rt.Stats().Panics
}

// close ends the test's world and looks at what is left of it.
func (k *Kit) close() {
	k.t.Helper()
	for _, c := range k.clients {
		c.sever("the test has ended")
	}
	_ = k.srv.Close() // nobody is waited for
	k.shut()
	k.readers.Wait()
	if k.t.Failed() {
		if !k.told { // the test's own words
			k.t.Logf("hibernatetest: the test has failed.%s%s", k.evicted(), k.log.tail())
		}
		return // what is left may be so because the test gave up
	}
	if k.panics > 0 && !k.opt.AllowPanics {
		k.t.Errorf("hibernatetest: a handler panicked (%d times). The runtime undid its turn and went on; see the log for its stack, "+
			"and Options.AllowPanics if it was meant to.%s", k.panics, k.log.tail())
		return
	}
	var left []goroutine
	for wait := newBackoff(k.opt.Patience); ; {
		if left = k.goroutines(); len(left) == 0 {
			return
		}
		if !wait.again() {
			break
		}
	}
	var b strings.Builder
	for _, g := range left {
		b.WriteString("\n\n")
		b.WriteString(g.String())
	}
	k.t.Errorf("hibernatetest: %d goroutines that handlers started are still there %v after the runtime was closed. "+
		"The ctx of WaitUntil work and of a turn ends with the instance: let them return then.%s",
		len(left), k.opt.Patience, b.String())
}

// fatalf fails the test with what is known of recent events.
func (k *Kit) fatalf(format string, args ...any) {
	k.t.Helper()
	k.told = true
	k.t.Fatalf("hibernatetest: %s%s", fmt.Sprintf(format, args...), k.log.tail())
}

// evicted is what to think of first when something is not as expected.
func (k *Kit) evicted() string {
	if !k.opt.EvictEveryTurn && !k.opt.Runtime.EvictEveryTurn {
		return ""
	}
	return "\n\tOptions.EvictEveryTurn built the object anew before each event: what only a field of it held is gone. " +
		"Keep state in storage or an attachment."
}

// await has f done on another goroutine, for as long as the kit has patience.
func (k *Kit) await(doing string, f func(ctx context.Context)) {
	k.t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), k.opt.Patience, errPatience)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	patience := time.NewTimer(k.opt.Patience + k.opt.Patience/10) // ctx first
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		k.fatalf("%s: not done after %v%s", doing, k.opt.Patience, k.atWork())
	}
}

var errPatience = errors.New("the kit's patience is over (Options.Patience)")

// A backoff spaces the looks at something that no event announces.
type backoff struct {
	end  time.Time
	wait time.Duration
}

func newBackoff(patience time.Duration) *backoff {
	return &backoff{end: time.Now().Add(patience), wait: 10 * time.Microsecond}
}

// again waits a little and reports whether there is time for another look.
func (b *backoff) again() bool {
	if time.Now().After(b.end) {
		return false
	}
	time.Sleep(b.wait)
	b.wait = min(b.wait*2, 5*time.Millisecond)
	return true
}
