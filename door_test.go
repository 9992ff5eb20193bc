package hibernate_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// get is a plain request's status and body.
func (r *rig) get(path string) string {
	r.t.Helper()
	return r.do(http.MethodGet, path, nil)
}

func (r *rig) do(method, path string, body io.Reader) string {
	r.t.Helper()
	q, err := http.NewRequest(method, r.srv.URL+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := r.srv.Client().Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, strings.TrimSpace(string(b)))
}

// TestHandshakeIsChecked before anybody is woken, with and without ServeHTTP.
func TestHandshakeIsChecked(t *testing.T) {
	without := func(line string) string { return strings.Replace(upgrade("/o/a"), line+"\n", "", 1) }
	for _, kind := range []string{"ServeHTTP", "none"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, "", nil)
			if kind == "none" {
				serve(r, newEcho, nil)
			} else {
				r.act(&script{}, nil)
			}
			for _, tc := range []struct {
				name, req string
				status    int
			}{
				{"good", upgrade("/o/a"), 101},
				{"same origin", upgrade("/o/a", "Origin: http://x"), 101},
				{"foreign origin", upgrade("/o/a", "Origin: http://evil.example"), 403},
				{"longest name", upgrade("/o/" + strings.Repeat("n", 1024)), 101},
				{"name too long", upgrade("/o/" + strings.Repeat("n", 1025)), 400},
				{"no version", without("Sec-WebSocket-Version: 13"), 400},
				{"other version", strings.Replace(upgrade("/o/a"), "13", "8", 1), 426},
				{"no key", without("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400},
				{"short key", strings.Replace(upgrade("/o/a"), "dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", 1), 400},
				{"POST", strings.Replace(upgrade("/o/a"), "GET", "POST", 1), 0},
			} {
				c := r.raw(tc.req)
				resp := c.response()
				if tc.status == 0 && resp.StatusCode >= 400 {
					continue
				}
				if resp.StatusCode != tc.status {
					t.Errorf("%s: status %s", tc.name, resp.Status)
				}
				if tc.status == 101 && resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
					t.Errorf("%s: header %v", tc.name, resp.Header)
				}
				if tc.status == 426 && resp.Header.Get("Sec-WebSocket-Version") != "13" {
					t.Errorf("%s: header %v", tc.name, resp.Header)
				}
				if tc.status >= 400 {
					if b, _ := io.ReadAll(resp.Body); len(b) == 0 {
						t.Errorf("%s: no text", tc.name)
					}
				}
				c.drop()
			}
		})
	}
}

// TestPlainRequestToAClassWithoutServeHTTPIs426, with a text, waking nobody.
func TestPlainRequestToAClassWithoutServeHTTPIs426(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, nil)
	if got := r.get("/o/a"); !strings.HasPrefix(got, "426 ") || len(got) < 10 {
		t.Errorf("got %q", got)
	}
	if n := r.rt.Stats().Constructed; n != 0 {
		t.Errorf("%d instances", n)
	}
}

// TestCheckOriginWidens, and is asked only about upgrades.
func TestCheckOriginWidens(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, &hibernate.ClassOptions{CheckOrigin: func(q *http.Request) bool {
		return q.Header.Get("Origin") == "http://friend.example"
	}})
	for origin, want := range map[string]int{"http://friend.example": 101, "http://x": 403} {
		if got := r.raw(upgrade("/o/a", "Origin: "+origin)).response().StatusCode; got != want {
			t.Errorf("origin %s: status %d", origin, got)
		}
	}
}

// TestHeadersGoWithThe101, the subprotocol among them (semantics 1.12).
func TestHeadersGoWithThe101(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{http: func(a *actor, w http.ResponseWriter, q *http.Request) {
		w.Header().Set("X-Before", "1")
		_, err := a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Protocol: "not offered"})
		if !errors.Is(err, hibernate.ErrInvalid) {
			t.Errorf("a protocol that was not offered: %v", err)
		}
		if _, err := a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Protocol: "chat"}); err != nil {
			t.Error(err)
		}
		http.SetCookie(w, &http.Cookie{Name: "c", Value: "v"})
	}}, nil)
	resp := r.raw(upgrade("/o/a", "Sec-WebSocket-Protocol: other, chat")).response()
	h := resp.Header
	if resp.StatusCode != 101 || h.Get("Sec-WebSocket-Protocol") != "chat" || h.Get("X-Before") != "1" || h.Get("Set-Cookie") != "c=v" {
		t.Errorf("%s, %v", resp.Status, h)
	}
}

