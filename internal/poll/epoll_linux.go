//go:build !portable

package poll

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxEvents = 128  // fetched by one epoll_wait
	maxReads  = 4    // full buffers of one connection before others have their turn
	maxIovecs = 1024 // the kernel's UIO_MAXIOV
)

// platform is the poller's part that knows epoll.
type platform struct {
	loops   []*loop // immutable; empty with Options.Goroutines
	next    atomic.Uint32
	running sync.WaitGroup

	pages []*page // by descriptor; guarded by Poller.mu
}

// A loop waits for the events of its connections and makes their callbacks.
//
// Its goroutine sleeps in epoll_wait, with a thread and, until the scheduler notices, a processor of its own. Where there is
// only one processor, everything else would wait for that: there the goroutine sleeps in Go's own poller, which watches
// the epoll descriptor as it would watch a socket, but wakes a second thread each time, and an echo costs a sixth more.
type loop struct {
	p    *Poller
	epfd int      // open until all loops are over, like bell
	bell int      // an eventfd, to end the wait
	file *os.File // owns epfd if Go's poller has it, like raw; else nil
	raw  syscall.RawConn
	at   int // in platform.loops

	waits, events, controls atomic.Uint64
	stopped                 atomic.Bool
	worker                  atomic.Pointer[Worker] // whose goroutine runs the loop, or has run it last
	resting                 atomic.Bool            // the loop waits for events
	watched                 atomic.Bool            // the watch ticks
	wake                    chan struct{}          // has it tick
	ended                   chan struct{}          // closed when the loop is over

	// Held with the worker's token.
	fetched  []unix.EpollEvent // the first n are new
	n        int
	waitErr  unix.Errno
	ready    []ready // fetched and looked up; from next on not served
	next     int
	more     []*Conn    // their last read filled the buffer and it was others' turn
	emptied  bool       // the Input that runs was given all there was
	accepted Descriptor // of the Accepted that runs
}

type ready struct {
	c      *Conn
	events uint32 // of epoll, or readMore
}

const readMore = unix.EPOLLIN | unix.EPOLLRDHUP | 1<<27 // for a connection from loop.more; a bit that epoll does not report

// start makes the loops.
func (p *Poller) start(n int) error {
	for i := range n {
		l := &loop{p: p, at: i, fetched: make([]unix.EpollEvent, maxEvents), wake: make(chan struct{}, 1), ended: make(chan struct{})}
		if err := l.open(); err != nil {
			for _, l := range p.loops {
				l.shut()
			}
			return fmt.Errorf("poll: start loop: %w", err)
		}
		p.loops = append(p.loops, l)
	}
	for _, l := range p.loops {
		w := &Worker{loop: l, buf: make([]byte, p.bufferSize)}
		l.worker.Store(w)
		go l.run(w)
		p.running.Add(1) // the loop, whoever runs it
		p.running.Go(l.watch)
	}
	return nil
}

func (l *loop) open() (err error) {
	if l.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if l.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(l.epfd)
		return os.NewSyscallError("eventfd", err)
	}
	err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, l.bell, &unix.EpollEvent{Events: unix.EPOLLIN}))
	if err == nil && runtime.GOMAXPROCS(0) == 1 {
		err = l.share()
	}
	if err != nil {
		l.shut()
	}
	return err
}

// share has Go's poller watch the epoll descriptor.
func (l *loop) share() (err error) {
	if err := unix.SetNonblock(l.epfd, true); err != nil { // what os.NewFile tells a pollable descriptor by
		return os.NewSyscallError("fcntl", err)
	}
	l.file = os.NewFile(uintptr(l.epfd), "epoll")
	if err := l.file.SetDeadline(time.Time{}); err != nil { // Go's poller does not have it
		return err
	}
	l.raw, err = l.file.SyscallConn()
	return err
}

// shut closes the descriptors of a loop that does not run.
func (l *loop) shut() {
	if l.file != nil {
		_ = l.file.Close() // nothing was written to it
	} else {
		_ = unix.Close(l.epfd)
	}
	_ = unix.Close(l.bell)
}

// stop ends the loops. Nothing is attached any more, so nobody uses their descriptors.
func (p *Poller) stop() {
	for _, l := range p.loops {
		l.stopped.Store(true)
		if _, err := unix.Write(l.bell, []byte{7: 1}); err != nil {
			panic(fmt.Sprintf("poll: BUG: write to an eventfd: %v", err))
		}
	}
	p.running.Wait()
	for _, l := range p.loops { // not before: a loop that something else has woken may be over before its bell rings
		l.shut()
	}
}

