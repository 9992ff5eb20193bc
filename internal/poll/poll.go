// Package poll tells when connections can be read or written, and holds nothing for those that are silent.
//
// On Linux a connection is a raw descriptor: [Group.Attach] duplicates it, closes the net.Conn, and registers the
// duplicate with epoll. At rest there is a [Conn] inside the owner's record and one table entry; no goroutine, no buffer,
// no net.Conn. Connections without a descriptor of their own (TLS, net.Pipe), and all connections on other systems, are
// kept as net.Conn and cost a reading goroutine each. Owners see one behaviour; the differences are these two:
//
//   - What Write accepts is in the kernel with descriptors, and in a bounded buffer of this package otherwise.
//     After Close the kernel sends what it has; the buffer is given a second to leave.
//   - With descriptors Writable and Input come from one goroutine, unless an Input was detached from it (see [Worker]);
//     otherwise they may run beside each other.
//
// # Descriptors
//
// Every descriptor is registered edge-triggered. A level-triggered one cannot be silenced: EPOLLHUP and EPOLLERR are
// reported whatever the mask, so a connection that is not being read and whose peer resets would wake the loop for ever.
// An edge is reported once, and again after every EPOLL_CTL_MOD, for which the kernel looks at the readiness anew.
// From that follows everything else:
//
//   - Pausing (Input returns false) is a bit. Only if an edge comes while it is set, the edge is kept as another bit.
//   - Resume clears the first bit; only if the second was set too, it asks the kernel again. An exchange of one
//     message and one answer therefore never calls epoll_ctl.
//   - A second edge during one pause takes EPOLLIN out of the mask, so that a peer that goes on sending costs no wake-up per segment.
//   - NotifyWritable sets a bit and asks again with EPOLLOUT in the mask: room that appeared before the call is reported too.
//   - After End nothing is read and nothing is unregistered: no edge comes any more.
//
// Two epoll_ctl calls from two goroutines may reach the kernel in the wrong order. So there is one performer at a time:
// whoever finds the "in flight" bit set leaves the bit "again", and the performer computes the mask from the state word
// and calls until nobody has. No lock is held across a system call.
//
// A read that does not fill the buffer has emptied the socket, unless the peer has shut down (EPOLLRDHUP): then it goes on
// to the end. A connection whose reads keep filling the buffer gives way to others after a bounded number.
//
// Lifetime is counted in the same word: whoever uses the number holds a reference, Close sets a bit, and the last
// one out takes the table entry away and closes the number. An event fetched before that and looked up afterwards
// carries the generation of its number and is dropped if a new connection has it.
//
// With the build tag portable Linux uses goroutines for every connection too, so that what other systems run can be
// tested there.
package poll

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Handler receives what happens to the connections of a [Group]. Which one it is, c tells: it is the first field of its
// owner's record, or the record is found by it in another way. Calls for one connection never overlap, except that Writable
// may run beside Input. They come on a goroutine of the poller, w, and must not block but as [Worker] allows. All methods
// of [Conn] may be called in them.
type Handler interface {
	// Input hands over newly read bytes, valid only during the call; the callee may overwrite them. It reports whether
	// to go on reading; after false nothing is read until Resume. A Resume that runs beside Input wins over its false,
	// so Input may be called again although the Resume came before the decision: be ready to answer false again. It may
	// even be called before a call that is detached from the loop has returned.
	Input(c *Conn, w *Worker, p []byte) (more bool)
	// End says that no input will come any more: io.EOF, or the read error. It is called once, and not
	// after Close has been called. Writing may still be possible.
	End(c *Conn, w *Worker, err error)
	// Writable says that a Write which took less than everything may be tried again, or will now tell its
	// error. It is called once per NotifyWritable; several of these before the call are one.
	Writable(c *Conn)
}

