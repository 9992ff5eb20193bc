//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A run is one measurement.
type run struct {
	Figure string          `json:"figure"`
	Server string          `json:"server"`
	Round  int             `json:"round"`
	Err    string          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"` // as load has printed it

	values map[string]float64 // the numbers of Result
}

// parse takes what load has printed.
func (r *run) parse(out []byte) error {
	var all map[string]any
	if err := json.Unmarshal(out, &all); err != nil {
		return fmt.Errorf("load printed %.200q: %w", out, err)
	}
	r.Result, r.values = bytes.TrimSpace(out), map[string]float64{}
	for key, v := range all {
		if n, ok := v.(float64); ok {
			r.values[key] = n
		}
	}
	return nil
}

// faults are what makes a run doubtful.
func (r *run) faults() (list []string) {
	if r.Err != "" {
		return []string{r.Err}
	}
	for _, key := range []string{"bad", "dead", "fails", "in_memory", "warm_changed"} {
		if n := r.values[key]; n != 0 {
			list = append(list, fmt.Sprintf("%s=%v", key, n))
		}
	}
	if n, rooms := r.values["reconstructed"], r.values["rooms"]; strings.HasPrefix(r.Server, ours) && r.Figure == "wake" &&
		(n != rooms || r.values["reconstructed_burst"] != rooms) {
		list = append(list, fmt.Sprintf("%v and %v of %v rooms were asleep", n, r.values["reconstructed_burst"], rooms))
	}
	return list
}

// An origin is what a table says of how it came to be.
type origin struct {
	Date    string `json:"date"`
	Machine string `json:"machine"`
	Go      string `json:"go"`
	Commit  string `json:"commit"`
	Load    string `json:"load_average"` // before
	Rounds  int    `json:"rounds"`
	Measure string `json:"measured"`
	Quick   bool   `json:"quick,omitempty"`
}

func originOf(ctx context.Context, root string, o *options) origin {
	a := origin{
		Date: time.Now().UTC().Format(time.DateOnly), Go: runtime.Version(), Commit: "unknown",
		Rounds: o.rounds, Measure: o.measure.String(), Quick: o.quick,
	}
	model := "unknown CPU"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	kernel, _, _ := strings.Cut(strings.TrimSpace(string(release)), "-")
	a.Machine = fmt.Sprintf("%d × %s, Linux %s", runtime.NumCPU(), model, kernel)
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		a.Load, _, _ = strings.Cut(string(b), " ")
	}
	git := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=10")
	git.Dir = root
	if out, err := git.Output(); err == nil {
		a.Commit = strings.TrimSpace(string(out))
	}
	return a
}

// data are all runs.
type data struct {
	About origin `json:"about"`
	runs  []run
}

// readFiles reads what sinks have written. The rounds of a later measurement come after those of an earlier one.
func readFiles(names []string) (*data, error) {
	d := &data{}
	first := 0
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		next := first
		sc := bufio.NewScanner(bytes.NewReader(b))
		sc.Buffer(nil, 1<<24)
		for sc.Scan() {
			var line struct {
				About *origin `json:"about"`
				run
			}
			if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if line.About != nil {
				d.About = *line.About
				first = next // another measurement in the same file
				continue
			}
			r := line.run
			if r.Err == "" {
				if err := r.parse(r.Result); err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
			}
			r.Round += first
			next = max(next, r.Round+1)
			d.runs = append(d.runs, r)
		}
		if err := sc.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		first = next
	}
	d.About.Rounds = 0
	for _, f := range figures {
		rounds := map[int]bool{}
		for _, r := range d.runs {
			if r.Figure == f.name {
				rounds[r.Round] = true
			}
		}
		d.About.Rounds = max(d.About.Rounds, len(rounds))
	}
	return d, nil
}

// A sink appends to a file; the nil file is none.
type sink struct{ f *os.File }

func newSink(name string) (*sink, error) {
	if name == "" {
		return &sink{}, nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	return &sink{f}, err
}

func (s *sink) put(v any) error {
	if s.f == nil {
		return nil
	}
	return json.NewEncoder(s.f).Encode(v)
}

func (s *sink) close() {
	if s.f != nil {
		s.f.Close()
	}
}

// A cell names one number of each round.
type cell struct{ figure, server, key string }

// rounds are the values of a cell.
func (d *data) rounds(c cell) map[int]float64 {
	values := map[int]float64{}
	for _, r := range d.runs {
		if v, ok := r.values[c.key]; ok && r.Figure == c.figure && r.Server == c.server {
			values[r.Round] = v
		}
	}
	return values
}

// value is the median of a cell.
func (d *data) value(c cell) (float64, bool) { return median(d.rounds(c)) }

// ratio is the median of a cell's ratios to another of the same round.
func (d *data) ratio(c, base cell) (float64, bool) {
	return d.combine(c, base, func(x, y float64) float64 { return x / y })
}

// toFloor is the ratio of a cell to floor's.
func (d *data) toFloor(c cell) (float64, bool) { return d.ratio(c, cell{c.figure, floor, c.key}) }

// combine is the median of f of two cells of the same round.
func (d *data) combine(c, o cell, f func(x, y float64) float64) (float64, bool) {
	xs, ys := d.rounds(c), d.rounds(o)
	both := map[int]float64{}
	for round, x := range xs {
		if y, ok := ys[round]; ok && y != 0 {
			both[round] = f(x, y)
		}
	}
	return median(both)
}

func median(values map[int]float64) (float64, bool) {
	sorted := slices.Sorted(maps.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0, false
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2, true
}

// measured are the servers that a figure has runs of, in order of first appearance.
func (d *data) measured(figure string) (servers []string) {
	for _, r := range d.runs {
		if r.Figure == figure && !slices.Contains(servers, r.Server) {
			servers = append(servers, r.Server)
		}
	}
	return servers
}
