// Gws is a peer on lxzan/gws with its own server, which does without net/http's: a goroutine for each connection, small
// read buffers, and its Broadcaster.
package main

import (
	"bufio"
	"log"
	"log/slog"
	"net"
	"net/http"

	"github.com/lxzan/gws"

	"github.com/hibernate-go/hibernate/internal/bench/peers/protocol"
)

type handler struct{ gws.BuiltinEventHandler }

// A session is what gws keeps with a connection: of its map of any values we need the room alone.
type session struct{ room *protocol.Room[*gws.Conn] }

func (s *session) Len() int                     { return 1 }
func (s *session) Load(string) (any, bool)      { return s.room, true }
func (s *session) Delete(string)                {}
func (s *session) Store(_ string, v any)        { s.room = v.(*protocol.Room[*gws.Conn]) }
func (s *session) Range(func(string, any) bool) {}

var rooms protocol.Rooms[*gws.Conn]

func (*handler) OnClose(c *gws.Conn, err error) { rooms.Leave(c.Session().(*session).room, c) }

func (*handler) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	if protocol.IsBroadcast(m.Bytes()) {
		b := gws.NewBroadcaster(m.Opcode, m.Bytes())
		c.Session().(*session).room.Each(func(to *gws.Conn) { _ = b.Broadcast(to) })
		b.Close()
		return
	}
	_ = c.WriteMessage(m.Opcode, m.Bytes())
}

func main() {
	server := gws.NewServer(&handler{}, &gws.ServerOption{
		ReadBufferSize: 1 << 10,
		NewSession:     func() gws.SessionStorage { return &session{} },
		Logger:         slogger{},
	})
	server.OnRequest = func(nc net.Conn, br *bufio.Reader, r *http.Request) {
		c, err := server.GetUpgrader().UpgradeFromConn(nc, br, r)
		if err != nil {
			return
		}
		c.Session().Store("", rooms.Join(protocol.RoomName(r.URL.Path), c))
		go c.ReadLoop() // on a stack that parsing has not made large
	}
	log.Fatal(server.RunListener(protocol.Listen()))
}

// slogger takes gws's reports: of a benchmark's resets they are many.
type slogger struct{}

func (slogger) Error(v ...any) { slog.Debug("gws", "error", v) }