// TestJoinDecides tags, attachment, protocol and headers of a class without
// ServeHTTP, and Refuse the answer.
func TestJoinDecides(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newEcho, nil)
	mux := http.NewServeMux()
	mux.Handle("/{name}", r.ns.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		switch h.PathValue("name") {
		case "refused":
			return hibernate.Join{}, hibernate.Refuse(http.StatusTeapot, "short and stout")
		case "broken":
			return hibernate.Join{}, errors.New("secret")
		}
		return hibernate.Join{Object: r.ns.GetByName("x"), Tags: []string{"t"}, Attachment: "mine", Protocol: "chat", Header: http.Header{"X-Mine": {"1"}}}, nil
	}))
	r.srv.Config.Handler = mux
	for path, want := range map[string]int{"/refused": http.StatusTeapot, "/broken": 500} {
		resp := r.raw(upgrade(path)).response()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != want || strings.Contains(string(b), "secret") || path == "/refused" && !strings.Contains(string(b), "stout") {
			t.Errorf("%s: %s %q", path, resp.Status, b)
		}
	}
	resp := r.raw(upgrade("/joined", "Sec-WebSocket-Protocol: chat")).response()
	if resp.StatusCode != 101 || resp.Header.Get("X-Mine") != "1" || resp.Header.Get("Sec-WebSocket-Protocol") != "chat" {
		t.Errorf("%s, %v", resp.Status, resp.Header)
	}
	r.until("the socket", func() bool { return r.rt.Stats().Sockets == 1 })
	if n := r.rt.Stats().Constructed; n != 0 {
		t.Errorf("%d instances", n)
	}
}

// TestPipelinedFramesAreDecoded: what the client sends with its request is the
// socket's first input, through both kinds of class.
func TestPipelinedFramesAreDecoded(t *testing.T) {
	for _, kind := range []string{"ServeHTTP", "none"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, "", nil)
			if kind == "none" {
				serve(r, newEcho, nil)
			} else {
				s := echoing()
				s.message = func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
					a.count++
					return ws.SendText(ctx, fmt.Sprintf("%s %d", m.Text(), a.count))
				}
				r.act(s, nil)
			}
			head := []byte(strings.ReplaceAll(upgrade("/o/a"), "\n", "\r\n"))
			cut := frame(true, ws.OpText, "three")
			c := r.raw("")
			c.write(append(append(append(head, frame(true, ws.OpText, "one")...), frame(true, ws.OpText, "two")...), cut[:5]...))
			if resp := c.response(); resp.StatusCode != 101 {
				t.Fatal(resp.Status)
			}
			c.expect("text:one 1", "text:two 2")
			c.write(cut[5:])
			c.expect("text:three 3")
		})
	}
}

// TestAcceptIsTakenBack by another status, a panic or a failed constructor,
// without an event.
func TestAcceptIsTakenBack(t *testing.T) {
	for name, tc := range map[string]struct {
		end    func(w http.ResponseWriter)
		status int
	}{
		"status": {func(w http.ResponseWriter) { http.Error(w, "no", http.StatusTeapot) }, http.StatusTeapot},
		"panic":  {func(http.ResponseWriter) { panic("disliked") }, 500},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", nil)
			s := closing()
			s.http = acceptAnd(t, func(ctx context.Context, a *actor, ws hibernate.WebSocket) { _ = ws.SendText(ctx, "dropped") })
			accept := s.http
			s.http = func(a *actor, w http.ResponseWriter, q *http.Request) { accept(a, w, q); tc.end(w) }
			r.act(s, nil)
			if got := r.raw(upgrade("/o/a")).response().StatusCode; got != tc.status {
				t.Errorf("status %d", got)
			}
			r.gone("a")
			if n := r.rt.Stats().Sockets; n != 0 {
				t.Errorf("%d sockets", n)
			}
		})
	}
}

