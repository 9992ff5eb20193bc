//go:build !portable

package hibernate_test

import (
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

// acceptor says whether connections wait in epoll.
const acceptor = true

// wasClaimed fails unless n sockets are there or were, and none by way of net/http.
func (d *doorRig) wasClaimed(int64) {
	d.t.Helper()
	if n := d.http.Load(); n != 0 {
		d.t.Errorf("net/http got %d requests", n)
	}
}

// settled waits until the acceptor has n connections that wait for their request.
func (d *doorRig) settled(n int) {
	d.t.Helper()
	d.until("the acceptor to see its connections", func() bool { return d.rt.Waiting() == n })
}

// few goroutines may come and go beside any number of connections: idle runners, and the loop that replaces one that the
// system did not let run.
const few = 10

func openDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestSilentConnectionsAreCutAndCostNoGoroutine(t *testing.T) {
	d := serveBothDoors(t, nil, newEcho, nil)
	warm := d.raw(upgrade("/o/a"))
	warm.switched()
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors(t)
	const n = 200
	var early, late [n]*client
	for i := range early {
		early[i] = d.raw([]string{"", "G", "GET / HTTP/1.1\n", "GET / HTTP/1.1\nHost: x\n"}[i%4])
	}
	d.settled(n)
	d.clock.Advance(9 * time.Second)
	for i := range late {
		late[i] = d.raw("GET ")
	}
	d.settled(2 * n)
	if after := runtime.NumGoroutine(); after > goroutines+few {
		t.Errorf("%d goroutines with %d silent connections, %d without", after, 2*n, goroutines)
	}
	d.clock.Advance(999 * time.Millisecond)
	d.settled(2 * n)
	d.clock.Advance(time.Millisecond)
	d.settled(n)
	for _, c := range early {
		c.ended()
	}
	done := d.raw(upgrade("/o/a"))
	done.switched()
	late[0].write([]byte("/body HTTP/1.1\r\nHost: x\r\n\r\n"))
	if resp := late[0].response(); resp.StatusCode != 200 {
		t.Errorf("answered %s", resp.Status)
	}
	d.settled(n - 1)
	d.clock.Advance(9 * time.Second)
	d.settled(0)
	for _, c := range late[1:] {
		c.ended()
	}
	for _, c := range append(early[:], late[:]...) {
		c.conn.Close()
	}
	d.until("descriptors to close", func() bool { return openDescriptors(t) <= descriptors+2 })
	warm.send("x")
	warm.expect("text:x 1")
}

func TestPeersThatLeaveBeforeTheirRequestLeaveNothing(t *testing.T) {
	d := serveBothDoors(t, nil, newEcho, nil)
	d.raw(upgrade("/o/a")).switched()
	before := openDescriptors(t)
	for i := range 100 {
		c := d.raw([]string{"", "GET /"}[i%2])
		if i%4 < 2 {
			c.reset()
		} else {
			c.drop()
		}
	}
	d.until("descriptors to close", func() bool { return openDescriptors(t) <= before })
	d.settled(0)
}

func TestStormOfConnectionsWaitsInTheBacklog(t *testing.T) {
	d := serveBothDoors(t, &hibernate.Options{Limits: hibernate.Limits{Handshakes: 3}}, newEcho, nil)
	silent := []*client{d.raw(""), d.raw(""), d.raw("")}
	d.settled(3)
	var behind []*client
	for range 5 {
		behind = append(behind, d.raw(upgrade("/o/a")))
	}
	d.settled(3)
	silent[1].drop()
	for i, c := range behind {
		c.switched()
		if i == 2 {
			d.settled(2)
		}
	}
	if s := d.rt.Stats(); s.Sockets != 5 {
		t.Errorf("%d sockets", s.Sockets)
	}
	d.raw("GET /") // full again
	d.settled(3)
	last := d.raw(upgrade("/o/a"))
	d.clock.Advance(10 * time.Second)
	last.switched()
	d.settled(0)
}

// Connections that nobody accepts count, too.
func TestConnectionsNotAcceptedAreBounded(t *testing.T) {
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Handshakes: 2}})
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := r.rt.WrapListener(inner, func(*hibernate.Handshake) (hibernate.Join, error) { return hibernate.Join{}, nil })
	if err != nil {
		t.Fatal(err)
	}
	before := openDescriptors(t)
	for range 10 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte("POST"))
	}
	r.until("two to wait", func() bool { return r.rt.Waiting() == 2 })
	if n := openDescriptors(t) - before; n != 12 {
		t.Errorf("%d descriptors for 10 connections, 2 of them accepted", n)
	}
	for range 10 {
		nc, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
}

// Both doors give the same connection at rest: a descriptor, no goroutine.
func TestUpgradesByNetHTTPBehindTheAcceptorCostNoGoroutine(t *testing.T) {
	d := serveBothDoors(t, nil, newEcho, nil)
	second := func() *client {
		c := d.raw("GET /body HTTP/1.1\nHost: x\n\n" + upgrade("/o/a"))
		c.response().Body.Close()
		_, _ = c.br.Discard(c.br.Buffered())
		return c
	}
	before, descriptors := runtime.NumGoroutine(), openDescriptors(t)
	const n = 100
	for range n {
		second()
	}
	d.until("upgrades", func() bool { return d.rt.Stats().Sockets == n })
	d.until("goroutines to end", func() bool { return runtime.NumGoroutine() <= before+few })
	d.until("descriptors", func() bool { return openDescriptors(t) == descriptors+2*n })
}

// Whatever a connection is at when the listener or the runtime is closed, it is
// closed too, and nothing stays behind.
func TestClosingInAStormLeavesNothing(t *testing.T) {
	descriptors := openDescriptors(t)
	for round := range 12 {
		r := newRig(t, "", nil)
		ns, err := hibernate.Register(r.rt, "Test", newEcho, nil)
		if err != nil {
			t.Fatal(err)
		}
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		route := func(h *hibernate.Handshake) (hibernate.Join, error) {
			return hibernate.Join{Object: ns.GetByName(h.Path())}, nil
		}
		ln, err := r.rt.WrapListener(inner, route)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: ns.Handler(route), ErrorLog: log.New(io.Discard, "", 0)}
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ln) }()
		var storm sync.WaitGroup
		upgrades := make(chan struct{}, 1000)
		for k := range 4 {
			storm.Go(func() {
				for i := 0; ; i++ {
					conn, err := net.Dial("tcp", ln.Addr().String())
					if err != nil {
						return
					}
					defer conn.Close()
					req := []string{upgrade("/a"), "GET / HTTP/1.1\nHost: x\n\n", "GET /"}[(i+k)%3]
					io.WriteString(conn, strings.ReplaceAll(req, "\n", "\r\n"))
					if (i+k)%3 == 0 {
						conn.SetReadDeadline(time.Now().Add(patience))
						if _, err := conn.Read(make([]byte, 12)); err != nil {
							return
						}
						upgrades <- struct{}{}
					}
				}
			})
		}
		for range 10 + 3*round {
			<-upgrades
		}
		if round%2 == 0 {
			ln.Close()
		}
		if err := r.rt.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err == nil {
			t.Error("the server ended without an error")
		}
		storm.Wait()
		srv.Close()
	}
	deadline := time.Now().Add(patience)
	for openDescriptors(t) > descriptors && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if n := openDescriptors(t); n > descriptors {
		t.Errorf("%d descriptors open, before %d", n, descriptors)
	}
}
