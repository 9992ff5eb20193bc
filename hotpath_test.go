package hibernate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// together sends texts in one write, so that one read finds them.
func (c *client) together(texts ...string) {
	c.t.Helper()
	var all []byte
	for _, text := range texts {
		all = append(all, frame(true, ws.OpText, text)...)
	}
	c.write(all)
}

// A handler that keeps its ctx must not do anything with it ever after, in no turn of no object.
func TestLeakedCtxIsRefusedAThousandTurnsLater(t *testing.T) {
	r := newRig(t, "", nil)
	var mu sync.Mutex // guards the following
	var leaked context.Context
	var from hibernate.WebSocket
	var state *hibernate.State
	var reused atomic.Int32
	refused := func(who string, want error) {
		t.Helper()
		mu.Lock()
		leaked, from, state := leaked, from, state
		mu.Unlock()
		for what, use := range map[string]func() error{
			"Send":      func() error { return from.SendText(leaked, "leaked") },
			"Close":     func() error { return from.Close(leaked, 1000, "") },
			"Broadcast": func() error { _, err := state.Broadcast(leaked, hibernate.Text("leaked"), nil); return err },
			"Put":       func() error { return state.Storage().PutBytes(leaked, "k", []byte("leaked")) },
			"Attach":    func() error { return from.SerializeAttachment(leaked, "leaked") },
			"Await": func() error {
				return hibernate.Await(leaked, func(context.Context) error { t.Error("Await has run"); return nil })
			},
			"Sync":  func() error { return state.Storage().Sync(leaked) },
			"Abort": func() error { return state.Abort(leaked, errors.New("leaked")) },
		} {
			if err := use(); !errors.Is(err, want) {
				t.Errorf("%s with a leaked ctx %s: %v, want %v", what, who, err, want)
			}
		}
		if leaked.Err() == nil {
			t.Errorf("%s: the leaked ctx goes on", who)
		}
	}
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		mu.Lock()
		if m.Text() == "leak" {
			leaked, from, state = ctx, ws, a.state
		} else if ctx == leaked {
			reused.Add(1)
		}
		mu.Unlock()
		if m.Text() == "use" {
			refused("inside another turn", hibernate.ErrOutsideTurn)
		}
		return ws.Send(ctx, m)
	}}, nil)
	a, b := r.dial("/o/a"), r.dial("/o/b")
	a.send("leak")
	a.expect("text:leak")
	refused("at once", hibernate.ErrOutsideTurn)
	for i := range 1000 {
		c := []*client{a, b}[i%2]
		c.send("x")
		c.expect("text:x")
	}
	refused("from outside", hibernate.ErrOutsideTurn)
	for _, c := range []*client{a, b} {
		c.send("use")
		c.expect("text:use")
	}
	if n := reused.Load(); n > 0 {
		t.Errorf("the ctx was used for %d other turns", n)
	}
	r.evict("a")
	a.send("x")
	a.expect("text:x")
	refused("after its instance", hibernate.ErrReset)
	b.send("x")
	b.expect("text:x")
}

