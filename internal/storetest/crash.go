// Package storetest has file systems on which tests lose power and see the disk
// fail, for the store and for what stands on it.
package storetest

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is a file system in memory whose power can be cut. It goes around methods
// of vfs.MemFS that take their lock twice and hang if CrashClone comes in between.
type FS struct{ *vfs.MemFS }

// NewFS is an empty FS.
func NewFS() FS { return FS{vfs.NewCrashableMem()} }

// ReuseForWrite renames and opens, each under the lock.
func (fs FS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.Rename(from, to); err != nil {
		return nil, err
	}
	return fs.OpenReadWrite(to, c)
}

// Link fails, so that a snapshot copies.
func (FS) Link(string, string) error { return errors.ErrUnsupported }

// Crash is Cut that leaves nothing of what was not synced.
func (fs FS) Crash() FS { return fs.Cut(vfs.CrashCloneCfg{}) }

// Cut returns what is left after a power failure, with some of what was not synced.
func (fs FS) Cut(cfg vfs.CrashCloneCfg) FS { return FS{fs.CrashClone(cfg)} }
