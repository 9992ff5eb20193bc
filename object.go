package hibernate

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// The handlers a class may have. Register finds them by name; a method with one
// of these names and another signature is an error there. Each call is a turn:
// no two overlap in one object, and ctx is valid until the call returns.
type (
	// A MessageHandler is told of the messages of the object's WebSockets, in
	// order for each of them. ctx is the turn, and m.Data is valid, until the handler
	// returns or awaits. An error is logged, and what was done stands: see
	// [ClassOptions].RollbackOnError. Without a WebSocketMessage messages are dropped,
	// and nobody is woken (semantics 4.7).
	MessageHandler interface {
		WebSocketMessage(ctx context.Context, ws WebSocket, m Message) error
	}
	// A CloseHandler is told once of each connection that the peer closed or that
	// was lost. ws is still listed, with its tags and attachment, until the handler
	// has returned (semantics 2.4). Errors are as those of a MessageHandler.
	CloseHandler interface {
		WebSocketClose(ctx context.Context, ws WebSocket, e CloseEvent) error
	}
	// An ErrorHandler is told once, instead of a CloseHandler, of each connection
	// whose peer broke the protocol or a limit: err is a *[ProtocolError] (semantics
	// 5.13). The error it returns is as that of a MessageHandler.
	ErrorHandler interface {
		WebSocketError(ctx context.Context, ws WebSocket, err error) error
	}
	// A DrainHandler is told that everything has left that waited for a peer which
	// was slow to read: once after more than [ClassOptions].DrainThreshold bytes did.
	// Calls do not pile up. None comes for a WebSocket that is closing.
	DrainHandler interface {
		WebSocketDrain(ctx context.Context, ws WebSocket) error
	}
	// An AlarmHandler runs the object's alarm. If it returns an error the alarm is
	// tried again: after 2 s, doubled each time, up to six times (semantics 13.5).
	AlarmHandler interface {
		Alarm(ctx context.Context, a AlarmInfo) error
	}
)

// AlarmInfo is what an alarm handler is told.
type AlarmInfo struct {
	Scheduled  time.Time // when the alarm was set for
	IsRetry    bool      // an earlier run failed
	RetryCount int       // how many did
}

// ClassOptions configure a class. The zero value is ready for use.
type ClassOptions struct {
	// CheckOrigin reports whether an upgrade request may come from the page named
	// in its Origin header. Nil allows requests without the header and those
	// whose origin's host is the request's own. A refusal is status 403.
	CheckOrigin func(*http.Request) bool

	// ManualCloseReply leaves the answer to a peer's Close to the class: nothing
	// is sent unless a handler calls Close. It is what workerd does; by default
	// the runtime answers with the peer's code.
	ManualCloseReply bool

	// CloseTimeout is how long one side's Close may go unanswered. Then the
	// connection is cut; if the peer did not answer, that is one close event with
	// code 1006. Zero is 30 s, negative is for ever (semantics 2.5).
	CloseTimeout time.Duration

	// SlowReader says what happens when more than [Limits].SendQueue bytes wait for a
	// peer that does not read. Zero is [SlowReaderClose].
	SlowReader SlowReader

	// DrainThreshold is the number of bytes that have to wait for a peer before
	// WebSocketDrain tells that they are gone. Zero is 64 KiB; negative is an error.
	DrainThreshold int64

	// Compression accepts permessage-deflate (RFC 7692) on every WebSocket whose
	// client offers it; see also [AcceptOptions].Compression. Neither side keeps its
	// window from one message to the next, so that it costs nothing at rest, and a
	// connection without it nothing at all.
	//
	// [Limits].Message is the size of a message when decompressed. More is found
	// while decompressing. Who sends secrets beside what others can choose should
	// know that the length of a compressed message tells of both.
	Compression bool

	// CompressionLevel is how hard to try, 1 to 9; zero is 1. Else Register returns
	// [ErrInvalid]. A client may ask for a window smaller than 32 KiB; then there is
	// but one level.
	CompressionLevel int

	// CompressionMinSize is the length in bytes from which on messages are
	// compressed. Those that do not become shorter are sent as they are. Zero is
	// 256, negative is 1.
	CompressionMinSize int

	// RollbackOnError undoes the turn of a socket or alarm handler that returns an
	// error, and drops the instance, as a panic does.
	RollbackOnError bool

	// ConstructTimeout is how long a constructor may take; then the object is
	// reset and the event fails. Zero is 30 s, negative is for ever.
	ConstructTimeout time.Duration

	// ErrorHandler writes the answer to a request that failed: the constructor's
	// error, [ErrReset] with its cause, a *PanicError, a *LimitError or
	// [ErrUnavailable]. Nil writes status 503 for [ErrUnavailable] and for too
	// many waiting requests or WebSockets, 413 for a large body, 500 otherwise, with the
	// status' own text.
	ErrorHandler func(w http.ResponseWriter, r *http.Request, err error)

	// Codec encodes storage values and attachments. Nil is [CBOR]. It is part of
	// the stored format.
	Codec Codec
}

