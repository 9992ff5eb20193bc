// Package socket is the connection that survives its object's sleep: the raw
// descriptor, what is half read, what is not yet written, the closing
// handshake, and the tags and attachment that belong to it.
//
// A Socket at rest is a descriptor and this record. It has no goroutine, no
// timer and no buffer. Its object is known to it only as an Owner.
package socket

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"
	"unsafe"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// ReadyState is how far a connection has been closed, with the numbers of the
// WebSocket API.
type ReadyState uint8

const (
	Open    ReadyState = 1 // neither side has sent Close
	Closing ReadyState = 2 // one side has, or the connection was lost
	Closed  ReadyState = 3 // both have
)

// ErrClosed is returned for a send after the socket was closed from this side.
var ErrClosed = errors.New("WebSocket is closed")

// Config is what all sockets of a class share. It is immutable.
type Config struct {
	Recent       *RecentTags // nil: tags are not shared
	Wire         wire.Config
	Deflated     wire.Config   // Wire of a connection that has negotiated compression
	Inflating    chan struct{} // one place for each long message that may be decompressed at once
	ManualClose  bool          // the handler answers a peer's Close, not the runtime
	SendQueue    int64         // bytes that may wait for a slow peer; 0: no limit
	SlowReader   SlowReader    // what happens to one for which more waits
	DrainOver    int64         // bytes from which on Owner.Drained follows when all are gone; 0: never
	Pool         *Pool         // bytes kept by all connections; nil: nobody counts
	Linger       time.Duration // how long to wait for the peer's end of stream after both sides sent Close
	LingerBytes  int           // how much input to discard meanwhile
	CloseTimeout time.Duration // how long a half-closed socket may stay so; 0 or less: for ever
	Timers       *alarm.Timers
	Patience     *Patience       // how long a message may take; nil: for ever
	MessageRate  int             // messages and pings in a second; 0: no limit
	Refused      *limit.Counters // counts refusals; nil: nobody does
}

// EventKind says what an Event tells.
type EventKind uint8

const (
	Message EventKind = iota + 1
	Close             // the peer sent Close, or the connection ended without (WasClean false)
	Error             // the peer broke the protocol
	Drain             // the queue was long and is empty again; not in Deliver's order
)

// An Event is something that the object's handlers are told. The last event of
// a socket is one Close or one Error.
type Event struct {
	Kind     EventKind
	Text     bool   // Message: text rather than binary
	Data     []byte // Message: the payload, owned by the receiver of Deliver, borrowed by that of Serve
	Code     int    // Close
	Reason   string
	WasClean bool
	Err      error // Error
	More     bool  // Message, served: other input was read behind it
}

// An Owner is told what happens to its sockets. Calls come on a goroutine of
// the poller, or on the one that called Handled, and must not block.
type Owner interface {
	// Config is what all sockets of the owner's class share. It is always the same.
	Config() *Config
	// Serve handles an event of s on the goroutine of w, if that can be done at
	// once, and reports whether it did; if not, nothing has happened. It may
	// call PassOn and Handled meanwhile; otherwise they must not be called. Unless
	// it did, the event was kept.
	Serve(w *poll.Worker, s *Socket, e Event) (served, kept bool)
	// Served is called on w's goroutine when all that was read is decoded: what Serve
	// has kept for an event behind one with More is not needed any more.
	Served(w *poll.Worker)
	// Deliver takes an event of s that was not served. No other follows, and nothing more is
	// decoded, before Handled is called. False says that the event is of no
	// interest and has been dropped; Handled must then not be called.
	Deliver(s *Socket, e Event) bool
	// AutoResponse returns the frame that answers text without waking the
	// object, if there is one.
	AutoResponse(s *Socket, text []byte) (frame []byte, ok bool)
	// Hold has s.Emit(f) called behind everything the object has held so far.
	Hold(s *Socket, f Frame)
	// HoldBehindTurn is Hold, behind what a turn under way has sent too.
	HoldBehindTurn(s *Socket, f Frame)
	// Busy is called with 1 when the end of a socket begins to be told to its peer
	// and its object, and with -1 when both know.
	Busy(delta int)
	// Drained is told that what has waited for the peer of s is gone. It comes
	// beside other events. The next follows only after s.Drained.
	Drained(s *Socket)
}

