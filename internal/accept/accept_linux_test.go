//go:build !portable

package accept

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/leak"
	"github.com/hibernate-go/hibernate/internal/poll"
)

func TestMain(m *testing.M) { leak.Main(m) }

func listen(t *testing.T) (*Listener, *alarm.Fake) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	p, err := poll.New(poll.Options{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	clock := alarm.NewFake(time.Unix(1e9, 0))
	l, err := Listen(ln, Config{
		Poller: p, Timers: alarm.NewTimers(clock), Clock: clock, Logger: log, Timeout: 10 * time.Second, HeadBytes: 16 << 10, Waiting: 100,
		Claim: func(*Request) bool { return false },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, clock
}

func get(t *testing.T, l *Listener) {
	t.Helper()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "GET / HTTP/1.1\r\n\r\n")
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	b := make([]byte, 100)
	if n, err := nc.Read(b); string(b[:n]) != "GET / HTTP/1.1\r\n\r\n" || err != nil {
		t.Fatalf("read %q, %v", b[:n], err)
	}
}

func TestFailedAcceptsAreTriedAgainEverLater(t *testing.T) {
	l, clock := listen(t)
	get(t, l)
	clock.Advance(time.Minute)
	var delays []time.Duration
	for range 10 {
		(*accepter)(l).AcceptFailed(syscall.EMFILE)
		at, ok := clock.Next()
		if !ok {
			t.Fatal("not tried again")
		}
		delays = append(delays, at.Sub(clock.Now()))
		clock.Advance(at.Sub(clock.Now()))
	}
	ms := time.Millisecond
	if want := []time.Duration{5 * ms, 10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms, 640 * ms, 1000 * ms, 1000 * ms}; !slices.Equal(delays, want) {
		t.Errorf("tried again after %v, want %v", delays, want)
	}
	get(t, l)
	clock.Advance(time.Minute)
	(*accepter)(l).AcceptFailed(syscall.EMFILE)
	if at, _ := clock.Next(); at.Sub(clock.Now()) != 5*ms {
		t.Errorf("after a connection tried again after %v", at.Sub(clock.Now()))
	}
}

func TestBrokenListenerIsToldByAccept(t *testing.T) {
	l, _ := listen(t)
	(*accepter)(l).AcceptFailed(syscall.EINVAL)
	if _, err := l.Accept(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Accept: %v", err)
	}
}

func TestUnwrapLeavesNothingUnread(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if nc, unread := Unwrap(a); nc != a || unread != nil {
		t.Errorf("a pipe is %v with %q", nc, unread)
	}
	l, _ := listen(t)
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "POST")
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	inner, unread := Unwrap(nc)
	if _, ok := inner.(*net.TCPConn); !ok || string(unread) != "OST" {
		t.Errorf("unwrapped %T with %q", inner, unread)
	}
	if _, unread := Unwrap(nc); unread != nil {
		t.Errorf("%q twice", unread)
	}
}
