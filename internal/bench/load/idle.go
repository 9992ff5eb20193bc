//go:build linux

package main

import (
	"encoding/json"
	"net/http"
	"time"
)

// A sample is what the server has in memory with N connections that say nothing.
type sample struct {
	N           int   `json:"n"`
	RSS         int64 `json:"rss_KB"`
	Anon        int64 `json:"anon_KB"`
	AnonGC      int64 `json:"anon_gc_KB"` // after memory was given back
	Threads     int   `json:"threads"`
	Descriptors int   `json:"descriptors"`
	serverStats
}

// serverStats are what a server tells at /stats.
type serverStats struct {
	Goroutines int   `json:"goroutines"`
	InMemory   int64 `json:"in_memory"` // objects
	Asleep     int64 `json:"asleep"`
}

type idleResult struct {
	N      int      `json:"n"`
	Rooms  int      `json:"rooms"`
	Dead   int      `json:"dead"`
	Points []sample `json:"points"`

	// Bytes per connection: the slope of a line through the points.
	AnonSlope   float64 `json:"anon_slope_B"`
	AnonGCSlope float64 `json:"anon_gc_slope_B"`
	RSSSlope    float64 `json:"rss_slope_B"`
	// The same after memory was given back, through the lower and the upper half of the points.
	LowerSlope float64 `json:"lower_gc_slope_B"`
	UpperSlope float64 `json:"upper_gc_slope_B"`

	AnonBase    int64   `json:"anon_base_KB"` // without connections
	RSS         int64   `json:"rss_KB"`       // with all
	Threads     int     `json:"threads"`
	Descriptors int     `json:"fds"`
	IdleCPU     float64 `json:"idle_cpu_pct"` // of one core, with all connections

	// What the server tells, if it is asked. Growth is from the first point to the last.
	GoroutineGrowth *int  `json:"goroutine_growth,omitempty"`
	Goroutines      int   `json:"goroutines,omitempty"`
	InMemory        int64 `json:"in_memory,omitempty"`
}

// idle samples the memory of a server whose connections say nothing.
func idle(c *config) (any, error) {
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	defer l.close()
	if err := l.during(min(c.settle, 1500*time.Millisecond)); err != nil {
		return nil, err
	}
	base := c.server.memory()
	if c.gc {
		c.server.freeMemory() // so that every point begins alike
	}
	var points []sample
	for _, n := range c.counts {
		from := len(l.conns)
		if err := l.add(c, n); err != nil {
			return nil, err
		}
		if c.touch {
			if err := l.touch(c, l.conns[from:]); err != nil {
				return nil, err
			}
		}
		if err := c.rest(l.during); err != nil {
			return nil, err
		}
		m := c.server.memory()
		p := sample{N: n, RSS: m.RSS, Anon: m.Anon, AnonGC: m.Anon, Threads: m.Threads, Descriptors: m.Descriptors}
		if c.gc {
			c.server.freeMemory()
			p.AnonGC = c.server.memory().Anon
		}
		if c.stats {
			if p.serverStats, err = c.serverStats(); err != nil {
				return nil, err
			}
		}
		points = append(points, p)
	}
	m := c.server.meter()
	if err := l.during(c.measure); err != nil {
		return nil, err
	}
	passed := m.stop()

	anon := func(p sample) int64 { return p.Anon }
	anonGC := func(p sample) int64 { return p.AnonGC }
	first, last, middle := points[0], points[len(points)-1], len(points)/2
	r := idleResult{
		N: last.N, Rooms: c.room(last.N-1) + 1, Dead: l.dead, Points: points,
		AnonSlope:   slope(points, anon),
		AnonGCSlope: slope(points, anonGC),
		RSSSlope:    slope(points, func(p sample) int64 { return p.RSS }),
		LowerSlope:  slope(points[:middle+1], anonGC),
		UpperSlope:  slope(points[middle:], anonGC),
		AnonBase:    base.Anon, RSS: last.RSS, Threads: last.Threads, Descriptors: last.Descriptors,
		IdleCPU:    thousandth(passed.cores() * 100),
		Goroutines: last.Goroutines,
		InMemory:   last.InMemory,
	}
	if c.stats {
		growth := last.Goroutines - first.Goroutines
		r.GoroutineGrowth = &growth
	}
	return r, nil
}

// touch says one thing on each of conns, 64 at a time, and awaits the answers.
func (l *loop) touch(c *config, conns []*conn) error {
	hello := frame(c.opcode(), []byte("i:"))
	sent, answers := 0, 0
	l.message = func(*conn, []byte, time.Duration) { answers++ }
	return l.until(func() bool {
		for ; sent < len(conns) && sent-answers < 64; sent++ {
			l.write(conns[sent], hello)
		}
		return answers >= len(conns)
	})
}

func (c *config) serverStats() (s serverStats, err error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: dialTimeout}
	resp, err := client.Get("http://" + c.addr + "/stats")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// slope is that of the line with the least squares, in bytes per connection. A single point has the slope 0.
func slope(points []sample, kib func(sample) int64) float64 {
	var k, sx, sy, sxx, sxy float64
	for _, p := range points {
		x, y := float64(p.N), float64(kib(p))*1024
		k, sx, sy, sxx, sxy = k+1, sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	if k < 2 {
		return 0
	}
	return tenth((k*sxy - sx*sy) / (k*sxx - sx*sx))
}
