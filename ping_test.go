package hibernate_test

import (
	"context"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

const (
	pingEvery = 32 * time.Second
	pongIn    = 8 * time.Second
)

// pings is a runtime that asks every pingEvery, in which nothing is idle for long
// enough to hibernate by itself.
func pings(t *testing.T, s *script) *rig {
	r := newRig(t, "", &hibernate.Options{IdleTimeout: time.Hour, PingInterval: pingEvery, PongTimeout: pongIn})
	r.act(s, nil)
	return r
}

// asking moves the clock to the next time that the sockets of an object are asked.
// Objects take their turns in the order of the first 6 bits of their IDs.
func (r *rig) asking(name string) {
	r.t.Helper()
	b, err := hex.DecodeString(r.ns.IDFromName(name).String()[:2])
	if err != nil {
		r.t.Fatal(err)
	}
	at := time.Duration(b[0]>>2+1) * pingEvery / 64
	r.clock.Advance((at-r.clock.Now().Sub(epoch)%pingEvery+pingEvery-1)%pingEvery + 1)
}

// ready waits until what the clients send is read: that begins behind the 101.
func ready(clients ...*client) {
	for _, c := range clients {
		c.t.Helper()
		c.ping("ready")
		c.expect("pong:ready")
	}
}

// read waits until the runtime has read all that was sent to it before: a second
// ping of another connection is answered after the first one's turn has ended.
func (r *rig) read(other *client) {
	r.t.Helper()
	for range 2 {
		other.ping("read")
		other.expect("pong:read")
	}
}

// TestSilentPeerIsAskedAndCut: one close event with 1006. Any byte is an answer, and
// asking wakes nobody.
func TestSilentPeerIsAskedAndCut(t *testing.T) {
	for _, asleep := range []bool{false, true} {
		t.Run(map[bool]string{false: "awake", true: "asleep"}[asleep], func(t *testing.T) {
			r := pings(t, closing())
			answers, slow, silent, other := r.dial("/o/a"), r.dial("/o/a"), r.dial("/o/a"), r.dial("/o/other")
			ready(answers, slow, silent, other)
			if asleep {
				r.evict("a")
			}
			r.asking("a") // they have just come, and are not asked
			r.asking("a")
			for _, c := range []*client{answers, slow, silent} {
				c.expect("op 9")
			}
			answers.frame(true, ws.OpPong, "")
			whole := frame(true, ws.OpText, "hello")
			slow.write(whole[:1])
			r.read(other)
			r.clock.Advance(pongIn - 1)
			r.instances(2) // a's and other's
			r.silent()
			r.clock.Advance(1)
			r.hear("close " + lost + ", state 2")
			silent.expect("eof")
			r.turn("a")
			if asleep {
				r.instances(3)
			} else {
				r.instances(2)
			}
			slow.write(whole[1:])
			r.hear("message hello")
			r.read(other)

			r.asking("a") // who has spoken since is not
			answers.expect("op 9")
			answers.ping("x")
			answers.expect("pong:x")
			slow.ping("y")
			slow.expect("pong:y")
			r.silent()
			if n := r.rt.Stats().Vanished; n != 1 {
				t.Errorf("%d vanished", n)
			}
		})
	}
}

// TestPeerWhoseEventWaitsIsNotJudged: nothing of it is read meanwhile.
func TestPeerWhoseEventWaitsIsNotJudged(t *testing.T) {
	s := closing()
	begun, goOn := make(chan struct{}), make(chan struct{})
	s.message = func(context.Context, *actor, hibernate.WebSocket, hibernate.Message) error {
		close(begun)
		<-goOn
		return nil
	}
	r := pings(t, s)
	c := r.dial("/o/a")
	ready(c)
	r.asking("a")
	r.asking("a")
	c.expect("op 9") // and the message is no answer to it that anybody could read
	c.send("wait")
	<-begun
	for range 3 {
		r.clock.Advance(pingEvery)
	}
	close(goOn)
	r.turn("a")
	c.ping("x")
	c.expect("pong:x")
	r.silent()
}

// TestPingOptionsAreChecked by Open.
func TestPingOptionsAreChecked(t *testing.T) {
	for _, o := range []hibernate.Options{
		{PingInterval: -1}, {PingInterval: time.Second, PongTimeout: 2 * time.Second}, {PongTimeout: time.Second}, {PingInterval: time.Second, PongTimeout: -1},
	} {
		if _, err := hibernate.Open("", &o); !errors.Is(err, hibernate.ErrInvalid) {
			t.Errorf("%v, %v: %v", o.PingInterval, o.PongTimeout, err)
		}
	}
}
