package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/hibernatetest"
)

// rooms runs a test twice: with rooms that stay in memory, and with rooms that are constructed anew
// before each event, so that nobody relies on a field of Room.
func rooms(t *testing.T, test func(t *testing.T, k *hibernatetest.Kit)) {
	for name, evict := range map[string]bool{"stay": false, "evicted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, hibernatetest.New(t, routes, &hibernatetest.Options{
				EvictEveryTurn: evict,
				Runtime:        hibernate.Options{Limits: hibernate.Limits{Message: maxMessage}},
			}))
		})
	}
}

// TestRoomHibernatesAndWakesWithItsHistory is the example in one test.
func TestRoomHibernatesAndWakesWithItsHistory(t *testing.T) {
	rooms(t, func(t *testing.T, k *hibernatetest.Kit) {
		garden := k.Object("Room", "garden")
		ann, ben := join(t, k, "garden", "Ann"), join(t, k, "garden", "Ben")
		ann.joined("Ben")
		ann.say("a1", "Good morning.")
		for _, m := range []*member{ann, ben} {
			if got := m.line(); got.Text != "Good morning." || got.Name != "Ann" || got.ClientID != "a1" {
				t.Fatalf("got %+v", got)
			}
		}

		k.Advance(time.Minute)
		k.AssertHibernated(garden)
		ben.say("b1", "Are you still there?")
		if got := ann.line(); got.Text != "Are you still there?" || got.Name != "Ben" || got.Seq != 2 {
			t.Fatalf("Ann got %+v", got)
		}
		k.Advance(time.Minute)
		k.AssertHibernated(garden)

		// The attachments tell the new instance who is here, and storage what was said.
		cat := dialRoom(t, k, "garden")
		cat.send(input{Type: "hello", Member: Member{Name: "Cat"}})
		w := cat.next("welcome")
		if got := names(w.Members); !slices.Equal(got, []string{"Ann", "Ben", "Cat"}) {
			t.Fatalf("members: %q", got)
		}
		if got := texts(w.History); !slices.Equal(got, []string{"Good morning.", "Are you still there?"}) {
			t.Fatalf("history: %q", got)
		}
	})
}

func TestLeavingIsToldToTheOthers(t *testing.T) {
	for how, leave := range map[string]func(ben *member){
		"close":          func(ben *member) { ben.Close(1000, "") },
		"drop":           func(ben *member) { ben.Drop() },
		"protocol error": func(ben *member) { ben.Send(strings.Repeat("a", maxMessage+1)) },
	} {
		for _, pause := range []time.Duration{0, time.Minute} {
			t.Run(fmt.Sprintf("%s/after %v", how, pause), func(t *testing.T) {
				rooms(t, func(t *testing.T, k *hibernatetest.Kit) {
					ann, ben := join(t, k, "garden", "Ann"), join(t, k, "garden", "Ben")
					ann.joined("Ben")
					k.Advance(pause)
					leave(ben)
					if got := ann.next("left"); got.Member.Name != "Ben" {
						t.Fatalf("%q left", got.Member.Name)
					}
				})
			})
		}
	}
}

func TestPingLeavesRoomAsleep(t *testing.T) {
	rooms(t, func(t *testing.T, k *hibernatetest.Kit) {
		garden := k.Object("Room", "garden")
		ann := join(t, k, "garden", "Ann")
		k.Advance(time.Minute)
		before := k.Wakes(garden)
		for range 10 {
			ann.Send("ping")
			ann.Expect("pong")
		}
		k.AssertHibernated(garden)
		if after := k.Wakes(garden); len(after) != len(before) {
			t.Fatalf("woken by %v before the pings, and then by %v", before, after[len(before):])
		}
	})
}

func TestHistoryKeepsTheLastHundred(t *testing.T) {
	rooms(t, func(t *testing.T, k *hibernatetest.Kit) {
		ann := join(t, k, "garden", "Ann")
		for i := range maxHistory + 5 {
			ann.say(fmt.Sprint("cid ", i), fmt.Sprint("text ", i))
			ann.line()
		}
		k.EvictAll() // what the next instance finds is what storage holds
		history := join(t, k, "garden", "Ben").history
		if len(history) != maxHistory || history[0].Text != "text 5" || history[maxHistory-1].Seq != maxHistory+5 {
			t.Fatalf("%d lines, from %+v to %+v", len(history), history[0], history[len(history)-1])
		}
	})
}

func TestResentMessageIsStoredOnce(t *testing.T) {
	rooms(t, func(t *testing.T, k *hibernatetest.Kit) {
		ann := join(t, k, "garden", "Ann")
		ann.say("same", "Hello?")
		first := ann.line()
		k.Restart()
		ann = join(t, k, "garden", "Ann")
		ann.say("same", "Hello?")
		if again := ann.line(); again != first {
			t.Fatalf("first %+v, then %+v", first, again)
		}
		if history := join(t, k, "garden", "Ben").history; len(history) != 1 {
			t.Fatalf("history: %q", texts(history))
		}
	})
}

