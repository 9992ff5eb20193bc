package wire

import (
	"bufio"
	"bytes"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// handshake is the head of a handshake in order; more are further lines.
func handshakeHead(target string, more ...string) string {
	lines := append([]string{"GET " + target + " HTTP/1.1", "Host: example.com:8080", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}, more...)
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// ordinary are heads that must not need net/http.
var ordinary = []string{
	handshakeHead("/"),
	handshakeHead("/room/a?x=1&y=%20"),
	handshakeHead("/a%20b%2Fc?d=%zz"),
	handshakeHead("//twice/", "Origin: http://example.com:8080"),
	handshakeHead("/:a", "Origin: HTTPS://EXAMPLE.com:8080"),
	handshakeHead("/", "Origin: https://example.com"),
	handshakeHead("/", "Origin: https://evil.example"),
	handshakeHead("/", "Origin: null"),
	handshakeHead("/", "Origin: http://example.com:8080", "Origin: http://example.com:8080"),
	handshakeHead("/", "Sec-WebSocket-Protocol: a , b", "sec-websocket-protocol: c,,é,a b", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
	handshakeHead("/", `Sec-WebSocket-Extensions: x; a="b"; c, permessage-deflate; server_max_window_bits = "1\0"`, "SEC-WEBSOCKET-EXTENSIONS: permessage-deflate"),
	handshakeHead("/", "X-Obs: \xe9", "Cookie: a=b; c=d", "User-Agent:Go\t"),
	strings.Replace(handshakeHead("/"), "Connection: Upgrade", "connection: keep-alive, UPGRADE", 1),
	strings.Replace(handshakeHead("/"), "Upgrade: websocket", "UPGRADE:   WebSocket  ", 1),
	strings.Replace(handshakeHead("/"), "example.com:8080", "[::1]:80", 1),
}

// extraordinary are heads that net/http has to judge.
var extraordinary = []string{
	"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
	strings.Replace(handshakeHead("/"), "HTTP/1.1", "HTTP/1.0", 1),
	strings.ReplaceAll(handshakeHead("/"), "\r\n", "\n"),
	strings.Replace(handshakeHead("/"), "\r\n", "\n", 1),
	strings.Replace(handshakeHead("/"), "Host: ", "Host : ", 1),
	strings.Replace(handshakeHead("/"), "Host: example.com:8080\r\n", "", 1),
	strings.Replace(handshakeHead("/"), "example.com:8080", "", 1),
	strings.Replace(handshakeHead("/"), "example.com:8080", "a/b", 1),
	strings.Replace(handshakeHead("/"), ": 13", ": 12", 1),
	strings.Replace(handshakeHead("/"), "dGhl", "????", 1),
	strings.Replace(handshakeHead("/"), "websocket", "h2c", 1),
	strings.Replace(handshakeHead("/"), "Connection: Upgrade", "Connection: close", 1),
	handshakeHead("/", "Host: b"), handshakeHead("/", "Sec-WebSocket-Version: 13"), handshakeHead("/", "Upgrade: websocket"),
	handshakeHead("/", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), handshakeHead("/", "Content-Length: 0"),
	handshakeHead("/", "Sec-WebSocket-Extensions: a;"), handshakeHead("/", "Sec-WebSocket-Extensions: a", "Sec-WebSocket-Extensions: b="),
	handshakeHead("/", "Transfer-Encoding: chunked"), handshakeHead("/", "Expect: 100-continue"), handshakeHead("/", "Trailer: a"),
	handshakeHead("/", "A: b", " folded"), handshakeHead("/", "A: b\rc"), handshakeHead("/", "A: \x00"), handshakeHead("/", ": b"),
	handshakeHead("/", "no colon"), handshakeHead("/", "Aé: b"), handshakeHead(""), handshakeHead("*"), handshakeHead("http://x/"),
	handshakeHead("/a b"), handshakeHead("/%zz"), handshakeHead("/%"), handshakeHead("/\x7f"), handshakeHead("/é"),
}

func TestOrdinaryHandshakesAreParsed(t *testing.T) {
	for _, raw := range ordinary {
		if _, ok := ParseHandshake([]byte(raw)); !ok {
			t.Errorf("refused %q", raw)
		}
		agrees(t, []byte(raw))
	}
	for _, raw := range extraordinary {
		if _, ok := ParseHandshake([]byte(raw)); ok {
			t.Errorf("parsed %q", raw)
		}
		agrees(t, []byte(raw))
	}
	raw := []byte(ordinary[1])
	if n := testing.AllocsPerRun(100, func() { ParseHandshake(raw) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestHeadKnowsWhatIsOffered(t *testing.T) {
	h, _ := ParseHandshake([]byte(handshakeHead("/", "A: b", "Sec-WebSocket-Protocol: a , b", "sec-websocket-protocol: c,,é,a b")))
	for protocol, want := range map[string]bool{"a": true, "b": true, "c": true, "": false, "d": false, "é": false, "a b": false} {
		if h.Offers(protocol) != want {
			t.Errorf("offers %q: %v", protocol, !want)
		}
	}
}

func TestScanHeadSeesWhatIsNoGetRequest(t *testing.T) {
	for in, want := range map[string]HeadState{
		"": HeadPartial, "G": HeadPartial, "GET ": HeadPartial, "GET / HTTP/1.1\r\n": HeadPartial, "GET / HTTP/1.1\r\n\r": HeadPartial,
		"GET / HTTP/1.1\r\n\r\n": HeadComplete, "GET /\n\nx": HeadComplete, "GET \n\r\n": HeadComplete,
		"\x16": HeadOther, "PRI * HTTP/2.0\r\n\r\n": HeadOther, "P": HeadOther, "GEX": HeadOther, "get ": HeadOther, "\r\nGET ": HeadOther, "GET\t": HeadOther,
	} {
		if _, state := ScanHead([]byte(in), 0); state != want {
			t.Errorf("%q is %d, want %d", in, state, want)
		}
	}
}

// agrees fails unless what is said of b, in one piece and by the byte, is what net/http says.
func agrees(t *testing.T, b []byte) {
	n, state := ScanHead(b, 0)
	for i := 1; i <= len(b); i++ {
		k, s := ScanHead(b[:i], i-1)
		if s != HeadPartial || i == len(b) {
			if k != n || s != state {
				t.Fatalf("%q is %d %d in one piece and %d %d by the byte", b, n, state, k, s)
			}
			break
		}
	}
	if state != HeadComplete {
		return
	}
	raw := b[:n:n]
	h, ok := ParseHandshake(raw)
	if !ok {
		return
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
	if err != nil {
		t.Fatalf("%q: net/http says %v", raw, err)
	}
	if bad := CheckHandshake(r); bad != nil {
		t.Fatalf("%q: %v", raw, bad)
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) != 0 || r.Close != headerHasClose(r) {
		t.Fatalf("%q: has a body", raw)
	}
	query, _ := url.ParseQuery(h.RawQuery())
	if h.Path() != r.URL.Path || h.RawQuery() != r.URL.RawQuery || h.Host() != r.Host || !reflect.DeepEqual(query, r.URL.Query()) {
		t.Fatalf("%q: %q %q %q, net/http says %q %q %q", raw, h.Host(), h.Path(), h.RawQuery(), r.Host, r.URL.Path, r.URL.RawQuery)
	}
	if h.SameOrigin() != SameOrigin(r) {
		t.Fatalf("%q: same origin: %v", raw, h.SameOrigin())
	}
	for _, p := range OfferedProtocols(r) {
		if !h.Offers(p) {
			t.Fatalf("%q: does not offer %q", raw, p)
		}
	}
	window, extension := OfferedDeflate(r)
	if w, answer := h.OfferedDeflate(); w != window || answer != extension {
		t.Fatalf("%q: window %d, answer %q, net/http's are %d, %q", raw, w, answer, window, extension)
	}
	if q, err := h.Request(); err != nil || !reflect.DeepEqual(q.Header, r.Header) {
		t.Fatalf("%q: request %v, %v", raw, q, err)
	}
	before := slices.Clone(raw)
	header := http.Header{"X-A": {"1", "2"}, "Connection": {"close"}, "Sec-WebSocket-Protocol": {"z"}}
	got, err := h.AppendSwitching(nil, "", extension, header)
	if err != nil {
		return // then net/http answers
	}
	want, err := AppendSwitching(nil, r.Header.Get("Sec-WebSocket-Key"), "", extension, header)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, before) {
		t.Fatalf("%q was changed to %q", before, raw)
	}
	if g, w := response(t, got), response(t, want); g.StatusCode != w.StatusCode || !reflect.DeepEqual(g.Header, w.Header) {
		t.Fatalf("%q: answered %v, want %v", raw, g, w)
	}
}

func headerHasClose(r *http.Request) bool { return hasToken(r.Header["Connection"], "close") }

func response(t *testing.T, head []byte) *http.Response {
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), nil)
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	return r
}

func TestSwitchingRefusesWhatAppendSwitchingDoes(t *testing.T) {
	h, _ := ParseHandshake([]byte(ordinary[0]))
	for _, header := range []http.Header{{"a b": {"x"}}, {"A": {"x\r\ny: z"}}, {"Sec-Websocket-Protocol": {"a", "b"}}} {
		if b, err := h.AppendSwitching(nil, "", "", header); err == nil {
			t.Errorf("%v gave %q", header, b)
		}
	}
	if b, err := h.AppendSwitching(nil, "a b", "", nil); err == nil {
		t.Errorf("gave %q", b)
	}
	b, err := h.AppendSwitching(nil, "chat", "", http.Header{"Sec-Websocket-Protocol": {"other"}})
	if err != nil || !slices.Equal(response(t, b).Header["Sec-Websocket-Protocol"], []string{"chat"}) {
		t.Errorf("gave %q, %v", b, err)
	}
}

func FuzzHeadAgreesWithNetHTTP(f *testing.F) {
	for _, raw := range slices.Concat(ordinary, extraordinary) {
		f.Add([]byte(raw))
		f.Add([]byte(raw + "more"))
	}
	f.Fuzz(func(t *testing.T, b []byte) { agrees(t, b) })
}

// What a fuzzer seldom finds: a small change of a head that is in order.
func FuzzHeadWithAChangedPart(f *testing.F) {
	f.Add(uint16(4), uint16(5), []byte("/a"))
	f.Fuzz(func(t *testing.T, at, end uint16, part []byte) {
		for _, raw := range ordinary {
			i := int(at) % len(raw)
			j := i + int(end)%(len(raw)-i)
			agrees(t, []byte(raw[:i]+string(part)+raw[j:]))
		}
	})
}

func BenchmarkHandshakeHead(b *testing.B) {
	raw := []byte(handshakeHead("/room/12345", "Origin: http://example.com:8080", "User-Agent: x", "Accept-Encoding: gzip"))
	b.ReportAllocs()
	for b.Loop() {
		n, _ := ScanHead(raw, 0)
		h, ok := ParseHandshake(raw[:n])
		if !ok || !h.SameOrigin() {
			b.Fatal("refused")
		}
		if _, err := h.AppendSwitching(nil, "", "", nil); err != nil {
			b.Fatal(err)
		}
	}
}
