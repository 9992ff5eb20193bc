package main

import (
	"bufio"
	"bytes"
	"compress/flate"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/leak"
)

// The cases of the Autobahn test suite for servers, by its numbers, played by a client of our own.

var full = flag.Bool("full", false, "play the cases at the suite's sizes: messages up to 16 MiB, 1,000 of each kind")

func TestMain(m *testing.M) { leak.Main(m) }

// A peer is a client of the echo.
type peer struct {
	t        *testing.T
	conn     net.Conn
	br       *bufio.Reader
	deflated bool
	inflater io.ReadCloser
}

// serve serves echoes that leave memory before every event, if asleep, or never.
func serve(t *testing.T, asleep bool) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = ln.Addr().String()
	rt, h, ln, err := open(ln, &hibernate.Options{EvictEveryTurn: asleep, IdleTimeout: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	served := make(chan struct{})
	go func() { srv.Serve(ln); close(served) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	})
	return addr
}

func dial(t *testing.T, addr, offer string) *peer {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p := &peer{t: t, conn: conn, br: bufio.NewReaderSize(conn, 64<<10)}
	head := "GET /some/path?x HTTP/1.1\r\nHost: " + addr + "\r\nOrigin: http://elsewhere.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	if offer != "" {
		head += "Sec-WebSocket-Extensions: " + offer + "\r\n"
	}
	p.write([]byte(head + "\r\n"))
	resp, err := http.ReadResponse(p.br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answered %v, %v", resp, err)
	}
	if p.deflated = resp.Header.Get("Sec-WebSocket-Extensions") != ""; p.deflated {
		p.inflater = flate.NewReader(nil)
	}
	return p
}

func (p *peer) write(b []byte) {
	p.t.Helper()
	p.conn.SetWriteDeadline(time.Now().Add(time.Minute))
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// chop writes b in pieces of n bytes.
func (p *peer) chop(b []byte, n int) {
	p.t.Helper()
	for len(b) > 0 {
		n := min(n, len(b))
		p.write(b[:n])
		b = b[n:]
	}
}

// frame is one masked frame; rsv is its reserved bits as a number.
func frame(fin bool, rsv byte, op ws.OpCode, payload string) []byte {
	f := ws.MaskFrameInPlace(ws.NewFrame(op, fin, []byte(payload)))
	f.Header.Rsv = rsv
	return ws.MustCompileFrame(f)
}

func text(s string) []byte           { return frame(true, 0, ws.OpText, s) }
func ping(s string) []byte           { return frame(true, 0, ws.OpPing, s) }
func closing(body string) []byte     { return frame(true, 0, ws.OpClose, body) }
func begin(s string) []byte          { return frame(false, 0, ws.OpText, s) }
func more(fin bool, s string) []byte { return frame(fin, 0, ws.OpContinuation, s) }
func body(code int, reason string) string {
	return string(ws.NewCloseFrameBody(ws.StatusCode(code), reason))
}

// fragments is a message in frames of n bytes. Only the first says that it is compressed.
func fragments(op ws.OpCode, rsv byte, s string, n int) []byte {
	if n == 0 {
		return frame(true, rsv, op, s)
	}
	var b bytes.Buffer
	for first := true; first || len(s) > 0; first = false {
		k := min(n, len(s))
		b.Write(frame(len(s) == k, rsv, op, s[:k]))
		op, rsv, s = ws.OpContinuation, 0, s[k:]
	}
	return b.Bytes()
}

// next is the next thing received: "text …", "binary …", "pong …", "close code", "eof".
func (p *peer) next() string {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(time.Minute))
	f, err := ws.ReadFrame(p.br)
	if err == io.EOF {
		return "eof"
	}
	if err != nil {
		p.t.Fatal(err)
	}
	if f.Header.Rsv == 4 && p.deflated {
		f.Header.Rsv = 0
		_ = p.inflater.(flate.Resetter).Reset(strings.NewReader(string(f.Payload)+"\x00\x00\xff\xff\x01\x00\x00\xff\xff"), nil)
		if f.Payload, err = io.ReadAll(p.inflater); err != nil {
			p.t.Fatal(err)
		}
	}
	if f.Header.Rsv != 0 || f.Header.Masked || !f.Header.Fin {
		p.t.Fatalf("received %+v", f.Header)
	}
	switch f.Header.OpCode {
	case ws.OpText:
		return "text " + string(f.Payload)
	case ws.OpBinary:
		return "binary " + string(f.Payload)
	case ws.OpPong:
		return "pong " + string(f.Payload)
	case ws.OpClose:
		code, _ := ws.ParseCloseFrameData(f.Payload)
		if len(f.Payload) == 0 {
			code = 1005
		}
		return fmt.Sprintf("close %d", code)
	}
	return fmt.Sprintf("opcode %d", f.Header.OpCode)
}

