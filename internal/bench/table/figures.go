//go:build linux

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hibernate-go/hibernate/internal/bench/launch"
)

// A figure is one way to run the load generator, and what of its result is shown.
type figure struct {
	name  string
	title string
	args  string // of load
	quick string // instead of args, with -quick; empty: the same

	also []string // servers measured beside those that all figures have
	only []string // servers measured at all; empty: no restriction

	columns []column // the first is the one that servers are ordered by
}

// A column is one number of a result.
type column struct {
	key    string
	title  string
	better direction
	ratio  bool // ÷ floor is shown too
}

type direction int8

const (
	neither direction = iota
	lower
	higher
)

var idleColumns = []column{
	{key: "anon_slope_B", title: "B/connection", better: lower, ratio: true},
	{key: "anon_gc_slope_B", title: "after a GC", better: lower},
	{key: "rss_slope_B", title: "RSS", better: lower},
	{key: "rss_KB", title: "RSS of the process, KiB", better: lower},
	{key: "threads", title: "threads"},
	{key: "goroutines", title: "goroutines"},
	{key: "idle_cpu_pct", title: "CPU %"},
}

var echoColumns = []column{
	{key: "cpu_us_msg", title: "CPU µs/message", better: lower, ratio: true},
	{key: "msgs_s", title: "messages/s", better: higher},
	{key: "p50_us", title: "p50 µs", better: lower},
	{key: "p99_us", title: "p99 µs", better: lower},
	{key: "cli_us_msg", title: "client's CPU µs"},
}

var fanoutColumns = []column{
	{key: "cpu_us_delivery", title: "CPU µs/delivery", better: lower, ratio: true},
	{key: "deliveries_s", title: "deliveries/s", better: higher},
	{key: "last_p50_us", title: "last receiver p50 µs", better: lower},
	{key: "last_p99_us", title: "last receiver p99 µs", better: lower},
	{key: "cli_us_delivery", title: "client's CPU µs"},
}

var wakeColumns = []column{
	{key: "cold_p50_us", title: "cold p50 µs", better: lower, ratio: true},
	{key: "warm_p50_us", title: "warm p50 µs", better: lower},
	{key: "cold_p99_us", title: "cold p99 µs", better: lower},
	{key: "cold_cpu_us", title: "cold CPU µs", better: lower},
	{key: "burst_cold_per_s", title: "at once, cold/s", better: higher, ratio: true},
	{key: "burst_warm_per_s", title: "at once, warm/s", better: higher},
	{key: "reconstructed", title: "rebuilt"},
}

