// Package hibernate gives a Go server objects that leave memory while their
// WebSockets stay open: Cloudflare's Durable Object WebSocket Hibernation API,
// in your own process.
//
// A class is a Go type whose methods handle events. Objects of it are found by
// name, run one event at a time, and own transactional storage. An object that
// has been idle for [Options.IdleTimeout] is dropped; its connections, their
// tags and attachments stay, each a descriptor and a small record without
// goroutine, timer or buffer. The next message, close, request or alarm
// constructs it anew.
//
//	rt, err := hibernate.Open("data", nil)
//	rooms, err := hibernate.Register(rt, "Room", NewRoom, nil)
//	http.Handle("/room/{name}", rooms.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
//		return hibernate.Join{Object: rooms.GetByName(h.PathValue("name"))}, nil
//	}))
//
// # Turns
//
// An event's handler runs in a turn. Turns of one object never overlap; [Await]
// gives the turn up while the handler waits for the outside world. The handler's
// ctx names the turn: what has an effect takes it, and refuses use outside the
// turn with [ErrOutsideTurn]. What a message brings is valid until its handler
// returns or awaits.
//
// Messages are handled on the goroutine that has read them (on Linux, without
// TLS). A handler may still block: its own object waits, the others do not. Some
// milliseconds later, or at once if it calls [Await] or the like, another
// goroutine reads on, and classes whose handlers block often get goroutines of
// their own.
//
// # Durability
//
// All writes of a turn are one atomic commit. What a turn sends - frames, closes,
// HTTP responses, results of calls - leaves only once the writes before it are on
// disk. The turn itself does not wait for the disk: the next one may begin.
//
// A handler that returns an error has still happened: its writes and sends stand
// (unless [ClassOptions].RollbackOnError). A handler that panics has not: its
// turn is undone and its instance dropped, while the sockets stay.
//
// # Memory
//
// Fields of an instance are a cache. What outlives it is in [Storage] (for ever),
// in attachments and tags (as long as the connection), and in auto-responses.
// Running handlers, those in Await or a [Method.Call], and [State.WaitUntil] work
// keep an instance in memory; connections, alarms, and goroutines and timers of
// its own do not. [Runtime.Inspect] tells what does.
//
// # Cloudflare's words
//
//	class … extends DurableObject     Register
//	env.ROOM                          Namespace
//	idFromName, getByName             Namespace.IDFromName, Namespace.GetByName
//	stub.fetch, stub.method()         Stub.ServeHTTP, Method.Call
//	the Worker in front               Route, Join, Refuse
//	constructor(ctx, env)             the function given to Register
//	fetch                             ServeHTTP
//	webSocketMessage                  WebSocketMessage  [MessageHandler]
//	webSocketClose                    WebSocketClose    [CloseHandler]
//	webSocketError                    WebSocketError    [ErrorHandler]
//	alarm                             Alarm             [AlarmHandler]
//	ctx.acceptWebSocket               State.AcceptWebSocket, or a Join
//	ctx.getWebSockets, getTags        State.WebSockets, WebSocket.Tags
//	ctx.setWebSocketAutoResponse      State.SetWebSocketAutoResponse
//	ctx.waitUntil                     State.WaitUntil
//	ctx.blockConcurrencyWhile         State.BlockConcurrencyWhile
//	ctx.abort                         State.Abort
//	ctx.storage                       State.Storage
//	storage.get, put, list            Get, Put, List
//	storage.transaction, sync         Storage.Transaction, Storage.Sync
//	storage.setAlarm                  Storage.SetAlarm
//	ws.send, close                    WebSocket.Send, WebSocket.Close
//	ws.serializeAttachment            WebSocket.SerializeAttachment
//	ws.deserializeAttachment          Attachment
//	await fetch(…)                    Await
//	await storage.get(…)              a plain call: it holds the turn
//
// docs/cloudflare.md has every call and every difference. "semantics 4.2" in a
// comment is a section of the notes on workerd that the tests came from.
//
// # Around it
//
// Package hibernatetest tests classes: with a clock to move, hibernation before
// every event, and power failures. Package inspect shows what is awake and why,
// hibernateprom counts it.
package hibernate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibernate-go/hibernate/internal/accept"
	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/seam"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// Errors that calls end in. Test for them with [errors.Is].