// TestBlockedRoomsDelayNobody: fifty handlers that block at once, without a word to the runtime, and rooms beside them that
// are answered as if nothing was. What the blocked rooms had answered before has left, and what they were given stays as it was.
func TestBlockedRoomsDelayNobody(t *testing.T) {
	const blocked, others, echoes = 50, 10, 40
	r := newRig(t, "", nil)
	release := make(chan struct{})
	var within, spoilt atomic.Int32
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		if bytes.HasPrefix(m.Data, []byte("block")) {
			want := string(m.Data)
			within.Add(1)
			<-release
			if string(m.Data) != want {
				spoilt.Add(1)
			}
		}
		return ws.Send(ctx, m)
	}}, nil)
	var rooms [blocked]*client
	for i := range rooms {
		rooms[i] = r.dial(fmt.Sprintf("/o/blocked-%d", i))
	}
	var beside [others]*client
	for i := range beside {
		beside[i] = r.dial(fmt.Sprintf("/o/other-%d", i))
	}
	late := lateness()
	for i, c := range rooms {
		c.together("before", fmt.Sprintf("block %d %s", i, strings.Repeat("x", 4<<10)), "after 1", "after 2")
	}
	longest, all := time.Duration(0), make(chan time.Duration, others)
	for i, c := range beside {
		go func() {
			longest := time.Duration(0)
			defer func() { all <- longest }()
			for n := range echoes {
				text := fmt.Sprintf("%d %d %s", i, n, strings.Repeat("y", 8<<10))
				begun := time.Now()
				if _, err := c.conn.Write(frame(true, ws.OpText, text)); err != nil {
					t.Error(err)
					return
				}
				c.conn.SetReadDeadline(begun.Add(patience))
				f, err := ws.ReadFrame(c.br)
				if err != nil || string(f.Payload) != text {
					t.Errorf("received %.20q, %v beside blocked rooms", f.Payload, err)
					return
				}
				longest = max(longest, time.Since(begun))
			}
		}()
	}
	for range beside {
		longest = max(longest, <-all)
	}
	// The loop is taken from each room in turn, which takes two ticks of its watch, and as much longer as the system is late.
	machine := late()
	most := 250*time.Millisecond + blocked*machine
	t.Logf("the longest of %d echoes beside %d rooms that blocked took %v on a machine that was %v late", others*echoes, blocked, longest, machine)
	if longest > most {
		t.Errorf("an echo took %v, want %v at most", longest, most)
	}
	for _, c := range rooms {
		c.expect("text:before") // though what came in the same read blocks
	}
	r.until("fifty handlers to block", func() bool { return within.Load() == blocked })
	close(release)
	for i, c := range rooms {
		c.expect(fmt.Sprintf("text:block %d %s", i, strings.Repeat("x", 4<<10)), "text:after 1", "text:after 2")
	}
	if n := spoilt.Load(); n > 0 {
		t.Errorf("%d messages changed while their handler had them", n)
	}
}

// lateness measures how late the system lets this process run at the worst, until the result is called for.
func lateness() (worst func() time.Duration) {
	stop, result := make(chan struct{}), make(chan time.Duration)
	go func() {
		const tick = time.Millisecond
		worst := time.Duration(0)
		for {
			begun := time.Now()
			select {
			case <-time.After(tick):
				worst = max(worst, time.Since(begun)-tick)
			case <-stop:
				result <- worst
				return
			}
		}
	}()
	return func() time.Duration { close(stop); return <-result }
}

