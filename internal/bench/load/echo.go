//go:build linux

package main

import (
	"bytes"
	"errors"
	"time"
)

// A talk is what a connection of echo or rate has under way.
type talk struct {
	sent        []time.Duration // a ring: when each message left, or was to leave
	first, last int             // of sent, ever rising
	owed        int             // answers since the last send
}

func (t *talk) push(at time.Duration) {
	t.sent[t.last%len(t.sent)] = at
	t.last++
}

// pop is when the message left that has been answered now.
func (t *talk) pop() time.Duration {
	at := t.sent[t.first%len(t.sent)]
	t.first++
	return at
}

func (t *talk) full() bool { return t.last-t.first == len(t.sent) }

type echoResult struct {
	N        int     `json:"n"`
	Active   int     `json:"active"`
	InFlight int     `json:"pipe"`
	Size     int     `json:"size"`
	Rate     float64 `json:"rate"`
	Bad      int     `json:"bad"` // answers that were not the message
	Dead     int     `json:"dead"`

	PerSecond float64 `json:"msgs_s"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	CPU       float64 `json:"cpu_us_msg"`
	ClientCPU float64 `json:"cli_us_msg"`
	Cores     float64 `json:"srv_cores"`
	RSS       int64   `json:"rss_KB"`
	Threads   int     `json:"threads"`
}

var (
	errNothing  = errors.New("nothing came back")
	errSpurned  = errors.New("an answer to no message")
	errRestless = errors.New("the server has not settled in 60 s")
)

// echo is a closed loop: what is answered is sent again. Answers that are read together are followed by one write.
func echo(c *config) (any, error) { return c.echo(0) }

// rate is an open loop: messages leave at a fixed rate, whatever the server does, and their latency counts from when
// they were to leave.
func rate(c *config) (any, error) { return c.echo(c.rate) }

func (c *config) echo(rate float64) (any, error) {
	n := c.counts[0]
	active := c.active
	if active <= 0 || active > n {
		active = n
	}
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	defer l.close()
	if err := l.add(c, n); err != nil {
		return nil, err
	}
	depth := c.inFlight
	if rate > 0 {
		depth = 4096
	}
	talking := make([]*conn, active) // spread over all
	for i := range talking {
		w := l.conns[i*(n/active)]
		w.talk = &talk{sent: make([]time.Duration, depth)}
		talking[i] = w
	}
	payload := bytes.Repeat([]byte("0123456789abcdefghijklmnopqrstuv"), c.size/32+1)[:c.size]
	one := frame(c.opcode(), payload)
	many := bytes.Repeat(one, c.inFlight)

	var latency histogram
	bad, measuring := 0, false
	l.message = func(w *conn, p []byte, at time.Duration) {
		t := w.talk
		if t == nil || t.first == t.last {
			l.fail(errSpurned)
			return
		}
		if !bytes.Equal(p, payload) {
			bad++
		}
		left := t.pop()
		if measuring {
			latency.add(at - left)
		}
		t.owed++
	}
	send := func(w *conn, n int) {
		at := now()
		for range n {
			w.talk.push(at)
		}
		l.write(w, many[:n*len(one)])
	}
	during := l.during
	if rate > 0 {
		o := openLoop{l: l, talking: talking, frame: one, gap: float64(time.Second) / rate, begin: now()}
		during = o.during
	} else {
		l.drained = func(w *conn) {
			if t := w.talk; t != nil && t.owed > 0 && !w.dead {
				n := t.owed
				t.owed = 0
				send(w, n)
			}
		}
		for _, w := range talking {
			send(w, c.inFlight)
		}
	}
	if err := during(c.warm); err != nil {
		return nil, err
	}
	measuring = true
	m := c.server.meter()
	if err := c.measured(during, func() bool { return latency.n > 0 }); err != nil {
		return nil, err
	}
	passed := m.stop()
	if latency.n == 0 {
		return nil, errNothing
	}
	mem := c.server.memory()
	return echoResult{
		N: n, Active: active, InFlight: c.inFlight, Size: c.size, Rate: rate, Bad: bad, Dead: l.dead,
		PerSecond: passed.perSecond(latency.n), P50: latency.quantile(.5), P99: latency.quantile(.99),
		CPU: passed.serverCPU(latency.n), ClientCPU: passed.clientCPU(latency.n), Cores: thousandth(passed.cores()),
		RSS: mem.RSS, Threads: mem.Threads,
	}, nil
}

// An openLoop sends one message after the other at fixed times, the connections in turn.
type openLoop struct {
	l       *loop
	talking []*conn
	frame   []byte
	gap     float64 // nanoseconds
	begin   time.Duration
	sent    int
}

func (o *openLoop) during(d time.Duration) error {
	for end := now() + d; o.l.err == nil; {
		due, at := o.begin+time.Duration(float64(o.sent)*o.gap), now()
		if at >= end {
			break
		}
		if at < due {
			o.l.wait(min(due, end) - at)
			continue
		}
		w := o.talking[o.sent%len(o.talking)]
		if o.sent++; !w.dead && !w.talk.full() {
			w.talk.push(due)
			o.l.write(w, o.frame)
		}
		if o.sent%64 == 0 {
			o.l.wait(0) // it may never be early
		}
	}
	return o.l.err
}
