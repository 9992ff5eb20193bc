package socket

import (
	"bytes"
	"compress/flate"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate/internal/poll"
)

func squeezed(s string) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 9)
	if err != nil {
		panic(err)
	}
	w.Write([]byte(s))
	w.Flush()
	f := frame(ws.OpText, strings.TrimSuffix(b.String(), "\x00\x00\xff\xff"))
	f[0] |= 0x40
	return f
}

// TestLongCompressedMessageKeepsNobodyElseWaiting: when no place is left to
// decompress it, its socket waits, and the loop goes on.
func TestLongCompressedMessageKeepsNobodyElseWaiting(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		places := make(chan struct{}, 1)
		b := newBench(t, o, Config{Inflating: places}, nil)
		other := newBenchOn(t, b)
		places <- struct{}{}
		long := strings.Repeat("x", quickOut+1)
		b.write(squeezed("short"))
		b.event("short")
		b.s.Handled()
		b.write(squeezed(long), frame(ws.OpPing, "behind"), squeezed("next"))
		other.write(frame(ws.OpPing, "a"), frame(ws.OpText, "b"))
		other.receive("pong a")
		other.event("b")
		b.noEvent()
		<-places
		b.event(long)
		b.s.Handled()
		b.receive("pong behind")
		b.event("next")
	})
}

// TestCutWhileAMessageIsDecompressed: nothing comes of it any more.
func TestCutWhileAMessageIsDecompressed(t *testing.T) {
	eachPoller(t, func(t *testing.T, o poll.Options) {
		places := make(chan struct{}) // a place is taken when the test receives, and given back when it sends
		b := newBench(t, o, Config{Inflating: places}, nil)
		b.write(squeezed(strings.Repeat("x", quickOut+1)), squeezed("next"))
		select {
		case <-places:
		case <-time.After(hang):
			t.Fatalf("nothing is decompressed in %v", hang)
		}
		b.s.Cut()
		places <- struct{}{}
		b.receive("eof")
		b.noEvent()
	})
}
