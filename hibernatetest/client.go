package hibernatetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/registry"
)

// DialOptions say how a client connects. The zero value is ready for use. What the
// class's Route makes of the URL and the headers - the object, tags, an attachment -
// is up to the Route.
type DialOptions struct {
	// Header goes with the request.
	Header http.Header
	// Protocols are the subprotocols offered, the preferred one first.
	Protocols []string
}

// A HandshakeError is an answer to a handshake other than 101.
type HandshakeError struct {
	Status int
	Header http.Header
	Body   string // at most 64 KiB of it
}

// Error is the status and the body.
func (e *HandshakeError) Error() string {
	return fmt.Sprintf("status %d: %s", e.Status, strings.TrimSpace(e.Body))
}

// A Client is a WebSocket as its peer sees it. It answers pings and a Close by
// itself. Its methods fail the test when something else comes than is expected, or
// nothing: at once if nobody is left who could send it, otherwise after
// [Options].Patience.
type Client struct {
	k      *Kit
	name   string
	conn   net.Conn
	header http.Header // of the 101
	proto  string
	news   chan struct{} // something has come; capacity 1
	dirty  bool          // owned by the test: what was sent since the last sync may not have been read
	pings  uint64        // owned by the test: sent by sync
	gone   bool          // owned by the test: the server has forgotten it, and may leave the connection open

	writing sync.Mutex // held over a write to conn

	mu      sync.Mutex // guards the following
	more    sync.Cond  // of the reader, on mu: it may go on
	paused  bool
	severed string   // why nothing counts that comes from now on
	items   []item   // received and not expected yet
	size    int      // bytes of items
	seen    []string // the last few that were expected, for failures
	pong    uint64   // the last ping that was answered
	closing bool     // we have sent a Close, or ended our side
	closed  bool     // a Close was received
	ended   error    // the connection is over: io.EOF or why
}

// maxQueue is how many bytes a client takes before its test asks for them.
const maxQueue = 64 << 20

// An item is a message, a Close, or the end of the connection.
type item struct {
	message hibernate.Message
	code    int // not 0: of a Close; 1006: the connection ended without
	reason  string
}

func (i item) String() string {
	switch {
	case i.code == 1006:
		return fmt.Sprintf("the end of the connection without a Close frame (%s)", i.reason)
	case i.code != 0:
		return fmt.Sprintf("close %d %q", i.code, i.reason)
	case i.message.Kind == hibernate.TextMessage:
		return "text " + quote(i.message.Data)
	}
	return fmt.Sprintf("binary message of %d bytes, %s", len(i.message.Data), dump(i.message.Data))
}

// Dial connects to a path of the kit's server, with a query if need be, and returns
// once the handshake is done. An answer other than 101 fails the test. The
// connection is cut at the end of the test.
func (k *Kit) Dial(path string) *Client {
	k.t.Helper()
	return k.DialWith(path, nil)
}

// DialWith is [Kit.Dial] with options.
func (k *Kit) DialWith(path string, o *DialOptions) *Client {
	k.t.Helper()
	c, err := k.TryDial(path, o)
	if err != nil {
		k.fatalf("Dial %s: %v", path, err)
	}
	return c
}

// TryDial is [Kit.DialWith] that returns an error instead of failing the test: a
// *[HandshakeError] if the answer is not 101.
func (k *Kit) TryDial(path string, o *DialOptions) (*Client, error) {
	if o == nil {
		o = &DialOptions{}
	}
	c := &Client{k: k, name: fmt.Sprintf("client %d at %s", len(k.clients)+1, path), news: make(chan struct{}, 1), header: http.Header{}, dirty: true}
	c.more.L = &c.mu
	var refused *HandshakeError
	var unreadable error
	d := ws.Dialer{
		Timeout:   k.opt.Patience,
		Header:    ws.HandshakeHeaderHTTP(o.Header),
		Protocols: o.Protocols,
		OnHeader: func(key, value []byte) error {
			c.header.Add(string(key), string(value))
			return nil
		},
		OnStatusError: func(_ int, _ []byte, resp io.Reader) {
			refused, unreadable = readRefusal(resp)
		},
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), k.opt.Patience, errPatience)
	defer cancel()
	conn, br, hs, err := d.Dial(ctx, "ws://"+k.addr+path)
	var early []byte
	switch {
	case refused != nil:
		k.log.tell(c.name, "is refused: %v", refused)
		return nil, refused
	case unreadable != nil:
		return nil, unreadable
	case ctx.Err() != nil:
		return nil, fmt.Errorf("no answer in %v%s", k.opt.Patience, k.atWork())
	case err != nil:
		return nil, err
	case br != nil:
		early, _ = br.Peek(br.Buffered()) // never fails: they are there
		early = bytes.Clone(early)
	}
	c.conn, c.proto = conn, hs.Protocol
	k.log.tell(c.name, "is connected")
	k.clients = append(k.clients, c)
	k.readers.Add(1)
	go c.read(early)
	return c, nil
}

