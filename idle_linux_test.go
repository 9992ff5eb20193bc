//go:build !portable

package hibernate_test

import (
	"fmt"
	"runtime"
	"testing"
)

// TestIdleConnectionsCostNoGoroutine also counts what thousands of objects at
// rest leave in memory.
func TestIdleConnectionsCostNoGoroutine(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, nil)
	first := r.dial("/o/first")
	first.send("x")
	first.expect("text:x 1")
	r.hibernate()
	before := runtime.NumGoroutine()
	const n = 500
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = r.dial(fmt.Sprintf("/o/%d", i))
		clients[i].send("x")
		clients[i].expect("text:x 1")
	}
	r.hibernate()
	// net/http's goroutines of the upgrades end in their own time.
	r.until("goroutines to end", func() bool { return runtime.NumGoroutine() <= before+few })
	for _, c := range clients {
		c.send("y")
		c.expect("text:y 1")
	}
}