func (p *Poller) count(s *Stats) {
	for _, l := range p.loops {
		s.Waits += l.waits.Load()
		s.Events += l.events.Load()
		s.Controls += l.controls.Load()
	}
}

func (p *Poller) tableLocked() (all []*Conn) {
	for _, page := range p.pages {
		for _, c := range page.conns {
			if c != nil {
				all = append(all, c)
			}
		}
	}
	return all
}

// A page is a piece of the table of descriptors, which grows without being copied.
type page struct {
	conns       [pageSize]*Conn
	generations [pageSize]uint32 // how often the number was attached; goes along with its events
}

const pageSize = 512

// pageOf is where the entry of a number is that was attached before.
func (p *Poller) pageOf(fd int) (page *page, i int) { return p.pages[fd/pageSize], fd % pageSize }

func (p *Poller) setLocked(fd int, c *Conn) {
	page, i := p.pageOf(fd)
	page.conns[i] = c
}

// attachDescriptor is Attach for a connection whose descriptor can be taken; otherwise it reports false.
func (g *Group) attachDescriptor(c *Conn, nc net.Conn) (ok bool, err error) {
	p := g.p
	if len(p.loops) == 0 {
		return false, nil
	}
	var sc syscall.Conn
	switch nc := nc.(type) { // a type around these may read and write in its own way
	case *net.TCPConn:
		sc = nc
	case *net.UnixConn:
		sc = nc
	default:
		return false, nil
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false, nil
	}
	fd := -1
	var failed error
	err = rc.Control(func(u uintptr) {
		if t, err := unix.GetsockoptInt(int(u), unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_STREAM {
			return // not a stream: boundaries and empty messages would be lost
		}
		if fd, failed = unix.FcntlInt(u, unix.F_DUPFD_CLOEXEC, 0); failed != nil {
			fd = -1
		}
	})
	if err == nil {
		err = os.NewSyscallError("fcntl", failed)
	}
	if err != nil {
		nc.Close()
		return true, fmt.Errorf("poll: attach %v: %w", nc.RemoteAddr(), err)
	}
	if fd < 0 {
		return false, nil
	}
	remote := nc.RemoteAddr()
	nc.Close() // only this number: the socket lives on in fd
	// Shared with every duplicate, so (*os.File).Fd on one of them has switched it off.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return true, fmt.Errorf("poll: attach %v: %w", remote, os.NewSyscallError("fcntl", err))
	}
	if err := p.tune(fd); err != nil {
		p.log.Debug("poll: set socket options", "remote", remote, "err", err) // a peer that has gone; reading will tell
	}
	if err := g.enter(c, fd, 0); err != nil {
		return true, fmt.Errorf("poll: attach %v: %w", remote, err)
	}
	return true, nil
}

// services are the loops as connections of a group know them.
func (p *Poller) services(h Handler) []service {
	services := make([]service, len(p.loops))
	for i, l := range p.loops {
		services[i] = service{l, h}
	}
	return services
}

// enter enters fd, which it owns, into the table and into a loop, with flags for the state.
func (g *Group) enter(c *Conn, fd int, flags uint32) error {
	p := g.p
	l := p.loops[int(p.next.Add(1)-1)%len(p.loops)]
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		unix.Close(fd)
		return net.ErrClosed
	}
	for fd >= len(p.pages)*pageSize {
		p.pages = append(p.pages, new(page))
	}
	page, i := p.pageOf(fd)
	if page.conns[i] != nil {
		p.mu.Unlock()
		panic(fmt.Sprintf("poll: BUG: descriptor %d is attached twice", fd))
	}
	page.generations[i]++
	ev := unix.EpollEvent{Events: mask(0), Fd: int32(fd), Pad: int32(page.generations[i])}
	page.conns[i] = c
	p.conns++
	p.active.Add(1)
	c.fd, c.on = int32(fd), &g.loops[l.at]
	c.state.Store(stateAttached | flags + stateRef) // the reference keeps fd from being closed before it is added
	p.mu.Unlock()
	err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev)
	if err != nil {
		l.close(c)
	}
	l.release(c)
	return os.NewSyscallError("epoll_ctl", err)
}