// readRefusal reads an HTTP response.
func readRefusal(r io.Reader) (*HandshakeError, error) {
	resp, err := http.ReadResponse(bufio.NewReader(r), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // as much as there is
	return &HandshakeError{resp.StatusCode, resp.Header, string(body)}, nil
}

// Protocol is the subprotocol that was agreed on, empty if none was.
func (c *Client) Protocol() string { return c.proto }

// Header is that of the 101 answer, without the names that belong to the handshake itself.
func (c *Client) Header() http.Header { return c.header }

// Send sends a text message. It waits only while the connection takes no more.
func (c *Client) Send(text string) {
	c.k.t.Helper()
	c.send(ws.OpText, []byte(text), "sends text %s", quote(text))
}

// SendBinary sends a binary message.
func (c *Client) SendBinary(b []byte) {
	c.k.t.Helper()
	c.send(ws.OpBinary, b, "sends %d bytes, %s", len(b), dump(b))
}

// Close sends a Close frame with a code, or an empty one if code is 0. The server's
// answer comes as any Close does: see [Client.ExpectClose].
func (c *Client) Close(code int, reason string) {
	c.k.t.Helper()
	var body []byte
	if code != 0 {
		body = ws.NewCloseFrameBody(ws.StatusCode(code), reason)
	}
	c.send(ws.OpClose, body, "closes with %d %q", code, reason)
}

// Drop ends the connection without a Close frame, as a lost network does. The object
// is told of code 1006.
func (c *Client) Drop() {
	c.k.t.Helper()
	c.k.log.tell(c.name, "drops the connection")
	c.mu.Lock()
	c.closing = true
	c.severed = "it was dropped"
	c.paused = false
	c.more.Broadcast()
	c.mu.Unlock()
	// By half: the end that comes back tells that the server has noticed.
	if half, ok := c.conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		_ = c.conn.Close()
	}
	_ = c.conn.SetReadDeadline(time.Time{})
}

// Pause stops reading, as a client with a slow network or a stopped program does.
// The system's buffers still take what comes, often some megabytes, before
// the runtime notices. Then the rest waits there, until there is more of it than
// [hibernate.Limits].SendQueue and [hibernate.ClassOptions].SlowReader decides.
func (c *Client) Pause() {
	c.k.log.tell(c.name, "is paused")
	c.mu.Lock()
	c.paused = true
	c.mu.Unlock()
	c.setReadBuffer(256 << 10)                  // the runtime notices the sooner; with less, whole segments of the loopback are dropped
	_ = c.conn.SetReadDeadline(time.Unix(1, 0)) // ends a read that waits
}

// Resume reads on.
func (c *Client) Resume() {
	c.k.log.tell(c.name, "is resumed")
	c.setReadBuffer(1 << 20)
	c.mu.Lock()
	c.paused = false
	_ = c.conn.SetReadDeadline(time.Time{})
	c.more.Broadcast()
	c.mu.Unlock()
}

func (c *Client) setReadBuffer(n int) {
	if t, ok := c.conn.(*net.TCPConn); ok {
		_ = t.SetReadBuffer(n)
	}
}