// A Frame is encoded output. What is not longer than [MaxCopied] is copied when it has to wait; anything else is kept
// as it is, and must not be changed.
type Frame struct {
	Bytes   []byte
	Last    bool // a Close frame: nothing may follow
	Shared  bool // goes to several sockets: not copied
	Unasked bool // nobody has asked Room for it: a pong, an auto-response, a ping
}

// MaxCopied is the size of the largest frame that Queue and Emit copy.
const MaxCopied = 1 << 10

// A Socket is one accepted WebSocket.
type Socket struct {
	conn  poll.Conn // first, see of; safe for concurrent use; attached by Open
	owner Owner     // immutable

	// Place in the owner's List; guarded by the owner's lock.
	prev, next *Socket

	// dec is owned by the input side: the poller's goroutine while it reads,
	// the caller of Handled while an event waits (flags.waiting).
	dec wire.Decoder

	mu    sync.Mutex // guards the following
	busy  *busy      // nil at rest
	marks marks      // replaced whole
	flags flags

	closeCode uint16      // of the peer's Close, for an answer that had to be given later
	answered  [6]byte     // time of the last auto-response, Unix milliseconds, big-endian; 0: never
	listed    bool        // in the owner's List; guarded by the owner's lock
	keeps     bool        // dec is not at rest, and keep knows of it; owned like dec
	window    wire.Window // immutable
}

type flags uint32

const (
	opened     flags = 1 << iota // the 101 is in the output; frames may be written
	waiting                      // an event is at the owner; the input side is nobody's
	serving                      // with waiting: the event is being served, and the input side is still its goroutine's
	writing                      // someone is writing to conn
	recvClose                    // the peer's Close was decoded
	sentClose                    // Close was called, or answered for the object
	wroteClose                   // a Close frame entered the output
	lost                         // the connection ended without the peer's Close
	failed                       // the peer broke the protocol
	cut                          // closed from this side without a handshake; nothing happens any more
	ended                        // the last event was delivered
	discarding                   // output is shut down; input is read and dropped until its end
	linked                       // finish has been started
	slow                         // closed because the peer does not read; the event says so
	stuffed                      // more than DrainOver waits, or has since the queue was empty
	draining                     // the owner has been told of it
	asked                        // a ping was sent, and Judge has not been called since
	attached                     // there is an attachment, which may be empty
)

// busy is what a connection needs only while something is under way.
type busy struct {
	in      []byte   // read, not decoded; owned like dec, but that of an event being served is in rest
	rest    []byte   // behind the event that is being served: the poller's
	out     [][]byte // in order; out[0] may be partly written
	outSize int64    // bytes in out
	batch   int      // frames of out that are being written
	buf     []byte   // for frames that are copied; reused once out is empty
	own     bool     // the last of out is such a copy, to which may be appended
	full    bool     // the kernel's buffer is full; Writable will come
	last    bool     // the socket was cut; who writes drops it after what is queued

	deadline  alarm.Deadline // of lingering, or of a half-closed socket
	discarded int
	gone      func(answered bool) // see Goodbye; nil if nobody waits
	x         *extra              // nil for most
}

// New returns a socket that is not connected yet: what is sent waits for Open. It
// keeps a copy of the attachment; nil is none.
func New(owner Owner, tags Tags, attachment []byte, window wire.Window) *Socket {
	s := &Socket{owner: owner, window: window}
	if attachment == nil {
		s.marks = owner.Config().Recent.share(tags)
	} else {
		s.marks = newMarks(tags, attachment)
		s.flags = attached
	}
	return s
}

func (s *Socket) cfg() *Config { return s.owner.Config() }

// Tags are the socket's tags, in their order.
func (s *Socket) Tags() Tags {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.marks.tags()
}

// Window is what was negotiated of compression.
func (s *Socket) Window() wire.Window { return s.window }

// Owner is the object that accepted the socket.
func (s *Socket) Owner() Owner { return s.owner }

// Handler is that of the group to which the connections of sockets belong.
type Handler struct{}

func (Handler) Input(c *poll.Conn, w *poll.Worker, p []byte) (more bool) { return of(c).Input(w, p) }
func (Handler) End(c *poll.Conn, w *poll.Worker, err error)              { of(c).End(w, err) }
func (Handler) Writable(c *poll.Conn)                                    { of(c).Writable() }

