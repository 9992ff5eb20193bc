//go:build !portable

package poll

import (
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A turner is an owner's record whose Input runs turns.
type turner struct {
	Conn
	input func(w *Worker, p []byte) bool
}

func (r *turner) Input(w *Worker, p []byte) bool { return r.input(w, p) }
func (r *turner) End(*Worker, error)             {}
func (r *turner) Writable()                      {}

// runs attaches a connection whose input f is called with.
func (w *world) runs(f func(r *turner, wk *Worker, p []byte) bool) (*turner, net.Conn) {
	w.Helper()
	r := &turner{}
	r.input = func(wk *Worker, p []byte) bool { return f(r, wk, p) }
	server, client := w.pair()
	w.must(group(w.p, r).Attach(&r.Conn, server))
	r.Resume()
	client.SetDeadline(time.Now().Add(hang))
	return r, client
}

// echoes attaches a connection that echoes in a turn.
func (w *world) echoes() net.Conn {
	w.Helper()
	_, client := w.runs(func(r *turner, wk *Worker, p []byte) bool {
		wk.Enter(nil)
		r.Write(p)
		wk.Leave()
		return true
	})
	return client
}

func (w *world) echo(client net.Conn, s string) {
	w.Helper()
	_, err := io.WriteString(client, s)
	w.must(err)
	got := make([]byte, len(s))
	_, err = io.ReadFull(client, got)
	w.must(err)
	if string(got) != s {
		w.Fatalf("echoed %q, want %q", got, s)
	}
}

func newWorld(t *testing.T) *world {
	return &world{T: t, p: newPoller(t, Options{}), pair: pairs(t, "tcp")}
}

// within fails if nothing comes of c while a callback blocks, which is released then.
func within(t *testing.T, what string, release chan struct{}, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(hang):
		close(release)
		t.Fatalf("%s: nothing came while a callback blocked", what)
	}
}

// A ledger is the loop of a worker in a unit test: what only the holder of the token may touch.
type ledger struct {
	taken atomic.Int32
	held  int // guarded by the token: the race detector sees who else touches it
}

func (l *ledger) replace(*Worker) { l.taken.Add(1); l.held++ }

// TestAResumeBeforeTheLoopGoesOnIsNotLost: what is left to be read is, though the callback that was to read it says no more.
func TestAResumeBeforeTheLoopGoesOnIsNotLost(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{BufferSize: 64}), pair: pairs(t, "tcp")}
	read := make(chan int, 3)
	_, client := w.runs(func(r *turner, wk *Worker, p []byte) bool {
		wk.Enter(nil)
		if len(p) == 64 {
			r.Resume()
		}
		read <- len(p)
		wk.Detach()
		wk.Leave()
		return false
	})
	client.Write(make([]byte, 64+32))
	for _, want := range []int{64, 32} {
		if n := wait(t, "Input", read); n != want {
			t.Errorf("read %d bytes, want %d", n, want)
		}
	}
}

// However many goroutines detach, and whenever the worker leaves, one of them has the loop.
func TestTokenIsTakenOnce(t *testing.T) {
	var taken int32
	for range 1000 {
		var l ledger
		w := &Worker{loop: &l}
		var all sync.WaitGroup
		w.Enter(nil)
		for range 4 {
			all.Go(w.Detach)
		}
		for range 100 {
			w.Leave()
			attached := w.Attached()
			if attached {
				l.held++ // outside of Enter and Leave nobody else takes it
			}
			if attached != w.Attached() {
				t.Fatal("the loop was taken outside of Enter and Leave")
			}
			w.Enter(nil)
		}
		w.Leave()
		all.Wait()
		if n := l.taken.Load(); n > 1 || (n == 1) == w.Attached() {
			t.Fatalf("taken %d times, attached %v", n, w.Attached())
		}
		before := l.taken.Load()
		taken += before
		w.Detach() // by a goroutine that was left behind
		if l.taken.Load() != before {
			t.Fatal("Detach outside of Enter and Leave has taken the loop")
		}
		w.DetachSelf()
		w.DetachSelf()
		if n := l.taken.Load(); n != 1 || w.Attached() {
			t.Fatalf("taken %d times, attached %v", n, w.Attached())
		}
		w.Enter(nil)
		w.Leave()
		if w.Attached() {
			t.Fatal("a worker came back")
		}
	}
	t.Logf("%d of 1,000 workers were detached while they were at it", taken)
	var none *Worker
	none.Enter(nil)
	none.Leave()
	none.Detach()
	none.DetachSelf()
	if none.Attached() {
		t.Error("no worker is attached")
	}
}

