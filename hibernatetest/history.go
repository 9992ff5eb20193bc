package hibernatetest

import (
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/internal/alarm"
	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/socket"
)

// A history is what a failure can tell of what happened before it.
type history struct {
	clock *alarm.Fake
	start time.Time

	mu      sync.Mutex       // guards the following
	last    []line           // the most recent ones
	objects map[string]*life // by ID, in digits
}

// maxLines is how many lines are kept, and maxWakes how many wakes of one object.
const (
	maxLines = 24
	maxWakes = 10_000
)

// A line is one thing that happened.
type line struct {
	at   time.Duration // since the start
	who  string        // an object or a client; "" is the kit
	what string
}

// A life is what is known of one object.
type life struct {
	who    string // as in the lines; empty before it was constructed
	wakes  []hibernate.Cause
	alarms int // runs of its alarm that have ended
	failed error
}

func (h *history) addLocked(who, format string, args ...any) {
	if len(h.last) == maxLines {
		h.last = append(h.last[:0], h.last[1:]...)
	}
	h.last = append(h.last, line{h.clock.Now().Sub(h.start), who, fmt.Sprintf(format, args...)})
}

func (h *history) note(format string, args ...any) { h.tell("", format, args...) }

func (h *history) tell(who, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addLocked(who, format, args...)
}

func (h *history) lifeLocked(id string) *life {
	l := h.objects[id]
	if l == nil {
		l = &life{}
		h.objects[id] = l
	}
	return l
}

func idOf(o *registry.Object) string {
	id := o.ID()
	return hex.EncodeToString(id[:])
}

func (h *history) woken(o *registry.Object, c registry.Cause) {
	who := title(o.Class().Name, o.Name(), idOf(o))
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.lifeLocked(idOf(o))
	l.who = who
	if len(l.wakes) < maxWakes {
		l.wakes = append(l.wakes, c)
	}
	h.addLocked(who, "is constructed for a %s, time %d", c, len(l.wakes))
}

func (h *history) began(o *registry.Object, c registry.Cause, e socket.Event) {
	who := title(o.Class().Name, o.Name(), idOf(o))
	what := c.String()
	switch {
	case c == hibernate.CauseMessage && e.Text:
		what = fmt.Sprintf("message %s", quote(e.Data))
	case c == hibernate.CauseMessage:
		what = fmt.Sprintf("message of %d bytes, %s", len(e.Data), dump(e.Data))
	case c == hibernate.CauseClose:
		what = fmt.Sprintf("close %d %q", e.Code, e.Reason)
	case c == hibernate.CauseError:
		what = fmt.Sprintf("error %v", e.Err)
	}
	h.tell(who, "%s", what)
}

func (h *history) ended(o *registry.Object, c registry.Cause, err error) {
	if err == nil && c != hibernate.CauseAlarm {
		return
	}
	who := title(o.Class().Name, o.Name(), idOf(o))
	h.mu.Lock()
	defer h.mu.Unlock()
	if c == hibernate.CauseAlarm {
		l := h.lifeLocked(idOf(o))
		l.alarms++
		l.failed = err
	}
	if err != nil {
		h.addLocked(who, "%s failed: %v", c, err)
	}
}

// refused tells of a call outside a turn, whose error a handler may have dropped. It
// must not ask o for its name: see [registry.Probe].
func (h *history) refused(o *registry.Object) {
	what := "a call is refused: " + registry.ErrOutsideTurn.Error()
	h.mu.Lock()
	defer h.mu.Unlock()
	who := h.lifeLocked(idOf(o)).who
	if n := len(h.last); n > 0 && h.last[n-1].who == who && h.last[n-1].what == what {
		return // a loop of them leaves room for the rest
	}
	h.addLocked(who, "%s", what)
}

// alarms are the runs of an object's alarm so far, and how the last one ended.
func (h *history) alarms(id string) (n int, failed error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.lifeLocked(id)
	return l.alarms, l.failed
}

// wakes are the causes of an object's constructions.
func (h *history) wakes(id string) []hibernate.Cause {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]hibernate.Cause(nil), h.lifeLocked(id).wakes...)
}

// tail is the last lines, as the end of a failure.
func (h *history) tail() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.last) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n\tlast events, on the kit's clock:")
	wide := 0
	for _, l := range h.last {
		wide = max(wide, len(l.who))
	}
	for _, l := range h.last {
		fmt.Fprintf(&b, "\n\t%8s  %-*s  %s", "+"+l.at.String(), wide, l.who, l.what)
	}
	return b.String()
}

// title names an object in a failure.
func title(class, name, id string) string {
	if name == "" {
		return class + "/" + id[:8] + "…"
	}
	return class + "/" + name
}

// quote is text for a failure, of a bounded length.
func quote[S string | []byte](s S) string {
	const limit = 200
	if len(s) <= limit {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprintf("%q… (%d bytes)", s[:limit], len(s))
}

// dump is bytes for a failure, of a bounded length.
func dump(b []byte) string {
	const limit = 64
	if len(b) <= limit {
		return hex.EncodeToString(b)
	}
	return hex.EncodeToString(b[:limit]) + "…"
}
