package poll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// record is an owner's record of a connection. Unset functions do nothing and go on.
type record struct {
	Conn
	input    func(p []byte) bool
	end      func(error)
	writable func()
}

func (r *record) Input(_ *Worker, p []byte) bool { return r.input == nil || r.input(p) }
func (r *record) End(_ *Worker, err error) {
	if r.end != nil {
		r.end(err)
	}
}
func (r *record) Writable() {
	if r.writable != nil {
		r.writable()
	}
}

// group is a group for r alone.
func group(p *Poller, r handled) *Group { return p.Group(handler{r}) }

// handled is a record that is told of its own connection only.
type handled interface {
	Input(w *Worker, p []byte) bool
	End(w *Worker, err error)
	Writable()
}

type handler struct{ r handled }

func (h handler) Input(_ *Conn, w *Worker, p []byte) bool { return h.r.Input(w, p) }
func (h handler) End(_ *Conn, w *Worker, err error)       { h.r.End(w, err) }
func (h handler) Writable(*Conn)                          { h.r.Writable() }

// world is a poller and a way to make connections.
type world struct {
	*testing.T
	p    *Poller
	pair func() (server, client net.Conn)
}

// attach makes a connection and gives its server side to the poller. It is resumed.
func (w *world) attach(r *record) (client net.Conn) {
	w.Helper()
	server, client := w.pair()
	w.must(group(w.p, r).Attach(&r.Conn, server))
	r.Resume()
	client.SetDeadline(time.Now().Add(hang))
	return client
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// hang is how long a test waits for what has to come, however busy the machine is.
const hang = 30 * time.Second

// wait fails the test instead of hanging for ever.
func wait[V any](t testing.TB, what string, c <-chan V) V {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(hang):
		t.Fatalf("%s: nothing came", what)
		panic("unreachable")
	}
}

// pairs makes connections over a listener; both ends are closed with the test.
func pairs(t testing.TB, network string) func() (server, client net.Conn) {
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return func() (server, client net.Conn) {
		client, err := net.Dial(network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err = ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		return server, client
	}
}

func newPoller(t testing.TB, o Options) *Poller {
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if n := p.Len(); n != 0 {
			t.Errorf("%d connections attached after Close", n)
		}
	})
	return p
}

// everyForm runs f over every form of poller and connection.
func everyForm(t *testing.T, o Options, f func(w *world)) {
	for _, form := range []struct {
		name       string
		network    string
		goroutines bool
		loops      int
		processors int // that a new poller sees, and has at least
	}{
		{"system/tcp", "tcp", false, 1, 2},
		{"system/unix", "unix", false, 1, 2},
		{"system/loops=3", "tcp", false, 3, 2},
		{"system/processors=1", "tcp", false, 1, 1},
		{"goroutines/tcp", "tcp", true, 0, 2},
		{"goroutines/unix", "unix", true, 0, 2},
	} {
		t.Run(form.name, func(t *testing.T) {
			o := o
			o.Goroutines, o.Loops = form.goroutines, form.loops
			pair := pairs(t, form.network)
			before := runtime.GOMAXPROCS(form.processors)
			p := newPoller(t, o)
			runtime.GOMAXPROCS(max(before, form.processors))
			defer runtime.GOMAXPROCS(before)
			f(&world{t, p, pair})
		})
	}
}

func TestConnStaysSmall(t *testing.T) {
	if n := unsafe.Sizeof(Conn{}); n > 16 {
		t.Errorf("Conn is %d bytes, promised are 16", n)
	}
}

func TestZeroConnIsClosed(t *testing.T) {
	var c Conn
	c.Resume()
	c.NotifyWritable()
	if c.Attached() {
		t.Error("attached")
	}
	_, err := c.Write([]byte("x"))
	_, errv := c.Writev([][]byte{{1}})
	for _, err := range []error{err, errv, c.CloseWrite(), c.Close()} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	}
}

