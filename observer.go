package hibernate

import (
	"context"
	"time"

	"github.com/hibernate-go/hibernate/internal/registry"
)

// A TurnInfo says which turn an [Observer] is told of.
type TurnInfo struct {
	Class string
	ID    ID
	Name  string // empty if the object has none or it is not known
	Cause Cause
	// Constructor says that the turn runs the constructor, because the Cause found no
	// instance. The turn of the event itself follows.
	Constructor bool
}

// An Observer is told of the start and the end of every turn, for tracing. The calls
// come on the turn's goroutine, next to the handler: they must not block or panic, and
// are made for several objects at once. They may use nothing of the object.
type Observer interface {
	// TurnStart is called before the handler. ctx carries the values of the request
	// or call that the turn runs for, so a span of theirs is in it. The handler's ctx
	// carries the values of the context that TurnStart returns, which must be ctx or
	// made from it; what else that context is has no effect.
	TurnStart(ctx context.Context, t TurnInfo) context.Context
	// TurnEnd is called when the handler has returned, with the context that
	// TurnStart returned, the handler's error (a *PanicError if it panicked) and how
	// long it took, Awaits included. What the turn wrote need not be durable yet.
	TurnEnd(ctx context.Context, t TurnInfo, err error, took time.Duration)
}

// observer is an Observer as the registry calls it.
type observer struct{ to Observer }

func (o observer) TurnStart(ctx context.Context, r *registry.Object, k registry.TurnKind) context.Context {
	return o.to.TurnStart(ctx, turnInfo(r, k))
}

func (o observer) TurnEnd(ctx context.Context, r *registry.Object, k registry.TurnKind, err error, took time.Duration) {
	o.to.TurnEnd(ctx, turnInfo(r, k), err, took)
}

func turnInfo(o *registry.Object, k registry.TurnKind) TurnInfo {
	return TurnInfo{o.Class().Name, ID{o.ID()}, o.Name(), k.Cause, k.Constructor}
}
