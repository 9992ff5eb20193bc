package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"github.com/klauspost/compress/flate"
)

// A Window is what was negotiated of permessage-deflate (RFC 7692): the binary
// logarithm of the LZ77 window that messages to the peer may be compressed with,
// 8 to 15. Zero says that nothing was. It is all there is to know of a connection,
// for neither side keeps its window from one message to the next.
type Window uint8

const (
	minWindow Window = 8
	maxWindow Window = 15

	// Windows is the number of values that a Window may have.
	Windows = maxWindow + 1
)

// rsv1 in a header says that the message is compressed (RFC 7692 §6).
const rsv1 = 0x4

// A Deflate compresses and decompresses the messages of connections that have
// negotiated it. It keeps what that takes in pools, and is safe for concurrent
// use. Its fields are immutable.
type Deflate struct {
	// Level is the effort, 1 (least) to 9. It counts for Window 15; smaller
	// windows have one of their own.
	Level int
	// MinSize is the length from which on a message is compressed.
	MinSize int

	deflaters [Windows]sync.Pool // of *deflater
	inflaters sync.Pool          // of *inflater
}

// AppendMessage is AppendFrame of a Text or Binary message to a peer that has
// negotiated w. It is compressed if it is long enough and that makes it shorter.
func (d *Deflate) AppendMessage(dst []byte, k Kind, payload []byte, w Window) []byte {
	if len(payload) >= max(d.MinSize, 1) {
		f := d.deflater(w)
		defer d.deflaters[w].Put(f)
		if packed, ok := f.deflate(payload); ok {
			dst = slices.Grow(dst, FrameSize(len(packed)))
			first := len(dst)
			dst = AppendFrame(dst, k, packed)
			dst[first] |= rsv1 << 4
			return dst
		}
	}
	return AppendFrame(slices.Grow(dst, FrameSize(len(payload))), k, payload)
}

// A deflater compresses one message at a time.
type deflater struct {
	w     *flate.Writer
	out   []byte // what w has written of a message
	limit int    // no use in more
}

// keep is how much memory for a message stays in a pool.
const keep = 64 << 10

func (d *Deflate) deflater(w Window) *deflater {
	if f, ok := d.deflaters[w].Get().(*deflater); ok {
		return f
	}
	f := new(deflater)
	var err error
	if w == maxWindow {
		f.w, err = flate.NewWriter(f, d.Level)
	} else {
		f.w, err = flate.NewWriterWindow(f, 1<<w)
	}
	if err != nil {
		panic(fmt.Sprintf("BUG: wire: window %d, level %d: %v", w, d.Level, err))
	}
	return f
}

// deflate compresses payload by RFC 7692 §7.2.1 and reports whether that made it
// shorter. What it returns is valid until the next call.
func (f *deflater) deflate(payload []byte) ([]byte, bool) {
	if cap(f.out) > keep {
		f.out = nil
	}
	f.out, f.limit = f.out[:0], len(payload)+len(syncTail)
	f.w.Reset(f)
	if _, err := f.w.Write(payload); err != nil || f.w.Flush() != nil {
		return nil, false // it came to more than limit
	}
	n := len(f.out) - len(syncTail)
	return f.out[:n], n < len(payload)
}

// Write takes what the compressor has to say.
func (f *deflater) Write(p []byte) (int, error) {
	if len(f.out)+len(p) > f.limit {
		return 0, errNoGain
	}
	f.out = append(f.out, p...)
	return len(p), nil
}

var errNoGain = errors.New("compressing does not pay")

const (
	// syncTail is what a sender takes off the end of a message (RFC 7692 §7.2.1).
	syncTail = "\x00\x00\xff\xff"
	// finalBlock is an empty block that says it is the last one.
	finalBlock = "\x01\x00\x00\xff\xff"
	// maxFinals is how many blocks of one message may say so. RFC 7692 §7.2.3.4
	// allows that, but each costs a copy of the window.
	maxFinals = 1024
)

// An inflater decompresses one message at a time.
type inflater struct {
	src     source
	in      *bufio.Reader // of src
	r       io.ReadCloser // of in; also a flate.Resetter
	scratch []byte        // for messages of at most keep bytes, and room to see that there is no more
}

