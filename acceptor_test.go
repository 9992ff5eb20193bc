package hibernate_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// A doorRig is a rig whose server accepts through the zero-copy acceptor.
type doorRig struct {
	*rig
	route atomic.Pointer[hibernate.Route]
	http  atomic.Int64 // requests that net/http got
}

// take replaces the route.
func (d *doorRig) take(route hibernate.Route) { d.route.Store(&route) }

// byPath is the route of a door that has no other.
func (d *doorRig) byPath(h *hibernate.Handshake) (hibernate.Join, error) {
	name, ok := strings.CutPrefix(h.Path(), "/o/")
	if !ok {
		return hibernate.Join{}, hibernate.Refuse(http.StatusNotFound, "no such object")
	}
	return hibernate.Join{Object: d.ns.GetByName(name), Tags: h.Query()["tag"]}, nil
}

// serveBothDoors serves a class at both doors of a TCP listener. Beside the objects there
// is /body, which answers with what it was sent.
func serveBothDoors[T any](t *testing.T, o *hibernate.Options, construct func(context.Context, *hibernate.State) (T, error), c *hibernate.ClassOptions) *doorRig {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveBothDoorsAt(t, ln, o, construct, c, (*httptest.Server).Start)
}

func serveBothDoorsAt[T any](t *testing.T, ln net.Listener, o *hibernate.Options, construct func(context.Context, *hibernate.State) (T, error), c *hibernate.ClassOptions, start func(*httptest.Server)) *doorRig {
	t.Helper()
	d := &doorRig{rig: newRig(t, "", o)}
	d.take(d.byPath)
	ns, err := hibernate.Register(d.rt, "Test", construct, c)
	if err != nil {
		t.Fatal(err)
	}
	d.ns = ns
	route := func(h *hibernate.Handshake) (hibernate.Join, error) { return (*d.route.Load())(h) }
	handler := ns.Handler(route)
	mux := http.NewServeMux()
	mux.HandleFunc("/body", func(w http.ResponseWriter, r *http.Request) {
		d.http.Add(1)
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %v", r.Proto, r.URL.RawQuery, b, err)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		d.http.Add(1)
		handler.ServeHTTP(w, r)
	})
	wrapped, err := d.rt.WrapListener(ln, route)
	if err != nil {
		t.Fatal(err)
	}
	d.srv = httptest.NewUnstartedServer(mux)
	d.srv.Listener.Close()
	d.srv.Listener = wrapped
	d.srv.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(d.log, nil), slog.LevelInfo)
	start(d.srv)
	return d
}

// switched fails unless c was answered 101.
func (c *client) switched() *http.Response {
	c.t.Helper()
	resp := c.response()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(resp.Body)
		c.t.Fatalf("answered %s: %s", resp.Status, b)
	}
	return resp
}

func TestAcceptorJoinsWithoutWakingTheObject(t *testing.T) {
	d := serveBothDoors(t, nil, newEcho, nil)
	c := d.raw(upgrade("/o/a"))
	resp := c.switched()
	if got := resp.Header.Get("Sec-WebSocket-Accept"); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Errorf("accepted with %q", got)
	}
	if s := d.rt.Stats(); s.Sockets != 1 || s.Constructed != 0 || s.ObjectsAsleep != 1 {
		t.Errorf("after the upgrade: %+v", s)
	}
	c.send("one")
	c.expect("text:one 1")
	d.hibernate()
	c.send("two")
	c.expect("text:two 1")
	c.close(1000, "")
	c.expect("close:1000 ", "eof")
	d.wasClaimed(1)
}

