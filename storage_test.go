package hibernate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

// storage runs f in a turn of an object that has nothing stored, on disk.
func storage(t *testing.T, o *hibernate.Options, f func(t *testing.T, ctx context.Context, st *hibernate.Storage)) {
	r := newRig(t, t.TempDir(), o)
	r.act(&script{}, nil)
	r.must("a", func(ctx context.Context, a *actor) error { f(t, ctx, a.state.Storage()); return nil })
}

// keys lists the keys of r, separated by spaces, or the error.
func keys(ctx context.Context, r hibernate.Reader, o ...hibernate.ListOption) string {
	var ks []string
	for e, err := range hibernate.List[any](ctx, r, o...) {
		if err != nil {
			return "error: " + err.Error()
		}
		ks = append(ks, e.Key)
	}
	return strings.Join(ks, " ")
}

func put(t *testing.T, ctx context.Context, w hibernate.Writer, ks ...string) {
	t.Helper()
	for _, k := range ks {
		if err := hibernate.Put(ctx, w, k, k); err != nil {
			t.Errorf("put %q: %v", k, err)
		}
	}
}

// TestStorageSurvivesHibernationAndRestart (semantics 12.7, 14.1).
func TestStorageSurvivesHibernationAndRestart(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir, nil)
	r.act(&script{}, nil)
	type row struct {
		At   time.Time
		Raw  []byte
		Next map[int]*row
	}
	want := row{At: epoch.Add(12345), Raw: []byte{0, 255}, Next: map[int]*row{7: {Raw: []byte("in")}}}
	look := func(when string) {
		t.Helper()
		r.must("a", func(ctx context.Context, a *actor) error {
			got, ok, err := hibernate.Get[row](ctx, a.state.Storage(), "k")
			if !ok || err != nil || !got.At.Equal(want.At) || !bytes.Equal(got.Raw, want.Raw) || len(got.Next) != 1 || string(got.Next[7].Raw) != "in" {
				t.Errorf("%s: %+v, %v, %v", when, got, ok, err)
			}
			if _, ok, err := hibernate.Get[row](ctx, a.state.Storage(), "missing"); ok || err != nil {
				t.Errorf("%s: missing key: %v, %v", when, ok, err)
			}
			if a.state.Name() != "a" || a.state.Class() != "Test" || a.state.ID() != r.ns.IDFromName("a") {
				t.Errorf("%s: %q of %q", when, a.state.Name(), a.state.Class())
			}
			return nil
		})
	}
	r.must("a", func(ctx context.Context, a *actor) error { return hibernate.Put(ctx, a.state.Storage(), "k", want) })
	look("awake")
	r.hibernate()
	look("asleep")
	r.must("b", func(ctx context.Context, b *actor) error {
		if got := keys(ctx, b.state.Storage()); got != "" {
			t.Errorf("another object sees %q", got)
		}
		return nil
	})
	r.shut()
	r = newRig(t, dir, nil)
	r.act(&script{}, nil)
	r.instances(0) // nothing constructs an object at start-up (14.2)
	look("restarted")
}

// TestStorageWritesAreSeenAtOnce, deletions tell how many existed, and keys may
// be empty or hold any byte (12.1 to 12.4).
func TestStorageWritesAreSeenAtOnce(t *testing.T) {
	storage(t, nil, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		put(t, ctx, st, "", "b", "a", "\x00", "é", "z", "\U0001F600", "\uFFFD")
		if got, want := keys(ctx, st), " \x00 a b z é \uFFFD \U0001F600"; got != want { // UTF-8 order, not UTF-16
			t.Errorf("keys %q, want %q", got, want)
		}
		if n, err := st.Delete(ctx, "a", "missing", "", "a"); n != 2 || err != nil {
			t.Errorf("deleted %d, %v", n, err)
		}
		if n, err := st.Delete(ctx, "a"); n != 0 || err != nil {
			t.Errorf("deleted %d, %v", n, err)
		}
		if n, err := st.Delete(ctx); n != 0 || err != nil {
			t.Errorf("deleted %d, %v", n, err)
		}
		got, err := hibernate.GetMany[string](ctx, st, "z", "b", "missing", "b", "\x00")
		if want := []hibernate.Entry[string]{{"\x00", "\x00"}, {"b", "b"}, {"z", "z"}}; !slices.Equal(got, want) || err != nil {
			t.Errorf("GetMany %v, %v", got, err)
		}
		if got, err := hibernate.GetMany[string](ctx, st); len(got) != 0 || err != nil {
			t.Errorf("GetMany of nothing: %v, %v", got, err)
		}
		if err := hibernate.PutMany(ctx, st, map[string]int{"m1": 1, "m2": 2}); err != nil {
			t.Error(err)
		}
		if v, ok, err := hibernate.Get[int](ctx, st, "m2"); v != 2 || !ok || err != nil {
			t.Errorf("m2: %v, %v, %v", v, ok, err)
		}
	})
}

