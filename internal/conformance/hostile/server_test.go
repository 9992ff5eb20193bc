package hostile

import (
	"context"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

const maxMessage = 256 << 10

// A room answers "flood" with a megabyte, tells everybody what begins with "all ",
// and echoes the rest. It stores some of it.
type room struct {
	state *hibernate.State
	n     int
}

var big = hibernate.Binary(make([]byte, 64<<10))

func (r *room) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	if r.n++; r.n%32 == 0 {
		if err := hibernate.Put(ctx, r.state.Storage(), "n", r.n); err != nil {
			return err
		}
	}
	switch text := m.Text(); {
	case text == "flood":
		for range 16 {
			if err := ws.Send(ctx, big); err != nil {
				return nil // closed for not reading
			}
		}
		return nil
	case strings.HasPrefix(text, "all "):
		_, err := r.state.Broadcast(ctx, m, nil)
		return err
	}
	if err := ws.Send(ctx, m); err != nil {
		return nil
	}
	return nil
}

// WebSocketClose and WebSocketError wake the room for everybody who leaves.
func (r *room) WebSocketClose(context.Context, hibernate.WebSocket, hibernate.CloseEvent) error {
	return nil
}
func (r *room) WebSocketError(context.Context, hibernate.WebSocket, error) error { return nil }

// A server serves rooms at both doors: net/http's and the acceptor, in this order.
type server struct {
	rt      *hibernate.Runtime
	doors   []string
	control *control
}

func serve(tb testing.TB) *server {
	tb.Helper()
	rt, err := hibernate.Open("", &hibernate.Options{
		IdleTimeout: 200 * time.Millisecond,
		Logger:      slog.New(slog.DiscardHandler),
		Limits:      hibernate.Limits{Message: maxMessage, SendQueue: 512 << 10, Buffered: 64 << 20},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { rt.Close() })
	ns, err := hibernate.Register(rt, "Room", func(_ context.Context, s *hibernate.State) (*room, error) {
		return &room{state: s}, nil
	}, &hibernate.ClassOptions{CloseTimeout: 500 * time.Millisecond, Compression: true})
	if err != nil {
		tb.Fatal(err)
	}
	route := func(h *hibernate.Handshake) (hibernate.Join, error) {
		name, ok := strings.CutPrefix(h.Path(), "/o/")
		if !ok {
			return hibernate.Join{}, hibernate.Refuse(http.StatusNotFound, "no such room")
		}
		return hibernate.Join{Object: ns.GetByName(name)}, nil
	}
	mux := http.NewServeMux()
	mux.Handle("/o/", ns.Handler(route))
	mux.HandleFunc("/plain", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "plain") })
	s := &server{rt: rt, control: begin(tb)}
	for _, door := range []string{"http", "acceptor"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		s.doors = append(s.doors, ln.Addr().String())
		if door == "acceptor" {
			if ln, err = rt.WrapListener(ln, route); err != nil {
				tb.Fatal(err)
			}
		}
		srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0)}
		go srv.Serve(ln)
		tb.Cleanup(func() { srv.Close() })
	}
	return s
}
