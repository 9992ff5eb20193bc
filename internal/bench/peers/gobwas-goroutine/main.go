// Gobwas-goroutine is a peer on gobwas/ws the simple way: a goroutine for each connection, the zero-copy upgrade, a
// small read buffer. What is read together is answered with one write.
package main

import (
	"bufio"
	"io"
	"log"
	"net"
	"sync"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate/internal/bench/peers/protocol"
)

type conn struct {
	net.Conn
	mu sync.Mutex // held while writing
}

func (c *conn) send(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.Write(p)
	return err
}

var (
	rooms protocol.Rooms[*conn]
	free  = sync.Pool{New: func() any { return new([]byte) }}
)

func main() {
	ln := protocol.Listen()
	for {
		nc, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go upgrade(nc)
	}
}

func upgrade(nc net.Conn) {
	var name string
	u := ws.Upgrader{OnRequest: func(uri []byte) error {
		name = protocol.RoomName(string(uri))
		return nil
	}}
	if _, err := u.Upgrade(nc); err != nil {
		nc.Close()
		return
	}
	go (&conn{Conn: nc}).serve(name) // on a stack that the upgrade has not made large
}

func (c *conn) serve(name string) {
	defer c.Close()
	room := rooms.Join(name, c)
	defer rooms.Leave(room, c)
	br := bufio.NewReaderSize(c, 1<<10)
	for c.answer(br, room) == nil {
	}
}

// answer answers what one read gives.
func (c *conn) answer(br *bufio.Reader, room *protocol.Room[*conn]) error {
	if _, err := br.Peek(1); err != nil { // and only then take buffers
		return err
	}
	in, out := free.Get().(*[]byte), free.Get().(*[]byte)
	defer free.Put(in)
	defer free.Put(out)
	*out = (*out)[:0]
	for more := true; more; more = br.Buffered() > 0 {
		h, err := ws.ReadHeader(br)
		if err != nil {
			return err
		}
		if h.Length > 1<<20 {
			return ws.ErrHeaderLengthUnexpected
		}
		if cap(*in) < int(h.Length) {
			*in = make([]byte, h.Length)
		}
		p := (*in)[:h.Length]
		if _, err := io.ReadFull(br, p); err != nil {
			return err
		}
		ws.Cipher(p, h.Mask, 0)
		switch {
		case h.OpCode == ws.OpClose:
			return io.EOF
		case h.OpCode.IsControl():
		case protocol.IsBroadcast(p):
			f := ws.MustCompileFrame(ws.NewFrame(h.OpCode, true, p))
			room.Each(func(to *conn) { _ = to.send(f) })
		default:
			*out = protocol.AppendFrame(*out, byte(h.OpCode), p)
		}
	}
	if len(*out) == 0 {
		return nil
	}
	return c.send(*out)
}
