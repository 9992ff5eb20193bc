package hibernate_test

import (
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// negotiated is the answer to an offer of permessage-deflate without parameters.
const negotiated = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

// deflate is a client's frame of s, compressed.
func deflate(op ws.OpCode, s string) []byte {
	b := frame(true, op, squeeze(s))
	b[0] |= 0x40
	return b
}

// squeeze compresses s as a message.
func squeeze(s string) string {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 9)
	if err != nil {
		panic(err)
	}
	w.Write([]byte(s))
	w.Flush()
	return strings.TrimSuffix(b.String(), "\x00\x00\xff\xff")
}

func inflate(t *testing.T, p []byte) []byte {
	t.Helper()
	out, err := io.ReadAll(flate.NewReader(strings.NewReader(string(p) + "\x00\x00\xff\xff\x01\x00\x00\xff\xff")))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// deflating is a connection with a handshake that offers compression.
func (r *rig) deflating(path, offer string) *client {
	r.t.Helper()
	c := r.raw(upgrade(path, "Sec-WebSocket-Extensions: "+offer))
	got := c.response().Header["Sec-Websocket-Extensions"]
	if len(got) != 1 || !strings.HasPrefix(got[0], negotiated) {
		r.t.Fatalf("answered %q", got)
	}
	c.deflated = true
	return c
}

// long is a text that is worth compressing.
func long(n int) string { return strings.Repeat("round and round and ", n/20+1)[:n] }

// TestCompressionIsNegotiated where the class or the acceptance asks for it and the
// client offers it, at each door.
func TestCompressionIsNegotiated(t *testing.T) {
	doors := map[string]func(t *testing.T, o *hibernate.ClassOptions, accept bool) *rig{
		"acceptor": func(t *testing.T, o *hibernate.ClassOptions, accept bool) *rig {
			d := serveBothDoors(t, nil, newEcho, o)
			d.take(func(*hibernate.Handshake) (hibernate.Join, error) {
				return hibernate.Join{Object: d.ns.GetByName("a"), Compression: accept}, nil
			})
			return d.rig
		},
		"handler": func(t *testing.T, o *hibernate.ClassOptions, accept bool) *rig {
			r := newRig(t, "", nil)
			serve(r, newEcho, o)
			r.srv.Config.Handler = r.ns.Handler(func(*hibernate.Handshake) (hibernate.Join, error) {
				return hibernate.Join{Object: r.ns.GetByName("a"), Compression: accept}, nil
			})
			return r
		},
		"object": func(t *testing.T, o *hibernate.ClassOptions, accept bool) *rig {
			r := newRig(t, "", nil)
			r.act(&script{
				http: func(a *actor, w http.ResponseWriter, q *http.Request) {
					_, _ = a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Compression: accept})
				},
				message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
					return ws.SendText(ctx, m.Text()+" 1")
				},
			}, o)
			return r
		},
	}
	for name, open := range doors {
		t.Run(name, func(t *testing.T) {
			for _, tt := range []struct {
				class, accept bool
				offer, answer string
			}{
				{false, false, "permessage-deflate", ""},
				{true, false, "permessage-deflate", negotiated},
				{false, true, "permessage-deflate", negotiated},
				{true, true, "", ""},
				{true, true, "permessage-deflate; server_max_window_bits=7", ""},
				{true, false, "permessage-deflate; foo, permessage-deflate; server_max_window_bits=9", negotiated + "; server_max_window_bits=9"},
			} {
				r := open(t, &hibernate.ClassOptions{Compression: tt.class}, tt.accept)
				var more []string
				if tt.offer != "" {
					more = []string{"Sec-WebSocket-Extensions: " + tt.offer}
				}
				c := r.raw(upgrade("/o/a", more...))
				if got := strings.Join(c.switched().Header["Sec-Websocket-Extensions"], "|"); got != tt.answer {
					t.Errorf("%+v: answered %q", tt, got)
				}
				x := long(1000)
				c.send(x)
				if tt.answer != "" {
					c.deflated = true
					c.expect("ztext:" + x + " 1")
				} else {
					c.expect("text:" + x + " 1")
				}
			}
			r := open(t, &hibernate.ClassOptions{Compression: true}, true)
			if resp := r.raw(upgrade("/o/a", "Sec-WebSocket-Extensions: permessage-deflate;")).response(); resp.StatusCode != http.StatusBadRequest {
				t.Errorf("what is no list of extensions was answered %s", resp.Status)
			}
		})
	}
}

