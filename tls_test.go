package hibernate_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// secure serves the rig's objects by TLS, as net/http does it.
func (r *rig) secure() {
	handler, log := r.srv.Config.Handler, r.srv.Config.ErrorLog
	r.srv.Close()
	r.srv = httptest.NewUnstartedServer(handler)
	r.srv.Config.ErrorLog = log
	r.srv.StartTLS()
}

// dialTLS is a WebSocket over TLS of the given version, and the connection below.
func (r *rig) dialTLS(path string, version uint16) (*client, *net.TCPConn) {
	r.t.Helper()
	raw, err := net.Dial("tcp", r.srv.Listener.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { raw.Close() })
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
	c := &client{t: r.t, conn: conn, br: bufio.NewReader(conn)}
	c.write([]byte(strings.ReplaceAll(upgrade(path), "\n", "\r\n")))
	c.switched()
	return c, raw.(*net.TCPConn)
}

func eachTLS(t *testing.T, f func(t *testing.T, version uint16, pause func(*rig))) {
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		t.Run("TLS "+name, func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) { f(t, version, pause) })
		})
	}
}

// TestTLSConnectionsAreLikeOthers: they sleep and wake, take messages of any size and
// a stream of them, close from either side, and tell of a peer that is lost.
func TestTLSConnectionsAreLikeOthers(t *testing.T) {
	eachTLS(t, func(t *testing.T, version uint16, pause func(*rig)) {
		r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Message: 8 << 20}})
		s := closing()
		s.message = func(ctx context.Context, _ *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			if m.Text() == "close" {
				return ws.Close(ctx, 4000, "asked to")
			}
			return ws.Send(ctx, m)
		}
		s.close = func(_ context.Context, a *actor, _ hibernate.WebSocket, e hibernate.CloseEvent) error {
			a.tell("close %d %v", e.Code, e.WasClean)
			return nil
		}
		r.act(s, nil)
		r.secure()

		c, _ := r.dialTLS("/o/a", version)
		r.turn("a")
		pause(r)
		c.send("hello")
		c.expect("text:hello")
		pause(r)
		big := make([]byte, 5<<20)
		rand.Read(big)
		go c.conn.Write(ws.MustCompileFrame(ws.MaskFrame(ws.NewBinaryFrame(big))))
		c.expect("bin:" + string(big))
		pause(r)
		const n = 2000
		go func() {
			for i := range n {
				c.conn.Write(frame(true, ws.OpText, strconv.Itoa(i)))
			}
		}()
		for i := range n {
			c.expect("text:" + strconv.Itoa(i))
		}
		pause(r)
		c.ping("p")
		c.expect("pong:p")
		c.close(1000, "bye")
		c.expect("close:1000 ", "eof")
		r.hear("close 1000 true")

		c, _ = r.dialTLS("/o/a", version)
		pause(r)
		c.send("close")
		c.expect("close:4000 asked to")
		c.close(4000, "")
		c.expect("eof")
		r.hear("close 4000 true")

		_, raw := r.dialTLS("/o/a", version)
		pause(r)
		raw.SetLinger(0)
		raw.Close()
		r.hear("close 1006 false")

		c, _ = r.dialTLS("/o/a", version)
		pause(r)
		c.conn.(*tls.Conn).CloseWrite() // close_notify, and no Close frame
		r.hear("close 1006 false")
		c.expect("eof")

		_, raw = r.dialTLS("/o/a", version)
		pause(r)
		if _, err := raw.Write(bytes.Repeat([]byte("not TLS"), 10)); err != nil {
			t.Fatal(err)
		}
		r.hear("close 1006 false")
		r.gone("a")
		r.silent()
	})
}

// TestShutdownOfTLSConnections says goodbye to them too, and cuts those that do not
// answer or do not even read.
func TestShutdownOfTLSConnections(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, nil)
	r.secure()
	polite, _ := r.dialTLS("/o/a", tls.VersionTLS13)
	silent, _ := r.dialTLS("/o/a", tls.VersionTLS13)
	ctx, cancel := context.WithCancel(context.Background())
	ended := r.shutdown(ctx)
	for _, c := range []*client{polite, silent} {
		if got := c.next(); !strings.HasPrefix(got, "close:1001") {
			t.Fatalf("received %q", got)
		}
	}
	polite.close(1001, "")
	polite.expect("eof")
	cancel()
	if err := outcome(t, ended); err == nil || !strings.Contains(err.Error(), "1 WebSockets did not answer") {
		t.Errorf("shutdown: %v", err)
	}
	silent.expect("eof")
}