func TestInputArrivesAndEchoes(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		ended := make(chan error, 1)
		r := &record{end: func(err error) { ended <- err }}
		r.input = func(p []byte) bool {
			n, err := r.Write(p)
			if n != len(p) || err != nil {
				w.Errorf("Write = %d, %v", n, err)
			}
			return true
		}
		client := w.attach(r)
		got := make([]byte, 5)
		for range 100 {
			client.Write([]byte("hello"))
			if _, err := io.ReadFull(client, got); err != nil || string(got) != "hello" {
				w.Fatalf("%q, %v", got, err)
			}
		}
		if s := w.p.Stats(); s.Controls != 0 || s.Conns != 1 {
			w.Errorf("an exchange of messages changed registrations: %+v", s)
		}
		client.Close()
		if err := wait(w, "End", ended); err != io.EOF {
			w.Errorf("End(%v), want EOF", err)
		}
		w.must(r.Close())
		w.must(r.Close())
		if _, err := r.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			w.Errorf("Write after Close: %v", err)
		}
	})
}

func TestAttachStartsPaused(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		var resumed atomic.Bool
		got := make(chan string, 10)
		r := &record{input: func(p []byte) bool {
			if !resumed.Load() {
				w.Error("input before the first Resume")
			}
			got <- string(p)
			return true
		}}
		server, client := w.pair()
		client.Write([]byte("early"))
		w.must(group(w.p, r).Attach(&r.Conn, server))
		rounds(w, 20)
		resumed.Store(true)
		r.Resume()
		if s := wait(w, "Input", got); s != "early" {
			w.Errorf("got %q", s)
		}
	})
}

// rounds exchanges n messages over another connection of the same poller: everything that was ready before has
// been seen by the loop afterwards, many times over.
func rounds(w *world, n int) {
	w.Helper()
	round, end := startRounds(w)
	for range n {
		round()
	}
	end()
}

// startRounds is rounds one at a time.
func startRounds(w *world) (round, end func()) {
	w.Helper()
	var r record
	r.input = func(p []byte) bool { r.Write(p); return true }
	client := w.attach(&r)
	b := []byte{0}
	return func() {
		w.Helper()
		client.SetDeadline(time.Now().Add(hang))
		client.Write(b)
		if _, err := io.ReadFull(client, b); err != nil {
			w.Fatal(err)
		}
	}, func() { r.Close() }
}

func TestInputFalseStopsUntilResume(t *testing.T) {
	everyForm(t, Options{BufferSize: 4}, func(w *world) {
		got := make(chan string, 100)
		r := &record{input: func(p []byte) bool { got <- string(p); return false }}
		client := w.attach(r)
		client.Write([]byte("0123456789"))
		s := wait(w, "Input", got)
		for len(s) < 10 {
			rounds(w, 5)
			if len(got) != 0 {
				w.Fatal("input while paused")
			}
			r.Resume()
			s += wait(w, "Input after Resume", got)
		}
		if s != "0123456789" {
			w.Errorf("got %q", s)
		}
		// Paused with nothing left: what comes meanwhile waits for Resume.
		client.Write([]byte("ab"))
		client.Write([]byte("cd"))
		rounds(w, 5)
		client.Write([]byte("ef"))
		rounds(w, 5)
		if len(got) != 0 {
			w.Fatal("input while paused")
		}
		for s = ""; len(s) < 6; {
			r.Resume()
			s += wait(w, "Input after Resume", got)
		}
		if s != "abcdef" {
			w.Errorf("got %q", s)
		}
	})
}

