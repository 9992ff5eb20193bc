package hostile

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/leak"
)

// TestMain lets the test binary be the hostile clients, in a process of their own.
func TestMain(m *testing.M) {
	if doors := os.Getenv("HOSTILE_DOORS"); doors != "" {
		besiege(strings.Split(doors, ","))
		return
	}
	leak.Main(m)
}

// rooms is in how many rooms the honest clients are. The hostile ones join them.
const rooms = 4

// besiege attacks until standard input ends, with as many clients of each kind at
// each door as HOSTILE_EACH says. It prints a line when each kind has attacked so often,
// and in the end how often each has.
func besiege(doors []string) {
	each, err := strconv.Atoi(os.Getenv("HOSTILE_EACH"))
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	times := make([]atomic.Int64, len(kinds))
	var at atomic.Int64 // how many kinds are at it
	var wg sync.WaitGroup
	for k := range kinds {
		for _, addr := range doors {
			for i := range each {
				wg.Go(func() {
					attack(ctx, kinds[k], addr, roomPath(i%rooms), func() {
						if times[k].Add(1) == int64(each) && at.Add(1) == int64(len(kinds)) {
							fmt.Println("begun")
						}
					})
				})
			}
		}
	}
	wg.Wait()
	for k := range times {
		fmt.Println(times[k].Load())
	}
}

// siege has a process of its own besiege s, until the function it returns is called,
// which tells how often each kind has attacked: at least as often as each says.
func siege(tb testing.TB, s *server, each int) (end func() []int) {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "HOSTILE_DOORS="+strings.Join(s.doors, ","), fmt.Sprintf("HOSTILE_EACH=%d", each))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	hurry := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	lines.Scan()
	hurry.Stop()
	end = sync.OnceValue(func() (times []int) {
		in.Close()
		for lines.Scan() {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				tb.Error(err)
			}
			times = append(times, n)
		}
		if err := cmd.Wait(); err != nil || len(times) != len(kinds) {
			tb.Errorf("the hostile clients tell %v and end with %v", times, err)
		}
		return times
	})
	tb.Cleanup(func() { end() })
	if lines.Text() != "begun" {
		tb.Errorf("the hostile clients have not all attacked within %v, but say %q", limit, lines.Text())
	}
	return end
}

func TestHonestClientsNoticeNothingOfHostileOnes(t *testing.T) {
	each, d := 4, 2*time.Second
	if os.Getenv("HIBERNATE_SLOW") != "" {
		each, d = 8, time.Minute
	}
	s := serve(t)
	c := gather(t, s, 32, rooms)
	if err := c.each((*honest).tell); err != nil {
		t.Fatal(err)
	}
	employ(t, s)
	before := measure(t, s, len(c))

	ctx, cancel := context.WithCancel(context.Background())
	var visits int
	var slowest moment
	var err, visitErr error
	var wg sync.WaitGroup
	wg.Go(func() { visits, slowest, visitErr = comeAndGo(ctx, s) })
	wg.Go(func() { err = c.talk(ctx) })
	end := siege(t, s, each)
	time.Sleep(d) // that long it lasts
	cancel()
	wg.Wait()
	times := end()
	if err == nil {
		err = c.heard(rooms, len(s.doors))
	}
	if err != nil || visitErr != nil {
		t.Fatalf("%v; %v", err, visitErr)
	}
	messages := 0
	var longest moment
	for _, h := range c {
		messages += h.sent + h.told
		longest = longest.or(h.longest)
	}
	if longest.tooLong() || slowest.tooLong() {
		t.Errorf("an honest client waited for %v, a visitor for %v", longest, slowest)
	}
	attacks := 0
	for _, n := range times {
		attacks += n
	}
	t.Logf("%d attacks of %d kinds by %d clients; %d honest messages, the slowest beside %v; %d visits, the slowest beside %v",
		attacks, len(kinds), len(kinds)*each*len(s.doors), messages, longest, visits, slowest)

	over := time.Now()
	after := measure(t, s, len(c), before)
	t.Logf("%+v before, %+v %v after", before, after, time.Since(over))
	if grown := int64(after.heap) - int64(before.heap); grown > 2<<20 {
		t.Errorf("the heap has grown by %d bytes, from %d", grown, before.heap)
	}
}

// employ has more objects at work at once than the runtime keeps goroutines for, so
// that it has as many as it ever keeps.
func employ(t *testing.T, s *server) {
	t.Helper()
	var all sync.WaitGroup
	const n = 64
	all.Add(n)
	ns, err := hibernate.Register(s.rt, "Employed", func(context.Context, *hibernate.State) (*struct{}, error) {
		all.Done()
		all.Wait()
		return new(struct{}), nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var called sync.WaitGroup
	for i := range n {
		called.Go(func() {
			if _, err := nothing.Call(context.Background(), ns.GetByName(fmt.Sprint(i)), 0); err != nil {
				t.Error(err)
			}
		})
	}
	called.Wait()
}

var nothing = hibernate.NewMethod("nothing", func(*struct{}, context.Context, int) (int, error) { return 0, nil })

// A footprint is what the process holds.
type footprint struct {
	goroutines, descriptors int
	heap                    uint64
}

// measure waits until nothing is under way, and the footprint is steady and the one
// before, but for the heap.
func measure(t *testing.T, s *server, sockets int, before ...footprint) footprint {
	t.Helper()
	var f footprint
	var stats hibernate.Stats
	for steady, deadline := 0, time.Now().Add(limit); steady < 20; {
		last := f
		f.goroutines, f.descriptors, stats = runtime.NumGoroutine(), descriptors(), s.rt.Stats()
		calm := stats.Sockets == int64(sockets) && stats.ObjectsInMemory == 0 && f == last
		for _, b := range before {
			calm = calm && f.goroutines == b.goroutines && f.descriptors == b.descriptors
		}
		if steady++; !calm {
			steady = 0
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%+v, %d sockets and %d objects remain, before were %+v and %d sockets; goroutines:\n%s",
				f, stats.Sockets, stats.ObjectsInMemory, before, sockets, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(5 * time.Millisecond) // no event tells of the last descriptor
	}
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.heap = m.HeapAlloc
	return f
}

// descriptors is the number of open descriptors, 0 where that is not known.
func descriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// BenchmarkEchoBesideHostileClients is one message and its echo, for one of 32
// honest clients that take turns, alone and beside hostile clients in another
// process.
func BenchmarkEchoBesideHostileClients(b *testing.B) {
	for _, hostile := range []bool{false, true} {
		n := 0
		if hostile {
			n = len(kinds) * 4 * 2
		}
		b.Run(fmt.Sprintf("hostile=%d", n), func(b *testing.B) {
			s := serve(b)
			c := gather(b, s, 32, rooms)
			if hostile {
				siege(b, s, 4)
			}
			took := make([]time.Duration, 0, b.N)
			for b.Loop() {
				h := c[len(took)%len(c)]
				begun := time.Now()
				if err := h.echo(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begun))
			}
			slices.Sort(took)
			for _, q := range []struct {
				name string
				at   float64
			}{{"p50", 0.5}, {"p99", 0.99}, {"max", 1}} {
				b.ReportMetric(float64(took[int(q.at*float64(len(took)-1))].Microseconds()), q.name+"-µs")
			}
		})
	}
}
