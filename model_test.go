package hibernate_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"pgregory.net/rapid"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/alarm"
)

// The model
//
// A script of random steps is played against three objects and four clients.
// Steps only begin things: nothing is waited for before a "settle", so that
// events meet at the objects in every order that the machine comes up with.
// The model therefore does not predict an order. It holds what was seen against
// each other:
//
//   - The journal. Every stretch of a turn appends one entry to a journal in the
//     object's storage, with a counter that it reads and writes. The journal is
//     the order in which the object says that things happened. Replaying it
//     gives every other key the object must hold.
//   - The deliveries. Every handler notes outside the object that it was called,
//     so that turns that were undone are seen too.
//   - The frames that each client received. A reply names its journal entry.
//
// A reply that was seen has its entry; an entry whose connection lived has its
// reply. A turn that was undone has neither. What may happen or not (a message
// that raced with a reset) is told by the window: all that was begun between
// two settles, and which objects were upset (a turn undone) or reset in it.

const (
	modelSlots = 4
	panicCode  = 4999 // a close code whose handler panics
)

var modelObjects = [...]string{"a", "b", "c"}

var errAsked = errors.New("asked to fail")

// A step is one line of a script.
type step struct {
	op    string
	slot  int // which client
	obj   int // which object
	kinds []string
	how   string
	n     int
}

// messageKinds are what a message can ask its handler for.
var messageKinds = []string{
	"plain", "plain", "plain", "binary", "big", "error", "panic", "panicclose", "txn",
	"await", "await", "awaitpanic", "call", "callpanic", "self", "pinned", "abort", "syncabort",
	"close", "alarm", "alarmerr", "alarmpanic",
}

func drawStep(t *rapid.T) step {
	return step{
		op: rapid.SampledFrom([]string{"connect", "send", "send", "send", "send", "send", "end", "release",
			"advance", "evict", "call", "http", "ping", "settle"}).Draw(t, "op"),
		slot:  rapid.IntRange(0, modelSlots-1).Draw(t, "slot"),
		obj:   rapid.IntRange(0, len(modelObjects)-1).Draw(t, "obj"),
		kinds: rapid.SliceOfN(rapid.SampledFrom(messageKinds), 1, 4).Draw(t, "kinds"),
		how:   rapid.SampledFrom([]string{"together", "apart", "dribble", "fragments"}).Draw(t, "how"),
		n:     rapid.IntRange(0, 999).Draw(t, "n"),
	}
}

// TestRandomHistoriesKeepThePromises is the model, with and without an eviction
// before every event.
func TestRandomHistoriesKeepThePromises(t *testing.T) {
	for _, evict := range []bool{false, true} {
		t.Run(fmt.Sprintf("evict=%v", evict), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				// A list of lists, because rapid's lists are short.
				steps := slices.Concat(rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(drawStep), 1, 8), 1, 12).Draw(rt, "steps")...)
				o := hibernate.ClassOptions{
					ManualCloseReply: rapid.Bool().Draw(rt, "manual close"),
					RollbackOnError:  rapid.Bool().Draw(rt, "rollback on error"),
				}
				playModel(t, rt, steps, o, evict)
			})
		})
	}
}

// A world is one run of a script: the runtime, and what was seen of it.
type world struct {
	t      *rapid.T
	rig    *rig
	opt    hibernate.ClassOptions
	evict  bool
	script []string
	calls  sync.WaitGroup // goroutines of call, http and evict steps

	slots   [modelSlots]*peer
	peers   []*peer // in the order they were dialled
	objects map[string]*modelObject
	asked   []*asked
	alarms  map[string]string // id → mode
	ids     int

	mu       sync.Mutex // guards the following, and the fields of others that say so
	changed  sync.Cond
	problems []string
	running  int                      // handlers
	holds    map[string]chan struct{} // what handlers in Await wait for
	order    []string                 // holds not released, oldest first
	busy     map[string]bool          // objects whose turn is taken
	away     map[string]int           // handlers that have given their turn up
}

// A modelObject is what the model knows of an object in the present window.
type modelObject struct {
	name      string
	upset     bool // some turn may be undone: handlers in Await may meet ErrReset
	resetting bool // it may be reset: its sockets may be cut
	blocked   bool // a handler may be in Await
	badAlarm  bool // an alarm that panics may be pending
}

// A peer is one client and its connection.
type peer struct {
	w    *world
	id   string
	obj  *modelObject
	conn net.Conn

	sent       []*modelMessage
	ended      string // how the client ended it; "" if it has not
	code       int    // of its Close
	opened     bool   // the 101 was read
	hazard     bool   // a reset may have met it while the client ended it
	cut        bool   // a reset cut it
	over       bool   // it has come to its end, and all is known
	closesSelf int    // the message that has the object close it, or -1
	settled    int    // messages of earlier windows

	// Guarded by world.mu.
	frames    []string
	eof       bool
	torn      bool     // inside a frame
	gone      bool     // nothing may be delivered any more
	delivered []string // "0", "1", … for messages, "close …", "error …"
}

// A modelMessage is one message that a client sent.
type modelMessage struct {
	seq  int
	kind string
	arg  string
	pad  int

	certain bool // no turn of the object was undone meanwhile
	tell    bool // the connection was there until all was done
}

// asked is a call or request of the script's own.
type asked struct {
	id   string
	what string
	path []string
	mode string

	done   bool // guarded by world.mu, like the following
	result string

	checked bool
	upset   bool // an object that waited was upset meanwhile
}

// undone reports whether the message's turn leaves no trace.
func (w *world) undone(kind string) bool {
	switch kind {
	case "panic", "panicclose", "abort":
		return true
	case "error":
		return w.opt.RollbackOnError
	}
	return false
}

// posts reports whether a message has a second stretch that leaves a trace.
func posts(kind string) bool {
	switch kind {
	case "await", "call", "callpanic", "self", "pinned":
		return true
	}
	return false
}

func (w *world) problem(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
	w.changed.Broadcast()
}

func (w *world) say(format string, args ...any) {
	w.script = append(w.script, fmt.Sprintf(format, args...))
}

// fatal ends the run and shows the script.
func (w *world) fatal(format string, args ...any) {
	w.mu.Lock()
	var b strings.Builder
	fmt.Fprintf(&b, format, args...)
	fmt.Fprintf(&b, "\nevict every turn %v, manual close %v, rollback on error %v; script:\n  %s",
		w.evict, w.opt.ManualCloseReply, w.opt.RollbackOnError, strings.Join(w.script, "\n  "))
	for _, p := range w.peers {
		fmt.Fprintf(&b, "\n%s at %s: delivered %q, received %s, end of stream %v", p.id, p.obj.name, p.delivered, brief(p.frames), p.eof)
	}
	w.mu.Unlock()
	w.t.Fatal(b.String())
}

