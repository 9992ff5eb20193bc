//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// runs are rounds of one number.
func runs(figure, server, key string, values ...float64) (list []run) {
	for round, v := range values {
		r := run{Figure: figure, Server: server, Round: round}
		if err := r.parse(fmt.Appendf(nil, `{"name":%q,%q:%v}`, server, key, v)); err != nil {
			panic(err)
		}
		list = append(list, r)
	}
	return list
}

func echoes(hibernate, gnet float64) *data {
	return &data{runs: slices.Concat(
		runs("echo", floor, "cpu_us_msg", 4, 8, 4),
		runs("echo", ours, "cpu_us_msg", 4*hibernate, 8*hibernate, 100),
		runs("echo", "gnet", "cpu_us_msg", 4*gnet, 1000, 4*gnet),
	)}
}

// A round in which something else ran is one of several, and its ratio is to the floor of that round.
func TestRatiosAreMediansOfRounds(t *testing.T) {
	d := echoes(1.5, 1.2)
	if v, ok := d.value(cell{"echo", ours, "cpu_us_msg"}); v != 12 || !ok {
		t.Errorf("median %v %v", v, ok)
	}
	if v, ok := d.toFloor(cell{"echo", ours, "cpu_us_msg"}); v != 1.5 || !ok {
		t.Errorf("ratio %v %v", v, ok)
	}
	if _, ok := d.toFloor(cell{"echo", "gws", "cpu_us_msg"}); ok {
		t.Error("a server that was not measured has a ratio")
	}
	d.runs = d.runs[1:] // floor's first round
	if v, _ := d.toFloor(cell{"echo", ours, "cpu_us_msg"}); v != (1.5+25)/2 {
		t.Errorf("ratio %v of the two rounds that are whole", v)
	}
}

func TestGoalsAreJudged(t *testing.T) {
	i := slices.IndexFunc(goals, func(g goal) bool { return strings.HasPrefix(g.text, "CPU per echo") })
	for _, test := range []struct {
		hibernate, gnet float64
		want            verdict
		ahead           []string
	}{
		{1.3, 1.4, missed, nil},
		{1.2, 1.4, metMust, nil},
		{1.1, 1.05, metMust, []string{"gnet"}},
		{1.1, 1.2, metAim, nil},
	} {
		_, became, ahead, ok := goals[i].judge(echoes(test.hibernate, test.gnet))
		if became != test.want || !slices.Equal(ahead, test.ahead) || !ok {
			t.Errorf("%v beside gnet's %v: %v, behind %v", test.hibernate, test.gnet, became, ahead)
		}
	}
	alone := echoes(1.1, 1.2)
	alone.runs = slices.DeleteFunc(alone.runs, func(r run) bool { return isPeer(r.Server) })
	if _, became, _, _ := goals[i].judge(alone); became != metMust {
		t.Errorf("%v without a peer", became)
	}
	if _, _, _, ok := goals[i].judge(&data{}); ok {
		t.Error("judged without a measurement")
	}
	wake := goals[slices.IndexFunc(goals, func(g goal) bool { return g.atLeast })]
	d := &data{runs: slices.Concat(runs("wake", floor, "burst_cold_per_s", 100), runs("wake", ours, "burst_cold_per_s", 70),
		runs("wake", "gws", "burst_cold_per_s", 80), runs("wake", "gnet", "burst_cold_per_s", 90))}
	if v, became, _, _ := wake.judge(d); became != metMust || v != 0.7 {
		t.Errorf("%v is %v", v, became)
	}
	if name, v, _ := wake.bestPeer(d); name != "gnet" || v != 0.9 {
		t.Errorf("%s %v is the best", name, v)
	}
}

// Figures name servers, and goals figures, that there are.
func TestFiguresAndGoalsNameWhatThereIs(t *testing.T) {
	for _, f := range figures {
		for _, name := range append(f.only, f.also...) {
			if !slices.ContainsFunc(contestants, func(s server) bool { return s.name == name }) {
				t.Errorf("%s: there is no server %s", f.name, name)
			}
		}
		if len(f.servers(contestants)) == 0 || f.columns[0].better == neither {
			t.Errorf("%s compares nothing", f.name)
		}
	}
	for _, g := range goals {
		if g.best != nil && !slices.ContainsFunc(figures, func(f figure) bool { return f.name == g.best.figure }) {
			t.Errorf("%s: there is no figure %s", g.text, g.best.figure)
		}
	}
}

