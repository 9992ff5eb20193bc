package wire

import (
	"bytes"
	stdflate "compress/flate"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// compressible is text with repetitions at every distance.
func compressible(n int) string {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	var b strings.Builder
	for b.Len() < n {
		if s := b.String(); len(s) > 100 && rng.IntN(3) > 0 {
			at := rng.IntN(len(s) - 50)
			b.WriteString(s[at : at+rng.IntN(50)])
		} else {
			b.WriteByte(byte('a' + rng.IntN(26)))
		}
	}
	return b.String()[:n]
}

// squeeze is what a client would send of s.
func squeeze(s string) []byte {
	var b bytes.Buffer
	w, err := stdflate.NewWriter(&b, 9)
	if err != nil {
		panic(err)
	}
	w.Write([]byte(s))
	w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte(syncTail))
}

// squeezed is a client's frame of a compressed message.
func squeezed(op ws.OpCode, fin bool, payload []byte) []byte {
	b := masked(op, fin, string(payload))
	b[0] |= 0x40
	return b
}

// RFC 7692 §7.2.3, and what else a sender may do.
func TestInflate(t *testing.T) {
	d := &Deflate{}
	limit := int64(1 << 20)
	many := strings.Repeat("\x03\x00", maxFinals-1)
	for _, tt := range []struct {
		name string
		kind Kind
		in   string
		max  int64 // 0: limit
		want string
		code uint16 // of the error
	}{
		{name: "7.2.3.1 one block", in: "\xf2\x48\xcd\xc9\xc9\x07\x00", want: "Hello"},
		{name: "7.2.3.2 a window kept from the last message", in: "\xf2\x00\x11\x00\x00", code: 1007},
		{name: "7.2.3.3 a block without compression", in: "\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00", want: "Hello"},
		{name: "7.2.3.4 a final block", in: "\xf3\x48\xcd\xc9\xc9\x07\x00\x00", want: "Hello"},
		{name: "7.2.3.5 two blocks", in: "\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", want: "Hello"},
		{name: "7.2.3.6 an empty message", in: "\x00", want: ""},
		{name: "no bytes at all", in: "", want: ""},
		{name: "a final block and nothing behind it", in: "\xf3\x48\xcd\xc9\xc9\x07\x00", want: "Hello"},
		{name: "a final block whose body was taken off", in: "\xf2\x48\xcd\xc9\xc9\x07\x00\x01", code: 1007},
		{name: "an empty final block at the end", in: "\x00\x05\x00\xfa\xffHello\x01", want: "Hello"},
		{name: "two final blocks, the second looking back to the first", in: "\x01\x03\x00\xfc\xffabc" + "\x03\x22\x00" + "\x00", want: "abcabc"},
		{name: "as many final blocks as allowed", in: many + "\xf3\x48\xcd\xc9\xc9\x07\x00\x00", want: "Hello"},
		{name: "more final blocks than allowed", in: many + "\x03\x00\x03\x00\x00", code: 1007},
		{name: "reserved kind of block", in: "\x06", code: 1007},
		{name: "wrong check of a length", in: "\x00\x05\x00\x00\x00Hello\x00", code: 1007},
		{name: "length beyond the end", in: "\x00\xff\x00\x00\xffHello", code: 1007},
		{name: "distance beyond the beginning", in: "\x03\x22\x00\x00", code: 1007},
		{name: "text that is not UTF-8", in: "\x00\x01\x00\xfe\xff\xff\x00", code: 1007},
		{name: "binary that is not UTF-8", kind: Binary, in: "\x00\x01\x00\xfe\xff\xff\x00", want: "\xff"},
		{name: "as long as allowed", in: string(squeeze(compressible(1000))), max: 1000, want: compressible(1000)},
		{name: "a byte longer", in: string(squeeze(compressible(1001))), max: 1000, code: 1009},
		{name: "far longer", in: string(squeeze(strings.Repeat("x", 1<<20))), max: 1000, code: 1009},
		{name: "nothing allowed, nothing there", in: "\x00", max: -1, want: ""},
		{name: "nothing allowed, something there", in: "\xf2\x48\xcd\xc9\xc9\x07\x00", max: -1, code: 1009},
		{name: "longer than what stays in the pool", in: string(squeeze(compressible(300_000))), want: compressible(300_000)},
		{name: "just what stays in the pool", in: string(squeeze(compressible(keep))), want: compressible(keep)},
		{name: "too long is told before what is wrong behind it", in: "\x00\x05\x00\xfa\xffHello\x06", max: 3, code: 1009},
	} {
		t.Run(tt.name, func(t *testing.T) {
			switch tt.max {
			case 0:
				tt.max = limit
			case -1:
				tt.max = 0
			}
			if tt.kind == None {
				tt.kind = Text
			}
			in := Item{Kind: tt.kind, Data: []byte(tt.in), Compressed: true, Fragmented: true}
			it, err := d.Inflate(in, tt.max)
			if string(in.Data) != tt.in {
				t.Error("the input was changed")
			}
			if tt.code != 0 {
				var e *Error
				if !errors.As(err, &e) || e.Code != tt.code || len(e.Reason) > MaxCloseReason {
					t.Fatalf("got %.50q, %v; want an *Error of %d", it.Data, err, tt.code)
				}
				if e.Code == 1009 && (e.Max != tt.max || e.Got != tt.max+1) {
					t.Errorf("max %d, got %d", e.Max, e.Got)
				}
				return
			}
			if err != nil || string(it.Data) != tt.want || !it.Owned || it.Compressed || !it.Fragmented || it.Kind != tt.kind {
				t.Errorf("got %.50q and %v of %d bytes, %v", it.Data, it.Kind, len(it.Data), err)
			}
			again, err := d.Inflate(in, tt.max)
			if err != nil || !bytes.Equal(again.Data, it.Data) || len(it.Data) > 0 && &again.Data[0] == &it.Data[0] {
				t.Errorf("the next message is %.50q, %v, or shares memory", again.Data, err)
			}
		})
	}
}