func TestAcceptorGivesTagsAttachmentProtocolAndHeader(t *testing.T) {
	script := &script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		text, _, err := hibernate.Attachment[string](ws)
		a.tell("%v %v %v", ws.Tags(), text, err)
		return nil
	}}
	d := serveBothDoors(t, nil, func(context.Context, *hibernate.State) (*actor, error) { return &actor{script: script}, nil }, nil)
	script.events = make(chan string, 1)
	d.play = script
	seen := make(chan string, 1)
	d.take(func(h *hibernate.Handshake) (hibernate.Join, error) {
		seen <- fmt.Sprintf("%s %s %v %v %q %v %v", h.Path(), h.Query().Get("q"), h.Host(), h.Header()["X-User"], h.PathValue("name"),
			h.RemoteAddr() != "", h.Context() != nil)
		return hibernate.Join{Object: d.ns.GetByName("a"), Tags: []string{"x", "y", "x"}, Attachment: "kept", Protocol: "chat",
			Header: http.Header{"X-Server": {"1"}, "Connection": {"close"}}, SkipServeHTTP: true}, nil
	})
	c := d.raw(upgrade("/o/%61%2F?q=%20b", "X-User: me", "Sec-WebSocket-Protocol: other, chat"))
	resp := c.switched()
	if resp.Header.Get("Sec-WebSocket-Protocol") != "chat" || resp.Header.Get("X-Server") != "1" || resp.Header.Get("Connection") != "Upgrade" {
		t.Errorf("answered %v", resp.Header)
	}
	if got, want := <-seen, `/o/a/  b x [me] "" true true`; got != want {
		t.Errorf("the route saw %s, want %s", got, want)
	}
	c.send("?")
	d.hear("[x y] kept <nil>")
	d.wasClaimed(1)
}

func TestAcceptorTakesWhatComesBehindTheHandshake(t *testing.T) {
	d := serveBothDoors(t, nil, newEcho, nil)
	head := []byte(strings.ReplaceAll(upgrade("/o/a"), "\n", "\r\n"))
	early := append(frame(true, ws.OpText, "early"), frame(true, ws.OpText, "two")...)
	for cut := range len(early) {
		c := d.raw("")
		c.write(append(bytes.Clone(head), early[:cut]...))
		c.switched()
		c.write(early[cut:])
		c.expect(fmt.Sprintf("text:early %d", 2*cut+1), fmt.Sprintf("text:two %d", 2*cut+2))
	}
	d.wasClaimed(int64(len(early)))
}

func TestAcceptorTakesHandshakesInPieces(t *testing.T) {
	d := serveBothDoors(t, nil, newEcho, nil)
	head := []byte(strings.ReplaceAll(upgrade("/o/a"), "\n", "\r\n"))
	for cut := 1; cut < len(head); cut++ {
		c := d.raw("")
		c.write(head[:cut])
		c.write(head[cut:])
		c.switched()
		c.drop()
	}
	c := d.raw("")
	for i := range head {
		c.write(head[i : i+1])
	}
	c.switched()
	c.send("x")
	c.expect("text:x 1")
	d.wasClaimed(int64(len(head)))
}