var (
	// ErrOutsideTurn is returned when a ctx is used that is not that of a running
	// turn of the object: after the handler returned, while it is in Await, in
	// another object, or a ctx that never belonged to a turn. For what goes on
	// after the handler there are [State.WaitUntil] and [State.Do].
	ErrOutsideTurn = registry.ErrOutsideTurn
	// ErrReset is returned when the instance that made the call is gone: the
	// object was reset, its turn was undone, or it has hibernated.
	ErrReset = registry.ErrReset
	// ErrReentrant is returned for a call that would wait for itself.
	ErrReentrant = registry.ErrReentrant
	// ErrState is returned for a call that is not allowed in the present state,
	// such as accepting a request twice or deleting everything inside a
	// transaction.
	ErrState = registry.ErrState
	// ErrClosed is returned for a send to a WebSocket that was closed from this
	// side, and by the zero WebSocket.
	ErrClosed = socket.ErrClosed
	// ErrTxnDone is returned for the use of a transaction that was rolled back
	// or whose function has returned.
	ErrTxnDone = errors.New("transaction is over")
	// ErrInvalid is returned for an argument that can never be valid.
	ErrInvalid = errors.New("invalid argument")
	// ErrUnavailable is returned when storage has failed or the runtime is
	// closed or shutting down.
	ErrUnavailable = store.ErrUnavailable
)

// A PanicError is what a handler panicked with: its Value, and the Stack of the
// goroutine. It unwraps to the Value, if that is an error.
type PanicError = registry.PanicError

// A Clock tells the time and calls back later. Options take one so that tests can
// move time; package hibernatetest brings one. Its methods, which must be safe for
// concurrent use, are
//
//	Now() time.Time
//	AfterFunc(d time.Duration, f func()) Timer // calls f once, on a goroutine of the clock's choice
type Clock = alarm.Clock

// A Timer is one pending call of a [Clock]. Its only method, Stop() bool, prevents the
// call and reports whether it was still pending.
type Timer = alarm.Timer

// Options configure a [Runtime]. The zero value is ready for use.
type Options struct {
	// IdleTimeout is how long an object stays in memory after its last event.
	// Zero is 10 s; negative is an error.
	IdleTimeout time.Duration

	// Logger gets what handlers and routes return as errors, panics, resets and
	// failures of storage. Nil is slog.Default().
	Logger *slog.Logger

	// Clock replaces the system's time in tests. It drives idle times, alarms and
	// timeouts. Nil is the system's.
	Clock Clock

	// Limits bound what peers and objects can use.
	Limits Limits

	// KeepAlive is how long a connection is silent before TCP asks whether the peer
	// is there, and how long between two of its questions; whole seconds. It is set on
	// connections of a Handler and of a wrapped listener alike. Zero is 15 s where
	// keep-alive was off, and leaves what somebody chose (net/http's listeners have
	// 15 s); negative leaves all as it is. At most 32,767 s.
	KeepAlive time.Duration

	// UserTimeout is how long TCP goes on without an acknowledgement, keep-alive's
	// included, and how long a peer that is sent to may have no room for more
	// (TCP_USER_TIMEOUT; Linux only). The connection is then lost: one close event
	// with 1006. Zero is 2 min; negative leaves it to the system. At most 2³¹-1 ms.
	UserTimeout time.Duration

	// PingInterval is how often a peer that was silent is sent a ping (RFC 6455
	// §5.5.2), also where TCP looks alive because a proxy answers for it. Whatever
	// it sends counts as life. Nobody is woken, and one timer serves all connections:
	// each interval walks twice over them, spread out. Zero is never and costs nothing;
	// negative is an error. 30 s is usual.
	PingInterval time.Duration

	// PongTimeout is how long a peer that was sent a ping may remain silent. Then the connection is
	// cut: one close event with 1006. Zero is 10 s, or PingInterval if that is
	// less; negative or more than PingInterval is an error. Peers whose event waits
	// for its handler, and those that are slow or closing, are not judged.
	PongTimeout time.Duration

	// AwakeWarning is how long one thing may keep an object in memory before the log
	// says so: a handler, an Await, an outgoing call, or WaitUntil work. It is looked
	// for every quarter of this time, and told once. Zero is 5 min; negative is never.
	AwakeWarning time.Duration

	// WakeWarning is how often an object may be woken within a minute of the clock
	// before the log says so, and by what. It says so for one object of each class
	// a minute. Zero is 30; negative is never. What wakes an object that often should
	// find it in memory (a longer IdleTimeout) or not wake it at all (an
	// auto-response).
	WakeWarning int

	// Observer is told of every turn, for tracing. Nil costs nothing.
	Observer Observer

	// TurnTimes has the time that handlers take counted, for [Stats].TurnTime. That is
	// two looks at the clock for each turn, of some 65 ns each. An Observer implies it.
	TurnTimes bool

	// ProfileLabels has the goroutines of turns, and what they start, carry the labels
	// class and event in profiles (see [runtime/pprof]). That is some 16 ns for each turn.
	ProfileLabels bool

	// ShutdownCode is the close code that [Runtime.Shutdown] sends: 1001, going away,
	// or for instance 1012, service restart. Zero is 1001.
	ShutdownCode int

	// ShutdownSpread is the longest time over which [Runtime.Shutdown] spreads its
	// Close frames, in random order, so that clients do not all come back at once.
	// Few sockets take less: a millisecond each. Zero is 5 s; negative sends all at
	// once.
	ShutdownSpread time.Duration

	// OnFatal is called once, on a goroutine of its own, when storage has failed
	// for good and the runtime is dead. Nil does nothing; Done and Err tell too.
	OnFatal func(error)

	// EvictEveryTurn drops an object's instance before every event that finds it
	// without other work under way, so that state kept in fields by mistake
	// shows at once. For tests.
	EvictEveryTurn bool
}

