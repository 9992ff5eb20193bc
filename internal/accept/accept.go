// Package accept is the zero-copy acceptor: a net.Listener whose connections wait for their request in epoll, with a
// small record each, instead of in a goroutine of net/http.
//
// Once the head of a request is complete and is a WebSocket handshake in order, Config.Claim may take the connection
// over. Everything else comes out of Accept as a connection that first gives the bytes that were read. So does, at once,
// what does not begin like a GET request: TLS, HTTP/2, other methods.
//
// A connection that has not sent its head is in the list of its Listener; in the order of their deadlines, for all have
// the same time, so that one alarm.Deadline serves them all. From the list it is taken by whoever ends it, and only
// by one: its Input, its End, expire or Close.
package accept

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/wire"
)

const (
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// Config is the surroundings of a Listener. It is immutable.
type Config struct {
	Poller  *poll.Poller
	Timers  *alarm.Timers
	Clock   alarm.Clock
	Logger  *slog.Logger
	Timeout time.Duration // for the head of the request
	// HeadBytes is the size of that head. A longer one is left to net/http.
	HeadBytes int
	Refused   *limit.Counters // counts connections whose time was up; nil: nobody does
	// Waiting is the number of connections whose request is incomplete or that wait for Accept. Further ones stay in the
	// kernel's backlog.
	Waiting int
	// Claim is asked for each WebSocket handshake that is in order. It runs on the poller's goroutine and must not block.
	// True says that r's Conn was moved or closed.
	Claim func(r *Request) bool
	// Closed is called once, by Close.
	Closed func()
}

// A Request is a handshake to be claimed. It is valid until Claim returns.
type Request struct {
	Head  wire.Head
	Early []byte // what came behind the head
	Conn  *poll.Conn

	http *http.Request // nil until asked for
}

// HTTP is the request as net/http reads it, made when it is first asked for.
func (r *Request) HTTP() *http.Request {
	if r.http == nil {
		q, err := r.Head.Request()
		if err != nil {
			panic("accept: BUG: " + err.Error())
		}
		q.RemoteAddr = r.RemoteAddr()
		r.http = q
	}
	return r.http
}

// RemoteAddr is the peer's address, empty if it has gone.
func (r *Request) RemoteAddr() string {
	if a := r.Conn.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}

// A Listener accepts. Its methods are safe for concurrent use.
type Listener struct {
	cfg   Config
	ln    net.Listener // kept for its address, and so that the kernel's socket ends with it
	conn  poll.Conn    // accepts by a duplicate; not used if plain
	conns *poll.Group  // of waiting
	// plain says that ln cannot be accepted from by descriptor: its connections pass unseen.
	plain bool
	began time.Time

	backoff  alarm.Deadline
	deadline alarm.Deadline
	requests sync.Pool // of *Request

	mu          sync.Mutex // guards the following; not held in a system call or callback
	some        sync.Cond  // queue, closed or err has changed
	closed      bool
	err         error         // accepting has failed for good
	first, last *waiting      // by deadline
	armed       bool          // deadline is set, or about to be
	n           int           // waiting, in Claim, or in queue
	full        bool          // accepting is off because of n
	delay       time.Duration // of the last backoff; 0: accepted since
	queue       []*handed
}

// A waiting connection has not sent the whole head of its request.
type waiting struct {
	poll.Conn                // first, see waits
	due        time.Duration // after the Listener's began
	prev, next *waiting      // guarded by the Listener's mu
	listed     bool          // likewise
	part       *part         // owned by the poller's goroutine; nil unless a part of the head has come
}

// A part of a head.
type part struct {
	in      []byte
	scanned int // how much of in was looked at
}

// A handed connection is on its way to Accept.
type handed struct {
	d  *poll.Descriptor
	in []byte
}

// Listen takes ln over: its Close closes ln. A listener that is neither TCP nor a stream Unix socket, and any where there
// is no epoll, goes on as it is.
func Listen(ln net.Listener, cfg Config) (*Listener, error) {
	l := &Listener{cfg: cfg, ln: ln, began: cfg.Clock.Now()}
	l.some.L = &l.mu
	l.backoff.F = l.conn.Resume
	l.deadline.F = l.expire
	ok, err := cfg.Poller.Listen(&l.conn, ln, (*accepter)(l))
	if err != nil {
		return nil, fmt.Errorf("accept: listen: %w", err)
	}
	l.plain = !ok
	l.conns = cfg.Poller.Group((*waits)(l))
	l.conn.Resume()
	return l, nil
}

// Addr is the address of the listener that was taken over.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Accept waits for a connection that was not claimed.
func (l *Listener) Accept() (net.Conn, error) {
	if l.plain {
		return l.ln.Accept()
	}
	for {
		h, err := l.next()
		if err != nil {
			return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: err}
		}
		nc, err := h.d.NetConn()
		switch {
		case err == nil && nc.RemoteAddr() != nil:
			return &Conn{stream: nc.(stream), head: h.in}, nil
		case err == nil: // the peer has reset it; its request cannot be answered
			nc.Close()
		case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM):
			if l.putBack(h) {
				return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: err} // Temporary
			}
		default:
			l.cfg.Logger.Debug("accept: connection lost on its way", "err", err)
			h.d.Close()
		}
	}
}

