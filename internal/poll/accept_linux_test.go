//go:build !portable

package poll

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A door is a ListenHandler that tells channels.
type door struct {
	Conn
	got    chan *Descriptor
	failed chan error
	more   func() bool
}

func openDoor(t *testing.T, p *Poller, network, addr string) (*door, net.Listener) {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	d := &door{got: make(chan *Descriptor, 1000), failed: make(chan error, 1000), more: func() bool { return true }}
	if ok, err := p.Listen(&d.Conn, ln, d); !ok || err != nil {
		t.Fatal(ok, err)
	}
	t.Cleanup(func() { d.Conn.Close() })
	return d, ln
}

func (d *door) Accepted(c *Descriptor) bool { kept := *c; d.got <- &kept; return d.more() }
func (d *door) AcceptFailed(err error)      { d.failed <- err }

func (d *door) next(t *testing.T) *Descriptor {
	t.Helper()
	select {
	case c := <-d.got:
		return c
	case <-time.After(hang):
		t.Fatalf("nothing was accepted in %v", hang)
		return nil
	}
}

func dial(t *testing.T, ln net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A guest is told of input on a channel; it hands its descriptor on as soon as it has read something.
type guest struct {
	Conn
	input chan string
	on    func(*guest) bool
}

func (g *guest) Input(_ *Worker, p []byte) bool { g.input <- string(p); return g.on == nil || g.on(g) }
func (g *guest) End(_ *Worker, err error)       { g.input <- err.Error() }
func (g *guest) Writable()                      {}

func (g *guest) expect(t *testing.T, want string) {
	t.Helper()
	for got := ""; got != want; {
		select {
		case s := <-g.input:
			got += s
		case <-time.After(hang):
			t.Fatalf("read %q in %v, want %q", got, hang, want)
		}
	}
}

func TestListenSetsOptionsOfItsConnections(t *testing.T) {
	p := newPoller(t, Options{})
	for _, mptcp := range []bool{false, true} {
		lc := net.ListenConfig{KeepAlive: -1}
		lc.SetMultipathTCP(mptcp)
		ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		d := &door{got: make(chan *Descriptor, 1), more: func() bool { return true }}
		if ok, err := p.Listen(&d.Conn, ln, d); !ok || err != nil {
			t.Fatal(ok, err)
		}
		defer d.Conn.Close()
		d.Resume()
		for _, dialer := range []bool{false, true} {
			nd := net.Dialer{}
			nd.SetMultipathTCP(dialer)
			client, err := nd.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			c := d.next(t)
			for _, o := range []struct{ level, name, want int }{
				{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveSeconds},
				{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveSeconds},
			} {
				if got, err := unix.GetsockoptInt(c.fd, o.level, o.name); err != nil || got != o.want {
					t.Errorf("multipath listener %v client %v: option %d/%d = %d, %v, want %d", mptcp, dialer, o.level, o.name, got, err, o.want)
				}
			}
			if got, err := unix.GetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); got != 120_000 && !(mptcp && dialer) {
				t.Errorf("multipath listener %v client %v: user timeout %d, %v", mptcp, dialer, got, err)
			}
			flags, err := unix.FcntlInt(uintptr(c.fd), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor flags %x, %v: a child would inherit it", flags, err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestNothingIsAcceptedWhilePaused(t *testing.T) {
	p := newPoller(t, Options{})
	d, ln := openDoor(t, p, "tcp", "127.0.0.1:0")
	dial(t, ln)
	d.more = func() bool { return false }
	for range 3 {
		dial(t, ln)
	}
	quietPoller(t, p)
	if n := len(d.got); n != 0 {
		t.Fatalf("%d accepted before Resume", n)
	}
	for range 4 {
		d.Resume()
		d.next(t).Close()
		quietPoller(t, p)
		if n := len(d.got); n != 0 {
			t.Fatalf("%d accepted after a pause", n)
		}
	}
	waits := p.Stats().Waits
	for range 100 {
		dial(t, ln)
	}
	if n := p.Stats().Waits - waits; n > 10 {
		t.Errorf("%d wake-ups for connections that wait in the backlog", n)
	}
}

// quietPoller returns when the loop has done what came before.
func quietPoller(t *testing.T, p *Poller) {
	t.Helper()
	server, client := pairs(t, "tcp")()
	g := &guest{input: make(chan string, 10)}
	if err := group(p, g).Attach(&g.Conn, server); err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	g.Resume()
	for range 3 {
		client.Write([]byte("x"))
		g.expect(t, "x")
	}
}

func TestNoDescriptorsLeftIsToldOncePerResume(t *testing.T) {
	p := newPoller(t, Options{})
	d, ln := openDoor(t, p, "tcp", "127.0.0.1:0")
	d.Resume()
	dial(t, ln)
	d.next(t).Close() // warm
	client := dial(t, ln)
	d.next(t).Close()
	client.Close()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	low := old
	low.Cur = uint64(openDescriptors(t)) - 5
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}()
	a := ln.Addr().(*net.TCPAddr)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil && err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	for range 3 {
		select {
		case err := <-d.failed:
			if !errors.Is(err, unix.EMFILE) {
				t.Fatalf("accepting failed with %v", err)
			}
		case <-time.After(hang):
			t.Fatalf("nothing failed in %v", hang)
		}
		select {
		case err := <-d.failed:
			t.Fatalf("told again without a Resume: %v", err)
		default:
		}
		d.Resume()
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	d.Resume()
	d.next(t).Close()
}

func TestMoveKeepsInputAndTheEnd(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			p := newPoller(t, Options{BufferSize: 8})
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			d, ln := openDoor(t, p, network, addr)
			d.Resume()
			for _, text := range []string{"hello", "12345678", "more than the buffer holds"} {
				for _, half := range []bool{false, true} {
					second := &guest{input: make(chan string, 100)}
					client := dial(t, ln)
					client.Write([]byte(text))
					if half {
						client.(interface{ CloseWrite() error }).CloseWrite()
					}
					c := d.next(t)
					first := &guest{input: make(chan string, 100)}
					moved := make(chan error, 1)
					first.on = func(g *guest) bool {
						if g.RemoteAddr() == nil {
							t.Error("no remote address")
						}
						moved <- group(p, second).Move(&second.Conn, &g.Conn)
						return false
					}
					if err := group(p, first).AttachDescriptor(&first.Conn, c); err != nil {
						t.Fatal(err)
					}
					if err := <-moved; err != nil {
						t.Fatal(err)
					}
					head := <-first.input
					if first.Attached() || first.Close() != nil {
						t.Error("the old record is still in use")
					}
					second.Resume()
					if !half {
						client.Write([]byte("."))
						client.(interface{ CloseWrite() error }).CloseWrite()
						second.expect(t, text[len(head):]+"."+io.EOF.Error())
					} else {
						second.expect(t, text[len(head):]+io.EOF.Error())
					}
					if n, err := second.Write([]byte("bye")); n != 3 || err != nil {
						t.Fatal(n, err)
					}
					second.Close()
					if b, err := io.ReadAll(client); string(b) != "bye" || err != nil {
						t.Fatalf("read %q, %v", b, err)
					}
				}
			}
		})
	}
}

