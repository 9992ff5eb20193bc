// Package seam is what package hibernatetest needs of the root package and nobody
// else may have. The root package sets its functions when it is initialised; any
// stands for types of the root package, which this one cannot import.
package seam

import (
	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/store"
)

// Open is hibernate.Open with a store and a probe of the caller's. options is a
// *hibernate.Options, and runtime a *hibernate.Runtime with its registry.
var Open func(cfg store.Config, options any, probe *registry.Probe) (runtime any, reg *registry.Registry, err error)

// Namespace is the *hibernate.Namespace of a class that was registered.
var Namespace func(c *registry.Class) (namespace any)

// Object is what a hibernate.Stub stands for. The class is nil if it is the zero
// Stub.
var Object func(stub any) (c *registry.Class, id store.ID, name string)
