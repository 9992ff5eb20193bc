// Package wire is RFC 6455 without I/O, the server's side of it: it turns the
// bytes a client sent into messages and control frames, builds the frames a
// server sends, and checks and answers the opening handshake.
//
// Input goes through a [Decoder], one per connection, which is fed whatever
// bytes happen to have arrived:
//
//	for len(in) > 0 {
//		it, n, err := dec.Next(in, cfg)
//		if err != nil {
//			// *Error: answer with AppendClose(out, err.Code, err.Reason).
//		}
//		in = in[n:]
//		switch it.Kind {
//		case None: // all of in is used up
//		…
//	}
//
// A decoder between two messages is one nil pointer, and a whole frame found in
// the input is handed out where it lies, so idle connections cost nothing and
// small messages are not copied. Everything after a Close frame is the caller's
// to ignore (RFC 6455 §5.5.1).
//
// Header checks, opcodes, masking and Close bodies are those of gobwas/ws. Its
// ReadHeader and WriteHeader are not used outside the tests, because they
// allocate for their io.Reader and io.Writer on every frame; the tests hold the
// code here against them.
//
// The one extension is permessage-deflate (RFC 7692), for connections whose
// [Window] is not zero. The decoder then lets compressed messages through as they
// are, and a [Deflate] makes them readable; without it every RSV bit is a
// violation. Nothing in the package blocks, logs or keeps state of its own.
package wire

import "fmt"

// Kind tells what an [Item] is.
type Kind uint8

// The kinds of item. None means that there is no item yet.
const (
	None Kind = iota
	Text
	Binary
	Ping
	Pong
	Close
)

// String returns the kind's name, for messages and tests.
func (k Kind) String() string {
	switch k {
	case None:
		return "none"
	case Text:
		return "text"
	case Binary:
		return "binary"
	case Ping:
		return "ping"
	case Pong:
		return "pong"
	case Close:
		return "close"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Limits of control frames (RFC 6455 §5.5), in bytes.
const (
	MaxControl     = 125            // payload of a control frame
	MaxCloseReason = MaxControl - 2 // reason of a Close frame, which follows its code
)

// Close codes that this package itself deals in (RFC 6455 §7.4.1).
const (
	codeProtocolError = 1002
	codeNoStatus      = 1005 // stands for an empty Close body; never on the wire
	codeInvalidData   = 1007
	codeTooBig        = 1009
)

// Error is a peer's violation. The connection cannot go on; Code and Reason are
// what the Close frame that answers it should carry. Reason fits into one.
type Error struct {
	Code   uint16 // 1002, 1007 or 1009
	Reason string
	// Max and Got are the limit and what exceeded it, in bytes or else, with
	// Fragments, in fragments. For Code 1009 only.
	Max, Got  int64
	Fragments bool
}

// Error returns the close code and the reason.
func (e *Error) Error() string {
	return fmt.Sprintf("wire: peer violation (close code %d): %s", e.Code, e.Reason)
}

// ValidReceivedCloseCode reports whether a peer may put code into a Close frame:
// 1000–1003, 1007–1014 and 3000–4999 (RFC 6455 §7.4 and the IANA registry).
// gobwas/ws's own check refuses the registry's 1012–1014 and takes 5000 and above.
func ValidReceivedCloseCode(code uint16) bool {
	switch {
	case code >= 1000 && code <= 1003, code >= 1007 && code <= 1014, code >= 3000 && code <= 4999:
		return true
	}
	return false
}

// ValidSentCloseCode reports whether a user may close with code: 1000–4999
// without 1004, 1005, 1006 and 1015 (semantics 5.9). It is wider than what we
// take from a peer, as in the original.
func ValidSentCloseCode(code int) bool {
	switch code {
	case 1004, 1005, 1006, 1015:
		return false
	}
	return code >= 1000 && code <= 4999
}
