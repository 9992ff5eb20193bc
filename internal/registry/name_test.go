package registry

import (
	"crypto/sha256"
	"strings"
	"testing"
	"unsafe"

	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
)

// TestRecordKeepsItsNameAlone, and not the path, or the body, that the name is a piece of: known from the first moment,
// or from a later call.
func TestRecordKeepsItsNameAlone(t *testing.T) {
	for _, known := range []bool{true, false} {
		c := newCrowd(t)
		name := ("GET /room/" + strings.Repeat("x", 1<<20))[10:20]
		id := store.ID(sha256.Sum256([]byte(name)))
		first := ""
		if known {
			first = name
		}
		if _, err := c.reg.Join(c.class, id, first, socket.Tags{}, nil, 0); err != nil {
			t.Fatal(err)
		}
		if !known {
			done := make(chan error, 1)
			w := &Work{Run: func(*Turn, any) error { return nil }, Done: func(err error) { done <- err }}
			if err := c.reg.Post(c.class, id, name, w); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if got := c.reg.find(id).Name(); got != name || unsafe.StringData(got) == unsafe.StringData(name) {
			t.Errorf("known %t: the record has the name %q, and keeps what it is a piece of", known, got)
		}
	}
}
