//go:build !portable

package poll

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestChosenPeriodsAreSet on descriptors and on connections served by goroutines, also where somebody chose others;
// negative ones leave what was there.
func TestChosenPeriodsAreSet(t *testing.T) {
	for _, goroutines := range []bool{false, true} {
		for _, tc := range []struct {
			keepAlive, userTimeout  time.Duration
			idle, interval, timeout int
		}{
			{40 * time.Second, 3500 * time.Millisecond, 40, 40, 3500},
			{-1, -1, 77, 78, 0},
		} {
			p := newPoller(t, Options{Goroutines: goroutines, KeepAlive: tc.keepAlive, UserTimeout: tc.userTimeout})
			w := &world{T: t, p: p, pair: pairs(t, "tcp")}
			server, _ := w.pair()
			nc := server.(*net.TCPConn)
			w.must(nc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 77e9, Interval: 78e9}))
			dup, err := nc.File() // what is set is the socket's
			w.must(err)
			defer dup.Close()
			r := &record{}
			w.must(group(p, r).Attach(&r.Conn, server))
			for name, want := range map[int]int{
				unix.TCP_KEEPIDLE: tc.idle, unix.TCP_KEEPINTVL: tc.interval, unix.TCP_USER_TIMEOUT: tc.timeout,
			} {
				if got, err := unix.GetsockoptInt(int(dup.Fd()), unix.IPPROTO_TCP, name); err != nil || got != want {
					t.Errorf("goroutines %v: option %d = %d, %v, want %d", goroutines, name, got, err, want)
				}
			}
			w.must(r.Close())
		}
	}
}

// TestPeerWithoutRoomEndsAtTheUserTimeout: its system answers, and it never reads.
func TestPeerWithoutRoomEndsAtTheUserTimeout(t *testing.T) {
	w := &world{T: t, p: newPoller(t, Options{UserTimeout: 200 * time.Millisecond}), pair: pairs(t, "tcp")}
	server, client := w.pair()
	w.must(server.(*net.TCPConn).SetWriteBuffer(64 << 10))
	w.must(client.(*net.TCPConn).SetReadBuffer(64 << 10))
	ended := make(chan error, 1)
	r := &record{end: func(err error) { ended <- err }}
	w.must(group(w.p, r).Attach(&r.Conn, server))
	r.Resume()
	n, err := r.Write(make([]byte, 8<<20)) // one: a second might come when the time is up
	w.must(err)
	if n == 8<<20 {
		t.Fatal("the system has taken everything")
	}
	if err := wait(t, "the end", ended); !errors.Is(err, unix.ETIMEDOUT) {
		t.Error(err)
	}
}
