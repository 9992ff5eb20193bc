//go:build linux

package main

import (
	"fmt"
	"strings"
	"time"
)

type fanoutResult struct {
	Receivers int `json:"receivers"`
	Size      int `json:"size"`
	Bad       int `json:"bad"`
	Dead      int `json:"dead"`

	Deliveries float64 `json:"deliveries_s"`
	Broadcasts float64 `json:"broadcasts_s"`
	CPU        float64 `json:"cpu_us_delivery"`
	ClientCPU  float64 `json:"cli_us_delivery"`
	Cores      float64 `json:"srv_cores"`
	P99        float64 `json:"p99_us"`
	LastP50    float64 `json:"last_p50_us"` // until the last receiver has it
	LastP99    float64 `json:"last_p99_us"`
}

// fanout is one room with a sender and so many receivers. The next broadcast leaves when all, the sender too, have the last one.
func fanout(c *config) (any, error) {
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	defer l.close()
	room := *c
	room.rooms, room.perRoom = 1, 0
	if err := l.add(&room, c.counts[0]+1); err != nil {
		return nil, err
	}
	size := max(c.size, 16)
	var deliveries, last histogram
	var left time.Duration // when the broadcast under way was sent
	var want string
	seq, missing, bad, measuring := 0, 0, 0, false
	send := func() {
		seq++
		want = fmt.Sprintf("b:%010d", seq)
		want += strings.Repeat("x", size-len(want))
		missing, left = len(l.conns), now()
		l.write(l.conns[0], frame(c.opcode(), []byte(want)))
	}
	l.message = func(w *conn, p []byte, _ time.Duration) {
		if string(p) != want {
			bad++
			return
		}
		// Not the time of the read: what a slow client adds is part of it, for every server.
		took := now() - left
		missing--
		if measuring {
			deliveries.add(took)
			if missing == 0 {
				last.add(took)
			}
		}
	}
	during := func(d time.Duration) error {
		for end := now() + d; now() < end; send() {
			if err := l.until(func() bool { return missing == 0 || now() >= end }); err != nil || missing > 0 {
				return err
			}
		}
		return nil
	}
	if err := during(c.warm); err != nil {
		return nil, err
	}
	measuring = true
	m := c.server.meter()
	if err := c.measured(during, func() bool { return last.n > 0 }); err != nil {
		return nil, err
	}
	passed := m.stop()
	if last.n == 0 {
		return nil, errNothing
	}
	return fanoutResult{
		Receivers: len(l.conns) - 1, Size: size, Bad: bad, Dead: l.dead,
		Deliveries: passed.perSecond(deliveries.n), Broadcasts: passed.perSecond(last.n),
		CPU: passed.serverCPU(deliveries.n), ClientCPU: passed.clientCPU(deliveries.n), Cores: thousandth(passed.cores()),
		P99: deliveries.quantile(.99), LastP50: last.quantile(.5), LastP99: last.quantile(.99),
	}, nil
}