// What comes in one read is one event after another, whatever becomes of the first.
func TestMessagesOfOneRead(t *testing.T) {
	big := strings.Repeat("big ", 50<<10) // more than is read at once
	// The script for all: what a message does is its first word.
	message := func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message, let chan struct{}) error {
		text := m.Text()
		word, _, _ := strings.Cut(text, " ")
		if word != "big" {
			a.tell("%s", text)
		}
		switch word {
		case "await":
			if err := ws.SendText(ctx, "before"); err != nil {
				return err
			}
			if err := hibernate.Await(ctx, func(context.Context) error { <-let; return nil }); err != nil {
				return err
			}
		case "block":
			<-let
		case "panic":
			_ = ws.SendText(ctx, "undone")
			panic("at the disco")
		case "goexit":
			_ = ws.SendText(ctx, "undone")
			runtime.Goexit()
		case "abort":
			_ = ws.SendText(ctx, "undone")
			return a.state.Abort(ctx, errors.New("enough"))
		}
		return ws.SendText(ctx, text)
	}
	for _, tt := range []struct {
		name  string
		texts []string // sent together
		close bool     // and a Close behind them
		hear  []string // while the first has not gone on
		early []string // received meanwhile
		late  []string // heard and received in the end
		recv  []string
	}{
		{name: "await", texts: []string{"await", "a", "b"}, hear: []string{"await", "a", "b"},
			early: []string{"text:before", "text:a", "text:b"}, recv: []string{"text:await"}},
		{name: "await twice", texts: []string{"await 1", "a", "await 2", "b"}, hear: []string{"await 1", "a", "await 2", "b"},
			early: []string{"text:before", "text:a", "text:before", "text:b"}, recv: []string{"text:await *", "text:await *"}},
		{name: "await behind others", texts: []string{"a", "b", "await", "c"}, hear: []string{"a", "b", "await", "c"},
			early: []string{"text:a", "text:b", "text:before", "text:c"}, recv: []string{"text:await"}},
		{name: "big behind await", texts: []string{"await", big, "a", big + "!", "b"}, hear: []string{"await", "a", "b"},
			early: []string{"text:before", "text:" + big, "text:a", "text:" + big + "!", "text:b"}, recv: []string{"text:await"}},
		{name: "big behind block", texts: []string{"a", "block", big, "b", big + "!"}, hear: []string{"a", "block"}, early: []string{"text:a"},
			late: []string{"b"}, recv: []string{"text:block", "text:" + big, "text:b", "text:" + big + "!"}},
		{name: "panic", texts: []string{"panic", "a", "panic", "b"}, hear: []string{"panic", "a", "panic", "b"}, early: []string{"text:a", "text:b"}},
		{name: "goexit", texts: []string{"goexit", "a", "goexit", "b"}, hear: []string{"goexit", "a", "goexit", "b"}, early: []string{"text:a", "text:b"}},
		{name: "goexit behind others", texts: []string{"a", "goexit", "b"}, hear: []string{"a", "goexit", "b"}, early: []string{"text:a", "text:b"}},
		{name: "abort", texts: []string{"a", "abort", "b"}, hear: []string{"a", "abort"}, early: []string{"text:a", "eof"}},
		{name: "abort behind await", texts: []string{"await", "a", "abort", "b"}, hear: []string{"await", "a", "abort"},
			early: []string{"text:before", "text:a", "eof"}},
		{name: "close", texts: []string{"a", "b"}, close: true, hear: []string{"a", "b", "closed 1000"}, early: []string{"text:a", "text:b", "close:1000 ", "eof"}},
		{name: "close behind block", texts: []string{"a", "block", "b"}, close: true, hear: []string{"a", "block"}, early: []string{"text:a"},
			late: []string{"b", "closed 1000"}, recv: []string{"text:block", "text:b", "close:1000 ", "eof"}},
		{name: "close behind panic", texts: []string{"a", "panic"}, close: true, hear: []string{"a", "panic", "closed 1000"},
			early: []string{"text:a", "close:1000 ", "eof"}},
		{name: "close behind goexit", texts: []string{"goexit"}, close: true, hear: []string{"goexit", "closed 1000"}, early: []string{"close:1000 ", "eof"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
				r := newRig(t, "", nil)
				let := make(chan struct{})
				r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
					return message(ctx, a, ws, m, let)
				}, close: func(_ context.Context, a *actor, _ hibernate.WebSocket, e hibernate.CloseEvent) error {
					a.tell("closed %d", e.Code)
					return nil
				}}, nil)
				c, other := r.dial("/o/a"), r.dial("/o/b")
				other.send("x")
				other.expect("text:x")
				r.hear("x")
				pause(r)
				var all []byte
				for _, text := range tt.texts {
					all = append(all, frame(true, ws.OpText, text)...)
				}
				if tt.close {
					all = append(all, frame(true, ws.OpClose, "\x03\xe8")...)
				}
				wrote := make(chan struct{})
				go func() { defer close(wrote); c.conn.Write(all) }() // it may be more than the system takes
				receive := func(want []string) {
					for _, w := range want {
						got := c.next()
						if head, ok := strings.CutSuffix(w, "*"); got != w && !(ok && strings.HasPrefix(got, head)) {
							t.Fatalf("received %.80q, want %.80q", got, w)
						}
					}
				}
				r.hear(tt.hear...)
				receive(tt.early)
				other.send("y")
				other.expect("text:y")
				r.hear("y")
				close(let)
				receive(tt.recv)
				r.hear(tt.late...)
				<-wrote
				other.send("z")
				other.expect("text:z")
				r.hear("z")
				r.silent()
			})
		})
	}
}

