//go:build linux

package main

import (
	"math"
	"slices"
)

// A goal is a number that the library is held to.
type goal struct {
	text    string
	of      func(*data) (float64, bool) // what was measured
	must    float64
	aim     float64
	atLeast bool   // must and aim are lower bounds
	unit    string // empty: a ratio

	best    *cell    // of peers, whatever server it names: shown beside the library's
	toFloor bool     // best is ÷ floor
	below   []string // the aim is to be better than these peers, too
}

// anyPeer in goal.below is every peer.
const anyPeer = "*"

func value(figure, server, key string) func(*data) (float64, bool) {
	return func(d *data) (float64, bool) { return d.value(cell{figure, server, key}) }
}

func toFloor(figure, server, key string) func(*data) (float64, bool) {
	return func(d *data) (float64, bool) { return d.toFloor(cell{figure, server, key}) }
}

// apart is by how much, in per cent, two cells differ.
func apart(a, b cell) func(*data) (float64, bool) {
	return func(d *data) (float64, bool) {
		x, ok := d.ratio(a, b)
		return math.Abs(x-1) * 100, ok
	}
}

func idleCell(figure, server string) cell { return cell{figure, server, "anon_slope_B"} }

var goals = []goal{
	{
		text: "user memory per idle hibernated connection, one object each",
		of:   value("idle", ours, "anon_slope_B"), must: 380, aim: 256, unit: "B", best: &cell{"idle", "", "anon_slope_B"},
	}, {
		text: "the same, 100 connections per object",
		of:   value("idle-100", ours, "anon_slope_B"), must: 250, aim: 128, unit: "B", best: &cell{"idle-100", "", "anon_slope_B"},
	}, {
		text: "added by a 32-byte attachment and a 16-byte tag each, all distinct",
		of: func(d *data) (float64, bool) {
			return d.combine(idleCell("idle-tagged", ours), idleCell("idle", ours), func(x, y float64) float64 { return x - y })
		}, must: 120, aim: 80, unit: "B",
	}, {
		text: "CPU per echo, 64 connections, one in flight ÷ floor",
		of:   toFloor("echo", ours, "cpu_us_msg"), must: 1.25, aim: 1.15, best: &cell{"echo", "", "cpu_us_msg"}, toFloor: true, below: []string{"gnet"},
	}, {
		text: "the same, 16 in flight",
		of:   toFloor("echo-16", ours, "cpu_us_msg"), must: 2.5, aim: 1.3, best: &cell{"echo-16", "", "cpu_us_msg"}, toFloor: true,
	}, {
		text: "CPU per delivery, broadcast to 1,000 ÷ floor",
		of:   toFloor("fanout-1000", ours, "cpu_us_delivery"), must: 1.25, aim: 1.10, best: &cell{"fanout-1000", "", "cpu_us_delivery"}, toFloor: true, below: []string{anyPeer},
	}, {
		text: "CPU per delivery, broadcast to 10,000 ÷ floor",
		of:   toFloor("fanout-10000", ours, "cpu_us_delivery"), must: 1.25, aim: 1.10, best: &cell{"fanout-10000", "", "cpu_us_delivery"}, toFloor: true, below: []string{anyPeer},
	}, {
		text: "CPU per upgrade at the acceptor ÷ floor",
		of:   toFloor("connect", ours, "cpu_us_upgrade"), must: 1.7, aim: 1.3, best: &cell{"connect", "", "cpu_us_upgrade"}, toFloor: true,
	}, {
		text: "CPU per upgrade through net/http ÷ floor",
		of: func(d *data) (float64, bool) {
			return d.ratio(cell{"connect", "hibernate-http", "cpu_us_upgrade"}, cell{"connect", floor, "cpu_us_upgrade"})
		}, must: 3.5, aim: 3,
	}, {
		text: "cold echo p50 ÷ own warm, nothing read",
		of: func(d *data) (float64, bool) {
			return d.ratio(cell{"wake", ours, "cold_p50_us"}, cell{"wake", ours, "warm_p50_us"})
		}, must: 1.5, aim: 1.15,
	}, {
		text: "cold echo p50 ÷ own warm, one key read in the constructor",
		of: func(d *data) (float64, bool) {
			return d.ratio(cell{"wake", "hibernate-dir", "cold_p50_us"}, cell{"wake", "hibernate-dir", "warm_p50_us"})
		}, must: 2, aim: 1.5,
	}, {
		text: "4,000 cold objects woken at once, rate ÷ floor",
		of:   toFloor("wake", ours, "burst_cold_per_s"), must: 0.6, aim: 0.9, atLeast: true, best: &cell{"wake", "", "burst_cold_per_s"}, toFloor: true,
	}, {
		text: "echo p50 at 4,000 messages/s over 1,000 connections ÷ floor",
		of:   toFloor("rate", ours, "p50_us"), must: 1.2, aim: 1.1, best: &cell{"rate", "", "p50_us"}, toFloor: true,
	}, {
		text: "both doors give the same memory at rest: they differ by",
		of:   apart(idleCell("idle", "hibernate-http"), idleCell("idle", ours)), must: 10, aim: 10, unit: "%",
	}, {
		text: "the same, after a GC",
		of:   apart(cell{"idle", "hibernate-http", "anon_gc_slope_B"}, cell{"idle", ours, "anon_gc_slope_B"}), must: 10, aim: 10, unit: "%",
	}, {
		text: "CPU with 18,000 idle connections",
		of:   value("idle", ours, "idle_cpu_pct"), must: 0.5, aim: 0.5, unit: "%", best: &cell{"idle", "", "idle_cpu_pct"},
	}, {
		text: "18,000 idle connections have",
		of:   value("idle", ours, "threads"), must: 12, aim: 12, unit: "threads", best: &cell{"idle", "", "threads"},
	}, {
		text: "17,000 more idle connections add",
		of:   value("idle-flat", ours, "goroutine_growth"), must: 0, aim: 0, unit: "goroutines",
	}, {
		text: "memory per connection, 9,000 to 18,000 against 1,000 to 9,000: they differ by",
		of:   apart(cell{"idle-flat", ours, "upper_gc_slope_B"}, cell{"idle-flat", ours, "lower_gc_slope_B"}), must: 10, aim: 10, unit: "%",
	}, {
		text: "CPU per message, 18,000 connections against 1,000, with 1,000 talking: they differ by",
		of:   apart(cell{"echo-18000", ours, "cpu_us_msg"}, cell{"echo-1000", ours, "cpu_us_msg"}), must: 10, aim: 10, unit: "%",
	},
}