// TestCompressedMessagesArrive, short and long, in fragments and beside others.
func TestCompressedMessagesArrive(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", nil)
		r.act(closing(), &hibernate.ClassOptions{Compression: true})
		c := r.deflating("/o/a", "permessage-deflate")
		r.turn("a")
		pause(r)
		big := long(1 << 20) // 1 MiB is the limit
		p := squeeze("in fragments")
		first := frame(false, ws.OpText, p[:3])
		first[0] |= 0x40
		c.write(bytes.Join([][]byte{
			deflate(ws.OpText, "short"), deflate(ws.OpText, ""), frame(true, ws.OpText, "as it is"),
			first, frame(true, ws.OpPing, "between"), frame(true, ws.OpContinuation, p[3:]),
			deflate(ws.OpText, big), deflate(ws.OpBinary, "\xff"), frame(true, ws.OpPing, "behind"), frame(true, ws.OpText, "last"),
		}, nil))
		r.hear("message short", "message ", "message as it is", "message in fragments", "message "+big, "message \xff", "message last")
		c.expect("pong:between", "pong:behind")
		c.close(1000, "")
		c.expect("close:1000 ", "eof")
	})
}

// TestCompressedViolations: what is wrong inside a compressed message, or with its
// bit, ends the connection as other violations do (RFC 7692 §6, §7.2.2).
func TestCompressedViolations(t *testing.T) {
	with := func(b []byte, bits byte) []byte { b[0] |= bits; return b }
	start := func(p string) []byte { return with(frame(false, ws.OpText, p), 0x40) }
	for _, tc := range []struct {
		name string
		in   []byte
		code int
	}{
		{"RSV1 on a continuation", append(start("\xf2\x48\xcd"), with(frame(true, ws.OpContinuation, "\xc9\xc9\x07\x00"), 0x40)...), 1002},
		{"RSV1 on a ping", with(frame(true, ws.OpPing, ""), 0x40), 1002},
		{"RSV1 on a close", with(frame(true, ws.OpClose, ""), 0x40), 1002},
		{"RSV2", with(frame(true, ws.OpText, "x"), 0x20), 1002},
		{"RSV1 and RSV3", with(deflate(ws.OpText, "x"), 0x10), 1002},
		{"no DEFLATE", with(frame(true, ws.OpText, "\x06"), 0x40), 1007},
		{"cut short", with(frame(true, ws.OpText, squeeze(long(1000))[:10]), 0x40), 1007},
		{"a window that was to be forgotten", with(frame(true, ws.OpText, "\xf2\x00\x11\x00\x00"), 0x40), 1007},
		{"text not UTF-8", deflate(ws.OpText, "ab\xff"), 1007},
		{"text cut in a character", deflate(ws.OpText, long(1000)+"\xc3"), 1007},
		{"over the limit", deflate(ws.OpBinary, long(200_001)), 1009},
		{"a bomb", deflate(ws.OpBinary, strings.Repeat("\x00", 16<<20)), 1009},
		{"a bomb in fragments", append(start(squeeze(strings.Repeat("\x00", 16<<20))), frame(true, ws.OpContinuation, "")...), 1009},
		{"too large as it is", with(append([]byte{0x82, 0xff, 0, 0, 0, 0, 0, 4, 0, 0, 1, 2, 3, 4}, "x"...), 0x40), 1009},
	} {
		t.Run(tc.name, func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
				r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Message: 200_000}})
				s := closing()
				s.fail = func(ctx context.Context, a *actor, ws hibernate.WebSocket, err error) error {
					var p *hibernate.ProtocolError
					if !errors.As(err, &p) || p.CloseCode() != tc.code {
						t.Errorf("error %v, want a *ProtocolError of %d", err, tc.code)
					}
					if got := limit(err); (tc.code == 1009) != strings.HasSuffix(got, "/200000") {
						t.Errorf("limit %s", got)
					}
					a.tell("error")
					return nil
				}
				r.act(s, &hibernate.ClassOptions{Compression: true})
				c := r.deflating("/o/a", "permessage-deflate; client_max_window_bits")
				r.turn("a")
				pause(r)
				c.write(append(deflate(ws.OpText, "before"), tc.in...))
				if got := c.next(); !strings.HasPrefix(got, fmt.Sprintf("close:%d ", tc.code)) {
					t.Errorf("received %q, want %d", got, tc.code)
				}
				c.expect("eof")
				r.hear("message before", "error")
				r.gone("a")
			})
		})
	}
}