// TestDecoderLetsCompressedMessagesThrough where RFC 7692 §6 allows them.
func TestDecoderLetsCompressedMessagesThrough(t *testing.T) {
	cfg := func(max int64) *Config { return &Config{MaxMessage: max, MaxFragments: 4, Deflate: &Deflate{}} }
	hello := []byte("\xf2\x48\xcd\xc9\xc9\x07\x00")
	with := func(b []byte, bits byte) []byte { b[0] |= bits; return b }
	for _, tt := range []struct {
		name  string
		in    []byte
		cfg   *Config
		items []string
		err   string
	}{
		{name: "text", in: squeezed(ws.OpText, true, hello), items: []string{`text "\xf2H\xcd\xc9\xc9\a\x00" compressed`}},
		{name: "binary", in: squeezed(ws.OpBinary, true, hello), items: []string{`binary "\xf2H\xcd\xc9\xc9\a\x00" compressed`}},
		{name: "in fragments", in: join(squeezed(ws.OpText, false, hello[:3]), masked(ws.OpPing, true, ""), masked(ws.OpContinuation, true, string(hello[3:]))),
			items: []string{`ping ""`, `text "\xf2H\xcd\xc9\xc9\a\x00" compressed fragmented`}},
		{name: "no bytes", in: squeezed(ws.OpText, true, nil), items: []string{`text "" compressed`}},
		{name: "beside others", in: join(squeezed(ws.OpText, true, hello), masked(ws.OpText, true, "a"), squeezed(ws.OpText, true, hello), masked(ws.OpText, false, "b"), masked(ws.OpContinuation, true, "c")),
			items: []string{`text "\xf2H\xcd\xc9\xc9\a\x00" compressed`, `text "a"`, `text "\xf2H\xcd\xc9\xc9\a\x00" compressed`, `text "bc" fragmented`}},
		{name: "UTF-8 still matters in others", in: join(squeezed(ws.OpText, true, hello), masked(ws.OpText, true, "\xff")), items: []string{`text "\xf2H\xcd\xc9\xc9\a\x00" compressed`}, err: "1007"},
		{name: "RSV1 on a continuation", in: join(squeezed(ws.OpText, false, hello[:3]), squeezed(ws.OpContinuation, true, hello[3:])), err: "1002"},
		{name: "RSV1 on a continuation of a message without", in: join(masked(ws.OpText, false, "a"), squeezed(ws.OpContinuation, true, nil)), err: "1002"},
		{name: "RSV1 on a ping", in: squeezed(ws.OpPing, true, nil), err: "1002"},
		{name: "RSV1 on a pong", in: squeezed(ws.OpPong, true, nil), err: "1002"},
		{name: "RSV1 on a close", in: squeezed(ws.OpClose, true, nil), err: "1002"},
		{name: "RSV1 on a reserved opcode", in: squeezed(3, true, nil), err: "1002"},
		{name: "RSV2", in: with(masked(ws.OpText, true, "a"), 0x20), err: "1002"},
		{name: "RSV1 and RSV2", in: with(squeezed(ws.OpText, true, hello), 0x20), err: "1002"},
		{name: "RSV1 and RSV3", in: with(squeezed(ws.OpText, true, hello), 0x10), err: "1002"},
		{name: "RSV1 unmasked", in: with(ws.MustCompileFrame(ws.NewTextFrame(hello)), 0x40), err: "1002"},
		{name: "RSV1 on a message inside another", in: join(masked(ws.OpText, false, "a"), squeezed(ws.OpText, true, hello)), err: "1002"},
		{name: "RSV1 that was not negotiated", in: squeezed(ws.OpText, true, hello), cfg: roomy, err: "1002"},
		{name: "what does not compress may grow", in: squeezed(ws.OpText, true, make([]byte, 900+64)), cfg: cfg(800), items: []string{fmt.Sprintf("text %q compressed", make([]byte, 964))}},
		{name: "not without limit", in: squeezed(ws.OpText, true, make([]byte, 900+65)), cfg: cfg(800), err: "1009"},
		{name: "nor in fragments", in: join(squeezed(ws.OpText, false, make([]byte, 900)), masked(ws.OpContinuation, true, strings.Repeat("a", 65))), cfg: cfg(800), err: "1009"},
		{name: "nor in many fragments", in: join(squeezed(ws.OpText, false, nil), bytes.Repeat(masked(ws.OpContinuation, false, ""), 4)), err: "1009"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.cfg == nil {
				tt.cfg = cfg(1 << 20)
			}
			whole := decode(t, tt.in, tt.cfg, atOnce)
			if !slices.Equal(whole.items, tt.items) {
				t.Errorf("items %q, want %q", whole.items, tt.items)
			}
			if (whole.err == "") != (tt.err == "") || !strings.HasPrefix(whole.err, tt.err) {
				t.Errorf("error %q, want %q", whole.err, tt.err)
			}
			if got := decode(t, tt.in, tt.cfg, bytewise); !got.sameAs(whole) {
				t.Errorf("byte by byte %+v, at once %+v", got, whole)
			}
		})
	}
}