// mask is the registration that a state asks for. EPOLLHUP and EPOLLERR come unasked.
func mask(state uint32) uint32 {
	m := uint32(unix.EPOLLET | unix.EPOLLRDHUP)
	if state&stateQuiet == 0 {
		m |= unix.EPOLLIN
	}
	if state&stateWantOut != 0 {
		m |= unix.EPOLLOUT
	}
	return m
}

// run runs the loop on w's goroutine, until the loop is over or goes on without w.
func (l *loop) run(w *Worker) {
	fetch := l.fetch // allocates
	w.flush()        // what the worker before has deferred
	for {
		for l.next < len(l.ready) {
			r := l.ready[l.next]
			l.ready[l.next] = ready{} // pin no closed connection
			l.next++
			if !l.serve(w, r.c, r.events) {
				return
			}
		}
		l.ready, l.next = l.ready[:0], 0
		l.resting.Store(true)
		err := l.wait(fetch)
		l.resting.Store(false)
		if l.stopped.Load() {
			close(l.ended)
			l.p.running.Done()
			return
		}
		if err != nil || l.waitErr != 0 {
			panic(fmt.Sprintf("poll: BUG: epoll_wait: %v, %v", err, l.waitErr))
		}
		l.waits.Add(1)
		if !l.watched.Load() && l.watched.CompareAndSwap(false, true) {
			l.wake <- struct{}{}
		}
		l.lookup(l.fetched[:l.n])
		for i, c := range l.more {
			l.ready = append(l.ready, ready{c, readMore})
			l.more[i] = nil
		}
		l.more = l.more[:0]
	}
}

// replace has a new goroutine go on with the loop of w, whose token the caller has taken.
func (l *loop) replace(w *Worker) {
	if w.pace != nil {
		w.pace.slow()
	}
	n := &Worker{loop: l, buf: make([]byte, len(w.buf)), later: w.later}
	c := w.conn
	w.conn, w.later = nil, nil
	l.worker.Store(n)
	go l.run(n)
	// Nobody reads on where the callback's goroutine would have.
	if c.state.Or(statePendingIn)&stateWantIn != 0 {
		l.resume(c)
	}
	l.release(c)
}

// watch is the goroutine that sees to it that a callback keeps nobody waiting: neither by one turn that does not end nor by
// many. It sleeps while the loop does.
func (l *loop) watch() {
	var seen *Worker
	var token, waits uint64
	idle, long := 0, 0 // ticks without a round, and of one callback
	for {
		if idle > watchIdle {
			l.watched.Store(false)
			if (l.waits.Load() != waits || !l.resting.Load()) && l.watched.CompareAndSwap(false, true) {
				idle = 0 // the loop has begun a round and not seen that nobody watches
				continue
			}
			select {
			case <-l.wake:
				idle = 0
			case <-l.ended:
				return
			}
		}
		select {
		case <-l.ended:
			return
		default:
			time.Sleep(watchTick)
		}
		w := l.worker.Load()
		v := w.token.Load()
		if long++; w != seen || v/tokenCall != token/tokenCall {
			long = 0
		}
		up := v&1 == 1 && v != tokenTaken
		if up && (w == seen && v == token || long >= watchCalls) && w.token.CompareAndSwap(v, tokenTaken) {
			l.replace(w)
		}
		if idle++; up || !l.resting.Load() || waits != l.waits.Load() {
			idle = 0
		}
		seen, token, waits = w, v, l.waits.Load()
	}
}

// wait waits until there is something to do.
func (l *loop) wait(fetch func(uintptr) bool) error {
	if l.raw != nil {
		return l.raw.Read(fetch)
	}
	if fetch(uintptr(l.epfd)) {
		return nil
	}
	runtime.Gosched() // what the callbacks have started would wait for this processor
	for {
		l.n, l.waitErr = epollWait(uintptr(l.epfd), l.fetched, -1)
		if l.waitErr != unix.EINTR {
			return nil
		}
	}
}

// fetch asks for events without waiting. It reports whether there is something to do; if not, the caller sleeps.
func (l *loop) fetch(fd uintptr) (done bool) {
	for {
		l.n, l.waitErr = epollWait(fd, l.fetched, 0)
		if l.waitErr != unix.EINTR {
			return l.n > 0 || l.waitErr != 0 || len(l.more) > 0
		}
	}
}

