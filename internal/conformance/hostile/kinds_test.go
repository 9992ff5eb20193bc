package hostile

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/ws"
)

// A kind is one way to misbehave. attack is called again and again, each time with
// a new connection, which is reset when it returns. It returns early when the peer
// has had enough.
type kind struct {
	name   string
	attack func(a *attacker)
}

// kinds are all ways to misbehave.
var kinds = []kind{
	{"connects and leaves", func(a *attacker) {}},
	{"connects and says nothing", func(a *attacker) { a.linger() }},
	{"handshake byte by byte", func(a *attacker) {
		for _, c := range a.head() {
			if !a.write([]byte{c}) || !a.pause(time.Millisecond) {
				return
			}
		}
		for _, c := range frame(true, 0, ws.OpText, []byte("late")) {
			a.write([]byte{c})
		}
		a.linger()
	}},
	{"header without end", func(a *attacker) {
		a.write([]byte("GET /o/room HTTP/1.1\r\nHost: x\r\n"))
		for i := 0; a.write(fmt.Appendf(nil, "X-%d: y\r\n", i)) && a.pause(5*time.Millisecond); i++ {
		}
	}},
	{"oversized header", func(a *attacker) {
		a.write([]byte("GET /o/room HTTP/1.1\r\nHost: x\r\nCookie: "))
		for range 64 {
			if !a.write(bytes.Repeat([]byte("c"), 4<<10)) {
				return
			}
		}
		a.linger()
	}},
	{"broken handshake", func(a *attacker) {
		head := string(a.head())
		for _, change := range [][2]string{
			{"Sec-WebSocket-Key: ", "Sec-WebSocket-Key: A"}, {"Version: 13", "Version: 99"}, {"GET", "POST"}, {"HTTP/1.1", "HTTP/1.0"},
			{"Upgrade: websocket", "Upgrade: h2c"}, {"Host: x\r\n", ""}, {"Host: x", "Host: x\r\nOrigin: https://evil.example"},
			{"Host: x", "Host: x\r\nTransfer-Encoding: chunked"}, {"\r\n\r\n", "\r\n\x00: \r\n\r\n"},
		} {
			if !a.write([]byte(strings.Replace(head, change[0], change[1], 1))) {
				return
			}
		}
		a.drain()
	}},
	{"reset within the handshake", func(a *attacker) { h := a.head(); a.write(h[:rand.IntN(len(h))]) }},
	{"random bytes for a handshake", func(a *attacker) { a.write(random(4096)); a.drain() }},
	{"pipelined requests", func(a *attacker) {
		a.write(bytes.Repeat([]byte("GET /plain HTTP/1.1\r\nHost: x\r\n\r\n"), 100))
		a.linger()
	}},
	{"pipelined garbage", func(a *attacker) { a.write(append(a.head(), random(16<<10)...)); a.drain() }},
	{"handshake and silence", func(a *attacker) { a.upgrade(); a.linger() }},
	{"half-open", func(a *attacker) {
		a.upgrade()
		a.conn.(*net.TCPConn).CloseWrite()
		a.drain()
	}},
	{"random bytes for frames", func(a *attacker) {
		for a.upgrade(); a.write(random(1<<10)) && a.pause(time.Millisecond); {
		}
	}},
	{"huge length", func(a *attacker) {
		a.upgrade()
		a.write(append(header(true, 0, ws.OpBinary, 1<<63-1), random(64)...))
		a.drain()
	}},
	{"large length, sent slowly", func(a *attacker) {
		a.upgrade()
		a.write(header(true, 0, ws.OpBinary, maxMessage))
		for a.write(random(100)) && a.pause(5*time.Millisecond) {
		}
	}},
	{"message over the limit", func(a *attacker) {
		a.upgrade()
		for op := ws.OpBinary; a.write(frame(false, 0, op, random(8<<10))) && a.pause(time.Millisecond); op = ws.OpContinuation {
		}
	}},
	{"endless fragments", func(a *attacker) {
		a.upgrade()
		a.write(frame(false, 0, ws.OpText, nil))
		for some := bytes.Repeat(frame(false, 0, ws.OpContinuation, []byte("f")), 100); a.write(some) && a.pause(time.Millisecond); {
		}
	}},
	{"fragments of nothing", func(a *attacker) {
		a.upgrade()
		a.write(frame(false, 0, ws.OpText, nil))
		for none := bytes.Repeat(frame(false, 0, ws.OpContinuation, nil), 100); a.write(none) && a.pause(time.Millisecond); {
		}
	}},
	{"never reads", func(a *attacker) {
		a.upgrade()
		for range 8 {
			a.write(frame(true, 0, ws.OpText, []byte("flood")))
		}
		a.linger()
	}},
	{"reset within a frame", func(a *attacker) {
		a.upgrade()
		f := frame(true, 0, ws.OpText, random(200))
		a.write(f[:rand.IntN(len(f))])
	}},
	{"pings without reading", func(a *attacker) {
		pings := bytes.Repeat(frame(true, 0, ws.OpPing, random(125)), 50)
		for a.upgrade(); a.write(pings) && a.pause(time.Millisecond); {
		}
	}},
	{"oversized ping", func(a *attacker) { a.upgrade(); a.write(frame(true, 0, ws.OpPing, random(126))); a.drain() }},
	{"compression bomb", func(a *attacker) {
		a.upgrade("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
		a.write(frame(true, 4, ws.OpBinary, bomb()))
		a.drain()
	}},
	{"closes twice", func(a *attacker) {
		a.upgrade()
		a.write(append(closing(1000, ""), closing(1000, "again")...))
		a.drain()
	}},
	{"sends after its close", func(a *attacker) {
		a.upgrade()
		a.write(closing(1000, ""))
		for a.write(frame(true, 0, ws.OpText, random(1<<10))) && a.pause(time.Millisecond) {
		}
	}},
	{"closes without reading", func(a *attacker) {
		a.upgrade()
		a.write(append(frame(true, 0, ws.OpText, []byte("flood")), closing(1000, "")...))
		a.linger()
	}},
	{"bad close", func(a *attacker) {
		a.upgrade()
		bodies := []string{"\x03", "\x03\xed", "\x00\x00", "\x03\xe8\xff", "\xff\xff" + strings.Repeat("r", 124)}
		a.write(frame(true, 0, ws.OpClose, []byte(bodies[rand.IntN(len(bodies))])))
		a.drain()
	}},
	{"text that is not UTF-8", func(a *attacker) {
		a.upgrade()
		a.write(append(frame(false, 0, ws.OpText, []byte("caf\xc3")), frame(true, 0, ws.OpContinuation, []byte("\x28"))...))
		a.drain()
	}},
	{"no mask", func(a *attacker) {
		a.upgrade()
		a.write(ws.MustCompileFrame(ws.NewTextFrame([]byte("bare"))))
		a.drain()
	}},
	{"reserved bits and opcodes", func(a *attacker) {
		a.upgrade()
		a.write(frame(true, byte(rand.IntN(8)), ws.OpCode(rand.IntN(16)), []byte("?")))
		a.drain()
	}},
	{"many tiny messages", func(a *attacker) {
		tiny := bytes.Repeat(frame(true, 0, ws.OpText, []byte("t")), 100)
		for a.upgrade(); a.write(tiny) && a.pause(10*time.Millisecond); {
		}
	}},
	{"a message in a frame per byte", func(a *attacker) {
		a.upgrade()
		for a.ctx.Err() == nil {
			a.write(frame(false, 0, ws.OpText, []byte("x")))
			for range 200 {
				a.write(frame(false, 0, ws.OpContinuation, []byte("y")))
			}
			if !a.write(frame(true, 0, ws.OpContinuation, nil)) || !a.pause(time.Millisecond) {
				return
			}
		}
	}},
}

// bomb is 64 MiB of nothing, deflated: a MiB, over and over.
var bomb = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		panic(err)
	}
	w.Write(make([]byte, 1<<20))
	w.Flush()
	return bytes.TrimSuffix(bytes.Repeat(b.Bytes(), 64), []byte("\x00\x00\xff\xff"))
})