// TestMessagesComeBackAsTheyWere through every window and level, and no window is
// exceeded.
func TestMessagesComeBackAsTheyWere(t *testing.T) {
	for w := minWindow; w <= maxWindow; w++ {
		levels := []int{1}
		if w == maxWindow {
			levels = []int{1, 2, 3, 4, 5, 6, 7, 8, 9}
		}
		for _, level := range levels {
			d := &Deflate{Level: level}
			for _, n := range []int{2, 100, 1000, 5000, 70_000} {
				text := compressible(n)
				b := d.AppendMessage([]byte("before"), Text, []byte(text), w)
				got, far := unpack(t, d, bytes.TrimPrefix(b, []byte("before")))
				if got != text {
					t.Errorf("window %d, level %d: %d bytes came back as %d", w, level, n, len(got))
				}
				if far > 1<<w {
					t.Errorf("window %d, level %d: a distance of %d", w, level, far)
				}
				if n >= 5000 && len(b) > n*9/10 {
					t.Errorf("window %d, level %d: %d bytes of %d", w, level, len(b), n)
				}
			}
		}
	}
}

// unpack reads a server's frame, and tells how far back its compressed message
// looks.
func unpack(t testing.TB, d *Deflate, frame []byte) (message string, farthest int) {
	t.Helper()
	f, err := ws.ReadFrame(bytes.NewReader(frame))
	if err != nil || !f.Header.Fin || f.Header.Masked {
		t.Fatalf("frame %+v, %v", f.Header, err)
	}
	if f.Header.Rsv == 0 {
		return string(f.Payload), 0
	}
	if f.Header.Rsv != rsv1 {
		t.Fatalf("rsv %#x", f.Header.Rsv)
	}
	it, err := d.Inflate(Item{Kind: Binary, Data: f.Payload, Compressed: true}, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(stdflate.NewReader(strings.NewReader(string(f.Payload) + syncTail + finalBlock)))
	if err != nil || !bytes.Equal(out, it.Data) {
		t.Fatalf("compress/flate reads something else: %v", err)
	}
	return string(it.Data), distance(t, string(f.Payload)+syncTail+finalBlock)
}

func TestWhatIsNotCompressed(t *testing.T) {
	d := &Deflate{Level: 1, MinSize: 100}
	noise := make([]byte, 1000)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	for name, payload := range map[string][]byte{
		"short":                bytes.Repeat([]byte("a"), 99),
		"empty":                {},
		"what does not shrink": noise,
	} {
		if got, want := d.AppendMessage(nil, Binary, payload, maxWindow), AppendFrame(nil, Binary, payload); !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", name, got[:4], want[:2])
		}
	}
	got := d.AppendMessage(nil, Text, bytes.Repeat([]byte("a"), 100), maxWindow)
	if got[0] != 0x80|0x40|1 || len(got) > 50 {
		t.Errorf("100 bytes came to %x", got)
	}
	again := d.AppendMessage(nil, Text, bytes.Repeat([]byte("a"), 100), maxWindow)
	if !bytes.Equal(got, again) {
		t.Errorf("the same message came to %x and %x: a window was kept", got, again)
	}
}

