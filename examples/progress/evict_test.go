package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/hibernatetest"
)

// kit runs the program on a clock that moves when it is told to.
func kit(t *testing.T, o hibernatetest.Options) (*hibernatetest.Kit, *server) {
	t.Helper()
	var k *hibernatetest.Kit
	o.Runtime.Limits = limits
	k = hibernatetest.New(t, func(rt *hibernate.Runtime) (http.Handler, error) {
		return routes(rt, func() time.Time { return k.Now() }, token, func(string, uint64) bool { return true })
	}, &o)
	return k, &server{t: t, URL: k.URL}
}

// sees checks what a watcher is told next.
func sees(t *testing.T, c *hibernatetest.Client, title string, state State, percent int) {
	t.Helper()
	var j Job
	if m := c.Next(); json.Unmarshal(m.Data, &j) != nil || j.Title != title || j.State != state || j.Percent != percent {
		t.Fatalf("got %s, want %s %s at %d", m.Text(), title, state, percent)
	}
}

// TestTrackerKeepsNothingInFieldsAlone builds the tracker anew before each event: what it forgets by that it
// would forget in production some day.
func TestTrackerKeepsNothingInFieldsAlone(t *testing.T) {
	t.Parallel()
	k, srv := kit(t, hibernatetest.Options{EvictEveryTurn: true})
	film, book := srv.begin("film"), srv.begin("book")
	ann, ben := k.Dial(fmt.Sprintf("/q/studio/jobs/%d/ws", film)), k.Dial(fmt.Sprintf("/q/studio/jobs/%d/ws", book))
	sees(t, ann, "film", Running, 0)
	sees(t, ben, "book", Running, 0)
	srv.report(film, Report{Running, 40, "Half-way"}, http.StatusOK)
	sees(t, ann, "film", Running, 40)
	srv.report(film, Report{Done, 100, "Ready"}, http.StatusOK)
	sees(t, ann, "film", Done, 100)
	ann.ExpectClose(1000)
	srv.report(film, Report{Running, 1, "Once more"}, http.StatusConflict)

	k.Advance(silence) // nobody has spoken of the book, and its alarm still knows
	sees(t, ben, "book", Silent, 0)

	k.Restart()
	late := k.Dial(fmt.Sprintf("/q/studio/jobs/%d/ws", film))
	sees(t, late, "film", Done, 100)
	late.ExpectClose(1000)
	if n := srv.begin("game"); n != book+1 {
		t.Fatalf("job %d after job %d", n, book)
	}
}

// TestTrackerSleepsBetweenReports: an hour of silence on the line, and nothing in memory for it.
func TestTrackerSleepsBetweenReports(t *testing.T) {
	t.Parallel()
	k, srv := kit(t, hibernatetest.Options{})
	tracker := k.Object("Tracker", "studio")
	film := srv.begin("film")
	ann := k.Dial(fmt.Sprintf("/q/studio/jobs/%d/ws", film))
	sees(t, ann, "film", Running, 0)
	if due, set := k.Alarm(tracker); !set || !due.Equal(k.Now().Add(silence).Truncate(time.Millisecond)) {
		t.Fatalf("the alarm is due at %v (%v)", due, set)
	}
	k.Advance(silence / 2)
	k.AssertHibernated(tracker)
	srv.report(film, Report{Running, 50, "Half-way"}, http.StatusOK)
	sees(t, ann, "film", Running, 50)
	k.Advance(silence / 2)
	ann.ExpectNothing() // the report has put the alarm off
	k.Advance(silence)
	sees(t, ann, "film", Silent, 50)
	wakes := len(k.Wakes(tracker))
	k.Advance(time.Hour)
	k.AssertHibernated(tracker)
	ann.ExpectNothing()
	if more := k.Wakes(tracker)[wakes:]; len(more) != 0 {
		t.Fatalf("the tracker was woken for %v", more)
	}
	srv.report(film, Report{Running, 60, "Back again"}, http.StatusOK)
	sees(t, ann, "film", Running, 60)
	srv.report(film, Report{Done, 100, "At last"}, http.StatusOK)
	sees(t, ann, "film", Done, 100)
	ann.ExpectClose(1000)
}