// What the acceptor does not claim is answered as if it were not there.
func TestRefusalsAreNetHTTPs(t *testing.T) {
	refuse := func(d *doorRig) {
		d.take(func(*hibernate.Handshake) (hibernate.Join, error) {
			return hibernate.Join{}, hibernate.Refuse(418, "short")
		})
	}
	for _, tt := range []struct {
		name   string
		prep   func(*doorRig)
		req    string
		status int
		text   string
	}{
		{"route", refuse, upgrade("/o/a"), 418, "short"},
		{"route panics", func(d *doorRig) { d.take(func(*hibernate.Handshake) (hibernate.Join, error) { panic("no") }) }, upgrade("/o/a"), 0, ""},
		{"origin", nil, upgrade("/o/a", "Origin: http://evil.example"), 403, "origin not allowed"},
		{"version", nil, strings.Replace(upgrade("/o/a"), "13", "12", 1), 426, "version 13"},
		{"key", nil, strings.Replace(upgrade("/o/a"), "dGhl", "d", 1), 400, "Sec-WebSocket-Key"},
		{"no connection header", nil, strings.Replace(upgrade("/o/a"), "Connection", "X", 1), 400, "Connection"},
		{"HTTP/1.0", nil, strings.Replace(upgrade("/o/a"), "/1.1", "/1.0", 1), 400, "HTTP/1.1"},
		{"no upgrade", nil, "GET /o/a HTTP/1.1\nHost: x\n\n", 426, "speaks WebSocket only"},
		{"no host", nil, strings.Replace(upgrade("/o/a"), "Host: x\n", "", 1), 400, "Host"},
		{"method", nil, strings.Replace(upgrade("/o/a"), "GET", "POST", 1), 405, "GET request"},
		{"name", nil, upgrade("/o/" + strings.Repeat("a", 1025)), 400, "name"},
		{"protocol", func(d *doorRig) {
			d.take(func(*hibernate.Handshake) (hibernate.Join, error) {
				return hibernate.Join{Object: d.ns.GetByName("a"), Protocol: "chat"}, nil
			})
		}, upgrade("/o/a"), 400, "was not offered"},
		{"not a path", nil, upgrade("/o/%zz"), 400, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := serveBothDoors(t, nil, newEcho, nil)
			if tt.prep != nil {
				tt.prep(d)
			}
			c := d.raw(tt.req)
			if tt.status == 0 {
				c.conn.SetReadDeadline(time.Now().Add(patience))
				if b, err := io.ReadAll(c.br); len(b) > 0 || err != nil {
					t.Fatalf("answered %q, %v", b, err)
				}
				return
			}
			resp := c.response()
			b, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.status || !strings.Contains(string(b), tt.text) {
				t.Errorf("answered %s %q, want %d %q", resp.Status, b, tt.status, tt.text)
			}
			if s := d.rt.Stats(); s.Sockets != 0 || s.Constructed != 0 || s.ObjectsAsleep != 0 {
				t.Errorf("it left %+v", s)
			}
		})
	}
}

// TestJoinThatCannotBeIsTheServersMistake: the client is told nothing of it, the log once.
func TestJoinThatCannotBeIsTheServersMistake(t *testing.T) {
	for _, tt := range []struct {
		name   string
		join   func(ns, other *hibernate.Namespace) hibernate.Join
		logged string
	}{
		{"attachment that cannot be encoded", func(ns, _ *hibernate.Namespace) hibernate.Join {
			return hibernate.Join{Object: ns.GetByName("a"), Attachment: func() {}}
		}, "attachment: cbor: unsupported type"},
		{"attachment too large", func(ns, _ *hibernate.Namespace) hibernate.Join {
			return hibernate.Join{Object: ns.GetByName("a"), Attachment: make([]byte, 16<<10)}
		}, "attachment bytes: 16387 is over the limit of 16384"},
		{"too many tags", func(ns, _ *hibernate.Namespace) hibernate.Join {
			return hibernate.Join{Object: ns.GetByName("a"), Tags: strings.Split("0123456789a", "")}
		}, "tags of one WebSocket: 11 is over the limit of 10"},
		{"tag too long", func(ns, _ *hibernate.Namespace) hibernate.Join {
			return hibernate.Join{Object: ns.GetByName("a"), Tags: []string{strings.Repeat("t", 257)}}
		}, "tag bytes: 257 is over the limit of 256"},
		{"tag not UTF-8", func(ns, _ *hibernate.Namespace) hibernate.Join {
			return hibernate.Join{Object: ns.GetByName("a"), Tags: []string{"\xff"}}
		}, "is not UTF-8"},
		{"header", func(ns, _ *hibernate.Namespace) hibernate.Join {
			return hibernate.Join{Object: ns.GetByName("a"), Header: http.Header{"A": {"b\nc"}}}
		}, "handshake cannot be answered"},
		{"no object", func(_, _ *hibernate.Namespace) hibernate.Join { return hibernate.Join{} }, "zero Stub"},
		{"object of another class", func(ns, other *hibernate.Namespace) hibernate.Join {
			return hibernate.Join{Object: ns.Get(other.IDFromName("a"))}
		}, "is not of class"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := serveBothDoors(t, nil, newEcho, nil)
			other, err := hibernate.Register(d.rt, "other", newEcho, nil)
			if err != nil {
				t.Fatal(err)
			}
			d.take(func(*hibernate.Handshake) (hibernate.Join, error) { return tt.join(d.ns, other), nil })
			resp := d.raw(upgrade("/o/a")).response()
			b, _ := io.ReadAll(resp.Body)
			if got := string(b); resp.StatusCode != 500 || got != "Internal Server Error\n" {
				t.Errorf("answered %s %q", resp.Status, got)
			}
			if log := d.log.String(); strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, tt.logged) {
				t.Errorf("want %q in the log, once:\n%s", tt.logged, log)
			}
			if s := d.rt.Stats(); s.Sockets != 0 || s.Constructed != 0 || s.ObjectsAsleep != 0 {
				t.Errorf("it left %+v", s)
			}
		})
	}
}