// Options configure a Poller. The zero value works.
type Options struct {
	Loops      int          // epoll loops, a goroutine each, each for its share of the connections; 0 = 1
	Goroutines bool         // serve every connection by goroutines, also where epoll exists
	BufferSize int          // largest input of one Input call; 0 = 64 KiB, one buffer per loop (at most 4 KiB per connection served by a goroutine)
	Logger     *slog.Logger // nil = slog.Default()

	// KeepAlive is the idle time before TCP asks whether the peer is there, and the time between two of its questions.
	// 0 = 15 s for connections whose keep-alive was off, and what they have for others; negative = what they have.
	KeepAlive time.Duration
	// UserTimeout is how long TCP goes on without an acknowledgement of what it sent, keep-alive included, or without
	// room at the peer for more. On Linux only. 0 = 2 min; negative = what the system does.
	UserTimeout time.Duration
}

// Stats counts what a Poller has done since New.
type Stats struct {
	Conns    int    // attached now
	Waits    uint64 // rounds of the loops
	Events   uint64 // readiness events that reached a connection
	Controls uint64 // epoll_ctl calls that changed a registration
}

// A Poller watches connections. It is safe for concurrent use.
type Poller struct {
	log                    *slog.Logger
	bufferSize             int
	keepAlive, userTimeout time.Duration // as in Options, with defaults
	platform                             // what the system offers: epoll, or nothing

	active sync.WaitGroup // connections not yet released, and the goroutines serving them

	mu         sync.Mutex // guards the following, and the table in platform; held only for arithmetic
	closed     bool
	conns      int // attached
	goroutines map[*goConn]struct{}
}

// New starts a Poller.
func New(o Options) (*Poller, error) {
	if o.Loops <= 0 {
		o.Loops = 1
	}
	if o.BufferSize <= 0 {
		o.BufferSize = 64 << 10
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.UserTimeout == 0 {
		o.UserTimeout = 2 * time.Minute
	}
	p := &Poller{log: o.Logger, bufferSize: o.BufferSize, keepAlive: o.KeepAlive, userTimeout: o.UserTimeout, goroutines: make(map[*goConn]struct{})}
	if o.Goroutines {
		return p, nil
	}
	if err := p.start(o.Loops); err != nil {
		return nil, err
	}
	return p, nil
}

// Close closes what is still attached, waits until no callback runs any more but those that are detached from their loops,
// and stops the loops. It must not be called in a callback. A second call does nothing.
func (p *Poller) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	left := p.tableLocked()
	for g := range p.goroutines {
		left = append(left, g.c)
	}
	p.mu.Unlock()
	for _, c := range left {
		c.Close()
	}
	p.active.Wait()
	p.stop()
	return nil
}

// Len tells how many connections are attached.
func (p *Poller) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns
}

// Stats tells what has happened so far.
func (p *Poller) Stats() Stats {
	var s Stats
	p.count(&s)
	s.Conns = p.Len()
	return s
}

// A Group is connections with one Handler, so that not each has to keep it. It is immutable.
type Group struct {
	p     *Poller
	h     Handler
	loops []service // of each loop for this group
}

// service is what a connection knows of its surroundings.
type service struct {
	driver
	h Handler
}

// Group makes a group without connections. Nothing has to be done to end it.
func (p *Poller) Group(h Handler) *Group {
	g := &Group{p: p, h: h}
	g.loops = p.services(h)
	return g
}

// Attach takes nc over; also when it fails, nc is closed or will be. c must be zero, and must not be moved, copied or
// overwritten from now on; it cannot be attached a second time. The connection starts paused: nothing is read until the first Resume.
// A callback may come before Attach returns only if another goroutine calls Resume or NotifyWritable.
//
// The descriptor of a *net.TCPConn or of a stream *net.UnixConn is taken. Any other type, TLS and wrappers of these
// two included, may read and write in a way of its own, and keeps doing so on goroutines.
func (g *Group) Attach(c *Conn, nc net.Conn) error {
	if c.state.Load() != 0 {
		nc.Close()
		return errors.New("poll: attach: connection record already used")
	}
	if ok, err := g.attachDescriptor(c, nc); ok || err != nil {
		return err
	}
	return g.attachGoroutine(c, nc)
}

