// Melody is a peer on olahol/melody, which is on gorilla/websocket: two goroutines and a queue for each connection.
package main

import (
	"log"
	"net/http"
	"sync"

	"github.com/olahol/melody"

	"github.com/hibernate-go/hibernate/internal/bench/peers/protocol"
)

func main() {
	m := melody.New()
	m.Upgrader.WriteBufferPool = &sync.Pool{}
	m.Config.MaxMessageSize = 1 << 20
	m.Config.MessageBufferSize = 32 // for 16 in flight; when it is full, messages are lost
	var rooms protocol.Rooms[*melody.Session]
	roomOf := func(s *melody.Session) *protocol.Room[*melody.Session] {
		return s.MustGet("room").(*protocol.Room[*melody.Session])
	}
	m.HandleConnect(func(s *melody.Session) {
		s.Set("room", rooms.Join(protocol.RoomName(s.Request.URL.Path), s))
	})
	m.HandleDisconnect(func(s *melody.Session) { rooms.Leave(roomOf(s), s) })
	m.HandleMessage(func(s *melody.Session, p []byte) {
		if protocol.IsBroadcast(p) {
			// Not m.BroadcastFilter, which asks every session of the server.
			roomOf(s).Each(func(to *melody.Session) { _ = to.Write(p) })
			return
		}
		_ = s.Write(p)
	})
	m.HandleMessageBinary(func(s *melody.Session, p []byte) { _ = s.WriteBinary(p) })
	log.Fatal(http.Serve(protocol.Listen(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = m.HandleRequest(w, r)
	})))
}
