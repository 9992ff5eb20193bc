package socket

import (
	"errors"

	"github.com/hibernate-go/hibernate/internal/poll"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// A compressed message is decompressed where it was read, on the poller's
// goroutine, if that is quick: if it is short and what comes out of it is too.
// Anything else would keep all other connections waiting, so it is done on a
// goroutine of its own, of which few work at once. The message counts as waiting
// meanwhile.

const (
	quickIn  = 2 << 10  // bytes of a compressed message
	quickOut = 16 << 10 // bytes of what comes out
)

// wire is the configuration of the decoder.
func (s *Socket) wire() *wire.Config {
	if s.window != 0 {
		return &s.cfg().Deflated
	}
	return &s.cfg().Wire
}

// Encode makes the frame of a message to the peer. Sockets of one class with the
// same Window may share it.
func (s *Socket) Encode(k wire.Kind, payload []byte) Frame {
	if s.window != 0 {
		return Frame{Bytes: s.cfg().Deflated.Deflate.AppendMessage(nil, k, payload, s.window)}
	}
	return Frame{Bytes: wire.AppendFrame(make([]byte, 0, wire.FrameSize(len(payload))), k, payload)}
}

// inflate decompresses a message. If it reports false that has failed, or goes on
// elsewhere; rest is what was read behind the message.
func (s *Socket) inflate(w *poll.Worker, it wire.Item, rest []byte, own bool) (_ wire.Item, ok bool) {
	cfg := &s.cfg().Deflated
	if len(it.Data) <= quickIn {
		plain, err := cfg.Deflate.Inflate(it, min(cfg.MaxMessage, quickOut))
		if err == nil {
			return plain, true
		}
		var violation *wire.Error
		if !errors.As(err, &violation) || violation.Code != codeTooBig || cfg.MaxMessage <= quickOut {
			s.fail(w, err)
			return it, false
		}
	}
	if !it.Owned {
		it.Data = append([]byte(nil), it.Data...)
	}
	s.mu.Lock()
	switch {
	case s.flags&(cut|lost|failed) != 0:
		s.mu.Unlock()
		return it, false
	case s.flags&ended != 0: // nobody will read it: see Goodbye
		s.mu.Unlock()
		return wire.Item{Kind: wire.Binary}, true
	}
	s.flags |= waiting
	s.keepLocked(rest, own)
	s.mu.Unlock()
	go s.inflateAside(it)
	return it, false
}

// inflateAside decompresses a message for as long as it takes and goes on with it.
// Like an event's handler it ends in Handled.
func (s *Socket) inflateAside(it wire.Item) {
	cfg := &s.cfg().Deflated
	s.cfg().Inflating <- struct{}{}
	it, err := cfg.Deflate.Inflate(it, cfg.MaxMessage)
	<-s.cfg().Inflating
	s.mu.Lock()
	over := s.flags&(cut|ended) != 0
	s.mu.Unlock()
	switch {
	case over:
	case err != nil:
		s.fail(nil, err)
	case s.autoRespond(it):
	case s.owner.Deliver(s, Event{Kind: Message, Text: it.Kind == wire.Text, Data: it.Data}):
		return
	}
	s.Handled()
}
