package hostile

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// How long an honest client may wait for one thing, by two measures that do not tell what else the machine has to do:
// how long this process, which serves everybody, has worked meanwhile, and how long the control has got along. The first
// finds a server that is busy with others, the second one that does nothing.
const (
	workPatience    = 5 * time.Second
	controlPatience = 3 * time.Second
)

// A moment is the time by both measures.
type moment struct{ work, control time.Duration }

func (c *control) now() moment { return moment{worked(), c.elapsed()} }

// since is the time from begun on.
func (c *control) since(begun moment) moment {
	return moment{worked() - begun.work, c.elapsed() - begun.control}
}

// or is the longer of both, by each measure.
func (m moment) or(n moment) moment { return moment{max(m.work, n.work), max(m.control, n.control)} }

// tooLong reports whether nobody should have waited for so long.
func (m moment) tooLong() bool { return m.work > workPatience || m.control > controlPatience }

func (m moment) String() string {
	return fmt.Sprintf("work of %v and a control of %v", m.work, m.control)
}

// limit is how long an honest client waits by the clock, so that what never comes is noticed.
const limit = time.Minute

// An honest client sends, reads everything it is sent, and keeps count.
type honest struct {
	id   int
	time *control
	conn net.Conn
	br   *bufio.Reader

	sent, told int
	last       map[int]int // of each honest client, the number of the last that it told all
	longest    moment      // that this one waited
}

func dial(c *control, addr, path string, id int) (*honest, error) {
	d := ws.Dialer{Timeout: limit}
	conn, br, _, err := d.Dial(context.Background(), "ws://"+addr+path)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if br == nil {
		br = bufio.NewReader(conn)
	}
	return &honest{id: id, time: c, conn: conn, br: br, last: map[int]int{}}, nil
}

// echo sends a message and waits for it.
func (h *honest) echo() error {
	h.sent++
	return h.exchange(fmt.Sprintf("echo %d %d", h.id, h.sent))
}

// tell sends a message to all in the room and waits until it has come round.
func (h *honest) tell() error {
	h.told++
	return h.exchange(fmt.Sprintf("all %d %d", h.id, h.told))
}

// exchange sends text and reads until it comes back. Whatever others tell must be
// in order.
func (h *honest) exchange(text string) error {
	begun := h.time.now()
	h.conn.SetDeadline(time.Now().Add(limit))
	if _, err := h.conn.Write(ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte(text))))); err != nil {
		return fmt.Errorf("%d sends %q: %w", h.id, text, err)
	}
	for {
		f, err := ws.ReadFrame(h.br)
		if err != nil {
			return fmt.Errorf("%d waits for %q: %w", h.id, text, err)
		}
		got := string(f.Payload)
		var who, n int
		if _, err := fmt.Sscanf(got, "all %d %d", &who, &n); err == nil && strings.HasPrefix(got, "all ") {
			if before, ok := h.last[who]; ok && n != before+1 {
				return fmt.Errorf("%d hears number %d of %d behind number %d", h.id, n, who, before)
			}
			h.last[who] = n
		} else if got != text {
			return fmt.Errorf("%d receives %v %.100q, want %q", h.id, f.Header.OpCode, got, text)
		}
		if got == text {
			h.longest = h.longest.or(h.time.since(begun))
			return nil
		}
	}
}

// A crowd is honest clients in a few rooms at all doors.
type crowd []*honest

func gather(tb testing.TB, s *server, n, rooms int) crowd {
	tb.Helper()
	var c crowd
	for i := range n {
		h, err := dial(s.control, s.doors[i%len(s.doors)], roomPath(i/len(s.doors)%rooms), i)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { h.conn.Close() })
		c = append(c, h)
	}
	return c
}

func roomPath(i int) string { return fmt.Sprintf("/o/room-%d", i) }

// each runs f for all at once.
func (c crowd) each(f func(*honest) error) error {
	errs := make(chan error, len(c))
	for _, h := range c {
		go func() { errs <- f(h) }()
	}
	var first error
	for range c {
		if err := <-errs; first == nil {
			first = err
		}
	}
	return first
}

// talk has all of them send and tell until ctx ends.
func (c crowd) talk(ctx context.Context) error {
	return c.each(func(h *honest) error {
		for i := 0; ctx.Err() == nil; i++ {
			say := h.echo
			if i%16 == 0 {
				say = h.tell
			}
			if err := say(); err != nil {
				return err
			}
			pause(ctx, time.Millisecond)
		}
		return nil
	})
}

// heard checks that everybody has heard everything that was told in the room.
func (c crowd) heard(rooms, doors int) error {
	if err := c.each((*honest).echo); err != nil { // behind all that was told before
		return err
	}
	for i, h := range c {
		for j, o := range c {
			if i/doors%rooms == j/doors%rooms && h.last[o.id] != o.told {
				return fmt.Errorf("%d has heard %d of the %d that %d told", h.id, h.last[o.id], o.told, o.id)
			}
		}
	}
	return nil
}

// comeAndGo is honest clients that connect, exchange one message and close, until
// ctx ends. It returns how many did and how long the slowest took.
func comeAndGo(ctx context.Context, s *server) (n int, longest moment, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, addr := range s.doors {
		wg.Go(func() {
			for ctx.Err() == nil {
				begun := s.control.now()
				failed := visit(s.control, addr, 1000+i)
				mu.Lock()
				n++
				longest = longest.or(s.control.since(begun))
				if failed != nil && err == nil {
					err = failed
				}
				mu.Unlock()
				pause(ctx, 10*time.Millisecond)
			}
		})
	}
	wg.Wait()
	return n, longest, err
}

func visit(c *control, addr string, id int) error {
	h, err := dial(c, addr, "/o/visitors", id)
	if err != nil {
		return err
	}
	defer h.conn.Close()
	if err := h.echo(); err != nil {
		return err
	}
	if _, err := h.conn.Write(closing(1000, "")); err != nil {
		return err
	}
	if f, err := ws.ReadFrame(h.br); err != nil || f.Header.OpCode != ws.OpClose {
		return fmt.Errorf("close of %d is answered with %v, %w", id, f.Header.OpCode, err)
	}
	return nil
}
