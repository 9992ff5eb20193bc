// Package limit names what is limited, and counts what was refused for it.
package limit

import (
	"fmt"
	"sync/atomic"
)

// An ID names one limit.
type ID uint8

// The limits, in the order and by the names of the root package's Limits.
const (
	Message ID = iota
	Fragments
	MessageTime
	MessageRate
	Sockets
	SocketsPerObject
	SendQueue
	Buffered
	Undelivered
	Waiting
	WaitingBytes
	RequestBody
	Response
	HandshakeBytes
	HandshakeTime
	Key
	Value
	Keys
	Attachment
	Count // of limits
)

var limits = [Count]struct {
	name, what string
	overload   bool
}{
	Message:          {name: "Message", what: "message bytes"},
	Fragments:        {name: "Fragments", what: "fragments of a message"},
	MessageTime:      {name: "MessageTime", what: "milliseconds for a message"},
	MessageRate:      {name: "MessageRate", what: "messages per second"},
	Sockets:          {"Sockets", "WebSockets of the runtime", true},
	SocketsPerObject: {"SocketsPerObject", "WebSockets of one object", true},
	SendQueue:        {"SendQueue", "bytes waiting for one peer", true},
	Buffered:         {"Buffered", "bytes buffered by the runtime", true},
	Undelivered:      {name: "Undelivered", what: "bytes sent and not yet durable"},
	Waiting:          {"Waiting", "work waiting for one object", true},
	WaitingBytes:     {"WaitingBytes", "bytes waiting for one object", true},
	RequestBody:      {name: "RequestBody", what: "request body bytes"},
	Response:         {name: "Response", what: "response bytes that wait"},
	HandshakeBytes:   {name: "HandshakeBytes", what: "handshake bytes"},
	HandshakeTime:    {name: "HandshakeTime", what: "milliseconds for a handshake"},
	Key:              {name: "Key", what: "storage key bytes"},
	Value:            {name: "Value", what: "storage value bytes"},
	Keys:             {name: "Keys", what: "keys in one GetMany"},
	Attachment:       {name: "Attachment", what: "attachment bytes"},
}

// String is the limit's name.
func (id ID) String() string { return limits[id].name }

// Error is the refusal of got, where at most limit is allowed.
func (id ID) Error(limit, got int64) *Error {
	return &Error{Limit: limits[id].what, Max: limit, Got: got}
}

// An Error says which limit was exceeded, its maximum, and what was given.
type Error struct {
	Limit string // what is limited, and its unit
	Max   int64
	Got   int64
}

// Error names the limit and both numbers.
func (e *Error) Error() string {
	return fmt.Sprintf("%s: %d is over the limit of %d", e.Limit, e.Got, e.Max)
}

// Of reports whether the error is of the limit id.
func (e *Error) Of(id ID) bool { return e.Limit == limits[id].what }

// Overload reports whether the limit is one that others fill, so that trying again
// later may succeed.
func (e *Error) Overload() bool {
	for _, l := range limits {
		if l.what == e.Limit {
			return l.overload
		}
	}
	return false
}

// Counters are how often each limit has refused something. They are safe for
// concurrent use; nil ones count nothing.
type Counters [Count]atomic.Uint64

// Refuse counts a refusal and returns its error.
func (c *Counters) Refuse(id ID, limit, got int64) *Error {
	c.Count(id)
	return id.Error(limit, got)
}

// Count counts a refusal.
func (c *Counters) Count(id ID) {
	if c != nil {
		c[id].Add(1)
	}
}

// Load reads the counters.
func (c *Counters) Load() (n [Count]uint64) {
	for id := range n {
		n[id] = c[id].Load()
	}
	return n
}