// TestAutoResponseReadsCompressedText: what is compared is what the client meant,
// and nobody wakes for it.
func TestAutoResponseReadsCompressedText(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), &hibernate.ClassOptions{Compression: true})
	c := r.deflating("/o/a", "permessage-deflate")
	r.must("a", func(ctx context.Context, a *actor) error {
		return a.state.SetWebSocketAutoResponse(ctx, hibernate.AutoResponse{Request: "ping", Response: "pong"})
	})
	r.hibernate()
	n := r.play.made.Load()
	c.write(deflate(ws.OpText, "ping"))
	c.expect("text:pong")
	c.send("ping")
	c.expect("text:pong")
	r.instances(n)
	c.write(deflate(ws.OpText, "ping?"))
	r.hear("message ping?")
}

// TestBroadcastMeetsEveryWindow that was negotiated, each with what its peer can read.
func TestBroadcastMeetsEveryWindow(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(closing(), &hibernate.ClassOptions{Compression: true})
	plain := r.dial("/o/a")
	var clients []*client
	for range 2 {
		clients = append(clients, r.deflating("/o/a", "permessage-deflate"))
		for bits := 8; bits <= 15; bits++ {
			clients = append(clients, r.deflating("/o/a", fmt.Sprintf("permessage-deflate; server_max_window_bits=%d", bits)))
		}
	}
	x := long(100_000)
	r.must("a", func(ctx context.Context, a *actor) error {
		n, err := a.state.Broadcast(ctx, hibernate.Text(x), nil)
		if n != len(clients)+1 {
			return fmt.Errorf("sent to %d, %w", n, err)
		}
		_, err = a.state.Broadcast(ctx, hibernate.Binary([]byte("short")), nil)
		return err
	})
	plain.expect("text:"+x, "bin:short")
	for _, c := range clients {
		c.expect("ztext:"+x, "bin:short")
	}
}

// TestCompressionOptions: level and smallest size.
func TestCompressionOptions(t *testing.T) {
	r := newRig(t, "", nil)
	for _, level := range []int{-1, 10} {
		if _, err := hibernate.Register(r.rt, "Other", newEcho, &hibernate.ClassOptions{CompressionLevel: level}); !errors.Is(err, hibernate.ErrInvalid) {
			t.Errorf("level %d: %v", level, err)
		}
	}
	for _, tt := range []struct {
		least, size int
		want        string
	}{
		{0, 255, "text:"}, {0, 256, "ztext:"}, {1000, 999, "text:"}, {1000, 1000, "ztext:"}, {-1, 100, "ztext:"},
	} {
		r := newRig(t, "", nil)
		r.act(closing(), &hibernate.ClassOptions{Compression: true, CompressionLevel: 9, CompressionMinSize: tt.least})
		c := r.deflating("/o/a", "permessage-deflate")
		r.must("a", func(ctx context.Context, a *actor) error { return only(a).SendText(ctx, strings.Repeat("x", tt.size)) })
		c.expect(tt.want + strings.Repeat("x", tt.size))
	}
}

// TestLongCompressedMessageIsNotLost when the connection goes while it is
// decompressed: it comes before the close event.
func TestLongCompressedMessageIsNotLost(t *testing.T) {
	for name, leave := range map[string]func(*client){"end": (*client).drop, "half": (*client).halfClose} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", nil)
			r.act(closing(), &hibernate.ClassOptions{Compression: true})
			for range 20 {
				c := r.deflating("/o/a", "permessage-deflate")
				x := long(1 << 20)
				c.write(append(deflate(ws.OpText, x), frame(true, ws.OpText, "last")...))
				leave(c)
				r.hear("message "+x, "message last", "close "+lost+", state 2")
			}
		})
	}
}

// TestLongMessagesAreDecompressedWhileTheRuntimeEnds: nothing is left over, and every
// peer's answer to the Close behind them is read.
func TestLongMessagesAreDecompressedWhileTheRuntimeEnds(t *testing.T) {
	for name, end := range map[string]func(*hibernate.Runtime) error{
		"Close": (*hibernate.Runtime).Close,
		"Shutdown": func(rt *hibernate.Runtime) error {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			return rt.Shutdown(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", nil)
			r.act(&script{}, &hibernate.ClassOptions{Compression: true})
			bomb := deflate(ws.OpBinary, strings.Repeat("\x00", 1<<20))
			for range 30 {
				c := r.deflating("/o/a", "permessage-deflate")
				c.write(bytes.Repeat(bomb, 4))
				go func() {
					for {
						f, err := ws.ReadFrame(c.br)
						if err != nil {
							return
						}
						if f.Header.OpCode == ws.OpClose {
							c.conn.Write(frame(true, ws.OpClose, string(f.Payload)))
						}
					}
				}()
			}
			if err := end(r.rt); err != nil {
				t.Error(err)
			}
		})
	}
}
