package probeserver

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"unicode/utf16"

	"github.com/hibernate-go/hibernate"
)

// An op is one operation, a JSON object.
type op map[string]any

// undefined is "no value".
type undefined struct{}

// expand builds the values that operations describe. Members of an object that
// are undefined are left out.
func expand(v any) any {
	switch v := v.(type) {
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = expand(v[i])
		}
		return list
	case map[string]any:
		if r, ok := v["$repeat"].([]any); ok && len(r) == 2 {
			s, _ := r[0].(string)
			n, _ := r[1].(float64)
			return strings.Repeat(s, int(n))
		}
		if _, ok := v["$undefined"]; ok {
			return undefined{}
		}
		m := make(map[string]any, len(v))
		for key := range v {
			if x := expand(v[key]); x != (any)(undefined{}) {
				m[key] = x
			}
		}
		return m
	}
	return v
}

// expandOp expands the fields of an operation but those that hold operations.
func expandOp(in op) op {
	out := make(op, len(in))
	for key, v := range in {
		if key != "ops" && key != "do" {
			v = expand(v)
		}
		out[key] = v
	}
	return out
}

func (o op) text(key string) string { s, _ := o[key].(string); return s }
func (o op) number(key string) float64 {
	n, _ := o[key].(float64)
	return n
}
func (o op) has(key string) bool { _, ok := o[key]; return ok }
func (o op) flag(key string) bool {
	b, _ := o[key].(bool)
	return b
}

// texts is a list of strings, nil if the field is absent.
func (o op) texts(key string) []string {
	in, ok := o[key].([]any)
	if !ok {
		return nil
	}
	list := make([]string, len(in))
	for i, v := range in {
		list[i], _ = v.(string)
	}
	return list
}

// list are the operations in a field.
func (o op) list(key string) []op {
	in, _ := o[key].([]any)
	list := make([]op, 0, len(in))
	for _, v := range in {
		if m, ok := v.(map[string]any); ok {
			list = append(list, m)
		}
	}
	return list
}

// runsIn reports whether the operation is meant for this run of its program; run
// 0 is of no program.
func (o op) runsIn(run int) bool {
	in, ok := o["runs"].([]any)
	if !ok {
		return true
	}
	for _, v := range in {
		if v == float64(run) {
			return true
		}
	}
	return false
}

// plain makes what the codec decoded fit for JSON.
func plain(v any) any {
	switch v := v.(type) {
	case map[any]any:
		m := make(map[string]any, len(v))
		for key, x := range v {
			m[fmt.Sprint(key)] = plain(x)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = plain(v[i])
		}
		return list
	}
	return v
}

// shrink is how a result is reported: long strings by their length.
func shrink(v any) any {
	switch v := v.(type) {
	case string:
		if n := len(utf16.Encode([]rune(v))); n > 200 {
			return map[string]any{"$len": n}
		}
	case undefined:
		return nil
	}
	return v
}

// encode is v as compact JSON.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("BUG: result is no JSON: " + err.Error())
	}
	return bytes.TrimSpace(b.Bytes())
}

// payload is how an event reports a message.
func payload(m hibernate.Message) map[string]any {
	kind := "bin"
	if m.Kind == hibernate.TextMessage {
		kind = "text"
	}
	switch {
	case len(m.Data) > 200:
		h := fnv.New32a()
		h.Write(m.Data)
		return map[string]any{"kind": kind, "len": len(m.Data), "fnv": fmt.Sprintf("%08x", h.Sum32())}
	case kind == "text":
		return map[string]any{"text": m.Text()}
	}
	return map[string]any{"bin": base64.StdEncoding.EncodeToString(m.Data)}
}

// A userError is what the operation throw throws.
type userError struct{ text string }

func (e *userError) Error() string { return "user: " + e.text }

// A typeError is for a value that cannot be used.
type typeError struct{ text string }

func (e *typeError) Error() string { return e.text }

// describe is how an error is reported.
func describe(err error) map[string]any {
	class, message := "other", err.Error()
	var user *userError
	var bad *typeError
	var limit *hibernate.LimitError
	var protocol *hibernate.ProtocolError
	switch {
	case errors.As(err, &user):
		class, message = "user", user.Error()
	case errors.Is(err, hibernate.ErrReset):
		class = "reset"
	case errors.As(err, &protocol): // also one against a limit
		class = "protocol"
	case errors.As(err, &limit):
		class = "limit"
	case errors.As(err, &bad):
		class = "type"
	case errors.Is(err, hibernate.ErrTxnDone), errors.Is(err, hibernate.ErrState),
		errors.Is(err, hibernate.ErrClosed), errors.Is(err, hibernate.ErrReentrant):
		class = "state"
	case errors.Is(err, hibernate.ErrInvalid):
		class = "argument"
	}
	return map[string]any{"class": class, "name": fmt.Sprintf("%T", err), "message": message}
}

// A pause is one timer that is waited for.
type pause struct {
	s     *Server
	timer hibernate.Timer
	over  chan struct{}
}

// pause starts a timer of d on the server's clock.
func (s *Server) pause(ms float64) *pause {
	p := &pause{s: s, over: make(chan struct{})}
	p.timer = s.clock.AfterFunc(millis(ms), func() {
		s.started.Add(1)
		close(p.over)
	})
	return p
}

// wait waits for the timer, or for the end of ctx. After a nil the caller counts
// down started, once what the timer has set off is in its turn.
func (p *pause) wait(ctx context.Context) error {
	select {
	case <-p.over:
		return nil
	case <-ctx.Done():
	}
	if !p.timer.Stop() {
		<-p.over
		p.s.started.Add(-1)
	}
	return context.Cause(ctx)
}
