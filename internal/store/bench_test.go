package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// benchObject is the n-th object; ids have uniform leading bits.
func benchObject(n int) (id ID) {
	binary.BigEndian.PutUint64(id[:], uint64(n)*0x9e3779b97f4a7c15)
	return id
}

// BenchmarkCommit measures durable read-modify-write turns of one key of 128
// bytes: each object reads its key, writes it and waits until that is on disk.
// The anchor is Pebble alone with as many synced writers, each writing the same
// rows, header included. Both run in turns of a short time within one run.
func BenchmarkCommit(b *testing.B) {
	for _, objects := range []int{64, 512} {
		b.Run(fmt.Sprintf("objects=%d", objects), func(b *testing.B) {
			ours, raw := newBenchStore(b, objects), newBenchPebble(b, objects)
			var n, rawN, groups int64
			var took, rawTook time.Duration
			for b.Loop() {
				d, k := timed(objects, ours.turn)
				took, n = took+d, n+k
				d, k = timed(objects, raw.turn)
				rawTook, rawN = rawTook+d, rawN+k
			}
			groups = int64(ours.s.Stats().Groups)
			rate, rawRate := float64(n)/took.Seconds(), float64(rawN)/rawTook.Seconds()
			b.ReportMetric(rate, "turns/s")
			b.ReportMetric(rawRate, "raw/s")
			b.ReportMetric(rate/rawRate, "ratio")
			b.ReportMetric(float64(n)/float64(groups), "turns/sync")
			ours.close()
			raw.close()
		})
	}
}

