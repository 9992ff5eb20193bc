// Command chi is a server on the chi router, with its middleware and sessions, to which one route was added.
// What was added is marked with "hibernate:". Running and ending it is as in ../mux.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/hibernate-go/hibernate" // hibernate: the import
	"github.com/hibernate-go/hibernate/examples/servers/room"
	"github.com/hibernate-go/hibernate/examples/servers/site"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	if err := run(ctx, "127.0.0.1:8080", "rooms-data"); err != nil {
		fmt.Fprintln(os.Stderr, "chi:", err)
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
	r := chi.NewRouter()
	r.Use(middleware.RequestID, middleware.Recoverer, site.Logged)
	r.Get("/", s.Home)
	r.Post("/login", s.Login)
	r.Group(func(r chi.Router) {
		r.Use(s.Authenticated)
		r.Method(http.MethodGet, "/rooms/{name}", rooms) // hibernate: the one route; chi sets its PathValue
	})
	return r, nil
}

func run(ctx context.Context, addr, dir string) error {
	rt, err := hibernate.Open(dir, &hibernate.Options{Limits: room.Limits}) // hibernate: the runtime
	if err != nil {
		return err
	}
	defer rt.Close()
	handler, err := routes(rt, rand.Text())
	if err != nil {
		return err
	}
	srv := &http.Server{Addr: addr, Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.ListenAndServe() }()
	fmt.Printf("Serving http://%s\n", addr)

	select {
	case err = <-served:
	case <-rt.Done(): // hibernate: its storage has failed, so nothing more will work
		err = rt.Err()
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		srv.Close()
	}
	ctx, cancel = context.WithTimeout(context.Background(), 1500*time.Millisecond) // hibernate: after the server
	defer cancel()
	if down := rt.Shutdown(ctx); ctx.Err() == nil {
		err = errors.Join(err, down)
	}
	return err
}