func brief(frames []string) string {
	var b strings.Builder
	for _, f := range frames {
		fmt.Fprintf(&b, " %.40q", f)
	}
	return b.String()
}

func (w *world) check() {
	w.mu.Lock()
	problems := w.problems
	w.mu.Unlock()
	if len(problems) > 0 {
		w.fatal("%s", strings.Join(problems, "\n"))
	}
}

// wait waits until ok, which is called under the lock.
func (w *world) wait(what string, ok func() bool) {
	expired := false
	timer := time.AfterFunc(patience, func() {
		w.mu.Lock()
		expired = true
		w.changed.Broadcast()
		w.mu.Unlock()
	})
	defer timer.Stop()
	w.mu.Lock()
	for !ok() && !expired && len(w.problems) == 0 {
		w.changed.Wait()
	}
	good := ok()
	w.mu.Unlock()
	w.check()
	if !good {
		stacks := make([]byte, 1<<18)
		stacks = stacks[:runtime.Stack(stacks, true)]
		w.fatal("waited %v for %s; stats %+v\n%s\n", patience, what, w.rig.rt.Stats(), stacks)
	}
}

// A subject is an instance of the model's class.
type subject struct {
	w     *world
	state *hibernate.State
	turns int
}

func (s *subject) name() string { return s.state.Name() }

// enter begins a handler: nobody else may be in a turn of the object.
func (s *subject) enter(what string) {
	w, o := s.w, s.name()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running++
	if w.busy[o] {
		w.problems = append(w.problems, fmt.Sprintf("%s of %s began inside another turn", what, o))
	}
	w.busy[o] = true
	if w.evict && s.turns > 0 && w.away[o] == 0 {
		w.problems = append(w.problems, fmt.Sprintf("%s of %s met an instance that had %d turns", what, o, s.turns))
	}
	s.turns++
}

func (s *subject) free() {
	s.w.mu.Lock()
	s.w.busy[s.name()] = false
	s.w.mu.Unlock()
}

// leave ends a handler, whose turn is gone if it met a reset.
func (s *subject) leave(ctx context.Context) {
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running--
	if ctx.Err() == nil {
		w.busy[s.name()] = false
	}
	w.changed.Broadcast()
}

// apart gives the turn up while f runs, unless it is pinned, and reports whether
// it came back.
func (s *subject) apart(ctx context.Context, pinned bool, f func() error) (bool, error) {
	w, o := s.w, s.name()
	w.mu.Lock()
	w.away[o]++
	w.busy[o] = pinned
	w.mu.Unlock()
	err := f()
	w.mu.Lock()
	w.away[o]--
	back := ctx.Err() == nil
	if back {
		if w.busy[o] && !pinned {
			w.problems = append(w.problems, "a handler of "+o+" came back from Await into another's turn")
		}
		w.busy[o] = true
	}
	w.mu.Unlock()
	if !back {
		if err == nil {
			w.problem("a handler of %s lost its instance in Await and was not told", o)
		}
		if err := hibernate.Put(ctx, s.state.Storage(), "late", 1); !errors.Is(err, hibernate.ErrReset) {
			w.problem("a put of a lost instance of %s: %v", o, err)
		}
	}
	return back, err
}

func (s *subject) must(err error) {
	if err != nil {
		s.w.problem("%s: %v", s.name(), err)
	}
}

// journal appends an entry and returns its number.
func (s *subject) journal(ctx context.Context, entry string) int {
	st := s.state.Storage()
	n, _, err := hibernate.Get[int](ctx, st, "n")
	s.must(err)
	source := "s/" + strings.Fields(entry)[0]
	of, _, err := hibernate.Get[int](ctx, st, source)
	s.must(err)
	s.must(hibernate.PutMany(ctx, st, map[string]int{"n": n + 1, source: of + 1}))
	s.must(hibernate.Put(ctx, st, fmt.Sprintf("j/%06d", n), entry))
	s.must(hibernate.Put(ctx, st, "last", entry))
	return n
}

// replay is what the storage must hold after a journal.
func replay(journal []string) map[string]string {
	m := map[string]string{}
	sources := map[string]int{}
	for i, e := range journal {
		f := strings.Fields(e)
		sources["s/"+f[0]]++
		m[fmt.Sprintf("j/%06d", i)] = e
		m["last"] = e
		if f[0] == "alarm" && f[1] == "set" {
			m["alarm"] = f[2]
		}
	}
	for k, n := range sources {
		m[k] = strconv.Itoa(n)
	}
	if len(journal) > 0 {
		m["n"] = strconv.Itoa(len(journal))
	}
	return m
}

// reply answers; a socket that was closed meanwhile is no fault.
func (s *subject) reply(ctx context.Context, ws hibernate.WebSocket, text string) {
	if err := ws.SendText(ctx, text); err != nil && !errors.Is(err, hibernate.ErrClosed) {
		s.w.problem("%s: send: %v", s.name(), err)
	}
}

func (s *subject) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	ctx, q := r.Context(), r.URL.Query()
	id := q.Get("id")
	s.enter("request " + id)
	defer s.leave(ctx)
	if r.Header.Get("Upgrade") != "" {
		sock, err := s.state.AcceptWebSocket(rw, r, &hibernate.AcceptOptions{Tags: []string{id, "all"}, Attachment: 0})
		s.must(err)
		s.must(sock.SendText(ctx, fmt.Sprint("open ", s.journal(ctx, id+" open"))))
		return
	}
	n := s.journal(ctx, id+" pre")
	fmt.Fprint(rw, n)
	switch q.Get("mode") {
	case "panic":
		panic(errAsked)
	case "abort":
		s.abort(ctx)
	case "await":
		if back, _ := s.apart(ctx, false, func() error { return s.hold(ctx, id) }); back {
			fmt.Fprint(rw, " ", s.journal(ctx, id+" post"))
		}
	}
}

// hold waits in Await until the script releases id.
func (s *subject) hold(ctx context.Context, id string) error {
	s.w.mu.Lock()
	ch := s.w.holds[id]
	s.w.mu.Unlock()
	return hibernate.Await(ctx, func(ctx context.Context) error {
		<-ch
		return nil
	})
}

func (s *subject) abort(ctx context.Context) {
	for _, sock := range s.state.WebSockets() {
		p := s.peer(sock)
		s.w.mu.Lock()
		p.gone = true
		s.w.mu.Unlock()
	}
	s.free() // the next turn may begin while Abort still runs
	s.must(s.state.Abort(ctx, errAsked))
	if err := hibernate.Put(ctx, s.state.Storage(), "late", 1); !errors.Is(err, hibernate.ErrReset) {
		s.w.problem("a put of %s after Abort: %v", s.name(), err)
	}
}

