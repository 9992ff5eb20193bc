// Package hostile holds the library to its promise that a bad peer harms nobody else.
//
// Its test runs misbehaving clients of many kinds, hundreds at once, beside honest
// ones, in the same objects and at both doors. Honest clients lose nothing, get
// everything in order and wait at most five seconds; and when all is over the
// process has the goroutines, descriptors and memory that it had before.
//
//	HIBERNATE_SLOW=1 go test -v ./internal/conformance/hostile    # more of them, for a minute
//	go test -run - -bench . ./internal/conformance/hostile        # what the honest ones notice of it
package hostile