func (p *peer) expect(want ...string) {
	p.t.Helper()
	for _, w := range want {
		if got := p.next(); got != w {
			p.t.Fatalf("received %.60q of %d bytes, want %.60q of %d", got, len(got), w, len(w))
		}
	}
}

// A plain case is what the client writes, in pieces of chop bytes if that is not 0, and all that it receives. Where that
// does not end in a Close, the client closes.
type plain struct {
	id   string
	in   []byte
	chop int
	want []string
}

func join(b ...[]byte) []byte { return bytes.Join(b, nil) }

func plainCases() (cases []plain) {
	add := func(id string, in []byte, want ...string) { cases = append(cases, plain{id: id, in: in, want: want}) }
	chopped := func(id string, n int, in []byte, want ...string) { cases = append(cases, plain{id, in, n, want}) }
	violation := []string{"close 1002", "eof"}
	invalid := []string{"close 1007", "eof"}

	for i, n := range []int{0, 125, 126, 127, 128, 65535, 65536} {
		s, b := strings.Repeat("*", n), strings.Repeat("\xfe", n)
		add(fmt.Sprint("1.1.", i+1), text(s), "text "+s)
		add(fmt.Sprint("1.2.", i+1), frame(true, 0, ws.OpBinary, b), "binary "+b)
	}
	s, b := strings.Repeat("*", 65536), strings.Repeat("\xfe", 65536)
	chopped("1.1.8", 997, text(s), "text "+s)
	chopped("1.2.8", 997, frame(true, 0, ws.OpBinary, b), "binary "+b)

	odd := "\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
	s = strings.Repeat("\xfe", 125)
	add("2.1", ping(""), "pong ")
	add("2.2", ping("Hello, world!"), "pong Hello, world!")
	add("2.3", ping(odd), "pong "+odd)
	add("2.4", ping(s), "pong "+s)
	add("2.5", ping(s+"\xfe"), violation...)
	chopped("2.6", 1, ping(s), "pong "+s)
	add("2.7", frame(true, 0, ws.OpPong, ""))
	add("2.8", frame(true, 0, ws.OpPong, "unsolicited"))
	add("2.9", join(frame(true, 0, ws.OpPong, "unsolicited"), ping("ping")), "pong ping")
	var pings []byte
	var pongs []string
	for i := range 10 {
		pings = append(pings, ping(fmt.Sprint("payload-", i))...)
		pongs = append(pongs, fmt.Sprint("pong payload-", i))
	}
	add("2.10", pings, pongs...)
	chopped("2.11", 1, pings, pongs...)

	hello := text("Hello, world!")
	echoed := "text Hello, world!"
	after := append([]string{echoed}, violation...)
	add("3.1", frame(true, 1, ws.OpText, "x"), violation...)
	add("3.2", join(hello, frame(true, 2, ws.OpText, "x"), ping("")), after...)
	add("3.3", join(hello, frame(true, 3, ws.OpText, "x"), ping("")), after...)
	chopped("3.4", 1, join(hello, frame(true, 4, ws.OpText, "x"), ping("")), after...)
	add("3.5", frame(true, 5, ws.OpBinary, odd), violation...)
	add("3.6", frame(true, 6, ws.OpPing, "x"), violation...)
	add("3.7", frame(true, 7, ws.OpClose, ""), violation...)

	for i := range 5 {
		for section, op := range map[string]int{"4.1.": 3 + i, "4.2.": 11 + i} {
			id, bad := fmt.Sprint(section, i+1), frame(true, 0, ws.OpCode(op), strings.Repeat("x", i%2))
			if i < 2 {
				add(id, bad, violation...)
			} else {
				chopped(id, i-2, join(hello, bad, ping("")), after...)
			}
		}
	}

	two := join(begin("fragment1"), more(true, "fragment2"))
	between := join(begin("fragment1"), ping("ping payload"), more(true, "fragment2"))
	lone := func(fin bool) []byte {
		return join(more(fin, "non-continuation payload"), hello)
	}
	add("5.1", join(frame(false, 0, ws.OpPing, "fragment1"), more(true, "fragment2")), violation...)
	add("5.2", join(frame(false, 0, ws.OpPong, "fragment1"), more(true, "fragment2")), violation...)
	for i, n := range []int{0, 7, 1} {
		chopped(fmt.Sprint("5.", 3+i), n, two, "text fragment1fragment2")
		chopped(fmt.Sprint("5.", 6+i), n, between, "pong ping payload", "text fragment1fragment2")
		chopped(fmt.Sprint("5.", 9+i), n, lone(true), violation...)
		chopped(fmt.Sprint("5.", 12+i), n, lone(false), violation...)
	}
	add("5.15", join(two, more(false, "fragment3"), begin("fragment4"), more(true, "fragment5")), append([]string{"text fragment1fragment2"}, violation...)...)
	twice := join(more(false, "fragment1"), begin("fragment2"), more(true, "fragment3"))
	add("5.16", join(twice, twice), violation...)
	twice = join(more(true, "fragment1"), begin("fragment2"), more(true, "fragment3"))
	add("5.17", join(twice, twice), violation...)
	add("5.18", join(begin("fragment1"), frame(false, 0, ws.OpText, "fragment2")), violation...)
	five := join(begin("fragment1"), more(false, "fragment2"), ping("pongme 1!"), more(false, "fragment3"), more(false, "fragment4"), ping("pongme 2!"), more(true, "fragment5"))
	whole := []string{"pong pongme 1!", "pong pongme 2!", "text fragment1fragment2fragment3fragment4fragment5"}
	add("5.19", five, whole...)
	chopped("5.20", 3, five, whole...)

	utf8 := "Hello-\u00b5@\u00df\u00f6\u00e4\u00fc\u00e0\u00e1-UTF-8!!"
	kosme := "\u03ba\u1f79\u03c3\u03bc\u03b5"
	add("6.1.1", text(""), "text ")
	add("6.1.2", join(begin(""), more(false, ""), more(true, "")), "text ")
	add("6.1.3", join(begin(""), more(false, "middle frame payload"), more(true, "")), "text middle frame payload")
	add("6.2.1", text(utf8), "text "+utf8)
	add("6.2.2", fragments(ws.OpText, 0, utf8, 12), "text "+utf8)
	add("6.2.3", fragments(ws.OpText, 0, utf8, 1), "text "+utf8)
	add("6.2.4", fragments(ws.OpText, 0, kosme, 1), "text "+kosme)
	add("6.3.1", text(kosme+"\xed\xa0\x80edited"), invalid...)
	add("6.3.2", fragments(ws.OpText, 0, kosme+"\xed\xa0\x80edited", 1), invalid...)
	// Not finished, and yet refused.
	add("6.4.1", join(begin(kosme), more(false, "\xf4\x90\x80\x80")), invalid...)
	add("6.4.2", join(begin(kosme+"\xf4"), more(false, "\x90")), invalid...)
	long := text(kosme + "\xf4\x90\x80\x80" + kosme)
	add("6.4.3", long[:len(long)-len(kosme)-2], invalid...)
	add("6.4.4", long[:len(long)-len(kosme)-2], invalid...)
	for id, list := range map[string][]string{
		"6.5":  {kosme, kosme[:1], kosme[:3]}, // the last two are cut in a character
		"6.6":  {"\u03ba", "\u1f79", "\u03c3\u03bc\u03b5"},
		"6.7":  {"\x00", "\u0080", "\u0800", "\U00010000"},
		"6.9":  {"\x7f", "\u07ff", "\uffff", "\U0010ffff"},
		"6.11": {"\ud7ff", "\ue000", "\ufffd", "\U0010ffff"},
		"6.22": {"\ufffe", "\uffff", "\U0001fffe", "\U0001ffff", "\U0010fffe", "\U0010ffff"},
		"6.23": {"\ufdd0", "\ufdef", "\ufff9", "\ufffd"},
		"6.8":  {"\xf8\x88\x80\x80\x80", "\xfc\x84\x80\x80\x80\x80"},
		"6.10": {"\xf7\xbf\xbf\xbf", "\xfb\xbf\xbf\xbf\xbf", "\xfd\xbf\xbf\xbf\xbf\xbf"},
		"6.12": {"\x80", "\xbf", "\x80\xbf", "\x80\xbf\x80\xbf\x80\xbf\x80"},
		"6.13": {"\xc0 \xc1 \xdf ", "\xe0 \xef ", "\xf0 \xf7 ", "\xf8 \xfb ", "\xfc \xfd "},
		"6.14": {"\xc0", "\xe0\x80", "\xf0\x80\x80", "\xdf", "\xef\xbf", "\xf7\xbf\xbf"},
		"6.15": {"\xc0\xe0\x80\xf0\x80\x80\xdf\xef\xbf"},
		"6.16": {"\xfe", "\xff", "\xfe\xfe\xff\xff"},
		"6.17": {"\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf", "\xf8\x80\x80\x80\xaf"},
		"6.18": {"\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xfc\x83\xbf\xbf\xbf\xbf"},
		"6.19": {"\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80"},
		"6.20": {"\xed\xa0\x80", "\xed\xad\xbf", "\xed\xae\x80", "\xed\xaf\xbf", "\xed\xb0\x80", "\xed\xbe\x80", "\xed\xbf\xbf"},
		"6.21": {"\xed\xa0\x80\xed\xb0\x80", "\xed\xaf\xbf\xed\xbf\xbf"},
	} {
		for i, s := range list {
			want := invalid
			if strings.ToValidUTF8(s, "") == s {
				want = []string{"text " + s}
			}
			add(fmt.Sprint(id, ".", i+1), text(s), want...)
		}
	}

	done := []string{"close 1000", "eof"}
	normal := closing(body(1000, ""))
	big := strings.Repeat("BAsd7&jh23", 26<<10)[:256<<10]
	add("7.1.1", join(hello, normal), append([]string{echoed}, done...)...)
	add("7.1.2", join(normal, normal), done...)
	add("7.1.3", join(normal, ping("ping")), done...)
	add("7.1.4", join(normal, hello), done...)
	add("7.1.5", join(begin("fragment1"), normal, more(true, "fragment2")), done...)
	add("7.1.6", join(text(big), hello, normal, ping("ping")), append([]string{"text " + big, echoed}, done...)...)
	add("7.3.1", closing(""), "close 1005", "eof")
	add("7.3.2", closing("a"), violation...)
	add("7.3.3", normal, done...)
	add("7.3.4", closing(body(1000, "Hello World!")), done...)
	add("7.3.5", closing(body(1000, strings.Repeat("*", 123))), done...)
	add("7.3.6", closing(body(1000, "")+strings.Repeat("*", 124)), violation...)
	add("7.5.1", closing(body(1000, kosme+"\xed\xa0\x80edited")), invalid...)
	for i, code := range []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999} {
		add(fmt.Sprint("7.7.", i+1), closing(body(code, "")), fmt.Sprint("close ", code), "eof")
	}
	for i, code := range []int{0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999} {
		add(fmt.Sprint("7.9.", i+1), closing(body(code, "")), violation...)
	}
	add("7.13.1", closing(body(5000, "")), violation...)
	add("7.13.2", closing(body(65535, "")), violation...)
	return cases
}