// Every Input answers false, and one Resume for it runs beside its end. None may be lost.
func TestResumeBesideInputFalseIsNotLost(t *testing.T) {
	everyForm(t, Options{BufferSize: 8}, func(w *world) {
		const conns, total = 8, 20000
		var resumers, owners sync.WaitGroup
		defer owners.Wait()
		for i := range conns {
			resume := make(chan struct{}, total+1)
			done, stop := make(chan struct{}), make(chan struct{})
			seen := 0
			r := &record{}
			r.input = func(p []byte) bool {
				for _, b := range p {
					if b != byte(seen) {
						w.Errorf("byte %d is %d", seen, b)
					}
					seen++
				}
				if seen == total {
					close(done)
				}
				if i%4 == 3 {
					r.Resume()
					return false
				}
				resume <- struct{}{}
				if seen%3 == 0 {
					runtime.Gosched() // let it come before the answer
				}
				return false
			}
			for range 2 {
				resumers.Go(func() {
					for {
						select {
						case <-resume:
							r.Resume()
							if i%2 == 0 {
								r.Resume()
							}
						case <-stop:
							return
						}
					}
				})
			}
			client := w.attach(r)
			owners.Go(func() {
				rnd := mrand.New(mrand.NewPCG(1, uint64(i)))
				b := make([]byte, total)
				for i := range b {
					b[i] = byte(i)
				}
				for len(b) > 0 {
					n := min(len(b), 1+rnd.IntN(24))
					client.Write(b[:n])
					b = b[n:]
				}
				select {
				case <-done:
				case <-time.After(hang):
					w.Errorf("conn %d stalled, state %b", i, r.state.Load())
				}
				r.Close()
				close(stop)
			})
		}
		owners.Wait()
		resumers.Wait()
	})
}

func TestSlowReaderGetsEverything(t *testing.T) {
	for _, paused := range []bool{false, true} {
		everyForm(t, Options{}, func(w *world) {
			data := make([]byte, 8<<20)
			rand.Read(data)
			rest := data
			short := make(chan struct{}, 1) // a Write was
			done := make(chan struct{})
			r := &record{input: func([]byte) bool { return !paused }}
			send := func() {
				for len(rest) > 0 {
					n, err := r.Writev([][]byte{rest[:len(rest)/2], rest[len(rest)/2:]})
					if err != nil {
						w.Errorf("Writev: %v", err)
						close(done)
						return
					}
					rest = rest[n:]
					if len(rest) > 0 && n == 0 {
						select {
						case short <- struct{}{}:
						default:
						}
						r.NotifyWritable()
						return
					}
				}
				if err := r.CloseWrite(); err != nil {
					w.Error(err)
				}
				close(done)
			}
			r.writable = send
			client := w.attach(r)
			client.Write([]byte("pauses it"))
			r.NotifyWritable()
			wait(w, "a short Write", short)
			var got bytes.Buffer
			b := make([]byte, 10000)
			for i := 0; ; i++ {
				n, err := client.Read(b[:1+i*37%len(b)])
				got.Write(b[:n])
				if err == io.EOF {
					break
				}
				w.must(err)
			}
			wait(w, "the last Write", done)
			if !bytes.Equal(got.Bytes(), data) {
				w.Errorf("%d bytes differ from the %d sent", got.Len(), len(data))
			}
			if _, err := r.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
				w.Errorf("Write after CloseWrite: %v, want EPIPE", err)
			}
		})
	}
}

func TestWritableComesOncePerNotify(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		called := make(chan struct{}, 10)
		r := &record{writable: func() { called <- struct{}{} }}
		w.attach(r)
		for range 3 {
			r.NotifyWritable()
			wait(w, "Writable", called)
		}
		rounds(w, 10)
		if len(called) != 0 {
			w.Error("Writable without NotifyWritable")
		}
	})
}

// fill writes until the connection takes nothing more. The peer does not read.
func fill(w *world, r *record) {
	w.Helper()
	b := make([]byte, 64<<10)
	for full := 0; full < 3; {
		n, err := r.Write(b)
		w.must(err)
		if n == 0 {
			full++
			rounds(w, 3)
		} else {
			full = 0
		}
	}
}

