//go:build !portable

package poll

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func openDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestNoDescriptorIsLeaked(t *testing.T) {
	pair := pairs(t, "tcp")
	before := openDescriptors(t)
	for range 3 {
		p, err := New(Options{Loops: 2})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			server, client := pair()
			r := &record{}
			if err := group(p, r).Attach(&r.Conn, server); err != nil {
				t.Fatal(err)
			}
			r.Resume()
			r.Write([]byte("x"))
			client.Close()
			if i%2 == 0 {
				r.Close()
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors open, before %d", after, before)
	}
}

// TestLoopMayEndBeforeItsBell when an event comes between the order to stop and the bell, whose number must still be its own.
func TestLoopMayEndBeforeItsBell(t *testing.T) {
	p, err := New(Options{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range p.loops {
		l.stopped.Store(true)
		if _, err := unix.Write(l.bell, []byte{7: 1}); err != nil { // in the place of an event
			t.Fatal(err)
		}
		<-l.ended
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestEveryUseOfADescriptorIsCounted, and none is closed, nor its number used again, while one is under way. That calls
// are counted shows where no more can be.
func TestEveryUseOfADescriptorIsCounted(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{}), pair: pairs(t, "tcp")}
	server, client := w.pair()
	r := &record{}
	w.must(group(w.p, r).Attach(&r.Conn, server))
	for name, use := range map[string]func(){
		"Write":          func() { r.Write([]byte("x")) },
		"Writev":         func() { r.Writev([][]byte{[]byte("x"), []byte("y")}) },
		"CloseWrite":     func() { r.CloseWrite() },
		"NotifyWritable": r.NotifyWritable,
	} {
		func() {
			r.state.Or(stateRefs)
			defer func() {
				r.state.And(stateRef - 1)
				if v, _ := recover().(string); !strings.Contains(v, "too many calls") {
					t.Errorf("%s is not counted: %q", name, v)
				}
			}()
			use()
		}()
	}
	if !r.acquire() {
		t.Fatal("no reference")
	}
	w.must(r.Close())
	if r.acquire() {
		t.Error("a reference after Close")
	}
	if _, err := unix.FcntlInt(uintptr(r.fd), unix.F_GETFD, 0); err != nil || w.p.Len() != 1 {
		t.Errorf("%v, %d connections while a call is under way", err, w.p.Len())
	}
	r.on.driver.(*loop).release(&r.Conn)
	if n, err := client.Read(make([]byte, 1)); err != io.EOF || w.p.Len() != 0 {
		t.Errorf("read %d, %v, %d connections after the last call", n, err, w.p.Len())
	}
}

func TestIdleConnsAddNoGoroutines(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{}), pair: pairs(t, "tcp")}
	before := runtime.NumGoroutine()
	var rs [1000]record
	for i := range rs {
		w.attach(&rs[i])
	}
	rounds(w, 10)
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines with %d connections, %d without", after, len(rs), before)
	}
	waits := w.p.Stats().Events
	quiet(w)
	t.Logf("%d events for 200 messages beside %d idle connections", w.p.Stats().Events-waits, len(rs))
}

func TestSocketOptionsAreSetOnTheDescriptor(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{}), pair: pairs(t, "tcp")}
	for _, chosen := range []int{0, 77} {
		server, _ := w.pair()
		tc := server.(*net.TCPConn)
		w.must(tc.SetNoDelay(false))
		if chosen == 0 {
			w.must(tc.SetKeepAlive(false))
		} else {
			w.must(tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 77e9}))
		}
		r := &record{}
		w.must(group(w.p, r).Attach(&r.Conn, server))
		idle := chosen
		if idle == 0 {
			idle = keepAliveSeconds
		}
		for _, o := range []struct{ level, name, want int }{
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 120_000},
		} {
			if got, err := unix.GetsockoptInt(int(r.fd), o.level, o.name); err != nil || got != o.want {
				t.Errorf("option %d/%d = %d, %v, want %d", o.level, o.name, got, err, o.want)
			}
		}
		flags, err := unix.FcntlInt(uintptr(r.fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor flags %x, %v: a child would inherit it", flags, err)
		}
		w.must(r.Close())
	}
}

// (*os.File).Fd switches non-blocking off for every duplicate; a loop that then reads would hang.
func TestBlockingDescriptorIsMadeNonBlocking(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{}), pair: pairs(t, "tcp")}
	server, _ := w.pair()
	f, err := server.(*net.TCPConn).File()
	w.must(err)
	f.Fd()
	r := &record{}
	w.must(group(w.p, r).Attach(&r.Conn, server))
	w.must(f.Close())
	fill(w, r)
}

