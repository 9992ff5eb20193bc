package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hibernate-go/hibernate/internal/mutation"
)

// A grave takes a Pebble instance down at the first failure that Pebble itself
// treats as fatal, and keeps it down.
//
// Pebble answers a failed write of its WAL or MANIFEST by calling
// Logger.Fatalf, and goes on as if all were well when that returns; a failed
// rotation of the WAL panics where nothing can recover it. So such a call is
// never let back into Pebble: it is recorded here and its goroutine parks for
// good. The rules:
//
//   - The first failed create, write, sync, close or rename of a *.log,
//     MANIFEST or marker file of the store's directory, and the first failed
//     sync of that directory, buries. So does Logger.Fatalf.
//   - From then on whatever the instance still tries to change on disk parks
//     too, so the directory can be opened again by a new instance.
//   - Errors of other files are Pebble's to handle.
type grave struct {
	dead chan struct{} // closed when err is set

	mu     sync.Mutex             // guards the following
	err    error                  // why; set once
	active int                    // changes on disk under way
	lock   io.Closer              // the directory's lock, nil once given back
	leave  bool                   // a dead instance's lock is given back when active is 0
	failed int                    // failed changes of other files in a row
	dirs   map[*graveDir]struct{} // open directories
}

func newGrave() *grave { return &grave{dead: make(chan struct{}), dirs: make(map[*graveDir]struct{})} }

// bury declares the instance dead. Only the first call counts.
func (g *grave) bury(err error) {
	if mutation.Fatalf {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
		close(g.dead)
	}
}

// cause returns why the instance is dead, nil while it lives.
func (g *grave) cause() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// park never returns. Its goroutines are the only leak of a dead store.
func (g *grave) park() {
	if mutation.Fatalf {
		return
	}
	select {}
}

// begin announces a change on disk. It does not return once the instance is
// dead.
func (g *grave) begin() {
	g.mu.Lock()
	dead := g.err != nil
	if !dead {
		g.active++
	}
	g.mu.Unlock()
	if dead {
		g.park()
	}
}

// end tells how a change on disk went. It buries and does not return if it
// failed and Pebble could not live with that.
func (g *grave) end(critical bool, op, name string, err error) {
	g.mu.Lock()
	g.active--
	if err != nil {
		g.failed++
	} else if op == "sync" && !critical {
		g.failed = 0
	}
	g.mu.Unlock()
	if err != nil && critical {
		g.bury(fmt.Errorf("%s %s: %w", op, name, err))
	}
	g.unlockIdle()
	if err != nil && critical {
		g.park()
	}
}

// unlock gives a dead instance's lock on the directory back, as soon as no
// change is under way any more.
func (g *grave) unlock() {
	g.mu.Lock()
	g.leave = true
	g.mu.Unlock()
	g.unlockIdle()
}

func (g *grave) unlockIdle() {
	g.mu.Lock()
	var l io.Closer
	if g.leave && g.active == 0 {
		l, g.lock = g.lock, nil
	}
	g.mu.Unlock()
	if l != nil {
		_ = l.Close() // the instance is dead already
	}
}

