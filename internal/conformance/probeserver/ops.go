package probeserver

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hibernate-go/hibernate"
)

// A result is {"ok":value} or {"error":{…}}.
type result map[string]any

func millis(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

func timestamp(t time.Time) map[string]any { return map[string]any{"ts": t.UnixMilli()} }

// run runs operations in order. Its error is what throw has thrown, or ErrReset:
// then the instance is gone and its caller must do nothing more.
func (o *object) run(ctx context.Context, ops []op, sc *scope, run int) ([]result, error) {
	results := []result{}
	type running struct {
		at int
		op op
		p  *pause
	}
	var unawaited []running
	for _, op := range ops {
		if !op.runsIn(run) {
			continue
		}
		if op.text("op") == "sleep" && op.flag("nowait") {
			unawaited = append(unawaited, running{len(results), op, o.s.pause(op.number("ms"))})
			results = append(results, nil)
			continue
		}
		r, err := o.step(ctx, op, sc)
		if err != nil {
			return nil, err
		}
		results = append(results, r)
	}
	for _, u := range unawaited {
		if err := o.await(ctx, u.p); err != nil {
			return nil, err
		}
		results[u.at] = o.done(u.op, nil)
	}
	return results, nil
}

// step runs one operation.
func (o *object) step(ctx context.Context, in op, sc *scope) (result, error) {
	op := expandOp(in)
	v, err := o.do(ctx, op, sc)
	switch {
	case err == nil:
		return o.done(op, v), nil
	case op.text("op") == "throw", errors.Is(err, hibernate.ErrReset):
		return nil, err
	}
	r := result{"error": describe(err)}
	o.report(op, r)
	return r, nil
}

func (o *object) done(op op, v any) result {
	r := result{"ok": shrink(v)}
	o.report(op, r)
	return r
}

// report logs the result of an operation that asks for it.
func (o *object) report(op op, r result) {
	if as := op.text("as"); as != "" {
		fields := map[string]any{"as": as}
		for key, v := range r {
			fields[key] = v
		}
		o.log("result", fields)
	}
}

// await waits for a pause with the turn given up.
func (o *object) await(ctx context.Context, p *pause) error {
	fired := false
	err := hibernate.Await(ctx, func(ctx context.Context) error {
		err := p.wait(ctx)
		fired = err == nil
		return err
	})
	if fired {
		o.s.started.Add(-1)
	}
	return err
}

// A store is where storage operations go: plain storage or a transaction.
type store interface {
	hibernate.Writer
	Delete(ctx context.Context, keys ...string) (int, error)
	DeleteAll(ctx context.Context) error
	SetAlarm(ctx context.Context, at time.Time) error
	Alarm(ctx context.Context) (time.Time, bool, error)
	DeleteAlarm(ctx context.Context) error
}

func (o *object) store(sc *scope) store {
	if sc.txn != nil {
		return sc.txn
	}
	return o.state.Storage()
}

// find is the socket an operation names.
func (o *object) find(op op, sc *scope) (hibernate.WebSocket, error) {
	id, given := op["id"].(string)
	switch {
	case !given || id == "$self":
		if sc.ws == nil {
			return hibernate.WebSocket{}, &typeError{"the event has no socket"}
		}
		return *sc.ws, nil
	case id == "$held":
		return o.held, nil
	}
	for _, ws := range o.state.WebSockets() {
		if idOf(ws) == id {
			return ws, nil
		}
	}
	return hibernate.WebSocket{}, &userError{"no socket " + id}
}

// sockets are those an operation selects.
func (o *object) sockets(op op) []hibernate.WebSocket {
	if op.has("tag") {
		return o.state.WebSockets(op.text("tag"))
	}
	return o.state.WebSockets()
}

// do runs one operation and returns its value.
func (o *object) do(ctx context.Context, op op, sc *scope) (any, error) {
	name := op.text("op")
	if f, ok := socketOps[name]; ok {
		ws, err := o.find(op, sc)
		if err != nil {
			return nil, err
		}
		return f(o, ctx, op, ws)
	}
	if f, ok := storageOps[name]; ok {
		return f(o, ctx, op, o.store(sc))
	}
	return o.control(ctx, op, sc)
}

// socketOps are about one socket.
var socketOps = map[string]func(*object, context.Context, op, hibernate.WebSocket) (any, error){
	"tags": func(_ *object, _ context.Context, _ op, ws hibernate.WebSocket) (any, error) {
		return append([]string{}, ws.Tags()...), nil
	},
	"state": func(_ *object, _ context.Context, _ op, ws hibernate.WebSocket) (any, error) {
		return ws.ReadyState(), nil
	},
	"close": func(_ *object, ctx context.Context, op op, ws hibernate.WebSocket) (any, error) {
		code, coded := op["code"].(float64)
		reason, reasoned := op["reason"].(string)
		switch {
		case coded:
			return nil, ws.Close(ctx, int(code), reason)
		case reasoned:
			return nil, fmt.Errorf("%w: a close reason without a code", hibernate.ErrInvalid)
		}
		return nil, ws.CloseNoCode(ctx)
	},
	"attach": func(_ *object, ctx context.Context, op op, ws hibernate.WebSocket) (any, error) {
		v := op["value"]
		if v == (any)(undefined{}) {
			v = nil
		}
		return nil, ws.SerializeAttachment(ctx, v)
	},
	"attachment": func(_ *object, _ context.Context, _ op, ws hibernate.WebSocket) (any, error) {
		v, _, err := hibernate.Attachment[any](ws)
		return plain(v), err
	},
	"attachCopy": func(_ *object, ctx context.Context, _ op, ws hibernate.WebSocket) (any, error) {
		v := map[string]any{"v": 1}
		err := ws.SerializeAttachment(ctx, v)
		v["v"] = 2
		return nil, err
	},
	"hold": func(o *object, _ context.Context, _ op, ws hibernate.WebSocket) (any, error) {
		o.held = ws
		return nil, nil
	},
	"isHeld": func(o *object, _ context.Context, _ op, ws hibernate.WebSocket) (any, error) {
		return o.held == ws, nil
	},
	"autoResponseTime": func(_ *object, _ context.Context, _ op, ws hibernate.WebSocket) (any, error) {
		at := ws.AutoResponseTime()
		if at.IsZero() {
			return nil, nil
		}
		return timestamp(at), nil
	},
}

// storageOps are about plain storage or a transaction.
var storageOps = map[string]func(*object, context.Context, op, store) (any, error){
	"get": func(_ *object, ctx context.Context, op op, s store) (any, error) {
		if op.has("keys") {
			list, err := hibernate.GetMany[any](ctx, s, op.texts("keys")...)
			if err != nil {
				return nil, err
			}
			return pairs(slices.Values(list)), nil
		}
		v, _, err := hibernate.Get[any](ctx, s, op.text("key"))
		return plain(v), err
	},
	"put": func(_ *object, ctx context.Context, op op, s store) (any, error) {
		if entries, ok := op["entries"].(map[string]any); ok {
			return nil, hibernate.PutMany(ctx, s, entries)
		}
		if v := op["value"]; op.has("value") && v != (any)(undefined{}) {
			return nil, hibernate.Put(ctx, s, op.text("key"), v)
		}
		return nil, &typeError{"put of no value"}
	},
	"delete": func(_ *object, ctx context.Context, op op, s store) (any, error) {
		if op.has("keys") {
			return s.Delete(ctx, op.texts("keys")...)
		}
		n, err := s.Delete(ctx, op.text("key"))
		return n > 0, err
	},
	"list": func(_ *object, ctx context.Context, op op, s store) (any, error) {
		var list []hibernate.Entry[any]
		for e, err := range hibernate.List[any](ctx, s, listOptions(op)...) {
			if err != nil {
				return nil, err
			}
			list = append(list, e)
		}
		return pairs(slices.Values(list)), nil
	},
	"putMany": func(_ *object, ctx context.Context, op op, s store) (any, error) {
		entries := map[string]int{}
		for i, key := range op.manyKeys() {
			entries[key] = i
		}
		return nil, hibernate.PutMany(ctx, s, entries)
	},
	"getMany": func(_ *object, ctx context.Context, op op, s store) (any, error) {
		list, err := hibernate.GetMany[any](ctx, s, op.manyKeys()...)
		return len(list), err
	},
	"deleteMany": func(_ *object, ctx context.Context, op op, s store) (any, error) {
		return s.Delete(ctx, op.manyKeys()...)
	},
	"increment": func(_ *object, ctx context.Context, op op, s store) (any, error) {
		v, _, err := hibernate.Get[float64](ctx, s, op.text("key"))
		if err != nil {
			return nil, err
		}
		return v + 1, hibernate.Put(ctx, s, op.text("key"), v+1)
	},
	"deleteAll": func(_ *object, ctx context.Context, _ op, s store) (any, error) {
		return nil, s.DeleteAll(ctx)
	},
	"setAlarm": func(o *object, ctx context.Context, op op, s store) (any, error) {
		at := time.UnixMilli(int64(op.number("at")))
		if !op.has("at") {
			at = o.s.clock.Now().Add(millis(op.number("in")))
		}
		return nil, s.SetAlarm(ctx, at)
	},
	"getAlarm": func(_ *object, ctx context.Context, _ op, s store) (any, error) {
		at, ok, err := s.Alarm(ctx)
		if err != nil || !ok {
			return nil, err
		}
		return timestamp(at), nil
	},
	"deleteAlarm": func(_ *object, ctx context.Context, _ op, s store) (any, error) {
		return nil, s.DeleteAlarm(ctx)
	},
}

// manyKeys are the keys of putMany, getMany and deleteMany.
func (o op) manyKeys() []string {
	keys := make([]string, int(o.number("count")))
	for i := range keys {
		keys[i] = fmt.Sprintf("%s%04d", o.text("prefix"), i)
	}
	return keys
}

// pairs is a map as the protocol shows it.
func pairs(entries func(func(hibernate.Entry[any]) bool)) [][2]any {
	list := [][2]any{}
	for e := range entries {
		list = append(list, [2]any{e.Key, shrink(plain(e.Value))})
	}
	return list
}

func listOptions(o op) []hibernate.ListOption {
	m, _ := o["options"].(map[string]any)
	in := op(m)
	var list []hibernate.ListOption
	for key, option := range map[string]func(string) hibernate.ListOption{
		"start": hibernate.Start, "startAfter": hibernate.StartAfter, "end": hibernate.End, "prefix": hibernate.Prefix,
	} {
		if s, ok := in[key].(string); ok {
			list = append(list, option(s))
		}
	}
	if in.flag("reverse") {
		list = append(list, hibernate.Reverse())
	}
	if in.has("limit") {
		list = append(list, hibernate.Limit(int(in.number("limit"))))
	}
	return list
}

// control runs the operations that are about the object or about other
// operations.
func (o *object) control(ctx context.Context, op op, sc *scope) (any, error) {
	switch name := op.text("op"); name {
	case "accept":
		return o.accept(op, sc)
	case "plainAccept":
		return nil, fmt.Errorf("%w: there are no ordinary sockets", hibernate.ErrState)
	case "sockets":
		return o.show(op), nil
	case "send":
		return nil, o.send(ctx, op, sc)
	case "setAutoResponse":
		if !op.has("request") {
			return nil, o.state.SetWebSocketAutoResponse(ctx)
		}
		return nil, o.state.SetWebSocketAutoResponse(ctx, hibernate.AutoResponse{Request: op.text("request"), Response: op.text("response")})
	case "getAutoResponse":
		for _, p := range o.state.WebSocketAutoResponses() {
			return map[string]any{"request": shrink(p.Request), "response": shrink(p.Response)}, nil
		}
		return nil, nil
	case "setEventTimeout":
		if op.number("ms") < 0 {
			return nil, &typeError{"negative event timeout"}
		}
		return nil, o.state.SetWebSocketEventTimeout(ctx, millis(op.number("ms")))
	case "getEventTimeout":
		if d := o.state.WebSocketEventTimeout(); d > 0 {
			return d.Milliseconds(), nil
		}
		return nil, nil
	case "sync":
		return nil, o.state.Storage().Sync(ctx)
	case "transaction":
		return o.transaction(ctx, op, sc)
	case "rollback":
		if sc.txn == nil {
			return nil, &typeError{"rollback without a transaction"}
		}
		return nil, sc.txn.Rollback(ctx)
	case "leaked":
		return o.nested(ctx, op, sc, o.leaked)
	case "outside":
		return o.nested(ctx, op, sc, nil)
	case "now":
		return timestamp(o.s.clock.Now()), nil
	case "instance":
		return o.n, nil
	case "memSet":
		o.mem[op.text("key")] = op["value"]
		return nil, nil
	case "memGet":
		return o.mem[op.text("key")], nil
	case "log":
		fields := map[string]any{}
		if v, ok := op["value"]; ok && v != (any)(undefined{}) {
			fields["value"] = v
		}
		o.log("log", fields)
		return nil, nil
	case "sleep":
		return nil, o.await(ctx, o.s.pause(op.number("ms")))
	case "timer":
		return nil, o.afterwards(ctx, "timer", o.s.pause(op.number("ms")).wait, func(ctx context.Context) error {
			_, err := o.run(ctx, op.list("ops"), sc, 0)
			return err
		})
	case "waitUntil":
		return nil, o.waitUntil(ctx, op, sc)
	case "block":
		return o.block(ctx, op, sc)
	case "throw":
		if text, ok := op["message"].(string); ok {
			return nil, &userError{text}
		}
		return nil, &userError{"thrown"}
	case "abort":
		if err := o.state.Abort(ctx, errors.New(op.text("reason"))); err != nil {
			return nil, err
		}
		return nil, hibernate.ErrReset
	default:
		return nil, &typeError{fmt.Sprintf("no operation %q", name)}
	}
}

func (o *object) block(ctx context.Context, op op, sc *scope) (v any, err error) {
	o.s.pinned.Add(1)
	defer o.s.pinned.Add(-1)
	err = o.state.BlockConcurrencyWhile(ctx, func(ctx context.Context) error {
		v, err = o.run(ctx, op.list("ops"), sc, 0)
		return err
	})
	if err != nil && !errors.Is(err, hibernate.ErrReset) && !errors.Is(err, hibernate.ErrState) {
		err = &blockError{err}
	}
	return v, err
}

// A blockError is the failure of a BlockConcurrencyWhile: the instance is gone.
type blockError struct{ cause error }

func (e *blockError) Error() string   { return e.cause.Error() }
func (e *blockError) Unwrap() []error { return []error{e.cause, hibernate.ErrReset} }

func (o *object) accept(op op, sc *scope) (any, error) {
	if sc.ws == nil {
		return nil, &typeError{"the event has no socket"}
	}
	if sc.request == nil {
		return nil, fmt.Errorf("%w: accepted already", hibernate.ErrState)
	}
	options := &hibernate.AcceptOptions{Tags: op.texts("tags"), Protocol: sc.protocol}
	if !op.flag("raw") {
		options.Tags = append([]string{"#" + sc.id}, options.Tags...)
	}
	ws, err := o.state.AcceptWebSocket(sc.writer, sc.request, options)
	if err != nil {
		return nil, err
	}
	*sc.ws = ws
	return nil, nil
}

func (o *object) show(op op) any {
	sockets := o.sockets(op)
	if op.flag("count") {
		return len(sockets)
	}
	list := []any{}
	for _, ws := range sockets {
		tags := []string{}
		for _, tag := range ws.Tags() {
			if !strings.HasPrefix(tag, "#") {
				tags = append(tags, tag)
			}
		}
		list = append(list, map[string]any{"id": idOf(ws), "tags": tags, "state": ws.ReadyState()})
	}
	return list
}

func (o *object) send(ctx context.Context, op op, sc *scope) error {
	m := hibernate.Text(op.text("text"))
	switch {
	case op.has("bin"):
		b, err := base64.StdEncoding.DecodeString(op.text("bin"))
		if err != nil {
			return &typeError{err.Error()}
		}
		m = hibernate.Binary(b)
	case op.text("text") == "$data":
		if sc.data == nil {
			return &typeError{"the event has no message"}
		}
		m = *sc.data
	}
	if op.text("id") != "*" {
		ws, err := o.find(op, sc)
		if err != nil {
			return err
		}
		return ws.Send(ctx, m)
	}
	for _, ws := range o.sockets(op) {
		if err := ws.Send(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

func (o *object) transaction(ctx context.Context, op op, sc *scope) (v any, err error) {
	o.s.pinned.Add(1)
	defer o.s.pinned.Add(-1)
	err = o.state.Storage().Transaction(ctx, func(ctx context.Context, tx *hibernate.Txn) error {
		if op.flag("leak") {
			o.leaked = tx
		}
		inner := *sc
		inner.txn = tx
		v, err = o.run(ctx, op.list("ops"), &inner, 0)
		return err
	})
	return v, err
}

// nested runs the operation in an operation's do with txn, nil for plain storage;
// its result is the value.
func (o *object) nested(ctx context.Context, outer op, sc *scope, txn *hibernate.Txn) (any, error) {
	in := *sc
	in.txn = txn
	inner, _ := outer["do"].(map[string]any)
	return o.step(ctx, inner, &in)
}

// waitUntil runs operations beside the handler. Those before the first that waits
// run at once, as a promise's function does.
func (o *object) waitUntil(ctx context.Context, in op, sc *scope) error {
	ops := in.list("ops")
	for len(ops) > 0 {
		name := ops[0].text("op")
		if slices.Contains([]string{"sleep", "sync", "transaction", "block"}, name) {
			break
		}
		if _, err := o.step(ctx, ops[0], sc); errors.Is(err, hibernate.ErrReset) {
			return err
		} else if err != nil {
			return nil // a rejected promise
		}
		ops = ops[1:]
		if storageOps[name] != nil {
			break
		}
	}
	if len(ops) == 0 {
		return nil
	}
	o.s.started.Add(1)
	now := func(context.Context) error { return nil }
	err := o.afterwards(ctx, "waitUntil", now, func(ctx context.Context) error {
		_, err := o.run(ctx, ops, sc, 0)
		return err
	})
	if err != nil {
		o.s.started.Add(-1)
	}
	return err
}