// Each way to block, and what goes on beside it.
func TestBlockedCallbackKeepsNobodyWaiting(t *testing.T) {
	for name, block := range map[string]func(wk *Worker, until chan struct{}){
		"noticed":   func(_ *Worker, until chan struct{}) { <-until },
		"announced": func(wk *Worker, until chan struct{}) { wk.Detach(); <-until },
		"elsewhere": func(wk *Worker, until chan struct{}) { go wk.Detach(); <-until },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			release, entered := make(chan struct{}), make(chan *Worker, 1)
			var calls atomic.Int32
			_, blocked := w.runs(func(r *turner, wk *Worker, p []byte) bool {
				wk.Enter(nil)
				if calls.Add(1) == 1 {
					entered <- wk
					block(wk, release)
				}
				wk.Leave()
				r.Write(p)
				return true
			})
			other := w.echoes()
			io.WriteString(blocked, "first")
			was := wait(t, "the turn", entered)
			for range 20 {
				w.echo(other, "beside")
			}
			now := w.p.loops[0].worker.Load()
			if now == was {
				t.Error("the loop is still that of the blocked worker")
			}
			io.WriteString(blocked, "second") // waits in the system: nobody reads for a callback
			for range 20 {
				w.echo(other, "beside")
			}
			if n := calls.Load(); n != 1 {
				t.Errorf("%d calls for a connection whose callback blocks", n)
			}
			close(release)
			got := make([]byte, len("firstsecond"))
			if _, err := io.ReadFull(blocked, got); err != nil || string(got) != "firstsecond" {
				t.Errorf("received %q, %v", got, err)
			}
			for range 20 {
				w.echo(other, "after")
				w.echo(blocked, "after")
			}
			if w.p.loops[0].worker.Load() != now {
				t.Error("the end of a detached callback had a say in who runs the loop")
			}
		})
	}
}

// What a callback was given is its own until it returns, whatever the loop reads meanwhile.
func TestInputStaysWhileItsCallbackBlocks(t *testing.T) {
	w := newWorld(t)
	release, entered, kept := make(chan struct{}), make(chan struct{}), make(chan string, 1)
	_, blocked := w.runs(func(_ *turner, wk *Worker, p []byte) bool {
		wk.Enter(nil)
		close(entered)
		<-release
		wk.Leave()
		kept <- string(p)
		return true
	})
	other := w.echoes()
	io.WriteString(blocked, "mine")
	wait(t, "the turn", entered)
	big := string(make([]byte, 32<<10))
	for range 20 {
		w.echo(other, big)
	}
	close(release)
	if got := wait(t, "the end", kept); got != "mine" {
		t.Errorf("the input became %.40q", got)
	}
}

// A Resume beside a detached callback brings the next input before it has returned.
func TestResumeBesideADetachedCallback(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	second := make(chan struct{})
	var calls atomic.Int32
	_, client := w.runs(func(r *turner, wk *Worker, p []byte) bool {
		if calls.Add(1) == 2 {
			close(second)
			return true
		}
		wk.Enter(nil)
		wk.Detach()
		r.Resume()
		<-release
		wk.Leave()
		return false
	})
	io.WriteString(client, "x")
	w.echo(w.echoes(), "between")
	io.WriteString(client, "y")
	within(t, "the next input", release, second)
	close(release)
}

type flushed struct{ n atomic.Int32 }

func (f *flushed) Flush() { f.n.Add(1) }