var figures = []figure{
	{
		name: "idle", title: "Idle connections, one to a room",
		args: "-mode idle -n 2000,6000,12000,18000 -gc", quick: "-mode idle -n 1000,4000,8000 -gc -d 3s",
		also: []string{"hibernate-http"}, columns: idleColumns,
	}, {
		name: "idle-100", title: "Idle connections, 100 to a room",
		args: "-mode idle -n 2000,6000,12000,18000 -per-room 100 -gc", quick: "-mode idle -n 1000,4000,8000 -per-room 100 -gc -d 3s",
		also: []string{"hibernate-http"}, columns: idleColumns,
	}, {
		name: "idle-tagged", title: "Idle connections, one to a room, each with an attachment of 32 bytes and a tag of 16",
		args: "-mode idle -n 2000,6000,12000,18000 -prefix /tagged/ -gc", quick: "-mode idle -n 1000,4000,8000 -prefix /tagged/ -gc -d 3s",
		only: []string{ours}, columns: idleColumns,
	}, {
		name: "idle-woken", title: "Idle connections, one to a room, after one message each",
		args: "-mode idle -n 2000,6000,12000,18000 -touch -gc", quick: "-mode idle -n 1000,4000,8000 -touch -gc -d 3s",
		only: []string{floor, ours, "gnet", "gobwas-raw"}, columns: idleColumns,
	}, {
		name: "idle-flat", title: "Idle connections, few and many",
		args: "-mode idle -n 1000,5000,9000,13500,18000 -gc", quick: "-mode idle -n 1000,2500,4500,6500,8000 -gc -d 3s",
		only: []string{floor, ours, "hibernate-http"},
		columns: []column{
			{key: "lower_gc_slope_B", title: "B/connection, lower half", better: lower},
			{key: "upper_gc_slope_B", title: "B/connection, upper half", better: lower},
			{key: "goroutine_growth", title: "goroutines more"},
		},
	}, {
		name: "echo", title: "Echo, 64 connections, one message in flight on each",
		args: "-mode echo -n 64", columns: echoColumns,
	}, {
		name: "echo-16", title: "Echo, 64 connections, 16 messages in flight on each",
		args: "-mode echo -n 64 -pipe 16", columns: echoColumns,
	}, {
		name: "echo-1000", title: "Echo, 1,000 connections, all talk",
		args: "-mode echo -n 1000 -active 1000", columns: echoColumns,
	}, {
		name: "echo-18000", title: "Echo, 18,000 connections, 1,000 of them talk",
		args: "-mode echo -n 18000 -active 1000", quick: "-mode echo -n 8000 -active 1000",
		only: []string{floor, ours}, columns: echoColumns,
	}, {
		name: "fanout-1000", title: "Broadcast to 1,000", args: "-mode fanout -n 1000", columns: fanoutColumns,
	}, {
		name: "fanout-10000", title: "Broadcast to 10,000", args: "-mode fanout -n 10000", columns: fanoutColumns,
	}, {
		name: "connect", title: "Upgrades, 32 at once",
		args: "-mode connect -settle 100ms", also: []string{"hibernate-http"},
		columns: []column{
			{key: "cpu_us_upgrade", title: "CPU µs/upgrade", better: lower, ratio: true},
			{key: "upgrades_s", title: "upgrades/s", better: higher},
			{key: "p50_us", title: "p50 µs", better: lower},
			{key: "p99_us", title: "p99 µs", better: lower},
			{key: "cli_us_upgrade", title: "client's CPU µs"},
		},
	}, {
		name: "wake", title: "4,000 rooms, asleep and awake",
		args: "-mode wake -n 4000", also: []string{"hibernate-dir"}, columns: wakeColumns,
	}, {
		name: "rate", title: "Echo at 4,000 messages/s over 1,000 connections",
		args: "-mode rate -n 1000 -rate 4000",
		columns: []column{
			{key: "p50_us", title: "p50 µs", better: lower, ratio: true},
			{key: "p99_us", title: "p99 µs", better: lower},
			{key: "cpu_us_msg", title: "CPU µs/message", better: lower, ratio: true},
		},
	},
}

// servers are those of all that the figure is taken of.
func (f figure) servers(all []server) (chosen []server) {
	for _, s := range all {
		if slices.Contains(f.also, s.name) || slices.Contains(f.only, s.name) || len(f.only) == 0 && !s.extra {
			chosen = append(chosen, s)
		}
	}
	return chosen
}

// arguments are load's.
func (f figure) arguments(o *options, s server, proc *launch.Server) []string {
	args, warm, settle := f.args, "1s", "2s"
	if o.quick {
		warm, settle = "300ms", "1500ms"
		if f.quick != "" {
			args = f.quick
		}
	}
	// Flags of the figure win over those before.
	all := []string{"-addr", proc.Addr, "-pid", strconv.Itoa(proc.PID), "-name", s.name, "-d", o.measure.String(), "-warm", warm, "-settle", settle}
	if s.ours {
		all = append(all, "-stats")
	}
	return append(all, strings.Fields(args)...)
}

// brief is a result in a few words.
func (f figure) brief(r run) string {
	if r.Err != "" {
		return "FAILED: " + r.Err
	}
	c := f.columns[0]
	return fmt.Sprintf("%s %s", number(r.values[c.key]), c.title)
}
