package registry

import (
	"testing"

	"github.com/hibernate-go/hibernate/internal/store"
)

// TestRetriesAreNoEarlierThanTheEpoch, whatever the clock says when an alarm has failed: the
// store has no room for such a time.
func TestRetriesAreNoEarlierThanTheEpoch(t *testing.T) {
	for _, now := range []int64{-1 << 40, 0, 1 << 40} {
		if al := retried(store.Alarm{Running: 1}, now, true); al.RetryAt <= 0 || al.RetryAt < now || al.Retry != 1 {
			t.Errorf("at %d: %+v", now, al)
		}
	}
}