func TestPeerResetWakesAWaitingWriter(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		failed := make(chan error, 1)
		r := &record{}
		r.writable = func() {
			if _, err := r.Write([]byte("x")); err != nil {
				failed <- err
			} else {
				r.NotifyWritable() // the kernel has found more room
			}
		}
		client := w.attach(r)
		fill(w, r)
		r.NotifyWritable()
		rounds(w, 5)
		if len(failed) != 0 {
			w.Fatal("Write failed before the reset")
		}
		if tc, ok := client.(*net.TCPConn); ok {
			tc.SetLinger(0)
		}
		client.Close()
		if err := wait(w, "Writable", failed); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			w.Errorf("Write after the peer's reset: %v", err)
		}
	})
}

func TestPausedPeerResetIsQuietAndToldAfterResume(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		ended := make(chan error, 2)
		r := &record{end: func(err error) { ended <- err }}
		server, client := w.pair()
		w.must(group(w.p, r).Attach(&r.Conn, server))
		if tc, ok := client.(*net.TCPConn); ok {
			tc.SetLinger(0)
		}
		client.Close()
		rounds(w, 5)
		quiet(w)
		if len(ended) != 0 {
			w.Error("End while paused")
		}
		r.Resume()
		err := wait(w, "End", ended)
		if _, ok := client.(*net.TCPConn); ok && !errors.Is(err, syscall.ECONNRESET) {
			w.Errorf("End(%v), want ECONNRESET", err)
		}
		r.Resume()
		quiet(w)
		if len(ended) != 0 {
			w.Error("second End")
		}
	})
}

// quiet fails the test if the loop wakes up for anything but the rounds it makes.
func quiet(w *world) {
	w.Helper()
	const n = 200
	before := w.p.Stats()
	rounds(w, n)
	after := w.p.Stats()
	if events := after.Events - before.Events; events > n+20 {
		w.Errorf("%d events for %d messages: the loop spins", events, n)
	}
	if controls := after.Controls - before.Controls; controls > 2 {
		w.Errorf("%d changes of registration while nothing happened", controls)
	}
}

func TestHalfClosedConnIsQuietAndWritable(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		ended := make(chan error, 2)
		got := make(chan string, 1)
		r := &record{
			input: func(p []byte) bool { got <- string(p); return true },
			end:   func(err error) { ended <- err },
		}
		client := w.attach(r)
		client.Write([]byte("last words"))
		w.must(client.(writeCloser).CloseWrite())
		if s := wait(w, "Input", got); s != "last words" {
			w.Errorf("got %q", s)
		}
		if err := wait(w, "End", ended); err != io.EOF {
			w.Errorf("End(%v), want EOF", err)
		}
		quiet(w)
		b := make([]byte, 6)
		for range 10 {
			n, err := r.Write([]byte("answer"))
			if n != 6 || err != nil {
				w.Fatalf("Write after End = %d, %v", n, err)
			}
			if _, err := io.ReadFull(client, b); err != nil {
				w.Fatal(err)
			}
		}
		w.must(r.CloseWrite())
		if n, err := client.Read(b); err != io.EOF {
			w.Errorf("client read %d, %v, want EOF", n, err)
		}
		quiet(w)
		if len(ended) != 0 {
			w.Error("second End")
		}
	})
}

// TestHeardTellsOfInputBeforeInputIsCalled, and not once more when Input returns: whoever
// has seen what Input did may ask, and is not told of the same bytes later.
func TestHeardTellsOfInputBeforeInputIsCalled(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		heard := make(chan bool, 2)
		r := &record{}
		r.input = func([]byte) bool { heard <- r.Heard(); return true }
		r.end = func(error) { heard <- r.Heard() }
		server, client := w.pair()
		w.must(group(w.p, r).Attach(&r.Conn, server))
		if r.Heard() {
			w.Error("heard of before the first Resume")
		}
		r.Resume()
		if !r.Heard() || r.Heard() {
			w.Error("a Resume counts, and once")
		}
		client.Write([]byte("x"))
		if !wait(w, "Input", heard) {
			w.Error("not heard of within Input")
		}
		client.Close()
		if wait(w, "End", heard) {
			w.Error("heard of again behind Input")
		}
	})
}

