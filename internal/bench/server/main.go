//go:build unix

// Server is what the benchmarks measure of the library: rooms, one object each, behind GET /room/{name}.
//
// A message "b:…" goes to every connection of its room, "i:…" is answered "i:" and the number of the instance that
// answers, and anything else is echoed with its kind. SIGUSR1 gives unused memory back to the system.
//
// GET /tagged/{name} is a room whose connections have a tag of 16 bytes and an attachment of 32 bytes each, no two of
// them equal. GET /stats tells how many goroutines and objects there are, as JSON.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hibernate-go/hibernate"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:9001", "IPv4 `host:port` to listen on")
	idle := flag.Duration("idle", 10*time.Second, "a room without events leaves memory after this `duration`")
	door := flag.String("door", "acceptor", "way in: acceptor or http")
	dir := flag.String("dir", "", "`directory` with storage, of which constructors read one key; empty: none is used")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	free := make(chan os.Signal, 1)
	signal.Notify(free, syscall.SIGUSR1)
	go func() {
		for range free {
			debug.FreeOSMemory()
		}
	}()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // no peer pays for it either
	ln, err := lc.Listen(ctx, "tcp4", *addr)
	if err == nil {
		err = run(ctx, ln, *dir, *door, *idle)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends. It takes ln over.
func run(ctx context.Context, ln net.Listener, dir, door string, idle time.Duration) error {
	defer ln.Close()
	rt, err := hibernate.Open(dir, &hibernate.Options{IdleTimeout: idle})
	if err != nil {
		return err
	}
	defer rt.Close()
	var instances atomic.Uint64
	rooms, err := hibernate.Register(rt, "Room", func(ctx context.Context, s *hibernate.State) (*room, error) {
		r := &room{state: s, instance: instances.Add(1)}
		if dir == "" {
			return r, nil
		}
		return r, r.read(ctx)
	}, nil)
	if err != nil {
		return err
	}
	var connections atomic.Uint64
	route := func(h *hibernate.Handshake) (hibernate.Join, error) {
		path := h.Path()
		if name, ok := strings.CutPrefix(path, "/room/"); ok {
			return hibernate.Join{Object: rooms.GetByName(name)}, nil
		}
		if name, ok := strings.CutPrefix(path, "/tagged/"); ok {
			n := connections.Add(1)
			attachment := binary.BigEndian.AppendUint64(make([]byte, 0, 32), n)[:32]
			return hibernate.Join{Object: rooms.GetByName(name), Tags: []string{fmt.Sprintf("%016x", n)}, Attachment: attachment}, nil
		}
		return hibernate.Join{}, hibernate.Refuse(http.StatusNotFound, "rooms are at /room/{name}")
	}
	upgrades := rooms.Handler(route)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stats" {
			upgrades.ServeHTTP(w, r)
			return
		}
		s := rt.Stats()
		_ = json.NewEncoder(w).Encode(map[string]int64{
			"goroutines": int64(runtime.NumGoroutine()), "sockets": s.Sockets, "in_memory": s.ObjectsInMemory, "asleep": s.ObjectsAsleep,
		})
	})
	switch door {
	case "acceptor":
		if ln, err = rt.WrapListener(ln, route); err != nil {
			return err
		}
	case "http":
	default:
		return fmt.Errorf("no door is called %q", door)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// A room is one object.
type room struct {
	state    *hibernate.State
	instance uint64
}

const key = "state"

// read reads the room's key, and writes it the first time.
func (r *room) read(ctx context.Context) error {
	_, ok, err := r.state.Storage().GetBytes(ctx, key)
	if err != nil || ok {
		return err
	}
	return r.state.Storage().PutBytes(ctx, key, []byte("a value that is there"))
}

func (r *room) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	switch {
	case bytes.HasPrefix(m.Data, []byte("b:")):
		_, err := r.state.Broadcast(ctx, m, nil)
		return err
	case bytes.HasPrefix(m.Data, []byte("i:")):
		return ws.Send(ctx, hibernate.Message{Kind: m.Kind, Data: strconv.AppendUint([]byte("i:"), r.instance, 10)})
	}
	return ws.Send(ctx, m)
}
