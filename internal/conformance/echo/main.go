// Echo serves a hibernating object that sends back what it is sent: for the
// Autobahn test suite and others that test a server by its echo.
//
//	echo -addr 127.0.0.1:9001 -idle 10s
//
// Every path is an object of its own. Any origin may connect, permessage-deflate
// is accepted when it is offered, and a message may have 16 MiB in a million
// frames.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/hibernate-go/hibernate"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:9001", "address to serve")
	idle := flag.Duration("idle", 10*time.Second, "how long an idle object stays in memory")
	flag.Parse()
	if err := run(*addr, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

// run does not return before something fails.
func run(addr string, idle time.Duration) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	rt, h, ln, err := open(ln, &hibernate.Options{IdleTimeout: idle})
	if err != nil {
		return err
	}
	return errors.Join(http.Serve(ln, h), rt.Close())
}

// open opens a runtime whose objects are to be served, by h, from the listener it
// returns for ln.
func open(ln net.Listener, o *hibernate.Options) (rt *hibernate.Runtime, h http.Handler, _ net.Listener, err error) {
	o.Limits.Message, o.Limits.Fragments = 16<<20, 1<<20
	if rt, err = hibernate.Open("", o); err != nil {
		return nil, nil, nil, err
	}
	echoes, err := hibernate.Register(rt, "Echo", func(context.Context, *hibernate.State) (echo, error) { return echo{}, nil }, &hibernate.ClassOptions{
		CheckOrigin:        func(*http.Request) bool { return true },
		Compression:        true,
		CompressionMinSize: -1,
	})
	if err != nil {
		return nil, nil, nil, errors.Join(err, rt.Close())
	}
	route := func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: echoes.GetByName(h.Path())}, nil
	}
	if ln, err = rt.WrapListener(ln, route); err != nil {
		return nil, nil, nil, errors.Join(err, rt.Close())
	}
	return rt, echoes.Handler(route), ln, nil
}

// An echo is the object. It has nothing to remember.
type echo struct{}

func (echo) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	return ws.Send(ctx, m)
}
