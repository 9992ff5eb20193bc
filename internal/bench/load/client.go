//go:build linux

package main

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A conn is one connection: a descriptor, no goroutine.
type conn struct {
	fd   int
	id   int
	part []byte // of a frame that has not come whole
	dead bool
	talk *talk // nil: the connection is silent
}

const (
	dialTimeout = 20 * time.Second
	sources     = 24 // addresses 127.0.1.1 … to come from: each has ports of its own

	key = "dGhlIHNhbXBsZSBub25jZQ==" // of RFC 6455, section 1.3
)

var accepted = func() []byte {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.AppendEncode([]byte(": "), sum[:]) // servers write the header's name in two ways
}()

// dial opens the i-th connection. It blocks in system calls, for at most dialTimeout each.
func (c *config) dial(i, room int) (*conn, error) {
	addr, err := netip.ParseAddrPort(c.addr)
	if err != nil {
		return nil, err
	}
	if !addr.Addr().Is4() {
		return nil, fmt.Errorf("%s is not an IPv4 address", c.addr)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	w := &conn{fd: fd, id: i}
	if err := w.upgrade(c, addr, room); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return w, nil
}

func (w *conn) upgrade(c *config, addr netip.AddrPort, room int) error {
	timeout := unix.NsecToTimeval(int64(dialTimeout))
	err := errors.Join(
		// The port is chosen by connect, which knows the other end and so has all of them for each source.
		unix.SetsockoptInt(w.fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.Bind(w.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, byte(1 + w.id%sources)}}),
		unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout),
		unix.SetsockoptInt(w.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
	)
	if err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	for { // the runtime's signals interrupt it
		err := unix.Connect(w.fd, to)
		if err == nil || err == unix.EISCONN {
			break
		}
		if err != unix.EINTR && err != unix.EALREADY {
			return fmt.Errorf("connect: %w", err)
		}
	}
	request := "GET " + c.prefix + "r" + strconv.Itoa(room) + " HTTP/1.1\r\nHost: " + c.addr +
		"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + "\r\n\r\n"
	if _, err := unix.Write(w.fd, []byte(request)); err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	var buf [2048]byte
	for n := 0; n < len(buf); {
		m, err := unix.Read(w.fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return fmt.Errorf("read response after %d bytes: %w", n, err)
		}
		n += m
		head, rest, ok := bytes.Cut(buf[:n], []byte("\r\n\r\n"))
		if !ok {
			continue
		}
		if !bytes.HasPrefix(head, []byte("HTTP/1.1 101")) || !bytes.Contains(head, accepted) {
			return fmt.Errorf("not upgraded: %.200q", head)
		}
		w.part = append(w.part, rest...)
		return nil
	}
	return errors.New("response is too long")
}

// dialMany opens connections from up to to, non-blocking from then on.
func (c *config) dialMany(from, to int) ([]*conn, error) {
	all := make([]*conn, to-from)
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range c.parallel {
		wg.Go(func() {
			for failed.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(all) {
					return
				}
				w, err := c.dial(from+i, c.room(from+i))
				for try := 0; err != nil && try < 2; try++ {
					time.Sleep(50 * time.Millisecond) // a backlog may be full
					w, err = c.dial(from+i, c.room(from+i))
				}
				if err == nil {
					err = unix.SetNonblock(w.fd, true)
				}
				if err != nil {
					err = fmt.Errorf("connection %d: %w", from+i, err)
					failed.CompareAndSwap(nil, &err)
					return
				}
				all[i] = w
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		closeAll(all)
		return nil, *err
	}
	return all, nil
}

// reset closes the connection so that neither side keeps its port in TIME_WAIT.
func (w *conn) reset() {
	_ = unix.SetsockoptLinger(w.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(w.fd)
}

func closeAll(all []*conn) {
	for _, w := range all {
		if w != nil {
			w.reset()
		}
	}
}

// write writes all of p. It spins while the connection is full.
func (w *conn) write(p []byte) error {
	for len(p) > 0 {
		// A raw system call: it does not block, and the scheduler need not be told.
		n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(w.fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch e {
		case 0:
			p = p[n:]
		case unix.EAGAIN:
			runtime.Gosched()
			time.Sleep(20 * time.Microsecond)
		case unix.EINTR:
		default:
			return e
		}
	}
	return nil
}

const (
	opText   = 1
	opBinary = 2
	opClose  = 8
	opPing   = 9
	opPong   = 10
)

// frame is a whole message as a client sends it.
func frame(op byte, payload []byte) []byte {
	b := []byte{0x80 | op}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{0x3d, 0x21, 0xfa, 0x37}
	b = append(b, mask[:]...)
	for i, x := range payload {
		b = append(b, x^mask[i&3])
	}
	return b
}

// cut takes a server's frame off b. ok is false if it is not whole.
func cut(b []byte) (op byte, payload, rest []byte, ok bool, err error) {
	if len(b) < 2 {
		return 0, nil, b, false, nil
	}
	if b[1]&0x80 != 0 {
		return 0, nil, b, false, errors.New("the server masks its frames")
	}
	n, head := uint64(b[1]), 2
	switch {
	case n == 126 && len(b) >= 4:
		n, head = uint64(binary.BigEndian.Uint16(b[2:])), 4
	case n == 127 && len(b) >= 10:
		n, head = binary.BigEndian.Uint64(b[2:]), 10
	case n >= 126:
		return 0, nil, b, false, nil
	}
	if n > bufferSize/2 {
		return 0, nil, b, false, fmt.Errorf("frame of %d bytes", n)
	}
	if len(b) < head+int(n) {
		return 0, nil, b, false, nil
	}
	return b[0] & 0xf, b[head : head+int(n)], b[head+int(n):], true, nil
}