// backOff waits a little longer after each failure to write a table. Pebble
// tries a failed flush again at once, and would spin while a disk is full.
func (g *grave) backOff() {
	g.mu.Lock()
	n := g.failed
	g.mu.Unlock()
	if n == 0 {
		return
	}
	t := time.NewTimer(min(time.Second, time.Millisecond<<min(n, 10)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-g.dead:
	}
}

// graveFS is the file system Pebble gets.
type graveFS struct {
	vfs.FS
	dir  string // the store's directory
	g    *grave
	disk bool // logs are filled ahead
}

// critical reports whether Pebble cannot live with a failed change of name.
// Only the store's own directory counts: a snapshot has the same file names.
func (f *graveFS) critical(name string) bool {
	if f.PathDir(name) != f.dir {
		return false
	}
	base := f.PathBase(name)
	return strings.HasSuffix(base, ".log") || strings.HasPrefix(base, "MANIFEST") || strings.HasPrefix(base, "marker.")
}

// wrap returns file so that its changes are reported.
func (f *graveFS) wrap(file vfs.File, name string, critical bool) vfs.File {
	return &graveFile{File: file, g: f.g, name: name, critical: critical}
}

func (f *graveFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	critical := f.critical(name)
	if !critical {
		f.g.backOff()
	}
	f.g.begin()
	file, err := f.FS.Create(name, category)
	f.g.end(critical, "create", name, err)
	if err != nil {
		return nil, err
	}
	if f.fills(name) {
		file = &logFile{File: file}
	}
	return f.wrap(file, name, critical), nil
}

// fills reports whether name is a log to be filled ahead.
func (f *graveFS) fills(name string) bool {
	return f.disk && f.critical(name) && strings.HasSuffix(name, ".log")
}

func (f *graveFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	critical := f.critical(name)
	f.g.begin()
	file, err := f.FS.OpenReadWrite(name, category, opts...)
	f.g.end(critical, "open", name, err)
	if err != nil {
		return nil, err
	}
	return f.wrap(file, name, critical), nil
}

func (f *graveFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	critical := f.critical(newname)
	f.g.begin()
	file, err := f.FS.ReuseForWrite(oldname, newname, category)
	f.g.end(critical, "reuse for", newname, err)
	if err != nil {
		return nil, err
	}
	if f.fills(newname) {
		if info, err := file.Stat(); err == nil { // else it stays as it is
			file = &logFile{File: file, filled: info.Size()}
		}
	}
	return f.wrap(file, newname, critical), nil
}

func (f *graveFS) Rename(oldname, newname string) error {
	critical := f.critical(oldname) || f.critical(newname)
	f.g.begin()
	err := f.FS.Rename(oldname, newname)
	f.g.end(critical, "rename to", newname, err)
	return err
}

func (f *graveFS) Link(oldname, newname string) error {
	f.g.begin()
	err := f.FS.Link(oldname, newname)
	f.g.end(false, "link", newname, err)
	return err
}

func (f *graveFS) Remove(name string) error {
	f.g.begin()
	err := f.FS.Remove(name)
	f.g.end(false, "remove", name, err)
	return err
}

func (f *graveFS) RemoveAll(name string) error {
	f.g.begin()
	err := f.FS.RemoveAll(name)
	f.g.end(false, "remove", name, err)
	return err
}

func (f *graveFS) MkdirAll(dir string, perm os.FileMode) error {
	f.g.begin()
	err := f.FS.MkdirAll(dir, perm&0o700) // also a snapshot's: see openPebble
	f.g.end(false, "make directory", dir, err)
	return err
}

func (f *graveFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	d := &graveDir{graveFile{File: file, g: f.g, name: name, critical: name == f.dir}}
	f.g.mu.Lock()
	f.g.dirs[d] = struct{}{}
	f.g.mu.Unlock()
	return d, nil
}

// closeDirs closes the directories that a failed Open of Pebble has left open, as it does for a format that it does not
// know.
func (g *grave) closeDirs() {
	g.mu.Lock()
	dirs := slices.Collect(maps.Keys(g.dirs))
	g.mu.Unlock()
	for _, d := range dirs {
		_ = d.Close() // Open's error is the one that counts
	}
}

func (f *graveFS) Lock(name string) (io.Closer, error) {
	l, err := f.FS.Lock(name)
	if err != nil {
		return nil, &lockError{err}
	}
	f.g.mu.Lock()
	f.g.lock = l
	f.g.mu.Unlock()
	return (*graveLock)(f.g), nil
}

func (f *graveFS) Unwrap() vfs.FS { return f.FS }

// graveLock is the lock as Pebble sees it.
type graveLock grave

func (l *graveLock) Close() error {
	g := (*grave)(l)
	g.mu.Lock()
	c := g.lock
	g.lock = nil
	g.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.Close()
}

// lockError marks the errors of locking the directory.
type lockError struct{ err error }

func (e *lockError) Error() string { return e.err.Error() }

// Unwrap also leads to ErrLocked, unless the lock file could not even be opened.
func (e *lockError) Unwrap() []error {
	if path := (*fs.PathError)(nil); errors.As(e.err, &path) {
		return []error{e.err}
	}
	return []error{e.err, ErrLocked}
}

// graveFile is a file opened for writing.
type graveFile struct {
	vfs.File
	g        *grave
	name     string
	critical bool
}

func (f *graveFile) Write(p []byte) (int, error) {
	f.g.begin()
	n, err := f.File.Write(p)
	f.g.end(f.critical, "write", f.name, err)
	return n, err
}

func (f *graveFile) WriteAt(p []byte, off int64) (int, error) {
	f.g.begin()
	n, err := f.File.WriteAt(p, off)
	f.g.end(f.critical, "write", f.name, err)
	return n, err
}

func (f *graveFile) Sync() error {
	f.g.begin()
	err := f.File.Sync()
	f.g.end(f.critical, "sync", f.name, err)
	return err
}

func (f *graveFile) SyncData() error {
	f.g.begin()
	err := f.File.SyncData()
	f.g.end(f.critical, "sync", f.name, err)
	return err
}

func (f *graveFile) SyncTo(length int64) (bool, error) {
	f.g.begin()
	full, err := f.File.SyncTo(length)
	f.g.end(f.critical, "sync", f.name, err)
	return full, err
}

// Preallocate may fail: Pebble asks for it as a hint.
func (f *graveFile) Preallocate(offset, length int64) error {
	f.g.begin()
	err := f.File.Preallocate(offset, length)
	f.g.end(false, "preallocate", f.name, err)
	return err
}

func (f *graveFile) Close() error {
	f.g.begin()
	err := f.File.Close()
	f.g.end(f.critical, "close", f.name, err)
	return err
}

// graveDir is an open directory: nothing is lost when closing it fails.
type graveDir struct{ graveFile }

func (f *graveDir) Close() error {
	f.g.mu.Lock()
	delete(f.g.dirs, f)
	f.g.mu.Unlock()
	return f.File.Close()
}
