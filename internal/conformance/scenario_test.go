package conformance

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A scenario is one file of testdata: steps, and what workerd showed for each.
type scenario struct {
	Name     string
	About    string
	Prefix   string // of the object's name: its variant
	Restarts bool
	Steps    []*step
}

// A step is one action. README.md says where the verbs are described.
type step struct {
	Do, ID, As, Bin, Hex, Reason, Protocol string
	Text                                   *string
	Size, Repeat, N, Code, Refuse          int
	Ops                                    []any
	Reply                                  *bool
	Frames                                 []frame
	Within, Ms                             any // a duration
	Until                                  *until
	Tags, Protocols, Mask                  []string
	Program                                map[string]any
	Sort, Group, Summary, ManualClose      bool
	Expect                                 any
}

// until is how many events of a kind a step waits for.
type until struct {
	Ev    string
	Count int
}

// A frame is sent as it is, right or wrong.
type frame struct {
	Op        byte
	Fin, Bare bool
	Rsv       byte
	Text, Bin string
	Size      int
}

// loadScenarios reads the directory.
func loadScenarios(t *testing.T) []*scenario {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "scenarios", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	var list []*scenario
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sc := &scenario{}
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(sc); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		list = append(list, sc)
	}
	return list
}

// A wait is how long a scenario lets an object idle for it to hibernate.
type wait time.Duration

// duration reads milliseconds, or a multiple of the wait ("1.3w").
func (w wait) duration(v any, otherwise time.Duration) time.Duration {
	switch v := v.(type) {
	case float64:
		return time.Duration(v * float64(time.Millisecond))
	case string:
		if f, err := strconv.ParseFloat(strings.TrimSuffix(v, "w"), 64); err == nil {
			return time.Duration(f * float64(w))
		}
	}
	return otherwise
}

// object is a JSON object.
type object = map[string]any

// rewrite replaces every object of v, the inner ones first, by what f makes of it.
func rewrite(v any, f func(object) any) any {
	switch v := v.(type) {
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = rewrite(v[i], f)
		}
		return list
	case object:
		m := object{}
		for key := range v {
			m[key] = rewrite(v[key], f)
		}
		return f(m)
	}
	return v
}

// inMilliseconds replaces multiples of the wait in operations.
func (w wait) inMilliseconds(ops any) any {
	return rewrite(asJSON(ops), func(m object) any {
		for _, key := range []string{"ms", "in"} {
			if _, ok := m[key].(string); ok {
				m[key] = float64(w.duration(m[key], 0).Milliseconds())
			}
		}
		return m
	})
}

// asJSON is v as encoding/json would read it back.
func asJSON(v any) any {
	var out any
	if err := json.Unmarshal([]byte(text(v)), &out); err != nil {
		panic("BUG: " + err.Error())
	}
	return out
}

// text is v as compact JSON.
func text(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("BUG: no JSON: " + err.Error())
	}
	return strings.TrimSpace(b.String())
}

// digest is the 32-bit FNV-1a of p.
func digest(p []byte) string {
	h := fnv.New32a()
	h.Write(p)
	return fmt.Sprintf("%08x", h.Sum32())
}

// sorted sorts values by their JSON.
func sorted(list []any) []any {
	slices.SortStableFunc(list, func(a, b any) int { return cmp.Compare(text(a), text(b)) })
	return list
}

// masked hides the values of keys.
func masked(v any, keys []string) any {
	return rewrite(v, func(m object) any {
		for _, key := range keys {
			if _, ok := m[key]; ok {
				m[key] = "*"
			}
		}
		return m
	})
}

// ranked replaces the times of all outcomes of a scenario by their ranks.
func ranked(outcomes []any) []any {
	var times []float64
	rewrite(outcomes, func(m object) any {
		if ts, ok := m["ts"].(float64); ok {
			times = append(times, ts)
		}
		return m
	})
	slices.Sort(times)
	times = slices.Compact(times)
	return rewrite(outcomes, func(m object) any {
		if ts, ok := m["ts"].(float64); ok {
			m["ts"] = "t" + strconv.Itoa(slices.Index(times, ts)+1)
		}
		return m
	}).([]any)
}

// compare tells how got differs from want. Of errors only the class counts.
func compare(at string, want, got any) (differences []string) {
	differ := func() []string { return []string{fmt.Sprintf("%s: got %s, want %s", at, text(got), text(want))} }
	switch w := want.(type) {
	case object:
		g, ok := got.(object)
		if !ok {
			return differ()
		}
		if _, isError := w["class"]; isError && w["message"] != nil && g["message"] != nil {
			if w["class"] != g["class"] {
				return differ()
			}
			return nil
		}
		for key := range w {
			if _, ok := g[key]; !ok {
				differences = append(differences, fmt.Sprintf("%s.%s: missing, want %s", at, key, text(w[key])))
			} else {
				differences = append(differences, compare(at+"."+key, w[key], g[key])...)
			}
		}
		for key := range g {
			if _, ok := w[key]; !ok {
				differences = append(differences, fmt.Sprintf("%s.%s: got %s, want none", at, key, text(g[key])))
			}
		}
		slices.Sort(differences)
		return differences
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return differ()
		}
		for i := range w {
			differences = append(differences, compare(fmt.Sprintf("%s[%d]", at, i), w[i], g[i])...)
		}
		return differences
	}
	if !reflect.DeepEqual(want, got) {
		return differ()
	}
	return nil
}