// TestServeHTTPAnswers after its turn, with errors through ErrorHandler.
func TestServeHTTPAnswers(t *testing.T) {
	for _, custom := range []bool{false, true} {
		t.Run(fmt.Sprintf("custom=%v", custom), func(t *testing.T) {
			o := &hibernate.ClassOptions{}
			if custom {
				o.ErrorHandler = func(w http.ResponseWriter, q *http.Request, err error) {
					var p *hibernate.PanicError
					kind := "other"
					switch {
					case errors.As(err, &p):
						kind = fmt.Sprint("panic ", p.Value)
					case errors.Is(err, hibernate.ErrReset):
						kind = "reset"
					case strings.Contains(limit(err), "/8"):
						kind = "limit"
					}
					http.Error(w, kind, http.StatusTeapot)
				}
			}
			r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{RequestBody: 8}})
			r.act(&script{
				construct: func(ctx context.Context, a *actor) error {
					if a.state.Name() == "unborn" {
						return errors.New("secret")
					}
					return nil
				},
				http: func(a *actor, w http.ResponseWriter, q *http.Request) {
					switch q.URL.RawQuery {
					case "panic":
						w.Header().Set("X-Gone", "1")
						io.WriteString(w, "half an answer")
						panic("disliked")
					case "abort":
						io.WriteString(w, "half an answer")
						_ = a.state.Abort(q.Context(), errors.New("enough"))
					default:
						b, err := io.ReadAll(q.Body)
						if err != nil {
							t.Error(err)
						}
						_ = hibernate.Await(q.Context(), nothing)
						w.WriteHeader(http.StatusAccepted)
						fmt.Fprintf(w, "got %s", b)
					}
				},
			}, o)
			for _, tc := range []struct{ path, body, plain, custom string }{
				{"/o/a", "12345678", "202 got 12345678", "202 got 12345678"},
				{"/o/a", "", "202 got", "202 got"},
				{"/o/a", "123456789", "413 Request Entity Too Large", "418 limit"},
				{"/o/a?panic", "", "500 Internal Server Error", "418 panic disliked"},
				{"/o/a?abort", "", "500 Internal Server Error", "418 reset"},
				{"/o/unborn", "", "500 Internal Server Error", "418 other"},
			} {
				want := tc.plain
				if custom {
					want = tc.custom
				}
				if got := r.do(http.MethodPost, tc.path, strings.NewReader(tc.body)); got != want {
					t.Errorf("%s: %q, want %q", tc.path, got, want)
				}
			}
		})
	}
}

// TestFlushStreams: what is flushed arrives while the handler goes on.
func TestFlushStreams(t *testing.T) {
	d := newDoor()
	r := newRig(t, t.TempDir(), nil)
	r.act(&script{http: func(a *actor, w http.ResponseWriter, q *http.Request) {
		put(t, q.Context(), a.state.Storage(), "k")
		io.WriteString(w, "one\n")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		_ = hibernate.Await(q.Context(), d.wait)
		io.WriteString(w, "two\n")
	}}, nil)
	resp, err := r.srv.Client().Get(r.srv.URL + "/o/a")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for _, want := range []string{"one\n", "two\n"} {
		if got, err := lines.ReadString('\n'); got != want || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		if want == "one\n" {
			<-d.at
			d.pass()
		}
	}
}

