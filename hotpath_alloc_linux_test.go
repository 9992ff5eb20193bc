//go:build !portable && !race

package hibernate_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// A mirror sends back what it is told.
type mirror struct{}

func newMirror(context.Context, *hibernate.State) (mirror, error) { return mirror{}, nil }

func (mirror) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	return ws.Send(ctx, m)
}

// allocated is what each of n runs of f has allocated, in the median of 20 samples: whatever else the process does, and a
// sample in which the loop was not let run in time, do not count.
func allocated(n int, f func()) (objects, size float64) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would empty the pools
	for range 10 {
		f()
	}
	var a, b runtime.MemStats
	var counts, sizes []float64
	for range 20 {
		runtime.ReadMemStats(&a)
		for range n {
			f()
		}
		runtime.ReadMemStats(&b)
		counts = append(counts, float64(b.Mallocs-a.Mallocs)/float64(n))
		sizes = append(sizes, float64(b.TotalAlloc-a.TotalAlloc)/float64(n))
	}
	slices.Sort(counts)
	slices.Sort(sizes)
	return counts[len(counts)/2], sizes[len(sizes)/2]
}

// The whole way of a message, from the system and back: what a turn costs is its ctx.
func TestTurnAllocatesItsContextAlone(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, newMirror, nil)
	for _, inFlight := range []int{1, 16} {
		t.Run(fmt.Sprintf("in flight=%d", inFlight), func(t *testing.T) {
			c := r.dial("/o/a")
			const payload = "a message of thirty-two bytes..."
			out := bytes.Repeat(frame(true, ws.OpText, payload), inFlight)
			masked := slices.Clone(out)
			in := make([]byte, inFlight*(2+len(payload)))
			c.conn.SetDeadline(time.Now().Add(patience))
			var failed error
			objects, size := allocated(100, func() {
				copy(out, masked)
				_, err := c.conn.Write(out)
				if err == nil {
					_, err = io.ReadFull(c.conn, in)
				}
				if err != nil {
					failed = err
				}
			})
			if failed != nil || !bytes.HasSuffix(in, []byte(payload)) {
				t.Fatalf("received %q, %v", in, failed)
			}
			objects, size = objects/float64(inFlight), size/float64(inFlight)
			t.Logf("%.2f allocations and %.1f B for a turn", objects, size)
			if objects > 1.25 || size > 96*1.25 {
				t.Errorf("%.2f allocations and %.1f B for a turn, want 1 and 96", objects, size)
			}
		})
	}
}

// A broadcast is one frame, whoever gets it.
func TestBroadcastIsFramedOnce(t *testing.T) {
	r := newRig(t, "", nil)
	const peers, size = 50, 16 << 10
	m := hibernate.Binary(make([]byte, size))
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, _ hibernate.Message) error {
		n, err := a.state.Broadcast(ctx, m, nil)
		if n != peers {
			t.Errorf("%d of %d, %v", n, peers, err)
		}
		return err
	}}, nil)
	var clients []*client
	for range peers {
		c := r.dial("/o/a")
		c.conn.SetDeadline(time.Now().Add(patience))
		clients = append(clients, c)
	}
	ask := frame(true, ws.OpText, "x")
	masked := slices.Clone(ask)
	in := make([]byte, 4+size)
	_, bytes := allocated(5, func() {
		copy(ask, masked)
		clients[0].write(ask)
		for _, c := range clients {
			if _, err := io.ReadFull(c.conn, in); err != nil {
				t.Error(err)
			}
		}
	})
	t.Logf("%.0f B for a broadcast of %d to %d", bytes, size, peers)
	if bytes > 4*size {
		t.Errorf("%.0f B for a broadcast of %d to %d", bytes, size, peers)
	}
}
