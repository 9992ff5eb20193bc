package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hibernate-go/hibernate"
)

// TestOriginIsCheckedAtBothDoors in the same way: only pages of the host itself.
func TestOriginIsCheckedAtBothDoors(t *testing.T) {
	plain := newRig(t, "", nil)
	serve(plain, newEcho, nil)
	door := serveBothDoors(t, nil, newEcho, nil)
	for _, tc := range []struct {
		host, origin string
		status       int
	}{
		{"example.com", "https://example.com", 101},
		{"example.com", "HTTPS://EXAMPLE.COM", 101},
		{"Example.com:443", "https://example.com", 101},
		{"example.com", "http://example.com:80", 101},
		{"[::1]:8080", "http://[::1]:8080", 101},
		{"[::1]", "https://[::1]:443", 101},
		{"example.com", "null", 403},
		{"example.com", "", 403},
		{"example.com", "example.com", 403},
		{"example.com:8080", "http://example.com", 403},
		{"example.com", "http://example.com:8080", 403},
		{"example.com", "http://example.com:443", 403},
		{"example.com", "ws://example.com", 403},
		{"example.com", "https://example.com.evil.example", 403},
		{"example.com", "https://example.com@evil.example", 403},
		{"example.com", "https://example.com\nOrigin: https://example.com", 403},
		{"[::1]:8080", "http://[::2]:8080", 403},
		{"xn--bcher-kva.example", "https://bücher.example", 403},
	} {
		request := strings.Replace(upgrade("/o/a", "Origin: "+tc.origin), "Host: x", "Host: "+tc.host, 1)
		for name, r := range map[string]*rig{"http": plain, "acceptor": door.rig} {
			c := r.raw(request)
			if resp := c.response(); resp.StatusCode != tc.status {
				t.Errorf("%s: a page of %q opens %q: %s", name, tc.origin, tc.host, resp.Status)
			}
			c.drop()
		}
	}
}

// TestNoHeaderIsInjectedAtEitherDoor: by what a route or a handler takes from its
// client and gives back.
func TestNoHeaderIsInjectedAtEitherDoor(t *testing.T) {
	evil := []string{"a\r\nX-Injected: 1", "a\nX-Injected: 1", "a\r\n\r\nbody", "a\x00", "a\rX-Injected: 1", "a\x7f"}
	type answer struct {
		header   http.Header
		protocol string
	}
	var now atomic.Pointer[answer]
	plain := newRig(t, "", nil)
	plain.act(&script{http: func(a *actor, w http.ResponseWriter, q *http.Request) {
		for n, v := range now.Load().header {
			w.Header()[n] = v
		}
		if _, err := a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Protocol: now.Load().protocol}); err != nil {
			http.Error(w, "not accepted", http.StatusBadRequest)
		}
	}}, nil)
	door := serveBothDoors(t, nil, newEcho, nil)
	door.take(func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: door.ns.GetByName("a"), Header: now.Load().header, Protocol: now.Load().protocol}, nil
	})
	try := func(what string) {
		for name, r := range map[string]*rig{"http": plain, "acceptor": door.rig} {
			c := r.raw(upgrade("/o/a", "Sec-WebSocket-Protocol: a, b"))
			resp := c.response()
			if resp.StatusCode == http.StatusSwitchingProtocols || resp.Header.Get("X-Injected") != "" {
				t.Errorf("%s: %s is answered %s, %v", name, what, resp.Status, resp.Header)
			}
			if b, err := io.ReadAll(resp.Body); err == nil && strings.ContainsAny(strings.TrimSuffix(string(b), "\n"), "\r\n") {
				t.Errorf("%s: %s is answered with the body %q", name, what, b)
			}
			c.drop()
		}
	}
	for _, e := range evil {
		now.Store(&answer{header: http.Header{"X-A": {e}}})
		try(fmt.Sprintf("value %q", e))
		now.Store(&answer{header: http.Header{e: {"v"}}})
		try(fmt.Sprintf("name %q", e))
		now.Store(&answer{protocol: e})
		try(fmt.Sprintf("subprotocol %q", e))
	}
}