// TestAutobahnPlain is sections 1 to 7, with the object in memory and not.
func TestAutobahnPlain(t *testing.T) {
	for name, asleep := range map[string]bool{"awake": false, "asleep": true} {
		t.Run(name, func(t *testing.T) {
			addr := serve(t, asleep)
			for _, c := range plainCases() {
				t.Run(c.id, func(t *testing.T) {
					p := dial(t, addr, "")
					n := c.chop
					if n == 0 {
						n = len(c.in)
					}
					p.chop(c.in, n)
					p.expect(c.want...)
					if n := len(c.want); n == 0 || c.want[n-1] != "eof" {
						p.write(closing(body(1000, "")))
						p.expect("close 1000", "eof")
					}
				})
			}
		})
	}
}

// size is n, or what there is time for.
func size(n int) int {
	if *full {
		return n
	}
	return min(n, 1<<20)
}

// rounds is how many messages of a kind to send.
func rounds() int {
	if *full {
		return 1000
	}
	return 10
}

// TestAutobahnLimits is sections 9 and 10: large messages, many frames, many messages.
func TestAutobahnLimits(t *testing.T) {
	addr := serve(t, false)
	for section, op := range map[string]ws.OpCode{"text": ws.OpText, "binary": ws.OpBinary} {
		play := func(name string, in []byte, chop int, s string) {
			t.Run(name, func(t *testing.T) {
				p := dial(t, addr, "")
				go p.chop(in, chop) // the echo may begin before the end
				p.expect(section + " " + s)
			})
		}
		for _, kib := range []int{64, 256, 1 << 10, 4 << 10, 8 << 10, 16 << 10} {
			s := strings.Repeat("BAsd7&jh23", kib*103)[:size(kib<<10)]
			in := frame(true, 0, op, s)
			play(fmt.Sprintf("%s/size=%dKiB", section, kib), in, len(in), s)
		}
		for _, n := range []int{64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20} {
			s := strings.Repeat("*", size(4<<20))
			in := fragments(op, 0, s, n)
			play(fmt.Sprintf("%s/fragments=%d", section, n), in, len(in), s)
		}
		for _, n := range []int{64, 128, 256, 512, 1024, 2048} {
			s := strings.Repeat("*", 1<<20)
			play(fmt.Sprintf("%s/chops=%d", section, n), frame(true, 0, op, s), n, s)
		}
		for _, n := range []int{0, 16, 64, 256, 1024, 4096} {
			t.Run(fmt.Sprintf("%s/messages=%d", section, n), func(t *testing.T) {
				p, s := dial(t, addr, ""), strings.Repeat("*", n)
				for range rounds() {
					p.write(frame(true, 0, op, s))
					p.expect(section + " " + s)
				}
			})
		}
	}
	t.Run("10.1.1", func(t *testing.T) {
		p, s := dial(t, addr, ""), strings.Repeat("*", 65536)
		p.write(fragments(ws.OpText, 0, s, 1300))
		p.expect("text " + s)
	})
}