func TestRoomsAreApart(t *testing.T) {
	rooms(t, func(t *testing.T, k *hibernatetest.Kit) {
		ann, ben := join(t, k, "garden", "Ann"), join(t, k, "cellar", "Ben")
		ann.say("a", "above")
		ben.say("b", "below")
		if got := ben.line(); got.Text != "below" || got.Seq != 1 {
			t.Fatalf("Ben got %+v", got)
		}
		ann.line()
		ann.ExpectNothing()
	})
}

// TestRefusals says what is wrong, to the sender alone, and the connection goes on.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		joined bool
		send   string
		want   string // part of the answer
		cid    string
	}{
		"not JSON":         {false, `{`, "JSON", ""},
		"say before hello": {false, `{"type":"say","cid":"x","text":"hi"}`, "hello", "x"},
		"no name":          {false, `{"type":"hello","name":"  "}`, "1 to 24 characters", ""},
		"long name":        {false, `{"type":"hello","name":"` + strings.Repeat("é", 25) + `"}`, "25", ""},
		"invisible name":   {false, `{"type":"hello","name":"a\u202eb"}`, "can be seen", ""},
		"second hello":     {true, `{"type":"hello","name":"Eve"}`, "once", ""},
		"no cid":           {true, `{"type":"say","text":"hi"}`, "cid", ""},
		"long cid":         {true, `{"type":"say","cid":"` + strings.Repeat("c", 65) + `","text":"hi"}`, "cid", ""},
		"empty text":       {true, `{"type":"say","cid":"y","text":" \n "}`, "empty", "y"},
		"long text":        {true, `{"type":"say","cid":"z","text":"` + strings.Repeat("é", maxText+1) + `"}`, "2001", "z"},
	} {
		t.Run(name, func(t *testing.T) {
			rooms(t, func(t *testing.T, k *hibernatetest.Kit) {
				other := join(t, k, "garden", "Other")
				m := dialRoom(t, k, "garden")
				if c.joined {
					m = join(t, k, "garden", "Ann")
					other.joined("Ann")
				}
				m.Send(c.send)
				got := m.next("error")
				if !strings.Contains(got.Text, c.want) || got.ClientID != c.cid {
					t.Fatalf("the answer is %q for cid %q", got.Text, got.ClientID)
				}
				other.ExpectNothing()
				if !c.joined {
					m.send(input{Type: "hello", Member: Member{Name: "Ann"}})
					m.next("welcome")
				}
				m.say("fine", "fine")
				m.line()
			})
		})
	}
}

func TestOversizedMessageClosesWith1009(t *testing.T) {
	rooms(t, func(t *testing.T, k *hibernatetest.Kit) {
		ann := join(t, k, "garden", "Ann")
		ann.Send(strings.Repeat("a", maxMessage+1))
		ann.ExpectClose(1009)
	})
}

// A member is one member's connection. Its methods fail the test.
type member struct {
	*hibernatetest.Client
	t       *testing.T
	history []Line // from the welcome
}

func dialRoom(t *testing.T, k *hibernatetest.Kit, room string) *member {
	t.Helper()
	return &member{Client: k.Dial("/room/" + room + "/ws"), t: t}
}

// join dials and says hello.
func join(t *testing.T, k *hibernatetest.Kit, room, name string) *member {
	t.Helper()
	m := dialRoom(t, k, room)
	m.send(input{Type: "hello", Member: Member{Name: name, Colour: 200}})
	m.history = m.next("welcome").History
	return m
}

func (m *member) send(in input) {
	m.t.Helper()
	b, err := json.Marshal(in)
	if err != nil {
		m.t.Fatal(err)
	}
	m.Send(string(b))
}

func (m *member) say(cid, text string) {
	m.t.Helper()
	m.send(input{Type: "say", ClientID: cid, Text: text})
}

// next returns the next message, which must be of this type.
func (m *member) next(typ string) (o output) {
	m.t.Helper()
	b := m.Next().Data
	if err := json.Unmarshal(b, &o); err != nil || o.Type != typ {
		m.t.Fatalf("got %s, want a %s (%v)", b, typ, err)
	}
	return o
}

func (m *member) line() Line {
	m.t.Helper()
	return *m.next("line").Line
}

func (m *member) joined(name string) {
	m.t.Helper()
	if got := m.next("joined").Member.Name; got != name {
		m.t.Fatalf("%q joined, want %q", got, name)
	}
}

func names(members []Member) (s []string) {
	for _, m := range members {
		s = append(s, m.Name)
	}
	return s
}