func (c *Client) send(op ws.OpCode, body []byte, format string, args ...any) {
	c.k.t.Helper()
	c.mu.Lock()
	severed, closing, ended := c.severed, c.closing, c.ended
	c.mu.Unlock()
	what := fmt.Sprintf(format, args...)
	switch {
	case severed != "":
		c.k.fatalf("%s %s: its connection is gone: %s", c.name, what, severed)
	case closing:
		c.k.fatalf("%s %s: it has sent a Close before", c.name, what)
	case ended != nil:
		c.k.fatalf("%s %s: the connection has ended: %v%s", c.name, what, ended, c.received())
	}
	c.k.log.tell(c.name, "%s", what)
	c.dirty = true
	if err := c.write(op, body); err != nil {
		c.k.fatalf("%s %s: %v%s", c.name, what, err, c.received())
	}
}

// write writes one frame. It may be called by any goroutine.
func (c *Client) write(op ws.OpCode, body []byte) error {
	frame, err := ws.CompileFrame(ws.MaskFrame(ws.NewFrame(op, true, bytes.Clone(body))))
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if op == ws.OpClose {
		c.mu.Lock()
		was := c.closing
		c.closing = true
		c.mu.Unlock()
		if was {
			return nil
		}
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.k.opt.Patience)); err != nil {
		return err
	}
	_, err = c.conn.Write(frame)
	return err
}

// sever ends the connection at once: what has not come has never left the server.
func (c *Client) sever(why string) {
	c.mu.Lock()
	if c.severed == "" {
		c.severed = why
	}
	c.more.Broadcast()
	c.mu.Unlock()
	_ = c.conn.Close()
}

// read is the reader's goroutine.
func (c *Client) read(in []byte) {
	defer c.k.readers.Done()
	chunk := make([]byte, 32<<10)
	for {
		rest, err := c.decode(in)
		in = in[:copy(in, rest)]
		if err == nil {
			c.mu.Lock()
			for (c.paused || c.size > maxQueue) && c.severed == "" {
				c.more.Wait()
			}
			c.mu.Unlock()
			var n int
			if n, err = c.conn.Read(chunk); n > 0 {
				in = append(in, chunk[:n]...)
				continue
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue // Pause
			}
		}
		if err != nil {
			_ = c.conn.Close()
			c.end(err)
			return
		}
	}
}

// decode takes the whole frames out of in.
func (c *Client) decode(in []byte) (rest []byte, err error) {
	for {
		r := bytes.NewReader(in)
		h, err := ws.ReadHeader(r)
		if err == io.EOF || err == io.ErrUnexpectedEOF || err == nil && h.Length > int64(r.Len()) {
			return in, nil // not all of it is there
		}
		if err == nil && (h.Masked || !h.Fin || h.Rsv != 0) {
			err = fmt.Errorf("the server sent a frame with the header %+v", h)
		}
		if err != nil {
			return in, err
		}
		at := len(in) - r.Len()
		body := in[at : at+int(h.Length)]
		in = in[at+int(h.Length):]
		switch h.OpCode {
		case ws.OpText:
			c.take(item{message: hibernate.Message{Kind: hibernate.TextMessage, Data: bytes.Clone(body)}})
		case ws.OpBinary:
			c.take(item{message: hibernate.Message{Kind: hibernate.BinaryMessage, Data: bytes.Clone(body)}})
		case ws.OpPing:
			_ = c.write(ws.OpPong, body) // an error comes back from reading
		case ws.OpPong:
			if len(body) == 8 {
				c.mu.Lock()
				c.pong = binary.BigEndian.Uint64(body)
				c.mu.Unlock()
				c.tell()
			}
		case ws.OpClose:
			code, reason := 1005, ""
			if len(body) >= 2 {
				status, text := ws.ParseCloseFrameData(body)
				code, reason = int(status), text
			}
			c.take(item{code: code, reason: reason})
			if len(body) > 2 {
				body = body[:2]
			}
			_ = c.write(ws.OpClose, body) // does nothing if ours was first
		default:
			return in, fmt.Errorf("the server sent a frame with opcode %d", h.OpCode)
		}
	}
}

