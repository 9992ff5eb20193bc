// Package room is what is added to the server: rooms whose members hear each other.
package room

import (
	"context"
	"net/http"
	"unicode/utf8"

	"github.com/hibernate-go/hibernate"
)

// Limits suit short messages.
var Limits = hibernate.Limits{Message: 4 << 10, SocketsPerObject: 1000, SendQueue: 1 << 20}

// A Room tells everybody in it what one says. It keeps nothing.
type Room struct {
	state *hibernate.State
}

// A Member is the attachment of a connection. The middleware that found the user runs once, at the
// handshake; the attachment remembers for as long as the connection lasts.
type Member struct {
	User string
}

// Handler registers the Room class with rt and returns the handler of its route, whose pattern names the room by
// {name}. user is who is asking, as the server's own middleware has left it in the request's context.
func Handler(rt *hibernate.Runtime, user func(context.Context) string) (http.Handler, error) {
	rooms, err := hibernate.Register(rt, "Room", newRoom, nil)
	if err != nil {
		return nil, err
	}
	return rooms.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		if user(h.Context()) == "" { // the route was mounted without the middleware
			return hibernate.Join{}, hibernate.Refuse(http.StatusUnauthorized, "Log in first.")
		}
		return hibernate.Join{
			Object:     rooms.GetByName(h.PathValue("name")),
			Attachment: Member{User: user(h.Context())},
		}, nil
	}), nil
}

func newRoom(ctx context.Context, s *hibernate.State) (*Room, error) {
	// For proxies that cut a connection on which nothing is said. The room sleeps on.
	return &Room{s}, s.SetWebSocketAutoResponse(ctx, hibernate.AutoResponse{Request: "ping", Response: "pong"})
}

// WebSocketMessage tells everybody who has said what.
func (r *Room) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	member, _, err := hibernate.Attachment[Member](ws)
	if err != nil {
		return err
	}
	if m.Text() == "ping" { // the message that constructed the room: the runtime answers those that follow
		return ws.SendText(ctx, "pong")
	}
	if !utf8.Valid(m.Data) {
		return ws.Close(ctx, 1007, "messages are text")
	}
	_, err = r.state.Broadcast(ctx, hibernate.Text(member.User+": "+m.Text()), nil)
	return err
}