// TestStorageBytesAreCopied on the way in and out.
func TestStorageBytesAreCopied(t *testing.T) {
	storage(t, nil, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		b := []byte("before")
		if err := st.PutBytes(ctx, "k", b); err != nil {
			t.Error(err)
		}
		copy(b, "after!")
		for range 2 {
			got, ok, err := st.GetBytes(ctx, "k")
			if string(got) != "before" || !ok || err != nil {
				t.Errorf("%q, %v, %v", got, ok, err)
			}
			clear(got)
		}
		if err := st.PutBytes(ctx, "empty", nil); err != nil {
			t.Error(err)
		}
		if got, ok, err := st.GetBytes(ctx, "empty"); len(got) != 0 || !ok || err != nil {
			t.Errorf("empty: %q, %v, %v", got, ok, err)
		}
		for e, err := range st.ListBytes(ctx) {
			if err != nil {
				t.Error(err)
			}
			clear(e.Value)
		}
		if got, _, _ := st.GetBytes(ctx, "k"); string(got) != "before" {
			t.Errorf("after changing the list's: %q", got)
		}
	})
}

// TestStorageKeepsTypes through each codec.
func TestStorageKeepsTypes(t *testing.T) {
	for name, codec := range map[string]hibernate.Codec{"CBOR": nil, "JSON": hibernate.JSON()} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", nil)
			r.act(&script{}, &hibernate.ClassOptions{Codec: codec})
			r.must("a", func(ctx context.Context, a *actor) error {
				st := a.state.Storage()
				same(t, ctx, st, 42)
				same(t, ctx, st, int64(math.MinInt64))
				same(t, ctx, st, uint64(math.MaxUint64))
				same(t, ctx, st, 1.5)
				same(t, ctx, st, "é\x00")
				same(t, ctx, st, true)
				same(t, ctx, st, []byte{0, 1, 255})
				same(t, ctx, st, []string{"a", "b"})
				same(t, ctx, st, map[string]int{"a": 1})
				same(t, ctx, st, map[int]string{1: "a"})
				same(t, ctx, st, [2]bool{true, false})
				same(t, ctx, st, epoch)
				same(t, ctx, st, time.Minute)
				same(t, ctx, st, (*int)(nil))
				same(t, ctx, st, struct{ A, B int }{1, 2})
				if err := hibernate.Put(ctx, st, "bad", make(chan int)); err == nil {
					t.Error("a channel was stored")
				}
				put(t, ctx, st, "text")
				if _, ok, err := hibernate.Get[int](ctx, st, "text"); ok || err == nil || !strings.Contains(err.Error(), `"text"`) {
					t.Errorf("text as int: %v, %v", ok, err)
				}
				return nil
			})
		})
	}
}

func same[V any](t *testing.T, ctx context.Context, st *hibernate.Storage, v V) {
	t.Helper()
	if err := hibernate.Put(ctx, st, "k", v); err != nil {
		t.Errorf("put %v: %v", v, err)
	}
	got, ok, err := hibernate.Get[V](ctx, st, "k")
	if !ok || err != nil || !reflect.DeepEqual(got, v) {
		t.Errorf("%T %v came back as %v, %v, %v", v, v, got, ok, err)
	}
}

