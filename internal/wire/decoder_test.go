package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

var testMask = [4]byte{0x37, 0xfa, 0x21, 0x3d}

// masked is a client's frame, built by gobwas/ws.
func masked(op ws.OpCode, fin bool, payload string) []byte {
	return ws.MustCompileFrame(ws.MaskFrameWith(ws.NewFrame(op, fin, []byte(payload)), testMask))
}

// announced is a client's frame header with nothing behind it.
func announced(op ws.OpCode, fin bool, length int64) []byte {
	var b bytes.Buffer
	h := ws.Header{Fin: fin, OpCode: op, Masked: true, Mask: testMask, Length: length}
	if err := ws.WriteHeader(&b, h); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

func closeBody(code uint16, reason string) string {
	return string(ws.NewCloseFrameBody(ws.StatusCode(code), reason))
}

var roomy = &Config{MaxMessage: 1 << 20}

// result is all that a stream of input comes to.
type result struct {
	items  []string
	err    string // of *Error, with all its fields
	used   int
	atRest bool
}

func (r result) equal(o result) bool {
	return slices.Equal(r.items, o.items) && r.err == o.err && r.used == o.used && r.atRest == o.atRest
}

func describe(it Item) string {
	if it.Kind == Close {
		return fmt.Sprintf("close %d %q", it.Code, it.Reason)
	}
	s := fmt.Sprintf("%v %q", it.Kind, it.Data)
	if it.Compressed {
		s += " compressed"
	}
	if it.Fragmented {
		s += " fragmented"
	}
	return s
}

// decode feeds stream in chunks whose lengths split gives and checks what must
// hold at every step.
func decode(t testing.TB, stream []byte, cfg *Config, split func(left int) int) (res result) {
	t.Helper()
	var d Decoder
	var owned []Item // must stay as they were whatever comes later
	var kept []string
	defer func() {
		for i, it := range owned {
			if got := describe(it); got != kept[i] {
				t.Fatalf("owned item changed from %s to %s", kept[i], got)
			}
		}
	}()
	for res.used < len(stream) {
		size := split(len(stream) - res.used)
		in := bytes.Clone(stream[res.used : res.used+size])
		for {
			it, n, err := d.Next(in, cfg)
			res.used += n
			if n < 0 || n > len(in) {
				t.Fatalf("Next used %d of %d bytes", n, len(in))
			}
			in = in[n:]
			if err != nil {
				var e *Error
				if !errors.As(err, &e) || len(e.Reason) > MaxCloseReason {
					t.Fatalf("not an answerable *Error: %v", err)
				}
				if e.Code != 1002 && e.Code != 1007 && e.Code != 1009 {
					t.Fatalf("close code %d", e.Code)
				}
				res.err = fmt.Sprintf("%d %s max=%d got=%d", e.Code, e.Reason, e.Max, e.Got)
				res.atRest = d.AtRest()
				return res
			}
			if p := d.p; p != nil {
				if c := cap(p.data); c > max(minBuffer, 2*len(p.data)) || len(p.data) > res.used {
					t.Fatalf("buffer of %d bytes for %d, of %d received", c, len(p.data), res.used)
				}
				if p.kind == None && !p.open && p.nhead == 0 {
					t.Fatal("partial state kept for nothing")
				}
			}
			if (d.Buffered() > 0) && d.AtRest() {
				t.Fatal("at rest with bytes retained")
			}
			if it.Kind == None {
				if len(in) != 0 {
					t.Fatalf("no item and %d bytes unused", len(in))
				}
				break
			}
			if it.Kind == Text && !it.Compressed && !utf8.Valid(it.Data) {
				t.Fatalf("text that is not UTF-8: %q", it.Data)
			}
			if !it.Owned && cap(it.Data) != len(it.Data) {
				t.Fatal("an append to an aliasing item would overwrite the input behind it")
			}
			res.items = append(res.items, describe(it))
			if it.Owned {
				owned, kept = append(owned, it), append(kept, describe(it))
			}
		}
	}
	res.atRest = d.AtRest()
	return res
}

func atOnce(left int) int { return left }

func bytewise(int) int { return 1 }

func TestDecoderFollowsRFC6455(t *testing.T) {
	big := strings.Repeat("x", 70_000)
	rsv := func(bit byte) []byte {
		f := masked(ws.OpText, true, "a")
		f[0] |= bit
		return f
	}
	tests := []struct {
		section string
		name    string
		in      []byte
		cfg     *Config // nil: roomy
		items   []string
		err     string // beginning of the error
		open    bool   // something stays retained
	}{
		{section: "5.1", name: "unmasked frame", in: ws.MustCompileFrame(ws.NewTextFrame([]byte("a"))), err: "1002"},
		{section: "5.1", name: "unmasked control frame", in: ws.MustCompileFrame(ws.NewPingFrame(nil)), err: "1002"},
		{section: "5.2", name: "text", in: masked(ws.OpText, true, "Hello"), items: []string{`text "Hello"`}},
		{section: "5.2", name: "binary", in: masked(ws.OpBinary, true, "\xff\x00"), items: []string{`binary "\xff\x00"`}},
		{section: "5.2", name: "empty text", in: masked(ws.OpText, true, ""), items: []string{`text ""`}},
		{section: "5.2", name: "16-bit length", in: masked(ws.OpText, true, big[:126]), items: []string{fmt.Sprintf("text %q", big[:126])}},
		{section: "5.2", name: "largest 16-bit length", in: masked(ws.OpText, true, big[:65535]), items: []string{fmt.Sprintf("text %q", big[:65535])}},
		{section: "5.2", name: "64-bit length", in: masked(ws.OpBinary, true, big), items: []string{fmt.Sprintf("binary %q", big)}},
		{section: "5.2", name: "rsv1", in: rsv(0x40), err: "1002"},
		{section: "5.2", name: "rsv2", in: rsv(0x20), err: "1002"},
		{section: "5.2", name: "rsv3", in: rsv(0x10), err: "1002"},
		{section: "5.2", name: "length not minimal, 16 bits for 125", in: []byte{0x82, 0xfe, 0, 125, 0, 0, 0, 0}, err: "1002"},
		{section: "5.2", name: "length not minimal, 64 bits for 65535", in: []byte{0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0}, err: "1002"},
		{section: "5.2", name: "length not minimal, 64 bits for 0", in: []byte{0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, err: "1002"},
		{section: "5.2", name: "length with the top bit", in: []byte{0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, err: "1002"},
		{section: "5.2", name: "all ones", in: bytes.Repeat([]byte{0xff}, 14), err: "1002"},
		{section: "5.2", name: "several frames", in: join(masked(ws.OpText, true, "a"), masked(ws.OpBinary, true, "b"), masked(ws.OpPing, true, "c")),
			items: []string{`text "a"`, `binary "b"`, `ping "c"`}},
		{section: "5.2", name: "half a header", in: announced(ws.OpBinary, true, 70_000)[:9], open: true},
		{section: "5.2", name: "good frame, then a violation", in: join(masked(ws.OpText, true, "a"), rsv(0x40)), items: []string{`text "a"`}, err: "1002"},
		{section: "5.4", name: "two fragments", in: join(masked(ws.OpText, false, "Hel"), masked(ws.OpContinuation, true, "lo")), items: []string{`text "Hello" fragmented`}},
		{section: "5.4", name: "empty fragments", in: join(masked(ws.OpBinary, false, ""), masked(ws.OpContinuation, false, ""), masked(ws.OpContinuation, true, "")), items: []string{`binary "" fragmented`}},
		{section: "5.4", name: "empty fragments around bytes", in: join(masked(ws.OpText, false, ""), masked(ws.OpContinuation, false, "a"), masked(ws.OpContinuation, true, "")), items: []string{`text "a" fragmented`}},
		{section: "5.4", name: "control frames between fragments come at once", in: join(masked(ws.OpText, false, "a"), masked(ws.OpPing, true, "p"), masked(ws.OpContinuation, false, "b"), masked(ws.OpPong, true, ""), masked(ws.OpContinuation, true, "c")),
			items: []string{`ping "p"`, `pong ""`, `text "abc" fragmented`}},
		{section: "5.4", name: "close inside a message", in: join(masked(ws.OpText, false, "a"), masked(ws.OpClose, true, closeBody(1000, ""))), items: []string{`close 1000 ""`}, open: true},
		{section: "5.4", name: "whole message after a fragmented one", in: join(masked(ws.OpText, false, "a"), masked(ws.OpContinuation, true, "b"), masked(ws.OpText, true, "c")), items: []string{`text "ab" fragmented`, `text "c"`}},
		{section: "5.4", name: "unfinished message", in: masked(ws.OpText, false, "a"), open: true},
		{section: "5.4", name: "continuation without a start", in: masked(ws.OpContinuation, true, "a"), err: "1002"},
		{section: "5.4", name: "continuation after a whole message", in: join(masked(ws.OpText, true, "a"), masked(ws.OpContinuation, true, "a")), items: []string{`text "a"`}, err: "1002"},
		{section: "5.4", name: "new message inside an unfinished one", in: join(masked(ws.OpText, false, "a"), masked(ws.OpText, true, "b")), err: "1002"},
		{section: "5.4", name: "new fragmented message inside an unfinished one", in: join(masked(ws.OpText, false, "a"), masked(ws.OpBinary, false, "b")), err: "1002"},
		{section: "5.5", name: "fragmented ping", in: masked(ws.OpPing, false, "a"), err: "1002"},
		{section: "5.5", name: "fragmented close", in: masked(ws.OpClose, false, ""), err: "1002"},
		{section: "5.5", name: "ping of 126 bytes", in: masked(ws.OpPing, true, big[:126]), err: "1002"},
		{section: "5.5", name: "ping that announces 2^40 bytes", in: announced(ws.OpPing, true, 1<<40), err: "1002"},
		{section: "5.5", name: "ping of 125 bytes", in: masked(ws.OpPing, true, big[:125]), items: []string{fmt.Sprintf("ping %q", big[:125])}},
		{section: "5.5.1", name: "empty close", in: masked(ws.OpClose, true, ""), items: []string{`close 1005 ""`}},
		{section: "5.5.1", name: "close with a code", in: masked(ws.OpClose, true, closeBody(1000, "")), items: []string{`close 1000 ""`}},
		{section: "5.5.1", name: "close with a code and reason", in: masked(ws.OpClose, true, closeBody(4999, "grüße")), items: []string{`close 4999 "grüße"`}},
		{section: "5.5.1", name: "close with the longest reason", in: masked(ws.OpClose, true, closeBody(3000, big[:123])), items: []string{fmt.Sprintf("close 3000 %q", big[:123])}},
		{section: "5.5.1", name: "close with one byte", in: masked(ws.OpClose, true, "\x03"), err: "1002"},
		{section: "5.5.1", name: "close reason that is not UTF-8", in: masked(ws.OpClose, true, closeBody(1000, "\xff")), err: "1007"},
		{section: "5.5.1", name: "close reason cut inside a character", in: masked(ws.OpClose, true, closeBody(1000, "\xe2\x82")), err: "1007"},
		{section: "7.4", name: "bad code is told before a bad reason", in: masked(ws.OpClose, true, closeBody(1005, "\xff")), err: "1002"},
		{section: "7.4.1", name: "message of the largest size", in: masked(ws.OpText, true, "12345"), cfg: &Config{MaxMessage: 5}, items: []string{`text "12345"`}},
		{section: "7.4.1", name: "message too large", in: announced(ws.OpText, true, 6), cfg: &Config{MaxMessage: 5}, err: "1009 message of at least 6 bytes, limit is 5 max=5 got=6"},
		{section: "7.4.1", name: "message far too large", in: announced(ws.OpText, true, math.MaxInt64), cfg: &Config{MaxMessage: 5}, err: "1009"},
		{section: "7.4.1", name: "fragments too large together", in: join(masked(ws.OpText, false, "123"), announced(ws.OpContinuation, false, 3)), cfg: &Config{MaxMessage: 5}, err: "1009 message of at least 6 bytes, limit is 5 max=5 got=6"},
		{section: "7.4.1", name: "fragments whose sum overflows", in: join(masked(ws.OpText, false, "123"), announced(ws.OpContinuation, true, math.MaxInt64)), cfg: &Config{MaxMessage: math.MaxInt64}, err: "1009"},
		{section: "7.4.1", name: "fragments of the largest size together", in: join(masked(ws.OpText, false, "123"), masked(ws.OpContinuation, true, "45")), cfg: &Config{MaxMessage: 5}, items: []string{`text "12345" fragmented`}},
		{section: "7.4.1", name: "the size is counted per message", in: join(masked(ws.OpText, true, "123"), masked(ws.OpText, false, "12"), masked(ws.OpContinuation, true, "3"), masked(ws.OpText, true, "123")), cfg: &Config{MaxMessage: 3}, items: []string{`text "123"`, `text "123" fragmented`, `text "123"`}},
		{section: "7.4.1", name: "control frames do not count", in: join(masked(ws.OpText, false, "123"), masked(ws.OpPing, true, "1234567"), masked(ws.OpContinuation, true, "")), cfg: &Config{MaxMessage: 3}, items: []string{`ping "1234567"`, `text "123" fragmented`}},
		{section: "7.4.1", name: "as many fragments as allowed", in: join(masked(ws.OpText, false, "1"), masked(ws.OpContinuation, false, ""), masked(ws.OpContinuation, true, "")), cfg: &Config{MaxMessage: 9, MaxFragments: 3}, items: []string{`text "1" fragmented`}},
		{section: "7.4.1", name: "too many fragments", in: join(masked(ws.OpText, false, "1"), masked(ws.OpContinuation, false, ""), masked(ws.OpContinuation, false, "")), cfg: &Config{MaxMessage: 9, MaxFragments: 2}, err: "1009 message in more than 2 fragments max=2 got=3"},
		{section: "8.1", name: "characters of every length", in: masked(ws.OpText, true, "a\u00e9\u20ac\U0001f600"), items: []string{fmt.Sprintf("text %q", "a\u00e9\u20ac\U0001f600")}},
		{section: "8.1", name: "character split over fragments", in: join(masked(ws.OpText, false, "\xf0\x9f"), masked(ws.OpPing, true, ""), masked(ws.OpContinuation, false, "\x98"), masked(ws.OpContinuation, true, "\x80")), items: []string{`ping ""`, fmt.Sprintf("text %q fragmented", "\U0001f600")}},
		{section: "8.1", name: "bad byte", in: masked(ws.OpText, true, "ab\xff"), err: "1007"},
		{section: "8.1", name: "surrogate", in: masked(ws.OpText, true, "\xed\xa0\x80"), err: "1007"},
		{section: "8.1", name: "overlong", in: masked(ws.OpText, true, "\xc0\x80"), err: "1007"},
		{section: "8.1", name: "beyond U+10FFFF", in: masked(ws.OpText, true, "\xf4\x90\x80\x80"), err: "1007"},
		{section: "8.1", name: "character cut by the end of the message", in: masked(ws.OpText, true, "a\xe2\x82"), err: "1007"},
		{section: "8.1", name: "character cut by the end of the last fragment", in: join(masked(ws.OpText, false, "\xe2"), masked(ws.OpContinuation, true, "\x82")), err: "1007"},
		{section: "8.1", name: "bad byte fails in its fragment", in: masked(ws.OpText, false, "a\xff"), err: "1007"},
		{section: "8.1", name: "character left open fails in the next fragment", in: join(masked(ws.OpText, false, "\xe2"), masked(ws.OpContinuation, false, "a")), err: "1007"},
		{section: "8.1", name: "bad UTF-8 fails before the rest of its frame has come", in: masked(ws.OpText, true, "a\xff"+big)[:20], err: "1007"},
		{section: "8.1", name: "impossible second byte fails before the character is whole", in: masked(ws.OpText, true, "\xf4\x90"+big)[:16], err: "1007"},
		{section: "8.1", name: "binary may be anything", in: join(masked(ws.OpBinary, false, "\xff"), masked(ws.OpContinuation, true, "\xe2")), items: []string{`binary "\xff\xe2" fragmented`}},
	}
	for op := range byte(16) {
		if ws.OpCode(op).IsReserved() {
			f := masked(ws.OpText, true, "a")
			f[0] = 0x80 | op
			tests = append(tests, struct {
				section, name string
				in            []byte
				cfg           *Config
				items         []string
				err           string
				open          bool
			}{section: "5.2", name: fmt.Sprintf("reserved opcode %#x", op), in: f, err: "1002"})
		}
	}
	for _, tt := range tests {
		t.Run(tt.section+"/"+tt.name, func(t *testing.T) {
			cfg := tt.cfg
			if cfg == nil {
				cfg = roomy
			}
			whole := decode(t, tt.in, cfg, atOnce)
			if !slices.Equal(whole.items, tt.items) {
				t.Errorf("items %q, want %q", whole.items, tt.items)
			}
			if (whole.err == "") != (tt.err == "") || !strings.HasPrefix(whole.err, tt.err) {
				t.Errorf("error %q, want %q", whole.err, tt.err)
			}
			if whole.err == "" && whole.atRest == tt.open {
				t.Errorf("at rest: %v", whole.atRest)
			}
			if pieces := decode(t, tt.in, cfg, bytewise); !pieces.sameAs(whole) {
				t.Errorf("byte by byte:\n%+v\nwhole:\n%+v", pieces, whole)
			}
			if len(tt.in) > 300 {
				return
			}
			for cut := 1; cut < len(tt.in); cut++ {
				first := true
				two := decode(t, tt.in, cfg, func(left int) int {
					if first {
						first = false
						return cut
					}
					return left
				})
				if !two.sameAs(whole) {
					t.Errorf("cut at %d:\n%+v\nwhole:\n%+v", cut, two, whole)
				}
				// A prefix gives a prefix of the items, and no error that the whole has not.
				prefix := decode(t, tt.in[:cut], cfg, atOnce)
				if len(prefix.items) > len(whole.items) || !slices.Equal(prefix.items, whole.items[:len(prefix.items)]) ||
					prefix.err != "" && prefix.err != whole.err {
					t.Errorf("prefix of %d:\n%+v\nwhole:\n%+v", cut, prefix, whole)
				}
			}
		})
	}
}

// sameAs is equality up to how much was used when an error was found: split input
// may show bad UTF-8 before the end of the chunk.
func (r result) sameAs(o result) bool {
	if r.err != "" {
		r.used, o.used = 0, 0
	}
	return r.equal(o)
}

func TestReceivedCloseCodes(t *testing.T) {
	for code := range 1 << 16 {
		valid := code >= 1000 && code <= 1003 || code >= 1007 && code <= 1014 || code >= 3000 && code <= 4999
		if got := ValidReceivedCloseCode(uint16(code)); got != valid {
			t.Fatalf("ValidReceivedCloseCode(%d) = %v", code, got)
		}
		var d Decoder
		it, _, err := d.Next(masked(ws.OpClose, true, closeBody(uint16(code), "")), roomy)
		if valid && (err != nil || int(it.Code) != code) || !valid && err == nil {
			t.Fatalf("close %d: %+v, %v", code, it, err)
		}
	}
}

func TestSentCloseCodes(t *testing.T) {
	for code := -1; code <= 1<<16; code++ {
		valid := code >= 1000 && code <= 4999 && code != 1004 && code != 1005 && code != 1006 && code != 1015
		if got := ValidSentCloseCode(code); got != valid {
			t.Fatalf("ValidSentCloseCode(%d) = %v", code, got)
		}
	}
}

// conversation is a random stream of valid client frames and what it comes to.
func conversation(rng *rand.Rand) (stream []byte, items []string) {
	text := func(n int) string {
		var b strings.Builder
		for b.Len() < n {
			b.WriteRune([]rune{'a', 'é', '€', '\U0001f600'}[rng.IntN(4)])
		}
		return b.String()
	}
	size := func() int { return []int{0, 1, 7, 125, 126, 1000, 66_000}[rng.IntN(7)] }
	control := func() {
		if rng.IntN(2) == 0 {
			p := text(rng.IntN(100))
			stream, items = append(stream, masked(ws.OpPing, true, p)...), append(items, fmt.Sprintf("ping %q", p))
		}
	}
	for range 1 + rng.IntN(5) {
		control()
		op, kind, p := ws.OpText, Text, text(size())
		if rng.IntN(2) == 0 {
			op, kind, p = ws.OpBinary, Binary, p+"\xff"
		}
		want := fmt.Sprintf("%v %q", kind, p)
		pieces := 1 + rng.IntN(4)
		if pieces > 1 {
			want += " fragmented"
		}
		for i := range pieces {
			n := len(p)
			if i < pieces-1 {
				n = rng.IntN(len(p) + 1)
			}
			stream = append(stream, masked(op, i == pieces-1, p[:n])...)
			op, p = ws.OpContinuation, p[n:]
			if i < pieces-1 {
				control()
			}
		}
		items = append(items, want)
	}
	return stream, items
}

func TestAnySplitGivesTheSameItems(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		stream, items := conversation(rng)
		longest := 1 + rng.IntN(4096)
		got := decode(t, stream, roomy, func(left int) int { return min(left, 1+rng.IntN(longest)) })
		if got.err != "" || !slices.Equal(got.items, items) || !got.atRest {
			t.Fatalf("error %q, at rest %v, items\n%.300q\nwant\n%.300q", got.err, got.atRest, got.items, items)
		}
	}
}

// TestHeaderAloneCostsNothing holds that memory follows what arrives: 32 MiB
// announced and nothing sent is the price of the partial state.
func TestHeaderAloneCostsNothing(t *testing.T) {
	cfg := &Config{MaxMessage: 32 << 20}
	var d Decoder
	if it, n, err := d.Next(announced(ws.OpText, true, 32<<20), cfg); err != nil || it.Kind != None || n != 14 {
		t.Fatal(it, n, err)
	}
	if c := cap(d.p.data); c != 0 {
		t.Fatalf("a header alone made a buffer of %d bytes", c)
	}
	total := 0
	for total < 1<<20 {
		chunk := bytes.Repeat([]byte("x"), 1000)
		ws.Cipher(chunk, testMask, total)
		if _, _, err := d.Next(chunk, cfg); err != nil {
			t.Fatal(err)
		}
		total += len(chunk)
		if c := cap(d.p.data); c > 2*total {
			t.Fatalf("buffer of %d bytes for %d received", c, total)
		}
		if d.Buffered() != total {
			t.Fatalf("Buffered() = %d after %d bytes", d.Buffered(), total)
		}
	}
	d.Drop()
	if !d.AtRest() || d.Buffered() != 0 {
		t.Fatal("Drop kept something")
	}
}

func TestUnfragmentedBufferNeverExceedsTheMessage(t *testing.T) {
	const size = 100_000
	var d Decoder
	stream := masked(ws.OpBinary, true, strings.Repeat("x", size))
	for {
		it, _, err := d.Next(stream[:min(999, len(stream))], roomy)
		if err != nil {
			t.Fatal(err)
		}
		stream = stream[min(999, len(stream)):]
		if it.Kind == Binary {
			if !it.Owned || len(it.Data) != size || cap(it.Data) != size {
				t.Fatalf("owned %v, len %d, cap %d", it.Owned, len(it.Data), cap(it.Data))
			}
			return
		}
	}
}

func TestErrorLetsGoOfWhatWasRetained(t *testing.T) {
	var d Decoder
	if _, _, err := d.Next(join(masked(ws.OpText, false, "abc"), masked(ws.OpText, true, "d")), roomy); err == nil {
		t.Fatal("no error")
	}
	if !d.AtRest() {
		t.Fatal("an error left something retained")
	}
}

func TestWholeFrameDoesNotAllocate(t *testing.T) {
	for name, frame := range map[string][]byte{
		"text":   masked(ws.OpText, true, strings.Repeat("é", 100)),
		"binary": masked(ws.OpBinary, true, strings.Repeat("x", 70_000)),
		"ping":   masked(ws.OpPing, true, "ping"),
		"pong":   masked(ws.OpPong, true, ""),
		"close":  masked(ws.OpClose, true, closeBody(1000, "")),
	} {
		var d Decoder
		in := make([]byte, len(frame))
		if n := testing.AllocsPerRun(100, func() {
			copy(in, frame)
			it, used, err := d.Next(in, roomy)
			if err != nil || it.Kind == None || it.Owned || used != len(in) {
				t.Fatal(it, used, err)
			}
			if it.Kind != Close && len(it.Data) > 0 && &it.Data[len(it.Data)-1] != &in[len(in)-1] {
				t.Fatal("payload does not alias the input")
			}
			if it, _, err := d.Next(in[:0], roomy); it.Kind != None || err != nil {
				t.Fatal(it, err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if !d.AtRest() {
			t.Errorf("%s: decoder not at rest", name)
		}
	}
}

// A control frame between fragments is found whole in the input and costs nothing.
func TestControlFrameInsideMessageDoesNotAllocate(t *testing.T) {
	var d Decoder
	if _, _, err := d.Next(masked(ws.OpText, false, "a"), roomy); err != nil {
		t.Fatal(err)
	}
	frame := masked(ws.OpPing, true, "ping")
	in := make([]byte, len(frame))
	if n := testing.AllocsPerRun(100, func() {
		copy(in, frame)
		if it, _, err := d.Next(in, roomy); err != nil || it.Kind != Ping {
			t.Fatal(it, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// reference decodes stream in the plainest way, with gobwas/ws's own reader and a
// validator that looks at one byte at a time. It returns the items, the close
// code of the error or 0, and whether the stream ends between messages.
func reference(stream []byte, cfg *Config) (items []string, code uint16, atRest bool) {
	var (
		r          = bytes.NewReader(stream)
		kind       Kind
		compressed bool
		data       []byte
		fragments  int
		pending    []byte // of a character
	)
	badText := func(b []byte) bool {
		for _, c := range b {
			pending = append(pending, c)
			if utf8.FullRune(pending) {
				if _, size := utf8.DecodeRune(pending); size != len(pending) || !utf8.Valid(pending) {
					return true
				}
				pending = pending[:0]
			}
		}
		return false
	}
	for {
		before := r.Len()
		h, err := ws.ReadHeader(r)
		if err == ws.ErrHeaderLengthMSB {
			return items, 1002, false
		}
		if err != nil {
			return items, 0, before == 0 && kind == None
		}
		control := h.OpCode >= 8
		minimal := before-r.Len() == ws.HeaderSize(h)
		if cfg.Deflate != nil && h.Rsv1() && !h.Rsv2() && !h.Rsv3() && (h.OpCode == 1 || h.OpCode == 2) {
			h.Rsv = 0
			if kind == None {
				compressed = true
			}
		}
		switch op := h.OpCode; {
		case h.Rsv != 0, !h.Masked, !minimal,
			op > 2 && op < 8, op > 10,
			control && (!h.Fin || h.Length > 125),
			op == 0 && kind == None,
			!control && op != 0 && kind != None:
			return items, 1002, false
		}
		if !control {
			most := cfg.MaxMessage
			if compressed {
				most = most + most/8 + 64
			}
			if h.Length > most || int64(len(data))+h.Length > most {
				return items, 1009, false
			}
			if fragments++; cfg.MaxFragments > 0 && fragments > cfg.MaxFragments {
				return items, 1009, false
			}
			if kind == None {
				kind = kindOf(h.OpCode)
			}
		}
		payload, _ := io.ReadAll(io.LimitReader(r, h.Length))
		for i := range payload {
			payload[i] ^= h.Mask[i%4]
		}
		if !control && kind == Text && !compressed && badText(payload) {
			return items, 1007, false
		}
		if int64(len(payload)) < h.Length {
			return items, 0, false
		}
		if !control {
			data = append(data, payload...)
			if !h.Fin {
				continue
			}
			if len(pending) > 0 {
				return items, 1007, false
			}
			items = append(items, describe(Item{Kind: kind, Data: data, Compressed: compressed, Fragmented: fragments > 1}))
			kind, compressed, data, fragments = None, false, nil, 0
			continue
		}
		it := Item{Kind: kindOf(h.OpCode), Data: payload}
		if it.Kind == Close {
			switch {
			case len(payload) == 0:
				it.Code = 1005
			case len(payload) == 1 || !ValidReceivedCloseCode(binary.BigEndian.Uint16(payload)):
				return items, 1002, false
			case !utf8.Valid(payload[2:]):
				return items, 1007, false
			default:
				it.Code, it.Reason = binary.BigEndian.Uint16(payload), string(payload[2:])
			}
		}
		items = append(items, describe(it))
	}
}

// FuzzDecoder holds that any split of any input yields what the plain reference
// makes of it, with memory bounded by what has arrived (checked in decode).
func FuzzDecoder(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 8 {
		stream, _ := conversation(rng)
		f.Add(stream[:min(len(stream), 2000)], uint64(rng.IntN(100)), uint32(2000), uint8(0), false)
	}
	f.Add(join(squeezed(ws.OpText, true, []byte("\xf2\x48\xcd")), squeezed(ws.OpBinary, false, []byte("a")), masked(ws.OpPing, true, "p"), masked(ws.OpContinuation, true, "b"), masked(ws.OpText, true, "c")),
		uint64(1), uint32(10), uint8(2), true)
	f.Add(join(squeezed(ws.OpText, true, make([]byte, 75)), squeezed(ws.OpPing, true, nil)), uint64(1), uint32(10), uint8(0), true)
	f.Add(join(masked(ws.OpText, false, "\xf0\x9f"), masked(ws.OpPing, true, "p"), masked(ws.OpContinuation, true, "\x98\x80"), masked(ws.OpClose, true, closeBody(1000, "bye"))), uint64(1), uint32(10), uint8(2), false)
	f.Add(announced(ws.OpBinary, true, 1<<40), uint64(2), uint32(math.MaxUint32), uint8(1), false)
	f.Add([]byte{0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, uint64(3), uint32(0), uint8(0), false)
	f.Add(masked(ws.OpClose, true, closeBody(1005, "\xff")), uint64(4), uint32(0), uint8(0), true)
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64, maxMessage uint32, maxFragments uint8, deflate bool) {
		cfg := &Config{MaxMessage: int64(maxMessage), MaxFragments: int(maxFragments)}
		if deflate {
			cfg.Deflate = &Deflate{}
		}
		whole := decode(t, stream, cfg, atOnce)
		rng := rand.New(rand.NewPCG(seed, 0))
		longest := 1 + rng.IntN(64)
		pieces := decode(t, stream, cfg, func(left int) int { return min(left, 1+rng.IntN(longest)) })
		if !pieces.sameAs(whole) {
			t.Fatalf("in pieces:\n%+v\nwhole:\n%+v", pieces, whole)
		}
		items, code, atRest := reference(stream, cfg)
		var got uint16
		_, _ = fmt.Sscan(whole.err, &got) // 0 is no close code
		if !slices.Equal(items, whole.items) || code != got || code == 0 && atRest != whole.atRest {
			t.Fatalf("decoder:\n%+v\nreference:\n%q, close code %d, at rest %v", whole, items, code, atRest)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, size := range []int{16, 125, 1 << 10, 64 << 10} {
		for _, k := range []Kind{Text, Binary} {
			frame := masked(k.opCode(), true, strings.Repeat("x", size))
			in := make([]byte, len(frame))
			for _, chunk := range []int{len(frame), 4 << 10} {
				if chunk == 4<<10 && len(frame) <= chunk {
					continue
				}
				name := fmt.Sprintf("kind=%v/size=%d/chunk=%d", k, size, chunk)
				b.Run(name, func(b *testing.B) {
					b.ReportAllocs()
					b.SetBytes(int64(len(frame)))
					var d Decoder
					for b.Loop() {
						copy(in, frame)
						for rest := in; len(rest) > 0; {
							_, n, err := d.Next(rest[:min(chunk, len(rest))], roomy)
							if err != nil {
								b.Fatal(err)
							}
							rest = rest[n:]
						}
					}
				})
			}
		}
	}
}