func TestDetachedDescriptorIsAConnAgain(t *testing.T) {
	before := openDescriptors(t)
	p := newPoller(t, Options{})
	d, ln := openDoor(t, p, "tcp", "127.0.0.1:0")
	d.Resume()
	client := dial(t, ln)
	g := &guest{input: make(chan string, 10)}
	out := make(chan *Descriptor, 1)
	g.on = func(g *guest) bool {
		d, err := p.Detach(&g.Conn)
		if err != nil {
			t.Error(err)
		}
		out <- d
		return false
	}
	if err := group(p, g).AttachDescriptor(&g.Conn, d.next(t)); err != nil {
		t.Fatal(err)
	}
	client.Write([]byte("one"))
	g.expect(t, "one")
	nc, err := (<-out).NetConn()
	if err != nil {
		t.Fatal(err)
	}
	if nc.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("remote address %v, want %v", nc.RemoteAddr(), client.LocalAddr())
	}
	client.Write([]byte("two"))
	g.Resume() // of a record that is done with
	b := make([]byte, 3)
	if _, err := io.ReadFull(nc, b); err != nil || string(b) != "two" {
		t.Fatalf("read %q, %v", b, err)
	}
	nc.SetReadDeadline(time.Unix(1, 0))
	if _, err := nc.Read(b); !errors.Is(err, unix.EAGAIN) && err == nil {
		t.Fatal("a deadline had no effect")
	}
	nc.Close()
	client.Close()
	d.Conn.Close()
	ln.Close()
	if n := p.Len(); n != 0 {
		t.Errorf("%d attached", n)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors open, before %d", after, before)
	}
}

// Close of the record, or of the poller, beside Move and Detach: exactly one of them has the descriptor.
func TestMoveAndCloseLeaveNothingBehind(t *testing.T) {
	before := openDescriptors(t)
	for round := range 60 {
		p, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		d := &door{got: make(chan *Descriptor, 10), more: func() bool { return true }}
		if ok, err := p.Listen(&d.Conn, ln, d); !ok || err != nil {
			t.Fatal(ok, err)
		}
		d.Resume()
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		first, second := &guest{input: make(chan string, 10)}, &guest{input: make(chan string, 10)}
		entered := make(chan struct{})
		var done sync.WaitGroup
		done.Add(1)
		first.on = func(g *guest) bool {
			defer done.Done()
			close(entered)
			if round%2 == 0 {
				if group(p, second).Move(&second.Conn, &g.Conn) == nil {
					second.Resume()
				}
			} else if d, err := p.Detach(&g.Conn); err == nil {
				d.Close()
			}
			return false
		}
		if err := group(p, first).AttachDescriptor(&first.Conn, d.next(t)); err != nil {
			t.Fatal(err)
		}
		client.Write([]byte("x"))
		<-entered
		if round%3 == 0 {
			first.Close()
			done.Wait()
			second.Close()
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		done.Wait()
		client.Close()
		ln.Close()
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors open, before %d", after, before)
	}
}

func TestListenLeavesOtherListenersAlone(t *testing.T) {
	p := newPoller(t, Options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := &door{}
	if ok, err := p.Listen(&d.Conn, struct{ net.Listener }{ln}, d); ok || err != nil {
		t.Error(ok, err)
	}
	if ok, err := newPoller(t, Options{Goroutines: true}).Listen(&d.Conn, ln, d); ok || err != nil {
		t.Error(ok, err)
	}
}