// A Namespace is the set of objects of one class. It is safe for concurrent use.
type Namespace struct {
	class *class
}

// class is what Register has found out about T; it is also the adapter between
// the registry and T's methods.
type class struct {
	rt     *Runtime
	name   string
	opt    ClassOptions
	codec  Codec
	reg    *registry.Class
	wants  [socket.Drain + 1]bool
	alarm  bool
	http   bool
	create func(context.Context, *State) (any, error)
}

// handlers are the methods that mean something to Register.
var handlers = map[string]reflect.Type{
	"WebSocketMessage": reflect.TypeFor[MessageHandler](),
	"WebSocketClose":   reflect.TypeFor[CloseHandler](),
	"WebSocketError":   reflect.TypeFor[ErrorHandler](),
	"WebSocketDrain":   reflect.TypeFor[DrainHandler](),
	"Alarm":            reflect.TypeFor[AlarmHandler](),
	"ServeHTTP":        reflect.TypeFor[http.Handler](),
}

// Register makes a class of objects whose instances are made by construct, for
// instance a *Room. Which events they handle is found out from T's methods:
// WebSocketMessage, WebSocketClose, WebSocketError, WebSocketDrain, Alarm and
// ServeHTTP. A method with one of these names, in whatever case, that is not quite
// the handler is [ErrInvalid]. A method that is missing is no error, so say what the
// class is meant to handle: var _ hibernate.MessageHandler = (*Room)(nil).
//
// name is part of the stored format: objects are found again under it. It has 1 to
// 255 bytes of UTF-8 and may be registered once in a runtime. Alarms of the class
// run from now on. o may be nil.
//
// construct runs before an object's first event and again on each wake, in a turn
// of its own with nothing else of the object beside it. If it fails or panics,
// the event that woke the object fails, and its WebSockets are cut (semantics
// 9.8); the next event tries again.
func Register[T any](rt *Runtime, name string, construct func(context.Context, *State) (T, error), o *ClassOptions) (*Namespace, error) {
	if name == "" || len(name) > 255 || !utf8.ValidString(name) {
		return nil, fmt.Errorf("%w: class name %q: want 1 to 255 bytes of UTF-8", ErrInvalid, name)
	}
	if construct == nil {
		return nil, fmt.Errorf("%w: class %q has no constructor", ErrInvalid, name)
	}
	c := &class{rt: rt, name: name}
	if o != nil {
		c.opt = *o
	}
	if c.codec = c.opt.Codec; c.codec == nil {
		c.codec = CBOR()
	}
	if err := c.opt.withDefaults(); err != nil {
		return nil, fmt.Errorf("class %q: %w", name, err)
	}
	t := reflect.TypeFor[T]()
	if err := checkHandlers(t); err != nil {
		return nil, fmt.Errorf("%w: class %q: %w", ErrInvalid, name, err)
	}
	c.wants[socket.Message] = t.Implements(handlers["WebSocketMessage"])
	c.wants[socket.Close] = t.Implements(handlers["WebSocketClose"])
	c.wants[socket.Error] = t.Implements(handlers["WebSocketError"])
	c.wants[socket.Drain] = t.Implements(handlers["WebSocketDrain"])
	c.alarm = t.Implements(handlers["Alarm"])
	c.http = t.Implements(handlers["ServeHTTP"])
	c.create = func(ctx context.Context, s *State) (any, error) {
		v, err := construct(ctx, s)
		if err != nil {
			return nil, err
		}
		if r := reflect.ValueOf(v); !r.IsValid() || r.Kind() == reflect.Pointer && r.IsNil() {
			return nil, fmt.Errorf("%w: constructor of class %q returned nil", ErrInvalid, name)
		}
		return v, nil
	}
	if level := c.opt.CompressionLevel; level < 0 || level > 9 {
		return nil, fmt.Errorf("%w: class %q: compression level %d", ErrInvalid, name, level)
	}
	lim := &rt.opt.Limits
	plain := wire.Config{MaxMessage: lim.Message, MaxFragments: lim.Fragments}
	deflated := plain
	deflated.Deflate = &wire.Deflate{Level: max(c.opt.CompressionLevel, 1), MinSize: cmp.Or(c.opt.CompressionMinSize, 256)}
	c.reg = &registry.Class{
		Name:             name,
		Behavior:         c,
		RollbackOnError:  c.opt.RollbackOnError,
		ConstructTimeout: orDefault(c.opt.ConstructTimeout, 30*time.Second),
		Sockets: &socket.Config{
			Recent:       &rt.recent,
			Wire:         plain,
			Deflated:     deflated,
			Inflating:    rt.inflating,
			ManualClose:  c.opt.ManualCloseReply,
			SendQueue:    lim.SendQueue,
			SlowReader:   socket.SlowReader(c.opt.SlowReader),
			Pool:         &rt.pool,
			Patience:     rt.patience,
			MessageRate:  lim.MessageRate,
			Linger:       2 * time.Second,
			LingerBytes:  256 << 10,
			CloseTimeout: orDefault(c.opt.CloseTimeout, 30*time.Second),
			Timers:       rt.reg.Timers(),
			Refused:      &rt.refused,
		},
	}
	if c.wants[socket.Drain] {
		c.reg.Sockets.DrainOver = c.opt.DrainThreshold
	}
	if err := rt.reg.AddClass(c.reg); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return &Namespace{c}, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// checkHandlers finds methods that look like handlers and are none.
func checkHandlers(t reflect.Type) error {
	for i := range t.NumMethod() {
		method := t.Method(i).Name
		for name := range handlers {
			if method != name && strings.EqualFold(method, name) {
				return fmt.Errorf("method %v.%s would not be found: it is spelled %s", t, method, name)
			}
		}
	}
	for name, want := range handlers {
		if m, ok := t.MethodByName(name); ok && !t.Implements(want) {
			return fmt.Errorf("method %v.%s has type %v, want that of %v", t, name, m.Type, want)
		}
		if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
			continue
		}
		if _, ok := reflect.PointerTo(t).MethodByName(name); ok && !t.Implements(want) {
			return fmt.Errorf("method %s is declared on *%v, but the constructor returns %v", name, t, t)
		}
	}
	return nil
}

