// Package hostile holds the library to its promise that a bad peer harms nobody else.
//
// Its test runs misbehaving clients of many kinds, hundreds at once, beside honest
// ones, in the same objects and at both doors. Honest clients lose nothing, get
// everything in order, and wait for nothing while the process works for more than
// five seconds, or while a bare TCP echo beside them gets along for more than three;
// and when all is over it has the goroutines, descriptors and memory that it had
// before.
//
//	HIBERNATE_SLOW=1 go test -v ./internal/conformance/hostile    # more of them, for a minute
//	go test -run - -bench . ./internal/conformance/hostile        # what the honest ones notice of it
package hostile
