package store

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"
)

// gatedEngine lets one Commit through for each token.
type gatedEngine struct {
	Engine
	tokens chan struct{}
}

func (e *gatedEngine) Commit(c []Commit) []error {
	<-e.tokens
	return e.Engine.Commit(c)
}

// modelState is what an object should hold.
type modelState struct {
	keys  map[string]string
	alarm Alarm
}

func (m modelState) clone() modelState { return modelState{maps.Clone(m.keys), m.alarm} }

// list is the plain reading of semantics 12.5.
func (m modelState) list(opt ListOptions) []string {
	var keys []string
	for k := range m.keys {
		if (opt.Start == nil || k >= *opt.Start) && (opt.StartAfter == nil || k > *opt.StartAfter) &&
			(opt.End == nil || k < *opt.End) && strings.HasPrefix(k, opt.Prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	if opt.Reverse {
		slices.Reverse(keys)
	}
	if opt.Limit > 0 {
		keys = keys[:min(opt.Limit, len(keys))]
	}
	for i, k := range keys {
		keys[i] = k + "=" + m.keys[k]
	}
	return keys
}

func listed(t interface{ Fatal(...any) }, o *Object, opt ListOptions) (rows []string) {
	l, err := o.List(opt)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range l.All() {
		rows = append(rows, k+"="+string(v))
	}
	if l.Err() != nil {
		t.Fatal(l.Err())
	}
	return rows
}

// TestReadsSeeWritesOverEverything compares an object to a map, with its state
// spread over savepoints, write set, pending commits and the engine, and its
// handle closed and opened again at any time.
func TestReadsSeeWritesOverEverything(t *testing.T) {
	for _, engine := range []string{"pebble", "memory"} {
		t.Run(engine, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { modelRun(t, engine) })
		})
	}
}

