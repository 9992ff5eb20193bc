// Package protocol is what the peers' servers share: the flag that says where to listen, and rooms.
//
// The protocol is that of ../server without objects: GET /room/{name} upgrades, a message "b:…" goes to every
// connection of the room, everything else is echoed, and SIGUSR1 gives unused memory back.
package protocol

import (
	"bytes"
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
)

var addr = flag.String("addr", "127.0.0.1:9001", "IPv4 `host:port` to listen on")

// Start parses the flags and returns the address to listen on.
func Start() string {
	flag.Parse()
	log.SetFlags(0)
	if free != nil {
		c := make(chan os.Signal, 1)
		signal.Notify(c, free)
		go func() {
			for range c {
				debug.FreeOSMemory()
			}
		}()
	}
	return *addr
}

// Listen is Start for a server that accepts from a net.Listener. Multipath TCP, which Go offers by default, would cost
// an upgrade and a message a little more, so nobody has it.
func Listen() net.Listener {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp4", Start())
	if err != nil {
		log.Fatal(err)
	}
	return ln
}

// RoomName is the room of a request's path.
func RoomName(path string) string { return strings.TrimPrefix(path, "/room/") }

// IsBroadcast reports whether a message is for the whole room.
func IsBroadcast(p []byte) bool { return bytes.HasPrefix(p, []byte("b:")) }

// Rooms are sets of connections by name. The zero value is empty.
type Rooms[C comparable] struct {
	mu sync.Mutex // guards the following; taken before a Room's
	m  map[string]*Room[C]
}

// A Room is a set of connections. A slice takes less than a map, and a member leaves but once.
type Room[C comparable] struct {
	name string // immutable

	mu      sync.RWMutex // guards the following
	members []C
}

// Join adds c to the room with a name.
func (r *Rooms[C]) Join(name string, c C) *Room[C] {
	r.mu.Lock()
	defer r.mu.Unlock()
	room := r.m[name]
	if room == nil {
		if r.m == nil {
			r.m = map[string]*Room[C]{}
		}
		room = &Room[C]{name: strings.Clone(name)}
		r.m[room.name] = room
	}
	room.mu.Lock()
	room.members = append(room.members, c)
	room.mu.Unlock()
	return room
}

// Leave takes c out of room, and forgets the room with its last member.
func (r *Rooms[C]) Leave(room *Room[C], c C) {
	r.mu.Lock()
	defer r.mu.Unlock()
	room.mu.Lock()
	defer room.mu.Unlock()
	if i := slices.Index(room.members, c); i >= 0 {
		last := len(room.members) - 1
		room.members[i] = room.members[last]
		room.members = slices.Delete(room.members, last, last+1)
	}
	if len(room.members) == 0 {
		delete(r.m, room.name)
	}
}

// Each calls f with every member. Nobody joins or leaves meanwhile.
func (room *Room[C]) Each(f func(C)) {
	room.mu.RLock()
	defer room.mu.RUnlock()
	for _, c := range room.members {
		f(c)
	}
}
