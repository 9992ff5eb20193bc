// Gorilla is a peer on gorilla/websocket: a goroutine for each connection, small read buffers, pooled write buffers, and
// broadcasts that are framed once.
package main

import (
	"log"
	"net/http"
	"sync"

	"github.com/gorilla/websocket"

	"github.com/hibernate-go/hibernate/internal/bench/peers/protocol"
)

type conn struct {
	*websocket.Conn
	room *protocol.Room[*conn]
	mu   sync.Mutex // held while writing
}

var (
	rooms    protocol.Rooms[*conn]
	upgrader = websocket.Upgrader{
		ReadBufferSize:  1 << 10,
		WriteBufferSize: 1 << 10,
		WriteBufferPool: &sync.Pool{},
		CheckOrigin:     func(*http.Request) bool { return true },
	}
)

func main() {
	log.Fatal(http.Serve(protocol.Listen(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		c := &conn{Conn: ws}
		c.room = rooms.Join(protocol.RoomName(r.URL.Path), c)
		go c.serve() // and what net/http has of the connection is freed
	})))
}

func (c *conn) serve() {
	defer c.Close()
	defer rooms.Leave(c.room, c)
	for {
		kind, p, err := c.ReadMessage()
		if err != nil {
			return
		}
		if protocol.IsBroadcast(p) {
			m, err := websocket.NewPreparedMessage(kind, p)
			if err != nil {
				return
			}
			c.room.Each(func(to *conn) {
				to.mu.Lock()
				_ = to.WritePreparedMessage(m)
				to.mu.Unlock()
			})
			continue
		}
		c.mu.Lock()
		err = c.WriteMessage(kind, p)
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}
