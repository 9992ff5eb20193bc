package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/store"
)

// A disk is a file system in memory whose syncs wait while it is stopped, and
// fail once it is broken.
type disk struct {
	vfs.FS
	mu      sync.Mutex // guards the following
	stopped chan struct{}
	waiting int
	broken  error
}

func newDisk() *disk { return &disk{FS: vfs.NewMem()} }

// stop makes syncs wait until the returned function is called.
func (d *disk) stop() (start func()) {
	gate := make(chan struct{})
	d.mu.Lock()
	d.stopped = gate
	d.mu.Unlock()
	return sync.OnceFunc(func() {
		d.mu.Lock()
		d.stopped = nil
		d.mu.Unlock()
		close(gate)
	})
}

func (d *disk) breakDown(err error) {
	d.mu.Lock()
	d.broken = err
	d.mu.Unlock()
}

func (d *disk) syncsWaiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting
}

func (d *disk) sync(f func() error) error {
	d.mu.Lock()
	gate := d.stopped
	d.waiting++
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
	d.mu.Lock()
	d.waiting--
	err := d.broken
	d.mu.Unlock()
	if err != nil {
		return err
	}
	return f()
}

func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.Create(name, c)
	return &diskFile{f, d}, err
}

func (d *disk) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.ReuseForWrite(old, name, c)
	return &diskFile{f, d}, err
}

type diskFile struct {
	vfs.File
	d *disk
}

func (f *diskFile) Sync() error     { return f.d.sync(f.File.Sync) }
func (f *diskFile) SyncData() error { return f.d.sync(f.File.SyncData) }

func (f *diskFile) SyncTo(n int64) (full bool, err error) {
	err = f.d.sync(func() (err error) { full, err = f.File.SyncTo(n); return err })
	return full, err
}

// newDiskRig is a rig on a disk.
func newDiskRig(t *testing.T, d *disk, o *hibernate.Options) *rig {
	t.Helper()
	if o == nil {
		o = &hibernate.Options{}
	}
	r := &rig{t: t, clock: alarm.NewFake(epoch), log: &logbook{}}
	o.Clock, o.ShutdownSpread = r.clock, -1
	rt, err := hibernate.OpenStore(store.Config{Dir: "data", FS: d}, o)
	if err != nil {
		t.Fatal(err)
	}
	r.rt = rt
	r.guard()
	t.Cleanup(r.shut)
	return r
}

// A scribe writes what it is told and says how much it has.
type scribe struct{ state *hibernate.State }

func newScribe(_ context.Context, s *hibernate.State) (*scribe, error) { return &scribe{s}, nil }

// WebSocketMessage understands "put", "read" and "loose" (a write that output does
// not wait for), and answers with the number of writes it sees.
func (s *scribe) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	n, _, err := hibernate.Get[int](ctx, s.state.Storage(), "n")
	if err != nil {
		return err
	}
	switch m.Text() {
	case "put":
		n++
		err = hibernate.Put(ctx, s.state.Storage(), "n", n)
	case "loose":
		n++
		err = hibernate.Put(ctx, s.state.Storage(), "n", n, hibernate.AllowUnconfirmed())
	}
	if err != nil {
		return err
	}
	return ws.SendText(ctx, fmt.Sprintf("%s %d", m.Text(), n))
}

func (s *scribe) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	if r.Header.Get("Upgrade") != "" {
		_, _ = s.state.AcceptWebSocket(w, r, nil)
		return
	}
	n, _, err := hibernate.Get[int](ctx, s.state.Storage(), "n")
	if err == nil {
		err = hibernate.Put(ctx, s.state.Storage(), "n", n+1)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("X-N", fmt.Sprint(n+1))
	fmt.Fprintf(w, "first %d\n", n+1)
	if r.URL.Query().Has("flush") {
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		_ = hibernate.Put(ctx, s.state.Storage(), "n", n+2)
		fmt.Fprintf(w, "second %d\n", n+2)
	}
}