// TestListSelects: every option, and that they combine by intersection (12.5).
func TestListSelects(t *testing.T) {
	type o = []hibernate.ListOption
	s, sa, e, p, l, rev := hibernate.Start, hibernate.StartAfter, hibernate.End, hibernate.Prefix, hibernate.Limit, hibernate.Reverse()
	storage(t, nil, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		for _, where := range []string{"uncommitted", "committed"} {
			if where == "uncommitted" {
				put(t, ctx, st, "a", "a1", "a2", "b", "b1", "c")
			} else if err := st.Sync(ctx); err != nil {
				t.Error(err)
			}
			for _, tc := range []struct {
				o    o
				want string
			}{
				{o{}, "a a1 a2 b b1 c"},
				{o{s("a1")}, "a1 a2 b b1 c"},
				{o{s("a11")}, "a2 b b1 c"},
				{o{sa("a1")}, "a2 b b1 c"},
				{o{sa("zz")}, ""},
				{o{e("b")}, "a a1 a2"},
				{o{s("a1"), e("b1")}, "a1 a2 b"},
				{o{s("b"), e("b")}, ""},
				{o{s("c"), e("a")}, ""},
				{o{p("a")}, "a a1 a2"},
				{o{p("")}, "a a1 a2 b b1 c"},
				{o{p("x")}, ""},
				{o{p("a"), s("a2")}, "a2"},
				{o{p("a"), s("b")}, ""},
				{o{p("b"), s("a")}, "b b1"},
				{o{p("b"), e("a")}, ""},
				{o{p("a"), e("c")}, "a a1 a2"},
				{o{l(2)}, "a a1"},
				{o{l(100)}, "a a1 a2 b b1 c"},
				{o{rev}, "c b1 b a2 a1 a"},
				{o{rev, l(2)}, "c b1"},
				{o{rev, s("a1"), e("b1")}, "b a2 a1"},
				{o{rev, sa("a1"), e("b1")}, "b a2"},
				{o{rev, p("a"), l(2)}, "a2 a1"},
				{o{p("a"), s("a1"), e("a2"), l(5)}, "a1"},
			} {
				if got := keys(ctx, st, tc.o...); got != tc.want {
					t.Errorf("%s: list of %d options gives %q, want %q", where, len(tc.o), got, tc.want)
				}
			}
			for i, bad := range []o{{s("a"), sa("b")}, {l(0)}, {l(-1)}} {
				err := error(nil)
				n := 0
				for _, err = range st.ListBytes(ctx, bad...) {
					n++
				}
				if !errors.Is(err, hibernate.ErrInvalid) || n != 1 {
					t.Errorf("bad options %d: %d entries, %v", i, n, err)
				}
			}
		}
		for _, k := range []string{"\xff", "\xff\xff"} {
			if err := hibernate.Put(ctx, st, k, 1); err != nil {
				t.Error(err)
			}
		}
		if got := keys(ctx, st, p("\xff")); got != "\xff \xff\xff" {
			t.Errorf("prefix ff gives %q", got)
		}
		if got := keys(ctx, st, p("\xff"), rev); got != "\xff\xff \xff" {
			t.Errorf("prefix ff reversed gives %q", got)
		}
	})
}

// TestListMayWriteInItsLoop, and does not see it; it may be left early.
func TestListMayWriteInItsLoop(t *testing.T) {
	storage(t, nil, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		put(t, ctx, st, "a", "b", "c")
		_ = st.Sync(ctx)
		put(t, ctx, st, "bb")
		var got []string
		for e, err := range hibernate.List[string](ctx, st) {
			if err != nil {
				t.Error(err)
			}
			got = append(got, e.Key+"="+e.Value)
			put(t, ctx, st, e.Key+"x")
			_, _ = st.Delete(ctx, "c")
			_ = hibernate.Put(ctx, st, "bb", "changed")
		}
		if want := []string{"a=a", "b=b", "bb=bb", "c=c"}; !slices.Equal(got, want) {
			t.Errorf("listed %q", got)
		}
		if got := keys(ctx, st); got != "a ax b bb bbx bx cx" {
			t.Errorf("afterwards %q", got)
		}
		for _, err := range st.ListBytes(ctx) {
			if err != nil {
				t.Error(err)
			}
			break
		}
		put(t, ctx, st, "still works")
	})
}