// squeeze compresses a message. The client forgets its window after it.
func squeeze(w *flate.Writer, s string) string {
	var b bytes.Buffer
	w.Reset(&b)
	io.WriteString(w, s)
	w.Flush()
	return strings.TrimSuffix(b.String(), "\x00\x00\xff\xff")
}

// TestAutobahnCompression is sections 12 and 13: messages of each size, whole and in frames, under each offer.
func TestAutobahnCompression(t *testing.T) {
	addr := serve(t, false)
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 131072)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	prose := strings.Repeat(`{"id": 4711, "text": "`+"Grau, teurer Freund, ist alle Theorie, und gr\u00fcn des Lebens goldner Baum."+`", "at": [1.5, 2.25]},`, 1300)
	w, err := flate.NewWriter(nil, 6)
	if err != nil {
		t.Fatal(err)
	}
	const offer = "permessage-deflate; client_no_context_takeover; client_max_window_bits"
	for i, o := range []string{
		offer,
		offer + "; server_no_context_takeover",
		offer + "; server_max_window_bits=9",
		offer + "; server_max_window_bits=15",
		offer + "; server_no_context_takeover; server_max_window_bits=9",
		offer + "; server_no_context_takeover; server_max_window_bits=15",
		offer + "; server_no_context_takeover; server_max_window_bits=9, " + offer + "; server_no_context_takeover, " + offer,
	} {
		for _, n := range []int{16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072} {
			for _, cut := range []int{0, 256, 1024, 32768} {
				if cut > n {
					continue
				}
				t.Run(fmt.Sprintf("13.%d/bytes=%d/fragments=%d", i+1, n, cut), func(t *testing.T) {
					p := dial(t, addr, o)
					if !p.deflated {
						t.Fatal("the offer was declined")
					}
					messages := rounds()
					if cut > 0 {
						messages /= 10
					}
					for i := range messages {
						at := i * 17 % (len(prose) - n)
						s := strings.ToValidUTF8(prose[at:at+n], "?")
						p.write(fragments(ws.OpText, 4, squeeze(w, s), cut))
						p.expect("text " + s)
						if i%10 == 0 {
							p.write(fragments(ws.OpBinary, 4, squeeze(w, string(noise[:n])), cut))
							p.expect("binary " + string(noise[:n]))
						}
					}
				})
			}
		}
	}
}
