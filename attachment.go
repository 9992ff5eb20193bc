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
// are not strings. Decoding is bounded: 32 levels of nesting, 131,072 elements.
func CBOR() Codec { return cborCodec{} }

// JSON is the codec of encoding/json, for data that other programs read.
func JSON() Codec { return jsonCodec{} }

type jsonCodec struct{}

func (jsonCodec) Marshal(v any) ([]byte, error)   { return json.Marshal(v) }
func (jsonCodec) Unmarshal(b []byte, v any) error { return json.Unmarshal(b, v) }

type cborCodec struct{}

var (
	cborEnc = must(cbor.EncOptions{
		Sort:    cbor.SortBytewiseLexical,
		Time:    cbor.TimeRFC3339NanoUTC,
		TimeTag: cbor.EncTagRequired,
	}.EncMode())
	cborDec = must(cbor.DecOptions{
		MaxNestedLevels:  32,
		MaxArrayElements: 131072,
		MaxMapPairs:      131072,
		DefaultMapType:   reflect.TypeFor[map[any]any](),
		IntDec:           cbor.IntDecConvertSignedOrFail,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return v
}

func (cborCodec) Marshal(v any) ([]byte, error)   { return cborEnc.Marshal(v) }
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

// Attachment is DeserializeAttachment into a new V.
func Attachment[V any](ws WebSocket) (v V, ok bool, err error) {
	ok, err = ws.DeserializeAttachment(&v)
	return v, ok, err
}
