package store

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// engines are all that keep the contract. open returns the next engine on the
// same storage, after the last one was closed.
var engines = []struct {
	name string
	open func(t testing.TB) (open func() Engine)
}{
	{"pebble", func(t testing.TB) func() Engine {
		fs := vfs.NewMem()
		return func() Engine { return testPebble(t, fs) }
	}},
	{"memory", func(t testing.TB) func() Engine {
		disk := &memDisk{}
		return func() Engine { return newMemEngine(disk) }
	}},
}

// smallConfig takes little memory: a test may leave dead stores behind.
func smallConfig(fs vfs.FS) Config {
	return Config{Dir: "/db", FS: fs, CacheSize: 1 << 20, MemTableSize: 64 << 10}
}

func testPebble(t testing.TB, fs vfs.FS) *pebbleEngine {
	t.Helper()
	cfg := smallConfig(fs)
	cfg.setDefaults()
	e, err := openPebble(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestEngineContract is what every engine must pass.
func TestEngineContract(t *testing.T) {
	for _, eng := range engines {
		t.Run(eng.name, func(t *testing.T) {
			for _, test := range contractTests {
				t.Run(test.name, func(t *testing.T) {
					r := &contractTest{T: t, open: eng.open(t)}
					r.Engine = r.open()
					defer func() { must(t, r.Close()) }()
					test.run(r)
				})
			}
		})
	}
}

type contractTest struct {
	*testing.T
	Engine
	open func() Engine
}

// reopen closes the engine and opens the next.
func (r *contractTest) reopen() {
	r.Helper()
	must(r.T, r.Engine.Close())
	r.Engine = r.open()
}

// commit commits and compares the answers.
func (r *contractTest) commit(want []error, commits ...Commit) {
	r.Helper()
	for i, err := range r.Commit(commits) {
		if !errors.Is(err, want[i]) {
			r.Fatalf("answer %d of %d is %v, want %v", i, len(commits), err, want[i])
		}
	}
}

func (r *contractTest) ok(commits ...Commit) {
	r.Helper()
	r.commit(make([]error, len(commits)), commits...)
}

func (r *contractTest) head(id ID) Header {
	r.Helper()
	h, err := r.Open(id, r.Epoch())
	must(r.T, err)
	r.Release(id)
	return h
}

// keys returns an object's keys and values in order.
func (r *contractTest) keys(id ID, b Bounds) (rows []string) {
	r.Helper()
	c, err := r.Iterate(id, b)
	must(r.T, err)
	defer c.Close()
	for c.Next() {
		rows = append(rows, string(c.Key())+"="+string(c.Value()))
	}
	must(r.T, c.Err())
	return rows
}

func (r *contractTest) equal(got, want any) {
	r.Helper()
	if !reflect.DeepEqual(got, want) {
		r.Fatalf("got %+v, want %+v", got, want)
	}
}

var everything = Bounds{NoUpper: true}

func put(kv ...string) map[string][]byte {
	m := make(map[string][]byte)
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = []byte(kv[i+1])
	}
	return m
}

var (
	idA = ID{0: 1, 31: 1}
	idB = ID{0: 1, 31: 2}
	idC = ID{0: 2}
)

var contractTests = []struct {
	name string
	run  func(r *contractTest)
}{
	{"opening raises the epoch", func(r *contractTest) {
		first := r.Epoch()
		r.reopen()
		if r.Epoch() <= first {
			r.Fatalf("epoch %d after %d", r.Epoch(), first)
		}
	}},
	{"an object never written has no header", func(r *contractTest) {
		r.equal(r.head(idA), Header{})
		r.equal(r.keys(idA, everything), []string(nil))
	}},
	{"a commit is read back and survives reopening", func(r *contractTest) {
		epoch := r.Epoch()
		r.ok(Commit{ID: idA, Epoch: epoch, Class: "Room", Name: "a", Alarm: Alarm{Next: 5, Running: 3, Retry: 2, RetryAt: 9}, Writes: put("k", "v", "", "empty key", "nul\x00", "")})
		for range 2 {
			r.equal(r.head(idA), Header{Epoch: epoch, Seq: 1, Class: "Room", Name: "a", Alarm: Alarm{Next: 5, Running: 3, Retry: 2, RetryAt: 9}, Exists: true})
			r.equal(r.keys(idA, everything), []string{"=empty key", "k=v", "nul\x00="})
			v, ok, err := r.Get(idA, "nul\x00")
			if v == nil || len(v) != 0 || !ok || err != nil {
				r.Fatalf("an empty value is %q, %v, %v", v, ok, err)
			}
			ok, err = r.Has(idA, "nul")
			r.equal(ok, false)
			must(r.T, err)
			r.reopen()
		}
	}},
	{"each commit expects the seq before it", func(r *contractTest) {
		c := Commit{ID: idA, Epoch: r.Epoch(), Writes: put("k", "1")}
		late := c
		late.Seq, late.Writes = 1, put("k", "2")
		ahead := c
		ahead.Seq, ahead.Writes = 5, put("k", "3")
		r.commit([]error{nil, ErrFenced, nil, ErrFenced, ErrFenced}, c, c, late, late, ahead)
		r.equal(r.keys(idA, everything), []string{"k=2"})
		r.equal(r.head(idA).Seq, uint64(2))
	}},
	{"a fenced commit leaves nothing, its neighbours all", func(r *contractTest) {
		epoch := r.Epoch()
		r.commit([]error{nil, ErrFenced, nil},
			Commit{ID: idA, Epoch: epoch, Writes: put("k", "a")},
			Commit{ID: idB, Epoch: epoch, Seq: 3, Class: "Room", Alarm: Alarm{Next: 4}, Writes: put("k", "b")},
			Commit{ID: idC, Epoch: epoch, Writes: put("k", "c")})
		r.equal(r.keys(idB, everything), []string(nil))
		r.equal(r.head(idB), Header{})
		due, err := r.Due(context.Background(), Due{}, 1000, 10)
		must(r.T, err)
		r.equal(len(due), 0)
		r.equal(r.keys(idC, everything), []string{"k=c"})
	}},
	{"an earlier epoch is fenced", func(r *contractTest) {
		old := r.Epoch()
		r.ok(Commit{ID: idA, Epoch: old, Writes: put("k", "1")})
		r.reopen()
		r.commit([]error{ErrFenced, ErrFenced}, Commit{ID: idA, Epoch: old, Seq: 1, Writes: put("k", "2")}, Commit{ID: idB, Epoch: old, Writes: put("k", "2")})
		r.ok(Commit{ID: idA, Epoch: r.Epoch(), Seq: 1, Writes: put("k", "3")})
		if _, err := r.Open(idA, old); !errors.Is(err, ErrFenced) {
			r.Fatalf("open under an earlier epoch: %v", err)
		}
		r.equal(r.keys(idA, everything), []string{"k=3"})
	}},
	{"limits are kept to", func(r *contractTest) {
		l := r.Limits()
		big := func(n int) string { return string(make([]byte, n)) }
		e := r.Epoch()
		r.commit([]error{ErrTooLarge, ErrTooLarge, ErrTooLarge, ErrTooLarge, nil},
			Commit{ID: idA, Epoch: e, Writes: put(big(l.Key+1), "")},
			Commit{ID: idA, Epoch: e, Writes: put("k", big(l.Commit))},
			Commit{ID: idA, Epoch: e, Class: big(l.Class + 1), Writes: put("k", "")},
			Commit{ID: idA, Epoch: e, Name: big(l.Name + 1), Writes: put("k", "")},
			Commit{ID: idA, Epoch: e, Class: big(l.Class), Name: big(l.Name), Writes: put(big(l.Key), big(l.Commit-l.Key-writeOverhead))})
		r.equal(r.head(idA).Seq, uint64(1))
	}},
	{"class and name are kept from the first commit, a name may be learned", func(r *contractTest) {
		e := r.Epoch()
		r.ok(Commit{ID: idA, Epoch: e, Class: "Room", Writes: put("k", "")})
		r.ok(Commit{ID: idA, Epoch: e, Seq: 1, Class: "Other", Name: "n", Writes: put("k", "")})
		r.ok(Commit{ID: idA, Epoch: e, Seq: 2, Class: "Other", Name: "m", Writes: put("k", "")})
		h := r.head(idA)
		r.equal([]string{h.Class, h.Name}, []string{"Room", "n"})
	}},
	{"clear deletes before the writes of its commit", func(r *contractTest) {
		e := r.Epoch()
		r.ok(Commit{ID: idA, Epoch: e, Writes: put("a", "1", "b", "2", "\xff\xff", "3")}, Commit{ID: idB, Epoch: e, Writes: put("a", "keep")})
		r.ok(Commit{ID: idA, Epoch: e, Seq: 1, Clear: true, Writes: map[string][]byte{"b": []byte("4"), "c": nil}})
		r.equal(r.keys(idA, everything), []string{"b=4"})
		r.equal(r.keys(idB, everything), []string{"a=keep"})
	}},
	{"an object cleared for good leaves nothing behind", func(r *contractTest) {
		e := r.Epoch()
		r.ok(Commit{ID: idA, Epoch: e, Class: "Room", Alarm: Alarm{Next: 3}, Writes: put("a", "1")})
		_, err := r.Open(idA, e)
		must(r.T, err)
		r.ok(Commit{ID: idA, Epoch: e, Seq: 1, Class: "Room", Clear: true, Writes: map[string][]byte{"a": nil}})
		r.equal(r.head(idA), Header{Epoch: e, Seq: 2})
		// While it is open, who expects the seq of before stays fenced.
		r.commit([]error{ErrFenced, ErrFenced}, Commit{ID: idA, Epoch: e, Seq: 1, Writes: put("a", "x")}, Commit{ID: idA, Epoch: e, Writes: put("a", "x")})
		r.Release(idA)
		r.equal(r.head(idA), Header{})
		infos, err := r.Class(context.Background(), "Room", ID{}, 10)
		must(r.T, err)
		r.equal(len(infos), 0)
		due, err := r.Due(context.Background(), Due{}, 1000, 10)
		must(r.T, err)
		r.equal(len(due), 0)
		r.ok(Commit{ID: idA, Epoch: e, Class: "Room", Writes: put("a", "2")})
		r.equal(r.keys(idA, everything), []string{"a=2"})
	}},
	{"cursors keep to their bounds and direction", func(r *contractTest) {
		r.ok(Commit{ID: idA, Epoch: r.Epoch(), Writes: put("", "0", "a", "1", "ab", "2", "b", "3", "é", "4", "\U0001F600", "5", "\xff", "6")},
			Commit{ID: idB, Epoch: r.Epoch(), Writes: put("x", "other")})
		r.equal(r.keys(idA, everything), []string{"=0", "a=1", "ab=2", "b=3", "é=4", "\U0001F600=5", "\xff=6"})
		r.equal(r.keys(idA, Bounds{Lower: "a", Upper: "b"}), []string{"a=1", "ab=2"})
		r.equal(r.keys(idA, Bounds{Lower: "a\x00", Upper: "\xff", Reverse: true}), []string{"\U0001F600=5", "é=4", "b=3", "ab=2"})
		r.equal(r.keys(idA, Bounds{Lower: "b", NoUpper: true, Reverse: true}), []string{"\xff=6", "\U0001F600=5", "é=4", "b=3"})
	}},
	{"a cursor sees its object as it was", func(r *contractTest) {
		e := r.Epoch()
		r.ok(Commit{ID: idA, Epoch: e, Writes: put("a", "1", "b", "2")})
		c, err := r.Iterate(idA, everything)
		must(r.T, err)
		defer c.Close()
		r.ok(Commit{ID: idA, Epoch: e, Seq: 1, Clear: true, Writes: put("c", "3")})
		var keys []string
		for c.Next() {
			keys = append(keys, string(c.Key()))
		}
		must(r.T, c.Err())
		r.equal(keys, []string{"a", "b"})
	}},
	{"the alarm index follows the headers", func(r *contractTest) {
		e := r.Epoch()
		due := func(before int64, limit int, want ...Due) {
			r.Helper()
			got, err := r.Due(context.Background(), Due{}, before, limit)
			must(r.T, err)
			if !slices.Equal(got, want) {
				r.Fatalf("due before %d: %v, want %v", before, got, want)
			}
		}
		r.ok(Commit{ID: idA, Epoch: e, Class: "A", Alarm: Alarm{Next: 300}}, Commit{ID: idB, Epoch: e, Class: "B", Alarm: Alarm{Next: 7}},
			Commit{ID: idC, Epoch: e, Class: "C", Writes: put("k", "")})
		due(6, 10)
		due(7, 10, Due{idB, "B", 7})
		due(300, 10, Due{idB, "B", 7}, Due{idA, "A", 300})
		due(1<<63-1, 1, Due{idB, "B", 7})
		due(1000, 0)
		// Running hides Next, a retry hides both.
		r.ok(Commit{ID: idB, Epoch: e, Seq: 1, Alarm: Alarm{Running: 7, Next: 5}})
		due(1000, 10, Due{idB, "B", 7}, Due{idA, "A", 300})
		r.ok(Commit{ID: idB, Epoch: e, Seq: 2, Alarm: Alarm{Running: 7, Retry: 1, RetryAt: 400}})
		due(1000, 10, Due{idA, "A", 300}, Due{idB, "B", 400})
		r.reopen()
		due(1000, 10, Due{idA, "A", 300}, Due{idB, "B", 400})
		r.ok(Commit{ID: idA, Epoch: r.Epoch(), Seq: 1, Writes: put("k", "")}) // no alarm
		due(1000, 10, Due{idB, "B", 400})
		r.ok(Commit{ID: idB, Epoch: r.Epoch(), Seq: 3, Clear: true})
		due(1000, 10)
	}},
	{"the alarm index is read on behind what was read", func(r *contractTest) {
		e := r.Epoch()
		var commits []Commit
		var all []Due
		for at := range int64(3) { // several at one time, the ids on either side of a byte's end
			for _, id := range []ID{{31: 1}, {31: 0xff}, {30: 1}, {0: 0xff, 31: 0xff}} {
				id[15] = byte(at)
				commits = append(commits, Commit{ID: id, Epoch: e, Class: "C", Alarm: Alarm{Next: 5 + at}})
				all = append(all, Due{id, "C", 5 + at})
			}
		}
		r.ok(commits...)
		for limit := 1; limit <= len(all)+1; limit++ {
			var got []Due
			for after := (Due{}); ; {
				due, err := r.Due(context.Background(), after, 1<<63-1, limit)
				must(r.T, err)
				if len(due) > limit {
					r.Fatalf("%d objects for a limit of %d", len(due), limit)
				}
				if len(due) == 0 {
					break
				}
				got = append(got, due...)
				after = due[len(due)-1]
			}
			r.equal(got, all)
		}
		due, err := r.Due(context.Background(), Due{Due: 6}, 6, 10) // from a time on
		must(r.T, err)
		r.equal(due, all[4:8])
		due, err = r.Due(context.Background(), all[9], 6, 10)
		must(r.T, err)
		r.equal(len(due), 0)
	}},
	{"a class lists its objects that hold something", func(r *contractTest) {
		e := r.Epoch()
		class := func(class string, after ID, limit int, want ...Info) {
			r.Helper()
			got, err := r.Class(context.Background(), class, after, limit)
			must(r.T, err)
			if !slices.Equal(got, want) {
				r.Fatalf("class %q after %v: %v, want %v", class, after, got, want)
			}
		}
		idD := ID{0: 0xff, 31: 0xff}
		for i := range idD {
			idD[i] = 0xff
		}
		r.ok(Commit{ID: idA, Epoch: e, Class: "Room", Name: "a", Writes: put("k", "")},
			Commit{ID: idB, Epoch: e, Class: "Room", Alarm: Alarm{Next: 1}},
			Commit{ID: idC, Epoch: e, Class: "Roo", Name: "c", Writes: put("k", "")},
			Commit{ID: idD, Epoch: e, Class: "Room", Name: "d", Writes: put("k", "")})
		class("Room", ID{}, 10, Info{idA, "a"}, Info{idB, ""}, Info{idD, "d"})
		class("Room", ID{}, 1, Info{idA, "a"})
		class("Room", idA, 10, Info{idB, ""}, Info{idD, "d"})
		class("Room", idD, 10)
		class("Roo", ID{}, 10, Info{idC, "c"})
		class("Nobody", ID{}, 10)
		r.ok(Commit{ID: idA, Epoch: e, Seq: 1, Writes: map[string][]byte{"k": nil}}, Commit{ID: idB, Epoch: e, Seq: 1, Clear: true})
		class("Room", ID{}, 10, Info{idD, "d"})
	}},
	{"a closed engine is unavailable, cursors too", func(r *contractTest) {
		r.ok(Commit{ID: idA, Epoch: r.Epoch(), Writes: put("a", "1", "b", "2")})
		c, err := r.Iterate(idA, everything)
		must(r.T, err)
		defer c.Close()
		if !c.Next() || string(c.Key()) != "a" {
			r.Fatal("no first key")
		}
		must(r.T, r.Engine.Close())
		r.equal(string(c.Key())+string(c.Value()), "a1")
		if c.Next() || !errors.Is(c.Err(), ErrUnavailable) {
			r.Fatalf("cursor goes on: %v", c.Err())
		}
		_, _, err = r.Get(idA, "a")
		_, err2 := r.Open(idA, r.Epoch())
		_, err3 := r.Iterate(idA, everything)
		_, err4 := r.Due(context.Background(), Due{}, 1, 1)
		_, err5 := r.Class(context.Background(), "", ID{}, 1)
		for i, err := range []error{err, err2, err3, err4, err5} {
			if !errors.Is(err, ErrUnavailable) {
				r.Fatalf("call %d: %v", i, err)
			}
		}
	}},
	{"a canceled scan says so", func(r *contractTest) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := r.Due(ctx, Due{}, 1, 1)
		_, err2 := r.Class(ctx, "", ID{}, 1)
		if !errors.Is(err, context.Canceled) || !errors.Is(err2, context.Canceled) {
			r.Fatal(fmt.Sprint(err, err2))
		}
	}},
}
