// Coder is a peer on coder/websocket: a goroutine for each connection, no compression, pooled buffers for what is read.
package main

import (
	"bytes"
	"context"
	"log"
	"net/http"
	"sync"

	"github.com/coder/websocket"

	"github.com/hibernate-go/hibernate/internal/bench/peers/protocol"
)

var (
	rooms   protocol.Rooms[*websocket.Conn]
	buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}
)

func main() {
	log.Fatal(http.Serve(protocol.Listen(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled, InsecureSkipVerify: true})
		if err != nil {
			return
		}
		c.SetReadLimit(1 << 20)
		go serve(c, protocol.RoomName(r.URL.Path)) // and what net/http has of the connection is freed
	})))
}

func serve(c *websocket.Conn, name string) {
	defer func() { _ = c.CloseNow() }()
	room := rooms.Join(name, c)
	defer rooms.Leave(room, c)
	for answer(c, room) == nil {
	}
}

// answer answers one message.
func answer(c *websocket.Conn, room *protocol.Room[*websocket.Conn]) error {
	ctx := context.Background()
	kind, r, err := c.Reader(ctx)
	if err != nil {
		return err
	}
	b := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(b)
	b.Reset()
	if _, err := b.ReadFrom(r); err != nil {
		return err
	}
	if protocol.IsBroadcast(b.Bytes()) {
		room.Each(func(to *websocket.Conn) { _ = to.Write(ctx, kind, b.Bytes()) })
		return nil
	}
	return c.Write(ctx, kind, b.Bytes())
}