// TestStorageLimits tell limit, maximum and what was given.
func TestStorageLimits(t *testing.T) {
	storage(t, nil, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		k, v := strings.Repeat("k", 2048), make([]byte, 131072)
		if err := st.PutBytes(ctx, k, v); err != nil {
			t.Errorf("at both limits: %v", err)
		}
		for what, err := range map[string]error{
			"2049/2048":     st.PutBytes(ctx, k+"k", nil),
			"131073/131072": st.PutBytes(ctx, "v", append(v, 0)),
		} {
			if got := limit(err); !strings.HasSuffix(got, " "+what) {
				t.Errorf("%s, want %s", got, what)
			}
		}
		_, _, err := hibernate.Get[int](ctx, st, k+"k")
		if got := limit(err); !strings.HasSuffix(got, " 2049/2048") {
			t.Errorf("get: %s", got)
		}
		_, err = st.Delete(ctx, "ok", k+"k")
		if got := limit(err); !strings.HasSuffix(got, " 2049/2048") {
			t.Errorf("delete: %s", got)
		}
		if _, err := hibernate.GetMany[any](ctx, st, numbered(128)...); err != nil {
			t.Errorf("128 keys: %v", err)
		}
		_, err = hibernate.GetMany[any](ctx, st, numbered(129)...)
		if got := limit(err); !strings.HasSuffix(got, " 129/128") {
			t.Errorf("129 keys: %s", got)
		}
		many := map[string]int{}
		for i := range 500 {
			many[fmt.Sprint("many", i)] = i
		}
		if err := hibernate.PutMany(ctx, st, many); err != nil {
			t.Errorf("500 puts: %v", err)
		}
		if n, err := st.Delete(ctx, slices.Collect(func(yield func(string) bool) {
			for k := range many {
				if !yield(k) {
					return
				}
			}
		})...); n != 500 || err != nil {
			t.Errorf("500 deletes: %d, %v", n, err)
		}
		if err := hibernate.PutMany(ctx, st, map[string]any{"good": 1, "bad": make([]byte, 131072)}); err == nil {
			t.Error("PutMany over the limit")
		}
		if _, ok, _ := st.GetBytes(ctx, "good"); ok {
			t.Error("PutMany set a part")
		}
	})
}

// TestStorageLimitsAreSettable.
func TestStorageLimitsAreSettable(t *testing.T) {
	storage(t, &hibernate.Options{Limits: hibernate.Limits{Key: 1, Value: 2, Keys: 3}}, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		if got := limit(st.PutBytes(ctx, "kk", nil)); !strings.HasSuffix(got, " 2/1") {
			t.Error(got)
		}
		if got := limit(st.PutBytes(ctx, "k", make([]byte, 3))); !strings.HasSuffix(got, " 3/2") {
			t.Error(got)
		}
		_, err := hibernate.GetMany[any](ctx, st, "1", "2", "3", "4")
		if got := limit(err); !strings.HasSuffix(got, " 4/3") {
			t.Error(got)
		}
	})
	for _, bad := range []hibernate.Limits{{Key: -1}, {Message: -1}, {Sockets: -1}, {Attachment: -1}} {
		if rt, err := hibernate.Open("", &hibernate.Options{Limits: bad}); err == nil {
			rt.Close()
			t.Errorf("opened with %+v", bad)
		}
	}
}

// TestCommitLimit: a turn writes at most 8 MiB, of which PutMany writes all or nothing.
// What there was room for stands.
func TestCommitLimit(t *testing.T) {
	storage(t, nil, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		put(t, ctx, st, "before")
		many := map[string][]byte{}
		for i := range 65 {
			many[fmt.Sprintf("m%02d", i)] = make([]byte, 131000)
		}
		err := hibernate.PutMany(ctx, st, many)
		var over *hibernate.LimitError
		if !errors.As(err, &over) || over.Max != 8<<20 || over.Got <= over.Max {
			t.Errorf("65 values of 128 KB: %v", err)
		}
		if got := keys(ctx, st); got != "before" {
			t.Errorf("it left %q", got)
		}
		delete(many, "m64")
		delete(many, "m63")
		if err := hibernate.PutMany(ctx, st, many); err != nil {
			t.Errorf("63 values: %v", err)
		}
		if err := st.PutBytes(ctx, "last", make([]byte, 131072)); err == nil {
			err = st.PutBytes(ctx, "one too many", make([]byte, 131072))
			if !errors.As(err, &over) {
				t.Errorf("one too many: %v", err)
			}
		}
	})
}

