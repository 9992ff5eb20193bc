//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const bufferSize = 512 << 10

// A loop reads all connections of a run, on one goroutine, which also sends. Its callbacks come in wait.
type loop struct {
	message func(w *conn, payload []byte, now time.Duration)
	drained func(w *conn) // after the messages of one read; may be nil

	epfd   int
	conns  []*conn
	buf    []byte
	events []unix.EpollEvent
	dead   int // connections that the server ended
	err    error
}

func newLoop() (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &loop{
		message: func(*conn, []byte, time.Duration) {},
		epfd:    epfd,
		buf:     make([]byte, bufferSize),
		events:  make([]unix.EpollEvent, 512),
	}, nil
}

// add opens connections up to n in all.
func (l *loop) add(c *config, n int) error {
	all, err := c.dialMany(len(l.conns), n)
	if err != nil {
		return err
	}
	for _, w := range all {
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(len(l.conns))}
		l.conns = append(l.conns, w)
		if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, w.fd, &event); err != nil {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	return nil
}

// close resets what add has opened.
func (l *loop) close() {
	closeAll(l.conns)
	unix.Close(l.epfd)
}

var start = time.Now()

func now() time.Duration { return time.Since(start) }

// wait handles what is ready within d, and tells how many connections that were.
func (l *loop) wait(d time.Duration) int {
	timeout := unix.NsecToTimespec(int64(max(d, 0)))
	n, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.epfd), uintptr(unsafe.Pointer(&l.events[0])), uintptr(len(l.events)),
		uintptr(unsafe.Pointer(&timeout)), 0, 0)
	if e == unix.EINTR {
		return 0
	}
	if e != 0 {
		l.fail(os.NewSyscallError("epoll_pwait2", e))
		return 0
	}
	for _, event := range l.events[:n] {
		if w := l.conns[event.Fd]; !w.dead {
			l.read(w)
		}
	}
	return int(n)
}

// during handles what comes for d.
func (l *loop) during(d time.Duration) error {
	for end := now() + d; l.err == nil; {
		left := end - now()
		if left <= 0 {
			break
		}
		l.wait(min(left, 100*time.Millisecond))
	}
	return l.err
}

var errStuck = errors.New("answers are missing after 60 s")

// until handles what comes until done reports true.
func (l *loop) until(done func() bool) error {
	for end := now() + time.Minute; l.err == nil && !done(); {
		if l.wait(200 * time.Millisecond); now() > end {
			return errStuck
		}
	}
	return l.err
}

// read takes what one read gives.
func (l *loop) read(w *conn) {
	have := copy(l.buf, w.part)
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(w.fd), uintptr(unsafe.Pointer(&l.buf[have])), uintptr(len(l.buf)-have))
	if e == unix.EAGAIN || e == unix.EINTR {
		return
	}
	if e != 0 || n == 0 {
		l.drop(w)
		return
	}
	at := now()
	rest := l.buf[:have+int(n)]
	for {
		op, payload, more, ok, err := cut(rest)
		if err != nil {
			l.fail(err)
			l.drop(w)
			return
		}
		if !ok {
			break
		}
		rest = more
		switch op {
		case opPing:
			l.write(w, frame(opPong, payload))
		case opPong:
		case opClose:
			l.drop(w)
			return
		default:
			l.message(w, payload, at)
		}
	}
	w.part = append(w.part[:0], rest...)
	if l.drained != nil {
		l.drained(w)
	}
}

func (l *loop) write(w *conn, p []byte) {
	if err := w.write(p); err != nil {
		l.drop(w)
	}
}

// drop counts a connection that the server has ended. Its descriptor stays until close.
func (l *loop) drop(w *conn) {
	if !w.dead {
		w.dead = true
		l.dead++
		_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, w.fd, nil)
	}
}

func (l *loop) fail(err error) {
	if l.err == nil {
		l.err = fmt.Errorf("client: %w", err)
	}
}
