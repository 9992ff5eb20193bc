package wire

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/gobwas/ws"
)

// opCode is the frame opcode of k (RFC 6455 §5.2).
func (k Kind) opCode() ws.OpCode {
	switch k {
	case Text:
		return ws.OpText
	case Binary:
		return ws.OpBinary
	case Ping:
		return ws.OpPing
	case Pong:
		return ws.OpPong
	case Close:
		return ws.OpClose
	}
	panic(fmt.Sprintf("BUG: wire: no frame of %v", k))
}

// kindOf is the kind of a frame that is not a continuation and whose header has
// been checked.
func kindOf(op ws.OpCode) Kind {
	switch op {
	case ws.OpText:
		return Text
	case ws.OpBinary:
		return Binary
	case ws.OpPing:
		return Ping
	case ws.OpPong:
		return Pong
	case ws.OpClose:
		return Close
	}
	panic(fmt.Sprintf("BUG: wire: opcode %#x passed the header check", byte(op)))
}

// FrameSize returns the bytes that AppendFrame adds for a payload of n bytes.
func FrameSize(n int) int {
	return ws.HeaderSize(ws.Header{Length: int64(n)}) + n
}

// AppendFrame appends one server frame to dst: final, unmasked (RFC 6455 §5.1),
// payload copied. The payload of Text must be UTF-8 and that of a control frame
// at most MaxControl bytes; Close is better made by AppendClose.
func AppendFrame(dst []byte, k Kind, payload []byte) []byte {
	return append(appendHeader(dst, k, len(payload)), payload...)
}

// AppendClose appends a Close frame. Code 1005 stands for an empty body, and the
// reason is then dropped. The reason must be UTF-8, at most MaxCloseReason bytes.
func AppendClose(dst []byte, code uint16, reason string) []byte {
	if code == codeNoStatus {
		return appendHeader(dst, Close, 0)
	}
	n := 2 + len(reason)
	dst = appendHeader(dst, Close, n)
	at := len(dst)
	dst = append(append(dst, 0, 0), reason...)
	ws.PutCloseFrameBody(dst[at:], ws.StatusCode(code), reason)
	return dst
}

func appendHeader(dst []byte, k Kind, n int) []byte {
	op := k.opCode()
	if op.IsControl() && n > MaxControl {
		panic(fmt.Sprintf("BUG: wire: %v frame with %d bytes", k, n))
	}
	const final = 0x80
	dst = append(dst, final|byte(op))
	switch {
	case n <= 125:
		return append(dst, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, 126), uint16(n))
	default:
		return binary.BigEndian.AppendUint64(append(dst, 127), uint64(n))
	}
}

// headerSize returns how long the header is that b begins with, as far as b
// tells: the first two bytes decide.
func headerSize(b []byte) int {
	if len(b) < ws.MinHeaderSize {
		return ws.MinHeaderSize
	}
	n := ws.MinHeaderSize
	switch b[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if b[1]&0x80 != 0 {
		n += 4
	}
	return n
}

// parseHeader reads the header that is exactly b, len(b) being headerSize(b).
// A length with the top bit set comes out negative.
func parseHeader(b []byte) (h ws.Header) {
	h.Fin = b[0]&0x80 != 0
	h.Rsv = b[0] >> 4 & 0x7
	h.OpCode = ws.OpCode(b[0] & 0x0f)
	h.Masked = b[1]&0x80 != 0
	switch n := b[1] & 0x7f; n {
	case 126:
		h.Length = int64(binary.BigEndian.Uint16(b[2:]))
	case 127:
		h.Length = int64(binary.BigEndian.Uint64(b[2:]))
	default:
		h.Length = int64(n)
	}
	if h.Masked {
		copy(h.Mask[:], b[len(b)-len(h.Mask):])
	}
	return h
}

// checkHeader checks all that RFC 6455 says of a client's header alone. size is
// what it took on the wire; inMessage tells that a fragmented message is open.
func checkHeader(h ws.Header, size int, inMessage bool) *Error {
	state := ws.StateServerSide
	if inMessage {
		state = state.Set(ws.StateFragmented)
	}
	if err := ws.CheckHeader(h, state); err != nil {
		return &Error{Code: codeProtocolError, Reason: err.Error()}
	}
	switch {
	case h.Length < 0:
		return &Error{Code: codeProtocolError, Reason: "frame length has its most significant bit set"}
	case ws.HeaderSize(h) != size:
		return &Error{Code: codeProtocolError, Reason: "frame length takes more bytes than it needs"}
	}
	return nil
}
