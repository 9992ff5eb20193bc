package store

import "github.com/cockroachdb/pebble/v2/vfs"

const (
	minAhead = 64 << 10
	maxAhead = 1 << 20
)

// A logFile is a write-ahead log with zeroes ahead of its records. To sync bytes that replace others takes about a third
// less time than to sync bytes that make the file longer (BenchmarkLogSync): its new length is one more thing to write.
// After its last record Pebble finds the log's end in zeroes as in the records of an older log, which is what follows
// once it uses files again. Then nothing has to be filled any more.
type logFile struct {
	vfs.File

	// Owned by Pebble's goroutine that writes the log.
	end    int64 // of the records
	filled int64 // the file is as long
}

func (f *logFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.end += int64(n)
	if err == nil && f.end+minAhead/2 > f.filled {
		f.fill()
	}
	return n, err
}

// fill appends zeroes, the more the longer the log is. If it cannot, the records find out themselves.
func (f *logFile) fill() {
	from := max(f.end, f.filled)
	n := min(max(f.filled, minAhead), maxAhead)
	_, _ = f.File.WriteAt(zeroes[:n], from)
	f.filled = from + n
}

var zeroes [maxAhead]byte
