//go:build !portable

package poll

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxAccepts is the number of connections taken from one listener before others have their turn.
const maxAccepts = 64

// A Descriptor is a connected stream socket that no poller watches. It is not safe for concurrent use.
type Descriptor struct {
	fd   int      // -1: used up
	file *os.File // owns fd; nil before the first NetConn
}

// NetConn makes d a net.Conn, which takes a second descriptor for a moment. If it fails d stays as it is.
func (d *Descriptor) NetConn() (net.Conn, error) {
	if d.file == nil {
		d.file = os.NewFile(uintptr(d.fd), "socket")
	}
	nc, err := net.FileConn(d.file)
	if err != nil {
		return nil, err
	}
	return nc, d.Close()
}

// Close closes d. A second call does nothing.
func (d *Descriptor) Close() error {
	if d.fd < 0 {
		return nil
	}
	fd := d.fd
	d.fd = -1
	if d.file != nil {
		return d.file.Close()
	}
	return os.NewSyscallError("close", unix.Close(fd))
}

func (p *Poller) listen(c *Conn, ln net.Listener, h ListenHandler) (ok bool, err error) {
	if len(p.loops) == 0 {
		return false, nil
	}
	var sc syscall.Conn
	switch ln := ln.(type) { // a type around these may accept in its own way
	case *net.TCPListener:
		sc = ln
	case *net.UnixListener:
		sc = ln
	default:
		return false, nil
	}
	if c.state.Load() != 0 {
		return true, errors.New("poll: listen: connection record already used")
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return true, fmt.Errorf("poll: listen: %w", err)
	}
	fd := -1
	var failed error
	err = rc.Control(func(u uintptr) {
		if t, err := unix.GetsockoptInt(int(u), unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_STREAM {
			return
		}
		if fd, failed = unix.FcntlInt(u, unix.F_DUPFD_CLOEXEC, 0); failed != nil {
			fd = -1
		}
	})
	if err == nil {
		err = os.NewSyscallError("fcntl", failed)
	}
	if err != nil {
		return true, fmt.Errorf("poll: listen: %w", err)
	}
	if fd < 0 {
		return false, nil
	}
	if err := unix.SetNonblock(fd, true); err != nil { // as in attachDescriptor
		unix.Close(fd)
		return true, fmt.Errorf("poll: listen: %w", os.NewSyscallError("fcntl", err))
	}
	if err := p.tune(fd); err != nil {
		p.log.Debug("poll: set socket options", "listener", ln.Addr(), "err", err)
	}
	if err := p.Group(accepting{h, p.untunable(fd)}).enter(c, fd, stateListener); err != nil {
		return true, fmt.Errorf("poll: listen: %w", err)
	}
	return true, nil
}

// accept takes connections from the listener c until there are none, accepting is off, or it is others' turn.
func (l *loop) accept(c *Conn) {
	h := c.on.h.(accepting)
	for range maxAccepts {
		if !l.mayRead(c) {
			return
		}
		// The functions for it ask for the peer's address, and make garbage of it.
		r, _, err := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(c.fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		fd := int(r)
		switch {
		case err == unix.EINTR || err == unix.ECONNABORTED:
			continue
		case err == unix.EAGAIN:
			return
		case err != 0:
			if c.pauseUnread() {
				h.AcceptFailed(os.NewSyscallError("accept4", err))
			}
			return
		}
		if h.userTimeout > 0 { // an error if the connection is Multipath TCP itself
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, h.userTimeout)
		}
		l.accepted = Descriptor{fd: fd} // not one for each
		d := &l.accepted
		if !c.takeInput() {
			d.Close()
			return
		}
		if h.Accepted(d) {
			c.state.Or(stateWantIn)
		}
	}
	c.state.Or(stateMore)
	l.more = append(l.more, c)
}

// pauseUnread turns reading off, with word for Resume that there is something to be read. It reports false after Close.
func (c *Conn) pauseUnread() bool {
	for {
		old := c.state.Load()
		if old&stateClosed != 0 {
			return false
		}
		if c.state.CompareAndSwap(old, old&^stateWantIn|statePendingIn) {
			return true
		}
	}
}

func (g *Group) attachRaw(c *Conn, d *Descriptor) error {
	if c.state.Load() != 0 {
		d.Close()
		return errors.New("poll: attach: connection record already used")
	}
	if len(g.loops) == 0 || d.file != nil || d.fd < 0 {
		d.Close()
		return fmt.Errorf("poll: attach a descriptor: %w", errors.ErrUnsupported)
	}
	fd := d.fd
	d.fd = -1
	return g.enter(c, fd, stateWantIn)
}

func (g *Group) move(to, from *Conn) error {
	p := g.p
	if to.state.Load() != 0 {
		return errors.New("poll: move: connection record already used")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed { // Close has its list of what to close
		return net.ErrClosed
	}
	old, ok := from.leave()
	if !ok {
		return net.ErrClosed
	}
	l := from.on.driver.(*loop)
	to.fd, to.on = from.fd, &g.loops[l.at]
	state := stateAttached | old&(statePendingIn|stateQuiet)
	if !l.emptied {
		state |= statePendingIn
	}
	to.state.Store(state)
	p.setLocked(int(to.fd), to)
	return nil
}

func (p *Poller) detach(c *Conn) (*Descriptor, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, net.ErrClosed
	}
	if _, ok := c.leave(); !ok {
		p.mu.Unlock()
		return nil, net.ErrClosed
	}
	p.setLocked(int(c.fd), nil)
	p.conns--
	p.mu.Unlock()
	l := c.on.driver.(*loop)
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, int(c.fd), nil); err != nil {
		panic(fmt.Sprintf("poll: BUG: epoll_ctl: %v", err))
	}
	p.active.Done()
	return &Descriptor{fd: int(c.fd)}, nil
}

// leave ends c without closing its descriptor, and reports false if Close was first. It returns the state before.
func (c *Conn) leave() (old uint32, ok bool) {
	for {
		old = c.state.Load()
		if old&(stateAttached|stateClosed) != stateAttached {
			return old, false
		}
		if old&stateControl != 0 { // it would use the number
			panic("poll: BUG: a connection in use was moved")
		}
		if c.state.CompareAndSwap(old, old|stateClosed|stateMoved) {
			return old, true
		}
	}
}

func (c *Conn) remoteAddr() net.Addr {
	l, ok := c.on.driver.(*loop)
	if !ok || !c.acquire() {
		return nil
	}
	defer l.release(c)
	sa, err := unix.Getpeername(int(c.fd))
	if err != nil {
		return nil
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
	case *unix.SockaddrInet6:
		a := &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
		if sa.ZoneId != 0 {
			a.Zone = fmt.Sprint(sa.ZoneId)
			if i, err := net.InterfaceByIndex(int(sa.ZoneId)); err == nil {
				a.Zone = i.Name
			}
		}
		return a
	case *unix.SockaddrUnix:
		return &net.UnixAddr{Name: sa.Name, Net: "unix"}
	}
	return nil
}
