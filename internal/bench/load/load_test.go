//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate/internal/bench/launch"
	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) {
	bin, err := os.MkdirTemp("", "bench")
	if err != nil {
		panic(err)
	}
	server = sync.OnceValues(func() (string, error) {
		root, err := launch.Root(context.Background())
		if err != nil {
			return "", err
		}
		return filepath.Join(bin, "server"), launch.Build(context.Background(), root, bin, "./internal/bench/server")
	})
	leak.Main(tidy{m, bin})
}

// tidy removes the directory when the tests have run.
type tidy struct {
	m   *testing.M
	dir string
}

func (t tidy) Run() int {
	defer os.RemoveAll(t.dir)
	return t.m.Run()
}

// server builds the library's server, once, and returns where it is.
var server func() (string, error)

func startServer(t *testing.T, args ...string) *launch.Server {
	t.Helper()
	program, err := server()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s, err := launch.Start(ctx, program, args...)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Stop()
		cancel()
	})
	return s
}

// short is a run that a test can wait for.
func short(s *launch.Server, mode string) *config {
	return &config{
		mode: mode, addr: s.Addr, prefix: "/room/", server: process(s.PID),
		counts: []int{40}, inFlight: 1, rate: 2000, size: 128, parallel: 8,
		warm: 50 * time.Millisecond, measure: 300 * time.Millisecond,
	}
}

// asleep reports whether no object of the server is in memory. It asks over one connection, which stays.
func asleep(t *testing.T, c *config) func() bool {
	client := &http.Client{Transport: &http.Transport{}, Timeout: dialTimeout}
	t.Cleanup(client.CloseIdleConnections)
	return func() bool {
		resp, err := client.Get("http://" + c.addr + "/stats")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var s serverStats
		b, err := io.ReadAll(resp.Body)
		return err == nil && json.Unmarshal(b, &s) == nil && s.InMemory == 0
	}
}

func measure[R any](t *testing.T, c *config) R {
	t.Helper()
	r, err := run(c)
	if err != nil {
		t.Fatalf("%s: %v", c.mode, err)
	}
	if b, err := json.Marshal(r); err != nil {
		t.Errorf("%s: %v", c.mode, err)
	} else {
		t.Logf("%s: %s", c.mode, b)
	}
	return r.(R)
}

func TestModesMeasureTheServer(t *testing.T) {
	s := startServer(t, "-idle", "100ms")
	for _, inFlight := range []int{1, 16} {
		c := short(s, "echo")
		c.inFlight, c.active, c.binary = inFlight, 20, inFlight > 1
		r := measure[echoResult](t, c)
		if r.Bad+r.Dead != 0 || r.PerSecond <= 0 || r.CPU <= 0 || r.P50 <= 0 || r.P99 < r.P50 || r.Active != 20 {
			t.Errorf("echo with %d in flight: %+v", inFlight, r)
		}
	}
	if r := measure[echoResult](t, short(s, "rate")); r.Bad+r.Dead != 0 || r.PerSecond <= 0 || r.Rate != 2000 || r.P50 <= 0 {
		t.Errorf("rate: %+v", r)
	}
	if r := measure[fanoutResult](t, short(s, "fanout")); r.Bad+r.Dead != 0 || r.Receivers != 40 || r.CPU <= 0 || r.LastP50 <= 0 || r.Broadcasts <= 0 {
		t.Errorf("fanout: %+v", r)
	}
	for _, mode := range []string{"connect", "churn"} {
		c := short(s, mode)
		before := c.server.memory().Descriptors
		c.settled = func() bool { return c.server.memory().Descriptors <= before+2 } // it has found all connections gone
		if r := measure[connectResult](t, c); r.Fails != 0 || r.PerSecond <= 0 || r.CPU <= 0 || r.DescriptorsAfter > before+2 {
			t.Errorf("%s: %+v", mode, r)
		}
	}
}

func TestWakeProvesThatObjectsWereAsleep(t *testing.T) {
	s := startServer(t, "-idle", "100ms", "-dir", t.TempDir())
	c := short(s, "wake")
	c.rooms, c.settled = 20, asleep(t, c)
	r := measure[wakeResult](t, c)
	if r.Dead != 0 || r.Rooms != 20 || r.Rebuilt != 20 || r.RebuiltBurst != 20 || r.ColdP50 <= 0 || r.WarmP50 <= 0 || r.BurstCold <= 0 {
		t.Errorf("wake: %+v", r)
	}
}

