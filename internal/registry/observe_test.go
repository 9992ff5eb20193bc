package registry

import (
	"testing"
	"time"
)

// TestHistogramBoundsAreInclusive: each bucket ends with its own bound.
func TestHistogramBoundsAreInclusive(t *testing.T) {
	for d, want := range map[time.Duration]int{
		-1: 0, 0: 0, 1: 0, time.Microsecond: 0, time.Microsecond + 1: 1, 4 * time.Microsecond: 1, 4*time.Microsecond + 1: 2,
		16 * time.Microsecond: 2, 64 * time.Microsecond: 3, time.Microsecond << 26: 13, time.Microsecond<<26 + 1: 14, time.Hour * 1e6: 14,
	} {
		var h histogram
		h.add(d)
		if got := h.load(); got.Buckets[want] != 1 || got.Sum != max(d, 0) {
			t.Errorf("%v is counted as %v, want bucket %d", d, got, want)
		}
	}
}
