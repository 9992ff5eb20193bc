package poll

import "net"

// A ListenHandler is told of the connections of one listener. Calls for one listener never overlap. They come on a
// goroutine of the poller and must not block.
type ListenHandler interface {
	// Accepted hands over a new connection, which nobody watches yet, and reports whether to go on; after false nothing
	// is accepted until Resume. As with Input, a Resume that runs beside it wins. d is valid only during the call, which
	// has to attach or to close it.
	Accepted(d *Descriptor) (more bool)
	// AcceptFailed tells that accept4 has failed for another reason than a connection that is gone already.
	// Nothing is accepted until Resume, which tries again.
	AcceptFailed(err error)
}

// Listen accepts the connections of ln until c is closed, by way of a duplicate of its descriptor; ln itself stays open
// and must be left alone. Accepting is off until the first Resume. Only Resume, Close and Attached of c may be used.
// No-delay and keep-alive are set on the listener, from where its connections have them.
//
// It reports false, and does nothing, for what is neither a *net.TCPListener nor a stream *net.UnixListener, and where
// there is no epoll.
func (p *Poller) Listen(c *Conn, ln net.Listener, h ListenHandler) (ok bool, err error) {
	return p.listen(c, ln, h)
}

// AttachDescriptor is Attach for a descriptor, except that reading is on from the start: a callback may come before it
// returns. d is used up, also when it fails.
func (g *Group) AttachDescriptor(c *Conn, d *Descriptor) error {
	return g.attachRaw(c, d)
}

// Move gives from's descriptor, registration and unread input to the zero record to, which enters the group and
// starts paused. It makes no system call. from is as if closed.
//
// It must be called in from's Input, which must return false then. from must come from AttachDescriptor, and of its
// methods other goroutines may call Close only. The error is net.ErrClosed if from, or the Poller, has been closed.
func (g *Group) Move(to, from *Conn) error { return g.move(to, from) }

// Detach takes c's descriptor away from the poller. It has Move's conditions.
func (p *Poller) Detach(c *Conn) (*Descriptor, error) { return p.detach(c) }

// RemoteAddr is the peer's address, nil if it is not known any more. It makes a system call.
func (c *Conn) RemoteAddr() net.Addr {
	if !c.Attached() {
		return nil
	}
	return c.remoteAddr()
}

// accepting is what a listener's record has as its Handler.
type accepting struct {
	ListenHandler
	userTimeout int // milliseconds, to be set on each connection: a Multipath TCP listener has no such option; else 0
}

func (accepting) Input(*Conn, *Worker, []byte) bool { panic("poll: BUG: input of a listener") }
func (accepting) End(*Conn, *Worker, error)         { panic("poll: BUG: end of a listener") }
func (accepting) Writable(*Conn)                    { panic("poll: BUG: output of a listener") }
