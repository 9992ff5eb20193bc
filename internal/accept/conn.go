package accept

import (
	"io"
	"net"
	"sync"
)

// stream is what *net.TCPConn and *net.UnixConn have in common beyond a net.Conn and net/http makes use of.
type stream interface {
	net.Conn
	CloseRead() error
	CloseWrite() error
}

// A Conn is a connection that first gives the bytes that were read of it before it was accepted.
type Conn struct {
	stream

	mu   sync.Mutex // guards the following
	head []byte     // not read again yet
}

// Read reads the bytes put back, and then the connection.
func (c *Conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if len(c.head) > 0 {
		n := copy(p, c.head)
		if c.head = c.head[n:]; len(c.head) == 0 {
			c.head = nil
		}
		c.mu.Unlock()
		return n, nil
	}
	c.mu.Unlock()
	return c.stream.Read(p)
}

// ReadFrom lets the kernel copy where it can.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.stream, r) }

// Unwrap returns the connection beneath a Conn and what of it is still to be read again, which is then no longer c's.
// Any other connection is returned as it is.
func Unwrap(nc net.Conn) (inner net.Conn, unread []byte) {
	c, ok := nc.(*Conn)
	if !ok {
		return nc, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	unread, c.head = c.head, nil
	return c.stream, unread
}
