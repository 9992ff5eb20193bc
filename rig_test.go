package hibernate_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/leak"
)

// TestMain lets the test binary be the clients of a benchmark.
func TestMain(m *testing.M) {
	if spec := os.Getenv("HOLD_CONNECTIONS"); spec != "" {
		holdConnections(spec)
		return
	}
	leak.Main(m, leak.Dead()...)
}

// patience is how long a test waits for what must happen. It only guards against
// hanging: a busy machine may not let a goroutine run for seconds.
const patience = 30 * time.Second

// epoch is where fake clocks begin.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A rig is a runtime with a fake clock behind an HTTP server.
type rig struct {
	t     *testing.T
	rt    *hibernate.Runtime
	clock *alarm.Fake
	srv   *httptest.Server
	ns    *hibernate.Namespace
	play  *script // the class's behaviour, if it is one of actors
	log   *logbook
}

func newRig(t *testing.T, dir string, o *hibernate.Options) *rig {
	t.Helper()
	return newRigAt(t, dir, o, epoch)
}

// newRigAt is newRig with the clock standing at now.
func newRigAt(t *testing.T, dir string, o *hibernate.Options, now time.Time) *rig {
	t.Helper()
	if o == nil {
		o = &hibernate.Options{}
	}
	r := &rig{t: t, clock: alarm.NewFake(now), log: &logbook{}}
	o.Clock = r.clock
	if o.ShutdownSpread == 0 {
		o.ShutdownSpread = -1
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(r.log, nil))
	}
	rt, err := hibernate.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	r.rt = rt
	r.guard()
	t.Cleanup(r.shut)
	return r
}

// guard ends the process if the test, its cleanup included, hangs somewhere that has no limit of its own.
func (r *rig) guard() {
	if os.Getenv("HIBERNATE_SLOW") != "" {
		return
	}
	timer := time.AfterFunc(4*patience, func() { hangs(r.t.Name()) })
	r.t.Cleanup(func() { timer.Stop() })
}

// hangs ends the process and shows all goroutines.
func hangs(what string) {
	debug.SetTraceback("all")
	panic(what + " hangs")
}

// shut closes the server and the runtime. A second call does nothing.
func (r *rig) shut() {
	if r.srv != nil {
		r.srv.CloseClientConnections()
		r.srv.Close()
		r.srv = nil
	}
	if err := r.rt.Close(); err != nil && r.rt.Err() == nil {
		r.t.Errorf("close: %v", err)
	}
}

// serve registers a class and serves it below /o/{name}.
func serve[T any](r *rig, construct func(context.Context, *hibernate.State) (T, error), o *hibernate.ClassOptions) {
	r.t.Helper()
	ns, err := hibernate.Register(r.rt, "Test", construct, o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.ns = ns
	mux := http.NewServeMux()
	mux.Handle("/o/{name}", ns.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: ns.GetByName(h.PathValue("name")), Tags: h.Query()["tag"]}, nil
	}))
	r.srv = httptest.NewUnstartedServer(mux)
	r.srv.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(r.log, nil), slog.LevelInfo)
	r.srv.Start()
}

// A script is what the instances of a class of actors do. Its functions are
// set before the class is registered; nil ones do nothing, except that http
// accepts upgrades with the tags of the query.
type script struct {
	construct func(ctx context.Context, a *actor) error
	http      func(a *actor, w http.ResponseWriter, q *http.Request)
	message   func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error
	close     func(ctx context.Context, a *actor, ws hibernate.WebSocket, e hibernate.CloseEvent) error
	fail      func(ctx context.Context, a *actor, ws hibernate.WebSocket, err error) error
	drain     func(ctx context.Context, a *actor, ws hibernate.WebSocket) error
	alarm     func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error

	made   atomic.Int64
	events chan string // what tell was called with

	mu    sync.Mutex // guards the following
	lines map[int]func(context.Context, *actor) error
	count int
}

// An actor is an instance that follows a script.
type actor struct {
	*script
	state *hibernate.State
	n     int64 // 1 for the first instance made, 2 for the second …
}

// act registers a class of actors.
func (r *rig) act(s *script, o *hibernate.ClassOptions) {
	r.t.Helper()
	s.events = make(chan string, 1<<16)
	s.lines = make(map[int]func(context.Context, *actor) error)
	r.play = s
	serve(r, func(ctx context.Context, st *hibernate.State) (*actor, error) {
		a := &actor{script: s, state: st, n: s.made.Add(1)}
		if s.construct != nil {
			return a, s.construct(ctx, a)
		}
		return a, nil
	}, o)
}

// tell records something that a test awaits with rig.hear.
func (a *actor) tell(format string, args ...any) { a.events <- fmt.Sprintf(format, args...) }

func (a *actor) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if a.script.http != nil {
		a.script.http(a, w, q)
		return
	}
	_, _ = a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Tags: q.URL.Query()["tag"]})
}

