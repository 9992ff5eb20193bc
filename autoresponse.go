package hibernate

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/hibernate-go/hibernate/internal/registry"
)

// maxAutoResponse is the longest request or response in bytes, and
// maxAutoResponses the number of pairs of an object.
const (
	maxAutoResponse  = 2048
	maxAutoResponses = 16
)

// An AutoResponse answers every text message that equals Request with Response,
// without waking the object or restarting its idle time.
type AutoResponse struct {
	Request, Response string // at most 2,048 bytes each
}

// SetWebSocketAutoResponse replaces the object's auto-responses by pairs; with
// none it clears them. They hold for all WebSockets of the object, whenever
// accepted, and survive hibernation, not a restart of the process (semantics 7).
//
// A text message matches if it equals a Request byte for byte; the first pair
// that matches answers. Each side may have at most 2,048 bytes and there may be
// 16 pairs, else a *LimitError. The answer does not wait for writes; it waits
// only for earlier messages of the same socket.
//
// ctx is that of a turn of the object, and the change is part of that turn.
func (s *State) SetWebSocketAutoResponse(ctx context.Context, pairs ...AutoResponse) error {
	if len(pairs) > maxAutoResponses {
		return &LimitError{Limit: "auto-response pairs", Max: maxAutoResponses, Got: int64(len(pairs))}
	}
	encoded := make([]registry.Pair, len(pairs))
	for i, p := range pairs {
		for _, side := range []struct{ name, text string }{{"request", p.Request}, {"response", p.Response}} {
			if n := len(side.text); n > maxAutoResponse {
				return &LimitError{Limit: "auto-response " + side.name + " bytes", Max: maxAutoResponse, Got: int64(n)}
			}
			if !utf8.ValidString(side.text) {
				return fmt.Errorf("%w: auto-response %s is not UTF-8", ErrInvalid, side.name)
			}
		}
		encoded[i] = registry.NewPair(p.Request, p.Response)
	}
	t, err := s.turn(ctx)
	if err != nil {
		return err
	}
	return t.SetAutoResponses(encoded)
}

// WebSocketAutoResponses are the pairs in force. It may be called anywhere.
func (s *State) WebSocketAutoResponses() []AutoResponse {
	in := s.act.Object().AutoResponses()
	pairs := make([]AutoResponse, len(in))
	for i, p := range in {
		pairs[i] = AutoResponse{p.Request, p.Response}
	}
	return pairs
}

// AutoResponseTime is when the last auto-response was given on this connection,
// by the runtime's clock; zero before the first (semantics 7.5). It may be called
// anywhere.
func (ws WebSocket) AutoResponseTime() time.Time {
	if ws.s == nil {
		return time.Time{}
	}
	return ws.s.Answered()
}
