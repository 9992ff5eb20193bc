package hibernate

import "github.com/hibernate-go/hibernate/internal/store"

// OpenStore is Open on a store of the given kind, for tests that bring their own
// file system.
func OpenStore(cfg store.Config, o *Options) (*Runtime, error) { return open(cfg, o, nil) }

// Waiting is the number of connections at the acceptor that were neither claimed
// nor accepted.
func (rt *Runtime) Waiting() (n int) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for l := range rt.doors {
		n += l.Waiting()
	}
	return n
}

// NewTags are the tags that a socket has which was accepted with these.
func NewTags(tags []string) ([]string, error) {
	t, err := newTags(tags)
	return t.All(), err
}