func (s *subject) setAlarm(ctx context.Context, id string, in time.Duration) time.Time {
	want := s.w.rig.clock.Now().Add(in)
	s.must(s.state.Storage().SetAlarm(ctx, want))
	s.must(hibernate.Put(ctx, s.state.Storage(), "alarm", id))
	at, ok, err := s.state.Storage().Alarm(ctx) // later, if the clock has passed it meanwhile
	s.must(err)
	if !ok || at.Before(want) {
		s.w.problem("%s: alarm %v, %v after it was set for %v", s.name(), at, ok, want)
	}
	return at
}

func (s *subject) delivered(p *peer, what string) {
	s.w.mu.Lock()
	if p.gone {
		s.w.problems = append(s.w.problems, fmt.Sprintf("%s: %s was delivered after a reset or its last event", p.id, what))
	}
	p.delivered = append(p.delivered, what)
	p.gone = what[0] > '9'
	s.w.changed.Broadcast()
	s.w.mu.Unlock()
}

func (s *subject) peer(sock hibernate.WebSocket) *peer {
	id := sock.Tags()[0]
	i, _ := strconv.Atoi(id[1:])
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.peers[i]
}

func (s *subject) WebSocketMessage(ctx context.Context, sock hibernate.WebSocket, m hibernate.Message) error {
	p := s.peer(sock)
	f := strings.Fields(string(m.Data))
	seq, kind, arg := f[0], f[1], f[2]
	id := p.id + "." + seq
	s.enter("message " + id)
	defer s.leave(ctx)
	s.delivered(p, seq)
	if (kind == "binary") != (m.Kind == hibernate.BinaryMessage) {
		s.w.problem("%s came as kind %d", id, m.Kind)
	}
	st := s.state.Storage()
	n := s.journal(ctx, p.id+" m "+seq)
	seen, ok, err := hibernate.Attachment[int](sock)
	s.must(err)
	if !ok {
		s.w.problem("%s has no attachment", id)
	}
	s.must(sock.SerializeAttachment(ctx, seen+1))
	re := fmt.Sprintf("re %s %d %d", seq, seen+1, n)
	if kind == "big" {
		if len(f) != 4 || len(f[3]) != p.pad(seq) || strings.Trim(f[3], "x") != "" {
			s.w.problem("%s arrived damaged", id)
		}
		re += " " + f[3]
	}
	s.reply(ctx, sock, re)
	post := func(what string) {
		s.reply(ctx, sock, fmt.Sprintf("post %s %d", seq, s.journal(ctx, p.id+" post "+seq+" "+what)))
	}
	switch kind {
	case "error":
		return errAsked
	case "panic":
		s.setAlarm(ctx, "never", time.Second)
		panic(errAsked)
	case "panicclose":
		s.must(sock.Close(ctx, 4002, "never"))
		panic(errAsked)
	case "txn":
		err := st.Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
			s.must(hibernate.Put(ctx, tx, "n", -1))
			s.must(hibernate.Put(ctx, st, "never", 1))
			s.must(tx.SetAlarm(ctx, epoch.Add(time.Hour)))
			return errAsked
		})
		if err != errAsked {
			s.w.problem("transaction: %v", err)
		}
	case "await":
		if back, err := s.apart(ctx, false, func() error { return s.hold(ctx, id) }); back {
			s.must(err)
			post("")
		}
	case "awaitpanic":
		if back, _ := s.apart(ctx, false, func() error { return s.hold(ctx, id) }); back {
			post("never")
			s.must(sock.Close(ctx, 4002, "never"))
			panic(errAsked)
		}
	case "call", "callpanic", "self", "pinned":
		e := errand{ID: id, Path: []string{arg}}
		if kind == "callpanic" {
			e.Mode = "panic"
		}
		if back, err := s.call(ctx, e, kind == "pinned"); back {
			post(class(err))
		}
	case "abort":
		s.abort(ctx)
	case "syncabort":
		s.must(st.Sync(ctx))
		s.abort(ctx)
	case "close":
		s.must(sock.Close(ctx, 4001, "object"))
	case "alarm", "alarmerr", "alarmpanic":
		ms, _ := strconv.Atoi(arg)
		at := s.setAlarm(ctx, id, time.Duration(ms)*time.Millisecond)
		s.journal(ctx, fmt.Sprintf("alarm set %s %d", id, at.UnixMilli()))
	}
	return nil
}

func (p *peer) pad(seq string) int {
	i, _ := strconv.Atoi(seq)
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.sent[i].pad
}

func (s *subject) WebSocketClose(ctx context.Context, sock hibernate.WebSocket, e hibernate.CloseEvent) error {
	p := s.peer(sock)
	s.enter("close of " + p.id)
	defer s.leave(ctx)
	seen, _, err := hibernate.Attachment[int](sock)
	s.must(err)
	n := s.journal(ctx, fmt.Sprintf("%s close", p.id))
	s.delivered(p, fmt.Sprintf("close %d %v %d %d", e.Code, e.WasClean, seen, sock.ReadyState()))
	if !slices.Contains(s.state.WebSockets(p.id), sock) {
		s.w.problem("%s is not listed in its own close handler", p.id)
	}
	if e.Code == panicCode {
		panic(errAsked)
	}
	if s.w.opt.ManualCloseReply {
		s.reply(ctx, sock, fmt.Sprint("bye ", n))
		if e.Code == 1005 || e.Code == 1006 {
			s.must(sock.CloseNoCode(ctx))
		} else {
			s.must(sock.Close(ctx, e.Code, ""))
		}
	}
	return nil
}

func (s *subject) WebSocketError(ctx context.Context, sock hibernate.WebSocket, err error) error {
	p := s.peer(sock)
	s.enter("error of " + p.id)
	defer s.leave(ctx)
	s.journal(ctx, p.id+" error")
	code := 0
	var violation *hibernate.ProtocolError
	if errors.As(err, &violation) {
		code = violation.CloseCode()
	}
	s.delivered(p, fmt.Sprint("error ", code))
	return errAsked
}

func (s *subject) Alarm(ctx context.Context, i hibernate.AlarmInfo) error {
	s.enter("alarm")
	defer s.leave(ctx)
	id, _, err := hibernate.Get[string](ctx, s.state.Storage(), "alarm")
	s.must(err)
	if now := s.w.rig.clock.Now(); now.Before(i.Scheduled) {
		s.w.problem("alarm %s of %v ran at %v", id, i.Scheduled, now)
	}
	s.w.mu.Lock()
	mode := s.w.alarms[id]
	s.w.mu.Unlock()
	s.journal(ctx, fmt.Sprintf("alarm run %s %d %d", id, i.Scheduled.UnixMilli(), i.RetryCount))
	if i.RetryCount == 0 {
		switch mode {
		case "alarmerr":
			return errAsked
		case "alarmpanic":
			panic(errAsked)
		}
	}
	return nil
}