func TestIdleCountsConnectionsAndObjects(t *testing.T) {
	s := startServer(t, "-idle", "100ms")
	c := short(s, "idle")
	c.counts, c.perRoom, c.prefix, c.touch, c.stats, c.settled = []int{20, 40, 60}, 10, "/tagged/", true, true, asleep(t, c)
	r := measure[idleResult](t, c)
	if r.N != 60 || r.Rooms != 6 || r.Dead != 0 || len(r.Points) != 3 || r.InMemory != 0 || r.Points[2].Asleep != 6 || r.Goroutines == 0 || *r.GoroutineGrowth >= 20 {
		t.Errorf("idle: %+v", r)
	}
	// The server may still hold the connections that asked for /stats at the first two points.
	if d := r.Points[2].Descriptors - r.Points[0].Descriptors; d < 40 || d > 42 {
		t.Errorf("40 connections took %d descriptors", d)
	}
}

func TestRunRefusesWhatCannotBeMeasured(t *testing.T) {
	good := config{mode: "echo", addr: "127.0.0.1:1", counts: []int{1}, inFlight: 1, rate: 1, parallel: 1, measure: 1}
	for name, change := range map[string]func(*config){
		"mode":    func(c *config) { c.mode = "table" },
		"none":    func(c *config) { c.counts = nil },
		"zero":    func(c *config) { c.counts = []int{0} },
		"falling": func(c *config) { c.counts = []int{2, 1} },
		"host":    func(c *config) { c.addr = "[::1]:1" },
		"nobody":  func(*config) {},
	} {
		c := good
		change(&c)
		if r, err := run(&c); err == nil {
			t.Errorf("%s: measured %+v", name, r)
		}
	}
}

func TestHistogramQuantiles(t *testing.T) {
	var h, o histogram
	if h.quantile(.5) != 0 {
		t.Error("an empty histogram has a median")
	}
	for i := range 1000 {
		d := time.Duration(i+1) * 10 * time.Microsecond
		if i%2 == 0 {
			h.add(d)
		} else {
			o.add(d)
		}
	}
	h.add(-1)
	h.add(1 << 62)
	h.merge(&o)
	for p, want := range map[float64]float64{.1: 1000, .5: 5000, .99: 9900} {
		if got := h.quantile(p); got > want || got < want*.98 {
			t.Errorf("quantile %v is %v µs, want %v", p, got, want)
		}
	}
	if h.n != 1002 || h.quantile(0) != 0 {
		t.Errorf("%d times from %v", h.n, h.quantile(0))
	}
}

func TestSlopeIsThatOfALine(t *testing.T) {
	var points []sample
	for _, n := range []int{1000, 2000, 5000} {
		points = append(points, sample{N: n, Anon: int64(300 + n/4)})
	}
	if got := slope(points, func(p sample) int64 { return p.Anon }); got != 256 {
		t.Errorf("256 B for each connection are a slope of %v", got)
	}
	if got := slope(points[:1], func(p sample) int64 { return p.Anon }); got != 0 {
		t.Errorf("a point has the slope %v", got)
	}
}

// What a server sends is taken as it comes, in any pieces.
func TestFramesAreCutWhole(t *testing.T) {
	var stream []byte
	var want [][]byte
	for _, n := range []int{0, 1, 125, 126, 65535, 65536} {
		p := bytes.Repeat([]byte{byte(n)}, n)
		want = append(want, p)
		switch {
		case n < 126:
			stream = append(stream, 0x82, byte(n))
		case n < 1<<16:
			stream = append(stream, 0x82, 126, byte(n>>8), byte(n))
		default:
			stream = append(stream, 0x82, 127, 0, 0, 0, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
		}
		stream = append(stream, p...)
	}
	var got [][]byte
	for end := 0; end <= len(stream); end += 1 + end%97 {
		for rest := stream[:end]; ; {
			op, p, more, ok, err := cut(rest)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if op != opBinary {
				t.Fatalf("opcode %d", op)
			}
			got, rest = append(got, p), more
		}
		if k := len(got); !slices.EqualFunc(got, want[:k], bytes.Equal) {
			t.Fatalf("%d bytes: other frames", end)
		}
		got = got[:0]
	}
	for _, bad := range [][]byte{{0x82, 0x80, 0, 0, 0, 0}, {0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0}} {
		if _, _, _, _, err := cut(bad); err == nil {
			t.Errorf("% x was taken", bad)
		}
	}
}

func TestOwnProcessHasMemoryAndTime(t *testing.T) {
	p := process(os.Getpid())
	m := p.memory()
	if m.RSS < m.Anon || m.Anon == 0 || m.Threads == 0 || m.Descriptors < 3 {
		t.Errorf("memory %+v", m)
	}
	begin, before := time.Now(), p.cpu()
	for p.cpu() == before {
		if time.Since(begin) > 30*time.Second {
			t.Fatal("has used no time in 30 s")
		}
	}
	most := time.Since(begin) * time.Duration(runtime.NumCPU())
	if d := p.cpu() - before; d <= 0 || d > most+time.Second {
		t.Errorf("used %v, where there are %v", d, most)
	}
}
