//go:build linux

// Gobwas-epoll is a peer on gobwas/ws the way its author wrote about: a net.Conn for each connection and no goroutine,
// an epoll of one's own beside Go's, pooled buffers. What is read together is answered with one write.
//
// With -raw the net.Conn goes too: after the upgrade the descriptor is duplicated and the original closed.
package main

import (
	"bytes"
	"flag"
	"io"
	"log"
	"net"
	"sync"
	"syscall"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate/internal/bench/peers/protocol"
)

var raw = flag.Bool("raw", false, "keep the descriptor and drop the net.Conn")

type conn struct {
	nc   net.Conn // nil with -raw
	room *protocol.Room[*conn]
	part []byte // of a frame that has not come whole; the loop's
	fd   int
	mu   sync.Mutex // held while writing
}

func (c *conn) send(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nc != nil {
		_, err := c.nc.Write(p)
		return err
	}
	for len(p) > 0 {
		n, err := syscall.Write(c.fd, p)
		if err != nil && err != syscall.EAGAIN && err != syscall.EINTR {
			return err
		}
		p = p[max(n, 0):]
	}
	return nil
}

func (c *conn) close() {
	if c.nc != nil {
		c.nc.Close()
	} else {
		syscall.Close(c.fd)
	}
}

var (
	rooms protocol.Rooms[*conn]
	epfd  int

	mu    sync.RWMutex // guards the following
	conns = map[int]*conn{}
)

func main() {
	ln := protocol.Listen()
	var err error
	if epfd, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		log.Fatal(err)
	}
	go loop()
	for {
		nc, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go accept(nc)
	}
}

func accept(nc net.Conn) {
	var name string
	u := ws.Upgrader{OnRequest: func(uri []byte) error {
		name = protocol.RoomName(string(uri))
		return nil
	}}
	_, err := u.Upgrade(nc)
	c := &conn{nc: nc}
	if err == nil {
		err = c.take(nc)
	}
	if err != nil {
		nc.Close()
		return
	}
	c.room = rooms.Join(name, c)
	mu.Lock()
	conns[c.fd] = c
	mu.Unlock()
	if err := syscall.EpollCtl(epfd, syscall.EPOLL_CTL_ADD, c.fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(c.fd)}); err != nil {
		c.drop()
	}
}

// take finds the descriptor of nc.
func (c *conn) take(nc net.Conn) error {
	sc, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	if err := sc.Control(func(fd uintptr) { c.fd = int(fd) }); err != nil || !*raw {
		return err
	}
	fd, _, e := syscall.Syscall(syscall.SYS_FCNTL, uintptr(c.fd), syscall.F_DUPFD_CLOEXEC, 0)
	if e != 0 {
		return e
	}
	c.fd, c.nc = int(fd), nil
	return nc.Close()
}

func (c *conn) drop() {
	mu.Lock()
	delete(conns, c.fd)
	mu.Unlock()
	rooms.Leave(c.room, c)
	c.close()
}

func loop() {
	events := make([]syscall.EpollEvent, 256)
	in, out := make([]byte, 64<<10), make([]byte, 0, 64<<10)
	for {
		n, err := syscall.EpollWait(epfd, events, -1)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		for _, event := range events[:n] {
			mu.RLock()
			c := conns[int(event.Fd)]
			mu.RUnlock()
			if c == nil {
				continue
			}
			if out, err = c.answer(in, out[:0]); err != nil {
				c.drop()
			}
		}
	}
}

// answer answers what one read gives.
func (c *conn) answer(in, out []byte) ([]byte, error) {
	have := copy(in, c.part)
	n, err := syscall.Read(c.fd, in[have:])
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return out, nil
	}
	if err != nil || n == 0 {
		return out, io.EOF
	}
	b := in[:have+n]
	for {
		f, ok := protocol.Parse(b)
		if !ok {
			break
		}
		switch op := ws.OpCode(f.Op); {
		case op == ws.OpClose:
			return out, io.EOF
		case op.IsControl():
		case protocol.IsBroadcast(f.Payload):
			frame := protocol.AppendFrame(nil, f.Op, f.Payload)
			c.room.Each(func(to *conn) { _ = to.send(frame) })
		default:
			out = protocol.AppendFrame(out, f.Op, f.Payload)
		}
		b = b[f.Size:]
	}
	if len(b) == cap(in) {
		return out, io.ErrShortBuffer
	}
	c.part = nil
	if len(b) > 0 {
		c.part = bytes.Clone(b)
	}
	if len(out) == 0 {
		return out, nil
	}
	return out, c.send(out)
}
