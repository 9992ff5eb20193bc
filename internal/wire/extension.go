package wire

import (
	"bytes"
	"net/http"
	"strconv"
)

// OfferedDeflate is what to answer of the extensions that the client offers: its
// first offer of permessage-deflate that RFC 7692 §7.1 lets a server accept, as
// the Window to compress with and the extension's part of the answer. Without
// such an offer both are zero. r must have passed CheckHandshake.
func OfferedDeflate(r *http.Request) (w Window, answer string) {
	var n negotiation
	for _, line := range r.Header[headerExtensions] {
		n.line([]byte(line))
	}
	return n.result()
}

// validExtensions reports whether line is a list of extensions as RFC 6455 §9.1
// has it.
func validExtensions(line []byte) bool { return new(negotiation).line(line) }

// A negotiation is what is known of the offers read so far.
type negotiation struct {
	window Window // of the offer to accept; 0: none yet
	asked  bool   // it has a server_max_window_bits, which has to be answered
	offer  offer  // being read
}

// An offer is one element of the list.
type offer struct {
	acceptable bool
	seen       params
	window     Window
}

type params uint8

const (
	serverNoContextTakeover params = 1 << iota
	clientNoContextTakeover
	serverMaxWindowBits
	clientMaxWindowBits
)

func (n *negotiation) result() (w Window, answer string) {
	if n.window == 0 {
		return 0, ""
	}
	// Either side is told to forget, whatever it offered (RFC 7692 §7.1.1). The
	// client's window is its own choice: any can be read.
	answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	if n.asked {
		answer += "; server_max_window_bits=" + strconv.Itoa(int(n.window))
	}
	return n.window, answer
}

// line reads one Sec-WebSocket-Extensions field and reports whether it is
// well-formed:
//
//	extension-list = 1#extension
//	extension = token *( ";" token [ "=" ( token | quoted-string ) ] )
//
// A quoted string must be a token when unquoted, and the elements of a list may
// be empty (RFC 7230 §7).
func (n *negotiation) line(b []byte) bool {
	for {
		b = bytes.TrimLeft(b, ", \t")
		if len(b) == 0 {
			return true
		}
		name, rest := cutToken(b)
		if len(name) == 0 {
			return false
		}
		n.offer = offer{acceptable: string(name) == "permessage-deflate", window: maxWindow}
		for b = skipSpace(rest); len(b) > 0 && b[0] == ';'; b = skipSpace(b) {
			if name, b = cutToken(skipSpace(b[1:])); len(name) == 0 {
				return false
			}
			var value []byte
			if rest := skipSpace(b); len(rest) > 0 && rest[0] == '=' {
				if value, b = cutValue(skipSpace(rest[1:])); len(value) == 0 {
					return false
				}
			}
			n.offer.param(string(name), string(value))
		}
		if len(b) > 0 && b[0] != ',' {
			return false
		}
		if n.window == 0 && n.offer.acceptable {
			n.window, n.asked = n.offer.window, n.offer.seen&serverMaxWindowBits != 0
		}
	}
}

// param takes a parameter of the offer; value is empty if it has none. What is
// unknown, invalid or there twice makes the offer one to decline (RFC 7692 §7.1).
func (o *offer) param(name, value string) {
	var p params
	valid := value == ""
	switch name {
	case "server_no_context_takeover":
		p = serverNoContextTakeover
	case "client_no_context_takeover":
		p = clientNoContextTakeover
	case "server_max_window_bits":
		p = serverMaxWindowBits
		o.window, valid = parseWindow(value)
	case "client_max_window_bits":
		p = clientMaxWindowBits
		if value != "" {
			_, valid = parseWindow(value)
		}
	default:
		valid = false
	}
	o.acceptable = o.acceptable && valid && o.seen&p == 0
	o.seen |= p
}

// parseWindow reads 8 to 15 in decimal, without leading zeros.
func parseWindow(s string) (Window, bool) {
	n, err := strconv.ParseUint(s, 10, 8)
	w := Window(n)
	return w, err == nil && w >= minWindow && w <= maxWindow && s[0] != '0'
}

func skipSpace(b []byte) []byte { return bytes.TrimLeft(b, " \t") }

// cutToken takes a token, perhaps empty, off b.
func cutToken(b []byte) (token, rest []byte) {
	n := 0
	for n < len(b) && tokenByte[b[n]] {
		n++
	}
	return b[:n], b[n:]
}

// cutValue takes a token or quoted token off b. The token is empty if there is
// none.
func cutValue(b []byte) (token, rest []byte) {
	if len(b) == 0 || b[0] != '"' {
		return cutToken(b)
	}
	for i := 1; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return token, b[i+1:]
		case c == '\\' && i+1 < len(b):
			i++
			fallthrough
		default:
			if !tokenByte[b[i]] {
				return nil, nil
			}
			token = append(token, b[i])
		}
	}
	return nil, nil // no end
}