// Also if the loop is taken over, and then at once.
func TestDeferredIsFlushedOnce(t *testing.T) {
	w := newWorld(t)
	var a, b flushed
	release, entered := make(chan struct{}), make(chan struct{})
	_, client := w.runs(func(r *turner, wk *Worker, p []byte) bool {
		for range 3 {
			wk.Defer(&a)
			wk.Defer(&a)
		}
		wk.Defer(&b)
		if a.n.Load() != b.n.Load() {
			t.Error("flushed during the callback")
		}
		if p[0] == 'b' {
			wk.Enter(nil)
			close(entered)
			<-release
			wk.Leave()
		}
		r.Write(p)
		return true
	})
	other := w.echoes()
	w.echo(client, "x")
	w.echo(other, "x") // a round behind it
	if a.n.Load() != 1 || b.n.Load() != 1 {
		t.Fatalf("flushed %d and %d times, want once each", a.n.Load(), b.n.Load())
	}
	io.WriteString(client, "b")
	wait(t, "the turn", entered)
	w.echo(other, "x") // whoever runs the loop now has flushed before
	if a.n.Load() != 2 || b.n.Load() != 2 {
		t.Errorf("flushed %d and %d times while the callback blocks, want twice each", a.n.Load(), b.n.Load())
	}
	close(release)
	got := make([]byte, 1)
	if _, err := io.ReadFull(client, got); err != nil {
		t.Error(err)
	}
	w.echo(other, "x")
	if a.n.Load() != 2 || b.n.Load() != 2 {
		t.Errorf("flushed %d and %d times in the end, want twice each", a.n.Load(), b.n.Load())
	}
}

func TestCloseWhileACallbackBlocks(t *testing.T) {
	before := openDescriptors(t)
	p, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, p: p, pair: pairs(t, "tcp")}
	release, entered, over := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	r, client := w.runs(func(r *turner, wk *Worker, p []byte) bool {
		wk.Enter(nil)
		close(entered)
		<-release
		wk.Leave()
		_, err := r.Write(p)
		over <- err
		return true
	})
	io.WriteString(client, "x")
	wait(t, "the turn", entered)
	closed := make(chan struct{})
	go func() { defer close(closed); p.Close() }()
	within(t, "Close", release, closed)
	if n, err := client.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the peer read %d bytes, %v", n, err)
	}
	client.Close()
	if n := openDescriptors(t); n > before+1 { // the listener
		t.Errorf("%d descriptors after Close, before %d", n, before)
	}
	close(release)
	if err := wait(t, "the end", over); err == nil {
		t.Error("a write succeeded after Close")
	}
	if r.Attached() {
		t.Error("attached after Close")
	}
}

// The number of a connection closed while its callback blocks is free at once, and what the callback does later reaches
// nobody who has it then.
func TestConnClosedWhileItsCallbackBlocks(t *testing.T) {
	w := newWorld(t)
	release, entered, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
	r, client := w.runs(func(r *turner, wk *Worker, p []byte) bool {
		defer close(over)
		wk.Enter(nil)
		close(entered)
		<-release
		wk.Leave()
		r.Write([]byte("from beyond"))
		r.Resume()
		r.NotifyWritable()
		return true
	})
	io.WriteString(client, "x")
	wait(t, "the turn", entered)
	other := w.echoes()
	w.echo(other, "taken over")
	server, heir := w.pair()
	w.must(r.Close())
	if n, err := client.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the peer read %d bytes, %v", n, err)
	}
	if n := w.p.Len(); n != 1 {
		t.Errorf("%d connections attached, want 1", n)
	}
	number := int(r.fd)
	if _, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0); err == nil {
		t.Errorf("descriptor %d is still open", number)
	}
	h := &record{}
	h.input = func(p []byte) bool { h.Write(p); return true }
	w.must(group(w.p, h).enter(&h.Conn, takeNumber(t, server, number), 0))
	h.Resume()
	heir.SetDeadline(time.Now().Add(hang))
	w.echo(heir, "before")
	close(release)
	wait(t, "the end", over)
	w.echo(heir, "after")
	w.must(h.Close())
}

// Many turns of one read, none of which takes long.
func TestManyShortTurnsGiveWay(t *testing.T) {
	w := newWorld(t)
	entered, served := make(chan struct{}), make(chan struct{})
	_, many := w.runs(func(r *turner, wk *Worker, p []byte) bool {
		close(entered)
		for end := time.Now().Add(hang); time.Now().Before(end); {
			wk.Enter(nil)
			for soon := time.Now().Add(watchTick / 50); time.Now().Before(soon); {
				runtime.Gosched()
			}
			wk.Leave()
			select {
			case <-served:
				return true
			default:
			}
		}
		t.Errorf("another connection was not served beside %v of short turns", hang)
		return true
	})
	other := w.echoes()
	io.WriteString(many, "x")
	wait(t, "the turns", entered)
	w.echo(other, "beside")
	close(served)
	w.echo(other, "after")
}