// Construct makes an instance; the registry calls it.
func (c *class) Construct(ctx context.Context, a *registry.Activation) (any, error) {
	s := &State{act: a, class: c}
	s.storage = Storage{accessor{state: s}}
	return c.create(ctx, s)
}

// HandlesSocket reports whether instances want events of kind k.
func (c *class) HandlesSocket(k socket.EventKind) bool { return c.wants[k] }

// SocketEvent calls the handler of a socket event.
func (c *class) SocketEvent(ctx context.Context, instance any, s *socket.Socket, e socket.Event) error {
	switch e.Kind {
	case socket.Message:
		m := Message{Kind: BinaryMessage, Data: e.Data}
		if e.Text {
			m.Kind = TextMessage
		}
		return instance.(MessageHandler).WebSocketMessage(ctx, WebSocket{s}, m)
	case socket.Drain:
		return instance.(DrainHandler).WebSocketDrain(ctx, WebSocket{s})
	case socket.Close:
		return instance.(CloseHandler).WebSocketClose(ctx, WebSocket{s}, CloseEvent{e.Code, e.Reason, e.WasClean})
	default:
		return instance.(ErrorHandler).WebSocketError(ctx, WebSocket{s}, &ProtocolError{e.Err})
	}
}

// HandlesAlarm reports whether instances have an alarm handler.
func (c *class) HandlesAlarm() bool { return c.alarm }

