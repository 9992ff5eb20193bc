package hibernate

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/fxamacker/cbor/v2"

	"github.com/hibernate-go/hibernate/internal/limit"
)

// A Codec turns values into bytes and back, for attachments and storage. It must
// be safe for concurrent use, and must not retain what it is given.
type Codec interface {
	Marshal(v any) ([]byte, error)
	Unmarshal(b []byte, v any) error
}

// CBOR is the default codec (RFC 8949). It keeps times, byte slices and keys that
// are not strings. A time's year is 0 to 9999: another is written and cannot be read.
// Struct tags are those of cbor and, where there is none, of json: a field tagged
// json:"-" is not stored.
// A value has at most 128 levels of nesting and 131,072 elements at each: more is an
// error of both directions, so that what was written can be read.
func CBOR() Codec { return cborCodec{} }

// JSON is the codec of encoding/json, for data that other programs read. A value
// has at most 128 levels of nesting, in both directions.
func JSON() Codec { return jsonCodec{} }

// Limits of what a Codec decodes. The stack grows with the first, and no
// collection is made larger than the second says.
const (
	maxNesting  = 128
	maxElements = 131072
)

type jsonCodec struct{}

func (jsonCodec) Marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err == nil {
		err = checkNesting(b)
	}
	return b, err
}

func (jsonCodec) Unmarshal(b []byte, v any) error {
	if err := checkNesting(b); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// checkNesting is an error if b, which may be anything, opens too many arrays and
// objects before it closes them. encoding/json allows 10,000.
func checkNesting(b []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
			if c == '\\' {
				i++
			}
		case c == '[' || c == '{':
			if depth++; depth > maxNesting {
				return fmt.Errorf("json: more than %d levels of nesting", maxNesting)
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return nil
}

type cborCodec struct{}

var (
	cborEnc = must(cbor.EncOptions{
		Sort:    cbor.SortBytewiseLexical,
		Time:    cbor.TimeRFC3339NanoUTC,
		TimeTag: cbor.EncTagRequired,
	}.EncMode())
	cborDec = must(cbor.DecOptions{
		MaxNestedLevels:  maxNesting,
		MaxArrayElements: maxElements,
		MaxMapPairs:      maxElements,
		DefaultMapType:   reflect.TypeFor[map[any]any](),
		IntDec:           cbor.IntDecConvertSignedOrBigInt,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return v
}

func (cborCodec) Marshal(v any) ([]byte, error) {
	b, err := cborEnc.Marshal(v)
	if err == nil {
		err = cborDec.Wellformed(b) // within the limits; some tens of nanoseconds
	}
	return b, err
}

func (cborCodec) Unmarshal(b []byte, v any) error { return cborDec.Unmarshal(b, v) }

// encodeAttachment encodes v within the limit.
func (c *class) encodeAttachment(v any) ([]byte, error) {
	b, err := c.codec.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%w: attachment: %w", ErrInvalid, err)
	}
	if most := c.rt.opt.Limits.Attachment; len(b) > most {
		return nil, c.rt.refused.Refuse(limit.Attachment, int64(most), int64(len(b)))
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

// SerializeAttachment stores a copy of v with the connection, instead of any
// earlier one. It survives hibernation, and goes with the connection or the
// process. Over [Limits].Attachment bytes once encoded it returns a *LimitError
// and the earlier one stays (semantics 3). It is part of the turn: a turn that
// is undone leaves the earlier attachment.
//
// ctx is that of a turn of the socket's object.
func (ws WebSocket) SerializeAttachment(ctx context.Context, v any) error {
	t, err := ws.turn(ctx)
	if err != nil {
		return err
	}
	b, err := ws.class().encodeAttachment(v)
	if err != nil {
		return err
	}
	return t.SetAttachment(ws.s, b)
}

// DeserializeAttachment decodes the attachment into v, a pointer. It reports
// false, and leaves v alone, if none was ever set. It may be called anywhere,
// also on a connection that is gone (semantics 2.7).
func (ws WebSocket) DeserializeAttachment(v any) (bool, error) {
	if ws.s == nil {
		return false, ErrClosed
	}
	b, ok := ws.s.Attachment()
	if !ok {
		return false, nil
	}
	if err := ws.class().codec.Unmarshal(b, v); err != nil {
		return false, fmt.Errorf("attachment: %w", err)
	}
	return true, nil
}

// Attachment is the attachment of ws, decoded by the class's codec into a new V: see
// [WebSocket.DeserializeAttachment]. ok is false, and v zero, if none was ever set. It
// may be called anywhere; what is changed in v is stored by SerializeAttachment alone.
func Attachment[V any](ws WebSocket) (v V, ok bool, err error) {
	ok, err = ws.DeserializeAttachment(&v)
	return v, ok, err
}