func TestLimitOfSocketsIsAnsweredByNetHTTP(t *testing.T) {
	d := serveBothDoors(t, &hibernate.Options{Limits: hibernate.Limits{SocketsPerObject: 1}}, newEcho, nil)
	first := d.raw(upgrade("/o/a"))
	first.switched()
	d.raw(upgrade("/o/b")).switched()
	d.wasClaimed(2)
	if resp := d.raw(upgrade("/o/a")).response(); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("answered %s", resp.Status)
	}
}

func TestCheckOriginSeesTheRequest(t *testing.T) {
	got := make(chan string, 10)
	d := serveBothDoors(t, nil, newEcho, &hibernate.ClassOptions{CheckOrigin: func(r *http.Request) bool {
		got <- fmt.Sprint(r.Host, r.URL, r.Header["Origin"], r.RemoteAddr != "")
		return r.Header.Get("Origin") == "http://good.example"
	}})
	d.raw(upgrade("/o/a?b", "Origin: http://good.example")).switched()
	if g, w := <-got, "x/o/a?b [http://good.example] true"; g != w {
		t.Errorf("saw %s, want %s", g, w)
	}
	d.wasClaimed(1)
	if resp := d.raw(upgrade("/o/a", "Origin: http://x")).response(); resp.StatusCode != http.StatusForbidden {
		t.Errorf("answered %s", resp.Status)
	}
}

func TestClassWithServeHTTPIsAskedThere(t *testing.T) {
	var skip atomic.Bool
	script := &script{}
	d := serveBothDoors(t, nil, func(_ context.Context, s *hibernate.State) (*actor, error) {
		script.made.Add(1)
		return &actor{script: script, state: s}, nil
	}, nil)
	d.play = script
	d.take(func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: d.ns.GetByName("a"), SkipServeHTTP: skip.Load()}, nil
	})
	skip.Store(true)
	d.raw(upgrade("/o/a")).switched()
	d.instances(0)
	d.wasClaimed(1)
	skip.Store(false)
	d.raw(upgrade("/o/a")).switched()
	d.instances(1)
	if d.http.Load() == 0 {
		t.Error("net/http was passed over")
	}
}

// first are the beginnings of connections that are not claimed.
func first() map[string]string {
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	return map[string]string{
		"get":                    crlf("GET /body?x HTTP/1.1\nHost: x\n\n"),
		"post":                   crlf("POST /body HTTP/1.1\nHost: x\nContent-Length: 100000\n\n") + strings.Repeat("b", 100000),
		"pipelined":              crlf("GET /body?1 HTTP/1.1\nHost: x\n\nGET /body?2 HTTP/1.1\nHost: x\n\n"),
		"tls":                    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"http2":                  crlf("PRI * HTTP/2.0\n\nSM\n\n") + "\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"one byte":               "X",
		"bare lf":                "GET / HTTP/1.1\nHost: x\n\n",
		"long head":              crlf("GET / HTTP/1.1\nHost: x\nA: ") + strings.Repeat("a", 100<<10),
		"handshake with a fault": crlf(strings.Replace(upgrade("/o/a"), "13", "8", 1)) + "\x81\x80abcd",
		"handshake to nowhere":   crlf(upgrade("/elsewhere")) + "\x81\x80abcd",
	}
}

