package protocol

import "encoding/binary"

// AppendFrame appends a message as a server sends it.
func AppendFrame(b []byte, op byte, p []byte) []byte {
	b = append(b, 0x80|op)
	switch n := len(p); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, p...)
}

// A Frame is one that a client has sent.
type Frame struct {
	Op      byte
	Payload []byte // unmasked, in place
	Size    int    // of the whole frame
}

// Parse takes the first frame of b. ok is false if it is not whole.
func Parse(b []byte) (f Frame, ok bool) {
	if len(b) < 6 {
		return f, false
	}
	n, head := uint64(b[1]&0x7f), 2
	switch {
	case n == 126 && len(b) >= 8:
		n, head = uint64(binary.BigEndian.Uint16(b[2:])), 4
	case n == 127 && len(b) >= 14:
		n, head = binary.BigEndian.Uint64(b[2:]), 10
	case n >= 126:
		return f, false
	}
	if n > uint64(len(b)) || len(b) < head+4+int(n) {
		return f, false
	}
	f = Frame{Op: b[0] & 0xf, Payload: b[head+4 : head+4+int(n)], Size: head + 4 + int(n)}
	mask := binary.LittleEndian.Uint32(b[head:])
	wide := uint64(mask)<<32 | uint64(mask)
	p := f.Payload
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, binary.LittleEndian.Uint64(p)^wide)
		p = p[8:]
	}
	for i := range p {
		p[i] ^= byte(mask >> (8 * i))
	}
	return f, true
}
