package storetest

import (
	"errors"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// ErrDisk is what a Fault fails with.
var ErrDisk = errors.New("injected: no space left on device")

// A Fault fails operations of the file system that it wraps. Its fields are set
// before use.
type Fault struct {
	Match   func(errorfs.Op) bool
	From    int64 // the first of those matched to fail, counted from 0
	Forever bool  // all after it fail too
	Off     atomic.Bool

	seen  atomic.Int64
	fired atomic.Pointer[errorfs.Op] // the first that failed
}

// Again makes the fault count from the start, and fail operation from.
func (f *Fault) Again(from int64) {
	f.From = from
	f.seen.Store(0)
	f.fired.Store(nil)
}

// Seen is how many operations were matched.
func (f *Fault) Seen() int64 { return f.seen.Load() }

// Fired is the first operation that failed, nil if none has.
func (f *Fault) Fired() *errorfs.Op { return f.fired.Load() }

// String is for errorfs.
func (f *Fault) String() string { return "fault" }

// MaybeError decides about one operation.
func (f *Fault) MaybeError(op errorfs.Op) error {
	if f.Off.Load() || !f.Match(op) {
		return nil
	}
	n := f.seen.Add(1) - 1
	if n < f.From || n > f.From && !f.Forever {
		return nil
	}
	f.fired.CompareAndSwap(nil, &op)
	return ErrDisk
}

// Wrap is fs with the faults of f, also in closing files, which errorfs does not fail.
func (f *Fault) Wrap(fs vfs.FS) vfs.FS { return &closeFS{errorfs.Wrap(fs, f), f} }

func kind(kinds ...errorfs.OpKind) func(errorfs.Op) bool {
	return func(op errorfs.Op) bool {
		for _, k := range kinds {
			if op.Kind == k {
				return true
			}
		}
		return false
	}
}

// A Kind is one sort of operation to fail.
type Kind struct {
	Name  string
	Match func(errorfs.Op) bool
}

// Kinds are all operations that change a disk, and the opening of directories.
func Kinds() []Kind {
	return []Kind{
		{"create", kind(errorfs.OpCreate, errorfs.OpReuseForWrite)},
		{"write", kind(errorfs.OpFileWrite, errorfs.OpFileWriteAt)},
		{"sync", kind(errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo)},
		{"close", kind(errorfs.OpFileClose)},
		{"rename", kind(errorfs.OpRename)},
		{"remove", kind(errorfs.OpRemove)},
		{"open directory", kind(errorfs.OpOpenDir)},
	}
}

type closeFS struct {
	vfs.FS
	f *Fault
}

type closeFile struct {
	vfs.File
	name string
	f    *Fault
}

func (fs *closeFS) wrap(file vfs.File, name string, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &closeFile{file, name, fs.f}, nil
}

func (fs *closeFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := fs.FS.Create(name, c)
	return fs.wrap(file, name, err)
}

func (fs *closeFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := fs.FS.ReuseForWrite(from, to, c)
	return fs.wrap(file, to, err)
}

func (f *closeFile) Close() error {
	return errors.Join(f.f.MaybeError(errorfs.Op{Kind: errorfs.OpFileClose, Path: f.name}), f.File.Close())
}