func TestGreedyPeerLeavesOthersTheirTurn(t *testing.T) {
	everyForm(t, Options{BufferSize: 64}, func(w *world) {
		stop := make(chan struct{})
		client := w.attach(new(record))
		client.SetDeadline(time.Time{})
		var greedy sync.WaitGroup
		greedy.Go(func() {
			b := make([]byte, 1<<20)
			for {
				select {
				case <-stop:
					return
				default:
					client.Write(b)
				}
			}
		})
		rounds(w, 20)
		close(stop)
		greedy.Wait()
	})
}

func TestCloseInCallbacks(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		for _, in := range []string{"Input", "Writable", "End"} {
			var after atomic.Int32
			closed := make(chan struct{}, 10)
			r := &record{}
			act := func(name string) {
				if !r.Attached() {
					after.Add(1)
				}
				if name == in {
					r.Close()
					closed <- struct{}{}
				}
			}
			r.input = func([]byte) bool { act("Input"); return true }
			r.writable = func() { act("Writable") }
			r.end = func(error) { act("End") }
			client := w.attach(r)
			client.Write([]byte("x"))
			r.NotifyWritable()
			if in == "End" {
				client.(writeCloser).CloseWrite()
			}
			wait(w, "Close in "+in, closed)
			r.NotifyWritable()
			r.Resume()
			// The peer sees the end.
			io.Copy(io.Discard, client)
			rounds(w, 3)
			if n := after.Load(); n > 1 { // one may have been running beside
				w.Errorf("%d callbacks after Close in %s", n, in)
			}
		}
	})
}

func TestPollerCloseClosesWhatIsAttached(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		p := newPoller(w, Options{Goroutines: len(w.p.goroutines) > 0})
		w.p = p
		var rs [10]record
		var clients []net.Conn
		for i := range rs {
			clients = append(clients, w.attach(&rs[i]))
		}
		if p.Len() != 10 {
			w.Errorf("Len = %d, want 10", p.Len())
		}
		w.must(p.Close())
		w.must(p.Close())
		for i, client := range clients {
			if _, err := client.Read(make([]byte, 1)); err == nil || rs[i].Attached() {
				w.Errorf("conn %d is alive: %v", i, err)
			}
		}
		server, client := w.pair()
		var r record
		if err := group(p, &r).Attach(&r.Conn, server); !errors.Is(err, net.ErrClosed) {
			w.Errorf("Attach after Close: %v", err)
		}
		if _, err := client.Read(make([]byte, 1)); err == nil {
			w.Error("a refused connection is alive")
		}
	})
}

func TestAttachTwiceIsRefused(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		var r record
		first := w.attach(&r)
		server, client := w.pair()
		if err := group(w.p, &r).Attach(&r.Conn, server); err == nil {
			w.Error("no error")
		}
		if _, err := client.Read(make([]byte, 1)); err == nil {
			w.Error("a refused connection is alive")
		}
		if n, err := r.Write([]byte("x")); n != 1 || err != nil {
			w.Errorf("the first connection: %d, %v", n, err)
		}
		if _, err := io.ReadFull(first, make([]byte, 1)); err != nil {
			w.Error(err)
		}
	})
}