// acceptAnd is a script's http that accepts with the tags of the query and
// then calls f.
func acceptAnd(t *testing.T, f func(ctx context.Context, a *actor, ws hibernate.WebSocket)) func(*actor, http.ResponseWriter, *http.Request) {
	return func(a *actor, w http.ResponseWriter, q *http.Request) {
		ws, err := a.state.AcceptWebSocket(w, q, &hibernate.AcceptOptions{Tags: q.URL.Query()["tag"]})
		if err != nil {
			t.Error(err)
			return
		}
		f(q.Context(), a, ws)
	}
}

func (a *actor) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	if a.message == nil {
		return nil
	}
	return a.message(ctx, a, ws, m)
}

func (a *actor) WebSocketClose(ctx context.Context, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
	if a.close == nil {
		return nil
	}
	return a.close(ctx, a, ws, e)
}

func (a *actor) WebSocketError(ctx context.Context, ws hibernate.WebSocket, err error) error {
	if a.fail == nil {
		return nil
	}
	return a.fail(ctx, a, ws, err)
}

func (a *actor) WebSocketDrain(ctx context.Context, ws hibernate.WebSocket) error {
	if a.drain == nil {
		return nil
	}
	return a.drain(ctx, a, ws)
}

func (a *actor) Alarm(ctx context.Context, i hibernate.AlarmInfo) error {
	if a.script.alarm == nil {
		return nil
	}
	return a.script.alarm(ctx, a, i)
}

// line runs a function of the test in a turn of an actor.
var line = hibernate.NewMethod("line", func(a *actor, ctx context.Context, n int) (int, error) {
	a.mu.Lock()
	f := a.lines[n]
	delete(a.lines, n)
	a.mu.Unlock()
	return n, f(ctx, a)
})

// in runs f in a turn of the object and returns its error once that is
// durable. f must not end the test: it is on another goroutine.
func (r *rig) in(name string, f func(ctx context.Context, a *actor) error) error {
	_, err := line.Call(context.Background(), r.ns.GetByName(name), r.next(f))
	return err
}

// next is the argument of line that runs f.
func (r *rig) next(f func(ctx context.Context, a *actor) error) int {
	r.play.mu.Lock()
	defer r.play.mu.Unlock()
	r.play.count++
	r.play.lines[r.play.count] = f
	return r.play.count
}

// must is in, where an error ends the test.
func (r *rig) must(name string, f func(ctx context.Context, a *actor) error) {
	r.t.Helper()
	if err := r.in(name, f); err != nil {
		r.t.Fatal(err)
	}
}

// turn waits until an empty turn of the object has run, which is behind all
// that waited for it.
func (r *rig) turn(name string) {
	r.t.Helper()
	r.must(name, func(context.Context, *actor) error { return nil })
}

// hear waits for what actors tell, in order.
func (r *rig) hear(want ...string) {
	r.t.Helper()
	for i, w := range want {
		select {
		case got := <-r.play.events:
			if got != w {
				r.t.Fatalf("heard %q, want %q (%d of %d)", got, w, i+1, len(want))
			}
		case <-time.After(patience):
			r.t.Fatalf("heard nothing for %v, want %q (%d of %d); log:\n%s", patience, w, i+1, len(want), r.log)
		}
	}
}

// silent fails if actors have told more than was heard.
func (r *rig) silent() {
	r.t.Helper()
	select {
	case got := <-r.play.events:
		r.t.Fatalf("heard %q, want nothing", got)
	default:
	}
}

// instances fails unless exactly n instances were made so far.
func (r *rig) instances(n int64) {
	r.t.Helper()
	if got := r.play.made.Load(); got != n {
		r.t.Fatalf("%d instances were made, want %d; log:\n%s", got, n, r.log)
	}
}

// pass moves the clock by d, once nothing is under way. So it does not run ahead of
// what happens meanwhile, however long that takes on a busy machine.
func (r *rig) pass(d time.Duration) {
	r.t.Helper()
	r.until("quiet", r.rt.Quiet)
	r.clock.Advance(d)
	r.until("quiet", r.rt.Quiet)
}

// hibernate moves the clock past the idle time and waits until nothing is in
// memory.
func (r *rig) hibernate() {
	r.t.Helper()
	r.until("objects to settle", func() bool {
		r.pass(11 * time.Second)
		return r.rt.Stats().ObjectsInMemory == 0
	})
}

// evict drops the object's instance without moving the clock.
func (r *rig) evict(name string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.rt.Evict(ctx, r.ns.IDFromName(name)); err != nil {
		r.t.Fatal(err)
	}
}

// inspect looks at the object.
func (r *rig) inspect(name string) hibernate.Inspection {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	in, err := r.rt.Inspect(ctx, r.ns.IDFromName(name))
	if err != nil {
		r.t.Fatal(err)
	}
	return in
}

// until polls for something that no event announces.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited %v for %s; stats %+v", patience, what, r.rt.Stats())
		}
		time.Sleep(time.Millisecond) // the thing waited for is in another goroutine's hands
	}
}

// awakeAndAsleep runs a scenario twice: pause hibernates everything in the
// second run and does nothing in the first.
func awakeAndAsleep(t *testing.T, f func(t *testing.T, pause func(*rig))) {
	t.Run("awake", func(t *testing.T) { f(t, func(*rig) {}) })
	t.Run("asleep", func(t *testing.T) { f(t, func(r *rig) { r.t.Helper(); r.hibernate() }) })
}