// A Runtime holds the objects of one storage directory. Several may exist in one
// process. All methods are safe for concurrent use.
type Runtime struct {
	opt    Options // immutable
	log    *slog.Logger
	store  *store.Store
	poller *poll.Poller
	conns  *poll.Group // of the sockets
	reg    *registry.Registry
	// inflating has a place for each long message that may be decompressed at once.
	inflating chan struct{}

	refused limit.Counters
	recent  socket.RecentTags

	responses sync.Pool   // of *[]byte, for the acceptor
	pool      socket.Pool // its limit is immutable

	patience *socket.Patience

	mu     sync.Mutex // guards the following
	err    error      // why the runtime ended
	closed bool
	doors  map[*accept.Listener]struct{} // open ones; nil once none may be added
	done   chan struct{}                 // closed when the runtime has ended
	opened chan struct{}                 // closed when Open is about to return; reg is not written after

	closing  sync.Once
	closeErr error

	shutdown atomic.Pointer[ending] // nil until the first Shutdown
}

// ending is a Shutdown under way.
type ending struct {
	over chan struct{}
	err  error // immutable once over is closed
}

// Open opens a runtime whose objects keep their storage in dir, which is created
// if it is not there. An empty dir keeps it in memory, for tests. o may be nil.
//
// A directory belongs to one runtime at a time. The error names the directory
// if it cannot be read or written, is in use, is corrupt, or was written by a
// newer version. Options that cannot be are [ErrInvalid].
//
// Open blocks while what a process that was killed has left in its log is read, and
// reads no objects. A class's alarms run from its [Register] on.
func Open(dir string, o *Options) (*Runtime, error) {
	return open(store.Config{Dir: dir}, o, nil)
}