var add = hibernate.NewMethod("add", func(s *scribe, ctx context.Context, by int) (int, error) {
	n, _, err := hibernate.Get[int](ctx, s.state.Storage(), "n")
	if err != nil {
		return 0, err
	}
	return n + by, hibernate.Put(ctx, s.state.Storage(), "n", n+by)
})

// quietFor reports that ch stays silent while other things demonstrably happen.
func quietFor[T any](t *testing.T, what string, ch <-chan T, others func()) {
	t.Helper()
	others()
	select {
	case v := <-ch:
		t.Fatalf("%s left before the write was durable: %v", what, v)
	default:
	}
}

func TestOutputWaitsForTheDisk(t *testing.T) {
	d := newDisk()
	r := newDiskRig(t, d, nil)
	serve(r, newScribe, nil)
	a, other := r.dial("/o/a"), r.dial("/o/other")
	frames := make(chan string, 100)
	a.send("read")
	a.expect("text:read 0")
	start := d.stop()
	defer start()

	// The same object goes on, and reads what it wrote, while nothing leaves.
	go func() {
		for range 4 {
			frames <- a.next()
		}
	}()
	a.send("put")
	a.send("put")
	a.send("read")
	r.until("the turns", func() bool { return r.rt.Stats().Messages >= 4 })
	result := make(chan string, 1)
	go func() {
		n, err := add.Call(context.Background(), r.ns.GetByName("a"), 10)
		result <- fmt.Sprint(n, err)
	}()
	response := make(chan string, 1)
	go func() {
		res, err := http.Get(r.srv.URL + "/o/a")
		if err != nil {
			response <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		response <- res.Header.Get("X-N") + " " + string(b)
	}()
	r.until("a sync", func() bool { return d.syncsWaiting() > 0 })

	// Other objects that write nothing are not disturbed.
	others := func() {
		for range 20 {
			other.send("read")
			other.expect("text:read 0")
		}
	}
	quietFor(t, "a frame", frames, others)
	quietFor(t, "a call's result", result, others)
	quietFor(t, "a response", response, others)

	start()
	for _, want := range []string{"text:put 1", "text:put 2", "text:read 2"} {
		if got := <-frames; got != want {
			t.Fatalf("received %q, want %q", got, want)
		}
	}
	got := map[string]bool{<-result: true, <-response: true}
	if !(got["12 <nil>"] && got["13 first 13\n"]) && !(got["13 <nil>"] && got["3 first 3\n"]) {
		t.Errorf("results %v", got)
	}
	a.send("read")
	<-frames
}

func TestUnconfirmedWriteHoldsNothingBack(t *testing.T) {
	d := newDisk()
	r := newDiskRig(t, d, nil)
	serve(r, newScribe, nil)
	a := r.dial("/o/a")
	a.send("read")
	a.expect("text:read 0")
	start := d.stop()
	defer start()
	a.send("loose")
	a.expect("text:loose 1")
	a.send("read")
	a.expect("text:read 1")
}

// TestOutputWaitsForSomeOfADelete: the commit has no room for all of the keys, and
// what is sent after the error waits for those that are deleted, also behind a write
// that nothing would wait for.
func TestOutputWaitsForSomeOfADelete(t *testing.T) {
	d := newDisk()
	r := newDiskRig(t, d, nil)
	const each = 2100 // of 2 KiB: two commits of writes, and more than one of deletions
	key := func(i int) string { return fmt.Sprintf("%04d", i) + strings.Repeat("k", 2044) }
	written := 0
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		if m.Text() == "write" {
			for range each {
				if err := a.state.Storage().PutBytes(ctx, key(written), nil); err != nil {
					return err
				}
				written++
			}
			return ws.SendText(ctx, "written")
		}
		all := make([]string, written)
		for i := range all {
			all[i] = key(i)
		}
		if err := hibernate.Put(ctx, a.state.Storage(), "loose", 1, hibernate.AllowUnconfirmed()); err != nil {
			return err
		}
		n, err := a.state.Storage().Delete(ctx, all...)
		var over *hibernate.LimitError
		return ws.SendText(ctx, fmt.Sprint("some: ", 0 < n && n < written, errors.As(err, &over)))
	}}, nil)
	c := r.dial("/o/a")
	for range 2 {
		c.send("write")
		c.expect("text:written")
	}
	start := d.stop()
	defer start()
	c.send("delete")
	r.until("a sync", func() bool { return d.syncsWaiting() > 0 })
	c.ping("p") // is not held, and comes behind what the turn has let out
	c.expect("pong:p")
	start()
	c.expect("text:some: true true")
}