// TestBombIsCutAtTheLimit, while it is decompressed.
func TestBombIsCutAtTheLimit(t *testing.T) {
	bomb := squeeze(strings.Repeat("\x00", 32<<20))
	d := &Deflate{}
	const limit = 1 << 20
	inflate := func() {
		_, err := d.Inflate(Item{Kind: Binary, Data: bomb, Compressed: true}, limit)
		var e *Error
		if !errors.As(err, &e) || e.Code != 1009 || e.Got != limit+1 {
			t.Fatal(err)
		}
	}
	inflate()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	inflate()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 3*limit {
		t.Errorf("%d bytes of %d in it took %d bytes of memory, the limit being %d", len(bomb), 32<<20, n, limit)
	}
}

// A bitReader and the functions below read DEFLATE (RFC 1951) in the plainest way,
// to look at distances.
type bitReader struct {
	s   string
	pos int
}

func (r *bitReader) bits(n int) (v int) {
	for i := range n {
		v |= int(r.s[r.pos/8]>>(r.pos%8)&1) << i
		r.pos++
	}
	return v
}

// symbol reads one symbol of the canonical code with those lengths.
func (r *bitReader) symbol(lengths []int) int {
	code, first := 0, 0
	for n := 1; n <= 15; n++ {
		code = code<<1 | r.bits(1)
		count := 0
		for _, l := range lengths {
			if l == n {
				count++
			}
		}
		if code-first < count {
			for s, l := range lengths {
				if l == n {
					if code == first {
						return s
					}
					first++
				}
			}
		}
		first = (first + count) << 1
	}
	panic("no such code")
}

// distance is the farthest that a message looks back.
func distance(t testing.TB, s string) (far int) {
	t.Helper()
	r := &bitReader{s: s}
	var fixed, fixedDist []int
	for i := range 288 {
		n := 8
		switch {
		case i >= 144 && i < 256:
			n = 9
		case i >= 256 && i < 280:
			n = 7
		}
		fixed = append(fixed, n)
	}
	for range 30 {
		fixedDist = append(fixedDist, 5)
	}
	for final := 0; final == 0; {
		final = r.bits(1)
		var lit, dist []int
		switch r.bits(2) {
		case 0:
			r.pos = (r.pos + 7) / 8 * 8
			n := r.bits(16)
			r.bits(16)
			r.pos += n * 8
			continue
		case 1:
			lit, dist = fixed, fixedDist
		case 2:
			nlit, ndist, ncode := r.bits(5)+257, r.bits(5)+1, r.bits(4)+4
			codes := make([]int, 19)
			for _, i := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}[:ncode] {
				codes[i] = r.bits(3)
			}
			var all []int
			for len(all) < nlit+ndist {
				switch s := r.symbol(codes); s {
				case 16:
					all = append(all, slices.Repeat(all[len(all)-1:], 3+r.bits(2))...)
				case 17:
					all = append(all, make([]int, 3+r.bits(3))...)
				case 18:
					all = append(all, make([]int, 11+r.bits(7))...)
				default:
					all = append(all, s)
				}
			}
			lit, dist = all[:nlit], all[nlit:]
		}
		for {
			s := r.symbol(lit)
			if s == 256 {
				break
			}
			if s < 256 {
				continue
			}
			switch {
			case s >= 265 && s < 285:
				r.bits((s - 261) / 4)
			}
			d := r.symbol(dist)
			n := d + 1
			if d >= 4 {
				extra := d/2 - 1
				n = (2+d%2)<<extra + 1 + r.bits(extra)
			}
			far = max(far, n)
		}
	}
	return far
}