// TestTransactionCommitsOrRollsBack, with plain storage calls and alarms made in
// it; sends are no part of it; the turn goes on (12.10, 12.14, 12.15, 13.8).
func TestTransactionCommitsOrRollsBack(t *testing.T) {
	mine := errors.New("mine")
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	c := r.dial("/o/a")
	r.must("a", func(ctx context.Context, a *actor) error {
		st := a.state.Storage()
		put(t, ctx, st, "before")
		if err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
			put(t, ctx, tx, "tx1")
			put(t, ctx, st, "plain1")
			_ = hibernate.Await(ctx, nothing)
			if got := keys(ctx, tx); got != "before plain1 tx1" {
				t.Errorf("inside %q", got)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
			put(t, ctx, tx, "tx2")
			put(t, ctx, st, "plain2")
			_, _ = tx.Delete(ctx, "before")
			if err := tx.SetAlarm(ctx, epoch.AddDate(1, 0, 0)); err != nil {
				t.Error(err)
			}
			_ = only(a).SendText(ctx, "delivered")
			return mine
		}); err != mine {
			t.Errorf("returned %v", err)
		}
		if got := keys(ctx, st); got != "before plain1 tx1" {
			t.Errorf("after the rollback %q", got)
		}
		if _, ok, err := st.Alarm(ctx); ok || err != nil {
			t.Errorf("alarm after the rollback: %v, %v", ok, err)
		}
		func() {
			defer func() {
				if v := recover(); v != "mine too" {
					t.Errorf("recovered %v", v)
				}
			}()
			_ = st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
				put(t, ctx, tx, "tx3")
				panic("mine too")
			})
		}()
		put(t, ctx, st, "last")
		return nil
	})
	c.expect("text:delivered")
	r.instances(1)
	r.hibernate()
	r.must("a", func(ctx context.Context, a *actor) error {
		if got := keys(ctx, a.state.Storage()); got != "before last plain1 tx1" {
			t.Errorf("in the end %q", got)
		}
		return nil
	})
}

// TestTransactionsNest: an inner one rolls back alone, an outer rollback undoes
// a committed inner one (12.15).
func TestTransactionsNest(t *testing.T) {
	mine := errors.New("mine")
	storage(t, nil, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		nest := func(outer, inner error) {
			if err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
				put(t, ctx, tx, "outer1")
				if err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
					put(t, ctx, tx, "inner")
					_, _ = tx.Delete(ctx, "outer1")
					return inner
				}); err != inner {
					t.Errorf("inner returned %v", err)
				}
				put(t, ctx, tx, "outer2")
				return outer
			}); err != outer {
				t.Errorf("outer returned %v", err)
			}
		}
		nest(mine, mine)
		nest(mine, nil)
		if got := keys(ctx, st); got != "" {
			t.Errorf("outer rolled back: %q", got)
		}
		nest(nil, mine)
		if got := keys(ctx, st); got != "outer1 outer2" {
			t.Errorf("inner rolled back: %q", got)
		}
		nest(nil, nil)
		if got := keys(ctx, st); got != "inner outer2" {
			t.Errorf("both committed: %q", got)
		}
	})
}

