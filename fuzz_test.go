package hibernate_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"iter"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hibernate-go/hibernate"
)

// FuzzTags: what is accepted are the distinct ones in order, within the limits,
// and nothing else is refused. The tags are lines.
func FuzzTags(f *testing.F) {
	for _, seed := range []string{
		"", "a", "a\nb\na", "\n\n", "1\n2\n3\n4\n5\n6\n7\n8\n9\n10", "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11",
		"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n1", strings.Repeat("x\n", 20), strings.Repeat("é", 128), strings.Repeat("é", 129), "\xff", "a\n\xc3\x28",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, lines string) {
		tags := strings.Split(lines, "\n")
		kept := []string{}
		bad := ""
		for _, tag := range tags {
			switch {
			case bad != "":
			case len(kept) == 10:
				bad = "tags of one WebSocket"
			case len(tag) > 256:
				bad = "tag bytes"
			case !utf8.ValidString(tag):
				bad = "invalid"
			case !slices.Contains(kept, tag):
				kept = append(kept, tag)
			}
		}
		got, err := hibernate.NewTags(tags)
		var over *hibernate.LimitError
		switch {
		case bad == "":
			if err != nil || !slices.Equal(got, kept) {
				t.Fatalf("%q gave %q, %v, want %q", tags, got, err, kept)
			}
		case errors.As(err, &over):
			if over.Limit != bad || over.Got <= over.Max {
				t.Fatalf("%q: %v, want %s", tags, err, bad)
			}
		case !errors.Is(err, hibernate.ErrInvalid) || bad != "invalid" || len(got) > 0:
			t.Fatalf("%q gave %q, %v, want %s", tags, got, err, bad)
		}
	})
}

// A profile is a value with fields of many kinds.
type profile struct {
	Name  string
	Age   int
	Score float64
	Seen  time.Time
	Raw   []byte
	Tags  map[string]any
	Next  *profile
	List  []profile
	Any   any
}

// FuzzAttachmentBytes: a codec decodes whatever bytes without a panic and in
// memory that grows with them; and what it has decoded it encodes and decodes
// again to the same.
func FuzzAttachmentBytes(f *testing.F) {
	now := time.Unix(1_700_000_000, 123).UTC()
	values := []any{
		nil, 1, -1, 1.5, "é", []byte{0, 255}, now, []any{1, "a", nil}, map[any]any{1: "a", "b": []any{}},
		profile{Name: "n", Age: 3, Seen: now, Raw: []byte{1}, Tags: map[string]any{"a": 1.5}, Next: &profile{Any: "deep"}},
		nested(128), nested(100),
	}
	for _, v := range values {
		for _, c := range []hibernate.Codec{hibernate.CBOR(), hibernate.JSON()} {
			if b, err := c.Marshal(v); err == nil {
				f.Add(b)
			}
		}
	}
	for _, s := range []string{
		"9b7fffffffffffffff", "bb7fffffffffffffff", "5b7fffffffffffffff", "9a0001ffff", "9f9f9f9f", "bf", "5f41ff", // lengths that are not there
		"a1f97e00f6", "a1430102030405", "a1800102", "c24102", "c349010000000000000000", "d9ffff00", "c1fb7ff0000000000000", "c074323032362d30312d30325430333a30343a30355a",
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(bytes.Repeat([]byte{0x81}, 200))
	f.Add(bytes.Repeat([]byte("["), 200))
	f.Add([]byte(`"\\\"[[[" `))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 16384 {
			return
		}
		for name, c := range map[string]hibernate.Codec{"CBOR": hibernate.CBOR(), "JSON": hibernate.JSON()} {
			var p profile
			var list []any
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for _, v := range []any{new(any), &p, &list, new(map[string]any), new(map[any]int), new(string), new([]byte), new(time.Time), new(int8)} {
				if name == "JSON" && reflect.TypeOf(v) == reflect.TypeFor[*map[any]int]() {
					continue
				}
				_ = c.Unmarshal(b, v) // nearly always an error
			}
			runtime.ReadMemStats(&after)
			if took, most := after.TotalAlloc-before.TotalAlloc, uint64(1<<20+2000*len(b)); took > most {
				t.Fatalf("%s: %d bytes were decoded in %d bytes of memory", name, len(b), took)
			}
			var v any
			if c.Unmarshal(b, &v) != nil {
				continue
			}
			again, err := c.Marshal(v)
			if err != nil {
				continue // a time out of range, or NaN in JSON
			}
			var w any
			if err := c.Unmarshal(again, &w); err != nil && strings.Contains(err.Error(), "time.Time") {
				continue // a year that RFC 3339 cannot write, which CBOR's documentation excludes
			} else if err != nil {
				t.Fatalf("%s: %x decodes, and cannot be decoded again as %x: %v", name, b, again, err)
			}
			if third, err := c.Marshal(w); err != nil || !bytes.Equal(third, again) {
				t.Fatalf("%s: %x, %x, %x: %v", name, b, again, third, err)
			}
		}
	})
}

// nested is a list in a list, depth deep.
func nested(depth int) any {
	v := any([]any{})
	for range depth - 1 {
		v = []any{v}
	}
	return v
}