// timed runs turn in one goroutine for each object for a while.
func timed(objects int, turn func(object int)) (time.Duration, int64) {
	var wg sync.WaitGroup
	var stop atomic.Bool
	var n atomic.Int64
	start := time.Now()
	for i := range objects {
		wg.Go(func() {
			for !stop.Load() {
				turn(i)
				n.Add(1)
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	return time.Since(start), n.Load()
}

type benchStore struct {
	b       *testing.B
	s       *Store
	objects []*Object
	done    []chan error
}

func newBenchStore(b *testing.B, objects int) *benchStore {
	x := &benchStore{b: b, s: mustOpen(b, Config{Dir: b.TempDir()})}
	for i := range objects {
		x.objects = append(x.objects, x.s.Object(benchObject(i), "Room", "lobby"))
		x.done = append(x.done, make(chan error, 1))
		must(b, x.objects[i].Put("state", make([]byte, 128)))
		must(b, commitWait(b, x.objects[i]))
	}
	return x
}

func (x *benchStore) turn(i int) {
	o := x.objects[i]
	v, _, err := o.Get("state")
	if err != nil {
		x.b.Error(err)
		return
	}
	v[0]++
	err = o.Put("state", v)
	o.Commit(func(err error) { x.done[i] <- err })
	if err2 := <-x.done[i]; err != nil || err2 != nil {
		x.b.Error(err, err2)
	}
}

func (x *benchStore) close() {
	for _, o := range x.objects {
		o.Close()
	}
	must(x.b, x.s.Close())
}

// benchPebble writes what benchStore writes.
type benchPebble struct {
	b       *testing.B
	db      *pebble.DB
	headers []Header
}

func newBenchPebble(b *testing.B, objects int) *benchPebble {
	e := &Config{}
	e.setDefaults()
	cache := pebble.NewCache(e.CacheSize)
	defer cache.Unref()
	o := pebbleOptions(e, &graveFS{g: newGrave()}, cache)
	o.FS, o.Logger = nil, quiet{}
	db, err := pebble.Open(b.TempDir(), o)
	must(b, err)
	x := &benchPebble{b: b, db: db, headers: make([]Header, objects)}
	for i := range objects {
		x.headers[i] = Header{Epoch: 1, Class: "Room", Name: "lobby", Exists: true}
		id := benchObject(i)
		must(b, db.Set(append(appendObjectKey(nil, &id, kindKey), "state"...), make([]byte, 128), pebble.NoSync))
	}
	return x
}

func (x *benchPebble) turn(i int) {
	id := benchObject(i)
	k := append(appendObjectKey(nil, &id, kindKey), "state"...)
	v, c, err := x.db.Get(k)
	if err != nil {
		x.b.Error(err)
		return
	}
	w := append([]byte(nil), v...)
	c.Close()
	w[0]++
	x.headers[i].Seq++
	b := x.db.NewBatch()
	err = b.Set(k, w, nil)
	err2 := b.Set(appendObjectKey(nil, &id, kindHeader), appendHeader(nil, &x.headers[i]), nil)
	err3 := b.Commit(pebble.Sync)
	if err != nil || err2 != nil || err3 != nil {
		x.b.Error(err, err2, err3)
	}
	b.Close()
}

func (x *benchPebble) close() { must(x.b, x.db.Close()) }

// loaded returns a store of one object with 1,000 keys, in tables as after a
// restart.
func loaded(b *testing.B) (*Store, *Object, *pebble.DB) {
	cfg := Config{Dir: b.TempDir()}
	s := mustOpen(b, cfg)
	o := s.Object(ID{1}, "Room", "lobby")
	for i := range 1000 {
		must(b, o.Put(fmt.Sprintf("key-%06d", i), make([]byte, 128)))
	}
	must(b, commitWait(b, o))
	o.Close()
	must(b, s.Close())
	s = mustOpen(b, cfg)
	return s, s.Object(ID{1}, "Room", "lobby"), s.eng.(*pebbleEngine).db
}

// BenchmarkGet reads a warm key of an object, and the same with Pebble alone.
func BenchmarkGet(b *testing.B) {
	s, o, db := loaded(b)
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok, err := o.Get("key-000500"); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("raw", func(b *testing.B) {
		b.ReportAllocs()
		k := append(appendObjectKey(nil, &ID{1}, kindKey), "key-000500"...)
		for b.Loop() {
			v, c, err := db.Get(k)
			if err != nil {
				b.Fatal(err)
			}
			_ = append([]byte(nil), v...)
			c.Close()
		}
	})
	o.Close()
	must(b, s.Close())
}

// BenchmarkList lists 1,000 keys of an object with an empty write set, and the
// same with Pebble's iterator.
func BenchmarkList(b *testing.B) {
	s, o, db := loaded(b)
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l, err := o.List(ListOptions{})
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for l.Next() {
				n += len(l.Key()) + len(l.Value())
			}
			if l.Err() != nil || n != 1000*(10+128) {
				b.Fatal(l.Err(), n)
			}
			l.Close()
		}
	})
	b.Run("raw", func(b *testing.B) {
		b.ReportAllocs()
		lower, upper := appendObjectKey(nil, &ID{1}, kindKey), appendObjectKey(nil, &ID{1}, kindEnd)
		for b.Loop() {
			it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for ok := it.First(); ok; ok = it.Next() {
				n += len(it.Key()) - keyOffset + len(it.Value())
			}
			if n != 1000*(10+128) {
				b.Fatal(n)
			}
			if err := it.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	o.Close()
	must(b, s.Close())
}

// BenchmarkTables is what the block size and the filter were chosen by: 2,000
// objects of 100 keys of 128 bytes, in tables, with a cache of a tenth of that.
// A hit and a miss read one random key, a list all of a random object, a wake
// the header and three keys of one.
func BenchmarkTables(b *testing.B) {
	const objects, keys = 2000, 100
	for _, block := range []int{4 << 10, 16 << 10, 32 << 10} {
		for _, bits := range []int{0, 10} {
			b.Run(fmt.Sprintf("block=%d/filter=%d", block, bits), func(b *testing.B) {
				cfg := &Config{CacheSize: 3 << 20}
				cfg.setDefaults()
				cache := pebble.NewCache(cfg.CacheSize)
				defer cache.Unref()
				o := pebbleOptions(cfg, &graveFS{g: newGrave()}, cache)
				o.FS, o.Logger = nil, quiet{}
				for i := range o.Levels {
					o.Levels[i].BlockSize = block
					if bits == 0 {
						o.Levels[i].FilterPolicy = nil
					}
				}
				dir := b.TempDir()
				db, err := pebble.Open(dir, o)
				must(b, err)
				rng := rand.New(rand.NewPCG(1, 2))
				value := make([]byte, 128)
				key := func(object, k int, kind byte) []byte {
					id := benchObject(object)
					return fmt.Appendf(appendObjectKey(nil, &id, kind), "key-%06d", k)
				}
				for i := range objects {
					batch := db.NewBatch()
					for k := range keys {
						for j := range value {
							value[j] = byte('a' + rng.IntN(16))
						}
						must(b, batch.Set(key(i, 2*k, kindKey), value, nil))
					}
					id := benchObject(i)
					must(b, batch.Set(appendObjectKey(nil, &id, kindHeader), appendHeader(nil, &goldenHeaders[0]), nil))
					must(b, db.Apply(batch, pebble.NoSync))
				}
				must(b, db.Flush())
				e := &pebbleEngine{db: db, g: newGrave(), writing: make(chan struct{}, 1), open: make(map[ID]*openHeader), cursors: make(map[*pebbleCursor]bool)}
				read := func(object, k int, want bool) {
					if _, ok, err := e.Get(benchObject(object), fmt.Sprintf("key-%06d", k)); ok != want || err != nil {
						b.Fatal(ok, err)
					}
				}
				b.Run("hit", func(b *testing.B) {
					for b.Loop() {
						read(rng.IntN(objects), 2*rng.IntN(keys), true)
					}
				})
				b.Run("miss", func(b *testing.B) {
					for b.Loop() {
						read(rng.IntN(objects), 2*rng.IntN(keys)+1, false)
					}
				})
				b.Run("list", func(b *testing.B) {
					for b.Loop() {
						c, err := e.Iterate(benchObject(rng.IntN(objects)), everything)
						must(b, err)
						for c.Next() {
						}
						must(b, c.Err())
						must(b, c.Close())
					}
				})
				b.Run("wake", func(b *testing.B) {
					for b.Loop() {
						object := rng.IntN(objects)
						id := benchObject(object)
						_, err := e.guardedHead(&id)
						must(b, err)
						for range 3 {
							read(object, 2*rng.IntN(keys), true)
						}
					}
				})
				must(b, db.Close())
			})
		}
	}
}

// BenchmarkLogSync appends 4 KiB to a write-ahead log and syncs it, as it is and filled ahead.
func BenchmarkLogSync(b *testing.B) {
	for _, filled := range []bool{false, true} {
		b.Run(fmt.Sprintf("filled=%t", filled), func(b *testing.B) {
			var f vfs.File
			f, err := vfs.Default.Create(filepath.Join(b.TempDir(), "000001.log"), vfs.WriteCategoryUnspecified)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			if filled {
				f = &logFile{File: f}
			}
			f = vfs.NewSyncingFile(f, vfs.SyncingFileOptions{NoSyncOnClose: true, PreallocateSize: 64 << 20}) // as Pebble has it
			p := make([]byte, 4<<10)
			for b.Loop() {
				_, err := f.Write(p)
				if err = errors.Join(err, f.Sync()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
