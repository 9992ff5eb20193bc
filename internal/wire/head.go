package wire

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gobwas/ws"
)

// HeadState is what the first bytes of a connection turn out to be.
type HeadState uint8

const (
	HeadPartial  HeadState = iota // may become a GET request
	HeadComplete                  // the head of a GET request is there
	HeadOther                     // no GET request: TLS, HTTP/2, another method
)

// ScanHead looks for the end of the head of a GET request in b, the bytes of a connection from its first one on. n is
// the length of the head with its blank line if it is complete. scanned is how much of b an earlier call has seen.
func ScanHead(b []byte, scanned int) (n int, state HeadState) {
	const get = "GET "
	if scanned < len(get) && string(b[:min(len(b), len(get))]) != get[:min(len(b), len(get))] {
		return 0, HeadOther
	}
	// net/http takes lines that end in a bare LF too.
	for i := max(0, scanned-2); ; {
		k := bytes.IndexByte(b[i:], '\n')
		if k < 0 {
			return 0, HeadPartial
		}
		i += k + 1
		switch {
		case bytes.HasPrefix(b[i:], []byte("\n")):
			return i + 1, HeadComplete
		case bytes.HasPrefix(b[i:], []byte("\r\n")):
			return i + 2, HeadComplete
		}
	}
}

// A Head is the head of an opening handshake that is in order, as it came. It is valid as long as the bytes it was
// parsed from.
type Head struct {
	raw    []byte // with its blank line
	fields []byte // header lines, without the blank line
	target []byte
	host   []byte
	origin []byte // of the first Origin field; nil: none
	query  int    // index of the query in target; 0: none

	origins    int
	protocols  bool // there is a Sec-WebSocket-Protocol field
	extensions bool // there is a Sec-WebSocket-Extensions field

	io memory // what AppendSwitching works with
}

// ParseHandshake parses raw, a head that ScanHead has found complete, and reports whether it is an opening handshake
// that CheckHandshake would accept. It reports false for anything that is out of the ordinary in any way; such a request
// is for net/http to judge.
func ParseHandshake(raw []byte) (h Head, ok bool) {
	h.raw = raw
	line, rest, ok := bytes.Cut(raw, []byte("\r\n"))
	if !ok {
		return h, false
	}
	target, ok := bytes.CutPrefix(line, []byte("GET "))
	if !ok {
		return h, false
	}
	if h.target, ok = bytes.CutSuffix(target, []byte(" HTTP/1.1")); !ok || !h.checkTarget() {
		return h, false
	}
	h.fields = rest
	var upgrade, connection, version, key int
	for len(rest) > 2 {
		name, value, left, ok := cutField(rest)
		if !ok {
			return h, false
		}
		rest = left
		switch len(name) { // few names have the length of one that matters
		case len("Host"):
			if foldIs(name, "host") {
				if h.host != nil || !plainHost(value) {
					return h, false
				}
				h.host = value
			}
		case len("Origin"): // and Expect
			if foldIs(name, "origin") {
				if h.origins++; h.origins == 1 {
					h.origin = value
				}
			} else if foldIs(name, "expect") {
				return h, false
			}
		case len("Upgrade"): // and Trailer
			if foldIs(name, "upgrade") {
				if upgrade++; !foldIs(value, "websocket") {
					return h, false
				}
			} else if foldIs(name, "trailer") {
				return h, false
			}
		case len("Connection"):
			if foldIs(name, "connection") {
				if !foldIs(value, "upgrade") && !hasTokenBytes(value, "upgrade") {
					return h, false
				}
				connection++
			}
		case len("Content-Length"):
			if foldIs(name, "content-length") {
				return h, false
			}
		case len("Transfer-Encoding"): // and Sec-WebSocket-Key
			if foldIs(name, "transfer-encoding") {
				return h, false
			}
			if foldIs(name, "sec-websocket-key") {
				if key++; key > 1 || !validKey(string(value)) {
					return h, false
				}
			}
		case len("Sec-WebSocket-Version"):
			if foldIs(name, "sec-websocket-version") {
				if version++; version > 1 || string(value) != "13" {
					return h, false
				}
			}
		case len("Sec-WebSocket-Protocol"):
			h.protocols = h.protocols || foldIs(name, "sec-websocket-protocol")
		case len("Sec-WebSocket-Extensions"):
			if foldIs(name, "sec-websocket-extensions") {
				if h.extensions = true; !validExtensions(value) {
					return h, false
				}
			}
		}
	}
	h.fields = h.fields[:len(h.fields)-len(rest)]
	return h, string(rest) == "\r\n" && h.host != nil && upgrade == 1 && connection > 0 && version == 1 && key == 1
}

// cutField takes one header line off b, which has more than the blank line. It reports false unless the line is a
// token, a colon, a value without control characters, and CR LF.
func cutField(b []byte) (name, value, rest []byte, ok bool) {
	colon := 0
	for ; colon < len(b) && tokenByte[b[colon]]; colon++ {
	}
	if colon == 0 || colon == len(b) || b[colon] != ':' {
		return nil, nil, nil, false
	}
	end := bytes.IndexByte(b, '\r')
	if end < colon || end+1 >= len(b) || b[end+1] != '\n' {
		return nil, nil, nil, false
	}
	value = b[colon+1 : end]
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return nil, nil, nil, false
		}
	}
	return b[:colon], bytes.Trim(value, " \t"), b[end+2:], true
}

// tokenByte tells the bytes of a token; see ValidToken.
var tokenByte = func() (t [256]bool) {
	for c := range t {
		t[c] = ValidToken(string([]byte{byte(c)}))
	}
	return t
}()