// of is the socket that c is the first field of: there is no room in it for a pointer to itself.
func of(c *poll.Conn) *Socket { return (*Socket)(unsafe.Pointer(c)) }

const _ = -unsafe.Offsetof(Socket{}.conn) // does not compile unless it is 0

// Open connects s: response is written first, then whatever was sent before,
// and input is decoded from early on (bytes that were read behind the request).
// nc is taken over, also on error.
func (s *Socket) Open(g *poll.Group, nc net.Conn, response, early []byte) error {
	if s.wasCut() {
		nc.Close()
		return net.ErrClosed
	}
	if err := g.Attach(&s.conn, nc); err != nil {
		return err
	}
	return s.open(response, early)
}

// Adopt is Open with the connection of another record, by [poll.Group.Move]
// and under its conditions. On error from is closed.
func (s *Socket) Adopt(g *poll.Group, from *poll.Conn, response, early []byte) error {
	if s.wasCut() {
		from.Close()
		return net.ErrClosed
	}
	if err := g.Move(&s.conn, from); err != nil {
		from.Close()
		return err
	}
	return s.open(response, early)
}

func (s *Socket) wasCut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flags&cut != 0
}

// open begins to write and to read, once s has its connection.
func (s *Socket) open(response, early []byte) error {
	s.mu.Lock()
	if s.flags&cut != 0 { // cut while it was attached: Cut saw no connection
		s.mu.Unlock()
		s.conn.Close()
		return net.ErrClosed
	}
	s.flags |= opened
	if b := s.busy; b == nil {
		s.directLocked(Frame{Bytes: response})
	} else {
		b.out = append([][]byte{append([]byte(nil), response...)}, b.out...)
		b.outSize += int64(len(response))
		s.mu.Unlock()
		s.Flush()
	}
	if len(early) == 0 || s.decode(nil, append([]byte(nil), early...), true) {
		s.conn.Resume()
	}
	return nil
}

// ReadyState is how far s is closed.
func (s *Socket) ReadyState() ReadyState {
	s.mu.Lock()
	defer s.mu.Unlock()
	peer := s.flags&(recvClose|lost|failed|cut) != 0
	switch {
	case s.flags&sentClose != 0 && peer:
		return Closed
	case s.flags&sentClose != 0 || peer:
		return Closing
	}
	return Open
}

// Attachment is a copy of the stored attachment. ok is false if none was ever set.
func (s *Socket) Attachment() (b []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attachmentLocked()
}

func (s *Socket) attachmentLocked() (b []byte, ok bool) {
	if s.flags&attached == 0 {
		return nil, false
	}
	return []byte(s.marks.attachment()), true
}

// SetAttachment replaces the attachment by a copy of b, and returns one of the one
// before. A nil b is "never set".
func (s *Socket) SetAttachment(b []byte) (before []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, _ = s.attachmentLocked()
	s.marks = newMarks(s.marks.tags(), b)
	if s.flags |= attached; b == nil {
		s.flags &^= attached
	}
	return before
}

// Answered is the time of the last auto-response, zero if there was none.
func (s *Socket) Answered() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b [8]byte
	copy(b[2:], s.answered[:])
	ms := binary.BigEndian.Uint64(b[:])
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms))
}

// SetAnswered records an auto-response at t.
func (s *Socket) SetAnswered(t time.Time) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(t.UnixMilli()))
	s.mu.Lock()
	copy(s.answered[:], b[2:])
	s.mu.Unlock()
}

// busies keeps records of connections that are at rest again.
var busies = sync.Pool{New: func() any { return new(busy) }}

func (s *Socket) busyLocked() *busy {
	if s.busy == nil {
		s.busy = busies.Get().(*busy)
	}
	return s.busy
}

// restLocked lets go of what only a busy connection needs.
func (s *Socket) restLocked() {
	b := s.busy
	if b == nil || s.flags&writing != 0 || b.in != nil || b.rest != nil || len(b.out) > 0 || b.full || b.last || b.deadline.F != nil || b.gone != nil || b.x != nil {
		return
	}
	s.busy = nil
	*b = busy{out: b.out[:0], buf: b.buf}
	busies.Put(b)
}