// TestCodecsReadWhatTheyWrite: what would be too deep or too long to be read is
// not written.
func TestCodecsReadWhatTheyWrite(t *testing.T) {
	for name, c := range map[string]hibernate.Codec{"CBOR": hibernate.CBOR(), "JSON": hibernate.JSON()} {
		for depth, ok := range map[int]bool{1: true, 128: true, 129: false, 5000: false} {
			if _, err := c.Marshal(nested(depth)); (err == nil) != ok {
				t.Errorf("%s: %d levels are written: %v", name, depth, err)
			}
			b := []byte(strings.Repeat("[", depth) + strings.Repeat("]", depth))
			if name == "CBOR" {
				b = append(bytes.Repeat([]byte{0x81}, depth-1), 0x80)
			}
			var v any
			if err := c.Unmarshal(b, &v); (err == nil) != ok {
				t.Errorf("%s: %d levels are read: %v", name, depth, err)
			}
		}
		if err := c.Unmarshal([]byte(`"[[[["`), new(any)); name == "JSON" && err != nil {
			t.Error(err)
		}
	}
	if _, err := hibernate.CBOR().Marshal(make([]int, 131073)); err == nil {
		t.Error("a list is written that is too long to be read")
	}
}

// FuzzListOptions: a list gives what the options say of the keys that there are,
// committed or not. The keys are lines; the bits of use are its options.
func FuzzListOptions(f *testing.F) {
	const start, after, end, prefix, limit, reverse, commit, txn = 1, 2, 4, 8, 16, 32, 64, 128
	keys := "a\na1\na2\nb\nb1\nc\n\n\xff\n\xff\xff"
	f.Add(keys, uint8(0), "", "", "", "", 0)
	f.Add(keys, uint8(start|end|reverse), "a1", "", "b1", "", 0)
	f.Add(keys, uint8(after|commit), "", "a", "", "", 0)
	f.Add(keys, uint8(prefix|end|limit), "", "", "a2", "a", 1)
	f.Add(keys, uint8(prefix|reverse|commit), "", "", "", "\xff", 0)
	f.Add(keys, uint8(start|after), "a", "a", "", "", 0)
	f.Add(keys, uint8(limit), "", "", "", "", -1)
	f.Add(keys, uint8(prefix|after|end|txn), "", "b", "a", "\xff\xff", 0)
	rt, err := hibernate.Open("", nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { rt.Close() })
	var body func(ctx context.Context, st *hibernate.Storage)
	ns, err := hibernate.Register(rt, "List", func(_ context.Context, s *hibernate.State) (*fuzzed, error) {
		return &fuzzed{func(ctx context.Context) { body(ctx, s.Storage()) }}, nil
	}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, lines string, use uint8, s, sa, e, p string, n int) {
		if len(lines) > 1000 {
			return
		}
		has := func(bit uint8) bool { return use&bit != 0 }
		var o []hibernate.ListOption
		add := func(bit uint8, option hibernate.ListOption) {
			if has(bit) {
				o = append(o, option)
			}
		}
		add(start, hibernate.Start(s))
		add(after, hibernate.StartAfter(sa))
		add(end, hibernate.End(e))
		add(prefix, hibernate.Prefix(p))
		add(limit, hibernate.Limit(n))
		add(reverse, hibernate.Reverse())
		all := strings.Split(lines, "\n")
		want := slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(all))), func(k string) bool {
			return has(start) && k < s || has(after) && k <= sa || has(end) && k >= e || has(prefix) && !strings.HasPrefix(k, p)
		})
		if has(reverse) {
			slices.Reverse(want)
		}
		bad := has(start|after) && use&(start|after) == start|after || has(limit) && n < 1
		if has(limit) && n >= 1 {
			want = want[:min(n, len(want))]
		}
		list := func(ctx context.Context, r interface {
			ListBytes(context.Context, ...hibernate.ListOption) iter.Seq2[hibernate.Entry[[]byte], error]
		}) {
			var got []string
			var failed error
			for e, err := range r.ListBytes(ctx, o...) {
				if failed = err; err != nil {
					break
				}
				got = append(got, e.Key)
			}
			switch {
			case bad != (failed != nil), bad && !errors.Is(failed, hibernate.ErrInvalid):
				t.Errorf("%d options: %v", len(o), failed)
			case !bad && !slices.Equal(got, want):
				t.Errorf("of %q: %q, want %q", all, got, want)
			}
		}
		body = func(ctx context.Context, st *hibernate.Storage) {
			for i, k := range all {
				if err := st.PutBytes(ctx, k, nil); err != nil {
					t.Error(err)
				}
				if has(commit) && i == len(all)/2 {
					if err := st.Sync(ctx); err != nil {
						t.Error(err)
					}
				}
			}
			if !has(txn) {
				list(ctx, st)
			} else if err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error { list(ctx, tx); return nil }); err != nil {
				t.Error(err)
			}
			if err := st.DeleteAll(ctx); err != nil {
				t.Error(err)
			}
		}
		if _, err := runFuzzed.Call(context.Background(), ns.GetByName("a"), 0); err != nil {
			t.Error(err)
		}
	})
}

// A fuzzed runs what the fuzz target wants of it in a turn.
type fuzzed struct{ run func(ctx context.Context) }

var runFuzzed = hibernate.NewMethod("run", func(f *fuzzed, ctx context.Context, _ int) (int, error) {
	f.run(ctx)
	return 0, nil
})
