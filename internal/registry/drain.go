package registry

import "github.com/hibernate-go/hibernate/internal/socket"

// Drained queues the event that what waited for the peer of s is gone. It wakes
// the object like any other. At most one of a socket is under way.
func (o *Object) Drained(s *socket.Socket) {
	o.class.reg.lives.add() // as in Serve
	defer o.class.reg.lives.done()
	if !o.class.Behavior.HandlesSocket(socket.Drain) || o.class.reg.closing.Load() {
		s.Drained()
		return
	}
	o.mu.Lock()
	if !socket.Listed(s) {
		o.mu.Unlock()
		return // cut, or taken back
	}
	o.bringLocked()
	o.class.reg.stats.events.Add(1)
	o.mail.push(newEvent(CauseDrain, s, socket.Event{Kind: socket.Drain}))
	run := o.claimLocked()
	o.mu.Unlock()
	run.start(o)
}

// lastEvent reports whether t runs the event after which its socket is gone.
func (t *Turn) lastEvent() bool {
	return t.sock != nil && (t.cause == CauseClose || t.cause == CauseError)
}