func TestReportShowsWherePeersAreBetter(t *testing.T) {
	d := echoes(1.5, 1.2)
	d.About = origin{Machine: "a machine", Rounds: 3, Quick: true}
	d.runs = append(d.runs, run{Figure: "rate", Server: "gws", Err: "did not\nstart"})
	bad := runs("wake", "hibernate-dir", "reconstructed", 3)
	bad[0].values["rooms"] = 4
	d.runs = append(d.runs, bad...)
	text := report(d)
	for _, want := range []string{
		"A quick look", "3 interleaved rounds",
		"| CPU per echo, 64 connections, one in flight ÷ floor | ≤ 1.25 | ≤ 1.15 | 1.50 | gnet: 1.20 | **no** |",
		"| Echo, 64 connections, one message in flight on each | CPU µs/message ÷ floor | 1.50 | gnet 1.20 |",
		"| **hibernate** | 12 | 1.50 |", "| floor | 4 | 1.00 |",
		"- rate, gws, round 1: did not start\n", "- wake, hibernate-dir, round 1: 3 and 0 of 4 rooms were asleep\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if strings.Contains(report(echoes(1.1, 1.2)), "÷ floor | 1.10 | gnet") {
		t.Error("a peer that is worse is said to be better")
	}
	if !strings.Contains(report(echoes(1.1, 1.2)), "Nowhere.") {
		t.Error("no word of peers")
	}
}

func TestPublishRewritesItsPartOfADocument(t *testing.T) {
	name := filepath.Join(t.TempDir(), "doc.md")
	write := func(text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + tableBegins + "\nold\n" + tableEnds + "\nafter\n")
	for range 2 {
		if err := publish(echoes(1.1, 1.2), name); err != nil {
			t.Fatal(err)
		}
		b, _ := os.ReadFile(name)
		text := string(b)
		if !strings.HasPrefix(text, "before\n"+tableBegins+"\n\n") || !strings.HasSuffix(text, "\n\n"+tableEnds+"\nafter\n") ||
			strings.Contains(text, "old") || strings.Count(text, "### What it is held to") != 1 {
			t.Errorf("now it is\n%s", text)
		}
	}
	write("no place")
	if err := publish(&data{}, name); err == nil {
		t.Error("written where there is no place")
	}
}

func TestNumbersAreShort(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1234: "1,234", 1234567: "1,234,567", -1234: "-1,234", 7: "7"} {
		if got := number(v); got != want {
			t.Errorf("%v is %s, want %s", v, got, want)
		}
	}
}

func TestUnknownNamesAreRefused(t *testing.T) {
	var o options
	if err := o.choose("floor,nobody", ""); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("chosen: %v", err)
	}
	if err := o.choose("gnet,floor", "wake"); err != nil || len(o.servers) != 2 || o.servers[0].name != floor || o.figures[0].name != "wake" || o.rounds != 5 {
		t.Errorf("%v: %+v", err, o)
	}
}

// The real thing, as short as it can be. What was stored tells the same.
func TestTableMeasures(t *testing.T) {
	o := options{quick: true, rounds: 2, measure: 200 * time.Millisecond}
	if err := o.choose(ours+",hibernate-http", "echo,connect"); err != nil {
		t.Fatal(err)
	}
	stored := filepath.Join(t.TempDir(), "runs.jsonl")
	d, err := measure(t.Context(), &o, stored)
	if err != nil {
		t.Fatal(err)
	}
	text := report(d)
	if len(d.runs) != 6 || strings.Contains(text, "doubtful") || !strings.Contains(text, "(`connect`)") {
		t.Errorf("%d runs:\n%s", len(d.runs), text)
	}
	again, err := readFiles([]string{stored})
	if err != nil {
		t.Fatal(err)
	}
	if report(again) != text {
		t.Errorf("read again:\n%s\nmeasured:\n%s", report(again), text)
	}
	twice, err := readFiles([]string{stored, stored})
	if err != nil || len(twice.runs) != 12 || twice.About.Rounds != 4 || twice.runs[11].Round != 3 {
		b, _ := json.Marshal(twice)
		t.Errorf("%v: %s", err, b)
	}
}
