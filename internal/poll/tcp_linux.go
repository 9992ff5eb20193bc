//go:build !portable

package poll

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const keepAliveSeconds = 15 // as package net does; only where keep-alive was off

// tune sets no-delay, keep-alive and the user timeout if fd is TCP. A listener's are those of its connections.
func (p *Poller) tune(fd int) error {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || family != unix.AF_INET && family != unix.AF_INET6 {
		return os.NewSyscallError("getsockopt", err)
	}
	set := func(option, value int) {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value))
	}
	set(unix.TCP_NODELAY, 1)
	if p.userTimeout > 0 {
		set(unix.TCP_USER_TIMEOUT, int(max(p.userTimeout.Milliseconds(), 1)))
	}
	period := int((p.keepAlive + time.Second - 1) / time.Second)
	if p.keepAlive == 0 {
		on, failed := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		if err = errors.Join(err, failed); on == 0 {
			period = keepAliveSeconds // else somebody chose
		}
	}
	if period > 0 {
		set(unix.TCP_KEEPIDLE, period)
		set(unix.TCP_KEEPINTVL, period)
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1))
	}
	return os.NewSyscallError("setsockopt", err)
}

// untunable is the user timeout, in milliseconds, that the connections of a TCP listener do not get from it; else 0.
func (p *Poller) untunable(fd int) int {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || family == unix.AF_UNIX || p.userTimeout <= 0 {
		return 0
	}
	want := int(max(p.userTimeout.Milliseconds(), 1))
	if got, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err == nil && got == want {
		return 0
	}
	return want
}

// tuneConn is tune for a connection that keeps its net.Conn.
func (p *Poller) tuneConn(t *net.TCPConn) (err error) {
	rc, err := t.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(rc.Control(func(fd uintptr) { err = p.tune(int(fd)) }), err)
}
