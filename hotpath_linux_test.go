//go:build !portable

package hibernate_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hibernate-go/hibernate"
)

// segments is how many segments with data the peer has sent.
func (c *client) segments() uint32 {
	c.t.Helper()
	raw, err := c.conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		c.t.Fatal(err)
	}
	var info *unix.TCPInfo
	failed := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err := errors.Join(failed, err); err != nil {
		c.t.Fatal(err)
	}
	return info.Data_segs_in
}

// What the turns of one read send to a socket leaves in one write, which is one segment.
func TestTurnsOfOneReadAreOneWrite(t *testing.T) {
	r := newRig(t, "", nil)
	r.act(&script{message: func(ctx context.Context, a *actor, ws hibernate.WebSocket, m hibernate.Message) error {
		for range len(ws.Tags()) {
			if err := ws.Send(ctx, m); err != nil {
				return err
			}
		}
		return nil
	}}, nil)
	const rounds, messages = 50, 16
	texts := make([]string, messages)
	size := 0
	for i := range texts {
		texts[i] = fmt.Sprintf("message %02d", i)
		size += 2 + len(texts[i])
	}
	for _, times := range []int{1, 2} {
		t.Run(fmt.Sprintf("frames=%d", times), func(t *testing.T) {
			c := r.dial([]string{"/o/a?tag=1", "/o/a?tag=1&tag=2"}[times-1])
			in := make([]byte, size*times)
			for try := 1; ; try++ { // turns behind a takeover, as a loop that is not let run suffers it, write for themselves
				var sent [rounds]uint32
				for i := range sent {
					before := c.segments()
					c.together(texts...)
					c.conn.SetReadDeadline(time.Now().Add(patience))
					if _, err := io.ReadFull(c.br, in); err != nil {
						t.Fatal(err)
					}
					sent[i] = c.segments() - before
				}
				slices.Sort(sent[:])
				t.Logf("%d rounds of %d messages: %d segments each in the median, %d to %d", rounds, messages, sent[rounds/2], sent[0], sent[rounds-1])
				if sent[rounds/2] == 1 {
					break
				}
				if try == 20 {
					t.Errorf("%d segments for %d messages", sent[rounds/2], messages)
					break
				}
			}
		})
	}
}
