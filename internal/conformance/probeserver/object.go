package probeserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"unicode/utf16"

	"github.com/hibernate-go/hibernate"
)

// An object is one instance of the probe. Its fields are touched in its turns
// only.
type object struct {
	s     *Server
	state *hibernate.State
	w     *world
	n     int // instance number

	mem    map[string]any
	held   hibernate.WebSocket
	leaked *hibernate.Txn
}

// A scope is what the operations of one event refer to.
type scope struct {
	ws   *hibernate.WebSocket // $self
	id   string
	data *hibernate.Message // $data
	txn  *hibernate.Txn

	// Of a request that connects a socket.
	writer   http.ResponseWriter
	request  *http.Request
	protocol string
}

// full has every handler, bare only ServeHTTP.
type (
	full struct{ *object }
	bare struct{ o *object }
)

func (b bare) ServeHTTP(w http.ResponseWriter, r *http.Request) { b.o.ServeHTTP(w, r) }

func (s *Server) newFull(ctx context.Context, st *hibernate.State) (full, error) {
	o, err := s.newObject(ctx, st)
	return full{o}, err
}

func (s *Server) newBare(ctx context.Context, st *hibernate.State) (bare, error) {
	o, err := s.newObject(ctx, st)
	return bare{o}, err
}

func (s *Server) newObject(ctx context.Context, st *hibernate.State) (*object, error) {
	w := s.world(st.Name())
	o := &object{s: s, state: st, w: w, n: w.construct(), mem: map[string]any{}}
	s.pinned.Add(1)
	defer s.pinned.Add(-1)
	o.log("construct", nil)
	ops, run := w.next("construct")
	// Nothing is awaited in a constructor: a blockConcurrencyWhile begins when the
	// constructor has returned, and nobody waits for a timer.
	var blocks []op
	for _, op := range ops {
		switch {
		case !op.runsIn(run) || op.text("op") == "sleep":
		case op.text("op") == "block":
			blocks = append(blocks, op)
		default:
			if _, err := o.step(ctx, op, &scope{}); err != nil {
				return nil, err
			}
		}
	}
	if _, err := o.run(ctx, blocks, &scope{}, run); err != nil {
		return nil, err
	}
	return o, nil
}

// log adds an event to the log of the object's name.
func (o *object) log(ev string, fields map[string]any) {
	entry := map[string]any{"ev": ev, "n": o.n}
	for key, v := range fields {
		entry[key] = v
	}
	o.w.add(entry)
}

// runProgram runs what the program says for a handler.
func (o *object) runProgram(ctx context.Context, at string, sc *scope) error {
	ops, run := o.w.next(at)
	_, err := o.run(ctx, ops, sc, run)
	return err
}

// ServeHTTP connects a socket or runs a command.
func (o *object) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if q, ok := r.Context().Value(requestKey{}).(*request); ok {
		q.stage.Store(stageHandled)
		defer q.stage.Store(stageLeft)
	}
	serve := o.command
	if strings.HasSuffix(r.URL.Path, "/ws") {
		serve = o.connect
	}
	if err := serve(w, r); err != nil {
		answer(w, http.StatusInternalServerError, map[string]any{"thrown": describe(err)})
	}
}

func (o *object) command(w http.ResponseWriter, r *http.Request) error {
	var cmd struct{ Ops []op }
	if err := json.NewDecoder(r.Body).Decode(&cmd); err != nil {
		return &typeError{err.Error()}
	}
	results, err := o.run(r.Context(), cmd.Ops, &scope{}, 0)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, map[string]any{"n": o.n, "results": results})
	return nil
}

func (o *object) connect(w http.ResponseWriter, r *http.Request) error {
	var p struct {
		ID       string
		Ops      []op
		Tags     []any
		Protocol string
		Refuse   int
	}
	if q := r.URL.Query().Get("p"); q != "" {
		if err := json.Unmarshal([]byte(q), &p); err != nil {
			return &typeError{err.Error()}
		}
	}
	if p.Ops == nil {
		p.Ops = []op{{"op": "accept", "tags": p.Tags}}
	}
	sc := &scope{ws: new(hibernate.WebSocket), id: p.ID, writer: w, request: r, protocol: p.Protocol}
	results, err := o.run(r.Context(), p.Ops, sc, 0)
	if err != nil {
		return err
	}
	switch {
	case p.Refuse != 0:
		answer(w, p.Refuse, map[string]any{"results": results})
	case *sc.ws == (hibernate.WebSocket{}):
		return &typeError{"the request was not accepted"}
	default:
		w.Header().Set("X-Probe-Results", asciiJSON(results))
	}
	return nil
}

