// Package leak is what the packages' tests know about goroutines and descriptors: that none may stay, and the few that
// have to.
package leak

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"go.uber.org/goleak"
)

// Main is a TestMain: it runs the tests, and fails if they pass and leave a goroutine that no option allows, or, where
// /proc/self/fd tells, a descriptor that was not open before. It does not return.
func Main(m interface{ Run() int }, options ...goleak.Option) {
	before, err := descriptors()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(options...); err != nil {
			fmt.Fprintln(os.Stderr, "leak: the tests passed, but", err)
			code = 1
		}
	}
	switch {
	case code != 0:
	case err != nil:
		fmt.Fprintf(os.Stderr, "leak: descriptors are not counted on %s: %v\n", runtime.GOOS, err)
	default:
		if left := stay(before); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "leak: the tests passed, but %d descriptors are open that were not before:\n\t%s\n",
				len(left), strings.Join(left, "\n\t"))
			code = 1
		}
	}
	os.Exit(code)
}

// Dead are the goroutines that a dead Pebble instance leaves behind, and a
// pebble.Open that failed: nobody may call into it to end them. They, and the files they hold, are the only
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

var errNoProc = errors.New("there is no /proc/self/fd")

// descriptors are the open descriptors, "number target" each. The network poller's own are among them.
func descriptors() (map[string]bool, error) {
	if runtime.GOOS != "linux" {
		return nil, errNoProc
	}
	r, w, err := os.Pipe() // has the runtime open its poller, if nobody has yet
	if err != nil {
		return nil, err
	}
	r.Close()
	w.Close()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, errNoProc
	}
	open := make(map[string]bool, len(entries))
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil { // else it was that of ReadDir
			open[e.Name()+" "+target] = true
		}
	}
	return open, nil
}

// stay are the descriptors that are open and were not before. It gives those a second that somebody is just closing.
func stay(before map[string]bool) (left []string) {
	for range 100 {
		now, err := descriptors()
		if err != nil {
			return []string{err.Error()}
		}
		left = left[:0]
		for d := range now {
			if !before[d] && !profile(d) {
				left = append(left, d)
			}
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(10 * time.Millisecond) // the system tells nobody of a close
	}
	return left
}

// profile reports whether d is a file of package testing's own, which it does not close.
func profile(d string) bool {
	for _, name := range []string{"test.cpuprofile", "test.trace"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" && strings.HasSuffix(d, filepath.Base(f.Value.String())) {
			return true
		}
	}
	return false
}