// The number of a closed connection is at once that of the next; an event fetched before must not reach it.
func TestStaleEventIsDropped(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{}), pair: pairs(t, "tcp")}
	var a, b record
	w.attach(&a)
	w.p.mu.Lock()
	stale := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLHUP, Fd: a.fd, Pad: int32(generationOf(w.p, &a.Conn))}
	w.p.mu.Unlock()
	server, _ := w.pair()
	dup, err := unix.Dup(int(a.fd)) // keeps the socket, so that only the number is free
	w.must(err)
	defer unix.Close(dup)

	scratch := &loop{p: w.p}
	if scratch.lookup([]unix.EpollEvent{stale}); len(scratch.ready) != 1 {
		t.Fatal("a current event was dropped")
	}
	w.must(a.Close())
	scratch.ready = nil
	if scratch.lookup([]unix.EpollEvent{stale}); len(scratch.ready) != 0 {
		t.Error("an event of a closed number was kept")
	}
	// Take the number on purpose.
	w.must(group(w.p, &b).enter(&b.Conn, takeNumber(t, server, int(stale.Fd)), 0))
	if scratch.lookup([]unix.EpollEvent{stale}); len(scratch.ready) != 0 {
		t.Error("an event of the closed connection reached the one that has its number now")
	}
	now := stale
	now.Pad++
	if scratch.lookup([]unix.EpollEvent{now}); len(scratch.ready) != 1 {
		t.Error("the new connection's event was dropped")
	}
	w.must(b.Close())
}

func takeNumber(t *testing.T, nc net.Conn, fd int) int {
	t.Helper()
	rc, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = rc.Control(func(u uintptr) { failed = unix.Dup3(int(u), fd, unix.O_CLOEXEC) })
	if err = errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	nc.Close()
	return fd
}

// A descriptor held by a child between fork and exec keeps the socket alive behind our close.
func TestClosedConnWhoseSocketLivesOnIsQuiet(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{}), pair: pairs(t, "tcp")}
	r := &record{input: func([]byte) bool { t.Error("input after Close"); return true }}
	client := w.attach(r)
	dup, err := unix.Dup(int(r.fd))
	w.must(err)
	defer unix.Close(dup)
	w.must(r.Close())
	for range 10 {
		client.Write([]byte("x"))
	}
	quiet(w)
}

func TestPausedConnWithASendingPeerIsQuiet(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{}), pair: pairs(t, "tcp")}
	got := 0
	all := make(chan struct{})
	r := &record{input: func(p []byte) bool {
		if got += len(p); got == 1001 {
			close(all)
		}
		return got > 1
	}}
	client := w.attach(r)
	client.Write([]byte("x"))
	round, end := startRounds(w)
	defer end()
	round()
	before := w.p.Stats()
	for range 1000 {
		client.Write([]byte("y"))
		round()
	}
	after := w.p.Stats()
	if n := after.Controls - before.Controls; n != 1 {
		t.Errorf("%d changes of registration, want 1", n)
	}
	if n := after.Events - before.Events; n > 1000+10 {
		t.Errorf("%d events, 1,000 of them of another connection", n)
	}
	r.Resume()
	wait(t, "Input after Resume", all)
}

// Reading while paused for writing: neither switch may undo the other, from however many goroutines.
func TestResumeBesideNotifyWritable(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{BufferSize: 16}), pair: pairs(t, "tcp")}
	const total = 20000
	seen := 0
	done := make(chan struct{})
	resume := make(chan struct{}, total)
	writable := make(chan struct{}, 1)
	r := &record{}
	r.input = func(p []byte) bool {
		if seen += len(p); seen == total {
			close(done)
		}
		resume <- struct{}{}
		return false
	}
	r.writable = func() { writable <- struct{}{} }
	client := w.attach(r)
	go func() {
		b := make([]byte, total)
		for len(b) > 0 {
			n := min(len(b), 33)
			client.Write(b[:n])
			b = b[n:]
		}
	}()
	go io.Copy(io.Discard, client)
	stopped := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			r.NotifyWritable()
			wait(t, "Writable", writable)
		}
	}()
	for open := true; open; {
		select {
		case <-resume:
			r.Resume()
		case <-done:
			open = false
		}
	}
	close(stop)
	<-stopped
	if s := r.state.Load(); s&(stateControl|stateAgain) != 0 {
		t.Errorf("state %b: a control call was left in flight", s)
	}
}