// lookup finds whose events these are and drops those of numbers that have been given up or reused.
// A connection closed after lookup is met by acquire.
func (l *loop) lookup(events []unix.EpollEvent) {
	p := l.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ev := range events {
		page, i := p.pageOf(int(ev.Fd))
		if c := page.conns[i]; c != nil && page.generations[i] == uint32(ev.Pad) {
			l.ready = append(l.ready, ready{c, ev.Events})
		}
	}
	l.events.Add(uint64(len(l.ready)))
}

// serve makes the callbacks that the events ask for, and reports whether w still has the loop.
func (l *loop) serve(w *Worker, c *Conn, events uint32) bool {
	if events == readMore {
		c.state.And(^uint32(stateMore))
	}
	if !c.acquire() {
		return true
	}
	w.conn = c
	w.token.Add(tokenCall)
	w.Waiting = len(l.ready) - l.next
	if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0 && c.takeWantOut() {
		c.on.h.Writable(c)
	}
	hangup := events & (unix.EPOLLRDHUP | unix.EPOLLERR | unix.EPOLLHUP)
	if (events&unix.EPOLLIN != 0 || hangup != 0) && c.state.Load()&stateMore == 0 {
		if c.state.Load()&stateListener != 0 {
			l.accept(c)
		} else {
			l.read(w, c, hangup != 0)
		}
	}
	if !w.Attached() {
		return false // and the reference has been given back
	}
	w.flush()
	w.conn = nil
	l.release(c)
	return true
}

// read reads until the socket is empty, reading is off, or it is others' turn. With toEnd a short read is not the last.
func (l *loop) read(w *Worker, c *Conn, toEnd bool) {
	for range maxReads {
		if !l.mayRead(c) {
			return
		}
		n, err := read(c.fd, w.buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return
		case err != 0:
			if c.takeEnd() {
				c.on.h.End(c, w, os.NewSyscallError("read", err))
			}
			return
		case n == 0:
			if c.takeEnd() {
				c.on.h.End(c, w, io.EOF)
			}
			return
		}
		if !c.takeInput() {
			return
		}
		emptied := n < len(w.buf) && !toEnd
		l.emptied = emptied
		more := c.on.h.Input(c, w, w.buf[:n])
		if !w.Attached() {
			if more {
				l.resume(c) // whoever runs the loop looks
			}
			return
		}
		if more {
			c.state.Or(stateWantIn)
		}
		if emptied {
			return
		}
	}
	c.state.Or(stateMore)
	l.more = append(l.more, c)
}

// mayRead reports whether reading is on. If not, it leaves word for Resume that there is something to be read.
func (l *loop) mayRead(c *Conn) bool {
	for {
		old := c.state.Load()
		switch {
		case old&(stateClosed|stateEnded) != 0:
			return false
		case old&stateWantIn != 0:
			return true
		case old&statePendingIn == 0:
			if c.state.CompareAndSwap(old, old|statePendingIn) {
				return false
			}
		case old&stateQuiet == 0:
			if c.state.CompareAndSwap(old, old|stateQuiet) {
				l.control(c)
				return false
			}
		default:
			return false
		}
	}
}

// control brings the registration in line with the state, and has the kernel report anew what is ready.
// The caller has changed the state before.
func (l *loop) control(c *Conn) {
	if !c.acquire() {
		return
	}
	defer l.release(c)
	for {
		old := c.state.Load()
		if old&stateControl != 0 {
			if c.state.CompareAndSwap(old, old|stateAgain) {
				return
			}
		} else if c.state.CompareAndSwap(old, old|stateControl) {
			break
		}
	}
	l.p.mu.Lock()
	page, i := l.p.pageOf(int(c.fd))
	generation := page.generations[i] // ours: the reference keeps the number
	l.p.mu.Unlock()
	for {
		state := c.state.And(^uint32(stateAgain))
		ev := unix.EpollEvent{Events: mask(state), Fd: c.fd, Pad: int32(generation)}
		if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_MOD, int(c.fd), &ev); err != nil {
			panic(fmt.Sprintf("poll: BUG: epoll_ctl: %v", err))
		}
		l.controls.Add(1)
		for {
			old := c.state.Load()
			if old&stateAgain != 0 {
				break
			}
			if c.state.CompareAndSwap(old, old&^stateControl) {
				return
			}
		}
	}
}

