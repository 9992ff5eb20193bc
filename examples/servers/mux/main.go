// Command mux is a server on net/http's ServeMux, with logging and sessions, to which one route was added.
// What was added is marked with "hibernate:".
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hibernate-go/hibernate" // hibernate: the import
	"github.com/hibernate-go/hibernate/examples/servers/room"
	"github.com/hibernate-go/hibernate/examples/servers/site"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`host:port` to listen on")
	dir := flag.String("dir", "rooms-data", "`directory` of the objects' storage")
	key := flag.String("key", "", "`secret` that signs the sessions; empty makes one up")
	cert := flag.String("tls-cert", "", "`file` with a certificate; empty serves without TLS")
	certKey := flag.String("tls-key", "", "`file` with its key")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	if err := run(ctx, os.Stdout, *addr, *dir, cmp.Or(*key, rand.Text()), *cert, *certKey); err != nil {
		fmt.Fprintln(os.Stderr, "mux:", err)
		os.Exit(1)
	}
}

// routes is the server's handler.
func routes(rt *hibernate.Runtime, key string) (http.Handler, error) {
	s := site.New([]byte(key))
	rooms, err := room.Handler(rt, site.User) // hibernate: the class and its handler
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.Home)
	mux.HandleFunc("POST /login", s.Login)
	mux.Handle("GET /rooms/{name}", s.Authenticated(rooms)) // hibernate: the one route
	return site.Logged(mux), nil
}

func run(ctx context.Context, out io.Writer, addr, dir, key, cert, certKey string) error {
	rt, err := hibernate.Open(dir, &hibernate.Options{Limits: room.Limits}) // hibernate: the runtime
	if err != nil {
		return err
	}
	defer rt.Close()
	handler, err := routes(rt, key)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	if cert != "" {
		fmt.Fprintf(out, "Serving https://%s\n", ln.Addr())
		go func() { served <- srv.ServeTLS(ln, cert, certKey) }()
	} else {
		fmt.Fprintf(out, "Serving http://%s\n", ln.Addr())
		go func() { served <- srv.Serve(ln) }()
	}

	select {
	case err = <-served:
	case <-rt.Done(): // hibernate: its storage has failed, so nothing more will work
		err = rt.Err()
	case <-ctx.Done():
	}

	// First the server, so that nothing new comes in; it knows nothing of WebSockets. Then the runtime, which waits
	// for handlers, makes everything durable, and says goodbye with 1001. Each gets a second and a half.
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		srv.Close()
	}
	ctx, cancel = context.WithTimeout(context.Background(), 1500*time.Millisecond) // hibernate:
	defer cancel()
	if down := rt.Shutdown(ctx); ctx.Err() == nil { // who did not answer in time was cut, and that is fine
		err = errors.Join(err, down)
	}
	return err
}