// Neither way to end waits for a handler that blocks in the goroutine that reads, unless it is told to.
func TestRuntimeEndsBesideABlockedHandler(t *testing.T) {
	for name, end := range map[string]func(*hibernate.Runtime) error{
		"close": (*hibernate.Runtime).Close,
		"shutdown": func(rt *hibernate.Runtime) error {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			if err := rt.Shutdown(ctx); err == nil {
				return errors.New("the shutdown tells of no handler")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", nil)
			let, after := make(chan struct{}), make(chan error, 1)
			r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
				a.tell("%s", m.Text())
				if m.Text() == "block" {
					<-let
					after <- ws.SendText(ctx, "late")
					return nil
				}
				return ws.Send(ctx, m)
			}}, nil)
			c := r.dial("/o/a")
			c.together("a", "block", "b")
			r.hear("a", "block")
			c.expect("text:a")
			ended := make(chan error, 1)
			go func() { ended <- end(r.rt) }()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Errorf("it has not ended in %v", patience)
			}
			if got := c.next(); got != "eof" && !strings.HasPrefix(got, "close:1001") {
				t.Errorf("received %q", got)
			}
			close(let)
			if err := <-after; !errors.Is(err, hibernate.ErrReset) && !errors.Is(err, hibernate.ErrUnavailable) {
				t.Errorf("a send after the end: %v", err)
			}
			r.silent()
		})
	}
}

// TestHandlersOfEveryKindAtOnce: many connections, whose handlers return, block, await, panic or exit as it comes. Every
// message is handled once and in its order, and every answer that is not undone arrives.
// A class whose handlers block is soon run elsewhere, so there is one class, and there are many that are all trusted at first.
func TestHandlersOfEveryKindAtOnce(t *testing.T) {
	for _, classes := range []int{1, 40} {
		t.Run(fmt.Sprintf("classes=%d", classes), func(t *testing.T) { handlersOfEveryKind(t, classes) })
	}
}

func handlersOfEveryKind(t *testing.T, classes int) {
	const conns, rooms, messages = 80, 40, 120
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "", nil)
	mux := http.NewServeMux()
	for i := range classes {
		ns, err := hibernate.Register(r.rt, fmt.Sprint("Class", i), func(_ context.Context, s *hibernate.State) (*moody, error) {
			return &moody{t, s}, nil
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		mux.Handle(fmt.Sprintf("/c%d/{name}", i), ns.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
			return hibernate.Join{Object: ns.GetByName(h.PathValue("name"))}, nil
		}))
	}
	r.srv = httptest.NewServer(mux)
	var all sync.WaitGroup
	for i := range conns {
		room := i % rooms
		c := r.dial(fmt.Sprintf("/c%d/%d", room%classes, room))
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		all.Go(func() { churnClient(t, c, rnd, messages, i) })
	}
	all.Wait()
	s := r.rt.Stats()
	t.Logf("%d messages, %d panics, %d instances", s.Messages, s.Panics, s.Constructed)
	if s.Messages != conns*messages {
		t.Errorf("%d messages were handled, %d were sent", s.Messages, conns*messages)
	}
	r.until("the sockets to end", func() bool { return r.rt.Stats().Sockets == 0 })
}

// A moody object does what the first word of a message says.
type moody struct {
	t     *testing.T
	state *hibernate.State
}