// Callbacks that take long without saying so (Route of the acceptor) are not taken over, and the watch must not fall
// asleep over them: the next one of the same round may block.
func TestWatchIsAwakeBehindALongCallback(t *testing.T) {
	w := newWorld(t)
	hold, held := make(chan struct{}), make(chan struct{})
	_, first := w.runs(func(*turner, *Worker, []byte) bool { close(held); <-hold; return true })
	long := func(*turner, *Worker, []byte) bool {
		time.Sleep(4 * watchIdle * watchTick) // it is a callback that sleeps, not a test that waits
		return true
	}
	_, second := w.runs(long)
	release, entered := make(chan struct{}), make(chan struct{})
	_, third := w.runs(func(_ *turner, wk *Worker, _ []byte) bool {
		wk.Enter(nil)
		close(entered)
		<-release
		wk.Leave()
		return true
	})
	other := w.echoes()
	io.WriteString(first, "x")
	wait(t, "the round before", held)
	io.WriteString(second, "x")
	io.WriteString(third, "x") // of one round with second
	close(hold)
	wait(t, "the turn", entered)
	echoed := make(chan struct{})
	go func() { defer close(echoed); w.echo(other, "beside") }()
	within(t, "an echo", release, echoed)
	close(release)
}

// At rest the watch waits for the loop, and does not tick.
func TestWatchSleepsWithTheLoop(t *testing.T) {
	w := newWorld(t)
	l := w.p.loops[0]
	client := w.echoes()
	for range 3 {
		w.echo(client, "x")
		if !l.watched.Load() {
			t.Error("the loop worked and was not watched")
		}
		for end := time.Now().Add(hang); l.watched.Load(); {
			if time.Now().After(end) {
				t.Fatalf("the watch ticks for %v though nothing happens", hang)
			}
			time.Sleep(watchTick) // nobody tells of its sleep
		}
	}
	quiet(w)
}

func TestPacePunishesAndForgets(t *testing.T) {
	var p Pace
	aside := func() (n int) {
		for !p.Inline() {
			n++
		}
		return n
	}
	if n := aside(); n != 0 {
		t.Fatalf("%d runs aside before anything happened", n)
	}
	for want := minPenalty; want < 3*maxPenalty; want *= 2 { // again and again at the first run on a loop
		p.slow()
		if n := aside(); n != min(want, maxPenalty) {
			t.Fatalf("%d runs aside, want %d", n, min(want, maxPenalty))
		}
	}
	for range trusted {
		if !p.Inline() {
			t.Fatal("aside though nothing happened")
		}
	}
	p.slow()
	if n := aside(); n != minPenalty {
		t.Errorf("%d runs aside after %d good ones, want %d", n, trusted, minPenalty)
	}
}

// Connections that echo, block, announce it, close, and come again, at once.
func TestWorkersUnderChurn(t *testing.T) {
	before := openDescriptors(t)
	p, err := New(Options{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, p: p, pair: pairs(t, "tcp")}
	var turns, blocked atomic.Int64
	var all sync.WaitGroup
	var clients []net.Conn
	for range 60 {
		_, client := w.runs(func(r *turner, wk *Worker, in []byte) bool {
			for i := range in {
				wk.Enter(nil)
				switch turns.Add(1) % 97 {
				case 13:
					blocked.Add(1)
					time.Sleep(3 * watchTick)
				case 31:
					wk.Detach()
					time.Sleep(watchTick)
				case 57:
					go wk.Detach() // it may come too late, or meet another turn
				}
				wk.Leave()
				r.Write(in[i : i+1])
			}
			return true
		})
		clients = append(clients, client)
	}
	for n, client := range clients {
		all.Go(func() {
			defer client.Close()
			var sent, got byte
			buf := make([]byte, 64)
			for range 40 {
				some := buf[:1+(n+int(sent))%16]
				for i := range some {
					some[i] = sent
					sent++
				}
				if _, err := client.Write(some); err != nil {
					t.Error(err)
					return
				}
				if _, err := io.ReadFull(client, some); err != nil {
					t.Error(err)
					return
				}
				for _, b := range some {
					if b != got {
						t.Errorf("received %d, want %d", b, got)
						return
					}
					got++
				}
			}
		})
	}
	all.Wait()
	w.must(p.Close())
	t.Logf("%d turns, %d of which blocked", turns.Load(), blocked.Load())
	if n := openDescriptors(t); n > before+1 {
		t.Errorf("%d descriptors, before %d", n, before)
	}
}
