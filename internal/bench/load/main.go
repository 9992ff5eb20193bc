//go:build linux

// Load is the client of the benchmarks: it measures a WebSocket server on this machine from outside, over loopback.
//
// The server upgrades GET /room/{name}. It sends a message "b:…" to every connection of the room, the sender's
// included, answers "i:…" with "i:" and the number of the instance that answers (or echoes it, if there is no such
// thing), and echoes everything else with its kind. SIGUSR1, sent with -gc, has it give unused memory back to the
// system.
//
// Each run is one mode and prints one JSON object. Sizes are in bytes (B) or KiB (KB), times in microseconds (us), CPU
// times are those of the server's process, and a Linux with epoll_pwait2 (5.11) is needed.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// A config is what one run is asked to do. It is immutable.
type config struct {
	mode   string
	addr   string // IPv4 host:port
	prefix string
	server process // 0: unknown, then there is no CPU and no memory to tell

	counts   []int // connections; only idle takes several
	rooms    int   // the rooms that connections take in turn; 0: a room each
	perRoom  int   // fill each room with so many before the next; 0: see rooms
	active   int   // echo: how many talk; 0: all
	inFlight int   // echo: messages under way per connection
	rate     float64
	size     int // bytes of a payload
	binary   bool

	warm, measure time.Duration
	settle        time.Duration // longer than the server's hibernation delay
	settled       func() bool   // what tests wait for instead; nil: nothing
	gc            bool
	touch         bool // idle: every connection says one thing before it falls silent
	stats         bool // idle: ask the server for /stats
	parallel      int  // connections opened at once
}

// room is the room of the i-th connection.
func (c *config) room(i int) int {
	switch {
	case c.perRoom > 0:
		return i / c.perRoom
	case c.rooms > 0:
		return i % c.rooms
	}
	return i
}

// rest spends the time with during that the server needs for what it does behind its answers.
func (c *config) rest(during func(time.Duration) error) error {
	if c.settled == nil {
		return during(c.settle)
	}
	for end := now() + time.Minute; !c.settled(); {
		if now() > end {
			return errRestless
		}
		if err := during(10 * time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// measured spends the time with during that is to be measured, and more if nothing has come back meanwhile: the machine
// may have been busy with something else.
func (c *config) measured(during func(time.Duration) error, came func() bool) error {
	for end := now() + time.Minute; ; {
		if err := during(c.measure); err != nil || came() || now() > end {
			return err
		}
	}
}

func (c *config) opcode() byte {
	if c.binary {
		return opBinary
	}
	return opText
}

var modes = map[string]func(*config) (any, error){
	"idle": idle, "echo": echo, "rate": rate, "fanout": fanout, "wake": wake, "connect": connect, "churn": connect,
}

func main() {
	c := &config{}
	flag.StringVar(&c.mode, "mode", "echo", "`what` to measure: idle, echo, rate, fanout, wake, connect or churn")
	flag.StringVar(&c.addr, "addr", "127.0.0.1:9001", "the server's IPv4 `host:port`")
	flag.StringVar(&c.prefix, "prefix", "/room/", "`path` before a room's name")
	flag.IntVar((*int)(&c.server), "pid", 0, "the server's `process`, for its CPU and memory")
	name := flag.String("name", "", "the server's `name` in the output")
	n := flag.String("n", "1000", "connections; a comma-separated list of rising `numbers` for idle; for fanout, those that receive")
	flag.IntVar(&c.rooms, "rooms", 0, "distinct rooms, taken in turn; 0: one for each connection (connect: 1,000)")
	flag.IntVar(&c.perRoom, "per-room", 0, "fill each room with this many connections instead")
	flag.IntVar(&c.active, "active", 0, "echo: how many of the connections talk; 0: all")
	flag.IntVar(&c.inFlight, "pipe", 1, "echo: messages in flight on a connection")
	flag.Float64Var(&c.rate, "rate", 4000, "rate: messages per second in all")
	flag.IntVar(&c.size, "size", 128, "payload `bytes`")
	flag.BoolVar(&c.binary, "bin", false, "binary messages instead of text")
	flag.DurationVar(&c.warm, "warm", time.Second, "warm-up before the measured time")
	flag.DurationVar(&c.measure, "d", 4*time.Second, "measured time")
	flag.DurationVar(&c.settle, "settle", 2*time.Second, "wait before a sample of idle, wake or connect")
	flag.BoolVar(&c.gc, "gc", false, "idle, connect: have the server give memory back before a second sample")
	flag.BoolVar(&c.touch, "touch", false, "idle: one message on every connection before it falls silent")
	flag.BoolVar(&c.stats, "stats", false, "idle: ask the server for /stats")
	flag.IntVar(&c.parallel, "par", 32, "connections opened at once")
	flag.Parse()
	fail := func(err error) {
		fmt.Fprintf(os.Stderr, "load: %s: %v\n", c.mode, err)
		os.Exit(1)
	}
	for s := range strings.SplitSeq(*n, ",") {
		v, err := strconv.Atoi(s)
		if err != nil {
			fail(err)
		}
		c.counts = append(c.counts, v)
	}
	result, err := run(c)
	if err == nil {
		err = print(result, map[string]any{"mode": c.mode, "name": *name})
	}
	if err != nil {
		fail(err)
	}
}

// run measures.
func run(c *config) (any, error) {
	measure := modes[c.mode]
	if measure == nil {
		return nil, fmt.Errorf("no such mode")
	}
	for i, n := range c.counts {
		if n < 1 || i > 0 && n <= c.counts[i-1] {
			return nil, fmt.Errorf("bad numbers of connections %v", c.counts)
		}
	}
	if len(c.counts) == 0 || c.inFlight < 1 || c.parallel < 1 || c.rate <= 0 || c.measure <= 0 {
		return nil, fmt.Errorf("nothing to do")
	}
	return measure(c)
}

// print writes result with more fields.
func print(result any, more map[string]any) error {
	b, err := json.Marshal(result)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &more); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(more)
}