// asciiJSON is v as JSON that a header can hold.
func asciiJSON(v any) string {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(string(encode(v)))) {
		if u < 0x7f {
			b.WriteByte(byte(u))
		} else {
			fmt.Fprintf(&b, "\\u%04x", u)
		}
	}
	return b.String()
}

// WebSocketMessage runs a command or the message program.
func (f full) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	o := f.object
	m.Data = slices.Clone(m.Data)
	id := idOf(ws)
	sc := &scope{ws: &ws, id: id, data: &m}
	if m.Kind == hibernate.TextMessage && bytes.HasPrefix(m.Data, []byte(`{"ops":`)) {
		var cmd struct {
			Ops   []op
			Reply *bool
		}
		if err := json.Unmarshal(m.Data, &cmd); err != nil {
			return &typeError{err.Error()}
		}
		names := make([]string, len(cmd.Ops))
		for i, op := range cmd.Ops {
			names[i] = op.text("op")
		}
		o.log("message", map[string]any{"id": id, "cmd": strings.Join(names, ",")})
		results, err := o.run(ctx, cmd.Ops, sc, 0)
		if err != nil || cmd.Reply != nil && !*cmd.Reply {
			return err
		}
		return ws.Send(ctx, hibernate.Message{
			Kind: hibernate.TextMessage,
			Data: encode(map[string]any{"n": o.n, "results": results}),
		})
	}
	fields := payload(m)
	fields["id"] = id
	o.log("message", fields)
	return o.runProgram(ctx, "message", sc)
}

// WebSocketClose runs the close program.
func (f full) WebSocketClose(ctx context.Context, ws hibernate.WebSocket, e hibernate.CloseEvent) error {
	id := idOf(ws)
	f.log("close", map[string]any{"id": id, "code": e.Code, "reason": e.Reason, "wasClean": e.WasClean, "state": ws.ReadyState()})
	return f.runProgram(ctx, "close", &scope{ws: &ws, id: id})
}

// WebSocketError runs the error program.
func (f full) WebSocketError(ctx context.Context, ws hibernate.WebSocket, err error) error {
	id := idOf(ws)
	f.log("error", map[string]any{"id": id, "error": describe(err), "state": ws.ReadyState()})
	return f.runProgram(ctx, "error", &scope{ws: &ws, id: id})
}

// Alarm runs the alarm program.
func (f full) Alarm(ctx context.Context, a hibernate.AlarmInfo) error {
	f.log("alarm", map[string]any{"isRetry": a.IsRetry, "retryCount": a.RetryCount})
	return f.runProgram(ctx, "alarm", &scope{})
}

// idOf is the id a socket was connected with.
func idOf(ws hibernate.WebSocket) string {
	for _, tag := range ws.Tags() {
		if id, ok := strings.CutPrefix(tag, "#"); ok {
			return id
		}
	}
	if v, ok, err := hibernate.Attachment[any](ws); ok && err == nil {
		if m, ok := plain(v).(map[string]any); ok {
			if id, ok := m["id"].(string); ok {
				return id
			}
		}
	}
	return "?"
}

// afterwards runs f in a turn of the same instance once ready has returned nil,
// and keeps the object in memory until then. ready is called outside of turns.
// After it started is counted down once, when f's turn has begun.
func (o *object) afterwards(ctx context.Context, name string, ready func(context.Context) error, f func(context.Context) error) error {
	return o.state.WaitUntil(ctx, name, func(outside context.Context) {
		if ready(outside) != nil {
			return // the instance is gone
		}
		var once sync.Once
		begun := func() { o.s.started.Add(-1) }
		defer once.Do(begun)
		_ = o.state.Do(outside, func(ctx context.Context) error {
			once.Do(begun)
			return f(ctx)
		})
	})
}
