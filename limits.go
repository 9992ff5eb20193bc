package hibernate

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/store"
)

// A LimitError says which limit was exceeded, its maximum, and what was given, in
// its fields
//
//	Limit    string // what is limited, and its unit: words for people
//	Max, Got int64
type LimitError = limit.Error

// Limits bound what peers and objects can use. Zero is the default of each; a
// negative value, or one that could never be reached, is [ErrInvalid] from Open. What is
// refused is counted in [Stats].Refused, by the name of the field here.
type Limits struct {
	// Message is the size of a received message in bytes, after reassembly.
	// More is answered with close code 1009. Default 1 MiB, or Buffered if that is less;
	// at most Buffered.
	Message int64
	// Fragments is the number of frames of one message. More is answered with
	// close code 1009. Default 4,096.
	Fragments int
	// MessageTime is how long a peer may take for a message from its first byte to its
	// last. More is answered with close code 1008. Default 1 minute: choose more with a
	// large Message, for slow lines.
	MessageTime time.Duration
	// MessageRate is the number of messages and pings that one WebSocket may bring in a second, and
	// at once after a pause (a token bucket of as many). More is answered with close
	// code 1008. Default: no limit.
	MessageRate int
	// Sockets is the number of WebSockets of the runtime. Default: no limit but
	// the descriptors of the process. More is answered with status 503, as is
	// what is over SocketsPerObject, unless ServeHTTP accepts: then
	// AcceptWebSocket returns a *LimitError.
	Sockets int
	// SocketsPerObject is the number of WebSockets of one object, closing ones
	// included. Default 32,768 (semantics §0).
	SocketsPerObject int
	// SendQueue is the number of bytes that may wait for one peer that does not
	// read, one message of any size always. [ClassOptions].SlowReader says what
	// happens when more piles up. Default 64 MiB.
	SendQueue int64
	// Buffered is the number of bytes that the runtime keeps because of its peers:
	// output that they do not read, and received messages that are not complete and
	// over 4 KiB so far. When there is more, upgrades are answered 503, and peers
	// that do not read are slow from 64 KiB on. A quarter more is for those who
	// are connected; beyond it a message that is not complete is answered with
	// close code 1013. Beside it a connection may have 64 KiB that were
	// read behind a message that waits for its handler. Default 1 GiB.
	Buffered int64
	// Undelivered is the number of bytes that an object may have sent to its
	// WebSockets and that wait for its commits to be durable, those of the turn that
	// sends included. More is a *LimitError from Send. A broadcast counts once.
	// Default 256 MiB.
	Undelivered int64
	// Waiting is the number of requests and calls that may wait for one object.
	// More is answered with status 503. Default 1,024.
	Waiting int
	// WaitingBytes is the number of bytes of received messages that may wait for one
	// object, each rounded up to whole KiB. The WebSocket that brings more is closed
	// with code 1013 and a WebSocketError; one message may always wait. Default 256 MiB.
	WaitingBytes int64
	// RequestBody is the size of an HTTP request's body in bytes. More is
	// answered with status 413. Default 1 MiB.
	RequestBody int64
	// Response is the number of bytes of an HTTP response that may wait to be
	// durable or for a client that does not read. More is a *LimitError from
	// Write. Default 64 MiB.
	Response int64
	// Handshakes is the number of connections of one wrapped listener that have not
	// sent their request yet or wait to be accepted by net/http. Further ones stay
	// in the kernel's backlog. Default 4,096. See [Runtime.WrapListener].
	Handshakes int
	// HandshakeBytes is the size of an upgrade request's head: its request line and
	// headers. More is answered with status 431. net/http reads up to
	// [net/http.Server].MaxHeaderBytes before anybody is asked. Default 16 KiB.
	HandshakeBytes int
	// HandshakeTime is how long a connection of a wrapped listener may take for the
	// head of its first request. Then it is closed. At net/http's door it is
	// [net/http.Server].ReadHeaderTimeout that says. Default 10 s.
	HandshakeTime time.Duration
	// Constructing is the number of constructors that may run at once. The objects
	// whose turn it is not wait in the order they came, without a goroutine: waking
	// thousands at once costs their events and little more. A constructor in Await
	// does not count. Default 64.
	Constructing int
	// Key and Value are bytes of a storage key and of an encoded value; Keys is
	// the number of keys in one GetMany. More is a *LimitError. Defaults 2,048,
	// 131,072 and 128. Key is at most 64 KiB; Key, Value and 16 together are at most
	// 8 MiB, which is what one commit holds.
	Key, Value, Keys int
	// Attachment is bytes of an encoded attachment. More is a *LimitError. Default
	// 16,384; less than 4 GiB.
	Attachment int
}

// SlowReader says what happens when more waits for a peer than [Limits].SendQueue,
// because it reads more slowly than it is sent to, or not at all.
type SlowReader uint8

const (
	// SlowReaderClose closes it with code 1013, "try again later". What waits is
	// dropped, but for the frame that is being sent, so that the Close can still
	// reach a peer that reads again. From then on Send is [ErrClosed]. The close
	// event comes when the peer has answered or gone, or at CloseTimeout (if that
	// is for ever, after 30 s): with code 1013, so that the handler can tell a slow
	// peer from a lost one, and WasClean if the peer answered.
	SlowReaderClose SlowReader = iota
	// SlowReaderDropOldest drops what has waited longest, whole messages, and keeps
	// the newest: for state that is sent again and again, such as positions.
	// Nobody is told; each time counts in [Stats].Refused.
	SlowReaderDropOldest
	// SlowReaderError makes Send return a *LimitError, and nothing is sent. What Send
	// has taken is kept: what was sent before the queue was full still joins it,
	// which [Limits].Undelivered bounds. No peer is closed for that, only one that has as
	// much again waiting in answers that nobody sent: pongs and auto-responses.
	SlowReaderError
)