func (c *Client) take(i item) {
	c.mu.Lock()
	if c.severed == "" {
		c.items = append(c.items, i)
		c.closed = c.closed || i.code != 0
		c.size += len(i.message.Data)
	}
	c.mu.Unlock()
	c.tell()
}

func (c *Client) end(err error) {
	c.mu.Lock()
	c.ended = err
	if c.severed == "" && !c.closed {
		c.items = append(c.items, item{code: 1006, reason: err.Error()})
	}
	c.mu.Unlock()
	c.tell()
}

func (c *Client) tell() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

// sync waits until the server has taken in what the client sent, and reports
// whether it has before the deadline. A pong tells: it comes behind what
// was sent before the ping has been handled. Of a connection that ends its
// end tells.
func (c *Client) sync(deadline time.Time, force bool) bool {
	c.mu.Lock()
	paused, closing, ended, severed := c.paused, c.closing, c.ended != nil, c.severed != "" && !c.closing
	c.mu.Unlock()
	switch {
	case ended || severed || paused || c.gone:
		return true
	case closing:
		over := func() bool { return c.ended != nil }
		if c.until(earlier(deadline, time.Now().Add(50*time.Millisecond)), over) {
			return true
		}
		// A class with ManualCloseReply may never answer. Then its object forgets the
		// socket, when its handler has run.
		limit := time.Now().Add(min(time.Second, c.k.opt.Patience))
		c.gone = c.until(earlier(deadline, limit), func() bool { return over() || c.k.forgotten() })
		return time.Now().Before(deadline)
	case !c.dirty && !force:
		return true
	}
	c.pings++
	n := c.pings
	if c.write(ws.OpPing, binary.BigEndian.AppendUint64(nil, n)) == nil &&
		!c.until(deadline, func() bool { return c.pong >= n || c.ended != nil || c.closing }) {
		return false
	}
	c.dirty = false
	return true
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// forgotten reports whether the runtime has no more sockets than the kit has clients
// that are not closing.
func (k *Kit) forgotten() bool {
	var open int64
	for _, c := range k.clients {
		if c.mu.TryLock() { // the caller's is locked, and closing
			if !c.closing && c.ended == nil && c.severed == "" {
				open++
			}
			c.mu.Unlock()
		}
	}
	return k.rt.Stats().Sockets <= open
}

// until waits for ok, which is called with the lock held, and reports whether it
// came before the deadline.
func (c *Client) until(deadline time.Time, ok func() bool) bool {
	for {
		c.mu.Lock()
		done := ok()
		c.mu.Unlock()
		if done {
			return true
		}
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		timer := time.NewTimer(min(left, 20*time.Millisecond))
		select {
		case <-c.news:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// next is the next thing received.
func (c *Client) next(want string) item {
	c.k.t.Helper()
	deadline := time.Now().Add(c.k.opt.Patience)
	there := func() bool { return len(c.items) > 0 }
	for !c.until(earlier(deadline, time.Now().Add(50*time.Millisecond)), there) {
		c.mu.Lock()
		paused, severed := c.paused, c.severed
		c.mu.Unlock()
		switch {
		case severed != "":
			c.k.fatalf("%s: want %s, and its connection is gone: %s", c.name, want, severed)
		case paused:
			c.k.fatalf("%s: want %s, and it is paused: Resume it first%s", c.name, want, c.received())
		case c.over() && !c.until(time.Now(), there):
			c.k.fatalf("%s: want %s, and nothing came. Nothing is under way that could still send it.%s%s", c.name, want, c.received(), c.k.hint())
		case time.Now().After(deadline):
			c.k.fatalf("%s: want %s, and nothing came in %v%s%s", c.name, want, c.k.opt.Patience, c.received(), c.k.atWork())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.items[0]
	c.items = slices.Delete(c.items, 0, 1)
	c.size -= len(i.message.Data)
	if len(c.seen) == 5 {
		c.seen = slices.Delete(c.seen, 0, 1)
	}
	c.seen = append(c.seen, i.String())
	c.more.Broadcast()
	return i
}

// over reports whether nothing can come any more by itself: everything is quiet, no
// handler is in Await, and no goroutine of a handler is left.
func (c *Client) over() bool {
	const soon = 100 * time.Millisecond
	if !c.k.settled(soon) || c.k.reg.Under() || len(c.k.goroutines()) > 0 {
		return false
	}
	return c.k.settled(soon) && c.sync(time.Now().Add(soon), true)
}

// hint tells what waits for the clock.
func (k *Kit) hint() string {
	if next, ok := k.reg.NextAlarm(); ok {
		due := time.UnixMilli(next.Due)
		return fmt.Sprintf("\n\tan alarm of class %s is due in %v of the kit's clock: see Advance and RunAlarm", next.Class, due.Sub(k.clock.Now()))
	}
	return ""
}

// received tells what came before.
func (c *Client) received() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seen) == 0 {
		return "\n\tnothing was received before"
	}
	return "\n\treceived before: " + strings.Join(c.seen, ", ")
}

// mismatch fails the test for what came instead.
func (c *Client) mismatch(want string, got item) {
	c.k.t.Helper()
	hint := c.k.evicted()
	if data := string(got.message.Data); strings.Contains(data, registry.Poison[:3]) || len(data) > 1 && strings.HasPrefix(registry.Poison, data) {
		hint = "\n\tThese are the bytes that the kit writes over a message once its handler has returned or awaits: a slice of Message.Data was kept. Copy it."
	}
	c.k.fatalf("%s:\n\t got %s\n\twant %s%s", c.name, got, want, hint)
}

// Expect takes the next messages, which must be these texts.
func (c *Client) Expect(texts ...string) {
	c.k.t.Helper()
	for n, text := range texts {
		want := "text " + quote(text)
		if len(texts) > 1 {
			want += fmt.Sprintf(" (%d of %d)", n+1, len(texts))
		}
		got := c.next(want)
		if got.code != 0 || got.message.Kind != hibernate.TextMessage || string(got.message.Data) != text {
			c.mismatch(want, got)
		}
	}
}

// ExpectBinary takes the next messages, which must be binary and these.
func (c *Client) ExpectBinary(messages ...[]byte) {
	c.k.t.Helper()
	for _, b := range messages {
		want := item{message: hibernate.Binary(b)}.String()
		got := c.next(want)
		if got.code != 0 || got.message.Kind != hibernate.BinaryMessage || !bytes.Equal(got.message.Data, b) {
			c.mismatch(want, got)
		}
	}
}

// Next takes the next message, for tests that look at it themselves. A Close fails the
// test. The message's Data is the caller's.
func (c *Client) Next() hibernate.Message {
	c.k.t.Helper()
	got := c.next("a message")
	if got.code != 0 {
		c.mismatch("a message", got)
	}
	return got.message
}

// ExpectNothing fails the test if, once everything has settled, something has been
// received that was not expected.
func (c *Client) ExpectNothing() {
	c.k.t.Helper()
	c.mu.Lock()
	paused := c.paused
	c.mu.Unlock()
	if paused {
		c.k.fatalf("%s: want nothing, and it is paused: what may have come is not known. Resume it first", c.name)
	}
	c.k.settle(c.name + ": ExpectNothing")
	if !c.sync(time.Now().Add(c.k.opt.Patience), true) {
		c.k.fatalf("%s: ExpectNothing: the server did not answer in %v%s", c.name, c.k.opt.Patience, c.k.atWork())
	}
	c.mu.Lock()
	var first item
	n := len(c.items)
	if n > 0 {
		first = c.items[0]
	}
	c.mu.Unlock()
	if n > 0 {
		c.k.fatalf("%s: want nothing, and %d things came; the first is %s", c.name, n, first)
	}
}

// ExpectClose takes a Close with the given code, and returns its reason. 1005 is a
// Close without a code, and 1006 the end of the connection without a Close frame.
func (c *Client) ExpectClose(code int) (reason string) {
	c.k.t.Helper()
	want := fmt.Sprintf("close %d", code)
	if code == 1006 {
		want = "the end of the connection without a Close frame"
	}
	got := c.next(want)
	if got.code != code {
		c.mismatch(want, got)
	}
	return got.reason
}
