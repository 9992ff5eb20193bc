package hibernatetest

import (
	"bytes"
	"fmt"
	"regexp"
	"runtime/pprof"
	"strings"
)

// A goroutine is user code that a handler has started, or that runs in one.
type goroutine struct {
	labels string // as in a profile
	stack  string
}

var label = regexp.MustCompile(`"(class|object|work)":"([^"]*)"`)

// String names the work, if it is WaitUntil's, and gives the stack, indented.
func (g goroutine) String() string {
	named := map[string]string{}
	for _, m := range label.FindAllStringSubmatch(g.labels, -1) {
		named[m[1]] = m[2]
	}
	head := "\ta goroutine of a handler"
	if work, ok := named["work"]; ok {
		head = fmt.Sprintf("\tWaitUntil work %q of %s/%s", work, named["class"], named["object"])
	}
	return head + g.stack
}

// goroutines are those that user code of this kit runs on. Goroutines inherit labels
// from those that start them, and the runtime's that run turns have the kit's.
func (k *Kit) goroutines() (found []goroutine) {
	var profile bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		return nil
	}
	for record := range strings.SplitSeq(profile.String(), "\n\n") {
		labels, ok := "", false
		g := goroutine{}
		for l := range strings.Lines(record) {
			switch {
			case strings.HasPrefix(l, "# labels: "):
				labels, ok = l, strings.Contains(l, k.id)
			case strings.HasPrefix(l, "#\t"):
				f := strings.Split(strings.TrimSpace(l[2:]), "\t") // address, function+offset, file:line
				if len(f) < 3 {
					continue
				}
				function, _, _ := strings.Cut(f[1], "+0x")
				g.stack += "\n\t\t" + function + "  " + strings.TrimSpace(f[len(f)-1])
			}
		}
		g.labels = labels
		if ok && !idleRunner(g.stack) {
			found = append(found, g)
		}
	}
	return found
}

// idleRunner reports whether a stack is that of a goroutine of the runtime that has
// no turn to run, or has just run one.
func idleRunner(stack string) bool {
	for l := range strings.Lines(stack) {
		function, _, _ := strings.Cut(strings.TrimSpace(l), "  ")
		if function == "" || strings.HasPrefix(function, "runtime.") || strings.HasPrefix(function, "sync.") ||
			strings.HasPrefix(function, "internal/") {
			continue
		}
		if !strings.HasPrefix(function, "github.com/hibernate-go/hibernate/internal/") {
			return false
		}
	}
	return true
}
