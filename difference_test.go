package hibernate_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
)

// TestAutoResponsesAreForgottenAsleepWithoutSockets: the object's record goes with
// its last socket and instance, and they with it.
func TestAutoResponsesAreForgottenAsleepWithoutSockets(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(echoing(), nil)
	r.pairs("a", pair("p", "q"))
	r.hibernate()
	r.until("the record to go", func() bool {
		n := r.inspect("a").Wakes
		return n == 0
	})
	c := r.dial("/o/a")
	c.send("p")
	c.expect("text:1:p")
}

// A joined object has no ServeHTTP, and says what it was told.
type joined struct{}

func (joined) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	return ws.SendText(ctx, "handler: "+m.Text())
}

// TestFirstMessageOfAJoinIsNotAnswered by the constructor's auto-responses: a join does not run the constructor.
func TestFirstMessageOfAJoinIsNotAnswered(t *testing.T) {
	r := newRig(t, "", nil)
	serve(r, func(ctx context.Context, s *hibernate.State) (joined, error) {
		return joined{}, s.SetWebSocketAutoResponse(ctx, pair("ping", "pong"))
	}, nil)
	c := r.dial("/o/a")
	c.send("ping")
	c.expect("text:handler: ping")
	c.send("ping")
	c.expect("text:pong")
	r.hibernate()
	c.send("ping")
	c.expect("text:pong")
}

// TestCBORHeedsJSONTags, where there is no tag of its own.
func TestCBORHeedsJSONTags(t *testing.T) {
	type secret struct {
		Shown  int
		Hidden int `json:"-"`
		Kept   int `json:"-" cbor:"kept"`
	}
	b, err := hibernate.CBOR().Marshal(secret{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	var got secret
	if err := hibernate.CBOR().Unmarshal(b, &got); err != nil || got != (secret{Shown: 1, Kept: 3}) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestNameIsKnownInAlarms, also in those that wake an object after a restart.
func TestNameIsKnownInAlarms(t *testing.T) {
	dir := t.TempDir()
	s := &script{alarm: func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
		a.tell("%q", a.state.Name())
		return nil
	}}
	r := newRig(t, dir, nil)
	r.act(s, nil)
	r.setAlarm("lobby", time.Hour)
	r.hibernate()
	r.rings(2*time.Hour, `"lobby"`)
	r.setAlarm("lobby", 10*time.Hour)
	r.shut()
	r = newRigAt(t, dir, nil, epoch.Add(11*time.Hour))
	r.act(s, nil)
	r.rings(time.Minute, `"lobby"`)
}

// TestGoroutinesAndTimersKeepNothingInMemory; those of an instance that is gone
// cannot act for it.
func TestGoroutinesAndTimersKeepNothingInMemory(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{}, nil)
	r.dial("/o/a")
	asleep, acted := make(chan struct{}), make(chan error, 2)
	r.must("a", func(_ context.Context, a *actor) error {
		act := func() { acted <- a.state.Do(context.Background(), nothing) }
		go func() { <-asleep; act() }()
		r.clock.AfterFunc(time.Hour, act)
		return nil
	})
	r.hibernate()
	close(asleep)
	r.clock.Advance(time.Hour)
	for range 2 {
		if err := <-acted; !errors.Is(err, hibernate.ErrReset) {
			t.Errorf("acted for an instance that is gone: %v", err)
		}
	}
	r.instances(1)
}

// TestAlarmOver15MinutesIsReset and tried again.
func TestAlarmOver15MinutesIsReset(t *testing.T) {
	r := newRig(t, "", nil)
	d := newDoor()
	s := ringing()
	tell := s.alarm
	s.alarm = func(ctx context.Context, a *actor, i hibernate.AlarmInfo) error {
		if _ = tell(ctx, a, i); i.IsRetry {
			return nil
		}
		err := hibernate.Await(ctx, d.wait)
		a.tell("reset %v", errors.Is(err, hibernate.ErrReset))
		return nil
	}
	r.act(s, nil)
	r.setAlarm("a", time.Second)
	r.rings(time.Minute, "alarm 1s false 0")
	<-d.at
	r.clock.Advance(15 * time.Minute) // no further: the retry is due two seconds later
	d.pass()
	r.hear("reset true")
	r.rings(time.Minute, "alarm 1s true 1")
}