// next waits for the first in the queue.
func (l *Listener) next() (*handed, error) {
	l.mu.Lock()
	for len(l.queue) == 0 && l.err == nil && !l.closed {
		l.some.Wait()
	}
	switch {
	case l.closed:
		l.mu.Unlock()
		return nil, net.ErrClosed
	case len(l.queue) == 0:
		err := l.err
		l.mu.Unlock()
		return nil, err
	}
	h := l.queue[0]
	l.queue[0] = nil
	if l.queue = l.queue[1:]; len(l.queue) == 0 {
		l.queue = nil
	}
	resume := l.leaveLocked(1)
	l.mu.Unlock()
	if resume {
		l.conn.Resume()
	}
	return h, nil
}

// putBack makes h the first in the queue again, and reports false if it closed h because the Listener is.
func (l *Listener) putBack(h *handed) bool {
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.queue = append([]*handed{h}, l.queue...)
		l.n++
	}
	l.mu.Unlock()
	if closed {
		h.d.Close()
	}
	return !closed
}

// leaveLocked notes that n connections are no longer the Listener's, and reports whether to accept again.
func (l *Listener) leaveLocked(n int) (resume bool) {
	l.n -= n
	if l.full && l.n < l.cfg.Waiting {
		l.full = false
		return true
	}
	return false
}

// Close stops accepting, and closes the connections that were neither claimed nor accepted.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &net.OpError{Op: "close", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.closed = true
	first, queue := l.first, l.queue
	l.first, l.last, l.queue = nil, nil, nil
	for w := first; w != nil; w = w.next {
		w.listed = false
	}
	l.some.Broadcast()
	l.mu.Unlock()
	if !l.plain {
		l.conn.Close()
		l.cfg.Timers.Clear(&l.backoff)
		l.cfg.Timers.Clear(&l.deadline)
	}
	closeChain(first)
	for _, h := range queue {
		h.d.Close()
	}
	err := l.ln.Close()
	if l.cfg.Closed != nil {
		l.cfg.Closed()
	}
	return err
}

// closeChain closes connections that were taken out of the list, and counts them.
func closeChain(w *waiting) (n int) {
	for w != nil {
		next := w.next // it is nobody else's any more
		w.next = nil
		w.Conn.Close()
		w = next
		n++
	}
	return n
}

// expire closes the connections whose time is up.
func (l *Listener) expire() {
	now := l.cfg.Clock.Now().Sub(l.began)
	l.mu.Lock()
	late := l.first
	for l.first != nil && l.first.due <= now {
		l.first.listed = false
		l.first = l.first.next
	}
	switch l.first {
	case late: // nobody is late
		late = nil
	case nil:
		l.last = nil
	default:
		l.first.prev.next = nil
		l.first.prev = nil
	}
	l.armed = l.first != nil
	var due time.Duration
	if l.armed {
		due = l.first.due
	}
	armed := l.armed
	l.mu.Unlock()
	n := closeChain(late)
	for range n {
		l.cfg.Refused.Count(limit.HandshakeTime)
	}
	l.mu.Lock()
	resume := l.leaveLocked(n)
	l.mu.Unlock()
	if resume {
		l.conn.Resume()
	}
	if armed {
		l.cfg.Timers.Set(&l.deadline, due-now)
	}
}

// accepter is a Listener as the poller sees it.
type accepter Listener

// Accepted lets a connection wait for its request.
func (a *accepter) Accepted(d *poll.Descriptor) (more bool) {
	l := (*Listener)(a)
	w := &waiting{due: l.cfg.Clock.Now().Sub(l.began) + l.cfg.Timeout, listed: true}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		d.Close()
		return false
	}
	l.delay = 0
	w.prev = l.last
	if l.last != nil {
		l.last.next = w
	} else {
		l.first = w
	}
	l.last = w
	l.n++
	l.full = l.n >= l.cfg.Waiting
	more = !l.full
	arm := !l.armed
	l.armed = true
	l.mu.Unlock()
	if arm {
		l.cfg.Timers.Set(&l.deadline, l.cfg.Timeout)
	}
	if err := l.conns.AttachDescriptor(&w.Conn, d); err != nil {
		l.cfg.Logger.Warn("accept: connection refused", "err", err)
		if l.take(w) {
			l.gone()
		}
		return more
	}
	l.mu.Lock()
	stray := l.closed && !w.listed // Close may have met w before it was attached
	l.mu.Unlock()
	if stray {
		w.Conn.Close()
	}
	return more
}

