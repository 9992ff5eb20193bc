package hibernate_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/storetest"
)

const (
	heralds    = 6 // objects
	heraldEars = 4 // WebSockets of each
)

// A herald numbers its stretches and tells everybody of each. A frame is its kind, the number, and the last commit
// that it has to wait for.
type herald struct {
	state   *hibernate.State
	works   *sync.WaitGroup // WaitUntil work
	told    int             // stretches; owned by the object's turns, like the following
	stored  int             // the last commit
	awaited int             // the last that holds output
	aside   int             // broadcasts of WaitUntil work
	singles int             // frames to one WebSocket
}

// tell is one stretch. What it does depends on roll.
func (h *herald) tell(ctx context.Context, roll int) error {
	before := h.awaited
	h.told++
	if kind := roll % 4; kind > 0 {
		var o []hibernate.PutOption
		h.stored++
		if kind == 1 {
			o = append(o, hibernate.AllowUnconfirmed())
		} else {
			h.awaited = h.stored
		}
		if err := h.state.Storage().PutBytes(ctx, "n", []byte(strconv.Itoa(h.stored)), o...); err != nil {
			return err
		}
	}
	frame := func(kind string, awaited int) hibernate.Message {
		return hibernate.Text(fmt.Sprint(kind, " ", h.told, " ", awaited))
	}
	if _, err := h.state.Broadcast(ctx, frame("all", h.awaited), nil); err != nil {
		return err
	}
	switch roll / 4 % 4 {
	case 0:
		all := h.state.WebSockets()
		h.singles++
		return all[roll/16%len(all)].Send(ctx, frame("one", h.awaited))
	case 1:
		h.aside++
		m := frame("aside", before)
		h.works.Add(1)
		return h.state.WaitUntil(ctx, "aside", func(ctx context.Context) {
			defer h.works.Done()
			_, _ = h.state.Broadcast(ctx, m, nil) // one that is lost is missed below
		})
	}
	return nil
}

// turn is one stretch, or two with an Await between them.
func (h *herald) turn(ctx context.Context, roll int) error {
	err := h.tell(ctx, roll)
	if err == nil && roll/64%4 == 0 {
		err = errors.Join(hibernate.Await(ctx, func(context.Context) error { return nil }), h.tell(ctx, roll/256))
	}
	return err
}

func (h *herald) WebSocketMessage(ctx context.Context, _ hibernate.WebSocket, m hibernate.Message) error {
	roll, err := strconv.Atoi(m.Text())
	if err != nil {
		return err
	}
	return h.turn(ctx, roll)
}

var heraldReady = hibernate.NewMethod("ready", func(*herald, context.Context, struct{}) (struct{}, error) { return struct{}{}, nil })

// An ear is what one client has heard.
type ear struct {
	told, aside, singles int
}

// hear takes frames until the last, and tells of the commits that they wait for.
func (e *ear) hear(c *client, heard func(awaited int)) error {
	for {
		c.conn.SetReadDeadline(time.Now().Add(patience))
		f, err := ws.ReadFrame(c.br)
		if err != nil {
			return err
		}
		var kind string
		var n, awaited int
		if _, err := fmt.Sscan(string(f.Payload), &kind, &n, &awaited); err != nil {
			return fmt.Errorf("frame %q: %w", f.Payload, err)
		}
		heard(awaited)
		switch {
		case kind == "all" && n == e.told+1:
			e.told++
		case kind == "one" && n == e.told:
			e.singles++
		case kind == "aside" && n <= e.told+1: // behind all stretches before the one that began it
			e.aside++
		case kind == "end" && n == e.told:
			return nil
		default:
			return fmt.Errorf("%q after %d", f.Payload, e.told)
		}
	}
}