// Conn is one attached connection, embedded by value in its owner's record. The zero value is not attached and
// answers net.ErrClosed. Methods may be called from any goroutine; the owner orders its writes.
type Conn struct {
	state atomic.Uint32 // flags and references, see below
	fd    int32         // immutable after Attach; a descriptor only with epoll
	on    *service      // immutable after Attach
}

// driver is what serves a connection: a loop, or a goroutine of its own. Called only for attached connections.
type driver interface {
	resume(c *Conn)
	write(c *Conn, p []byte) (int, error)
	writev(c *Conn, bufs [][]byte) (int, error)
	notifyWritable(c *Conn)
	closeWrite(c *Conn) error
	close(c *Conn) error
}

// Conn.state. With goroutines only the first two and stateHeard are used.
const (
	stateAttached  = 1 << iota // set last in Attach; orders the immutable fields before every use
	stateClosed                // Close was called; never cleared; no new references
	stateWantIn                // reading is on; cleared before each Input, set by its true and by Resume
	statePendingIn             // an edge came, or input was left, while reading was off; set by the loop alone
	stateQuiet                 // a second edge came: EPOLLIN is out of the mask
	stateEnded                 // End was called
	stateWantOut               // NotifyWritable was called, Writable was not
	stateControl               // an epoll_ctl is in flight
	stateAgain                 // and has to be repeated
	stateMore                  // in the loop's list of those that have more to read; the loop's own
	stateListener              // what is read are connections; set by Listen
	stateHeard                 // something was read, or reading was turned on, since the last Heard
	stateMoved                 // set with stateClosed: the descriptor belongs to somebody else
	stateRef                   // one reference; the count fills the rest of the word

	stateRefs = ^uint32(stateRef - 1)
)

// Resume goes on reading. It may be called at any time, also while Input runs and when nothing was paused.
func (c *Conn) Resume() {
	if c.Attached() {
		c.on.resume(c)
	}
}

// Heard reports whether the peer may have been heard of since the last call: something was read, or a Resume came. It
// costs the reading side nothing.
func (c *Conn) Heard() bool { return c.state.And(^uint32(stateHeard))&stateHeard != 0 }

// Write writes what the connection takes now and never blocks; n < len(p) with a nil error means that it is full.
// p is not retained.
func (c *Conn) Write(p []byte) (n int, err error) {
	if !c.Attached() {
		return 0, net.ErrClosed
	}
	return c.on.write(c, p)
}

// Writev is Write of several buffers, in one system call where possible.
func (c *Conn) Writev(bufs [][]byte) (n int, err error) {
	if !c.Attached() {
		return 0, net.ErrClosed
	}
	return c.on.writev(c, bufs)
}

// NotifyWritable asks for one call of Writable, as soon as there is room or an error to be told.
func (c *Conn) NotifyWritable() {
	if c.Attached() {
		c.on.notifyWritable(c)
	}
}

// CloseWrite ends the outgoing direction, after everything that Write took. It does not block. The error is
// errors.ErrUnsupported for a net.Conn that cannot do it.
func (c *Conn) CloseWrite() error {
	if !c.Attached() {
		return net.ErrClosed
	}
	return c.on.closeWrite(c)
}

// Close cuts the connection. No callback starts after it has returned; one that is running or just being entered
// finishes. The descriptor is closed when the last call using it returns. A second call does nothing and returns nil.
func (c *Conn) Close() error {
	if c.state.Load()&stateAttached == 0 {
		return net.ErrClosed
	}
	return c.on.close(c)
}

// Attached reports whether the connection is attached and not closed.
func (c *Conn) Attached() bool {
	return c.state.Load()&(stateAttached|stateClosed) == stateAttached
}
