package limit

import (
	"testing"

	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// TestEveryLimitHasItsOwnName: what is counted can be told apart, and so can errors.
func TestEveryLimitHasItsOwnName(t *testing.T) {
	names, whats := map[string]bool{}, map[string]bool{}
	for id := range Count {
		name, what := id.String(), id.Error(1, 2).Limit
		if name == "" || names[name] || what == "" || whats[what] {
			t.Errorf("limit %d is called %q and %q", id, name, what)
		}
		names[name], whats[what] = true, true
	}
}

func TestRefusalsAreCounted(t *testing.T) {
	var c Counters
	err := c.Refuse(Sockets, 5, 6)
	c.Count(Key)
	(*Counters)(nil).Count(Key)
	if got := c.Load(); got[Sockets] != 1 || got[Key] != 1 || got[Value] != 0 {
		t.Errorf("counted %v", got)
	}
	if want := "WebSockets of the runtime: 6 is over the limit of 5"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if !err.Overload() || Key.Error(1, 2).Overload() || (&Error{Limit: "else"}).Overload() {
		t.Error("a limit that others fill is told from one that the caller exceeds")
	}
}