// Alarm calls the alarm handler.
func (c *class) Alarm(ctx context.Context, instance any, a registry.AlarmInfo) error {
	h, ok := instance.(AlarmHandler)
	if !ok {
		return nil // set by an older version of the class, or in a constructor
	}
	return h.Alarm(ctx, AlarmInfo{Scheduled: a.Scheduled, IsRetry: a.Retries > 0, RetryCount: a.Retries})
}

// A ProtocolError is what a peer did against RFC 6455 or a limit. For a limit,
// [errors.As] finds the *LimitError.
type ProtocolError struct{ err error }

// Error names the violation.
func (e *ProtocolError) Error() string { return "WebSocket protocol error: " + e.err.Error() }

// Unwrap is the violation.
func (e *ProtocolError) Unwrap() error { return e.err }

// CloseCode is the close code that the peer was sent.
func (e *ProtocolError) CloseCode() int {
	var violation *wire.Error
	if errors.As(e.err, &violation) {
		return int(violation.Code)
	}
	return 1002
}

// An ID names an object of a class. IDs are comparable, and equal however they
// were made. The zero ID is no object's.
type ID struct {
	key store.ID
}

// String is the ID in 64 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id.key[:]) }

// An id is 24 bytes that are uniform (a hash of class and name, or random) and 8
// that tell which class they belong to.
const idBody = 24

func (c *class) seal(id *store.ID) {
	b := append(make([]byte, 0, 128), "hibernate id class\x00"...)
	b = append(b, c.name...)
	b = append(b, 0)
	sum := sha256.Sum256(append(b, id[:idBody]...))
	copy(id[idBody:], sum[:])
}

// IDFromName is the ID of the object with the given name. It is the same for
// ever and everywhere.
func (n *Namespace) IDFromName(name string) ID {
	b := append(make([]byte, 0, 256), "hibernate id name\x00"...)
	b = append(b, n.class.name...)
	b = append(b, 0)
	id := store.ID(sha256.Sum256(append(b, name...)))
	n.class.seal(&id)
	return ID{id}
}

// NewUniqueID is the ID of a new object without a name.
func (n *Namespace) NewUniqueID() ID {
	var id store.ID
	rand.Read(id[:idBody]) // never fails
	n.class.seal(&id)
	return ID{id}
}