func (d *Deflate) inflater() *inflater {
	if f, ok := d.inflaters.Get().(*inflater); ok {
		return f
	}
	f := &inflater{in: bufio.NewReader(nil), scratch: make([]byte, keep+1)}
	f.r = flate.NewReader(f.in)
	return f
}

// A source is the bytes of a message and what belongs behind them.
type source struct {
	data []byte
	tail string
}

func (s *source) Read(p []byte) (n int, err error) {
	n = copy(p, s.data)
	s.data = s.data[n:]
	m := copy(p[n:], s.tail)
	s.tail = s.tail[m:]
	if n += m; n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Inflate turns it, a message with Compressed set, into the one that the peer
// meant. The result is Owned and not Compressed, and nothing of it.Data is kept.
// An error is an *Error: of code 1009 as soon as the message has more than limit
// bytes, of code 1007 if it cannot be decompressed or is Text and not UTF-8.
//
// It takes memory for what comes out, at most twice that, and limit in all.
func (d *Deflate) Inflate(it Item, limit int64) (Item, error) {
	f := d.inflater()
	data, err := f.inflate(it.Data, int(min(limit, math.MaxInt-1)))
	f.src = source{}
	d.inflaters.Put(f)
	if err != nil {
		return Item{}, err // a nil *Error must not become an error
	}
	if it.Kind == Text && !utf8.Valid(data) {
		return Item{}, errNotUTF8()
	}
	it.Data, it.Owned, it.Compressed = data, true, false
	return it, nil
}

func (f *inflater) inflate(data []byte, limit int) ([]byte, *Error) {
	if len(data) == 0 {
		return nil, nil // there should be one byte (RFC 7692 §7.2.3.6), but what it means is clear
	}
	f.src = source{data, syncTail + finalBlock}
	f.in.Reset(&f.src)
	reset := f.r.(flate.Resetter).Reset
	if err := reset(f.in, nil); err != nil {
		return nil, errCorrupt(err)
	}
	out := f.scratch[:0]
	for finals := 0; ; {
		if len(out) == cap(out) {
			out = append(make([]byte, 0, min(2*cap(out), limit+1)), out...)
		}
		n, err := f.r.Read(out[len(out):min(cap(out), limit+1)])
		if out = out[:len(out)+n]; len(out) > limit {
			return nil, &Error{Code: codeTooBig, Max: int64(limit), Got: int64(len(out)),
				Reason: fmt.Sprintf("message of at least %d bytes when decompressed, limit is %d", len(out), limit)}
		}
		switch err {
		case nil:
			continue
		case io.EOF: // of a final block
		default:
			return nil, errCorrupt(err)
		}
		switch left := f.in.Buffered() + len(f.src.data) + len(f.src.tail); {
		case left == 0, left == len(finalBlock), left == len(syncTail)+len(finalBlock):
			// The last of these is a sender that left the empty block behind its own final one out.
			if len(out) <= keep {
				out = append(make([]byte, 0, len(out)), out...)
			}
			return out, nil
		case left < len(syncTail)+len(finalBlock):
			return nil, errCorrupt(io.ErrUnexpectedEOF)
		}
		if finals++; finals > maxFinals {
			return nil, &Error{Code: codeInvalidData, Reason: fmt.Sprintf("compressed message with more than %d final blocks", maxFinals)}
		}
		if err := reset(f.in, out); err != nil {
			return nil, errCorrupt(err)
		}
	}
}

func errCorrupt(err error) *Error {
	return &Error{Code: codeInvalidData, Reason: fmt.Sprintf("compressed message cannot be decompressed: %v", err)}
}

// takeCompressed takes the bit that says so off the header of a compressed message,
// which only its first frame may have (RFC 7692 §6.1).
func takeCompressed(h *ws.Header) bool {
	if h.Rsv != rsv1 || h.OpCode != ws.OpText && h.OpCode != ws.OpBinary {
		return false
	}
	h.Rsv = 0
	return true
}
