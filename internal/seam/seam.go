// Package seam is what package hibernatetest needs of the root package and nobody
// else may have. The root package sets its function when it is initialised; any
// stands for types of the root package, which this one cannot import.
package seam

import (
	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/store"
)

// Open is hibernate.Open with a store and a probe of the caller's. options is a
// *hibernate.Options, and runtime a *hibernate.Runtime with its registry.
var Open func(cfg store.Config, options any, probe *registry.Probe) (runtime any, reg *registry.Registry, err error)