// Whatever the order in which switches are thrown, the last one is what the kernel knows.
func TestConcurrentControlsEndInTheLastState(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{}), pair: pairs(t, "tcp")}
	r := new(record)
	w.attach(r)
	l := w.p.loops[0]
	for round := range 5000 {
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				for n := range 5 {
					if (round+i+n)%2 == 0 {
						r.state.Or(stateQuiet)
					} else {
						r.state.And(^uint32(stateQuiet))
					}
					l.control(&r.Conn)
				}
			})
		}
		all.Wait()
		state := r.state.Load()
		if state&(stateControl|stateAgain) != 0 {
			t.Fatalf("state %b: a call was left in flight", state)
		}
		if got, want := registered(t, l.epfd, int(r.fd))&unix.EPOLLIN, mask(state)&unix.EPOLLIN; got != want {
			t.Fatalf("round %d: registered %x, want %x", round, got, want)
		}
	}
}

// registered asks the kernel for the mask of fd.
func registered(t *testing.T, epfd, fd int) uint32 {
	t.Helper()
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", epfd))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		var tfd int
		var events uint32
		if n, _ := fmt.Sscanf(line, "tfd: %d events: %x", &tfd, &events); n == 2 && tfd == fd {
			return events
		}
	}
	t.Fatalf("descriptor %d is not registered:\n%s", fd, info)
	return 0
}

func BenchmarkEcho(b *testing.B) {
	for _, form := range []struct {
		name string
		o    Options
	}{{"form=system", Options{}}, {"form=goroutines", Options{Goroutines: true}}} {
		for _, handoff := range []bool{false, true} {
			name := form.name + "/answer=callback"
			if handoff {
				name = form.name + "/answer=goroutine"
			}
			b.Run(name, func(b *testing.B) {
				p := newPoller(b, form.o)
				var r record
				messages := make(chan []byte, 1)
				defer close(messages)
				if handoff {
					go func() {
						for m := range messages {
							r.Write(m)
						}
					}()
				}
				r.input = func(m []byte) bool {
					if handoff {
						messages <- m // the client waits for the answer, so m stays as it is
					} else {
						r.Write(m)
					}
					return true
				}
				server, client := pairs(b, "tcp")()
				if err := group(p, &r).Attach(&r.Conn, server); err != nil {
					b.Fatal(err)
				}
				r.Resume()
				benchmarkClient(b, client)
				r.Close()
			})
		}
	}
	b.Run("form=net.Conn", func(b *testing.B) { // what there is to compare with
		server, client := pairs(b, "tcp")()
		done := make(chan struct{})
		go func() {
			io.CopyBuffer(struct{ io.Writer }{server}, struct{ io.Reader }{server}, make([]byte, 4096))
			close(done)
		}()
		benchmarkClient(b, client)
		client.Close()
		<-done
		server.Close()
	})
}

func benchmarkClient(b *testing.B, client net.Conn) {
	m := make([]byte, 128)
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		if _, err := client.Write(m); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(client, m); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op") // both ends
}

// cpuTime is what the process has used, in nanoseconds.
func cpuTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkEchoMany keeps many connections busy at once, so that one wake-up finds several ready.
func BenchmarkEchoMany(b *testing.B) {
	const conns = 64
	for _, form := range []string{"system", "goroutines", "net.Conn"} {
		b.Run("form="+form, func(b *testing.B) {
			p := newPoller(b, Options{Goroutines: form == "goroutines"})
			pair := pairs(b, "tcp")
			var rs [conns]record
			var clients, servers []net.Conn
			for i := range rs {
				r := &rs[i]
				server, client := pair()
				clients = append(clients, client)
				if form == "net.Conn" {
					servers = append(servers, server)
					go io.CopyBuffer(struct{ io.Writer }{server}, struct{ io.Reader }{server}, make([]byte, 4096))
					continue
				}
				r.input = func(m []byte) bool { r.Write(m); return true }
				if err := group(p, r).Attach(&r.Conn, server); err != nil {
					b.Fatal(err)
				}
				r.Resume()
			}
			m := make([]byte, 128)
			before := cpuTime(b)
			b.ResetTimer()
			for i := 0; i < b.N; i += conns {
				for _, c := range clients {
					c.Write(m)
				}
				for _, c := range clients {
					if _, err := io.ReadFull(c, m); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
			b.StopTimer()
			for _, c := range append(clients, servers...) {
				c.Close()
			}
		})
	}
}

func generationOf(p *Poller, c *Conn) uint32 {
	page, i := p.pageOf(int(c.fd))
	return page.generations[i]
}
