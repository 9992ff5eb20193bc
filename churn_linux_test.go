//go:build !portable

package hibernate_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// TestConnectionsThatCameAndWentLeaveNothing: descriptors, goroutines and the live heap are what they were, also after
// 100,000 connections, for which HIBERNATE_SLOW asks.
func TestConnectionsThatCameAndWentLeaveNothing(t *testing.T) {
	total := 2_000
	if os.Getenv("HIBERNATE_SLOW") != "" {
		total = 100_000
	}
	d := serveBothDoors(t, nil, newEcho, nil)
	d.take(func(h *hibernate.Handshake) (hibernate.Join, error) {
		join, err := d.byPath(h)
		join.Attachment = join.Tags
		return join, err
	})
	c := churn{addr: d.srv.Listener.Addr().String()}
	c.visits(t, 200)
	const runners = 8 // that a runtime may keep for the next turns
	before := d.atRest()
	c.visits(t, total)
	const slack = 256 << 10 // of what the runtime and net/http keep
	var after holdings
	defer func() { t.Logf("after %d connections %+v, before %+v", total, after, before) }()
	d.until("what they held to go", func() bool { // net/http's goroutines and the kernel's descriptors end in their own time
		after = d.atRest()
		return after.goroutines <= before.goroutines+runners && after.descriptors <= before.descriptors && after.heap <= before.heap+slack
	})
}

// holdings are what a process has.
type holdings struct {
	goroutines, descriptors int
	heap                    uint64 // live bytes
}

// atRest waits until no connection and no object is left, and tells what is.
func (d *doorRig) atRest() (h holdings) {
	d.t.Helper()
	d.until("connections to end", func() bool {
		d.clock.Advance(11 * time.Second)
		s := d.rt.Stats()
		return s.Sockets == 0 && s.ObjectsInMemory == 0 && s.ObjectsAsleep == 0 && d.rt.Waiting() == 0
	})
	runtime.GC()
	runtime.GC() // what pools held is gone after the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return holdings{runtime.NumGoroutine(), openDescriptors(d.t), m.HeapAlloc}
}

// churn opens connections that end in every way.
type churn struct {
	addr string
	next atomic.Int64
}

// visits makes n connections, eight at a time.
func (c *churn) visits(t *testing.T, n int) {
	t.Helper()
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	last := c.next.Load() + int64(n)
	for range 8 {
		wg.Go(func() {
			for failed.Load() == nil {
				i := c.next.Add(1)
				if i > last {
					return
				}
				if err := c.visit(int(i)); err != nil {
					err = fmt.Errorf("connection %d: %w", i, err)
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	c.next.Store(last)
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
}

// visit makes the i-th connection. Several addresses to come from have ports enough for those that are not reset.
func (c *churn) visit(i int) error {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 2, byte(1+i%20))}, Timeout: patience}
	nc, err := dialer.Dial("tcp4", c.addr)
	if err != nil {
		return err
	}
	conn := nc.(*net.TCPConn)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	request := strings.ReplaceAll(upgrade(fmt.Sprintf("/o/%d?tag=t%d", i%500, i)), "\n", "\r\n")
	kind := i % 5
	switch kind {
	case 0: // leaves in the middle of its request
		conn.Write([]byte(request[:20]))
		return conn.SetLinger(0)
	case 1: // comes through net/http
		if _, err := io.WriteString(conn, "GET /body HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		if err := readUntil(conn, "<nil>"); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	if err := readUntil(conn, "\r\n\r\n"); err != nil || kind == 1 {
		return err // and is gone without a Close
	}
	if _, err := conn.Write(frame(true, ws.OpText, "hello")); err != nil {
		return err
	}
	switch kind {
	case 2: // does not wait for the answer
		return conn.SetLinger(0)
	case 3:
		if err := readUntil(conn, "hello"); err != nil {
			return err
		}
		return conn.SetLinger(0)
	}
	if _, err := conn.Write(frame(true, ws.OpClose, "\x03\xe8")); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn)
	return err
}

// readUntil reads until want has come.
func readUntil(r io.Reader, want string) error {
	var got []byte
	buf := make([]byte, 1<<10)
	for !bytes.Contains(got, []byte(want)) {
		n, err := r.Read(buf)
		if got = append(got, buf[:n]...); err != nil {
			return fmt.Errorf("%w after %q", err, got)
		}
	}
	return nil
}