// IDFromString is the ID whose String is s. It is [ErrInvalid] if s is not the
// string of an ID of this class.
func (n *Namespace) IDFromString(s string) (ID, error) {
	var id, check store.ID
	if len(s) != hex.EncodedLen(len(id)) {
		return ID{}, fmt.Errorf("%w: id has %d characters, want %d", ErrInvalid, len(s), hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("%w: id %q: %w", ErrInvalid, s, err)
	}
	check = id
	n.class.seal(&check)
	if check != id {
		return ID{}, fmt.Errorf("%w: id %s is not of class %q", ErrInvalid, s, n.class.name)
	}
	return ID{id}, nil
}

// Get is a stub of the object with the given ID, which must be of this class: calls
// of another's stub are [ErrInvalid]. It neither looks for the object nor makes it.
func (n *Namespace) Get(id ID) Stub {
	check := id.key
	n.class.seal(&check)
	return Stub{class: n.class, id: id, foreign: check != id.key}
}

// GetByName is a stub of the object with the given name. A name has at most
// 1,024 bytes of UTF-8; the stub's calls refuse others.
func (n *Namespace) GetByName(name string) Stub {
	return Stub{class: n.class, id: n.IDFromName(name), name: name}
}

// A Stub stands for an object, which need not be in memory or exist yet. Stubs
// are cheap, comparable, and safe for concurrent use.
type Stub struct {
	class   *class
	id      ID
	name    string
	foreign bool // id is of another class
}

// ID is the object's ID.
func (s Stub) ID() ID { return s.id }

// Name is the name the stub was got by, if any.
func (s Stub) Name() string { return s.name }

// check reports why the stub cannot be used.
func (s Stub) check() error {
	if err := s.checkClass(); err != nil {
		return err
	}
	return s.checkName()
}

// checkClass reports what only the program can have got wrong.
func (s Stub) checkClass() error {
	if s.class == nil {
		return fmt.Errorf("%w: zero Stub", ErrInvalid)
	}
	if s.foreign {
		return fmt.Errorf("%w: id %s is not of class %q", ErrInvalid, s.id, s.class.name)
	}
	return nil
}

// checkName reports what is wrong with the name, which often is a client's.
func (s Stub) checkName() error {
	if len(s.name) > maxName {
		return &LimitError{Limit: limitName, Max: maxName, Got: int64(len(s.name))}
	}
	if !utf8.ValidString(s.name) {
		return fmt.Errorf("%w: object name is not UTF-8", ErrInvalid)
	}
	return nil
}

const limitName = "object name bytes"

// State is what the runtime keeps for one instance of an object. The constructor
// gets it and keeps it. It must not be used by later instances.
type State struct {
	act     *registry.Activation
	class   *class
	storage Storage
}

// turn is the turn of ctx, if it is one of this instance.
func (s *State) turn(ctx context.Context) (*registry.Turn, error) {
	t := registry.TurnOf(ctx)
	if t == nil || t.Activation() != s.act {
		return nil, s.act.Object().OutsideTurn()
	}
	return t, nil
}

// ID is the object's ID. It may be called anywhere, like Name and Class.
func (s *State) ID() ID { return ID{s.act.Object().ID()} }

// Name is the object's name, empty if it has none or it is not known: an object
// found by ID alone knows its name once it was written with a commit.
func (s *State) Name() string { return s.act.Object().Name() }

// Class is the name the class was registered by.
func (s *State) Class() string { return s.class.name }

// Storage is the object's storage. It may be called anywhere, and blocks nobody; the
// methods of what it returns need a turn.
func (s *State) Storage() *Storage { return &s.storage }

// Await gives the turn of ctx up while f runs, so that other events of the object
// can: use it around everything that waits for the outside world. What was
// written before is durable before f begins; what is written after is another
// commit. While f runs ctx is refused with [ErrOutsideTurn]; f gets it for its
// values and cancellation.
//
// Await returns f's error, and [ErrReset] if the instance has gone meanwhile. In
// a constructor, a transaction or BlockConcurrencyWhile it only waits: nothing is
// committed and no other event runs. A panic of f goes on in the turn.
func Await(ctx context.Context, f func(ctx context.Context) error) error {
	t := registry.TurnOf(ctx)
	if t == nil {
		return ErrOutsideTurn
	}
	return t.Await(ctx, registry.BlockerAwait, "", f)
}

// BlockConcurrencyWhile runs f with the turn held: no other event starts or
// resumes until it returns, also while f awaits. If f fails, or takes longer than
// 30 s, the object is reset (semantics 10.2). It nests to depth 64.
func (s *State) BlockConcurrencyWhile(ctx context.Context, f func(ctx context.Context) error) error {
	t, err := s.turn(ctx)
	if err != nil {
		return err
	}
	return t.Block(ctx, f)
}

// Do runs f as a turn of this instance and waits for it, for goroutines of the
// object's own: WaitUntil work, or one that a handler has started. It blocks until f
// has returned; if the object has nothing else to do, f may run on the caller's
// goroutine. ctx bounds the wait for the turn, not f. It returns f's error,
// [ErrReentrant] when called in a turn, [ErrReset] when the instance is gone, and a
// *LimitError if more than [Limits].Waiting wait for the object.
func (s *State) Do(ctx context.Context, f func(ctx context.Context) error) error {
	return s.act.Do(ctx, func(t *registry.Turn) error { return f(t) })
}

// WaitUntil runs f on a goroutine of its own and keeps the object in memory until
// it returns. name says what it is, for whoever asks why the object is awake. f's
// ctx ends with the instance; with it f may Send, Close and Broadcast, and nothing
// else of the object: use [State.Do] for that. f must return when its ctx ends.
// A [Runtime.Shutdown] waits for f; a panic of f is logged, and ends f alone.
// WaitUntil itself does not block; it takes the ctx of a turn.
func (s *State) WaitUntil(ctx context.Context, name string, f func(ctx context.Context)) error {
	t, err := s.turn(ctx)
	if err != nil {
		return err
	}
	return t.WaitUntil(name, f)
}

// Abort resets the object: what it has not committed is undone, its WebSockets are
// cut without Close frames or events, and its instance is dropped (semantics
// 10.5). Requests under way fail with [ErrReset] and reason. The handler should
// return; whatever it still calls fails.
func (s *State) Abort(ctx context.Context, reason error) error {
	t, err := s.turn(ctx)
	if err != nil {
		return err
	}
	if reason == nil {
		reason = errors.New("aborted")
	}
	return t.Abort(reason)
}

// SetWebSocketEventTimeout bounds each later message, close and error event of
// the object, Awaits included. An event that takes longer resets the object. d is
// at most 604,800 s, zero clears; it survives hibernation, not a restart of the
// process (semantics 8).
func (s *State) SetWebSocketEventTimeout(ctx context.Context, d time.Duration) error {
	const limit = 604_800 * time.Second
	if d < 0 {
		return fmt.Errorf("%w: event timeout %v", ErrInvalid, d)
	}
	if d > limit {
		return &LimitError{Limit: "event timeout milliseconds", Max: limit.Milliseconds(), Got: d.Milliseconds()}
	}
	t, err := s.turn(ctx)
	if err != nil {
		return err
	}
	return t.SetEventTimeout(d)
}

// WebSocketEventTimeout is the bound in force, zero if there is none.
func (s *State) WebSocketEventTimeout() time.Duration { return s.act.Object().EventTimeout() }

// A Method is a call that objects offer to each other and to the rest of the
// program. It is found by name, and arguments and results are copied by the
// class's codec, so that a call means the same wherever the object lives.
type Method[T, In, Out any] struct {
	name string
	f    func(T, context.Context, In) (Out, error)
}

// NewMethod makes a Method of T, for instance from a method expression:
//
//	var Post = hibernate.NewMethod("post", (*Room).Post)
//
// Go refuses that as an initialization cycle if Post itself uses the variable,
// directly or through others; then assign it in an init function.
func NewMethod[T, In, Out any](name string, f func(T, context.Context, In) (Out, error)) *Method[T, In, Out] {
	return &Method[T, In, Out]{name, f}
}

// Call runs the method in a turn of the object, constructing it if need be, and
// returns its result once that turn is durable; until then it blocks. It may be called
// anywhere. The method's error is returned as
// it is; other errors are [ErrUnavailable], [ErrReset] if the object was reset or
// its turn undone (a *PanicError if the method panicked), the constructor's, and a
// *LimitError if too much waits for the object.
//
// Called in a turn, it gives that turn up as [Await] does: what was written is
// durable before the call begins, and calls back into the caller run. Where the
// turn cannot be given up, a call that would wait for itself is [ErrReentrant].
// ctx ends the wait for the object's turn, not the method.
func (m *Method[T, In, Out]) Call(ctx context.Context, s Stub, in In) (out Out, err error) {
	if err := s.check(); err != nil {
		return out, err
	}
	c := s.class
	arg, err := c.codec.Marshal(in)
	if err != nil {
		return out, fmt.Errorf("%w: argument of %s: %w", ErrInvalid, m.name, err)
	}
	var result []byte
	var failed error
	w := &registry.Work{Cause: registry.CauseCall, Values: ctx, Run: func(t *registry.Turn, instance any) error {
		obj, ok := instance.(T)
		if !ok {
			failed = fmt.Errorf("%w: method %s is of %v, object of class %q is %T", ErrInvalid, m.name, reflect.TypeFor[T](), c.name, instance)
			return nil
		}
		var in In
		if err := c.codec.Unmarshal(arg, &in); err != nil {
			failed = fmt.Errorf("%w: argument of %s: %w", ErrInvalid, m.name, err)
			return nil
		}
		out, err := m.f(obj, t, in)
		if err != nil {
			failed = err
			return nil
		}
		if result, err = c.codec.Marshal(out); err != nil {
			failed = fmt.Errorf("%w: result of %s: %w", ErrInvalid, m.name, err)
		}
		return nil
	}}
	if err := c.rt.reg.Call(ctx, c.reg, s.id.key, s.name, w); err != nil {
		return out, err
	}
	if failed != nil {
		return out, failed
	}
	if err := c.codec.Unmarshal(result, &out); err != nil {
		return out, fmt.Errorf("%w: result of %s: %w", ErrInvalid, m.name, err)
	}
	return out, nil
}