// open opens a runtime on a store of the given kind. probe is of the users' test kit.
func open(cfg store.Config, o *Options, probe *registry.Probe) (*Runtime, error) {
	rt := &Runtime{doors: map[*accept.Listener]struct{}{}, done: make(chan struct{}), opened: make(chan struct{})}
	defer close(rt.opened)
	rt.inflating = make(chan struct{}, runtime.GOMAXPROCS(0))
	if o != nil {
		rt.opt = *o
	}
	opt := &rt.opt
	if opt.IdleTimeout < 0 {
		return nil, fmt.Errorf("%w: Options.IdleTimeout is %v", ErrInvalid, opt.IdleTimeout)
	}
	if opt.IdleTimeout == 0 {
		opt.IdleTimeout = 10 * time.Second
	}
	if opt.AwakeWarning == 0 {
		opt.AwakeWarning = 5 * time.Minute
	}
	if opt.WakeWarning == 0 {
		opt.WakeWarning = 30
	}
	switch {
	case opt.ShutdownCode == 0:
		opt.ShutdownCode = 1001
	case !wire.ValidSentCloseCode(opt.ShutdownCode):
		return nil, fmt.Errorf("%w: Options.ShutdownCode is %d", ErrInvalid, opt.ShutdownCode)
	}
	if opt.ShutdownSpread == 0 {
		opt.ShutdownSpread = 5 * time.Second
	}
	if opt.Clock == nil {
		opt.Clock = alarm.Real{}
	}
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	rt.log = opt.Logger
	if err := opt.checkLiveness(); err != nil {
		return nil, err
	}
	if err := opt.Limits.withDefaults(cfg.Limits()); err != nil {
		return nil, err
	}
	rt.pool.Limit = opt.Limits.Buffered
	var err error
	cfg.Logger, cfg.OnDead = rt.log, rt.die
	if rt.store, err = store.Open(cfg); err != nil {
		return nil, fmt.Errorf("hibernate: %w", err)
	}
	if rt.poller, err = poll.New(poll.Options{Logger: rt.log, KeepAlive: opt.KeepAlive, UserTimeout: opt.UserTimeout}); err != nil {
		return nil, errors.Join(fmt.Errorf("hibernate: poller: %w", err), rt.store.Close())
	}
	rt.conns = rt.poller.Group(socket.Handler{})
	regCfg := registry.Config{
		Store:            rt.store,
		Clock:            opt.Clock,
		Logger:           rt.log,
		IdleTimeout:      opt.IdleTimeout,
		MaxConstructing:  int64(opt.Limits.Constructing),
		SocketsPerObject: opt.Limits.SocketsPerObject,
		Sockets:          opt.Limits.Sockets,
		Mailbox:          opt.Limits.Waiting,
		WaitingBytes:     opt.Limits.WaitingBytes,
		Undelivered:      opt.Limits.Undelivered,
		PingInterval:     opt.PingInterval,
		PongTimeout:      opt.PongTimeout,
		AwakeWarning:     opt.AwakeWarning,
		WakeWarning:      opt.WakeWarning,
		EvictEveryTurn:   opt.EvictEveryTurn,
		Refused:          &rt.refused,
		Pool:             &rt.pool,
		Probe:            probe,
		TurnTimes:        opt.TurnTimes,
		ProfileLabels:    opt.ProfileLabels,
	}
	if opt.Observer != nil {
		regCfg.Observer = observer{opt.Observer}
	}
	rt.reg = registry.New(regCfg)
	rt.patience = socket.NewPatience(rt.reg.Timers(), opt.Limits.MessageTime)
	return rt, nil
}

func init() {
	seam.Open = func(cfg store.Config, options any, probe *registry.Probe) (any, *registry.Registry, error) {
		rt, err := open(cfg, options.(*Options), probe)
		if err != nil {
			return nil, nil, err
		}
		return rt, rt.reg, nil
	}
}

// die ends a runtime whose storage has failed: held output is dropped and every
// connection is cut.
func (rt *Runtime) die(err error) {
	<-rt.opened
	if rt.reg == nil {
		return // Open failed, and says so
	}
	rt.closeDoors()
	rt.reg.Kill(err)
	if rt.end(err) {
		rt.log.Error("storage failed, runtime is dead", "err", err)
		if rt.opt.OnFatal != nil {
			rt.opt.OnFatal(err)
		}
	}
}

// end notes that the runtime has ended and reports whether it was the first.
func (rt *Runtime) end(err error) bool {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.closed {
		return false
	}
	rt.closed, rt.err = true, err
	close(rt.done)
	return true
}

// Done is closed when the runtime has ended: after Close, or when its storage
// has failed for good.
func (rt *Runtime) Done() <-chan struct{} { return rt.done }

// Err is nil while the runtime works and after a Close, and tells why storage
// has failed otherwise.
func (rt *Runtime) Err() error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.err
}

