// Package leak is what the packages' tests know about goroutines that may stay.
package leak

import "go.uber.org/goleak"

// Dead are the goroutines that a dead Pebble instance leaves behind, and a
// pebble.Open that failed: nobody may call into it to end them. It is the only
// leak allowed.
func Dead() []goleak.Option {
	return []goleak.Option{
		// Parked, or waiting inside Pebble for one that is.
		goleak.IgnoreAnyFunction("github.com/hibernate-go/hibernate/internal/store.(*grave).park"),
		goleak.IgnoreAnyFunction("github.com/hibernate-go/hibernate/internal/store.(*pebbleEngine).Commit"),
		goleak.IgnoreAnyFunction("github.com/hibernate-go/hibernate/internal/store.(*pebbleEngine).Sync"),
		goleak.IgnoreAnyFunction("github.com/hibernate-go/hibernate/internal/store.(*pebbleEngine).openDB"),
		goleak.IgnoreAnyFunction("github.com/hibernate-go/hibernate/internal/store.(*pebbleEngine).closeDB"),
		// Pebble's own.
		goleak.IgnoreAnyFunction("github.com/cockroachdb/pebble/v2.(*DB).flush"),
		goleak.IgnoreAnyFunction("github.com/cockroachdb/pebble/v2.(*DB).compact"),
		goleak.IgnoreAnyFunction("github.com/cockroachdb/pebble/v2.(*DB).collectTableStats"),
		goleak.IgnoreAnyFunction("github.com/cockroachdb/pebble/v2.(*ConcurrencyLimitScheduler).periodicGranter"),
		goleak.IgnoreAnyFunction("github.com/cockroachdb/pebble/v2.(*cleanupManager).mainLoop"),
		goleak.IgnoreAnyFunction("github.com/cockroachdb/pebble/v2/internal/genericcache.(*shard[...]).releaseLoop"),
		goleak.IgnoreAnyFunction("github.com/cockroachdb/pebble/v2/record.(*LogWriter).flushLoop"),
	}
}
