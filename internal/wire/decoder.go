package wire

import (
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// Item is one thing a peer sent: a whole message or a control frame.
type Item struct {
	Kind Kind
	// Data is the payload of Text (valid UTF-8), Binary, Ping and Pong. Unless
	// Owned, it aliases the input and is valid only as long as that; if Owned,
	// nobody else holds it.
	Data  []byte
	Owned bool
	// Compressed tells that Data is not the message but what Deflate.Inflate makes
	// it from.
	Compressed bool
	// Code and Reason are what a Close said. An empty body is code 1005.
	Code   uint16
	Reason string
	// Fragmented tells that a message came in more than one frame.
	Fragmented bool
}

// Config is the limits of a connection. It is shared and immutable.
type Config struct {
	// MaxMessage is the largest message taken, in bytes after reassembly.
	// Zero lets only empty messages through.
	MaxMessage int64
	// MaxFragments is the largest number of frames a message may come in.
	// Zero or less means no limit.
	MaxFragments int
	// Deflate is set if the connection has negotiated permessage-deflate.
	Deflate *Deflate
}

// maxPayload is how many bytes the frames of a message may have in all. What does
// not compress grows, by an eighth at worst.
func (c *Config) maxPayload(compressed bool) int64 {
	most := c.MaxMessage
	if compressed {
		if most += most/8 + 64; most < 0 {
			most = math.MaxInt64
		}
	}
	return min(most, math.MaxInt)
}

// Decoder is the input side of one connection whose peer is a client. The zero
// value is ready. It is used by one goroutine at a time.
//
// Between messages it is one nil pointer. What has arrived of an unfinished
// message, frame or header is copied and kept; the memory for it grows with what
// arrives, never with what a header announces, and stays below twice that
// (64 bytes at least).
type Decoder struct {
	p *partial // nil when nothing is retained
}

// partial is what a decoder retains between two calls of Next. Header bytes, a
// frame's payload and a message overlap: a control frame may come in pieces
// between the fragments of a message.
type partial struct {
	head  [ws.MaxHeaderSize]byte // header being collected
	nhead uint8                  // bytes in head; 0 while a frame is open

	kind       Kind // message being collected: Text, Binary, or None
	compressed bool // it is
	open       bool // frame's header is complete, its payload is not
	frame      ws.Header
	got        int64  // payload bytes of frame taken so far
	control    []byte // unmasked payload of frame, if it is a control frame
	data       []byte // unmasked payload of the message, all fragments
	valid      int    // prefix of data known to be UTF-8, if Text and not compressed
	fragments  int    // frames of the message begun so far
}

const minBuffer = 64

// AtRest reports whether nothing is retained: the next byte begins a new
// message or control frame.
func (d *Decoder) AtRest() bool { return d.p == nil }

// Buffered returns how many bytes of input are retained.
func (d *Decoder) Buffered() int {
	if d.p == nil {
		return 0
	}
	return int(d.p.nhead) + len(d.p.control) + len(d.p.data)
}

// Drop lets go of what is retained. It is for a connection that has ended: what
// comes next would be read as the beginning of a frame.
func (d *Decoder) Drop() { d.p = nil }

// Next takes the next item from in and returns how many bytes it used. With Kind
// None those are all of in, and what was incomplete is retained. Masked bytes of
// in are overwritten. A non-nil error is an *Error; then nothing is retained and
// the decoder must not be used again.
//
// Violations are found as early as the bytes allow: a message that is too large at
// the header that makes it so, bad UTF-8 at the first chunk it shows in. What is
// inside a compressed message is found by Deflate.Inflate.
func (d *Decoder) Next(in []byte, cfg *Config) (Item, int, error) {
	it, n, err := d.next(in, cfg)
	if err != nil {
		d.p = nil
		return Item{}, n, err // a nil *Error must not become an error
	}
	return it, n, nil
}

func (d *Decoder) next(in []byte, cfg *Config) (it Item, n int, err *Error) {
	for {
		if d.p == nil || !d.p.open {
			h, size, ok := d.header(in, &n)
			if !ok {
				return Item{}, n, nil
			}
			compressed := cfg.Deflate != nil && takeCompressed(&h)
			if err = d.check(h, size, compressed, cfg); err != nil {
				return Item{}, n, err
			}
			alone := h.OpCode.IsControl() || h.Fin && h.OpCode != ws.OpContinuation
			if rest := in[n:]; alone && h.Length <= int64(len(rest)) {
				d.rest()
				payload := rest[:h.Length:h.Length]
				ws.Cipher(payload, h.Mask, 0)
				it, err = whole(kindOf(h.OpCode), payload, compressed)
				return it, n + len(payload), err
			}
			d.begin(h, compressed)
		}

		p := d.p
		used, err := p.take(in[n:], cfg)
		n += used
		if err != nil || p.got < p.frame.Length {
			return Item{}, n, err
		}
		p.open = false
		switch {
		case p.frame.OpCode.IsControl():
			body := p.control
			p.control = nil
			d.rest()
			it, err = whole(kindOf(p.frame.OpCode), body, false)
			it.Owned = it.Data != nil
			return it, n, err
		case p.frame.Fin:
			d.p = nil
			return Item{Kind: p.kind, Data: p.data, Owned: true, Compressed: p.compressed, Fragmented: p.fragments > 1}, n, nil
		}
	}
}

// header takes a frame header from in at *n. A header that begins in in and is
// complete there is not copied.
func (d *Decoder) header(in []byte, n *int) (h ws.Header, size int, ok bool) {
	if d.p == nil || d.p.nhead == 0 {
		rest := in[*n:]
		if size = headerSize(rest); len(rest) >= size {
			*n += size
			return parseHeader(rest[:size]), size, true
		}
		if len(rest) == 0 {
			return h, 0, false
		}
		d.retain()
	}
	p := d.p
	for {
		size = headerSize(p.head[:p.nhead])
		if int(p.nhead) == size {
			p.nhead = 0
			return parseHeader(p.head[:size]), size, true
		}
		c := copy(p.head[p.nhead:size], in[*n:])
		if c == 0 {
			return h, 0, false
		}
		p.nhead += uint8(c)
		*n += c
	}
}

// check checks a header in its place: against the message that is open, and
// against the limits, before any of its payload is looked at.
func (d *Decoder) check(h ws.Header, size int, compressed bool, cfg *Config) *Error {
	var have int64
	var fragments int
	inMessage := d.p != nil && d.p.kind != None
	if inMessage {
		have, fragments = int64(len(d.p.data)), d.p.fragments
		compressed = d.p.compressed
	}
	if err := checkHeader(h, size, inMessage); err != nil {
		return err
	}
	if h.OpCode.IsControl() {
		return nil
	}
	if h.Length > cfg.maxPayload(compressed)-have {
		got, limit := h.Length+min(have, math.MaxInt64-h.Length), min(cfg.MaxMessage, math.MaxInt)
		return &Error{Code: codeTooBig, Max: limit, Got: got,
			Reason: fmt.Sprintf("message of at least %d bytes, limit is %d", got, limit)}
	}
	if limit := cfg.MaxFragments; limit > 0 && fragments >= limit {
		return &Error{Code: codeTooBig, Max: int64(limit), Got: int64(fragments) + 1, Fragments: true,
			Reason: fmt.Sprintf("message in more than %d fragments", limit)}
	}
	return nil
}

func (d *Decoder) retain() *partial {
	if d.p == nil {
		d.p = new(partial)
	}
	return d.p
}

// rest lets go of the partial state when only the header just used was in it.
func (d *Decoder) rest() {
	if d.p != nil && d.p.kind == None {
		d.p = nil
	}
}

// begin opens a frame whose payload does not come out of the input at once.
func (d *Decoder) begin(h ws.Header, compressed bool) {
	p := d.retain()
	p.frame, p.got, p.open = h, 0, true
	if h.OpCode.IsControl() {
		return
	}
	p.fragments++
	if h.OpCode != ws.OpContinuation {
		p.kind, p.compressed = kindOf(h.OpCode), compressed
	}
}

// take unmasks and retains what in has of the open frame's payload.
func (p *partial) take(in []byte, cfg *Config) (n int, err *Error) {
	n = int(min(p.frame.Length-p.got, int64(len(in))))
	chunk := in[:n]
	ws.Cipher(chunk, p.frame.Mask, int(p.got&3))
	if p.frame.OpCode.IsControl() {
		p.control = append(p.control, chunk...)
		p.got += int64(n)
		return n, nil
	}
	p.reserve(n, cfg)
	p.data = append(p.data, chunk...)
	p.got += int64(n)
	if p.kind == Text && !p.compressed {
		end := completeRunes(p.data[p.valid:]) + p.valid
		last := p.frame.Fin && p.got == p.frame.Length
		if !utf8.Valid(p.data[p.valid:end]) || last && end < len(p.data) {
			return n, errNotUTF8()
		}
		p.valid = end
	}
	return n, nil
}

// reserve makes room for n more bytes of data: doubling, and no more than the
// message can still become.
func (p *partial) reserve(n int, cfg *Config) {
	if cap(p.data)-len(p.data) >= n {
		return
	}
	most := cfg.maxPayload(p.compressed)
	if p.frame.Fin {
		most = int64(len(p.data)) + p.frame.Length - p.got
	}
	size := min(int64(max(2*cap(p.data), minBuffer)), most)
	p.data = append(make([]byte, 0, max(int(size), len(p.data)+n)), p.data...)
}

// completeRunes returns the length of b without the encoding that its end cuts
// short. An end that no further bytes could make valid is not cut short, so bad
// UTF-8 shows at its first impossible byte.
func completeRunes(b []byte) int {
	for i := len(b) - 1; i >= 0 && i > len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return i
			}
			break
		}
	}
	return len(b)
}

