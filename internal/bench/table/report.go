//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
)

// Where a document has the table.
const (
	tableBegins = "<!-- What follows is written by internal/bench/table. -->"
	tableEnds   = "<!-- What precedes is written by internal/bench/table. -->"
)

// publish prints the table, or puts it into a document.
func publish(d *data, document string) error {
	text := report(d)
	if document == "" {
		_, err := os.Stdout.WriteString(text)
		return err
	}
	old, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(old, []byte(tableBegins))
	_, after, also := bytes.Cut(rest, []byte(tableEnds))
	if !ok || !also {
		return errors.New(document + " has no place for the table")
	}
	return os.WriteFile(document, slices.Concat(before, []byte(tableBegins+"\n\n"+text+"\n"+tableEnds), after), 0o644)
}

// report is the table as Markdown.
func report(d *data) string {
	var b strings.Builder
	a := d.About
	if a.Quick {
		b.WriteString("**A quick look, not a measurement**: short runs, fewer connections than the titles say, and whatever else the machine was doing.\n\n")
	}
	fmt.Fprintf(&b, "%s, commit %s, %s. %s. Medians of %s, %s measured each; load average before: %s.\n",
		a.Date, a.Commit, a.Go, a.Machine, plural(a.Rounds, "interleaved round"), a.Measure, a.Load)
	d.reportGoals(&b)
	d.reportBetterPeers(&b)
	for _, f := range figures {
		d.reportFigure(&b, f)
	}
	d.reportFaults(&b)
	return b.String()
}

func plural(n int, noun string) string {
	if n == 1 {
		return "one " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func (d *data) reportGoals(b *strings.Builder) {
	var rows [][]string
	for _, g := range goals {
		v, became, ahead, ok := g.judge(d)
		if !ok {
			continue
		}
		best := ""
		if name, p, has := g.bestPeer(d); has {
			best = fmt.Sprintf("%s: %s", name, quantity(p, g.unit))
		}
		met := string(became)
		if len(ahead) > 0 {
			met += ", not ahead of " + strings.Join(ahead, ", ")
		}
		sign := "≤ "
		if g.atLeast {
			sign = "≥ "
		}
		rows = append(rows, []string{
			g.text, sign + quantity(g.must, g.unit), sign + quantity(g.aim, g.unit),
			quantity(v, g.unit), best, met,
		})
	}
	if len(rows) > 0 {
		b.WriteString("\n### What it is held to\n\n")
		table(b, []string{"figure", "must", "aim", "measured", "best Go peer", "met"}, rows)
	}
}

// quantity is a number with its unit; without one it is a ratio.
func quantity(v float64, unit string) string {
	if unit == "" {
		return fmt.Sprintf("%.2f", v)
	}
	return number(v) + " " + unit
}

// reportBetterPeers lists every number in which a peer does better than the library.
func (d *data) reportBetterPeers(b *strings.Builder) {
	var rows [][]string
	compared := 0
	for _, f := range figures {
		for _, c := range f.columns {
			of := func(server string) (float64, bool) {
				if c.ratio {
					if v, ok := d.toFloor(cell{f.name, server, c.key}); ok {
						return v, ok
					}
				}
				return d.value(cell{f.name, server, c.key})
			}
			v, ok := of(ours)
			if !ok || c.better == neither {
				continue
			}
			var ahead []string
			for _, server := range d.measured(f.name) {
				p, has := of(server)
				if !isPeer(server) || !has {
					continue
				}
				compared++
				if c.better == lower && p < v || c.better == higher && p > v {
					ahead = append(ahead, fmt.Sprintf("%s %s", server, number(p)))
				}
			}
			if len(ahead) > 0 {
				title := c.title
				if c.ratio {
					title += " ÷ floor"
				}
				rows = append(rows, []string{f.title, title, number(v), strings.Join(ahead, ", ")})
			}
		}
	}
	if compared == 0 {
		return
	}
	b.WriteString("\n### Where a peer is better\n\n")
	if len(rows) == 0 {
		b.WriteString("Nowhere.\n")
		return
	}
	table(b, []string{"figure", "number", "hibernate", "peers"}, rows)
}

// reportFigure is the table of one figure, the best first.
func (d *data) reportFigure(b *strings.Builder, f figure) {
	servers := d.measured(f.name)
	first := f.columns[0]
	servers = slices.DeleteFunc(servers, func(s string) bool {
		_, ok := d.value(cell{f.name, s, first.key})
		return !ok
	})
	if len(servers) == 0 {
		return
	}
	slices.SortStableFunc(servers, func(a, b string) int {
		x, _ := d.value(cell{f.name, a, first.key})
		y, _ := d.value(cell{f.name, b, first.key})
		if first.better == higher {
			x, y = y, x
		}
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	head := []string{"server"}
	for _, c := range f.columns {
		head = append(head, c.title)
		if c.ratio {
			head = append(head, "÷ floor")
		}
	}
	var rows [][]string
	for _, s := range servers {
		name := s
		if strings.HasPrefix(s, ours) {
			name = "**" + s + "**"
		}
		row := []string{name}
		for _, c := range f.columns {
			at := cell{f.name, s, c.key}
			text := ""
			if v, ok := d.value(at); ok {
				text = number(v)
			}
			row = append(row, text)
			if c.ratio {
				text = ""
				if v, ok := d.toFloor(at); ok {
					text = fmt.Sprintf("%.2f", v)
				}
				row = append(row, text)
			}
		}
		rows = append(rows, row)
	}
	fmt.Fprintf(b, "\n### %s (`%s`)\n\n", f.title, f.name)
	table(b, head, rows)
}

// reportFaults lists the runs that failed or are doubtful.
func (d *data) reportFaults(b *strings.Builder) {
	var lines []string
	for _, r := range d.runs {
		if list := r.faults(); len(list) > 0 {
			text := strings.ReplaceAll(strings.Join(list, ", "), "\n", " ")
			lines = append(lines, fmt.Sprintf("- %s, %s, round %d: %s\n", r.Figure, r.Server, r.Round+1, text))
		}
	}
	if len(lines) > 0 {
		b.WriteString("\n### Runs that failed or are doubtful\n\n" + strings.Join(lines, ""))
	}
}

// table writes a Markdown table. All columns but the first are numbers, or short.
func table(b *strings.Builder, head []string, rows [][]string) {
	fmt.Fprintf(b, "| %s |\n| --- |%s\n", strings.Join(head, " | "), strings.Repeat(" ---: |", len(head)-1))
	for _, row := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
	}
}

// number is v with about three digits, and thousands set apart.
func number(v float64) string {
	switch abs := math.Abs(v); {
	case abs >= 100 || v == math.Trunc(v):
		s := fmt.Sprintf("%.0f", abs)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		if v < 0 {
			s = "-" + s
		}
		return s
	case abs >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