// TestFlushInsideATransactionIsErrState, as Sync is.
func TestFlushInsideATransactionIsErrState(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{http: func(a *actor, w http.ResponseWriter, q *http.Request) {
		if err := a.state.Storage().Transaction(q.Context(), func(ctx context.Context, tx *hibernate.Txn) error {
			put(t, ctx, tx, "k")
			if err := http.NewResponseController(w).Flush(); !errors.Is(err, hibernate.ErrState) {
				t.Errorf("flush: %v", err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		io.WriteString(w, "done")
	}}, nil)
	if got := r.get("/o/a"); got != "200 done" {
		t.Error(got)
	}
}

// TestClientThatLeavesTheQueueIsForgotten; one that leaves later does not cancel
// the turn.
func TestClientThatLeavesTheQueueIsForgotten(t *testing.T) {
	d := newDoor()
	r := newRig(t, "", nil)
	r.act(&script{http: func(a *actor, w http.ResponseWriter, q *http.Request) {
		if q.URL.RawQuery == "wait" {
			_ = d.wait(q.Context())
			if err := q.Context().Err(); err != nil {
				t.Errorf("the turn was cancelled: %v", err)
			}
		}
		a.tell("served %s", q.URL.RawQuery)
	}}, nil)
	ctx, leave := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	ask := func(ctx context.Context, query string) {
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, r.srv.URL+"/o/a?"+query, nil)
		if err != nil {
			t.Error(err)
		}
		resp, err := r.srv.Client().Do(q)
		if err == nil {
			resp.Body.Close()
		}
		ended <- err
	}
	go ask(ctx, "wait")
	<-d.at
	// Handed over by hand, so that it surely waits when its client leaves.
	served := make(chan bool)
	queued, leaveQueue := context.WithCancel(context.Background())
	go func() {
		q, _ := http.NewRequestWithContext(queued, http.MethodGet, "http://x/o/a?queued", nil)
		r.ns.GetByName("a").ServeHTTP(discard{}, q)
		close(served)
	}()
	leaveQueue()
	<-served
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the first ended with %v", err)
	}
	d.pass()
	r.hear("served wait")
	r.turn("a")
	r.silent()
}

// discard is a ResponseWriter nobody reads.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

type badMessage struct{}

func (badMessage) WebSocketMessage(ws hibernate.WebSocket, m hibernate.Message) error { return nil }

type badClose struct{}

func (*badClose) WebSocketClose(ctx context.Context, ws hibernate.WebSocket) {}

type badServe struct{}

func (*badServe) ServeHTTP(w http.ResponseWriter, q *http.Request) error { return nil }

type badAlarm struct{}

func (*badAlarm) Alarm(ctx context.Context) error { return nil }

type misspelt struct{}

func (*misspelt) WebsocketMessage(context.Context, hibernate.WebSocket, hibernate.Message) error {
	return nil
}

type onPointer struct{}

func (*onPointer) WebSocketMessage(context.Context, hibernate.WebSocket, hibernate.Message) error {
	return nil
}

func register[T any](rt *hibernate.Runtime, name string) error {
	_, err := hibernate.Register(rt, name, func(context.Context, *hibernate.State) (T, error) { var v T; return v, nil }, nil)
	return err
}

// TestRegisterRefuses methods with a handler's name and another signature, a
// value type whose handlers are the pointer's, a handler's name in another case, and
// names that cannot be.
func TestRegisterRefuses(t *testing.T) {
	r := newRig(t, "", nil)
	for method, err := range map[string]error{
		"WebSocketMessage": register[badMessage](r.rt, "m"),
		"WebSocketClose":   register[*badClose](r.rt, "c"),
		"ServeHTTP":        register[*badServe](r.rt, "s"),
		"Alarm":            register[*badAlarm](r.rt, "a"),
		"onPointer":        register[onPointer](r.rt, "p"),
		"WebsocketMessage": register[*misspelt](r.rt, "w"),
	} {
		if !errors.Is(err, hibernate.ErrInvalid) || !strings.Contains(err.Error(), method) {
			t.Errorf("%s: %v", method, err)
		}
	}
	for _, name := range []string{"", strings.Repeat("n", 256), "\xff"} {
		if err := register[*echo](r.rt, name); err == nil {
			t.Errorf("registered as %.10q", name)
		}
	}
	if err := register[*onPointer](r.rt, "fine"); err != nil {
		t.Error(err)
	}
	if err := register[*echo](r.rt, "fine"); err == nil || !strings.Contains(err.Error(), "fine") {
		t.Errorf("twice: %v", err)
	}
	if err := register[*echo](r.rt, strings.Repeat("n", 255)); err != nil {
		t.Error(err)
	}
}

// TestRouteErrorIsLogged, because the client is not told it. A refusal is an answer
// like any other.
func TestRouteErrorIsLogged(t *testing.T) {
	r := newRig(t, "", nil)
	for text, err := range map[string]error{
		"500 Internal Server Error": errors.New("no users table"),
		"403 not you":               hibernate.Refuse(http.StatusForbidden, "not you"),
	} {
		ns, bad := hibernate.Register(r.rt, text, newEcho, nil)
		if bad != nil {
			t.Fatal(bad)
		}
		w := httptest.NewRecorder()
		ns.Handler(func(*hibernate.Handshake) (hibernate.Join, error) { return hibernate.Join{}, err }).
			ServeHTTP(w, httptest.NewRequest("GET", "/rooms/garden", nil))
		if got := fmt.Sprintf("%d %s", w.Code, strings.TrimSpace(w.Body.String())); got != text {
			t.Errorf("answered %q, want %q", got, text)
		}
	}
	log := r.log.String()
	if want := `msg="route failed" class="500 Internal Server Error" path=/rooms/garden err="no users table"`; !strings.Contains(log, want) {
		t.Errorf("the log lacks %s:\n%s", want, log)
	}
	if strings.Contains(log, "not you") {
		t.Errorf("a refusal is in the log:\n%s", log)
	}
}

// TestOpenNamesItsDirectory in every error.
func TestOpenNamesItsDirectory(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	used := filepath.Join(base, "used")
	newRig(t, used, nil)
	for _, dir := range []string{file, filepath.Join(file, "below"), used} {
		rt, err := hibernate.Open(dir, nil)
		if err == nil {
			rt.Close()
			t.Errorf("%s opened", filepath.Base(dir))
		} else if !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", filepath.Base(dir), err)
		}
	}
	if _, err := hibernate.Open("", &hibernate.Options{IdleTimeout: -1}); err == nil {
		t.Error("opened with a negative idle time")
	}
	fresh := filepath.Join(base, "made", "as", "needed")
	r := newRig(t, fresh, nil)
	r.act(&script{}, nil)
	r.turn("a")
	r.shut()
	newRig(t, fresh, nil) // closed is closed
}

