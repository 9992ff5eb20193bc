package wire

import (
	"bytes"
	"strings"
	"testing"
	"unsafe"

	"github.com/gobwas/ws"
)

// TestFramesAreThoseOfGobwas holds our header writer against gobwas/ws's, at
// every length at which the encoding changes (RFC 6455 §5.2).
func TestFramesAreThoseOfGobwas(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 100_000} {
		for _, k := range []Kind{Text, Binary, Ping, Pong} {
			op := k.opCode()
			if op.IsControl() && n > MaxControl {
				continue
			}
			payload := bytes.Repeat([]byte("x"), n)
			want := ws.MustCompileFrame(ws.NewFrame(op, true, payload))
			got := AppendFrame([]byte("before"), k, payload)
			if !bytes.Equal(got, append([]byte("before"), want...)) {
				t.Errorf("%v of %d bytes begins %x, want %x", k, n, got[6:min(len(got), 20)], want[:min(len(want), 14)])
			}
			if FrameSize(n) != len(want) {
				t.Errorf("FrameSize(%d) = %d, want %d", n, FrameSize(n), len(want))
			}
		}
	}
}

// RFC 6455 §5.5.1.
func TestAppendClose(t *testing.T) {
	for _, tt := range []struct {
		code   uint16
		reason string
		want   []byte
	}{
		{1005, "", []byte{0x88, 0}},
		{1005, "dropped", []byte{0x88, 0}},
		{1000, "", []byte{0x88, 2, 0x03, 0xe8}},
		{4000, "bye", []byte{0x88, 5, 0x0f, 0xa0, 'b', 'y', 'e'}},
		{1009, strings.Repeat("x", MaxCloseReason), append([]byte{0x88, 125, 0x03, 0xf1}, strings.Repeat("x", 123)...)},
	} {
		if got := AppendClose([]byte("p"), tt.code, tt.reason); !bytes.Equal(got, append([]byte("p"), tt.want...)) {
			t.Errorf("AppendClose(%d, %q) = %x, want %x", tt.code, tt.reason, got[1:], tt.want)
		}
	}
}

func TestFrameThatCannotBeIsABug(t *testing.T) {
	for name, f := range map[string]func(){
		"no kind":     func() { AppendFrame(nil, None, nil) },
		"long ping":   func() { AppendFrame(nil, Ping, make([]byte, 126)) },
		"long reason": func() { AppendClose(nil, 1000, strings.Repeat("x", 124)) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "BUG") {
					t.Errorf("recovered %q", s)
				}
			}()
			f()
		})
	}
}

func TestAppendFrameDoesNotAllocate(t *testing.T) {
	dst, payload := make([]byte, 0, 2048), make([]byte, 1000)
	if n := testing.AllocsPerRun(100, func() {
		AppendClose(AppendFrame(dst, Text, payload), 1000, "bye")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A connection between messages pays for one pointer.
func TestDecoderAtRestIsOnePointer(t *testing.T) {
	if n, p := unsafe.Sizeof(Decoder{}), unsafe.Sizeof(uintptr(0)); n != p {
		t.Errorf("%d bytes", n)
	}
	var d Decoder
	if !d.AtRest() || d.Buffered() != 0 {
		t.Error("zero decoder is not at rest")
	}
}