// maxName is the longest name of an object, in bytes.
const maxName = 1024

// withDefaults checks the limits of a runtime whose storage takes so much.
func (l *Limits) withDefaults(storage store.Limits) error {
	if err := defaultTo("Buffered", &l.Buffered, 1<<30); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		v    *int64
		def  int64
	}{
		{"Message", &l.Message, min(1<<20, l.Buffered)},
		{"SendQueue", &l.SendQueue, 64 << 20},
		{"WaitingBytes", &l.WaitingBytes, 256 << 20},
		{"Undelivered", &l.Undelivered, 256 << 20},
		{"RequestBody", &l.RequestBody, 1 << 20},
		{"Response", &l.Response, 64 << 20},
	} {
		if err := defaultTo(f.name, f.v, f.def); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name string
		v    *int
		def  int
	}{
		{"Fragments", &l.Fragments, 4096},
		{"MessageRate", &l.MessageRate, 0},
		{"Sockets", &l.Sockets, 0},
		{"SocketsPerObject", &l.SocketsPerObject, 32768},
		{"Waiting", &l.Waiting, 1024},
		{"Handshakes", &l.Handshakes, 4096},
		{"HandshakeBytes", &l.HandshakeBytes, 16 << 10},
		{"Constructing", &l.Constructing, 64},
		{"Key", &l.Key, 2048},
		{"Value", &l.Value, 131072},
		{"Keys", &l.Keys, 128},
		{"Attachment", &l.Attachment, 16384},
	} {
		if err := defaultTo(f.name, f.v, f.def); err != nil {
			return err
		}
	}
	if err := errors.Join(
		defaultTo("MessageTime", &l.MessageTime, time.Minute),
		defaultTo("HandshakeTime", &l.HandshakeTime, 10*time.Second)); err != nil {
		return err
	}
	return errors.Join(
		atMost("Limits.Message", l.Message, l.Buffered, "the whole of Limits.Buffered"),
		atMost("Limits.Key", l.Key, storage.Key, "what storage takes"),
		atMost("Limits.Value", l.Value, storage.Value(l.Key), "what a commit holds beside a key of Limits.Key bytes"),
		atMost("Limits.Attachment", int64(l.Attachment), maxAttachment, "what a connection's record holds"))
}

// maxAttachment is the size of the largest attachment that the record of a connection holds.
const maxAttachment = math.MaxUint32

// atMost is an error if a field of the options is over its bound. what says whose that is.
func atMost[N int | int64 | time.Duration](field string, v, most N, what string) error {
	if v > most {
		return fmt.Errorf("%w: %s is %v, at most %v, %s", ErrInvalid, field, v, most, what)
	}
	return nil
}

// What the system takes for a TCP connection. Linux is the strictest.
const (
	maxKeepAlive   = 32767 * time.Second
	maxUserTimeout = math.MaxInt32 * time.Millisecond
)

// checkLiveness checks how dead peers are found.
func (o *Options) checkLiveness() error {
	if o.PongTimeout == 0 {
		o.PongTimeout = min(10*time.Second, max(o.PingInterval, 0))
	}
	if o.PingInterval < 0 || o.PongTimeout < 0 || o.PongTimeout > o.PingInterval {
		return fmt.Errorf("%w: Options.PingInterval is %v, PongTimeout %v", ErrInvalid, o.PingInterval, o.PongTimeout)
	}
	return errors.Join(
		atMost("Options.KeepAlive", o.KeepAlive, maxKeepAlive, "what TCP takes"),
		atMost("Options.UserTimeout", o.UserTimeout, maxUserTimeout, "what TCP takes"))
}

// withDefaults checks the options of a class.
func (o *ClassOptions) withDefaults() error {
	if o.SlowReader > SlowReaderError {
		return fmt.Errorf("%w: ClassOptions.SlowReader is %d", ErrInvalid, o.SlowReader)
	}
	if o.DrainThreshold < 0 {
		return fmt.Errorf("%w: ClassOptions.DrainThreshold is %d", ErrInvalid, o.DrainThreshold)
	}
	if o.DrainThreshold == 0 {
		o.DrainThreshold = 64 << 10
	}
	return nil
}

func defaultTo[N int | int64 | time.Duration](name string, v *N, def N) error {
	if *v < 0 {
		return fmt.Errorf("%w: Limits.%s is %v", ErrInvalid, name, *v)
	}
	if *v == 0 {
		*v = def
	}
	return nil
}

// Refusals are how often each limit has refused something since Open.
type Refusals [limit.Count]uint64

// All yields the names of the fields of [Limits] that refuse, always in the same
// order, each with its count.
func (r Refusals) All() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for id, n := range r {
			if !yield(limit.ID(id).String(), n) {
				return
			}
		}
	}
}

// Of is the count of the limit with the given name, 0 if there is none.
func (r Refusals) Of(name string) uint64 {
	for is, n := range r.All() {
		if is == name {
			return n
		}
	}
	return 0
}