// holdConnections is the other process of BenchmarkIdleConnections: it opens n connections
// to addr and keeps them until its input ends.
func holdConnections(spec string) {
	var n int
	var kind, addr string
	if _, err := fmt.Sscanf(spec, "%d %s %s", &n, &kind, &addr); err != nil {
		panic(err)
	}
	for i := range n {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			panic(err)
		}
		if kind == "tls" {
			conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		}
		fmt.Fprint(conn, strings.ReplaceAll(upgrade(fmt.Sprintf("/o/%d", i%100)), "\n", "\r\n"))
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			panic(err)
		}
		defer conn.Close()
	}
	fmt.Println("held")
	io.Copy(io.Discard, os.Stdin)
}

// BenchmarkIdleConnections is the heap and stacks of this process for each connection
// that is idle, its object asleep. The clients are another process.
func BenchmarkIdleConnections(b *testing.B) {
	const n = 2000
	for _, kind := range []string{"tcp", "tls"} {
		b.Run(kind, func(b *testing.B) {
			rt, addr := benchDoor(b, kind)
			exe, err := os.Executable()
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				before := held()
				cmd := exec.Command(exe)
				cmd.Env = append(os.Environ(), fmt.Sprintf("HOLD_CONNECTIONS=%d %s %s", n, kind, addr))
				cmd.Stderr = os.Stderr
				in, err := cmd.StdinPipe()
				if err != nil {
					b.Fatal(err)
				}
				out, err := cmd.StdoutPipe()
				if err != nil {
					b.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(held()-before)/n, "B/conn")
				in.Close()
				if err := cmd.Wait(); err != nil {
					b.Fatal(err)
				}
				for rt.Stats().Sockets > 0 {
					runtime.Gosched()
				}
			}
		})
	}
}

// benchDoor is a runtime whose objects echo, served by TCP or TLS.
func benchDoor(b *testing.B, kind string) (rt *hibernate.Runtime, addr string) {
	b.Helper()
	rt, err := hibernate.Open("", nil)
	if err != nil {
		b.Fatal(err)
	}
	ns, err := hibernate.Register(rt, "Echo", func(context.Context, *hibernate.State) (plainEcho, error) { return plainEcho{}, nil }, nil)
	if err != nil {
		b.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(ns.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: ns.GetByName(h.Path())}, nil
	}))
	if kind == "tls" {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	b.Cleanup(func() {
		srv.Close()
		if err := rt.Close(); err != nil {
			b.Error(err)
		}
	})
	return rt, srv.Listener.Addr().String()
}

type plainEcho struct{}

func (plainEcho) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	return ws.Send(ctx, m)
}

// held is what heap and stacks use.
func held() int64 {
	var m runtime.MemStats
	for range 2 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// BenchmarkEchoOverTLS is one message and its echo, beside TCP alone.
func BenchmarkEchoOverTLS(b *testing.B) {
	for _, kind := range []string{"tcp", "tls"} {
		for _, size := range []int{100, 64 << 10} {
			b.Run(fmt.Sprintf("%s/bytes=%d", kind, size), func(b *testing.B) {
				_, addr := benchDoor(b, kind)
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					b.Fatal(err)
				}
				defer conn.Close()
				if kind == "tls" {
					conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
				}
				fmt.Fprint(conn, strings.ReplaceAll(upgrade("/o/a"), "\n", "\r\n"))
				br := bufio.NewReaderSize(conn, 128<<10)
				if _, err := http.ReadResponse(br, nil); err != nil {
					b.Fatal(err)
				}
				msg := frame(true, ws.OpBinary, strings.Repeat("x", size))
				b.SetBytes(int64(size))
				for b.Loop() {
					if _, err := conn.Write(msg); err != nil {
						b.Fatal(err)
					}
					h, err := ws.ReadHeader(br)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := br.Discard(int(h.Length)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