// Shutdown ends the runtime with care. It closes wrapped listeners, starts no
// alarms and takes no new work ([ErrUnavailable]); waits for running handlers,
// what was queued behind them, and WaitUntil work; makes everything durable and
// lets held output leave; sends every WebSocket a Close frame with
// [Options].ShutdownCode, spread over [Options].ShutdownSpread; waits for the
// peers' answers; and closes. Sockets it closes cause no events and wake nobody.
//
// When ctx ends it cuts short what it is waiting for. The error then tells what
// that was; a *ShutdownError in it tells how many WebSockets were cut.
//
// Call [net/http.Server.Shutdown] first, so that no new request comes in; it ends
// plain requests and leaves WebSockets alone. The other way round nothing is lost
// either: requests that still come are answered 503.
//
// A second Shutdown waits for the first, until its own ctx ends, and returns the
// same. A [Runtime.Close] meanwhile cuts it short. Neither may be called by a handler, which it
// would wait for.
func (rt *Runtime) Shutdown(ctx context.Context) error {
	e := &ending{over: make(chan struct{})}
	if !rt.shutdown.CompareAndSwap(nil, e) {
		e = rt.shutdown.Load()
		select {
		case <-e.over:
			return e.err
		case <-ctx.Done():
			return fmt.Errorf("another Shutdown is under way: %w", context.Cause(ctx))
		}
	}
	defer close(e.over)
	select {
	case <-rt.done:
		e.err = rt.Close()
		return e.err
	default:
	}
	rt.closeDoors()
	var cut error
	drained := rt.reg.Drain(ctx)
	if n, why := rt.reg.Farewell(ctx, registry.Farewell{
		Code: uint16(rt.opt.ShutdownCode), Reason: "server is shutting down", Spread: rt.opt.ShutdownSpread,
	}); n > 0 {
		cut = &ShutdownError{n, why}
	}
	e.err = errors.Join(drained, cut, rt.Close())
	return e.err
}

// A ShutdownError tells how many WebSockets [Runtime.Shutdown] had to cut, because
// their peers did not answer its Close frame in time.
type ShutdownError struct {
	Cut   int
	cause error // why there was no more time; nil: ClassOptions.CloseTimeout
}

// Error tells how many were cut, and why.
func (e *ShutdownError) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("%d WebSockets did not answer and were cut", e.Cut)
	}
	return fmt.Sprintf("%d WebSockets did not answer and were cut: %v", e.Cut, e.cause)
}

// Unwrap is why there was no more time.
func (e *ShutdownError) Unwrap() error { return e.cause }

// Close ends the runtime at once. Handlers that are running are cut off from
// their objects (their calls fail with [ErrReset]) and every connection is cut.
// Everything that was committed is made durable. Close may be called twice.
func (rt *Runtime) Close() error {
	rt.closing.Do(func() {
		rt.closeDoors()
		rt.reg.Kill(fmt.Errorf("%w: runtime is closed", ErrUnavailable))
		rt.closeErr = rt.store.Close()
		rt.reg.Close()
		rt.closeErr = errors.Join(rt.closeErr, rt.poller.Close())
		rt.end(nil)
	})
	return rt.closeErr
}

var _ io.Closer = (*Runtime)(nil)

// Snapshot writes a consistent copy of all storage into dir, which must not exist,
// and which [Open] opens. Turns go on meanwhile; what they send waits while the log
// is copied, which is at most 16 MiB. What is durable when Snapshot is called is in
// the copy, and of every later turn all or nothing. Ending ctx has no effect once
// the copy has begun.
func (rt *Runtime) Snapshot(ctx context.Context, dir string) error {
	return rt.store.Snapshot(ctx, dir)
}

// Quiet reports whether no handler runs and nothing is on its way to or from
// storage: what happens next comes from outside or from the clock. Handlers in
// [Await], and what is still in the network, do not count. For tests that move
// [Options].Clock.
func (rt *Runtime) Quiet() bool { return rt.reg.Quiet() }

// Evict drops the object's instance as if it had been idle, after what waits for
// it has run. It fails if handlers in Await or WaitUntil work keep the object
// busy, and does nothing if there is no instance. For tests and operations.
func (rt *Runtime) Evict(ctx context.Context, id ID) error {
	return rt.reg.Evict(ctx, id.key)
}

// EvictAll evicts every object that is in memory, and returns the errors of
// those that could not be.
func (rt *Runtime) EvictAll(ctx context.Context) error { return rt.reg.EvictAll(ctx) }
