//go:build !unix

package hostile

import "time"

var epoch = time.Now()

// worked is how long this process has been there: more than it has had a processor, unless it has several.
func worked() time.Duration { return time.Since(epoch) }