func (l *loop) resume(c *Conn) {
	for {
		old := c.state.Load()
		if old&stateWantIn != 0 && old&statePendingIn == 0 {
			return
		}
		if c.state.CompareAndSwap(old, (old|stateWantIn|stateHeard)&^(statePendingIn|stateQuiet)) {
			if old&statePendingIn != 0 {
				l.control(c)
			}
			return
		}
	}
}

func (l *loop) notifyWritable(c *Conn) {
	if c.state.Or(stateWantOut)&stateWantOut == 0 {
		l.control(c)
	}
}

func (l *loop) write(c *Conn, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !c.acquire() {
		return 0, net.ErrClosed
	}
	defer l.release(c)
	for {
		if n, err := write(c.fd, p); err != unix.EINTR {
			return written(n, err)
		}
	}
}

func (l *loop) writev(c *Conn, bufs [][]byte) (n int, err error) {
	if !c.acquire() {
		return 0, net.ErrClosed
	}
	defer l.release(c)
	for len(bufs) > 0 {
		some := bufs[:min(len(bufs), maxIovecs)]
		all := 0
		for _, b := range some {
			all += len(b)
		}
		m, err := unix.Writev(int(c.fd), some)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			m, err = 0, nil
		}
		if err != nil {
			return n, os.NewSyscallError("writev", err)
		}
		n += m
		if m < all {
			return n, nil
		}
		bufs = bufs[len(some):]
	}
	return n, nil
}

// written makes a system call's result that of Write.
func written(n int, err unix.Errno) (int, error) {
	switch err {
	case 0:
		return n, nil
	case unix.EAGAIN:
		return 0, nil
	default:
		return 0, os.NewSyscallError("write", err)
	}
}

func (l *loop) closeWrite(c *Conn) error {
	if !c.acquire() {
		return net.ErrClosed
	}
	defer l.release(c)
	return os.NewSyscallError("shutdown", unix.Shutdown(int(c.fd), unix.SHUT_WR))
}

func (l *loop) close(c *Conn) error {
	for {
		old := c.state.Load()
		if old&stateClosed != 0 {
			return nil
		}
		if c.state.CompareAndSwap(old, (old|stateClosed)+stateRef) {
			l.release(c)
			return nil
		}
	}
}

// acquire takes a reference: the descriptor stays open until its release. It reports false after Close.
func (c *Conn) acquire() bool {
	for {
		old := c.state.Load()
		if old&stateClosed != 0 {
			return false
		}
		if old&stateRefs == stateRefs {
			panic("poll: BUG: too many calls on one connection")
		}
		if c.state.CompareAndSwap(old, old+stateRef) {
			return true
		}
	}
}

// release gives a reference back. The last one after Close closes the descriptor.
func (l *loop) release(c *Conn) {
	now := c.state.Add(^uint32(stateRef - 1))
	if now&(stateClosed|stateMoved|stateRefs) != stateClosed {
		return
	}
	p, fd := l.p, int(c.fd)
	p.mu.Lock()
	p.setLocked(fd, nil)
	p.conns--
	p.mu.Unlock()
	// Explicitly: a child between fork and exec may still hold the socket, and would keep the registration.
	// It is missing only if adding has failed.
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, fd, nil); err != nil && err != unix.ENOENT {
		panic(fmt.Sprintf("poll: BUG: epoll_ctl: %v", err))
	}
	if err := unix.Close(fd); err != nil {
		p.log.Debug("poll: close", "err", err)
	}
	p.active.Done()
}

// takeInput turns reading off and reports whether Input may be called. Input's true and Resume turn it on again, so a
// Resume beside Input is never lost.
func (c *Conn) takeInput() bool {
	for {
		old := c.state.Load()
		if c.state.CompareAndSwap(old, old&^stateWantIn|stateHeard) {
			return old&stateClosed == 0
		}
	}
}

// takeEnd reports whether End is to be called.
func (c *Conn) takeEnd() bool {
	return c.state.Or(stateEnded)&(stateEnded|stateClosed) == 0
}

// takeWantOut reports whether Writable is to be called.
func (c *Conn) takeWantOut() bool {
	return c.state.And(^uint32(stateWantOut))&(stateWantOut|stateClosed) == stateWantOut
}
