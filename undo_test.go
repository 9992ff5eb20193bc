package hibernate_test

import (
	"context"
	"testing"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

// TestUndoneCloseOfASocketThatFailedMeanwhile: the turn that closed a socket is
// undone after the peer has broken the protocol and was sent Close for it.
func TestUndoneCloseOfASocketThatFailedMeanwhile(t *testing.T) {
	r := newRig(t, "", nil)
	violated := make(chan struct{})
	r.act(&script{
		message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, _ hibernate.Message) error {
			err := hibernate.Await(ctx, func(context.Context) error { return nil }) // now the socket is read again
			if err != nil {
				return err
			}
			if err := ws.Close(ctx, 4000, "never"); err != nil {
				return err
			}
			a.tell("closed")
			<-violated
			panic("asked to")
		},
		fail: func(_ context.Context, a *actor, ws hibernate.WebSocket, _ error) error {
			a.tell("error, state %d", ws.ReadyState())
			return nil
		},
	}, nil)
	c := r.dial("/o/a")
	c.send("go")
	r.hear("closed")
	c.frame(true, ws.OpCode(3), "?")
	if got := c.next(); got[:10] != "close:1002" {
		t.Errorf("received %q", got)
	}
	close(violated)
	r.hear("error, state 2")
	r.turn("a")
	r.silent()
}