// foldIs reports whether b is lower, which is lower-case ASCII, in any case.
func foldIs(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func hasTokenBytes(line []byte, lower string) bool {
	for s := range bytes.SplitSeq(line, []byte(",")) {
		if foldIs(bytes.Trim(s, " \t"), lower) {
			return true
		}
	}
	return false
}

// checkTarget reports whether net/http would take the target, and finds the query.
func (h *Head) checkTarget() bool {
	if len(h.target) == 0 || h.target[0] != '/' {
		return false
	}
	for i, c := range h.target {
		switch {
		case c <= ' ' || c >= 0x7f:
			return false
		case c == '?' && h.query == 0:
			h.query = i
		case c == '%' && h.query == 0:
			_, err := url.ParseRequestURI(string(h.target))
			return err == nil && h.findQuery()
		}
	}
	return true
}

func (h *Head) findQuery() bool {
	h.query = max(0, bytes.IndexByte(h.target, '?'))
	return !slices.ContainsFunc(h.target, func(c byte) bool { return c <= ' ' || c >= 0x7f })
}

// plainHost reports whether host is one that needs no thought: a name or an address, and perhaps a port.
func plainHost(host []byte) bool {
	for _, c := range host {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			c == '.' || c == '-' || c == '_' || c == ':' || c == '[' || c == ']') {
			return false
		}
	}
	return len(host) > 0
}

// Path is the path of the request's URL, decoded.
func (h *Head) Path() string {
	path := h.target
	if h.query > 0 {
		path = path[:h.query]
	}
	if bytes.IndexByte(path, '%') < 0 {
		return string(path)
	}
	u, err := url.ParseRequestURI(string(h.target))
	if err != nil {
		panic("wire: BUG: a target was checked and cannot be parsed: " + err.Error())
	}
	return u.Path
}

// RawQuery is the query of the request's URL, as it came.
func (h *Head) RawQuery() string {
	if h.query == 0 {
		return ""
	}
	return string(h.target[h.query+1:])
}

// Host is the host that the request was sent to.
func (h *Head) Host() string { return string(h.host) }

// Request is the request as net/http reads it.
func (h *Head) Request() (*http.Request, error) {
	r, err := http.ReadRequest(bufio.NewReaderSize(bytes.NewReader(h.raw), len(h.raw)))
	if err != nil {
		return nil, fmt.Errorf("wire: read a handshake that is in order: %w", err)
	}
	return r, nil
}

// SameOrigin is SameOrigin of the request.
func (h *Head) SameOrigin() bool {
	switch {
	case h.origins == 0:
		return true
	case h.origins > 1:
		return false
	}
	at, ok := h.origin, false
	for _, scheme := range [...]string{"https://", "http://"} {
		if len(at) > len(scheme) && foldIs(at[:len(scheme)], scheme) {
			at, ok = at[len(scheme):], true
			break
		}
	}
	if ok && plainName(at) && bytes.EqualFold(at, h.host) {
		return true
	}
	return SameOrigin(&http.Request{Host: string(h.host), Header: http.Header{"Origin": {string(h.origin)}}})
}

// plainName reports whether host is letters, digits, dots and dashes, and perhaps a port in digits.
func plainName(host []byte) bool {
	name, port, found := bytes.Cut(host, []byte(":"))
	if len(name) == 0 || found && len(port) == 0 {
		return false
	}
	for _, c := range name {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-') {
			return false
		}
	}
	return !slices.ContainsFunc(port, func(c byte) bool { return c < '0' || c > '9' })
}

// Offers reports whether the client offers the subprotocol; see OfferedProtocols.
func (h *Head) Offers(protocol string) bool {
	if !h.protocols || !ValidToken(protocol) {
		return false
	}
	for value := range h.values("sec-websocket-protocol") {
		for s := range strings.SplitSeq(string(value), ",") {
			if trimSpace(s) == protocol {
				return true
			}
		}
	}
	return false
}

// OfferedDeflate is OfferedDeflate of the request.
func (h *Head) OfferedDeflate() (w Window, answer string) {
	if !h.extensions {
		return 0, ""
	}
	var n negotiation
	for value := range h.values("sec-websocket-extensions") {
		n.line(value)
	}
	return n.result()
}

// values yields the values of the fields of that name, which is in lower case.
func (h *Head) values(lower string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for rest := h.fields; len(rest) > 0; {
			name, value, left, ok := cutField(rest)
			if !ok {
				panic("wire: BUG: a field was parsed and cannot be parsed again")
			}
			rest = left
			if foldIs(name, lower) && !yield(value) {
				return
			}
		}
	}
}

// AppendSwitching appends the whole head of the 101 response, made by gobwas/ws. The other
// arguments are those of the function AppendSwitching.
func (h *Head) AppendSwitching(dst []byte, protocol, extension string, header http.Header) ([]byte, error) {
	var u ws.Upgrader
	if protocol != "" || extension != "" || len(header) > 0 {
		more, err := appendFields(nil, protocol, extension, header)
		if err != nil {
			return nil, err
		}
		u.Header = ws.HandshakeHeaderBytes(more)
	}
	h.io = memory{in: h.raw, out: dst}
	_, err := u.Upgrade(&h.io)
	dst, h.io = h.io.out, memory{}
	if err != nil {
		return nil, fmt.Errorf("wire: upgrade: %w", err)
	}
	return dst, nil
}

// memory is what an Upgrader reads and writes in place of a connection.
type memory struct{ in, out []byte }

func (m *memory) Read(p []byte) (n int, err error) {
	if len(m.in) == 0 {
		return 0, io.EOF
	}
	n = copy(p, m.in)
	m.in = m.in[n:]
	return n, nil
}

func (m *memory) Write(p []byte) (n int, err error) {
	m.out = append(m.out, p...)
	return len(p), nil
}
