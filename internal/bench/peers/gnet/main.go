// Gnet is a peer on panjf2000/gnet's event loops, with gobwas/ws for the upgrade and frames taken where they were read.
//
// With one loop, the default here, a broadcast is written at once, without a lock; with several it is handed to the
// loops of its receivers.
package main

import (
	"bytes"
	"flag"
	"io"
	"log"

	"github.com/gobwas/ws"
	"github.com/panjf2000/gnet/v2"
	"github.com/panjf2000/gnet/v2/pkg/logging"

	"github.com/hibernate-go/hibernate/internal/bench/peers/protocol"
)

var loops = flag.Int("loops", 1, "event loops")

type engine struct {
	gnet.BuiltinEventEngine
	rooms protocol.Rooms[gnet.Conn]
	out   []byte // of the one loop
}

func (e *engine) OnClose(c gnet.Conn, err error) gnet.Action {
	if room, ok := c.Context().(*protocol.Room[gnet.Conn]); ok {
		e.rooms.Leave(room, c)
	}
	return gnet.None
}

func (e *engine) OnTraffic(c gnet.Conn) gnet.Action {
	b, err := c.Peek(-1)
	if err != nil {
		return gnet.Close
	}
	used := 0
	room, up := c.Context().(*protocol.Room[gnet.Conn])
	if !up {
		end := bytes.Index(b, []byte("\r\n\r\n"))
		if end < 0 {
			return gnet.None
		}
		used = end + 4
		var name string
		u := ws.Upgrader{OnRequest: func(uri []byte) error {
			name = protocol.RoomName(string(uri))
			return nil
		}}
		if _, err := u.Upgrade(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(b[:used]), c}); err != nil {
			return gnet.Close
		}
		room = e.rooms.Join(name, c)
		c.SetContext(room)
	}
	var out []byte
	if *loops == 1 {
		out = e.out[:0]
	}
	for {
		f, ok := protocol.Parse(b[used:])
		if !ok {
			break
		}
		used += f.Size
		switch {
		case f.Op == byte(ws.OpClose):
			return gnet.Close
		case f.Op > byte(ws.OpClose):
		case protocol.IsBroadcast(f.Payload):
			frame := protocol.AppendFrame(nil, f.Op, f.Payload)
			room.Each(func(to gnet.Conn) {
				if *loops == 1 || to == c {
					_, _ = to.Write(frame)
				} else {
					_ = to.AsyncWrite(frame, nil)
				}
			})
		default:
			out = protocol.AppendFrame(out, f.Op, f.Payload)
		}
	}
	if len(out) > 0 {
		_, _ = c.Write(out)
	}
	if *loops == 1 {
		e.out = out
	}
	_, _ = c.Discard(used)
	return gnet.None
}

func main() {
	log.Fatal(gnet.Run(&engine{}, "tcp://"+protocol.Start(), gnet.WithNumEventLoop(*loops), gnet.WithLogLevel(logging.FatalLevel)))
}
