package poll

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	readSize  = 4 << 10     // buffer of a reading goroutine, held as long as the connection: it is blocked in Read
	maxUnsent = 64 << 10    // what Write accepts before it says that the connection is full
	parting   = time.Second // how long Close lets what Write accepted leave
)

// A goConn serves one connection that has no descriptor of its own.
//
// Goroutines: read, from Attach until the input ends or Close; drain, only while there is something to send or to tell;
// and one that closes nc, because tls.Conn.Close may wait seconds for its alert to leave.
type goConn struct {
	p  *Poller
	c  *Conn
	nc net.Conn
	on service // this goConn and the handler, for Conn.on to point at

	mu       sync.Mutex // guards the following; not held in callbacks and I/O
	changed  sync.Cond  // on mu: wantIn, calling or closed has changed
	closed   bool
	wantIn   bool // as stateWantIn
	calling  bool // End or Writable runs: they must not overlap
	draining bool // the drain goroutine runs
	wantOut  bool // NotifyWritable was called, Writable was not
	finish   bool // CloseWrite was called and has to be done after unsent
	finished bool // CloseWrite was called
	unsent   []byte
	inFlight int   // bytes being written by drain; with unsent at most maxUnsent
	err      error // first write error; sticks
}

// attachGoroutine is Attach for a connection that stays a net.Conn.
func (of *Group) attachGoroutine(c *Conn, nc net.Conn) error {
	p := of.p
	_ = nc.SetDeadline(time.Time{}) // a server's read timeout ends with the hijack
	raw := nc
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		raw = t.NetConn()
	}
	if t, ok := raw.(*net.TCPConn); ok {
		if err := p.tuneConn(t); err != nil {
			p.log.Debug("poll: set socket options", "err", err)
		}
	}
	g := &goConn{p: p, c: c, nc: nc}
	g.on = service{g, of.h}
	g.changed.L = &g.mu
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		nc.Close()
		return net.ErrClosed
	}
	c.fd, c.on = -1, &g.on
	c.state.Store(stateAttached)
	p.conns++
	p.goroutines[g] = struct{}{}
	p.active.Add(2) // the connection, given back when nc is closed; and read
	p.mu.Unlock()
	go g.read()
	return nil
}

// read is the goroutine that reads.
func (g *goConn) read() {
	defer g.p.active.Done()
	buf := make([]byte, min(g.p.bufferSize, readSize))
	for g.awaitWanted() {
		n, err := g.nc.Read(buf)
		if n > 0 {
			g.mu.Lock()
			if g.closed {
				g.mu.Unlock()
				return
			}
			g.wantIn = false
			g.c.state.Or(stateHeard)
			g.mu.Unlock()
			if g.on.h.Input(g.c, nil, buf[:n]) {
				g.want(0)
			}
		}
		if err != nil {
			if g.awaitWanted() && g.beginCall() {
				g.on.h.End(g.c, nil, err)
				g.endCall()
			}
			return
		}
	}
}

// awaitWanted waits until reading is on; false means closed.
func (g *goConn) awaitWanted() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.wantIn && !g.closed {
		g.changed.Wait()
	}
	return !g.closed
}

// beginCall waits until no other callback but Input runs; false means closed.
func (g *goConn) beginCall() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.beginCallLocked()
}

func (g *goConn) beginCallLocked() bool {
	for g.calling && !g.closed {
		g.changed.Wait()
	}
	if g.closed {
		return false
	}
	g.calling = true
	return true
}

func (g *goConn) endCall() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.endCallLocked()
}

func (g *goConn) endCallLocked() {
	g.calling = false
	g.changed.Broadcast()
}

