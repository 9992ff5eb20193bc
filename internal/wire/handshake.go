package wire

import (
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Header names in the form that net/http gives them.
const (
	headerConnection = "Connection"
	headerUpgrade    = "Upgrade"
	headerKey        = "Sec-Websocket-Key"
	headerVersion    = "Sec-Websocket-Version"
	headerProtocol   = "Sec-Websocket-Protocol"
	headerExtensions = "Sec-Websocket-Extensions"
)

// HandshakeError is a request that cannot be upgraded, and the answer to give.
type HandshakeError struct {
	Status int
	Text   string      // for a person to read
	Header http.Header // to set on the answer; may be nil
}

// Error returns the status and the text.
func (e *HandshakeError) Error() string {
	return fmt.Sprintf("websocket handshake refused (%d): %s", e.Status, e.Text)
}

// CheckHandshake checks the client's opening handshake (RFC 6455 §4.2.1) except
// for its origin and returns nil if it may be answered by AppendSwitching.
func CheckHandshake(r *http.Request) *HandshakeError {
	bad := func(text string) *HandshakeError {
		return &HandshakeError{Status: http.StatusBadRequest, Text: text}
	}
	// RFC 9110 §15.5.22: a 426 names the protocol to upgrade to.
	upgradeRequired := func(text string) *HandshakeError {
		return &HandshakeError{Status: http.StatusUpgradeRequired, Text: text, Header: http.Header{
			headerConnection: {"Upgrade"},
			headerUpgrade:    {"websocket"},
		}}
	}
	switch {
	case r.ProtoMajor > 1:
		// Has to come first: HTTP/2 knows no Upgrade header.
		return &HandshakeError{Status: http.StatusHTTPVersionNotSupported,
			Text: fmt.Sprintf("a WebSocket needs HTTP/1.1 and this request came by %s; serve this address without HTTP/%d", r.Proto, r.ProtoMajor)}
	case !IsUpgrade(r):
		return upgradeRequired("this address speaks WebSocket only: the request has no \"Upgrade: websocket\" header")
	case r.Method != http.MethodGet:
		return &HandshakeError{Status: http.StatusMethodNotAllowed,
			Text: "a WebSocket handshake is a GET request", Header: http.Header{"Allow": {http.MethodGet}}}
	case !r.ProtoAtLeast(1, 1):
		return bad("a WebSocket handshake needs HTTP/1.1")
	case r.Host == "":
		return bad("the handshake has no Host header")
	case !hasToken(r.Header[headerConnection], "upgrade"):
		return bad("the handshake has no \"Connection: Upgrade\" header")
	}
	switch v := r.Header[headerVersion]; {
	case len(v) == 0:
		return bad("the handshake has no Sec-WebSocket-Version header")
	case len(v) > 1 || v[0] != "13":
		e := upgradeRequired("only WebSocket version 13 is spoken here")
		e.Header[headerVersion] = []string{"13"}
		return e
	}
	if k := r.Header[headerKey]; len(k) != 1 || !validKey(k[0]) {
		return bad("the handshake's Sec-WebSocket-Key is not one base64 value of 16 bytes")
	}
	for _, line := range r.Header[headerExtensions] {
		if !validExtensions([]byte(line)) {
			return bad("the handshake's Sec-WebSocket-Extensions is no list of extensions") // RFC 6455 §9.1
		}
	}
	return nil
}

// IsUpgrade reports whether r asks for the WebSocket protocol by its Upgrade
// header. It says nothing about whether the handshake is in order.
func IsUpgrade(r *http.Request) bool {
	return hasToken(r.Header[headerUpgrade], "websocket")
}

// OfferedProtocols returns the subprotocols that the client offers, the preferred
// ones first (RFC 6455 §11.3.4). What is not a token is left out.
func OfferedProtocols(r *http.Request) []string {
	var offered []string
	for _, line := range r.Header[headerProtocol] {
		for s := range strings.SplitSeq(line, ",") {
			if s = trimSpace(s); ValidToken(s) {
				offered = append(offered, s)
			}
		}
	}
	return offered
}

// AppendSwitching appends the whole head of the 101 response (RFC 6455 §4.2.2).
// protocol is the chosen subprotocol or empty, extension the answer of
// OfferedDeflate; header is what else to send, in order of name. If protocol is empty, a Sec-WebSocket-Protocol in header is sent
// in its place (semantics 1.12).
//
// Fields of header that belong to the handshake or to the framing of a body are
// passed over, since middleware may have set them. A field that is not valid,
// so that it could add lines of its own, is an error that names it, and dst
// comes back as it was.
func AppendSwitching(dst []byte, key, protocol, extension string, header http.Header) ([]byte, error) {
	b := append(dst, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
	b = appendAccept(b, key)
	b = append(b, "\r\n"...)
	b, err := appendFields(b, protocol, extension, header)
	if err != nil {
		return dst, err
	}
	return append(b, "\r\n"...), nil
}

// appendFields appends the fields of a 101 response that are the server's choice; see AppendSwitching. What it returns
// with an error is of no use.
func appendFields(b []byte, protocol, extension string, header http.Header) ([]byte, error) {
	if protocol != "" && !ValidToken(protocol) {
		return nil, fmt.Errorf("wire: subprotocol %q is not a token", protocol)
	}
	for _, name := range slices.Sorted(maps.Keys(header)) {
		if !ValidToken(name) {
			return nil, fmt.Errorf("wire: response header name %q is not a token", name)
		}
		switch http.CanonicalHeaderKey(name) {
		case headerConnection, headerUpgrade, headerExtensions, "Sec-Websocket-Accept",
			"Content-Length", "Transfer-Encoding", "Trailer", "Te", "Keep-Alive", "Proxy-Connection":
			continue
		case headerProtocol:
			// May come once only, so more than one is as bad as none that is a token.
			v := header[name]
			if protocol != "" || len(v) == 0 {
				continue
			}
			if len(v) > 1 || !ValidToken(v[0]) {
				return nil, fmt.Errorf("wire: response header %s: %q is not one subprotocol", name, v)
			}
			protocol = v[0]
			continue
		}
		for _, v := range header[name] {
			if !validFieldValue(v) {
				return nil, fmt.Errorf("wire: response header %s: value %q has control characters", name, v)
			}
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, trimSpace(v)...)
			b = append(b, "\r\n"...)
		}
	}
	if protocol != "" {
		b = append(b, "Sec-WebSocket-Protocol: "...)
		b = append(b, protocol...)
		b = append(b, "\r\n"...)
	}
	if extension != "" {
		b = append(b, "Sec-WebSocket-Extensions: "...)
		b = append(b, extension...)
		b = append(b, "\r\n"...)
	}
	return b, nil
}

// appendAccept appends the proof that key was read (RFC 6455 §4.2.2, 5.4).
func appendAccept(dst []byte, key string) []byte {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.AppendEncode(dst, sum[:])
}

// SameOrigin reports whether r comes from a page of the host it is sent to, or
// from no page at all: browsers always send an Origin with a handshake, so one
// without is no browser's. Ports are compared with the origin's scheme giving the
// default. The scheme itself is not, for TLS often ends before this server.
func SameOrigin(r *http.Request) bool {
	origins := r.Header["Origin"]
	if len(origins) == 0 {
		return true
	}
	if len(origins) > 1 {
		return false
	}
	u, err := url.Parse(origins[0])
	if err != nil || !equalFold(u.Scheme+"://"+u.Host, origins[0]) {
		return false // "null", or more than an origin
	}
	var defaultPort string
	switch u.Scheme {
	case "http":
		defaultPort = "80"
	case "https":
		defaultPort = "443"
	default:
		return false
	}
	to := &url.URL{Host: r.Host}
	port := func(u *url.URL) string {
		if p := u.Port(); p != "" {
			return p
		}
		return defaultPort
	}
	return u.Hostname() != "" && equalFold(u.Hostname(), to.Hostname()) && port(u) == port(to)
}

// ValidToken reports whether s is a token (RFC 7230 §3.2.6), as header names and
// subprotocols have to be.
func ValidToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// validFieldValue reports whether s can stand in a header line: no control
// characters but the tab (RFC 7230 §3.2).
func validFieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// validKey reports whether s is base64 of 16 bytes. The length comes first
// because the decoder passes over line breaks.
func validKey(s string) bool {
	var buf [18]byte
	if len(s) != 24 {
		return false
	}
	n, err := base64.StdEncoding.Decode(buf[:], []byte(s))
	return err == nil && n == 16
}

// hasToken reports whether the comma-separated lines hold token, in any case.
func hasToken(lines []string, token string) bool {
	for _, line := range lines {
		for s := range strings.SplitSeq(line, ",") {
			if equalFold(trimSpace(s), token) {
				return true
			}
		}
	}
	return false
}

// equalFold is ASCII's equality without case. Letters outside of ASCII that fold
// into it (the Kelvin sign) are longer, so the lengths tell them apart.
func equalFold(a, b string) bool {
	return len(a) == len(b) && strings.EqualFold(a, b)
}

// trimSpace removes the optional whitespace of header fields (RFC 7230 §3.2.3).
func trimSpace(s string) string { return strings.Trim(s, " \t") }