func TestWhatIsNotClaimedKeepsItsBytes(t *testing.T) {
	r := newRig(t, "", nil)
	for _, network := range []string{"tcp", "unix"} {
		addr := "127.0.0.1:0"
		if network == "unix" {
			addr = filepath.Join(t.TempDir(), "s")
		}
		inner, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := r.rt.WrapListener(inner, func(*hibernate.Handshake) (hibernate.Join, error) { return hibernate.Join{}, errors.New("no") })
		if err != nil {
			t.Fatal(err)
		}
		if ln.Addr().String() != inner.Addr().String() {
			t.Errorf("listens on %v, want %v", ln.Addr(), inner.Addr())
		}
		for name, bytes := range first() {
			for _, cut := range []int{0, 1, 3, 4, 10, len(bytes) - 1} {
				t.Run(fmt.Sprintf("%s/%s/%d", network, name, cut), func(t *testing.T) {
					cut = min(cut, len(bytes))
					client, err := net.Dial(network, ln.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer client.Close()
					go func() {
						io.WriteString(client, bytes[:cut])
						io.WriteString(client, bytes[cut:])
						client.(interface{ CloseWrite() error }).CloseWrite()
					}()
					nc, err := ln.Accept()
					if err != nil {
						t.Fatal(err)
					}
					defer nc.Close()
					nc.SetDeadline(time.Now().Add(patience))
					got, err := io.ReadAll(nc)
					if err != nil || string(got) != bytes {
						t.Fatalf("read %d bytes %.100q, %v; want %d %.100q", len(got), got, err, len(bytes), bytes)
					}
					if network == "tcp" && nc.RemoteAddr().String() != client.LocalAddr().String() {
						t.Errorf("from %v, want %v", nc.RemoteAddr(), client.LocalAddr())
					}
					io.Copy(nc, io.LimitReader(strings.NewReader("answer"), 6))
					nc.(interface{ CloseWrite() error }).CloseWrite()
					if b, err := io.ReadAll(client); err != nil || string(b) != "answer" {
						t.Errorf("answered %q, %v", b, err)
					}
				})
			}
		}
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestNetHTTPServesBehindTheAcceptor(t *testing.T) {
	d := serveBothDoors(t, nil, newEcho, nil)
	for range 3 {
		resp, err := d.srv.Client().Post(d.srv.URL+"/body", "text/plain", strings.NewReader(strings.Repeat("b", 70000)))
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != "HTTP/1.1  "+strings.Repeat("b", 70000)+" <nil>" {
			t.Fatalf("answered %.100q", b)
		}
		resp.Body.Close()
	}
	c := d.raw("GET /body?1 HTTP/1.1\nHost: x\n\nGET /body?2 HTTP/1.1\nHost: x\n\n")
	for i := range 2 {
		if b, _ := io.ReadAll(c.response().Body); string(b) != fmt.Sprintf("HTTP/1.1 %d  <nil>", i+1) {
			t.Fatalf("answered %q", b)
		}
	}
}

// The second request of a connection is net/http's, and so is its upgrade; its
// early frames are in the acceptor's bytes, in net/http's buffer, or on the way.
func TestUpgradeBehindAnotherRequest(t *testing.T) {
	d := serveBothDoors(t, nil, newEcho, nil)
	second := []byte(strings.ReplaceAll(upgrade("/o/a"), "\n", "\r\n"))
	for i, pad := range []int{0, 1, 4000, 4095, 4096, 5000, 9000} {
		head := strings.ReplaceAll("GET /body HTTP/1.1\nHost: x\nA: "+strings.Repeat("a", pad)+"\n\n", "\n", "\r\n")
		c := d.raw("")
		b := append([]byte(head), second...)
		b = append(b, frame(true, ws.OpText, strings.Repeat("e", 100))...)
		b = append(b, frame(true, ws.OpText, "two")...)
		c.write(b)
		if got, _ := io.ReadAll(c.response().Body); string(got) != "HTTP/1.1   <nil>" {
			t.Fatalf("answered %q", got)
		}
		c.switched()
		c.expect(fmt.Sprintf("text:%s %d", strings.Repeat("e", 100), 3*i+1), fmt.Sprintf("text:two %d", 3*i+2))
		c.send("three")
		c.expect(fmt.Sprintf("text:three %d", 3*i+3))
	}
}

func TestTLSOnAWrappedListener(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		d := serveBothDoorsAt(t, ln, nil, newEcho, nil, func(s *httptest.Server) { s.EnableHTTP2 = h2; s.StartTLS() })
		resp, err := d.srv.Client().Post(d.srv.URL+"/body", "text/plain", strings.NewReader("b"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := map[bool]string{false: "HTTP/1.1  b <nil>", true: "HTTP/2.0  b <nil>"}[h2]; string(b) != want {
			t.Errorf("answered %q, want %q", b, want)
		}
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, _, err := (&ws.Dialer{}).Upgrade(conn, &url.URL{Scheme: "ws", Host: "x", Path: "/o/a"}); err != nil {
			t.Error(err)
		}
	}
}

func TestClosingTheListenerLeavesWebSockets(t *testing.T) {
	d := serveBothDoors(t, nil, newEcho, nil)
	c := d.raw(upgrade("/o/a"))
	c.switched()
	silent, half := d.raw(""), d.raw("GET / HTTP/1.1\n")
	d.settled(2)
	ended := make(chan error, 1)
	go func() { _, err := d.srv.Listener.Accept(); ended <- err }()
	if err := d.srv.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept ended with %v", err)
	}
	if err := d.srv.Listener.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if _, err := d.srv.Listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if acceptor { // else they are net/http's
		silent.ended()
		half.ended()
	}
	c.send("x")
	c.expect("text:x 1")
}

func TestServerShutdownClosesTheDoor(t *testing.T) {
	d := serveBothDoors(t, nil, newEcho, nil)
	c := d.raw(upgrade("/o/a"))
	c.switched()
	addr := d.srv.Listener.Addr().String()
	if err := d.srv.Config.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	d.until("nobody to be accepted", func() bool { // a callback of the poller may still hold the listener
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	go d.rt.Shutdown(context.Background())
	if got := c.next(); !strings.HasPrefix(got, "close:1001") {
		t.Errorf("received %q", got)
	}
	c.close(1001, "")
	c.expect("eof")
}

func TestRuntimeCloseClosesTheDoor(t *testing.T) {
	for _, shutdown := range []bool{false, true} {
		r := newRig(t, "", nil)
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln, err := r.rt.WrapListener(inner, func(*hibernate.Handshake) (hibernate.Join, error) { return hibernate.Join{}, errors.New("no") })
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- http.Serve(ln, http.NotFoundHandler()) }()
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if shutdown {
			err = r.rt.Shutdown(context.Background())
		} else {
			err = r.rt.Close()
		}
		if err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve ended with %v", err)
		}
		if _, err := r.rt.WrapListener(inner, func(*hibernate.Handshake) (hibernate.Join, error) { return hibernate.Join{}, nil }); !errors.Is(err, hibernate.ErrUnavailable) {
			t.Errorf("wrapped again: %v", err)
		}
	}
}

func TestOtherListenersPassThrough(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := serveBothDoorsAt(t, struct{ net.Listener }{ln}, nil, newEcho, nil, (*httptest.Server).Start)
	c := d.raw(upgrade("/o/a"))
	c.switched()
	c.send("x")
	c.expect("text:x 1")
	if n := d.http.Load(); n != 1 {
		t.Errorf("net/http got %d requests", n)
	}
	if _, err := d.rt.WrapListener(nil, nil); !errors.Is(err, hibernate.ErrInvalid) {
		t.Errorf("nil: %v", err)
	}
}

// ended fails unless the connection ends without an answer.
func (c *client) ended() {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(patience))
	var ne net.Error
	b, err := io.ReadAll(c.br) // a reset if something was unread
	if len(b) > 0 || errors.As(err, &ne) && ne.Timeout() {
		c.t.Fatalf("read %q, %v", b, err)
	}
}