// referenceInflate is Inflate by compress/flate, without limits.
func referenceInflate(data []byte) (out []byte, err error) {
	if len(data) == 0 {
		return nil, nil
	}
	in := strings.NewReader(string(data) + syncTail + finalBlock)
	r := stdflate.NewReader(in)
	for finals := 0; ; finals++ {
		more, err := io.ReadAll(io.LimitReader(r, 1<<20))
		if out = append(out, more...); err != nil || len(out) >= 1<<20 {
			return nil, cmpErr(err, "too long")
		}
		switch left := in.Len(); {
		case left == 0, left == 5, left == 9:
			return out, nil
		case left < 9, finals == maxFinals:
			return nil, errors.New("truncated")
		}
		if err := r.(stdflate.Resetter).Reset(in, out); err != nil {
			return nil, err
		}
	}
}

func cmpErr(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}

func FuzzInflate(f *testing.F) {
	for _, s := range []string{"Hello", "", strings.Repeat("a", 1000), compressible(3000)} {
		f.Add(squeeze(s), uint16(2000), true)
	}
	f.Add([]byte("\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), uint16(5), true)
	f.Add([]byte("\x01\x03\x00\xfc\xffabc\x03\x22\x00\x00"), uint16(6), false)
	f.Add([]byte("\x00\x05\x00\xfa\xffHello\x01"), uint16(4), false)
	d := &Deflate{}
	f.Fuzz(func(t *testing.T, data []byte, limit uint16, text bool) {
		kind := Binary
		if text {
			kind = Text
		}
		it, err := d.Inflate(Item{Kind: kind, Data: data, Compressed: true}, int64(limit))
		want, wantErr := referenceInflate(data)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code != 1007 && e.Code != 1009 || len(e.Reason) > MaxCloseReason || it.Data != nil {
				t.Fatalf("not an answerable *Error: %v", err)
			}
			if wantErr == nil && len(want) <= int(limit) && (!text || utf8.Valid(want)) {
				t.Fatalf("refused %q: %v", want, err)
			}
			if wantErr == nil && len(want) > int(limit) && e.Code != 1009 {
				t.Fatalf("%d bytes of at most %d are %v", len(want), limit, err)
			}
			return
		}
		if wantErr != nil || !bytes.Equal(it.Data, want) || len(want) > int(limit) || text && !utf8.Valid(want) {
			t.Fatalf("got %q, want at most %d bytes of %q, %v", it.Data, limit, want, wantErr)
		}
		if cap(it.Data) > 2*max(int(limit)+1, keep) {
			t.Fatalf("%d bytes of memory for at most %d", cap(it.Data), limit)
		}
	})
}

// FuzzDeflate covers other code each time, because of what is in the pools, so that
// making an input smaller takes all the time it is given: -fuzzminimizetime 1x.
func FuzzDeflate(f *testing.F) {
	for i, n := range []int{0, 1, 300, 1000, 5000} {
		f.Add([]byte(compressible(n)), uint8(i), uint8(i))
	}
	f.Fuzz(func(t *testing.T, payload []byte, window, level uint8) {
		w := minWindow + Window(window)%(Windows-minWindow)
		d := fuzzed[level%9]
		got, far := unpack(t, d, d.AppendMessage(nil, Binary, payload, w))
		if got != string(payload) || far > 1<<w {
			t.Fatalf("window %d, level %d: %q came back as %q, looking back %d", w, d.Level, payload, got, far)
		}
	})
}

// fuzzed keeps its pools from one input to the next.
var fuzzed = func() (d [9]*Deflate) {
	for i := range d {
		d[i] = &Deflate{Level: i + 1}
	}
	return d
}()

func BenchmarkInflate(b *testing.B) {
	for _, n := range []int{100, 1000, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("bytes=%d", n), func(b *testing.B) {
			d := &Deflate{}
			in := squeeze(compressible(n))
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.Inflate(Item{Kind: Text, Data: in, Compressed: true}, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDeflate(b *testing.B) {
	for _, w := range []Window{9, 15} {
		for _, n := range []int{300, 1000, 64 << 10} {
			b.Run(fmt.Sprintf("window=%d/bytes=%d", w, n), func(b *testing.B) {
				d := &Deflate{Level: 1}
				in := []byte(compressible(n))
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					d.AppendMessage(nil, Text, in, w)
				}
			})
		}
	}
}
