package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gobwas/ws/wsutil"
)

// A talker says its messages one after another, each when the one before was
// acknowledged.
type talker struct {
	*client
	room         string
	number       int
	acknowledged int // messages that came back
}

const (
	talkerRooms    = 20
	talkersPerRoom = 10
	talks          = maxHistory / talkersPerRoom // so that the history holds all
)

func (c *talker) cid(i int) string { return fmt.Sprintf("%s-%d-%d", c.room, c.number, i) }

// talk ends when all is said, or the connection.
func (c *talker) talk(acknowledged func()) {
	for c.acknowledged < talks {
		b, err := json.Marshal(input{Type: "say", ClientID: c.cid(c.acknowledged), Text: c.cid(c.acknowledged)})
		if err != nil {
			c.t.Error(err)
			return
		}
		_ = wsutil.WriteClientText(c.conn, b) // what is in the socket is read even if this fails
		for c.hears() != c.cid(c.acknowledged) {
			if c.conn == nil {
				return
			}
		}
		c.acknowledged++
		acknowledged()
	}
}

// hears returns the cid of the next line, and takes conn away at the end.
func (c *talker) hears() (cid string) {
	b, err := c.tryRead()
	if err != nil {
		c.conn.Close()
		c.conn = nil
		return ""
	}
	var o output
	if err := json.Unmarshal(b, &o); err != nil || o.Type == "error" {
		c.t.Errorf("got %s (%v)", b, err)
	}
	if o.Line == nil {
		return "" // somebody joined
	}
	return o.Line.ClientID
}

// TestKillUnderLoad kills the server 50 times while 200 clients talk in fresh rooms.
// Then everybody comes back and says again what was not acknowledged. No message
// that was is missing, and none is there twice. HIBERNATE_SLOW asks for it.
func TestKillUnderLoad(t *testing.T) {
	if os.Getenv("HIBERNATE_SLOW") == "" {
		t.Skip("set HIBERNATE_SLOW to run it")
	}
	const rounds = 50
	dir := t.TempDir()
	var before []*talker // of the round before
	var acknowledged, unknown, survived int
	for round := range rounds + 1 {
		p := start(t, "127.0.0.1:0", dir, "10s")
		for i := range before {
			if i%talkersPerRoom == 0 {
				a, u, s := verifyRoom(t, p.URL, before[i:i+talkersPerRoom])
				acknowledged, unknown, survived = acknowledged+a, unknown+u, survived+s
			}
		}
		if round == rounds {
			p.Kill()
			break
		}
		before = nil
		for i := range talkerRooms * talkersPerRoom {
			room := fmt.Sprintf("round-%d-%d", round, i/talkersPerRoom)
			before = append(before, &talker{client: enter(t, p.URL, room, "Talker"), room: room, number: i % talkersPerRoom})
		}
		var heard atomic.Int64
		enough := 1 + rand.Int64N(talkerRooms*maxHistory-200)
		killed := make(chan struct{})
		var wg sync.WaitGroup
		for _, c := range before {
			wg.Go(func() {
				c.talk(func() {
					if heard.Add(1) == enough {
						close(killed)
					}
				})
			})
		}
		<-killed
		p.Kill()
		wg.Wait()
	}
	t.Logf("%d kills, %d messages acknowledged, none lost, none doubled; of %d others under way %d were stored", rounds, acknowledged, unknown, survived)
}

// verifyRoom reads the history of a room after a kill, says again what its talkers
// do not know of, and reads it once more.
func verifyRoom(t *testing.T, url string, talkers []*talker) (acknowledged, unknown, survived int) {
	t.Helper()
	count := func(history []Line) map[string]int {
		n := map[string]int{}
		for _, l := range history {
			if n[l.ClientID]++; n[l.ClientID] > 1 || l.Text != l.ClientID {
				t.Fatalf("%s is in the history twice, or changed: %+v", l.ClientID, history)
			}
		}
		return n
	}
	again := enter(t, url, talkers[0].room, "Again")
	defer again.conn.Close()
	stored := count(again.history)
	for _, c := range talkers {
		for i := range c.acknowledged {
			if stored[c.cid(i)] == 0 {
				t.Fatalf("%s was acknowledged and is lost", c.cid(i))
			}
			acknowledged++
		}
		if c.acknowledged == talks {
			continue
		}
		unknown++
		survived += stored[c.cid(c.acknowledged)]
		again.say(c.cid(c.acknowledged), c.cid(c.acknowledged))
		if got := again.line().ClientID; got != c.cid(c.acknowledged) {
			t.Fatalf("said %s again and heard %s", c.cid(c.acknowledged), got)
		}
		c.acknowledged++
	}
	reader := enter(t, url, talkers[0].room, "Reader")
	defer reader.conn.Close()
	stored = count(reader.history)
	total := 0
	for _, c := range talkers {
		total += c.acknowledged
		for i := range c.acknowledged {
			if stored[c.cid(i)] != 1 {
				t.Fatalf("%s was said again and is there %d times", c.cid(i), stored[c.cid(i)])
			}
		}
	}
	if total != len(reader.history) {
		t.Fatalf("%d messages in the history, %d were said", len(reader.history), total)
	}
	return acknowledged, unknown, survived
}