// An errand is a chain of calls.
type errand struct {
	ID   string
	Path []string
	Mode string // what the last one does
}

func runErrand(ctx context.Context, to hibernate.Stub, e errand) error {
	_, err := hibernate.NewMethod("run", func(s *subject, ctx context.Context, e errand) (bool, error) {
		return true, s.run(ctx, e)
	}).Call(ctx, to, e)
	return err
}

func (s *subject) run(ctx context.Context, e errand) error {
	entry := fmt.Sprintf("%s at %d", e.ID, len(e.Path))
	s.enter("call " + entry)
	defer s.leave(ctx)
	s.journal(ctx, entry)
	if len(e.Path) > 0 {
		back, err := s.call(ctx, e, false)
		if back {
			s.journal(ctx, fmt.Sprintf("%s back %d %s", e.ID, len(e.Path), class(err)))
		}
		return err
	}
	switch e.Mode {
	case "error":
		return errAsked
	case "panic":
		panic(errAsked)
	case "abort":
		s.abort(ctx)
	}
	return nil
}

// call goes on with e at the next object.
func (s *subject) call(ctx context.Context, e errand, pinned bool) (back bool, err error) {
	next := s.w.rig.ns.GetByName(e.Path[0])
	e.Path = e.Path[1:]
	return s.apart(ctx, pinned, func() error {
		if !pinned {
			return runErrand(ctx, next, e)
		}
		return s.state.Storage().Transaction(ctx, func(ctx context.Context, _ *hibernate.Txn) error {
			return runErrand(ctx, next, e)
		})
	})
}

// class names an error of a call.
func class(err error) string {
	var p *hibernate.PanicError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &p):
		return "panic"
	case errors.Is(err, hibernate.ErrReset):
		return "reset"
	case errors.Is(err, hibernate.ErrReentrant):
		return "reentrant"
	case errors.Is(err, errAsked):
		return "error"
	}
	return err.Error()
}

// A portrait is an object as it sees itself.
type portrait struct {
	Storage map[string]string
	Alarm   bool
	Sockets []string // newest first, with their ready states
}

var look = hibernate.NewMethod("look", func(s *subject, ctx context.Context, _ int) (p portrait, err error) {
	s.enter("look")
	defer s.leave(ctx)
	p.Storage = map[string]string{}
	for e, err := range hibernate.List[any](ctx, s.state.Storage()) {
		s.must(err)
		p.Storage[e.Key] = fmt.Sprint(e.Value)
	}
	_, p.Alarm, err = s.state.Storage().Alarm(ctx)
	for _, sock := range s.state.WebSockets() {
		p.Sockets = append(p.Sockets, fmt.Sprintf("%s:%d", sock.Tags()[0], sock.ReadyState()))
	}
	return p, err
})

func (w *world) look(name string) portrait {
	p, err := look.Call(context.Background(), w.rig.ns.GetByName(name), 0)
	if err != nil {
		w.fatal("look at %s: %v", name, err)
	}
	w.check()
	return p
}

// playModel plays a script and holds the outcome against the model.
func playModel(t *testing.T, rt *rapid.T, steps []step, opt hibernate.ClassOptions, evict bool) {
	w := &world{
		t: rt, opt: opt, evict: evict,
		objects: map[string]*modelObject{}, alarms: map[string]string{}, holds: map[string]chan struct{}{},
		busy: map[string]bool{}, away: map[string]int{},
	}
	w.changed.L = &w.mu
	for _, name := range modelObjects {
		w.objects[name] = &modelObject{name: name}
	}
	r := &rig{t: t, clock: alarm.NewFake(epoch), log: &logbook{}}
	w.rig = r
	var err error
	r.rt, err = hibernate.Open("", &hibernate.Options{
		Clock: r.clock, EvictEveryTurn: evict, Logger: slog.New(slog.NewTextHandler(r.log, nil)),
		// The clock moves faster than bytes do.
		Limits: hibernate.Limits{MessageTime: time.Hour},
	})
	if err != nil {
		rt.Fatal(err)
	}
	o := opt
	o.CloseTimeout, o.ConstructTimeout = -1, -1
	serve(r, func(ctx context.Context, st *hibernate.State) (*subject, error) {
		s := &subject{w: w, state: st}
		return s, st.SetWebSocketAutoResponse(ctx, hibernate.AutoResponse{Request: "marco", Response: "polo"})
	}, &o)
	defer func() {
		w.mu.Lock()
		for _, ch := range w.order {
			close(w.holds[ch])
		}
		w.order = nil
		w.mu.Unlock()
		for _, p := range w.peers {
			if p.conn != nil {
				p.conn.Close()
			}
		}
		r.shut()
		w.calls.Wait()
	}()
	for _, s := range steps {
		w.do(s)
		w.check()
	}
	w.finish()
}

// do begins a step.
func (w *world) do(s step) {
	p := w.slots[s.slot]
	o := w.objects[modelObjects[s.obj]]
	switch s.op {
	case "connect":
		if p == nil {
			w.connect(s.slot, o, nil, "")
		}
	case "send":
		if p != nil {
			w.send(p, s.kinds, s)
		} else {
			w.connect(s.slot, o, s.kinds, s.how)
		}
	case "ping":
		if p != nil {
			w.say("%s: ping and auto-response", p.id)
			p.write(append(frame(true, ws.OpPing, "p"), frame(true, ws.OpText, "marco")...))
		}
	case "end":
		if p != nil {
			w.end(p, s.n)
		}
	case "release":
		w.release(s.n)
	case "advance":
		d := []time.Duration{time.Second, 5 * time.Second, 11 * time.Second, 40 * time.Second}[s.n%4]
		w.say("advance %v", d)
		for _, o := range w.objects {
			o.upset = o.upset || o.badAlarm
		}
		w.rig.clock.Advance(d)
	case "evict":
		w.say("evict %s", o.name)
		w.ask(&asked{what: "evict", path: []string{o.name}}, func() string {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := w.rig.rt.Evict(ctx, w.rig.ns.IDFromName(o.name)); err != nil {
				return err.Error()
			}
			return "ok"
		})
	case "call":
		w.call(s)
	case "http":
		w.request(o, []string{"ok", "panic", "abort", "await", "await"}[s.n%5])
	case "settle":
		w.settle()
	}
}

func (w *world) id(prefix string) string {
	w.ids++
	return fmt.Sprint(prefix, w.ids)
}

// ask runs f on a goroutine; settle waits for it.
func (w *world) ask(a *asked, f func() string) {
	w.asked = append(w.asked, a)
	w.calls.Go(func() {
		result := f()
		w.mu.Lock()
		a.done, a.result = true, result
		w.changed.Broadcast()
		w.mu.Unlock()
	})
}