// whole makes an item of an unmasked payload that was not fragmented.
func whole(k Kind, payload []byte, compressed bool) (Item, *Error) {
	switch k {
	case Text:
		if !compressed && !utf8.Valid(payload) {
			return Item{}, errNotUTF8()
		}
	case Close:
		return closeItem(payload)
	}
	return Item{Kind: k, Data: payload, Compressed: compressed}, nil
}

// closeItem reads the body of a Close frame (RFC 6455 §5.5.1, §7.4).
func closeItem(body []byte) (Item, *Error) {
	switch len(body) {
	case 0:
		return Item{Kind: Close, Code: codeNoStatus}, nil
	case 1:
		return Item{}, &Error{Code: codeProtocolError, Reason: "close frame with a body of one byte"}
	}
	code, reason := ws.ParseCloseFrameData(body)
	if !ValidReceivedCloseCode(uint16(code)) {
		return Item{}, &Error{Code: codeProtocolError, Reason: fmt.Sprintf("close code %d is not valid", code)}
	}
	if !utf8.ValidString(reason) {
		return Item{}, &Error{Code: codeInvalidData, Reason: "close reason is not UTF-8"}
	}
	return Item{Kind: Close, Code: uint16(code), Reason: reason}, nil
}

func errNotUTF8() *Error {
	return &Error{Code: codeInvalidData, Reason: "text message is not UTF-8"}
}
