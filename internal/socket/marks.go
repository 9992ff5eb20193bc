package socket

import (
	"encoding/binary"
	"unsafe"
)

// marks are what the object has written on a socket, its tags and its attachment, in
// one piece of memory that is never changed: the length of the one in two bytes, that
// of the other in four, then both. For a tag and an attachment of some tens of bytes,
// two strings and a struct for them are two thirds more. The zero value is neither.
type marks struct{ p *byte }

const marksHead = 6

func newMarks(tags Tags, attachment []byte) marks {
	if tags == (Tags{}) && len(attachment) == 0 {
		return marks{}
	}
	b := make([]byte, 0, marksHead+len(tags.list)+len(attachment))
	b = binary.BigEndian.AppendUint16(b, uint16(len(tags.list)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(attachment)))
	b = append(b, tags.list...)
	b = append(b, attachment...)
	return marks{unsafe.SliceData(b)}
}

func (m marks) tags() Tags {
	if m.p == nil {
		return Tags{}
	}
	return Tags{m.part(0, int(binary.BigEndian.Uint16(unsafe.Slice(m.p, marksHead))))}
}

func (m marks) attachment() string {
	if m.p == nil {
		return ""
	}
	head := unsafe.Slice(m.p, marksHead)
	return m.part(int(binary.BigEndian.Uint16(head)), int(binary.BigEndian.Uint32(head[2:])))
}

// part is the n bytes that are from bytes behind the head.
func (m marks) part(from, n int) string {
	if n == 0 {
		return "" // its address might be behind the memory
	}
	return unsafe.String((*byte)(unsafe.Add(unsafe.Pointer(m.p), marksHead+from)), n)
}
