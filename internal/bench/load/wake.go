//go:build linux

package main

import (
	"bytes"
	"time"
)

type wakeResult struct {
	N     int `json:"n"`
	Rooms int `json:"rooms"`
	Size  int `json:"size"`
	Dead  int `json:"dead"`

	// One room after the other, asleep and then awake.
	ColdP50 float64 `json:"cold_p50_us"`
	ColdP99 float64 `json:"cold_p99_us"`
	ColdCPU float64 `json:"cold_cpu_us"`
	WarmP50 float64 `json:"warm_p50_us"`
	WarmP99 float64 `json:"warm_p99_us"`
	WarmCPU float64 `json:"warm_cpu_us"`
	// All rooms at once.
	BurstCold    float64 `json:"burst_cold_per_s"`
	BurstColdCPU float64 `json:"burst_cold_cpu_us"`
	BurstColdP99 float64 `json:"burst_cold_p99_us"`
	BurstWarm    float64 `json:"burst_warm_per_s"`
	BurstWarmCPU float64 `json:"burst_warm_cpu_us"`
	// How many rooms had a new instance in a cold pass, and, which should not be, in the warm ones.
	Rebuilt      int `json:"reconstructed"`
	RebuiltBurst int `json:"reconstructed_burst"`
	WarmRebuilt  int `json:"warm_changed"`

	Asleep int64 `json:"rss_asleep_KB"`
	Awake  int64 `json:"rss_awake_KB"`
}

// wake sends one message to the first connection of each room, in five passes: to learn the instances' numbers; asleep
// and awake, one by one; asleep and awake, all at once.
func wake(c *config) (any, error) {
	n := c.counts[0]
	room := *c
	if room.rooms <= 0 || room.rooms > n {
		room.rooms = n
	}
	room.perRoom = 0
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	defer l.close()
	if err := l.add(&room, n); err != nil {
		return nil, err
	}
	rooms := l.conns[:room.rooms]
	message := bytes.Repeat([]byte("w"), max(c.size, 2))
	copy(message, "i:")
	hello := frame(c.opcode(), message)

	type pass struct {
		latency        histogram
		perSecond, cpu float64
		rebuilt        int
	}
	instances := make([]string, len(rooms))
	do := func(atOnce int) (*pass, error) {
		p := &pass{}
		left := make([]time.Duration, len(rooms))
		sent, answers := 0, 0
		l.message = func(w *conn, id []byte, at time.Duration) {
			if w.id >= len(rooms) || !bytes.HasPrefix(id, message[:2]) {
				return
			}
			p.latency.add(at - left[w.id])
			if before := instances[w.id]; before != "" && before != string(id) {
				p.rebuilt++
			}
			instances[w.id] = string(id)
			answers++
		}
		m := c.server.meter()
		err := l.until(func() bool {
			for ; sent < len(rooms) && sent-answers < atOnce; sent++ {
				left[sent] = now()
				l.write(rooms[sent], hello)
			}
			return answers == len(rooms)
		})
		p.perSecond = m.stop().perSecond(int64(len(rooms)))
		time.Sleep(20 * time.Millisecond) // what the server does behind its answers counts too
		p.cpu = m.stop().serverCPU(int64(len(rooms)))
		return p, err
	}
	var passes []*pass
	var asleep, awake memory
	for _, step := range []struct {
		settle bool
		atOnce int
	}{{false, 64}, {true, 1}, {false, 1}, {true, len(rooms)}, {false, len(rooms)}} {
		if step.settle {
			if err := c.rest(l.during); err != nil {
				return nil, err
			}
		}
		if len(passes) == 1 {
			asleep = c.server.memory()
		}
		p, err := do(step.atOnce)
		if err != nil {
			return nil, err
		}
		if passes = append(passes, p); len(passes) == 2 {
			awake = c.server.memory()
		}
	}
	cold, warm, burstCold, burstWarm := passes[1], passes[2], passes[3], passes[4]
	return wakeResult{
		N: n, Rooms: len(rooms), Size: len(message), Dead: l.dead,
		ColdP50: cold.latency.quantile(.5), ColdP99: cold.latency.quantile(.99), ColdCPU: cold.cpu,
		WarmP50: warm.latency.quantile(.5), WarmP99: warm.latency.quantile(.99), WarmCPU: warm.cpu,
		BurstCold: burstCold.perSecond, BurstColdCPU: burstCold.cpu, BurstColdP99: burstCold.latency.quantile(.99),
		BurstWarm: burstWarm.perSecond, BurstWarmCPU: burstWarm.cpu,
		Rebuilt: cold.rebuilt, RebuiltBurst: burstCold.rebuilt, WarmRebuilt: warm.rebuilt + burstWarm.rebuilt,
		Asleep: asleep.RSS, Awake: awake.RSS,
	}, nil
}