// expect notes what a mode does to an object.
func (o *modelObject) expect(mode string) {
	switch mode {
	case "panic", "callpanic", "panicclose", "awaitpanic":
		o.upset = true
	case "abort", "syncabort":
		o.upset, o.resetting = true, true
	}
}

func (w *world) call(s step) {
	a := &asked{id: w.id("k"), what: "call", mode: []string{"ok", "ok", "error", "panic", "abort"}[s.n%5]}
	for i := range len(s.kinds) { // any length that comes to hand
		a.path = append(a.path, modelObjects[(s.obj+i*s.n/5)%len(modelObjects)])
	}
	w.say("call %s along %v, the last: %s", a.id, a.path, a.mode)
	for _, name := range a.path {
		w.objects[name].blocked = true
	}
	w.objects[a.path[len(a.path)-1]].expect(a.mode)
	e := errand{ID: a.id, Path: a.path[1:], Mode: a.mode}
	w.ask(a, func() string {
		return class(runErrand(context.Background(), w.rig.ns.GetByName(a.path[0]), e))
	})
}

func (w *world) request(o *modelObject, mode string) {
	a := &asked{id: w.id("h"), what: "http", path: []string{o.name}, mode: mode}
	w.say("request %s to %s: %s", a.id, o.name, mode)
	o.expect(mode)
	if mode == "await" {
		o.blocked = true
		w.newHold(a.id)
	}
	w.ask(a, func() string {
		resp, err := w.rig.srv.Client().Get(w.rig.srv.URL + "/o/" + o.name + "?id=" + a.id + "&mode=" + mode)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(resp.StatusCode, " ", strings.TrimSpace(string(body)))
	})
}

func (w *world) newHold(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holds[id] = make(chan struct{})
	w.order = append(w.order, id)
}

func (w *world) release(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.order) == 0 {
		return
	}
	i := n % len(w.order)
	w.say("release %s", w.order[i])
	close(w.holds[w.order[i]])
	w.order = slices.Delete(w.order, i, i+1)
}

// message makes the frames of the next message of p.
func (w *world) message(p *peer, kind string, n int, fragments bool) []byte {
	m := &modelMessage{seq: len(p.sent), kind: kind, arg: "-"}
	id := fmt.Sprintf("%s.%d", p.id, m.seq)
	p.obj.expect(kind)
	if kind == "error" && w.opt.RollbackOnError {
		p.obj.upset = true
	}
	switch kind {
	case "await", "awaitpanic":
		p.obj.blocked = true
		w.newHold(id)
	case "call", "callpanic", "self", "pinned":
		p.obj.blocked = true
		m.arg = modelObjects[n%len(modelObjects)]
		if kind == "self" {
			m.arg = p.obj.name
		}
		w.objects[m.arg].expect(kind)
	case "alarm", "alarmerr", "alarmpanic":
		m.arg = strconv.Itoa(n * 20) // up to 20 s
		p.obj.badAlarm = p.obj.badAlarm || w.alarmUndone(kind)
		p.obj.upset = p.obj.upset || w.alarmUndone(kind)
		w.mu.Lock()
		w.alarms[id] = kind
		w.mu.Unlock()
	case "close":
		if p.closesSelf < 0 {
			p.closesSelf = m.seq
		}
	}
	text := fmt.Sprintf("%d %s %s", m.seq, kind, m.arg)
	if kind == "big" {
		m.pad = 60_000 + 1000*(n%200)
		text += " " + strings.Repeat("x", m.pad)
	}
	w.mu.Lock()
	p.sent = append(p.sent, m)
	w.mu.Unlock()
	op := ws.OpText
	if kind == "binary" {
		op = ws.OpBinary
	}
	if !fragments {
		return frame(true, op, text)
	}
	cut := 1 + n%(len(text)-1)
	b := frame(false, op, text[:cut])
	b = append(b, frame(true, ws.OpPing, "inside")...)
	b = append(b, frame(false, ws.OpContinuation, "")...)
	return append(b, frame(true, ws.OpContinuation, text[cut:])...)
}

func (w *world) send(p *peer, kinds []string, s step) {
	w.say("%s: send %v from %d, %s", p.id, kinds, len(p.sent), s.how)
	var all []byte
	for i, k := range kinds {
		b := w.message(p, k, s.n+i, s.how == "fragments")
		switch {
		case s.how == "apart":
			p.write(b)
		case s.how == "dribble" && len(b) < 1000:
			for i := range b {
				p.write(b[i : i+1])
			}
		case s.how == "dribble":
			p.write(b)
		default:
			all = append(all, b...)
		}
	}
	p.write(all)
}

// write sends what the peer may no longer be there to take.
func (p *peer) write(b []byte) {
	if len(b) > 0 && p.conn != nil {
		p.conn.SetWriteDeadline(time.Now().Add(patience))
		if _, err := p.conn.Write(b); err != nil && errors.Is(err, context.DeadlineExceeded) {
			p.w.problem("%s: write: %v", p.id, err)
		}
	}
}

// connect dials, with early messages behind the request in one write.
func (w *world) connect(slot int, o *modelObject, early []string, how string) {
	p := &peer{w: w, obj: o, closesSelf: -1}
	w.mu.Lock()
	p.id = fmt.Sprint("p", len(w.peers))
	w.peers = append(w.peers, p)
	w.mu.Unlock()
	risky := o.resetting // before the early messages are counted in
	w.say("%s: connect to %s, early %v %s", p.id, o.name, early, how)
	b := []byte(strings.ReplaceAll(upgrade("/o/"+o.name+"?id="+p.id), "\n", "\r\n"))
	for i, k := range early {
		b = append(b, w.message(p, k, len(w.script)+i, how == "fragments")...)
	}
	conn, err := net.Dial("tcp", w.rig.srv.Listener.Addr().String())
	if err != nil {
		w.fatal("%s: %v", p.id, err)
	}
	p.conn = conn
	br := bufio.NewReader(conn)
	p.write(b)
	conn.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		if !risky && !slices.Contains(early, "abort") && !slices.Contains(early, "syncabort") {
			w.fatal("%s: answer %+v, %v", p.id, resp, err)
		}
		conn.Close()
		p.hazard, p.ended, p.over = true, "refused", true
		return
	}
	p.opened = true
	conn.SetReadDeadline(time.Time{})
	w.slots[slot] = p
	w.calls.Go(func() { p.read(br) })
}

