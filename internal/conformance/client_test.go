package conformance

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// A client is one WebSocket seen from outside. It hides nothing that the server
// sends, and sends whatever it is told to.
type client struct {
	conn   *net.TCPConn
	silent bool          // does not answer Close frames
	ended  chan struct{} // closed when nothing more will be received

	// reading is set while the reader waits for the kernel. If nothing has arrived
	// there either, everything sent so far has been taken in.
	reading atomic.Bool

	// sent is bytes written since the player last found everything still; it is the
	// player's but for what the reader answers.
	sent atomic.Int64

	mu     sync.Mutex // guards the following
	got    []any      // received, not reported
	total  int        // received so far
	over   bool       // got is complete
	closed bool       // a Close frame was sent
}

// connect opens a WebSocket. If the server refuses it client is nil, and resp is
// the answer with its body read into memory.
func connect(addr, path string, protocols []string, silent bool) (c *client, resp *http.Response, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(impatience)) // of the handshake
	c = &client{conn: conn.(*net.TCPConn), silent: silent, ended: make(chan struct{})}
	r := bufio.NewReader((*watched)(c))
	const key = "dGhlIHNhbXBsZSBub25jZQ==" // RFC 6455 §1.3
	request := "GET " + path + " HTTP/1.1\r\nHost: " + addr + "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + "\r\n"
	if len(protocols) > 0 {
		request += "Sec-WebSocket-Protocol: " + strings.Join(protocols, ", ") + "\r\n"
	}
	if _, err = io.WriteString(conn, request+"\r\n"); err == nil {
		resp, err = http.ReadResponse(r, nil)
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer conn.Close()
		body, err := io.ReadAll(resp.Body)
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return nil, resp, err
	}
	if got := resp.Header.Get("Sec-WebSocket-Accept"); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		conn.Close()
		return nil, nil, fmt.Errorf("wrong Sec-WebSocket-Accept %q", got)
	}
	_ = conn.SetDeadline(time.Time{})
	go c.read(r)
	return c, resp, nil
}

// watched is the client as the reader of its connection.
type watched client

func (w *watched) Read(p []byte) (int, error) {
	w.reading.Store(true)
	defer w.reading.Store(false)
	return w.conn.Read(p)
}

// calm reports whether everything that has come from the server is in got. state
// is how far both directions are.
func (c *client) calm() (state string, calm bool) {
	c.mu.Lock()
	received, over := c.total, c.over
	c.mu.Unlock()
	if over {
		return fmt.Sprint(received), true
	}
	waits := c.reading.Load()
	arrived, unsent := c.kernel()
	return fmt.Sprint(received, unsent), waits && !arrived && c.reading.Load()
}

// take removes up to n received values, all if n is 0, and reports whether
// nothing more will come.
func (c *client) take(n int) (values []any, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n == 0 || n > len(c.got) {
		n = len(c.got)
	}
	values = append([]any{}, c.got[:n]...)
	c.got = c.got[n:]
	return values, c.over && len(c.got) == 0
}

// has reports whether n values wait, or all there will ever be.
func (c *client) has(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got) >= n || c.over
}

func (c *client) put(v object) {
	c.mu.Lock()
	c.got = append(c.got, v)
	c.total++
	c.mu.Unlock()
}

var errViolation = errors.New("the server broke the protocol")

// read takes in what the server sends until the connection ends.
func (c *client) read(r io.Reader) {
	defer close(c.ended)
	var message []byte
	var kind ws.OpCode
	err := func() error {
		for {
			h, err := ws.ReadHeader(r)
			if err != nil {
				if err != io.EOF && !isNetwork(err) {
					return errViolation
				}
				return err
			}
			if h.Rsv != 0 || h.Masked || h.OpCode.IsControl() && (!h.Fin || h.Length > 125) {
				return errViolation
			}
			p := make([]byte, h.Length)
			if _, err := io.ReadFull(r, p); err != nil {
				return err
			}
			switch h.OpCode {
			case ws.OpText, ws.OpBinary, ws.OpContinuation:
				if h.OpCode != ws.OpContinuation {
					kind, message = h.OpCode, nil
				}
				if message = append(message, p...); h.Fin {
					c.put(messageSeen(kind, message))
				}
			case ws.OpPing:
				c.put(object{"ping": string(p)})
				c.send(ws.OpPong, p)
			case ws.OpPong:
				c.put(object{"pong": string(p)})
			case ws.OpClose:
				seen := object{"code": 1005.0, "reason": ""}
				if len(p) >= 2 {
					seen["code"], seen["reason"] = float64(int(p[0])<<8|int(p[1])), string(p[2:])
				}
				c.mu.Lock()
				answers := !c.silent && !c.closed
				c.mu.Unlock()
				c.put(object{"close": seen})
				if answers {
					c.send(ws.OpClose, p)
				}
			}
		}
	}()
	if err == errViolation {
		c.put(object{"violation": true})
	}
	c.put(object{"eof": true})
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.conn.Close()
}

// isNetwork reports whether err is the connection's end rather than nonsense.
func isNetwork(err error) bool {
	var ne *net.OpError
	return errors.As(err, &ne) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// messageSeen is how a received message is reported.
func messageSeen(kind ws.OpCode, p []byte) object {
	name := "bin"
	if kind == ws.OpText {
		name = "text"
		var v object
		if bytes.HasPrefix(p, []byte("{")) && json.Unmarshal(p, &v) == nil {
			return object{"json": v}
		}
	}
	switch {
	case len(p) > 200:
		return object{"kind": name, "len": float64(len(p)), "fnv": digest(p)}
	case kind == ws.OpText && utf8.Valid(p):
		return object{"text": string(p)}
	}
	return object{name: base64.StdEncoding.EncodeToString(p)}
}

// send sends one whole frame.
func (c *client) send(op ws.OpCode, p []byte) { c.sendFrame(op, true, 0, p, false) }

// sendFrame sends a frame as it is told.
func (c *client) sendFrame(op ws.OpCode, fin bool, rsv byte, p []byte, bare bool) {
	h := ws.Header{Fin: fin, Rsv: rsv, OpCode: op, Length: int64(len(p))}
	if !bare {
		h.Masked, h.Mask = true, ws.NewMask()
		p = bytes.Clone(p)
		ws.Cipher(p, h.Mask, 0)
	}
	var b bytes.Buffer
	if err := ws.WriteHeader(&b, h); err != nil {
		panic("BUG: " + err.Error())
	}
	b.Write(p)
	c.mu.Lock()
	if op == ws.OpClose {
		c.closed = true
	}
	c.mu.Unlock()
	c.write(b.Bytes())
}

// write sends bytes. Whether a write to a dying connection fails is a matter of
// luck, so its error is not looked at.
func (c *client) write(p []byte) {
	n, _ := c.conn.Write(p)
	c.sent.Add(int64(n))
}

// sendClose sends a Close frame; code 0 is an empty one.
func (c *client) sendClose(code int, reason string) {
	var p []byte
	if code != 0 {
		p = append([]byte{byte(code >> 8), byte(code)}, reason...)
	}
	c.send(ws.OpClose, p)
}

// sendText sends text n times with {i} counting.
func (c *client) sendText(text string, n int) {
	for i := range max(n, 1) {
		c.send(ws.OpText, []byte(strings.ReplaceAll(text, "{i}", strconv.Itoa(i))))
	}
}
