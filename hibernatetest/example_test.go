package hibernatetest_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/hibernatetest"
)

// A Poll counts votes. It has a bug: the count is in a field, which is gone when
// the object has hibernated.
type Poll struct {
	state *hibernate.State
	votes int // should be in storage
	last  []byte
}

func NewPoll(_ context.Context, s *hibernate.State) (*Poll, error) { return &Poll{state: s}, nil }

// WebSocketMessage does what the message says.
func (p *Poll) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	switch m.Text() {
	case "vote":
		p.votes++
		return ws.SendText(ctx, fmt.Sprintf("%d votes", p.votes))
	case "last":
		return ws.SendText(ctx, "last was "+string(p.last))
	case "remind me":
		return p.state.Storage().SetAlarm(ctx, time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC))
	case "watch":
		return p.state.WaitUntil(ctx, "watch the results", func(ctx context.Context) { <-ctx.Done() })
	}
	p.last = m.Data // another bug: it is valid for this turn only
	return nil
}

// Alarm reminds everybody.
func (p *Poll) Alarm(ctx context.Context, _ hibernate.AlarmInfo) error {
	_, err := p.state.Broadcast(ctx, hibernate.Text("have you voted?"), nil)
	return err
}

// routes is the program's own.
func routes(rt *hibernate.Runtime) (http.Handler, error) {
	polls, err := hibernate.Register(rt, "Poll", NewPoll, nil)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/poll/{name}", polls.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: polls.GetByName(h.PathValue("name"))}, nil
	}))
	return mux, nil
}

// State that is only in a field is lost in production, when nothing happens for a
// while. With EvictEveryTurn it is lost in the test.
func Example() {
	// func TestVotes(t *testing.T)
	test(func(t testing.TB) {
		k := hibernatetest.New(t, routes, &hibernatetest.Options{EvictEveryTurn: true})
		ann := k.Dial("/poll/lunch")
		ann.Send("vote")
		ann.Expect("1 votes")
		ann.Send("vote")
		ann.Expect("2 votes")
	})
	// Output:
	// --- FAIL
	// hibernatetest: client 1 at /poll/lunch:
	// got text "1 votes"
	// want text "2 votes"
	// Options.EvictEveryTurn built the object anew before each event: what only a field of it held is gone. Keep state in storage or an attachment.
	// last events, on the kit's clock:
	// +0s  client 1 at /poll/lunch  is connected
	// +0s  client 1 at /poll/lunch  sends text "vote"
	// +0s  Poll/lunch               is constructed for a message, time 1
	// +0s  Poll/lunch               message "vote"
	// +0s  client 1 at /poll/lunch  sends text "vote"
	// +0s  Poll/lunch               is constructed for a message, time 2
	// +0s  Poll/lunch               message "vote"
}

// A message's bytes are valid until its handler returns or awaits. The kit writes
// over them then.
func ExampleClient_Expect() {
	test(func(t testing.TB) {
		k := hibernatetest.New(t, routes, nil)
		ann := k.Dial("/poll/lunch")
		ann.Send("pizza")
		k.Settle()
		ann.Send("last")
		ann.Expect("last was pizza")
	})
	// Output:
	// --- FAIL
	// hibernatetest: client 1 at /poll/lunch:
	// got text "last was !mess"
	// want text "last was pizza"
	// These are the bytes that the kit writes over a message once its handler has returned or awaits: a slice of Message.Data was kept. Copy it.
	// last events, on the kit's clock:
	// +0s  client 1 at /poll/lunch  is connected
	// +0s  client 1 at /poll/lunch  sends text "pizza"
	// +0s  Poll/lunch               is constructed for a message, time 1
	// +0s  Poll/lunch               message "pizza"
	// +0s  client 1 at /poll/lunch  sends text "last"
	// +0s  Poll/lunch               message "last"
}