// read takes frames until the stream ends.
func (p *peer) read(br *bufio.Reader) {
	w := p.w
	for {
		f, err := ws.ReadFrame(br)
		w.mu.Lock()
		if err != nil {
			p.eof, p.torn = true, err == io.ErrUnexpectedEOF
			w.changed.Broadcast()
			w.mu.Unlock()
			return
		}
		switch f.Header.OpCode {
		case ws.OpText:
			p.frames = append(p.frames, string(f.Payload))
		case ws.OpClose:
			code, reason := ws.ParseCloseFrameData(f.Payload)
			if len(f.Payload) == 0 {
				code = 1005
			}
			p.frames = append(p.frames, fmt.Sprintf("close %d %s", code, reason))
		case ws.OpPong:
		default:
			w.problems = append(w.problems, fmt.Sprintf("%s: frame %+v", p.id, f.Header))
		}
		w.changed.Broadcast()
		w.mu.Unlock()
	}
}

// end ends p's connection from the client's side.
func (w *world) end(p *peer, n int) {
	how := []string{"close", "close", "close", "half", "drop", "rst", "opcode", "toobig"}[n%8]
	for i, q := range w.slots {
		if q == p {
			w.slots[i] = nil
		}
	}
	p.ended = how
	if (how == "opcode" || how == "toobig") && w.opt.RollbackOnError {
		p.obj.upset = true
	}
	if how == "close" {
		p.code = []int{1000, 4000, 1005, panicCode}[n/8%4]
		if p.code == panicCode {
			p.obj.upset = true
		}
	}
	w.say("%s: %s %d", p.id, how, p.code)
	switch how {
	case "close":
		var body []byte
		if p.code != 1005 {
			body = ws.NewCloseFrameBody(ws.StatusCode(p.code), "client")
		}
		p.write(frame(true, ws.OpClose, string(body)))
	case "half":
		p.conn.(*net.TCPConn).CloseWrite()
	case "drop":
		p.conn.Close()
	case "rst":
		p.conn.(*net.TCPConn).SetLinger(0)
		p.conn.Close()
	case "opcode":
		p.write(frame(true, 3, "?"))
	case "toobig":
		f := frame(true, ws.OpBinary, strings.Repeat("x", 1<<20+1))
		p.write(f[:14]) // the header says it all
	}
}

// lastEvent is the close or error event of p, if it was delivered. The caller
// holds the lock.
func (p *peer) lastEvent() string {
	for _, d := range p.delivered {
		if d[0] > '9' {
			return d
		}
	}
	return ""
}

// settle waits for everything that was begun, and closes the window.
func (w *world) settle() {
	w.say("settle")
	for w.anyHold() {
		w.release(0)
	}
	w.wait("calls and requests", func() bool {
		return !slices.ContainsFunc(w.asked, func(a *asked) bool { return !a.done })
	})
	w.fence()
	for _, p := range w.peers {
		switch {
		case p.ended == "" || p.over:
		case p.obj.resetting: // then its last event may never come
			p.hazard = true
			w.rig.until(p.id+" to be gone", func() bool {
				return !strings.Contains(fmt.Sprint(w.look(p.obj.name).Sockets), p.id+":")
			})
		default:
			w.wait("the last event of "+p.id, func() bool { return p.lastEvent() != "" })
		}
	}
	w.wait("handlers", func() bool { return w.running == 0 })
	w.fence()
	for i, p := range w.slots {
		if p == nil {
			continue
		}
		w.mu.Lock()
		gone := p.eof
		w.mu.Unlock()
		if gone {
			p.cut, p.over = true, true
			p.conn.Close()
			w.slots[i] = nil
		} else if p.closesSelf >= 0 {
			w.wait(p.id+" to be closed", func() bool { return slices.Contains(p.frames, "close 4001 object") })
		}
	}
	for _, p := range w.peers {
		if p.ended == "" || p.over {
			continue
		}
		if p.whole() && p.answered() {
			w.wait(p.id+" to see the end of the stream", func() bool { return p.eof })
		}
		p.conn.Close()
		p.over = true
	}
	w.checkAsked()
	w.closeWindow()
}

// whole reports whether everything that the client sent arrived.
func (p *peer) whole() bool {
	if p.hazard || p.cut {
		return false
	}
	switch p.ended {
	case "", "close", "half", "opcode", "toobig":
		return true
	}
	return false
}

// answered reports whether the client's end was answered.
func (p *peer) answered() bool {
	return p.ended != "close" || p.code != panicCode || !p.w.opt.ManualCloseReply || p.closesSelf >= 0
}

// fence has every open connection answer a message, or end if it may.
func (w *world) fence() {
	for _, p := range w.slots {
		if p == nil {
			continue
		}
		p.write(w.message(p, "plain", 0, false))
		last := strconv.Itoa(len(p.sent) - 1)
		w.wait(p.id+" to answer message "+last, func() bool {
			switch {
			case p.eof && p.obj.resetting:
				return true
			case p.closesSelf >= 0:
				return slices.Contains(p.delivered, last)
			}
			return slices.ContainsFunc(p.frames, func(f string) bool { return strings.HasPrefix(f, "re "+last+" ") })
		})
	}
}

func (w *world) anyHold() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.order) > 0
}

// checkAsked holds the results of calls and requests against what was asked.
func (w *world) checkAsked() {
	for _, a := range w.asked {
		if a.checked {
			continue
		}
		a.checked = true
		for _, name := range a.path[:len(a.path)-1] {
			a.upset = a.upset || w.objects[name].upset
		}
		o := w.objects[a.path[0]]
		good := false
		switch a.what + " " + a.mode {
		case "evict ":
			good = a.result == "ok" || o.blocked && strings.Contains(a.result, "busy")
		case "http ok", "http await":
			good = strings.HasPrefix(a.result, "200 ") || a.mode == "await" && o.upset && strings.HasPrefix(a.result, "500 ")
		case "http panic", "http abort":
			good = strings.HasPrefix(a.result, "500 ")
		case "call abort":
			good = a.result == "reset" || a.upset && a.result == "panic"
		default:
			good = a.result == a.mode || a.upset && (a.result == "reset" || a.result == "panic")
		}
		if !good {
			w.fatal("%s %s: result %q", a.what, a.id, a.result)
		}
	}
}

// closeWindow checks what is listed, and notes what is certain now that
// everything begun in the window has come to its end.
func (w *world) closeWindow() {
	for _, o := range w.objects {
		var want []string
		for _, p := range slices.Backward(w.peers) {
			if p.obj != o || p.over || !p.opened {
				continue
			}
			state := 1
			if p.closesSelf >= 0 {
				state = 2
			}
			want = append(want, fmt.Sprintf("%s:%d", p.id, state))
		}
		now := w.look(o.name)
		if !slices.Equal(now.Sockets, want) {
			w.fatal("%s lists %v, want %v", o.name, now.Sockets, want)
		}
		for _, p := range w.peers {
			if p.obj != o {
				continue
			}
			for _, m := range p.sent[p.settled:] {
				m.certain = !o.upset || m.kind == "pinned"
				m.tell = p.ended == "" && !p.cut
			}
			p.settled = len(p.sent)
		}
		o.badAlarm = o.badAlarm && now.Alarm
	}
	for _, o := range w.objects {
		o.upset, o.resetting, o.blocked = o.badAlarm, false, false
	}
}

