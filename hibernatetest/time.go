package hibernatetest

import (
	"fmt"
	"strings"
	"time"

	"github.com/hibernate-go/hibernate"
)

// Now is what the kit's clock shows. It may be called by any goroutine.
func (k *Kit) Now() time.Time { return k.clock.Now() }

// Settle waits until nothing happens any more: what clients have sent has been
// handled, and what was written is on disk. Handlers in Await and WaitUntil work
// are not waited for, nor clients that are paused. Other methods settle by themselves.
//
// A handler that holds its turn and waits for the test fails it, after
// [Options].Patience.
func (k *Kit) Settle() {
	k.t.Helper()
	k.settle("Settle")
}

func (k *Kit) settle(doing string) {
	k.t.Helper()
	if !k.settled(k.opt.Patience) {
		k.fatalf("%s: still at work after %v%s", doing, k.opt.Patience, k.atWork())
	}
}

// settled waits for at most patience, and reports whether everything is quiet.
func (k *Kit) settled(patience time.Duration) bool {
	wait := newBackoff(patience)
	for _, c := range k.clients {
		if !c.sync(wait.end, false) {
			return false
		}
	}
	for !k.rt.Quiet() {
		if !wait.again() {
			return false
		}
	}
	return true
}

// atWork tells which objects run a turn, and where user code is.
func (k *Kit) atWork() string {
	var b strings.Builder
	for o := range k.rt.Resident(hibernate.ID{}) {
		if d := k.describe(o.ID, o.Name); strings.Contains(d, "\n") {
			b.WriteString("\n\t")
			b.WriteString(d)
		}
	}
	for i, g := range k.goroutines() {
		if i == 3 {
			break
		}
		fmt.Fprintf(&b, "\n%s", g)
	}
	if b.Len() > 0 {
		b.WriteString("\n\tA handler waits for the outside world in hibernate.Await, which gives its turn up.")
	}
	return b.String()
}

// Advance moves the clock by d, and runs the idle times, alarms and timeouts that
// fall due on the way, in order. Before each, and at the end, it settles: see
// [Kit.Settle].
func (k *Kit) Advance(d time.Duration) {
	k.t.Helper()
	if d < 0 {
		k.t.Fatalf("hibernatetest: Advance by %v: the clock does not go back", d)
	}
	end := k.clock.Now().Add(d)
	const many = 100_000 // calls at one moment: somebody sets a timer for now, over and over
	for n, last := 0, k.clock.Now(); ; n++ {
		k.settle(fmt.Sprintf("Advance by %v, at +%v", d, k.clock.Now().Sub(k.start)))
		next, ok := k.clock.Next()
		if !ok || next.After(end) {
			break
		}
		k.clock.Advance(max(0, next.Sub(k.clock.Now())))
		if now := k.clock.Now(); now.After(last) {
			n, last = 0, now
		} else if n >= many {
			k.fatalf("Advance by %v: %d timers were set for the same moment, +%v, one after the other", d, n, now.Sub(k.start))
		}
	}
	k.clock.Advance(end.Sub(k.clock.Now()))
	k.log.note("the clock is at +%v", k.clock.Now().Sub(k.start))
}