// TestLogsEscapeWhatUsersGive: names, paths, reasons and panics' values stay in
// their line.
func TestLogsEscapeWhatUsersGive(t *testing.T) {
	const evil = "x\nlevel=ERROR msg=\"forged\"\r\x1b[31m\u2028"
	r := newRig(t, "", nil)
	r.act(&script{
		construct: func(_ context.Context, a *actor) error {
			if a.state.Name() == "fails"+evil {
				return errors.New("constructor " + evil)
			}
			return nil
		},
		message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
			switch m.Text() {
			case "panic":
				panic(evil)
			case "work":
				return a.state.WaitUntil(ctx, evil, func(context.Context) { panic(evil) })
			case "abort":
				return a.state.Abort(ctx, errors.New(evil))
			}
			return errors.New(m.Text())
		},
		close: func(_ context.Context, _ *actor, _ hibernate.WebSocket, e hibernate.CloseEvent) error {
			return fmt.Errorf("closed with %s", e.Reason)
		},
	}, nil)
	path := func(name string) string {
		return "/o/" + strings.NewReplacer("\n", "%0A", "\r", "%0D", " ", "%20", "\"", "%22", "\x1b", "%1B", "[", "%5B", "\u2028", "%E2%80%A8", "=", "%3D").Replace(name)
	}
	r.raw(upgrade(path("fails" + evil))).response()
	for _, text := range []string{"error " + evil, "work", "panic"} {
		c := r.dial(path(evil))
		c.send(text)
		c.close(1000, "bye "+evil)
		c.expect("close:1000 ", "eof")
	}
	c := r.dial(path(evil))
	c.send("abort")
	c.expect("eof")
	r.must("b", func(context.Context, *actor) error { return nil })
	r.until("the log", func() bool {
		return strings.Count(r.log.String(), "forged") >= 7 && strings.Contains(r.log.String(), "WaitUntil")
	})
	for line := range strings.Lines(r.log.String()) {
		if !strings.HasPrefix(line, "time=") || strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\r\x1b\u2028") {
			t.Errorf("a line of the log is %q", line)
		}
	}
}

// TestIDsOfAnotherClassAreRefused everywhere an ID or a stub goes in.
func TestIDsOfAnotherClassAreRefused(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, nil)
	other, err := hibernate.Register(r.rt, "Other", newEcho, nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign := other.IDFromName("a")
	if foreign == r.ns.IDFromName("a") {
		t.Error("two classes share an ID")
	}
	if _, err := r.ns.IDFromString(foreign.String()); !errors.Is(err, hibernate.ErrInvalid) {
		t.Errorf("its string: %v", err)
	}
	for name, id := range map[string]hibernate.ID{"another class's": foreign, "nobody's": {}} {
		h := r.ns.Handler(func(*hibernate.Handshake) (hibernate.Join, error) {
			return hibernate.Join{Object: r.ns.Get(id)}, nil
		})
		w := newRecorder()
		req, _ := http.NewRequest("GET", "/", nil)
		h.ServeHTTP(w, req)
		if w.status < 400 {
			t.Errorf("%s: status %d", name, w.status)
		}
		if _, err := noEcho.Call(context.Background(), r.ns.Get(id), 0); !errors.Is(err, hibernate.ErrInvalid) {
			t.Errorf("%s: a call gives %v", name, err)
		}
	}
	if s := r.rt.Stats(); s.Constructed != 0 {
		t.Errorf("%d objects were constructed", s.Constructed)
	}
}

var noEcho = hibernate.NewMethod("noEcho", func(*echo, context.Context, int) (int, error) { return 0, nil })

// A recorder notes the status of an answer.
type recorder struct {
	discard
	status int
}

func newRecorder() *recorder { return &recorder{} }

func (w *recorder) WriteHeader(status int) { w.status = status }