// finish ends everything and checks the whole history.
func (w *world) finish() {
	w.settle()
	for _, p := range w.slots {
		if p != nil {
			w.end(p, 0)
		}
	}
	w.settle()
	journals := map[string][]string{}
	storage := map[string]map[string]string{}
	for _, name := range modelObjects {
		var p portrait
		w.rig.until("alarms of "+name, func() bool {
			w.rig.clock.Advance(5 * time.Second)
			p = w.look(name)
			return !p.Alarm
		})
		for i := 0; ; i++ {
			e, ok := p.Storage[fmt.Sprintf("j/%06d", i)]
			if !ok {
				break
			}
			journals[name] = append(journals[name], e)
		}
		if want := replay(journals[name]); !maps.Equal(p.Storage, want) {
			w.fatal("%s holds\n%v\nand its journal makes\n%v", name, p.Storage, want)
		}
		storage[name] = p.Storage
	}
	w.verify(journals)
	w.rig.until("everything to leave memory", func() bool {
		w.rig.clock.Advance(11 * time.Second)
		s := w.rig.rt.Stats()
		return s.ObjectsInMemory == 0 && s.ObjectsAsleep == 0 && s.Sockets == 0
	})
	for _, name := range modelObjects {
		if p := w.look(name); !maps.Equal(p.Storage, storage[name]) {
			w.fatal("%s slept and holds\n%v\nwhere it held\n%v", name, p.Storage, storage[name])
		}
	}
}

// A tally is the journals with the entries ticked off.
type tally struct {
	w  *world
	at map[string]int // "object entry" → its number
}

// take ticks an entry off and reports its number, -1 if it is not there.
func (l *tally) take(o *modelObject, entry string, must, may bool) int {
	key := o.name + " " + strings.TrimSpace(entry)
	n, ok := l.at[key]
	switch {
	case ok && !may:
		l.w.fatal("the journal of %s has %q, which was undone or never asked for", o.name, entry)
	case !ok && must:
		l.w.fatal("the journal of %s lacks %q", o.name, entry)
	case !ok:
		return -1
	}
	delete(l.at, key)
	return n
}

// verify checks the whole history.
func (w *world) verify(journals map[string][]string) {
	w.mu.Lock()
	delivered := map[*peer][]string{} // nobody appends any more, but the race detector cannot know
	frames := map[*peer][]string{}
	for _, p := range w.peers {
		delivered[p], frames[p] = slices.Clone(p.delivered), slices.Clone(p.frames)
	}
	w.mu.Unlock()
	l := &tally{w: w, at: map[string]int{}}
	for name, j := range journals {
		for i, e := range j {
			if strings.HasPrefix(e, "alarm ") {
				continue
			}
			key := name + " " + strings.TrimSpace(e)
			if _, twice := l.at[key]; twice {
				w.fatal("the journal of %s has %q twice", name, e)
			}
			l.at[key] = i
		}
		w.verifyAlarms(name, j)
	}
	for _, p := range w.peers {
		w.verifyPeer(l, p, delivered[p], frames[p])
	}
	for _, a := range w.asked {
		w.verifyAsked(l, a)
	}
	if len(l.at) > 0 {
		w.fatal("journal entries that nobody asked for: %v", slices.Sorted(maps.Keys(l.at)))
	}
}

// verifyAlarms checks that each alarm ran at most once to its end, and the last
// one did.
func (w *world) verifyAlarms(name string, journal []string) {
	var id, at string
	good, tries := 0, 0
	over := func(last bool) {
		if id != "" && (good > 1 || last && good != 1) {
			w.fatal("alarm %s of %s came to its end %d times; journal %q", id, name, good, journal)
		}
	}
	for _, e := range journal {
		f := strings.Fields(e)
		if f[0] != "alarm" {
			continue
		}
		if f[1] == "set" {
			over(false)
			id, at, good, tries = f[2], f[3], 0, 0
			continue
		}
		retry := "0"
		switch {
		case w.alarms[id] == "alarmerr" && tries > 0, w.alarmUndone(w.alarms[id]):
			retry = "1"
		}
		tries++
		if f[2] != id || f[3] != at || f[4] != retry {
			w.fatal("%q after alarm %s (%s) was set for %s; journal of %s %q", e, id, w.alarms[id], at, name, journal)
		}
		if w.alarms[id] != "alarmerr" || retry == "1" {
			good++
		}
	}
	over(true)
}

// alarmUndone reports whether the first run of an alarm leaves no trace.
func (w *world) alarmUndone(mode string) bool {
	return mode == "alarmpanic" || mode == "alarmerr" && w.opt.RollbackOnError
}

func (w *world) verifyAsked(l *tally, a *asked) {
	first, last := w.objects[a.path[0]], w.objects[a.path[len(a.path)-1]]
	undone := a.mode == "panic" || a.mode == "abort"
	switch a.what {
	case "http":
		n := l.take(first, a.id+" pre", !undone, !undone)
		answered := strings.HasPrefix(a.result, "200 ")
		post := -1
		if a.mode == "await" {
			post = l.take(first, a.id+" post", answered, answered)
		}
		want := fmt.Sprint("200 ", n)
		if post >= 0 {
			want += fmt.Sprint(" ", post)
		}
		if answered && a.result != want {
			w.fatal("request %s was answered %q, want %q", a.id, a.result, want)
		}
	case "call":
		reached := true
		for i, name := range a.path {
			o, left := w.objects[name], len(a.path)-1-i
			if left == 0 {
				l.take(last, a.id+" at 0", reached && !undone && !a.upset, reached && !undone)
				break
			}
			reached = l.take(o, fmt.Sprintf("%s at %d", a.id, left), reached && !a.upset, reached) >= 0
			back := 0
			for _, c := range []string{"ok", "error", "panic", "reset"} {
				expected := c == a.mode || c == "reset" && a.mode == "abort"
				if l.take(o, fmt.Sprintf("%s back %d %s", a.id, left, c), expected && !a.upset, reached && (expected || a.upset)) >= 0 {
					back++
				}
			}
			if back > 1 {
				w.fatal("call %s came back to %s %d times", a.id, name, back)
			}
		}
	}
}

