package store

import (
	"encoding/binary"
	"fmt"
)

// The layout of the key space. It is forever: testdata/format.golden.
//
//	'a' | be64 due | id             → class        alarms by time
//	'c' | len class | class | id    → (empty)      objects by class
//	'm' | "epoch"                   → be64
//	'm' | "format"                  → "hibernate" | be32 version
//	'o' | id | 0                    → header       see appendHeader
//	'o' | id | 1 | key              → value
//
// An object is one range, and so is a shard: the leading bits of the ids.
const (
	tableAlarm  = 'a'
	tableClass  = 'c'
	tableMeta   = 'm'
	tableObject = 'o'

	kindHeader = 0
	kindKey    = 1
	kindEnd    = 2 // first kind behind the keys

	formatMagic   = "hibernate"
	formatVersion = 1

	headerVersion = 1
)

// keyOffset is where the user's key starts in a key of tableObject.
const keyOffset = 1 + len(ID{}) + 1

func metaKey(name string) []byte { return append([]byte{tableMeta}, name...) }

func appendObjectKey(b []byte, id *ID, kind byte) []byte {
	b = append(b, tableObject)
	b = append(b, id[:]...)
	return append(b, kind)
}

func appendClassKey(b []byte, class string, id *ID) []byte {
	b = append(b, tableClass, byte(len(class)))
	b = append(b, class...)
	return append(b, id[:]...)
}

func appendAlarmKey(b []byte, due int64, id *ID) []byte {
	b = append(b, tableAlarm)
	b = binary.BigEndian.AppendUint64(b, uint64(due))
	return append(b, id[:]...)
}

func parseAlarmKey(k []byte) (due int64, id ID, err error) {
	if len(k) != 1+8+len(id) || k[0] != tableAlarm {
		return 0, id, fmt.Errorf("alarm index key %x: %w", k, ErrCorrupt)
	}
	copy(id[:], k[9:])
	return int64(binary.BigEndian.Uint64(k[1:])), id, nil
}

// appendHeader encodes h: version, then as varints epoch, seq, next, running,
// retry, retry time, length of class, class, length of name, name.
func appendHeader(b []byte, h *Header) []byte {
	b = append(b, headerVersion)
	b = binary.AppendUvarint(b, h.Epoch)
	b = binary.AppendUvarint(b, h.Seq)
	b = binary.AppendUvarint(b, uint64(h.Alarm.Next))
	b = binary.AppendUvarint(b, uint64(h.Alarm.Running))
	b = binary.AppendUvarint(b, uint64(h.Alarm.Retry))
	b = binary.AppendUvarint(b, uint64(h.Alarm.RetryAt))
	b = binary.AppendUvarint(b, uint64(len(h.Class)))
	b = append(b, h.Class...)
	b = binary.AppendUvarint(b, uint64(len(h.Name)))
	return append(b, h.Name...)
}

// parseHeader decodes what appendHeader wrote and nothing else.
func parseHeader(b []byte) (Header, error) {
	if len(b) == 0 {
		return Header{}, fmt.Errorf("empty header: %w", ErrCorrupt)
	}
	if b[0] != headerVersion {
		return Header{}, fmt.Errorf("header of version %d: %w", b[0], ErrFormat)
	}
	d := decoder{b: b[1:]}
	h := Header{Exists: true}
	h.Epoch = d.uvarint()
	h.Seq = d.uvarint()
	h.Alarm.Next = d.time()
	h.Alarm.Running = d.time()
	retry := d.uvarint()
	h.Alarm.Retry = uint32(retry)
	h.Alarm.RetryAt = d.time()
	h.Class = d.text()
	h.Name = d.text()
	if d.bad || len(d.b) != 0 || retry>>32 != 0 {
		return Header{}, fmt.Errorf("header %x: %w", b, ErrCorrupt)
	}
	return h, nil
}

// decoder takes values from the front of b; bad once one was not there.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 { // cut, too long, or padded
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) time() int64 {
	v := d.uvarint()
	if v>>63 != 0 {
		d.bad = true
	}
	return int64(v)
}

func (d *decoder) text() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.bad = true
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func appendFormat(b []byte) []byte {
	b = append(b, formatMagic...)
	return binary.BigEndian.AppendUint32(b, formatVersion)
}

// checkFormat reports whether b is a format this version reads.
func checkFormat(b []byte) error {
	n := len(formatMagic)
	if len(b) != n+4 || string(b[:n]) != formatMagic {
		return fmt.Errorf("format marker %q: %w", b, ErrFormat)
	}
	if v := binary.BigEndian.Uint32(b[n:]); v != formatVersion {
		if v > formatVersion {
			return fmt.Errorf("format version %d was written by a newer release, this one reads %d: %w", v, formatVersion, ErrFormat)
		}
		return fmt.Errorf("format version %d, this release reads %d: %w", v, formatVersion, ErrFormat)
	}
	return nil
}