func (m *moody) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, msg hibernate.Message) error {
	text := msg.Text()
	kind, _, _ := strings.Cut(text, " ")
	if kind == "undone" {
		_ = ws.SendText(ctx, "never")
		if len(text)%2 == 0 {
			runtime.Goexit()
		}
		panic("undone")
	}
	if err := ws.SendText(ctx, "got "+text); err != nil {
		return err
	}
	switch kind {
	case "block":
		time.Sleep(time.Duration(len(text)%7) * time.Millisecond)
		if msg.Text() != text {
			m.t.Errorf("the message became %.40q", msg.Data)
		}
	case "await": // the instance may be undone by another's panic; what was sent before has left
		return hibernate.Await(ctx, func(context.Context) error { runtime.Gosched(); return nil })
	case "sync":
		return m.state.Storage().Sync(ctx)
	case "write":
		return m.state.Storage().PutBytes(ctx, "k", msg.Data)
	}
	return nil
}

// churnClient sends n messages of random kinds, some of them together, and reads the answers.
func churnClient(t *testing.T, c *client, rnd *rand.Rand, n, id int) {
	kinds := []string{"plain", "plain", "plain", "plain", "block", "await", "sync", "write", "undone"}
	var want []string
	var out [][]byte
	for i := range n {
		kind := kinds[rnd.IntN(len(kinds))]
		if i == n-1 {
			kind = "plain" // whose answer tells that all were handled
		}
		text := fmt.Sprintf("%s %d %d %s", kind, id, i, strings.Repeat("z", rnd.IntN(300)))
		if !strings.HasPrefix(text, "undone") {
			want = append(want, "got "+text)
		}
		f := frame(true, ws.OpText, text)
		if len(out) == 0 || rnd.IntN(4) == 0 {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], f...)
	}
	go func() {
		for _, b := range out {
			if _, err := c.conn.Write(b); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	c.conn.SetReadDeadline(time.Now().Add(patience))
	for i, w := range want {
		f, err := ws.ReadFrame(c.br)
		if err != nil || string(f.Payload) != w {
			t.Errorf("connection %d received %.60q, %v, want %.60q (%d of %d)", id, f.Payload, err, w, i+1, len(want))
			c.conn.Close()
			return
		}
	}
	if rnd.IntN(2) == 0 {
		c.conn.Write(frame(true, ws.OpClose, "\x03\xe8"))
		if _, err := io.Copy(io.Discard, c.conn); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	c.conn.Close()
}

// TestDoThatExitsItsGoroutine leaves the object to others, and nothing of itself.
func TestDoThatExitsItsGoroutine(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	var state *hibernate.State
	r.must("a", func(ctx context.Context, a *actor) error {
		state = a.state
		return nil
	})
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = state.Do(t.Context(), func(ctx context.Context) error {
			if err := state.Storage().PutBytes(ctx, "k", []byte("v")); err != nil {
				t.Error(err)
			}
			runtime.Goexit()
			return nil
		})
	}()
	<-exited
	r.must("a", func(ctx context.Context, a *actor) error {
		if _, ok, err := a.state.Storage().GetBytes(ctx, "k"); ok || err != nil {
			t.Errorf("the write is there: %v, %v", ok, err)
		}
		return nil
	})
}

// TestDoLeavesTheCallersLabels: a profile goes on to say whose goroutine it is.
func TestDoLeavesTheCallersLabels(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{ProfileLabels: true})
	r.act(&script{}, nil)
	var state *hibernate.State
	r.must("a", func(ctx context.Context, a *actor) error {
		state = a.state
		return nil
	})
	pprof.Do(t.Context(), pprof.Labels("owner", "caller of Do"), func(ctx context.Context) {
		if err := state.Do(ctx, func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
		var profile bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(profile.String(), `"owner":"caller of Do"`) {
			t.Error("the caller's labels are gone")
		}
	})
}