// AcceptFailed waits for a while, or gives up if it is the listener itself that is at fault.
func (a *accepter) AcceptFailed(err error) {
	l := (*Listener)(a)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EBADF) || errors.Is(err, syscall.ENOTSOCK) {
		l.mu.Lock()
		l.err = err
		l.some.Broadcast()
		l.mu.Unlock()
		return
	}
	l.mu.Lock()
	first := l.delay == 0
	l.delay = min(max(2*l.delay, minBackoff), maxBackoff)
	delay := l.delay
	l.mu.Unlock()
	if first {
		l.cfg.Logger.Warn("accept: trying again", "listener", l.Addr(), "err", err)
	}
	l.cfg.Timers.Set(&l.backoff, delay)
}

// take takes w out of the list and reports whether it was in. It still counts.
func (l *Listener) take(w *waiting) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !w.listed {
		return false
	}
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		l.last = w.prev
	}
	w.prev, w.next, w.listed = nil, nil, false
	return true
}

// gone notes that a connection, which was taken, is no longer the Listener's.
func (l *Listener) gone() {
	l.mu.Lock()
	resume := l.leaveLocked(1)
	l.mu.Unlock()
	if resume {
		l.conn.Resume()
	}
}

// waits is a Listener as the poller sees it for the connections that wait: each is the first field of a waiting.
type waits Listener

const _ = -unsafe.Offsetof(waiting{}.Conn) // does not compile unless it is 0

// Input collects the head of the request.
func (a *waits) Input(c *poll.Conn, _ *poll.Worker, p []byte) (more bool) {
	l, w := (*Listener)(a), (*waiting)(unsafe.Pointer(c))
	in, scanned := p, 0
	if w.part != nil {
		w.part.in = append(w.part.in, p...)
		in, scanned = w.part.in, w.part.scanned
	}
	n, state := wire.ScanHead(in, scanned)
	if most := l.cfg.HeadBytes; n > most || state == wire.HeadPartial && len(in) > most {
		state = wire.HeadOther
	}
	if state == wire.HeadPartial {
		if w.part == nil {
			w.part = &part{in: append([]byte(nil), p...)}
		}
		w.part.scanned = len(in)
		return true
	}
	if !l.take(w) {
		return false // Close or expire has it
	}
	copied := w.part != nil // else in is the poller's
	w.part = nil
	if state == wire.HeadComplete {
		if l.claimed(w, in, n) {
			l.gone()
			return false
		}
	}
	if !copied {
		in = append([]byte(nil), in...)
	}
	l.handOver(w, in)
	return false
}

// claimed offers the handshake to Claim, if in begins with one, of n bytes.
func (l *Listener) claimed(w *waiting, in []byte, n int) bool {
	head, ok := wire.ParseHandshake(in[:n:n])
	if !ok {
		return false
	}
	q, _ := l.requests.Get().(*Request)
	if q == nil {
		q = new(Request)
	}
	*q = Request{Head: head, Early: in[n:], Conn: &w.Conn}
	ok = l.cfg.Claim(q)
	*q = Request{}
	l.requests.Put(q)
	return ok
}

// handOver gives the connection, and what was read of it, to Accept.
func (l *Listener) handOver(w *waiting, in []byte) {
	d, err := l.cfg.Poller.Detach(&w.Conn)
	if err != nil { // the poller is being closed
		w.Conn.Close()
		l.gone()
		return
	}
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.queue = append(l.queue, &handed{d: d, in: in})
		l.some.Signal()
	}
	l.mu.Unlock()
	if closed {
		d.Close()
	}
}

// End forgets a connection that sent no request.
func (a *waits) End(c *poll.Conn, _ *poll.Worker, _ error) {
	l, w := (*Listener)(a), (*waiting)(unsafe.Pointer(c))
	if !l.take(w) {
		return
	}
	w.part = nil
	c.Close()
	l.gone()
}

// Writable is not asked for.
func (*waits) Writable(*poll.Conn) { panic("accept: BUG: nothing was written") }

// Waiting is the number of connections that are the Listener's: neither claimed nor accepted.
func (l *Listener) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}
