// Package mutation breaks promises of the library on purpose, each under a
// build tag, so that it can be shown that a test notices. Without a tag every
// constant is false and the compiler removes what it guards.
//
// TestEveryMutationIsCaught runs the tests with each tag in turn.
package mutation

const (
	// Gate lets output leave before the sync of the commit it waits for.
	Gate = current == "gate"
	// Commit commits each write instead of each turn.
	Commit = current == "commit"
	// Seq takes commits whatever seq they expect.
	Seq = current == "seq"
	// Alarm forgets an alarm before its handler runs.
	Alarm = current == "alarm"
	// Fatalf goes on after a write that the disk refused.
	Fatalf = current == "fatalf"
)
