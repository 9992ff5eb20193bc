// Package store keeps the objects' keys, headers and alarms on disk.
//
// It has two layers. An [Engine] is the storage contract: objects opened under
// an epoch, reads, and commits of many objects at once, each checked against
// the (epoch, seq) it expects. The Pebble form of it is in this package;
// another engine replaces that one alone. A [Store] sits on an engine and is
// what the registry uses: write sets with savepoints, the overlay of commits
// that are not durable yet, and one committer that makes everything queued
// durable with one sync.
//
// A commit is whole or absent, whatever happens to the process. Its done
// callback gets nil only once it is on disk. From the first failed write that
// matters the engine is dead for good: nothing is read from it or written to
// it, every call answers [ErrUnavailable], and nothing blocks.
//
// Goroutines: for each Store one that commits, one that calls back and one that
// watches for death; the engine's own,
// and, once an engine is dead, those of it that are parked in [grave.park].
//
// Lock order: Store.mu, entry.mu, Store.qmu, pebbleEngine's. None is held
// across a call of the engine that may read or write, nor across a callback.
package store
