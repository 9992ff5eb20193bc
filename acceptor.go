package hibernate

import (
	"errors"
	"fmt"
	"net"
	"runtime/debug"

	"github.com/hibernate-go/hibernate/internal/accept"
	"github.com/hibernate-go/hibernate/internal/registry"
)

// WrapListener is the second door: it takes ln over and returns a listener for
// [net/http.Serve]. WebSocket handshakes that route claims are upgraded without
// net/http, from the bytes as they came, and join their object without waking it.
// Everything else comes out of the returned listener, its bytes untouched.
//
//	ln, err := net.Listen("tcp", addr)
//	ln, err = rt.WrapListener(ln, route)
//	http.Handle("/", rooms.Handler(route))
//	http.Serve(ln, nil)
//
// It sees only the first request of a connection, and it never refuses: a
// handshake that is not in order, a failed route or origin check, a limit, a class
// with ServeHTTP (unless the Join says SkipServeHTTP) are all left to net/http. So
// the same route has to be mounted as [Namespace.Handler] too, which gives the
// answer, and route is then called again. No router has seen the request when the
// acceptor calls route: PathValue is empty and the path is as the client sent it, so
// use Path; middleware does not run.
//
// At the acceptor route, [ClassOptions].CheckOrigin and the class's Codec run on
// the goroutine that reads all connections, and must not block. A route that has to
// wait, to authorise for instance, belongs in a Handler alone.
//
// A new connection waits for its request without a goroutine. It has
// [Limits].HandshakeTime for the head of the first one, and is then closed; a head
// over [Limits].HandshakeBytes and anything but a GET go to net/http as soon as that
// is seen, also TLS, for [net/http.ServeTLS]. At most [Limits].Handshakes connections wait. When
// descriptors run out, accepting pauses for 5 ms to 1 s.
//
// Closing the returned listener, as net/http's Server does, closes ln and the
// connections that were neither claimed nor accepted; WebSockets stay. [Runtime]'s
// Close and Shutdown close it too. A listener that is neither a *net.TCPListener
// nor a *net.UnixListener, and any on systems other than Linux, is passed through
// with all its connections.
func (rt *Runtime) WrapListener(ln net.Listener, route Route) (net.Listener, error) {
	if ln == nil || route == nil {
		return nil, fmt.Errorf("%w: WrapListener needs a listener and a route", ErrInvalid)
	}
	ended := fmt.Errorf("%w: runtime is closed", ErrUnavailable)
	rt.mu.Lock()
	open := rt.doors != nil
	rt.mu.Unlock()
	if !open {
		return nil, ended
	}
	var l *accept.Listener
	l, err := accept.Listen(ln, accept.Config{
		Poller:  rt.poller,
		Timers:  rt.reg.Timers(),
		Clock:   rt.opt.Clock,
		Logger:  rt.log,
		Timeout: rt.opt.Limits.HandshakeTime,
		Waiting: rt.opt.Limits.Handshakes,

		HeadBytes: rt.opt.Limits.HandshakeBytes,
		Refused:   &rt.refused,
		Claim:     func(q *accept.Request) bool { return rt.claim(route, q) },
		Closed: func() {
			rt.mu.Lock()
			delete(rt.doors, l)
			rt.mu.Unlock()
		},
	})
	if err != nil {
		return nil, fmt.Errorf("hibernate: wrap %v: %w", ln.Addr(), err)
	}
	rt.mu.Lock()
	if open = rt.doors != nil; open {
		rt.doors[l] = struct{}{}
	}
	rt.mu.Unlock()
	if !open {
		return nil, errors.Join(ended, l.Close())
	}
	return l, nil
}

// closeDoors ends accepting for good.
func (rt *Runtime) closeDoors() {
	rt.mu.Lock()
	doors := rt.doors
	rt.doors = nil
	rt.mu.Unlock()
	for l := range doors {
		if err := l.Close(); err != nil {
			rt.log.Debug("close listener", "err", err) // somebody else's Close was first
		}
	}
}

// claim joins the connection of a handshake to its object if nothing stands
// against it, and reports whether it has taken the connection over. It runs on
// the poller's goroutine.
func (rt *Runtime) claim(route Route, q *accept.Request) bool {
	join, u, ok := rt.consider(route, q)
	if !ok {
		return false
	}
	buf, _ := rt.responses.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	defer rt.responses.Put(buf)
	var err error
	if *buf, err = q.Head.AppendSwitching((*buf)[:0], u.protocol, u.extension, u.header); err != nil {
		return false
	}
	c := join.Object.class
	s, err := rt.reg.Join(c.reg, join.Object.id.key, join.Object.name, u.tags, u.attachment, u.window)
	if err != nil {
		return false
	}
	if err := s.Adopt(rt.conns, q.Conn, *buf, q.Early); err != nil {
		registry.Unlist(s)
		c.upgradeFailed(s, err)
	}
	return true
}

// consider asks the user's code where the handshake is to go and whether it may.
// If that panics net/http gets the request, and with it the panic. A Goexit would
// end the goroutine that all connections wait for, and cannot be undone.
func (rt *Runtime) consider(route Route, q *accept.Request) (join Join, u upgrade, ok bool) {
	returned := false
	defer func() {
		if returned {
			return
		}
		switch p := recover(); p {
		case nil:
			panic("hibernate: a Route, CheckOrigin or Codec called runtime.Goexit at the acceptor")
		default:
			rt.log.Error("panic at the acceptor", "panic", p, "stack", string(debug.Stack()))
			ok = false
		}
	}()
	join, u, ok = rt.ask(route, q)
	returned = true
	return join, u, ok
}

func (rt *Runtime) ask(route Route, q *accept.Request) (join Join, u upgrade, ok bool) {
	join, err := route(&Handshake{q: q})
	if err != nil || join.Object.check() != nil {
		return join, u, false
	}
	c := join.Object.class
	if c.rt != rt || c.http && !join.SkipServeHTTP {
		return join, u, false
	}
	if c.opt.CheckOrigin != nil {
		ok = c.opt.CheckOrigin(q.HTTP())
	} else {
		ok = q.Head.SameOrigin()
	}
	if !ok {
		return join, u, false
	}
	u, err = c.newUpgrade(&q.Head, join.options(), join.Header)
	return join, u, err == nil
}