// TestOutputOfManyObjectsKeepsItsOrder: turns of several objects, from all sides, with WaitUntil work, Awaits, and writes of both
// kinds. Every client gets each frame of its object once and in the order of the stretches, and no frame leaves before
// its commits are safe from a loss of power.
func TestOutputOfManyObjectsKeepsItsOrder(t *testing.T) {
	turns := 300 // from each side of an object
	if testing.Short() {
		turns = 50
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	fs := storetest.NewFS()
	rt, err := hibernate.OpenStore(clerkConfig(fs, "/db"), &hibernate.Options{Clock: alarm.NewFake(epoch), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, rt: rt, log: &logbook{}}
	r.guard()
	t.Cleanup(r.shut)
	var works, sides, clients sync.WaitGroup
	var objects [heralds]*herald
	serve(r, func(_ context.Context, s *hibernate.State) (*herald, error) {
		i, err := strconv.Atoi(s.Name())
		objects[i] = &herald{state: s, works: &works}
		return objects[i], err
	}, nil)

	var safe [heralds]atomic.Int64 // the highest commit that a client may count on
	ears := make([]ear, heralds*heraldEars)
	cs := make([]*client, len(ears))
	for i := range cs {
		cs[i] = r.dial(fmt.Sprint("/o/", i%heralds))
	}
	for i := range objects {
		if _, err := heraldReady.Call(t.Context(), r.ns.GetByName(strconv.Itoa(i)), struct{}{}); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range cs {
		clients.Go(func() {
			if err := ears[i].hear(c, func(awaited int) { raise(&safe[i%heralds], int64(awaited)) }); err != nil {
				t.Errorf("client %d of object %d: %v", i, i%heralds, err)
			}
		})
	}
	for i, h := range objects {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		sides.Go(func() { // a client that does not wait for answers
			for range turns {
				if err := wsutil.WriteClientText(cs[i].conn, []byte(strconv.Itoa(rng.IntN(1<<20)))); err != nil {
					t.Error(err)
				}
			}
		})
		for side := range uint64(2) {
			rng := rand.New(rand.NewPCG(seed, 100+10*uint64(i)+side))
			sides.Go(func() {
				for range turns {
					if err := h.state.Do(context.Background(), func(ctx context.Context) error { return h.turn(ctx, rng.IntN(1<<20)) }); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}

	// In the midst of it, the disk as it would be after a loss of power.
	const cuts = 8
	var seen [cuts][heralds]int64
	var disks [cuts]storetest.FS
	for c := range cuts {
		r.until("turns", func() bool { return rt.Stats().Commits > uint64(heralds*turns*(c+1)/cuts) })
		for i := range safe {
			seen[c][i] = safe[i].Load()
		}
		disks[c] = fs.Crash()
	}

	sides.Wait()
	r.until("messages to be handled", func() bool { return rt.Stats().Messages == uint64(heralds*turns) && rt.Quiet() })
	works.Wait()
	for _, h := range objects {
		if err := h.state.Do(t.Context(), func(ctx context.Context) error {
			_, err := h.state.Broadcast(ctx, hibernate.Text(fmt.Sprint("end ", h.told, " ", h.awaited)), nil)
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	clients.Wait()
	for i, h := range objects {
		singles := 0
		for k := i; k < len(ears); k += heralds {
			singles += ears[k].singles
			if e := ears[k]; e.told != h.told || e.aside != h.aside {
				t.Errorf("client %d heard %d of %d stretches of object %d, and %d of %d frames of WaitUntil work", k, e.told, h.told, i, e.aside, h.aside)
			}
		}
		if singles != h.singles {
			t.Errorf("%d of %d frames of object %d came to single clients", singles, h.singles, i)
		}
	}

	for c, seen := range seen {
		after, err := store.Open(clerkConfig(disks[c], "/db"))
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range seen {
			id, _ := hex.DecodeString(r.ns.GetByName(strconv.Itoa(i)).ID().String())
			o := after.Object(store.ID(id), "Test", "")
			v, _, err := o.Get("n")
			n, _ := strconv.ParseInt("0"+string(v), 10, 64)
			if err != nil || n < want {
				t.Errorf("output of object %d told of commit %d, the disk has %d (%v)", i, want, n, err)
			}
			o.Close()
		}
		if err := after.Close(); err != nil {
			t.Error(err)
		}
	}
}
