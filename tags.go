package hibernate

import (
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/hibernate-go/hibernate/internal/socket"
)

// maxTags is the number of distinct tags of a socket, maxTag the bytes of one.
const (
	maxTags = 10
	maxTag  = 256
)

// newTags checks and copies tags: duplicates are dropped, and no element may
// follow the tenth distinct one (semantics 1.5, 1.6).
func newTags(tags []string) (socket.Tags, error) {
	list := make([]string, 0, maxTags)
	for _, tag := range tags {
		if len(list) == maxTags {
			return socket.Tags{}, &LimitError{Limit: "tags of one WebSocket", Max: maxTags, Got: int64(len(tags))}
		}
		if len(tag) > maxTag {
			return socket.Tags{}, &LimitError{Limit: "tag bytes", Max: maxTag, Got: int64(len(tag))}
		}
		if !utf8.ValidString(tag) {
			return socket.Tags{}, fmt.Errorf("%w: tag %q is not UTF-8", ErrInvalid, tag)
		}
		if !slices.Contains(list, tag) {
			list = append(list, tag)
		}
	}
	return socket.NewTags(list), nil
}

// Tags are the tags the socket was accepted with, in order, without duplicates.
// They may be read anywhere, also of a connection that is gone. The slice is the
// caller's.
func (ws WebSocket) Tags() []string {
	if ws.s == nil {
		return nil
	}
	return ws.s.Tags().All()
}

// WebSockets are the object's sockets. Without tags it lists all, the newest
// accepted first; with tags, those that have all of them, the oldest first
// (semantics 2.1). A socket is listed until its close or error handler has run,
// and one that the object has closed until its peer has answered or gone
// (2.4, 2.5). It may be called anywhere and does not block.
func (s *State) WebSockets(tags ...string) []WebSocket {
	in := s.act.Object().Sockets(tags)
	list := make([]WebSocket, len(in))
	for i, sock := range in {
		list[i] = WebSocket{sock}
	}
	return list
}
