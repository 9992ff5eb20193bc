package hibernate

import (
	"context"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// MessageKind says how the bytes of a message are to be read.
type MessageKind uint8

// The kinds of a message, RFC 6455 §5.6.
const (
	TextMessage   MessageKind = 1 // UTF-8
	BinaryMessage MessageKind = 2
)

// A Message is what a peer sent or is sent.
//
// Data of a received message is valid until the handler returns or awaits; copy
// what is kept. Data of a sent message is copied before the call returns.
type Message struct {
	Kind MessageKind
	Data []byte // borrowed if received: see above
}

// Text is a text message.
func Text(s string) Message { return Message{TextMessage, []byte(s)} }

// Binary is a binary message of b, which is not copied.
func Binary(b []byte) Message { return Message{BinaryMessage, b} }

// Text is the message's data as a string.
func (m Message) Text() string { return string(m.Data) }

// A CloseEvent tells how a connection ended.
type CloseEvent struct {
	// Code is the peer's close code; 1005 if it gave none, 1006 if the connection
	// ended without a Close frame. It is 1013 for a peer that the runtime closed
	// because it did not read, whatever the peer answered: see [SlowReaderClose].
	Code int
	// Reason is the peer's, at most 123 bytes.
	Reason string
	// WasClean reports whether the peer sent a Close frame.
	WasClean bool
}

// ReadyState is how far a WebSocket has been closed.
type ReadyState uint8

// The ready states, with the numbers of the WebSocket API.
const (
	StateOpen    ReadyState = ReadyState(socket.Open)
	StateClosing ReadyState = ReadyState(socket.Closing)
	StateClosed  ReadyState = ReadyState(socket.Closed)
)

// A WebSocket is a handle on one accepted connection. Handles of one connection
// are equal, also across hibernation, and can be map keys. The zero value is no
// connection: its calls return ErrClosed.
//
// A kept handle of a connection that has gone pins only its tags, attachment and
// state. Sending to it is silently ignored, unless it was closed from this side
// (semantics 2.7).
type WebSocket struct {
	s *socket.Socket
}

func (ws WebSocket) object() *registry.Object { return ws.s.Owner().(*registry.Object) }

func (ws WebSocket) class() *class { return ws.object().Class().Behavior.(*class) }

// turn is the turn of ctx, if it is one of the socket's object.
func (ws WebSocket) turn(ctx context.Context) (*registry.Turn, error) {
	if ws.s == nil {
		return nil, ErrClosed
	}
	t := registry.TurnOf(ctx)
	if t == nil || !t.Activation().Object().Is(ws.object()) {
		return nil, ws.object().OutsideTurn()
	}
	return t, nil
}

// An outlet is what output may go through: a turn, or WaitUntil work.
type outlet interface {
	Send(*socket.Socket, socket.Frame) error
	SendAll([]*socket.Socket, socket.Frame) error
	CloseSocket(*socket.Socket, socket.Frame) error
}

func outletOf(ctx context.Context, o *registry.Object) (outlet, error) {
	if t := registry.TurnOf(ctx); t != nil && t.Activation().Object().Is(o) {
		return t, nil
	}
	if x := registry.OutsideOf(ctx); x != nil && x.Activation().Object().Is(o) {
		return x, nil
	}
	return nil, o.OutsideTurn()
}

// check returns the kind of frame that m goes in, or why it cannot be sent.
func (m Message) check() (wire.Kind, error) {
	switch m.Kind {
	case TextMessage:
		if !utf8.Valid(m.Data) {
			return wire.None, fmt.Errorf("%w: text message is not UTF-8", ErrInvalid)
		}
		return wire.Text, nil
	case BinaryMessage:
		return wire.Binary, nil
	}
	return wire.None, fmt.Errorf("%w: message kind %d", ErrInvalid, m.Kind)
}

// Send queues m for the peer. It leaves when the turn's writes so far are
// durable, in the order of the calls; Send itself does not block.
//
// After Close, also one by the runtime, it returns [ErrClosed]; to a connection that was lost it does
// nothing. Text that is not UTF-8 is [ErrInvalid]; more than
// [Limits].Undelivered bytes that wait are a *LimitError, as is, with
// [SlowReaderError], more than a slow peer's queue takes. A panic or reset in
// the same turn takes the message back; a returned error, or the rollback of a
// transaction, does not (semantics 4.6, 12.14).
//
// ctx is that of a turn of the socket's object, or of its WaitUntil work.
func (ws WebSocket) Send(ctx context.Context, m Message) error {
	if ws.s == nil {
		return ErrClosed
	}
	out, err := outletOf(ctx, ws.object())
	if err != nil {
		return err
	}
	kind, err := m.check()
	if err != nil {
		return err
	}
	if t, ok := out.(*registry.Turn); ok && ws.s.Window() == 0 && wire.FrameSize(len(m.Data)) <= socket.MaxCopied {
		return t.SendMessage(ws.s, kind, m.Data)
	}
	return out.Send(ws.s, ws.s.Encode(kind, m.Data))
}

// SendText is Send of a text message.
func (ws WebSocket) SendText(ctx context.Context, s string) error {
	return ws.Send(ctx, Text(s))
}

// Close sends the peer a Close frame, behind everything sent before, and leaves
// the socket CLOSING until the peer answers. A second call, or one on a
// connection that is gone, does nothing.
//
// code is 1000 to 4999 without 1004, 1005, 1006 and 1015, else [ErrInvalid]; a
// reason of more than 123 bytes is a *LimitError (semantics 5.9). Like Send, the
// close leaves when the writes before it are durable.
//
// ctx is that of a turn of the socket's object, or of its WaitUntil work.
func (ws WebSocket) Close(ctx context.Context, code int, reason string) error {
	switch {
	case !wire.ValidSentCloseCode(code):
		return fmt.Errorf("%w: close code %d", ErrInvalid, code)
	case len(reason) > wire.MaxCloseReason:
		return &LimitError{Limit: "close reason bytes", Max: wire.MaxCloseReason, Got: int64(len(reason))}
	case !utf8.ValidString(reason):
		return fmt.Errorf("%w: close reason is not UTF-8", ErrInvalid)
	}
	return ws.close(ctx, wire.AppendClose(nil, uint16(code), reason))
}

// CloseNoCode is Close with an empty Close frame; the peer sees code 1005.
func (ws WebSocket) CloseNoCode(ctx context.Context) error {
	return ws.close(ctx, wire.AppendClose(nil, 1005, ""))
}

func (ws WebSocket) close(ctx context.Context, frame []byte) error {
	if ws.s == nil {
		return ErrClosed
	}
	out, err := outletOf(ctx, ws.object())
	if err != nil {
		return err
	}
	return out.CloseSocket(ws.s, socket.Frame{Bytes: frame, Last: true})
}

// ReadyState is how far the socket has been closed: 1 open, 2 after one side
// sent Close or the connection was lost, 3 after both did (semantics 2.6). It may
// be called anywhere. The zero WebSocket is 3.
func (ws WebSocket) ReadyState() ReadyState {
	if ws.s == nil {
		return StateClosed
	}
	return ReadyState(ws.s.ReadyState())
}

// BufferedAmount is the number of bytes, frame headers included, that may leave and
// that the peer's system has not taken yet. What still waits for the turn's commit
// is not among them. It may be called anywhere; the zero WebSocket has 0.
func (ws WebSocket) BufferedAmount() int64 {
	if ws.s == nil {
		return 0
	}
	return ws.s.Buffered()
}

// BroadcastOptions select who gets a broadcast.
type BroadcastOptions struct {
	// Tags restricts it to the sockets that have all of them.
	Tags []string
	// Except leaves these out.
	Except []WebSocket
}

// Broadcast sends m to the object's open sockets and returns how many. The frame
// is made once and shared; once for each window size, where compression was
// negotiated. Errors are those of Send; sockets that were closed
// are passed over. Peers whose queue is full under [SlowReaderError] are passed over
// too, and the error of the last one is returned at the end. o may be nil.
//
// ctx is that of a turn of the object, or of its WaitUntil work.
func (s *State) Broadcast(ctx context.Context, m Message, o *BroadcastOptions) (int, error) {
	out, err := outletOf(ctx, s.act.Object())
	if err != nil {
		return 0, err
	}
	kind, err := m.check()
	if err != nil {
		return 0, err
	}
	if o == nil {
		o = &BroadcastOptions{}
	}
	var frames [wire.Windows]socket.Frame
	var groups [wire.Windows][]*socket.Socket
	var full error
	n, first := 0, true
	all := s.act.Object().Sockets(o.Tags)
	for _, sock := range all {
		if sock.ReadyState() != socket.Open || slices.Contains(o.Except, WebSocket{sock}) {
			continue
		}
		w := sock.Window()
		if frames[w].Bytes == nil {
			frames[w] = sock.Encode(kind, m.Data)
			frames[w].Shared = true
			if first { // most often there is one group, and it needs no memory of its own
				groups[w], first = all[:0], false
			}
		}
		if err := sock.Room(len(frames[w].Bytes)); err != nil {
			full = err
			continue
		}
		groups[w] = append(groups[w], sock)
		n++
	}
	for w, group := range groups {
		if len(group) == 0 {
			continue
		}
		if err := out.SendAll(group, frames[w]); err != nil {
			return 0, err
		}
	}
	return n, full
}