// An object hibernates when its time has passed, and the connection stays. What
// keeps one awake is told.
func ExampleKit_AssertHibernated() {
	test(func(t testing.TB) {
		k := hibernatetest.New(t, routes, nil)
		lunch, dinner := k.Object("Poll", "lunch"), k.Object("Poll", "dinner")
		ann := k.Dial("/poll/lunch")
		ann.Send("vote")
		ann.Expect("1 votes")
		k.Advance(10 * time.Second)
		k.AssertHibernated(lunch)
		fmt.Println("lunch has left memory")

		k.Dial("/poll/dinner").Send("watch")
		k.Settle()
		k.Advance(time.Minute)
		k.AssertHibernated(dinner)
	})
	// Output:
	// lunch has left memory
	// --- FAIL
	// hibernatetest: Poll/dinner should have left memory, and is there
	// Poll/dinner is blocked, was woken last by a message, at +10s
	// kept in memory by WaitUntil "watch the results" for 1m0s
	// last events, on the kit's clock:
	// +0s  client 1 at /poll/lunch   is connected
	// +0s  client 1 at /poll/lunch   sends text "vote"
	// +0s  Poll/lunch                is constructed for a message, time 1
	// +0s  Poll/lunch                message "vote"
	// +10s                            the clock is at +10s
	// +10s  client 2 at /poll/dinner  is connected
	// +10s  client 2 at /poll/dinner  sends text "watch"
	// +10s  Poll/dinner               is constructed for a message, time 1
	// +10s  Poll/dinner               message "watch"
	// +1m10s                            the clock is at +1m10s
}

// Advance runs the alarms that fall due, and whatever they cause.
func ExampleKit_Advance() {
	test(func(t testing.TB) {
		k := hibernatetest.New(t, routes, nil) // the clock shows 03:04:05
		ann := k.Dial("/poll/lunch")
		ann.Send("remind me")
		k.Advance(time.Hour)
		ann.Expect("have you voted?")
		fmt.Println("woken by", k.Wakes(k.Object("Poll", "lunch")))
	})
	// Output:
	// woken by [message alarm]
	// --- PASS
}

// RunInObject looks at an object from within.
func ExampleRunInObject() {
	test(func(t testing.TB) {
		k := hibernatetest.New(t, routes, nil)
		ann := k.Dial("/poll/lunch")
		ann.Send("vote")
		err := hibernatetest.RunInObject(k, k.Object("Poll", "lunch"), func(ctx context.Context, p *Poll) error {
			fmt.Println(p.votes, "votes,", len(p.state.WebSockets()), "connection")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
	// Output:
	// 1 votes, 1 connection
	// --- PASS
}

// A power failure takes what is in memory, and the connections.
func ExampleKit_Restart() {
	test(func(t testing.TB) {
		k := hibernatetest.New(t, routes, nil)
		ann := k.Dial("/poll/lunch")
		ann.Send("remind me")
		k.Settle()
		k.Restart()
		due, _ := k.Alarm(k.Object("Poll", "lunch"))
		fmt.Println("the reminder is still set for", due.UTC().Format(time.TimeOnly))
	})
	// Output:
	// the reminder is still set for 04:00:00
	// --- PASS
}

// What exists, as the program itself can see it.
func ExampleKit_Runtime() {
	test(func(t testing.TB) {
		k := hibernatetest.New(t, routes, nil)
		k.Dial("/poll/lunch").Send("vote")
		k.Settle()
		k.EvictAll()
		for o := range k.Runtime().Resident(hibernate.ID{}) {
			fmt.Printf("%s/%s: in memory %v, %d connection, last woken by a %s\n", o.Class, o.Name, o.InMemory, o.Sockets, o.Cause)
		}
	})
	// Output:
	// Poll/lunch: in memory false, 1 connection, last woken by a message
	// --- PASS
}

// test stands for go test, and prints what it would.
func test(f func(t testing.TB)) {
	failure := judge(f)
	if failure == "" {
		fmt.Println("--- PASS")
		return
	}
	fmt.Println("--- FAIL")
	for l := range strings.Lines(failure) {
		fmt.Println(strings.TrimSpace(l))
	}
}
