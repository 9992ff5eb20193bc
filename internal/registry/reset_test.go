package registry

import (
	"context"
	"testing"

	"github.com/hibernate-go/hibernate/internal/store"
)

// TestBookkeepingOutlivesAReset: the object falls while work without an instance is under way beside an instance.
func TestBookkeepingOutlivesAReset(t *testing.T) {
	c := newCrowd(t)
	a := c.awaken("a")
	done := make(chan error, 1)
	if err := c.reg.Post(c.class, a.obj.id, "a", &Work{
		Cause:    CauseAlarm,
		Done:     func(err error) { done <- err },
		internal: func(*store.Object) { a.obj.fall(a, context.Canceled, true) },
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.until(c.reg.Quiet)
}
