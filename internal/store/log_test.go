package store

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// refusing is a file that takes nothing but appended bytes.
type refusing struct{ vfs.File }

func (refusing) WriteAt([]byte, int64) (int, error) { return 0, errors.New("no space left on device") }

// TestLogIsItsRecordsAndZeroes, of which there are always some to write over, unless the disk has no room for them.
func TestLogIsItsRecordsAndZeroes(t *testing.T) {
	for _, full := range []bool{false, true} {
		fs := vfs.NewMem()
		file, err := fs.Create("000001.log", vfs.WriteCategoryUnspecified)
		must(t, err)
		log := &logFile{File: file}
		if full {
			log.File = refusing{file}
		}
		var want []byte
		for _, size := range []int{1, 100, minAhead / 2, minAhead, 3 * maxAhead, 0, 5} {
			for range 5 {
				p := make([]byte, size+rand.IntN(100))
				for i := range p {
					p[i] = byte(1 + rand.IntN(255))
				}
				want = append(want, p...)
				n, err := log.Write(p) // which may overwrite p
				if must(t, err); n != len(p) {
					t.Fatalf("wrote %d of %d bytes", n, len(p))
				}
				got := contents(t, fs, "000001.log")
				ahead := bytes.TrimPrefix(got, want)
				if len(ahead)+len(want) != len(got) || len(bytes.Trim(ahead, "\x00")) != 0 {
					t.Fatalf("behind %d bytes the file has something else than zeroes", len(want))
				}
				if !full && len(ahead) < minAhead/2 || len(ahead) > maxAhead {
					t.Fatalf("%d zeroes behind %d bytes", len(ahead), len(want))
				}
			}
		}
		must(t, log.Close())
	}
}

// TestLogThatIsUsedAgainDoesNotGrow: it has bytes to write over already.
func TestLogThatIsUsedAgainDoesNotGrow(t *testing.T) {
	mem := vfs.NewMem()
	must(t, mem.MkdirAll("/store", 0o700))
	fs := &graveFS{FS: mem, dir: "/store", g: newGrave(), disk: true}
	f, err := fs.Create("/store/000001.log", vfs.WriteCategoryUnspecified)
	must(t, err)
	_, err = f.Write(bytes.Repeat([]byte("old"), 1000))
	must(t, errors.Join(err, f.Close()))
	size := len(contents(t, mem, "/store/000001.log"))
	f, err = fs.ReuseForWrite("/store/000001.log", "/store/000002.log", vfs.WriteCategoryUnspecified)
	must(t, err)
	_, err = f.Write([]byte("new"))
	must(t, errors.Join(err, f.Close()))
	if got := contents(t, mem, "/store/000002.log"); len(got) != size || !bytes.HasPrefix(got, []byte("newold")) {
		t.Errorf("%d bytes, which were %d, and begin with %q", len(got), size, got[:6])
	}
}

func contents(t *testing.T, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(name)
	must(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	must(t, err)
	return b
}

// TestLogsOnDiskAreFilledAhead, and those in memory are not.
func TestLogsOnDiskAreFilledAhead(t *testing.T) {
	for _, disk := range []bool{true, false} {
		cfg := Config{}
		if disk {
			cfg.Dir = t.TempDir()
		}
		s := mustOpen(t, cfg)
		e := s.eng.(*pebbleEngine)
		names, err := e.fs.List(e.dir)
		must(t, err)
		logs := 0
		for _, name := range names {
			if !strings.HasSuffix(name, ".log") {
				continue
			}
			logs++
			info, err := e.fs.Stat(e.fs.PathJoin(e.dir, name))
			must(t, err)
			if filled := info.Size() >= minAhead; filled != disk {
				t.Errorf("%s has %d bytes, on disk %t", name, info.Size(), disk)
			}
		}
		if logs == 0 {
			t.Errorf("no log in %q", names)
		}
		must(t, s.Close())
	}
}
