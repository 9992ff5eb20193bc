//go:build linux

package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

type connectResult struct {
	Parallel int    `json:"par"`
	Fails    int64  `json:"fails"`
	FirstErr string `json:"first_err,omitempty"`

	PerSecond float64 `json:"upgrades_s"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	CPU       float64 `json:"cpu_us_upgrade"`
	ClientCPU float64 `json:"cli_us_upgrade"`
	// Before, and after all connections have gone.
	RSSBefore         int64 `json:"rss_before_KB"`
	RSSAfter          int64 `json:"rss_after_KB"`
	DescriptorsBefore int   `json:"fds_before"`
	DescriptorsAfter  int   `json:"fds_after"`
}

// connect opens one connection after the other and resets each, so that no ports are used up; churn echoes one message
// on each before.
func connect(c *config) (any, error) {
	rooms := *c
	if rooms.rooms <= 0 {
		rooms.rooms = 1000
	}
	hello := frame(c.opcode(), make([]byte, c.size))
	before := c.server.memory()
	var stop, measuring atomic.Bool
	var next, made, fails atomic.Int64
	var first atomic.Pointer[string]
	latencies := make([]histogram, c.parallel)
	var wg sync.WaitGroup
	for k := range latencies {
		wg.Go(func() {
			for !stop.Load() {
				i, begin := int(next.Add(1)), now()
				w, err := rooms.dial(i, rooms.room(i))
				if err == nil {
					if measuring.Load() {
						latencies[k].add(now() - begin)
						made.Add(1)
					}
					if c.mode == "churn" {
						err = w.exchange(hello)
					}
					w.reset()
				}
				if err != nil {
					fails.Add(1)
					text := err.Error()
					first.CompareAndSwap(nil, &text)
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
	time.Sleep(c.warm)
	measuring.Store(true)
	m := c.server.meter()
	if err := c.measured(sleep, func() bool { return made.Load()+fails.Load() > 0 }); err != nil {
		return nil, err
	}
	measuring.Store(false)
	passed := m.stop()
	stop.Store(true)
	wg.Wait()
	var latency histogram
	for k := range latencies {
		latency.merge(&latencies[k])
	}
	if latency.n == 0 {
		if text := first.Load(); text != nil {
			return nil, fmt.Errorf("no connection was made: %s", *text)
		}
		return nil, errNothing
	}
	if err := c.rest(sleep); err != nil {
		return nil, err
	}
	if c.gc {
		c.server.freeMemory()
	}
	after := c.server.memory()
	r := connectResult{
		Parallel: c.parallel, Fails: fails.Load(),
		PerSecond: passed.perSecond(latency.n), P50: latency.quantile(.5), P99: latency.quantile(.99),
		CPU: passed.serverCPU(latency.n), ClientCPU: passed.clientCPU(latency.n),
		RSSBefore: before.RSS, RSSAfter: after.RSS, DescriptorsBefore: before.Descriptors, DescriptorsAfter: after.Descriptors,
	}
	if text := first.Load(); text != nil {
		r.FirstErr = *text
	}
	return r, nil
}

func sleep(d time.Duration) error {
	time.Sleep(d)
	return nil
}

// exchange sends a frame and reads as many bytes as the echo has: a server's frame is four bytes shorter.
func (w *conn) exchange(frame []byte) error {
	if err := w.write(frame); err != nil {
		return err
	}
	var buf [4096]byte
	for left := len(frame) - 4 - len(w.part); left > 0; {
		n, err := unix.Read(w.fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("read echo: %w", err)
		}
		left -= n
	}
	return nil
}