// TestTransactionRollback undoes, can be called again, and ends the use of the
// transaction, which still returns its function's result (12.11, 12.12).
func TestTransactionRollback(t *testing.T) {
	mine := errors.New("mine")
	storage(t, nil, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		done := func(when string, ctx context.Context, tx *hibernate.Txn) {
			t.Helper()
			list := error(nil)
			for _, list = range tx.ListBytes(ctx) {
			}
			_, _, get := tx.GetBytes(ctx, "k")
			_, del := tx.Delete(ctx, "k")
			_, _, al := tx.Alarm(ctx)
			for name, err := range map[string]error{
				"put": tx.PutBytes(ctx, "k", nil), "get": get, "delete": del, "list": list, "alarm": al,
				"set alarm": tx.SetAlarm(ctx, epoch), "delete alarm": tx.DeleteAlarm(ctx),
			} {
				if !errors.Is(err, hibernate.ErrTxnDone) {
					t.Errorf("%s %s: %v", name, when, err)
				}
			}
		}
		for _, result := range []error{nil, mine} {
			var kept *hibernate.Txn
			if err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
				kept = tx
				put(t, ctx, tx, "undone")
				put(t, ctx, st, "undone too")
				for range 2 {
					if err := tx.Rollback(ctx); err != nil {
						t.Errorf("rollback: %v", err)
					}
				}
				done("after rollback", ctx, tx)
				if got := keys(ctx, st); strings.Contains(got, "undone") {
					t.Errorf("after rollback %q", got)
				}
				return result
			}); err != result {
				t.Errorf("returned %v, want %v", err, result)
			}
			done("after its function", ctx, kept)
			if err := kept.Rollback(ctx); !errors.Is(err, hibernate.ErrTxnDone) {
				t.Errorf("rollback after its function: %v", err)
			}
		}
		var kept *hibernate.Txn
		_ = st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
			kept = tx
			put(t, ctx, tx, "committed")
			return nil
		})
		if err := kept.Rollback(ctx); !errors.Is(err, hibernate.ErrTxnDone) {
			t.Errorf("rollback of a committed one: %v", err)
		}
		if got := keys(ctx, st); got != "committed" {
			t.Errorf("in the end %q", got)
		}
	})
}

// A lingering is a transaction of a goroutine that the handler does not wait for.
type lingering struct {
	end  chan struct{} // closed to have its function return
	over chan error    // what Transaction returned
}

// linger begins one that has written "lost", in the turn of ctx.
func linger(ctx context.Context, st *hibernate.Storage) *lingering {
	l := &lingering{make(chan struct{}), make(chan error, 1)}
	inside := make(chan error, 1)
	go func() {
		l.over <- st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
			inside <- hibernate.Put(ctx, tx, "lost", 1)
			<-l.end
			return nil
		})
	}()
	if err := <-inside; err != nil {
		l.over <- err
	}
	return l
}

// TestTransactionEndsWithItsTurn: what a goroutine has written in one that the handler did not
// wait for is undone, the turn's own writes stand, and the object goes on. When the
// goroutine ends it, it is told, and a transaction of the turn that runs then is not ended.
func TestTransactionEndsWithItsTurn(t *testing.T) {
	mine := errors.New("mine")
	for _, kind := range []string{"call", "constructor", "alarm"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, "", nil)
			var l *lingering
			turn := func(ctx context.Context, a *actor) error {
				put(t, ctx, a.state.Storage(), "kept")
				l = linger(ctx, a.state.Storage())
				return nil
			}
			s := &script{}
			switch kind {
			case "constructor":
				s.construct = turn
			case "alarm":
				s.alarm = func(ctx context.Context, a *actor, _ hibernate.AlarmInfo) error {
					defer a.tell("alarm")
					return turn(ctx, a)
				}
			}
			r.act(s, nil)
			switch kind {
			case "call":
				r.must("a", turn)
			case "alarm":
				r.must("a", func(ctx context.Context, a *actor) error {
					return a.state.Storage().SetAlarm(ctx, r.clock.Now().Add(time.Second))
				})
				r.clock.Advance(time.Second)
				r.hear("alarm")
			}
			r.must("a", func(ctx context.Context, a *actor) error {
				st := a.state.Storage()
				if err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
					put(t, ctx, tx, "undone")
					close(l.end)
					if err := <-l.over; !errors.Is(err, hibernate.ErrOutsideTurn) {
						t.Errorf("the transaction that lingers returns %v", err)
					}
					put(t, ctx, tx, "undone too")
					return mine
				}); err != mine {
					t.Errorf("returned %v", err)
				}
				if got := keys(ctx, st); got != "kept" {
					t.Errorf("in the end %q", got)
				}
				if at, ok, err := st.Alarm(ctx); ok || err != nil {
					t.Errorf("an alarm is set: %v, %v", at, err)
				}
				return nil
			})
			r.clock.Advance(time.Hour)
			r.silent()
		})
	}
}