// An attacker is one misbehaving client.
type attacker struct {
	ctx  context.Context // ends the attack
	conn net.Conn
	path string
}

// attack runs an attacker of kind k against addr until ctx ends, and calls connected each time it has a connection.
func attack(ctx context.Context, k kind, addr, path string, connected func()) {
	for ctx.Err() == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			pause(ctx, 10*time.Millisecond) // the backlog is full
			continue
		}
		conn.(*net.TCPConn).SetLinger(0) // no port of ours waits for the peer
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		connected()
		k.attack(&attacker{ctx, conn, path})
		stop()
		conn.Close()
		pause(ctx, 20*time.Millisecond)
	}
}

// pause waits and reports whether the attack goes on.
func (a *attacker) pause(d time.Duration) bool { return pause(a.ctx, d) }

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// linger holds the connection, without reading, for a while.
func (a *attacker) linger() { a.pause(time.Duration(500+rand.IntN(1000)) * time.Millisecond) }

// write reports whether the peer takes more. It gives up after a second.
func (a *attacker) write(b []byte) bool {
	a.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, err := a.conn.Write(b)
	return err == nil
}

// drain reads until the peer ends the connection, or has sent nothing for a second.
func (a *attacker) drain() {
	buf := make([]byte, 4<<10)
	for {
		a.conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := a.conn.Read(buf); err != nil {
			return
		}
	}
}

// head is a handshake that is in order.
func (a *attacker) head(more ...string) []byte {
	more = append(more, "\r\n")
	return []byte("GET " + a.path + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + strings.Join(more, "\r\n"))
}

// upgrade does the handshake, and reads its answer byte by byte.
func (a *attacker) upgrade(more ...string) {
	a.write(a.head(more...))
	a.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if resp, err := http.ReadResponse(bufio.NewReaderSize(bytewise{a.conn}, 16), nil); err == nil {
		resp.Body.Close()
	}
}

// bytewise never reads ahead.
type bytewise struct{ r io.Reader }

func (b bytewise) Read(p []byte) (int, error) { return b.r.Read(p[:1]) }

func random(n int) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rand.Uint64())
	}
	return b
}

// header is that of a masked frame of length n, with the mask 0.
func header(fin bool, rsv byte, op ws.OpCode, n int64) []byte {
	var b bytes.Buffer
	if err := ws.WriteHeader(&b, ws.Header{Fin: fin, Rsv: rsv, OpCode: op, Masked: true, Length: n}); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func frame(fin bool, rsv byte, op ws.OpCode, payload []byte) []byte {
	return append(header(fin, rsv, op, int64(len(payload))), payload...)
}

func closing(code ws.StatusCode, reason string) []byte {
	return frame(true, 0, ws.OpClose, ws.NewCloseFrameBody(code, reason))
}
