package hibernate

import "github.com/hibernate-go/hibernate/internal/store"

// OpenStore is Open on a store of the given kind, for tests that bring their own
// file system.
func OpenStore(cfg store.Config, o *Options) (*Runtime, error) { return open(cfg, o) }
