//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A process is the server's id; 0 is unknown, and has used nothing.
type process int

// memory is what a process has in memory.
type memory struct {
	RSS         int64 // KiB
	Anon        int64 // KiB, without files that are mapped
	Threads     int
	Descriptors int
}

func (p process) memory() (m memory) {
	if p == 0 {
		return m
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p))
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		n, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "Rss:":
			m.RSS = n
		case "Anonymous:":
			m.Anon = n
		}
	}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p))
	m.Threads = len(tasks)
	// The size is the number of descriptors (Linux 6.2). To list them would leave an inode of each in the kernel's caches.
	if fi, err := os.Stat(fmt.Sprintf("/proc/%d/fd", p)); err == nil {
		m.Descriptors = int(fi.Size())
	}
	return m
}

// cpu is the time that a process has run, in nanoseconds and not in the ticks of /proc.
func (p process) cpu() time.Duration {
	if p == 0 {
		return 0
	}
	const schedClock = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	if unix.ClockGettime(^int32(p)<<3|schedClock, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// ownCPU is the time that this process has run.
func ownCPU() time.Duration { return process(os.Getpid()).cpu() }

// freeMemory has the process give unused memory back, and waits a while for it.
func (p process) freeMemory() {
	if p != 0 && unix.Kill(int(p), unix.SIGUSR1) == nil {
		time.Sleep(time.Second)
	}
}

// A meter measures what a stretch of a run costs, from when it was made until stop.
type meter struct {
	server   process
	at       time.Duration
	cpu, own time.Duration // so far, of the server and of this process
}

func (p process) meter() meter { return meter{server: p, at: now(), cpu: p.cpu(), own: ownCPU()} }

// stop is what has passed since m was made.
func (m meter) stop() stretch {
	return stretch{took: now() - m.at, cpu: m.server.cpu() - m.cpu, own: ownCPU() - m.own}
}

// A stretch is a time, and the CPU times of the server and of this process in it.
type stretch struct{ took, cpu, own time.Duration }

// perSecond is the rate of n things.
func (s stretch) perSecond(n int64) float64 { return tenth(float64(n) / s.took.Seconds()) }

// serverCPU and clientCPU are what each of n things cost, in microseconds.
func (s stretch) serverCPU(n int64) float64 { return thousandth(micros(s.cpu) / float64(n)) }
func (s stretch) clientCPU(n int64) float64 { return thousandth(micros(s.own) / float64(n)) }

// cores is how many the server kept busy.
func (s stretch) cores() float64 { return float64(s.cpu) / float64(s.took) }

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