// TestOpenOfADirectoryThatIsNotOurs to read.
func TestOpenOfADirectoryThatIsNotOurs(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may read everything")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatal(err)
	}
	if rt, err := hibernate.Open(dir, nil); err == nil {
		rt.Close()
		t.Error("opened")
	} else if !strings.Contains(err.Error(), dir) {
		t.Error(err)
	}
}

// TestIDs come back from their strings and belong to their class.
func TestIDs(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	other, err := hibernate.Register(r.rt, "Other", newEcho, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := r.ns.IDFromName("a")
	u := r.ns.NewUniqueID()
	for _, id := range []hibernate.ID{a, u} {
		back, err := r.ns.IDFromString(id.String())
		if back != id || err != nil || len(id.String()) != 64 {
			t.Errorf("%v came back as %v, %v", id, back, err)
		}
		if _, err := other.IDFromString(id.String()); !errors.Is(err, hibernate.ErrInvalid) {
			t.Errorf("%v taken by another class: %v", id, err)
		}
	}
	if u == r.ns.NewUniqueID() || a == r.ns.IDFromName("b") || a == other.IDFromName("a") {
		t.Error("IDs of different objects are equal")
	}
	for _, bad := range []string{"", "x", a.String()[:63], a.String() + "0", strings.Repeat("z", 64), strings.Repeat("0", 64)} {
		if _, err := r.ns.IDFromString(bad); !errors.Is(err, hibernate.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if s := r.ns.GetByName("a"); s.ID() != a || s.Name() != "a" || s != r.ns.GetByName("a") {
		t.Errorf("stub %v %q", s.ID(), s.Name())
	}
	r.must("a", func(ctx context.Context, a *actor) error { put(t, ctx, a.state.Storage(), "k"); return nil })
	r.evict("a")
	b, err := r.ns.IDFromString(a.String())
	if err != nil {
		t.Fatal(err)
	}
	ask := hibernate.NewMethod("name", func(a *actor, ctx context.Context, _ int) (string, error) { return a.state.Name(), nil })
	if got, err := ask.Call(context.Background(), r.ns.Get(b), 0); got != "a" || err != nil {
		t.Errorf("found by ID it is named %q, %v", got, err)
	}
}

var update = flag.Bool("update", false, "rewrite golden files in testdata")

// TestGoldenIDs: the ID of a name is the same for ever.
func TestGoldenIDs(t *testing.T) {
	r := newRig(t, "", nil)
	got := map[string]map[string]string{}
	for _, class := range []string{"Room", "room", "Ünïcode class"} {
		ns, err := hibernate.Register(r.rt, class, newEcho, nil)
		if err != nil {
			t.Fatal(err)
		}
		got[class] = map[string]string{}
		for _, name := range []string{"", "a", "lobby", "é", "with\x00nul", strings.Repeat("long", 256)} {
			got[class][name] = ns.IDFromName(name).String()
		}
	}
	b, err := json.MarshalIndent(got, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "ids.json")
	if *update {
		if err := os.WriteFile(golden, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(want)) != string(b) {
		t.Errorf("IDs have changed, objects would not be found again:\n%s", b)
	}
}