func modelRun(t *rapid.T, engine string) {
	var below Engine
	if engine == "memory" {
		below = newMemEngine(&memDisk{})
	} else {
		cfg := smallConfig(vfs.NewMem())
		cfg.setDefaults()
		e, err := openPebble(&cfg)
		if err != nil {
			t.Fatal(err)
		}
		below = e
	}
	gate := &gatedEngine{below, make(chan struct{})}
	s := New(gate, Config{})

	id := ID{9}
	o := s.Object(id, "Class", "name")
	var committed, answered int
	var answers atomic.Int32
	order := make(chan int, 1000)
	stack := []modelState{{keys: map[string]string{}}} // the lowest is what was committed
	stack = append(stack, stack[0].clone())            // the write set, then savepoints
	dirty := func() *modelState { return &stack[len(stack)-1] }

	key := rapid.SampledFrom([]string{"", "a", "a\x00", "aa", "ab", "b", "b\xff", "\xff", "\xff\xff", "é"})
	bound := rapid.Custom(func(t *rapid.T) *string {
		if rapid.Bool().Draw(t, "none") {
			return nil
		}
		k := key.Draw(t, "bound")
		return &k
	})
	defer func() {
		close(gate.tokens)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for i := answered; i < committed; i++ {
			if got := <-order; got != i {
				t.Fatalf("answer %d came as number %d", got, i)
			}
		}
		if int(answers.Load()) != committed {
			t.Fatalf("%d answers to %d commits", answers.Load(), committed)
		}
	}()
	t.Repeat(map[string]func(*rapid.T){
		"put": func(t *rapid.T) {
			k, v := key.Draw(t, "key"), rapid.SampledFrom([]string{"", "x", "yy"}).Draw(t, "value")
			b := []byte(v)
			if err := o.Put(k, b); err != nil {
				t.Fatal(err)
			}
			for i := range b {
				b[i] = '!'
			}
			dirty().keys[k] = v
		},
		"delete": func(t *rapid.T) {
			keys := rapid.SliceOfN(key, 1, 3).Draw(t, "keys")
			want := 0
			for _, k := range keys {
				if _, ok := dirty().keys[k]; ok {
					want++
					delete(dirty().keys, k)
				}
			}
			if n, err := del(o, keys...); n != want || err != nil {
				t.Fatalf("deleted %d, %v, want %d", n, err, want)
			}
		},
		"deleteAll": func(t *rapid.T) {
			err := o.DeleteAll()
			if len(stack) > 2 {
				if err != ErrSavepoint {
					t.Fatalf("inside a savepoint: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			*dirty() = modelState{keys: map[string]string{}}
		},
		"alarm": func(t *rapid.T) {
			a := Alarm{Next: rapid.Int64Range(0, 3).Draw(t, "next")}
			if err := o.SetAlarm(a); err != nil {
				t.Fatal(err)
			}
			dirty().alarm = a
		},
		"begin": func(t *rapid.T) {
			if got, want := o.Begin(), len(stack)-1; got != want {
				t.Fatalf("depth %d, want %d", got, want)
			}
			stack = append(stack, dirty().clone())
		},
		"release": func(t *rapid.T) {
			if len(stack) == 2 {
				t.Skip()
			}
			depth := rapid.IntRange(1, len(stack)-2).Draw(t, "depth")
			o.Release(depth)
			stack = append(stack[:depth], *dirty())
		},
		"rollback": func(t *rapid.T) {
			if len(stack) == 2 {
				t.Skip()
			}
			depth := rapid.IntRange(1, len(stack)-2).Draw(t, "depth")
			o.Rollback(depth)
			stack = stack[:depth+1]
		},
		"undo": func(t *rapid.T) {
			o.Undo()
			stack = append(stack[:1], stack[0].clone())
		},
		"commit": func(t *rapid.T) {
			if len(stack) > 2 {
				t.Skip()
			}
			n := committed
			was := o.Dirty()
			did := o.Commit(func(err error) {
				if err != nil {
					panic(err)
				}
				answers.Add(1)
				order <- n
			})
			if did != was {
				t.Fatalf("dirty %v, committed %v", was, did)
			}
			if did {
				committed++
				stack[0] = stack[1].clone()
			}
		},
		"sync": func(t *rapid.T) {
			if answered == committed {
				t.Skip()
			}
			gate.tokens <- struct{}{}
			if got := <-order; got != answered {
				t.Fatalf("answer %d came as number %d", got, answered)
			}
			answered++
			for answered < committed { // the rest of the group, if any
				select {
				case got := <-order:
					if got != answered {
						t.Fatalf("answer %d came as number %d", got, answered)
					}
					answered++
					continue
				default:
				}
				break
			}
		},
		"reopen": func(t *rapid.T) {
			o.Close()
			o = s.Object(id, "Class", "")
			stack = append(stack[:1], stack[0].clone())
		},
		"list": func(t *rapid.T) {
			opt := ListOptions{Start: bound.Draw(t, "start"), End: bound.Draw(t, "end"), Reverse: rapid.Bool().Draw(t, "reverse"),
				Limit: rapid.SampledFrom([]int{0, 0, 1, 3}).Draw(t, "limit"), Prefix: rapid.SampledFrom([]string{"", "", "a", "\xff", "b"}).Draw(t, "prefix")}
			if opt.Start == nil {
				opt.StartAfter = bound.Draw(t, "startAfter")
			}
			if got, want := listed(t, o, opt), dirty().list(opt); !slices.Equal(got, want) {
				t.Fatalf("list %+v\n got %q\nwant %q", opt, got, want)
			}
		},
		"": func(t *rapid.T) {
			for _, k := range []string{"", "a", "aa", "\xff"} {
				v, ok, err := o.Get(k)
				want, there := dirty().keys[k]
				if err != nil || ok != there || string(v) != want || ok && v == nil {
					t.Fatalf("get %q: %q, %v, %v, want %q, %v", k, v, ok, err, want, there)
				}
			}
			if got, want := listed(t, o, ListOptions{}), dirty().list(ListOptions{}); !slices.Equal(got, want) {
				t.Fatalf("list\n got %q\nwant %q", got, want)
			}
			a, err := o.Alarm()
			if err != nil || a != dirty().alarm {
				t.Fatalf("alarm %+v, %v, want %+v", a, err, dirty().alarm)
			}
		},
	})
}

// TestListOptions is the table of semantics 12.5 and 12.6.
func TestListOptions(t *testing.T) {
	p := func(s string) *string { return &s }
	tests := []struct {
		opt  ListOptions
		want string
	}{
		{ListOptions{}, "a b c d e"},
		{ListOptions{Start: p("b")}, "b c d e"},
		{ListOptions{StartAfter: p("b")}, "c d e"},
		{ListOptions{End: p("d")}, "a b c"},
		{ListOptions{Start: p("b"), End: p("d")}, "b c"},
		{ListOptions{Start: p("b"), End: p("d"), Reverse: true}, "c b"},
		{ListOptions{StartAfter: p("b"), End: p("e"), Reverse: true, Limit: 1}, "d"},
		{ListOptions{Limit: 2}, "a b"},
		{ListOptions{Limit: 2, Reverse: true}, "e d"},
		{ListOptions{Reverse: true}, "e d c b a"},
		{ListOptions{Prefix: "c"}, "c"},
		{ListOptions{Prefix: "c", Start: p("a"), End: p("z")}, "c"},
		{ListOptions{Prefix: "c", Start: p("d")}, ""},
		{ListOptions{Prefix: "c", End: p("c")}, ""},
		{ListOptions{Prefix: "cc"}, ""},
		{ListOptions{Start: p("d"), End: p("b")}, ""},
		{ListOptions{Start: p("b"), End: p("b")}, ""},
		{ListOptions{End: p("")}, ""},
		{ListOptions{Start: p("")}, "a b c d e"},
		{ListOptions{StartAfter: p("")}, "a b c d e"},
	}
	eachLayer(t, func(t *testing.T, o *Object) {
		for _, test := range tests {
			var keys []string
			for _, row := range listed(t, o, test.opt) {
				keys = append(keys, strings.TrimSuffix(row, "=v"))
			}
			if got := strings.Join(keys, " "); got != test.want {
				t.Errorf("%+v: got %q, want %q", test.opt, got, test.want)
			}
		}
		if _, err := o.List(ListOptions{Start: p("a"), StartAfter: p("a")}); err != ErrListOptions {
			t.Errorf("start with startAfter: %v", err)
		}
	})
}

// eachLayer runs a test with the keys a to e = "v" in the write set, in pending
// commits, in the engine, and spread over all of them with deletions.
func eachLayer(t *testing.T, test func(t *testing.T, o *Object)) {
	for _, layer := range []string{"write set", "pending", "engine", "spread"} {
		t.Run(layer, func(t *testing.T) {
			gate := &gatedEngine{testPebble(t, vfs.NewMem()), make(chan struct{})}
			s := New(gate, Config{})
			o := s.Object(ID{1}, "C", "")
			put := func(keys string) {
				for _, k := range keys {
					must(t, o.Put(string(k), []byte("v")))
				}
			}
			sync := func() {
				done := make(chan error, 1)
				o.Commit(func(err error) { done <- err })
				gate.tokens <- struct{}{}
				must(t, <-done)
			}
			switch layer {
			case "write set":
				put("badce")
			case "pending":
				put("ad")
				o.Commit(nil)
				put("ebc")
				o.Commit(nil)
			case "engine":
				put("edcba")
				sync()
			case "spread":
				put("abcx")
				sync()
				put("dbcy")
				_, err := del(o, "x", "c")
				must(t, err)
				o.Commit(nil)
				put("ecz")
				_, err = del(o, "y")
				must(t, err)
				o.Begin()
				_, err = del(o, "z")
				must(t, err)
			}
			test(t, o)
			o.Undo()
			o.Close()
			close(gate.tokens)
			must(t, s.Close())
		})
	}
}

// TestListKeepsItsState writes and commits inside the loop.
func TestListKeepsItsState(t *testing.T) {
	eachLayer(t, func(t *testing.T, o *Object) {
		l, err := o.List(ListOptions{})
		must(t, err)
		var keys []string
		for k := range l.All() {
			keys = append(keys, k)
			_, err := del(o, "b", "d")
			must(t, err)
			must(t, o.Put(k+"+", []byte("new")))
			must(t, o.Put("e", []byte("new")))
			if o.Begin() == 1 {
				o.Release(1)
				o.Commit(nil)
			}
		}
		must(t, l.Err())
		if got := fmt.Sprint(keys); got != "[a b c d e]" {
			t.Fatal(got)
		}
		rows := listed(t, o, ListOptions{})
		if got := strings.Join(rows, " "); got != "a=v a+=new b+=new c=v c+=new d+=new e=new e+=new" {
			t.Fatal(got)
		}
	})
}

// hookEngine calls hook after each read that answered, once.
type hookEngine struct {
	*gatedEngine
	hook func()
}

func (e *hookEngine) after() {
	if h := e.hook; h != nil {
		e.hook = nil
		h()
	}
}

func (e *hookEngine) Iterate(id ID, b Bounds) (Cursor, error) {
	c, err := e.gatedEngine.Iterate(id, b)
	e.after()
	return c, err
}

func (e *hookEngine) Has(id ID, key string) (bool, error) {
	ok, err := e.gatedEngine.Has(id, key)
	e.after()
	return ok, err
}

// TestReadsMissNoCommitOnItsWayToTheDisk has commits leave the overlay between
// the two halves of a read.
func TestReadsMissNoCommitOnItsWayToTheDisk(t *testing.T) {
	for _, clear := range []bool{false, true} {
		for _, list := range []bool{false, true} {
			t.Run(fmt.Sprintf("list %v clear %v", list, clear), func(t *testing.T) {
				e := &hookEngine{gatedEngine: &gatedEngine{testPebble(t, vfs.NewMem()), make(chan struct{})}}
				s := New(e, Config{})
				o := s.Object(ID{1}, "C", "")
				must(t, o.Put("old", []byte("v")))
				done := make(chan error, 1)
				o.Commit(func(err error) { done <- err })
				e.tokens <- struct{}{}
				must(t, <-done)

				e.hook = func() { // the engine has answered: now it changes
					if clear {
						must(t, o.DeleteAll())
					}
					must(t, o.Put("new", []byte("w")))
					o.Commit(func(err error) { done <- err })
					e.tokens <- struct{}{}
					must(t, <-done)
				}
				if list {
					want := "[new=w old=v]"
					if clear {
						want = "[new=w]"
					}
					if got := fmt.Sprint(listed(t, o, ListOptions{})); got != want {
						t.Errorf("list %v, want %v", got, want)
					}
				} else {
					n, err := del(o, "new", "old")
					must(t, err)
					if want := map[bool]int{false: 2, true: 1}[clear]; n != want {
						t.Errorf("deleted %d, want %d", n, want)
					}
				}
				o.Close()
				close(e.tokens)
				must(t, s.Close())
			})
		}
	}
}

// TestPrefixEndsByBytes: keys are bytes, so a prefix that ends in U+FFFD, or in
// bytes that are no UTF-8, ends where its bytes do.
func TestPrefixEndsByBytes(t *testing.T) {
	s := mustOpen(t, Config{})
	defer s.Close()
	o := s.Object(ID{1}, "C", "")
	defer o.Close()
	keys := []string{"a", "a\ufffd", "a\ufffdx", "ab", "a\xfe", "a\xfe\xff", "a\xff", "a\xff\xff", "b", "\xff\xff"}
	for _, k := range keys {
		must(t, o.Put(k, []byte("v")))
	}
	for _, committed := range []bool{false, true} {
		if committed {
			must(t, commitWait(t, o))
		}
		for _, prefix := range keys {
			want := 0
			for _, k := range keys {
				if strings.HasPrefix(k, prefix) {
					want++
				}
			}
			l, err := o.List(ListOptions{Prefix: prefix})
			must(t, err)
			got := 0
			for k := range l.All() {
				if !strings.HasPrefix(k, prefix) {
					t.Errorf("prefix %q lists %q", prefix, k)
				}
				got++
			}
			must(t, l.Err())
			if got != want {
				t.Errorf("committed=%v: prefix %q lists %d keys, want %d", committed, prefix, got, want)
			}
		}
	}
}

// del deletes keys outside of turns.
func del(o *Object, keys ...string) (int, error) {
	return o.Delete(func(write func() error) error { return write() }, keys...)
}
