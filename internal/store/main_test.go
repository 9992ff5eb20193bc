package store

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/hibernate-go/hibernate/internal/leak"
)

var deadGoroutines = leak.Dead()

func TestMain(m *testing.M) { leak.Main(m, deadGoroutines...) }

// noLeaks fails the test if it leaves a goroutine of any kind.
func noLeaks(t *testing.T) {
	current := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, current) })
}