// Writers and closers race over few descriptor numbers. Whatever a client reads must have been meant for it.
func TestCloseBesideWriteNeverReachesAReusedNumber(t *testing.T) {
	everyForm(t, Options{}, func(w *world) {
		var all sync.WaitGroup
		var pairing sync.Mutex
		for id := range 6 {
			all.Go(func() {
				for round := range 16 {
					mark := byte(id*16 + round)
					pairing.Lock()
					server, client := w.pair()
					pairing.Unlock()
					server.(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(16 << 10)
					room, gone := make(chan struct{}, 1), make(chan struct{})
					r := &record{writable: func() {
						select {
						case room <- struct{}{}:
						default:
						}
					}}
					if err := group(w.p, r).Attach(&r.Conn, server); err != nil {
						w.Error(err)
						return
					}
					r.Resume()
					var users sync.WaitGroup
					b := bytes.Repeat([]byte{mark}, 8<<10)
					for range 2 {
						users.Go(func() {
							for {
								n, err := r.Write(b)
								if err != nil {
									return
								}
								r.NotifyWritable()
								r.Resume()
								if n == len(b) {
									continue
								}
								select {
								case <-room:
								case <-gone:
								}
							}
						})
					}
					users.Go(func() {
						client.SetDeadline(time.Now().Add(hang))
						buf := make([]byte, 64<<10)
						for i := 0; ; i++ {
							if i == 3 {
								users.Go(func() { r.Close() })
							}
							n, err := client.Read(buf)
							if bytes.Count(buf[:n], b[:1]) != n {
								w.Errorf("connection %d received bytes of another", mark)
							}
							if err != nil {
								r.Close()
								close(gone)
								return
							}
						}
					})
					users.Wait()
					client.Close()
				}
			})
		}
		all.Wait()
	})
}

func TestNetPipeAndTLSAreServed(t *testing.T) {
	for _, kind := range []string{"pipe", "tls"} {
		t.Run(kind, func(t *testing.T) {
			w := &world{T: t, p: newPoller(t, Options{})}
			if kind == "pipe" {
				w.pair = net.Pipe
			} else {
				w.pair = tlsPairs(t)
			}
			ended := make(chan error, 1)
			r := &record{end: func(err error) { ended <- err }}
			r.input = func(p []byte) bool {
				if n, err := r.Write(p); n != len(p) || err != nil {
					w.Errorf("Write = %d, %v", n, err)
				}
				return true
			}
			client := w.attach(r)
			got := make([]byte, 3000)
			for i := range 50 {
				sent := bytes.Repeat([]byte{byte(i)}, len(got))
				if _, err := client.Write(sent); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, sent) {
					t.Fatalf("echo %d: %v", i, err)
				}
			}
			if kind == "pipe" {
				if err := r.CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("CloseWrite = %v", err)
				}
			} else {
				r.Write([]byte("bye"))
				w.must(r.CloseWrite())
				if b, err := io.ReadAll(client); string(b) != "bye" || err != nil {
					t.Errorf("after CloseWrite: %q, %v", b, err)
				}
			}
			client.Close()
			if err := wait(w, "End", ended); err != io.EOF {
				t.Errorf("End(%v), want EOF", err)
			}
			w.must(r.Close())
		})
	}
}

// TestBytesInFlightCountAsUnsent: what a goroutine is writing is still in memory.
func TestBytesInFlightCountAsUnsent(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{}), pair: net.Pipe}
	var r record
	client := w.attach(&r)
	all := make([]byte, maxUnsent-1)
	if n, err := r.Write(all); n != len(all) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil { // so the rest is in flight
		t.Fatal(err)
	}
	if n, err := r.Write(all); n != 1 || err != nil {
		t.Errorf("Write of a connection with %d bytes in flight = %d, %v", len(all), n, err)
	}
	client.Close()
}

// A peer that has stopped reading must not hold up Close, though tls.Conn.Close waits for it.
func TestCloseOfFullTLSConnDoesNotWait(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{}), pair: tlsPairs(t)}
	var r record
	client := w.attach(&r)
	client.Write([]byte("x"))
	fill(w, &r)
	w.must(r.Close())
	if r.Attached() {
		t.Error("attached after Close")
	}
	io.Copy(io.Discard, client) // ends
}

// tlsPairs is pairs over TLS; handshakes are left to the first Read or Write.
func tlsPairs(t testing.TB) func() (server, client net.Conn) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pair := pairs(t, "tcp")
	return func() (server, client net.Conn) {
		server, client = pair()
		server = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
		client = tls.Client(client, &tls.Config{InsecureSkipVerify: true})
		return server, client
	}
}
