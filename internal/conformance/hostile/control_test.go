package hostile

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// A control is a client of a bare TCP echo in this process, which has nothing to do with the library. What keeps it
// waiting too is the machine, or everything this process does together.
type control struct{ ran atomic.Int64 }

// step is how much of the time of one round counts at most: a round takes two milliseconds where the machine is not busy.
const step = 20 * time.Millisecond

// begin has a control go round and round until the test ends.
func begin(tb testing.TB) *control {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	peer, err := ln.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	ended := make(chan struct{}, 2)
	go func() {
		defer func() { ended <- struct{}{} }()
		defer peer.Close()
		for b := make([]byte, 1); ; { // io.Copy would keep a pipe
			if _, err := io.ReadFull(peer, b); err != nil {
				return
			}
			if _, err := peer.Write(b); err != nil {
				return
			}
		}
	}()
	c := new(control)
	go func() {
		defer func() { ended <- struct{}{} }()
		last := time.Now()
		for b := []byte("x"); ; time.Sleep(time.Millisecond) {
			if _, err := conn.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(conn, b); err != nil {
				return
			}
			now := time.Now()
			c.ran.Add(int64(min(now.Sub(last), step)))
			last = now
		}
	}()
	tb.Cleanup(func() {
		conn.Close()
		<-ended
		<-ended
	})
	return c
}

// elapsed is the time that has passed, without that in which nobody got anywhere.
func (c *control) elapsed() time.Duration { return time.Duration(c.ran.Load()) }
