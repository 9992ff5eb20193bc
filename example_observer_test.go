package hibernate_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/hibernate-go/hibernate"
)

// A span and a tracer stand for those of OpenTelemetry: Start makes a child of the span
// in ctx, and puts it there instead.
type (
	span struct {
		name, parent string
		attributes   map[string]string
	}
	spans  struct{ ended func(*span) }
	inSpan struct{}
)

func (t spans) Start(ctx context.Context, name string) (context.Context, *span) {
	s := &span{name: name, attributes: map[string]string{}}
	if parent, ok := ctx.Value(inSpan{}).(*span); ok {
		s.parent = parent.name
	}
	return context.WithValue(ctx, inSpan{}, s), s
}

// tracing is the adapter: a span for each turn. The caller's span, if its context has
// one, is the parent, and the handler's own spans are children.
type tracing struct{ spans spans }

func (t tracing) TurnStart(ctx context.Context, turn hibernate.TurnInfo) context.Context {
	name := turn.Class + " " + turn.Cause.String()
	if turn.Constructor {
		name = turn.Class + " construct"
	}
	ctx, s := t.spans.Start(ctx, name)
	s.attributes["hibernate.class"] = turn.Class
	s.attributes["hibernate.object.id"] = turn.ID.String()
	s.attributes["hibernate.object.name"] = turn.Name
	s.attributes["hibernate.cause"] = turn.Cause.String()
	return ctx
}

func (t tracing) TurnEnd(ctx context.Context, turn hibernate.TurnInfo, err error, took time.Duration) {
	s := ctx.Value(inSpan{}).(*span)
	if err != nil {
		s.attributes["error"] = err.Error()
	}
	t.spans.ended(s)
}

// A shelf is an object to be traced.
type shelf struct{ state *hibernate.State }

var place = hibernate.NewMethod("place", func(s *shelf, ctx context.Context, book string) (string, error) {
	return book, hibernate.Put(ctx, s.state.Storage(), book, true)
})

var (
	dusted = make(chan struct{})
	dust   = hibernate.NewMethod("dust", func(s *shelf, ctx context.Context, name string) (bool, error) {
		return true, s.state.WaitUntil(ctx, name, func(context.Context) { <-dusted })
	})
)

func ExampleObserver() {
	ended := spans{func(s *span) {
		fmt.Printf("%s, child of %q, of %s\n", s.name, s.parent, s.attributes["hibernate.object.name"])
	}}
	rt, err := hibernate.Open("", &hibernate.Options{Observer: tracing{ended}})
	if err != nil {
		log.Fatal(err)
	}
	defer rt.Close()
	shelves, err := hibernate.Register(rt, "Shelf", func(_ context.Context, s *hibernate.State) (*shelf, error) { return &shelf{s}, nil }, nil)
	if err != nil {
		log.Fatal(err)
	}
	ctx, _ := ended.Start(context.Background(), "POST /books")
	if _, err := place.Call(ctx, shelves.GetByName("poetry"), "Duino Elegies"); err != nil {
		log.Fatal(err)
	}
	// Output:
	// Shelf construct, child of "POST /books", of poetry
	// Shelf call, child of "POST /books", of poetry
}

func ExampleRuntime_Inspect() {
	rt, err := hibernate.Open("", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer rt.Close()
	shelves, err := hibernate.Register(rt, "Shelf", func(_ context.Context, s *hibernate.State) (*shelf, error) { return &shelf{s}, nil }, nil)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	poetry := shelves.GetByName("poetry")
	if _, err := place.Call(ctx, poetry, "Duino Elegies"); err != nil {
		log.Fatal(err)
	}
	look := func() {
		in, err := rt.Inspect(ctx, poetry.ID())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(in.Phase, in.Wakes, in.Cause)
		for _, b := range in.Blockers {
			fmt.Printf("kept awake by %s %q for %v\n", b.Kind, b.Name, time.Since(b.Since).Truncate(time.Hour))
		}
	}
	look()
	if _, err := dust.Call(ctx, poetry, "dust"); err != nil {
		log.Fatal(err)
	}
	look()
	dusted <- struct{}{}
	// Output:
	// idle 1 call
	// blocked 1 call
	// kept awake by WaitUntil "dust" for 0s
}