// drain is the goroutine that sends; it ends when nothing is left to do.
func (g *goConn) drain() {
	defer g.p.active.Done()
	var spare []byte
	g.mu.Lock()
	defer g.mu.Unlock()
	defer func() { // under mu
		g.draining = false
		g.changed.Broadcast()
	}()
	for !g.closed {
		switch {
		case len(g.unsent) > 0:
			out := g.unsent
			g.unsent, g.inFlight = spare[:0], len(out)
			g.mu.Unlock()
			_, err := g.nc.Write(out)
			g.mu.Lock()
			spare, g.inFlight = out, 0
			g.failLocked(err)
		case g.finish:
			g.finish = false
			g.mu.Unlock()
			err := g.nc.(writeCloser).CloseWrite()
			g.mu.Lock()
			g.failLocked(err)
		case g.wantOut:
			if !g.beginCallLocked() {
				return
			}
			g.wantOut = false
			g.mu.Unlock()
			g.on.h.Writable(g.c)
			g.mu.Lock()
			g.endCallLocked()
		default:
			g.unsent = nil
			return
		}
	}
}

// failLocked keeps the first write error for the next Write and gives up what is unsent.
func (g *goConn) failLocked(err error) {
	if err != nil && g.err == nil {
		g.err = err
	}
	if g.err != nil {
		g.unsent, g.finish = nil, false
	}
}

// drainLocked starts drain if it does not run.
func (g *goConn) drainLocked() {
	if !g.draining {
		g.draining = true
		g.p.active.Add(1)
		go g.drain()
	}
}

func (g *goConn) resume(*Conn) { g.want(stateHeard) }

// want turns reading on, and sets flags of c.state if it was off.
func (g *goConn) want(flags uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.wantIn {
		g.wantIn = true
		g.c.state.Or(flags)
		g.changed.Broadcast()
	}
}

func (g *goConn) write(_ *Conn, p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.writeLocked(p)
}

func (g *goConn) writev(_ *Conn, bufs [][]byte) (n int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range bufs {
		m, err := g.writeLocked(b)
		n += m
		if err != nil || m < len(b) {
			return n, err
		}
	}
	return n, nil
}

func (g *goConn) writeLocked(p []byte) (int, error) {
	switch {
	case g.closed:
		return 0, net.ErrClosed
	case g.err != nil:
		return 0, g.err
	case g.finished:
		return 0, os.NewSyscallError("write", syscall.EPIPE)
	}
	n := min(len(p), maxUnsent-len(g.unsent)-g.inFlight)
	if n > 0 {
		g.unsent = append(g.unsent, p[:n]...)
		g.drainLocked()
	}
	return n, nil
}

func (g *goConn) notifyWritable(*Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.wantOut = true
		g.drainLocked()
	}
}

type writeCloser interface{ CloseWrite() error }

func (g *goConn) closeWrite(*Conn) error {
	if _, ok := g.nc.(writeCloser); !ok {
		return errors.ErrUnsupported
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return net.ErrClosed
	case g.err != nil:
		return g.err
	case !g.finished:
		g.finish, g.finished = true, true
		g.drainLocked()
	}
	return nil
}

func (g *goConn) close(c *Conn) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	c.state.Or(stateClosed)
	left := g.unsent
	g.unsent = nil
	g.changed.Broadcast()
	g.mu.Unlock()
	g.p.mu.Lock()
	g.p.conns--
	delete(g.p.goroutines, g)
	g.p.mu.Unlock()
	go func() {
		defer g.p.active.Done()
		g.part(left)
		if err := g.nc.Close(); err != nil {
			g.p.log.Debug("poll: close", "err", err)
		}
	}()
	return nil
}

// part sends what Write accepted before Close, as the kernel does for a descriptor.
func (g *goConn) part(left []byte) {
	g.mu.Lock()
	if g.err != nil || !g.draining && len(left) == 0 {
		g.mu.Unlock()
		return
	}
	g.mu.Unlock()
	_ = g.nc.SetWriteDeadline(time.Now().Add(parting))
	g.mu.Lock()
	for g.draining {
		g.changed.Wait()
	}
	failed := g.err != nil
	g.mu.Unlock()
	if !failed && len(left) > 0 {
		_, _ = g.nc.Write(left) // the peer has gone, or does not read
	}
}