// verifyPeer checks the life of one connection.
func (w *world) verifyPeer(l *tally, p *peer, delivered, frames []string) {
	// Deliveries: the messages in order, then at most one last event.
	n := 0
	for n < len(delivered) && delivered[n] == strconv.Itoa(n) {
		n++
	}
	if n > len(p.sent) || p.whole() && n != len(p.sent) {
		w.fatal("%s: %d messages were sent, %d delivered", p.id, len(p.sent), n)
	}
	seen, closed := 0, false
	for _, m := range p.sent[:n] {
		if !w.undone(m.kind) {
			seen++
		}
		closed = closed || m.kind == "close"
	}
	w.verifyLast(l, p, delivered[n:], seen, closed)

	// Frames, sorted by what they are; each sort keeps its order.
	var re, post, rest []string
	for _, f := range frames {
		switch {
		case strings.HasPrefix(f, "re "):
			re = append(re, f)
		case strings.HasPrefix(f, "post "):
			post = append(post, f)
		case f == "polo":
		default:
			rest = append(rest, f)
		}
	}
	open := l.take(p.obj, p.id+" open", p.opened, true)
	if len(rest) > 0 && rest[0] == fmt.Sprint("open ", open) {
		rest = rest[1:]
	} else if p.opened && p.whole() {
		w.fatal("%s was not greeted", p.id)
	}
	w.verifyCloseFrames(p, rest, delivered[n:], closed)

	att, silent, lastEntry := 0, false, -1
	for i, m := range p.sent {
		entry := fmt.Sprintf("%s m %d", p.id, m.seq)
		happened := i < n && !w.undone(m.kind)
		if m.kind == "syncabort" {
			happened = i < n
		}
		at := l.take(p.obj, entry, happened, happened)
		if at >= 0 {
			if at <= lastEntry {
				w.fatal("%s: message %d came to the journal before the one before it", p.id, m.seq)
			}
			lastEntry = at
			att++
			want := fmt.Sprintf("re %d %d %d", m.seq, att, at)
			if m.pad > 0 {
				want += " " + strings.Repeat("x", m.pad)
			}
			switch {
			case len(re) > 0 && re[0] == want && !silent:
				re = re[1:]
			case p.complete() && !silent && (m.kind != "pinned" || i < len(p.sent)-1):
				// A turn that is held while it waits lets its peer's Close be
				// answered before what it sends has left.
				w.fatal("%s: no answer %.40q to message %d (next is %.40q)", p.id, want, m.seq, append(re, "none")[0])
			default:
				silent = true // the connection was lost or closed; nothing may follow
			}
		}
		if m.kind == "close" && i < n {
			silent = true
		}
		post = w.verifyPost(l, p, m, i < n, post)
	}
	if len(re)+len(post) > 0 {
		w.fatal("%s: unexpected frames %s", p.id, brief(append(re, post...)))
	}
	if n := l.take(p.obj, p.id+" error", false, p.ended == "opcode" || p.ended == "toobig"); n >= 0 && w.opt.RollbackOnError {
		w.fatal("%s: the error handler's turn was not undone", p.id)
	}
}

// complete reports whether everything that the object sent p has come.
func (p *peer) complete() bool { return p.ended == "close" && p.whole() && p.answered() }

// verifyPost checks what follows an Await or a call of message m.
func (w *world) verifyPost(l *tally, p *peer, m *modelMessage, arrived bool, post []string) []string {
	if !posts(m.kind) {
		return post
	}
	id := fmt.Sprintf("%s.%d", p.id, m.seq)
	certain := arrived && m.certain
	results := []string{""}
	switch m.kind {
	case "call", "self":
		results = []string{"ok"}
	case "callpanic":
		results = []string{"panic"}
	case "pinned":
		results = []string{"ok", "reentrant"}
		if m.arg == p.obj.name {
			results = []string{"reentrant"}
		}
	}
	at, got := -1, ""
	for _, r := range results {
		if n := l.take(p.obj, fmt.Sprintf("%s post %d %s", p.id, m.seq, r), certain && len(results) == 1, arrived && at < 0); n >= 0 {
			at, got = n, r
		}
	}
	if at < 0 && certain {
		w.fatal("%s: message %d never went on", p.id, m.seq)
	}
	switch m.kind {
	case "call", "self":
		l.take(w.objects[m.arg], id+" at 0", certain, arrived)
	case "pinned":
		l.take(w.objects[m.arg], id+" at 0", got == "ok", got == "ok" || !certain)
	}
	want := fmt.Sprintf("post %d %d", m.seq, at)
	i := slices.Index(post, want)
	if i < 0 {
		if at >= 0 && m.tell && p.closesSelf < 0 {
			w.fatal("%s: no %q", p.id, want)
		}
		return post
	}
	return slices.Delete(post, i, i+1)
}

// verifyLast checks the last event of p.
func (w *world) verifyLast(l *tally, p *peer, last []string, seen int, closed bool) {
	var want string
	may := true
	state := 2
	if closed || p.ended == "close" && !w.opt.ManualCloseReply {
		state = 3
	}
	switch {
	case p.cut, !p.opened && !p.hazard:
		may = false
	case p.ended == "close":
		want = fmt.Sprintf("close %d true %d %d", p.code, seen, state)
	case p.ended == "opcode":
		want = "error 1002"
	case p.ended == "toobig":
		want = "error 1009"
	default:
		want = fmt.Sprintf("close 1006 false %d %d", seen, state)
	}
	switch {
	case len(last) == 0 && (p.hazard || !may):
	case len(last) == 1 && may && last[0] == want:
	default:
		w.fatal("%s: after %d messages came %q, want %q (once: %v)", p.id, seen, last, want, may && !p.hazard)
	}
	if p.ended != "opcode" && p.ended != "toobig" {
		happened := len(last) == 1 && p.code != panicCode
		l.take(p.obj, p.id+" close", happened, happened)
	}
}

// verifyCloseFrames checks what p received besides answers.
func (w *world) verifyCloseFrames(p *peer, rest, last []string, closed bool) {
	var want []string
	switch {
	case closed:
		want = []string{"close 4001 object"}
	case p.ended == "close" && !p.answered():
	case p.ended == "close" && w.opt.ManualCloseReply:
		want = []string{"bye", fmt.Sprintf("close %d ", p.code)}
	case p.ended == "close":
		want = []string{fmt.Sprintf("close %d ", p.code)}
	case p.ended == "opcode":
		want = []string{"close 1002"}
	case p.ended == "toobig":
		want = []string{"close 1009"}
	}
	for i, f := range rest {
		if i >= len(want) || !strings.HasPrefix(f, want[i]) {
			w.fatal("%s received %q, want %q", p.id, rest, want)
		}
	}
	if len(rest) < len(want) && p.whole() && p.ended != "half" {
		w.fatal("%s received %q, want %q", p.id, rest, want)
	}
	if p.torn && (p.complete() || p.ended == "opcode" || p.ended == "toobig") && p.whole() {
		w.fatal("%s: the stream ended inside a frame", p.id)
	}
}