// TestSyncBesideTransactions of other goroutines in the same turn is ErrState while one is
// open, whenever it comes.
func TestSyncBesideTransactions(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	r.must("a", func(ctx context.Context, a *actor) error {
		st := a.state.Storage()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 2000 {
				if err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
					return tx.PutBytes(ctx, "k", nil)
				}); err != nil {
					t.Error(err)
				}
			}
		}()
		for {
			select {
			case <-done:
				return nil
			default:
			}
			if err := st.Sync(ctx); err != nil && !errors.Is(err, hibernate.ErrState) {
				t.Error(err)
			}
		}
	})
}

// TestDeleteAll deletes keys and alarm, keeps writes after it, and is refused
// inside a transaction, as Sync is (12.13, 12.16).
func TestDeleteAll(t *testing.T) {
	storage(t, nil, func(t *testing.T, ctx context.Context, st *hibernate.Storage) {
		put(t, ctx, st, "committed")
		_ = st.Sync(ctx)
		put(t, ctx, st, "written")
		_ = st.SetAlarm(ctx, epoch.AddDate(1, 0, 0))
		if err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
			for name, err := range map[string]error{"tx": tx.DeleteAll(ctx), "storage": st.DeleteAll(ctx), "sync": st.Sync(ctx)} {
				if !errors.Is(err, hibernate.ErrState) {
					t.Errorf("%s inside: %v", name, err)
				}
			}
			put(t, ctx, tx, "goes on")
			return nil
		}); err != nil {
			t.Error(err)
		}
		if got := keys(ctx, st); got != "committed goes on written" {
			t.Errorf("before %q", got)
		}
		if err := st.DeleteAll(ctx); err != nil {
			t.Error(err)
		}
		put(t, ctx, st, "after")
		for range 2 {
			if got := keys(ctx, st); got != "after" {
				t.Errorf("after %q", got)
			}
			if _, ok, err := st.GetBytes(ctx, "committed"); ok || err != nil {
				t.Errorf("committed: %v, %v", ok, err)
			}
			if _, ok, err := st.Alarm(ctx); ok || err != nil {
				t.Errorf("alarm: %v, %v", ok, err)
			}
			_ = st.Sync(ctx)
		}
	})
}

// TestDeleteAllIsUndoneWithItsTurn.
func TestDeleteAllIsUndoneWithItsTurn(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	r.must("a", func(ctx context.Context, a *actor) error { put(t, ctx, a.state.Storage(), "k"); return nil })
	_ = r.in("a", func(ctx context.Context, a *actor) error {
		if err := a.state.Storage().DeleteAll(ctx); err != nil {
			t.Error(err)
		}
		panic("undo")
	})
	r.must("a", func(ctx context.Context, a *actor) error {
		if got := keys(ctx, a.state.Storage()); got != "k" {
			t.Errorf("keys %q", got)
		}
		return nil
	})
}

// TestTransactionHoldsOthers, also while it awaits (11.1, 12.10).
func TestTransactionHoldsOthers(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), nil)
	c := r.dial("/o/a")
	d := newDoor()
	done := r.later("a", func(ctx context.Context, a *actor) error {
		defer a.tell("transaction over")
		return a.state.Storage().Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
			_ = hibernate.Await(ctx, d.wait)
			put(t, ctx, tx, "k")
			return nil
		})
	})
	<-d.at
	c.send("held")
	c.ping("barrier")
	d.pass()
	r.hear("transaction over", "message held")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAbortInsideATransaction undoes it with everything else.
func TestAbortInsideATransaction(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	if err := r.in("a", func(ctx context.Context, a *actor) error {
		return a.state.Storage().Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
			put(t, ctx, tx, "dropped")
			_ = a.state.Abort(ctx, errors.New("enough"))
			if err := hibernate.Put(ctx, tx, "k", 1); !errors.Is(err, hibernate.ErrReset) {
				t.Errorf("put after it: %v", err)
			}
			return nil
		})
	}); !errors.Is(err, hibernate.ErrReset) {
		t.Errorf("the call ended with %v", err)
	}
	r.must("a", func(ctx context.Context, a *actor) error {
		if got := keys(ctx, a.state.Storage()); got != "" {
			t.Errorf("keys %q", got)
		}
		return nil
	})
}