// A verdict is what became of a goal.
type verdict string

const (
	missed  verdict = "**no**"
	metMust verdict = "must"
	metAim  verdict = "aim"
)

// within reports whether v is as good as a bound.
func (g *goal) within(v, bound float64) bool {
	if g.atLeast {
		return v >= bound
	}
	return v <= bound
}

// bestPeer is the peer that does best, if the goal is one that peers have a number for.
func (g *goal) bestPeer(d *data) (name string, best float64, ok bool) {
	for _, server := range g.peers(d) {
		v, has := g.peer(d, server)
		if has && (!ok || v != best && g.within(v, best)) {
			name, best, ok = server, v, true
		}
	}
	return name, best, ok
}

func (g *goal) peers(d *data) (names []string) {
	if g.best == nil {
		return nil
	}
	for _, server := range d.measured(g.best.figure) {
		if isPeer(server) {
			names = append(names, server)
		}
	}
	return names
}

func (g *goal) peer(d *data, server string) (float64, bool) {
	c := cell{g.best.figure, server, g.best.key}
	if g.toFloor {
		return d.toFloor(c)
	}
	return d.value(c)
}

// judge tells what was measured and what became of the goal. The peers that have to be worse for the aim, and are not,
// are named; if none of them was measured the aim is not met.
func (g *goal) judge(d *data) (v float64, became verdict, ahead []string, ok bool) {
	v, ok = g.of(d)
	if !ok {
		return 0, "", nil, false
	}
	if !g.within(v, g.must) {
		return v, missed, nil, true
	}
	if !g.within(v, g.aim) {
		return v, metMust, nil, true
	}
	compared := 0
	for _, server := range g.peers(d) {
		if !slices.Contains(g.below, server) && !slices.Contains(g.below, anyPeer) {
			continue
		}
		if p, has := g.peer(d, server); has {
			compared++
			if p != v && g.within(p, v) {
				ahead = append(ahead, server)
			}
		}
	}
	if len(ahead) > 0 || len(g.below) > 0 && compared == 0 {
		return v, metMust, ahead, true
	}
	return v, metAim, nil, true
}