// A client is one WebSocket seen from outside.
type client struct {
	t    *testing.T
	conn net.Conn
	br   *bufio.Reader

	deflated bool // compression was negotiated
}

func (r *rig) dial(path string) *client {
	r.t.Helper()
	c, err := r.dialer(path, ws.Dialer{})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) dialer(path string, d ws.Dialer) (*client, error) {
	d.Timeout = patience
	conn, br, _, err := d.Dial(context.Background(), "ws"+strings.TrimPrefix(r.srv.URL, "http")+path)
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { conn.Close() })
	if br == nil {
		br = bufio.NewReader(conn)
	}
	return &client{t: r.t, conn: conn, br: br}, nil
}

// raw is a TCP connection to the server on which req was sent, with the lines
// of it ended as HTTP wants.
func (r *rig) raw(req string) *client {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.srv.Listener.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	c := &client{t: r.t, conn: conn, br: bufio.NewReader(conn)}
	c.write([]byte(strings.ReplaceAll(req, "\n", "\r\n")))
	return c
}

// upgrade is the head of a handshake for path; more are further header lines.
func upgrade(path string, more ...string) string {
	h := "GET " + path + " HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: websocket\n" +
		"Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"
	for _, m := range more {
		h += m + "\n"
	}
	return h + "\n"
}

// response reads the head of an HTTP response.
func (c *client) response() *http.Response {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

func (c *client) write(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) send(text string) {
	c.t.Helper()
	if err := wsutil.WriteClientText(c.conn, []byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) sendBinary(b []byte) {
	c.t.Helper()
	if err := wsutil.WriteClientBinary(c.conn, b); err != nil {
		c.t.Fatal(err)
	}
}

// frame is one masked client frame.
func frame(fin bool, op ws.OpCode, payload string) []byte {
	f := ws.NewFrame(op, fin, []byte(payload))
	b, err := ws.CompileFrame(ws.MaskFrame(f))
	if err != nil {
		panic(err)
	}
	return b
}

func (c *client) frame(fin bool, op ws.OpCode, payload string) {
	c.t.Helper()
	c.write(frame(fin, op, payload))
}

func (c *client) ping(payload string) {
	c.t.Helper()
	c.frame(true, ws.OpPing, payload)
}

func (c *client) close(code int, reason string) {
	c.t.Helper()
	c.frame(true, ws.OpClose, string(ws.NewCloseFrameBody(ws.StatusCode(code), reason)))
}

// drop ends the connection without a Close frame.
func (c *client) drop() { c.conn.Close() }

// reset ends the connection with a TCP reset.
func (c *client) reset() {
	c.conn.(*net.TCPConn).SetLinger(0)
	c.conn.Close()
}

// halfClose ends what the client sends, without a Close frame.
func (c *client) halfClose() { c.conn.(*net.TCPConn).CloseWrite() }

// next is the next thing received: "text:…", "bin:…", "close:code reason", "pong:…", "eof";
// with a "z" in front what came compressed.
func (c *client) next() string {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(patience))
	f, err := ws.ReadFrame(c.br)
	if err != nil {
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			c.t.Fatalf("nothing came in %v", patience)
		}
		if err == io.ErrUnexpectedEOF {
			c.t.Fatal("the connection ended inside a frame")
		}
		return "eof"
	}
	if c.deflated && f.Header.Rsv == 4 && f.Header.OpCode.IsData() {
		c.t.Helper()
		f.Header.Rsv = 0
		return "z" + describe(c.t, f.Header, inflate(c.t, f.Payload))
	}
	return describe(c.t, f.Header, f.Payload)
}

func describe(t *testing.T, h ws.Header, payload []byte) string {
	t.Helper()
	if h.Masked || !h.Fin || h.Rsv != 0 {
		t.Fatalf("a server frame came as %+v", h)
	}
	switch h.OpCode {
	case ws.OpText:
		return "text:" + string(payload)
	case ws.OpBinary:
		return "bin:" + string(payload)
	case ws.OpPong:
		return "pong:" + string(payload)
	case ws.OpClose:
		code, reason := ws.ParseCloseFrameData(payload)
		if len(payload) == 0 {
			code = 1005
		}
		return fmt.Sprintf("close:%d %s", code, reason)
	}
	return fmt.Sprintf("op %d", h.OpCode)
}

func (c *client) expect(want ...string) {
	c.t.Helper()
	for i, w := range want {
		if got := c.next(); got != w {
			c.t.Fatalf("received %.200q, want %.200q (%d of %d)", got, w, i+1, len(want))
		}
	}
}

// A logbook keeps what was logged.
type logbook struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// limit is the *LimitError in err as "limit got/max", or err as it is.
func limit(err error) string {
	var l *hibernate.LimitError
	if errors.As(err, &l) {
		return fmt.Sprintf("%s %d/%d", l.Limit, l.Got, l.Max)
	}
	return fmt.Sprint(err)
}
