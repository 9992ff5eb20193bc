//go:build !linux || portable

package poll

import (
	"errors"
	"net"
)

// platform is empty where there is no epoll: every connection is served by goroutines.
type platform struct{}

func (*Poller) start(int) error                                    { return nil }
func (*Poller) stop()                                              {}
func (*Poller) count(*Stats)                                       {}
func (*Poller) tableLocked() []*Conn                               { return nil }
func (*Group) attachDescriptor(*Conn, net.Conn) (ok bool, _ error) { return false, nil }
func (*Poller) services(Handler) []service                         { return nil }

// A Descriptor is a connected stream socket that no poller watches. There are none here.
type Descriptor struct{}

// NetConn fails.
func (*Descriptor) NetConn() (net.Conn, error) { return nil, errors.ErrUnsupported }

// Close does nothing.
func (*Descriptor) Close() error { return nil }

func (*Poller) listen(*Conn, net.Listener, ListenHandler) (ok bool, _ error) { return false, nil }
func (*Group) attachRaw(*Conn, *Descriptor) error                            { return errors.ErrUnsupported }
func (*Group) move(_, _ *Conn) error                                         { return errors.ErrUnsupported }
func (*Poller) detach(*Conn) (*Descriptor, error)                            { return nil, errors.ErrUnsupported }

// tuneConn sets no-delay and keep-alive.
func (p *Poller) tuneConn(t *net.TCPConn) error {
	err := t.SetNoDelay(true)
	switch {
	case p.keepAlive > 0:
		err = errors.Join(err, t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: p.keepAlive, Interval: p.keepAlive}))
	case p.keepAlive == 0:
		err = errors.Join(err, t.SetKeepAlive(true))
	}
	return err
}

func (c *Conn) remoteAddr() net.Addr {
	if g, ok := c.on.driver.(*goConn); ok {
		return g.nc.RemoteAddr()
	}
	return nil
}
