//go:build !linux || portable

package poll

import "net"

// platform is empty where there is no epoll: every connection is served by goroutines.
type platform struct{}

func (*Poller) start(int) error                                              { return nil }
func (*Poller) stop() error                                                  { return nil }
func (*Poller) count(*Stats)                                                 {}
func (*Poller) tableLocked() []*Conn                                         { return nil }
func (*Poller) attachDescriptor(*Conn, net.Conn, Handler) (ok bool, _ error) { return false, nil }