// TestSyncWaitsForUnconfirmedWrites too, of its own turn and of earlier ones (12.9).
func TestSyncWaitsForUnconfirmedWrites(t *testing.T) {
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprint("own=", own), func(t *testing.T) {
			d := newDisk()
			r := newDiskRig(t, d, nil)
			r.act(&script{}, nil)
			loose := func(ctx context.Context, a *actor) error {
				return hibernate.Put(ctx, a.state.Storage(), "k", 1, hibernate.AllowUnconfirmed())
			}
			start := d.stop()
			defer start()
			if !own {
				r.must("a", loose)
			}
			done := r.later("a", func(ctx context.Context, a *actor) error {
				if own {
					if err := loose(ctx, a); err != nil {
						return err
					}
				}
				err := a.state.Storage().Sync(ctx)
				a.tell("synced")
				return err
			})
			r.until("a sync", func() bool { return d.syncsWaiting() > 0 })
			r.turn("b")
			r.silent()
			start()
			r.hear("synced")
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFlushWaitsForTheDisk(t *testing.T) {
	d := newDisk()
	r := newDiskRig(t, d, nil)
	serve(r, newScribe, nil)
	start := d.stop()
	defer start()
	type answer struct {
		header, body string
	}
	lines := make(chan answer, 2)
	go func() {
		res, err := http.Get(r.srv.URL + "/o/a?flush")
		if err != nil {
			lines <- answer{body: err.Error()}
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		lines <- answer{res.Header.Get("X-N"), string(b)}
	}()
	r.until("a sync", func() bool { return d.syncsWaiting() > 0 })
	quietFor(t, "a flushed response", lines, func() {})
	start()
	if got := <-lines; got != (answer{"1", "first 1\nsecond 2\n"}) {
		t.Fatalf("answer %+v", got)
	}
}

// TestDeadDiskEndsTheRuntimeLoudly: nothing that was not on disk leaves, every
// connection is cut, every call fails, and nothing hangs.
func TestDeadDiskEndsTheRuntimeLoudly(t *testing.T) {
	d := newDisk()
	fatal := make(chan error, 2)
	r := newDiskRig(t, d, &hibernate.Options{OnFatal: func(err error) { fatal <- err }})
	serve(r, newScribe, nil)
	a, b := r.dial("/o/a"), r.dial("/o/b")
	for _, c := range []*client{a, b} {
		c.send("put")
		c.expect("text:put 1")
	}
	start := d.stop()
	a.send("put")
	result := make(chan error, 1)
	go func() {
		_, err := add.Call(context.Background(), r.ns.GetByName("b"), 1)
		result <- err
	}()
	r.until("a sync", func() bool { return d.syncsWaiting() > 0 })
	broken := errors.New("the disk is gone")
	d.breakDown(broken)
	start()

	a.expect("eof")
	b.expect("eof")
	if err := <-result; !errors.Is(err, hibernate.ErrUnavailable) {
		t.Errorf("call under way: %v", err)
	}
	if err := <-fatal; !errors.Is(err, hibernate.ErrUnavailable) || !strings.Contains(err.Error(), broken.Error()) {
		t.Errorf("OnFatal: %v", err)
	}
	<-r.rt.Done()
	if err := r.rt.Err(); err == nil {
		t.Error("Err is nil")
	}
	if _, err := add.Call(context.Background(), r.ns.GetByName("c"), 1); !errors.Is(err, hibernate.ErrUnavailable) {
		t.Errorf("later call: %v", err)
	}
	res, err := http.Get(r.srv.URL + "/o/a")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("later request: status %d", res.StatusCode)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.rt.Shutdown(ctx)
	if ctx.Err() != nil {
		t.Error("Shutdown of a dead runtime hangs")
	}
}