// TestSyncedWritesSurviveAPanic; the others do not (10.6, 12.9).
func TestSyncedWritesSurviveAPanic(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir, nil)
	r.act(&script{}, nil)
	_ = r.in("a", func(ctx context.Context, a *actor) error {
		st := a.state.Storage()
		put(t, ctx, st, "synced")
		if err := st.Sync(ctx); err != nil {
			t.Error(err)
		}
		put(t, ctx, st, "undone")
		panic("undo")
	})
	r.shut()
	r = newRig(t, dir, nil)
	r.act(&script{}, nil)
	r.must("a", func(ctx context.Context, a *actor) error {
		if got := keys(ctx, a.state.Storage()); got != "synced" {
			t.Errorf("keys %q", got)
		}
		return nil
	})
}

// TestAllowUnconfirmedWritesLikeOthers: only the gate does not wait for them.
func TestAllowUnconfirmedWritesLikeOthers(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	r.act(&script{}, nil)
	c := r.dial("/o/a")
	r.must("a", func(ctx context.Context, a *actor) error {
		st := a.state.Storage()
		_ = only(a).SendText(ctx, "1")
		if err := hibernate.Put(ctx, st, "k", 1, hibernate.AllowUnconfirmed()); err != nil {
			t.Error(err)
		}
		_ = only(a).SendText(ctx, "2")
		if err := hibernate.PutMany(ctx, st, map[string]int{"m": 1}, hibernate.AllowUnconfirmed()); err != nil {
			t.Error(err)
		}
		return st.PutBytes(ctx, "b", nil, hibernate.AllowUnconfirmed())
	})
	c.expect("text:1", "text:2")
	r.hibernate()
	r.must("a", func(ctx context.Context, a *actor) error {
		if got := keys(ctx, a.state.Storage(), hibernate.Prefix("k")); got != "k" {
			t.Errorf("keys %q", got)
		}
		return a.state.Storage().Sync(ctx)
	})
}

// TestOutputKeepsItsOrderAcrossTheGate: what turns with and without writes send
// arrives in the order of the calls, also from WaitUntil work (4.9, 11.5).
func TestOutputKeepsItsOrderAcrossTheGate(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		if strings.HasSuffix(m.Text(), "0") || strings.HasSuffix(m.Text(), "3") {
			put(t, ctx, a.state.Storage(), m.Text())
		}
		return ws.SendText(ctx, m.Text())
	}}, nil)
	c := r.dial("/o/a")
	var b []byte
	var want []string
	for i := range 200 {
		b = append(b, frame(true, 1, fmt.Sprint(i))...)
		want = append(want, fmt.Sprintf("text:%d", i))
	}
	c.write(b)
	c.expect(want...)
}

// TestFramesOfAPanickingTurnNeverArrive, on any socket of the object, while
// those around it do.
func TestFramesOfAPanickingTurnNeverArrive(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		put(t, ctx, a.state.Storage(), m.Text())
		if _, err := a.state.Broadcast(ctx, m, nil); err != nil {
			t.Error(err)
		}
		if strings.HasPrefix(m.Text(), "bad") {
			panic(m.Text())
		}
		return nil
	}}, nil)
	c, d := r.dial("/o/a"), r.dial("/o/a")
	var b []byte
	for i := range 20 {
		b = append(b, frame(true, 1, fmt.Sprint("good", i))...)
		b = append(b, frame(true, 1, fmt.Sprint("bad", i))...)
	}
	c.write(b)
	for i := range 20 {
		c.expect(fmt.Sprint("text:good", i))
		d.expect(fmt.Sprint("text:good", i))
	}
	r.must("a", func(ctx context.Context, a *actor) error {
		if got := keys(ctx, a.state.Storage(), hibernate.Prefix("bad")); got != "" {
			t.Errorf("written by turns that panicked: %s", got)
		}
		return nil
	})
	if n := r.rt.Stats().Panics; n != 20 {
		t.Errorf("%d panics", n)
	}
}
