package hibernate_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// refused fails unless exactly these limits have refused something, as often as said.
func (r *rig) refused(want map[string]uint64) {
	r.t.Helper()
	got := map[string]uint64{}
	for name, n := range r.rt.Stats().Refused.All() {
		if n > 0 {
			got[name] = n
		}
	}
	if !maps.Equal(got, want) {
		r.t.Errorf("refused %v, want %v", got, want)
	}
}

// failing is an actor's fail that tells the limit in the error and the close code.
func failing(_ context.Context, a *actor, _ hibernate.WebSocket, err error) error {
	var p *hibernate.ProtocolError
	if !errors.As(err, &p) {
		a.tell("%T", err)
		return nil
	}
	a.tell("%s, %d", limit(err), p.CloseCode())
	return nil
}

// TestLimitsOfReceivedMessages: what is over is answered 1009, told as a
// *LimitError and counted; a message may be as large as the limit says.
func TestLimitsOfReceivedMessages(t *testing.T) {
	awakeAndAsleep(t, func(t *testing.T, pause func(*rig)) {
		r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{Message: 40 << 20, Fragments: 3}})
		s := &script{fail: failing}
		s.message = func(_ context.Context, a *actor, _ hibernate.WebSocket, m hibernate.Message) error {
			a.tell("%d bytes", len(m.Data))
			return nil
		}
		r.act(s, nil)
		c := r.dial("/o/a")
		pause(r)
		c.sendBinary(make([]byte, 40<<20))
		r.hear("41943040 bytes")
		pause(r)
		if _, err := c.conn.Write(frame(true, ws.OpBinary, strings.Repeat("x", 40<<20+1))[:100]); err != nil {
			t.Fatal(err)
		}
		r.hear("message bytes 41943041/41943040, 1009")
		c.expect("close:1009 message of at least 41943041 bytes, limit is 41943040", "eof")

		c = r.dial("/o/a")
		pause(r)
		c.frame(false, ws.OpText, "1")
		c.frame(false, ws.OpContinuation, "2")
		c.frame(false, ws.OpContinuation, "3")
		c.frame(true, ws.OpContinuation, "4")
		r.hear("fragments of a message 4/3, 1009")
		r.refused(map[string]uint64{"Message": 1, "Fragments": 1})
	})
}

// TestLimitsAreChecked by Open: none is negative.
func TestLimitsAreChecked(t *testing.T) {
	for name, l := range map[string]hibernate.Limits{
		"Message": {Message: -1}, "Fragments": {Fragments: -1}, "SendQueue": {SendQueue: -1}, "Keys": {Keys: -1},
	} {
		rt, err := hibernate.Open("", &hibernate.Options{Limits: l})
		if !errors.Is(err, hibernate.ErrInvalid) || !strings.Contains(err.Error(), "Limits."+name) {
			t.Errorf("%s: %v", name, err)
		}
		if rt != nil {
			rt.Close()
		}
	}
}

// TestLimitsOfHandshakes: a head that is too long is answered 431 at both doors, one
// that does not come is cut at the acceptor.
func TestLimitsOfHandshakes(t *testing.T) {
	d := serveBothDoors(t, &hibernate.Options{Limits: hibernate.Limits{HandshakeBytes: 1000, HandshakeTime: 3 * time.Second}}, newEcho, nil)
	r := newRig(t, "", &hibernate.Options{Limits: hibernate.Limits{HandshakeBytes: 1000}})
	serve(r, newEcho, nil)
	for door, r := range map[string]*rig{"acceptor": d.rig, "net/http": r} {
		fits := upgrade("/o/a", "A: "+strings.Repeat("a", 700))
		r.raw(fits).switched()
		long := upgrade("/o/a", "A: "+strings.Repeat("a", 700), "B: "+strings.Repeat("b", 300))
		if got := r.raw(long).response().StatusCode; got != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: answered %d", door, got)
		}
		r.refused(map[string]uint64{"HandshakeBytes": 1})
	}
	if !acceptor {
		return
	}
	c := d.raw("GET /o/a HTTP/1.1\n")
	d.until("the connection to be accepted", func() bool { return d.rt.Waiting() == 1 })
	d.clock.Advance(3*time.Second - 1)
	d.refused(map[string]uint64{"HandshakeBytes": 1})
	d.clock.Advance(1)
	c.expect("eof")
	d.refused(map[string]uint64{"HandshakeBytes": 1, "HandshakeTime": 1})
}
