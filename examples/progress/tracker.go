package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hibernate-go/hibernate"
)

const (
	maxJobs  = 50  // of a queue; the oldest goes
	maxTitle = 80  // characters
	maxNote  = 200 // characters
	silence  = time.Minute
)

// A Tracker knows the jobs of one queue. Workers report to it by HTTP, and each connection watches one job.
// Between two reports nothing happens, so it leaves memory: the watchers stay connected without a word from
// either side, and the next report finds them by the job in their attachments.
type Tracker struct {
	state *hibernate.State
	now   func() time.Time // in whole milliseconds, as alarms
	jobs  []Job            // as in storage, the oldest first
}

// A Job is one job as it is stored and as its watchers see it.
type Job struct {
	Number  uint64    `json:"number"`
	Title   string    `json:"title"`
	State   State     `json:"state"`
	Percent int       `json:"percent"`
	Note    string    `json:"note"`
	Heard   time.Time `json:"heard"` // the last report
}

// A State is what is known of a job.
type State string

// The states of a job.
const (
	Running State = "running"
	Done    State = "done"
	Failed  State = "failed"
	Silent  State = "silent" // no report for so long that its worker may be gone; the next report makes it Running
)

// Over reports whether no report is expected any more.
func (s State) Over() bool { return s == Done || s == Failed }

// A Watch is the attachment of a connection: which job it is for.
type Watch struct{ Job uint64 }

// A Report is what a worker sends.
type Report struct {
	State   State  `json:"state"` // running, done or failed
	Percent int    `json:"percent"`
	Note    string `json:"note"`
}

// Begin adds a job to a queue. The rest of the program calls it as one object calls another.
var Begin = hibernate.NewMethod("begin", (*Tracker).Begin)

// newTracker makes the constructor: what a class needs of the program comes by closure.
func newTracker(now func() time.Time) func(context.Context, *hibernate.State) (*Tracker, error) {
	return func(ctx context.Context, s *hibernate.State) (*Tracker, error) {
		t := &Tracker{state: s, now: func() time.Time { return now().UTC().Truncate(time.Millisecond) }, jobs: []Job{}}
		for e, err := range hibernate.List[Job](ctx, s.Storage(), hibernate.Prefix("job/")) {
			if err != nil {
				return nil, err
			}
			t.jobs = append(t.jobs, e.Value)
		}
		return t, nil
	}
}

// Begin stores a new job and forgets the oldest if there are too many.
func (t *Tracker) Begin(ctx context.Context, title string) (Job, error) {
	j := Job{Number: 1, Title: title, State: Running, Note: "Waiting for a worker", Heard: t.now()}
	if n := len(t.jobs); n > 0 {
		j.Number = t.jobs[n-1].Number + 1
	}
	if err := hibernate.Put(ctx, t.state.Storage(), j.key(), j); err != nil {
		return Job{}, err
	}
	t.jobs = append(t.jobs, j)
	if len(t.jobs) > maxJobs {
		if _, err := t.state.Storage().Delete(ctx, t.jobs[0].key()); err != nil {
			return Job{}, err
		}
		t.jobs = t.jobs[1:]
	}
	return j, t.setAlarm(ctx)
}

// ServeHTTP answers a list of all jobs, takes a worker's report about one, or accepts a watcher of one.
// Who may do what has been asked before: an object's turn is no place to wait for that.
func (t *Tracker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.PathValue("job") == "" {
		writeJSON(w, http.StatusOK, t.jobs)
		return
	}
	i := slices.IndexFunc(t.jobs, func(j Job) bool { return fmt.Sprint(j.Number) == r.PathValue("job") })
	switch {
	case i < 0:
		http.Error(w, "There is no such job here.", http.StatusNotFound)
	case r.Method == http.MethodPost:
		t.report(w, r, &t.jobs[i])
	default:
		t.watch(w, r, t.jobs[i])
	}
}

// report stores what a worker says and tells the watchers. The worker's answer, and what the watchers are
// told, leave when it is on disk.
func (t *Tracker) report(w http.ResponseWriter, r *http.Request, j *Job) {
	var in Report
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, "A report must be a JSON object.", http.StatusBadRequest)
		return
	}
	switch {
	case j.State.Over():
		http.Error(w, fmt.Sprintf("Job %d is %s.", j.Number, j.State), http.StatusConflict)
		return
	case in.State != Running && !in.State.Over():
		http.Error(w, "The state of a report is running, done or failed.", http.StatusBadRequest)
		return
	case in.Percent < 0 || in.Percent > 100 || utf8.RuneCountInString(in.Note) > maxNote:
		http.Error(w, fmt.Sprintf("A report has 0 to 100 percent and a note of at most %d characters.", maxNote), http.StatusBadRequest)
		return
	}
	changed := *j
	changed.State, changed.Percent, changed.Note, changed.Heard = in.State, in.Percent, in.Note, t.now()
	if err := t.change(r.Context(), j, changed); err != nil {
		http.Error(w, "The report could not be stored.", http.StatusInternalServerError)
		return
	}
	writeJSON(w, http.StatusOK, *j)
}

// watch accepts a connection, notes in its attachment which job it is for, and shows the job as it is.
func (t *Tracker) watch(w http.ResponseWriter, r *http.Request, j Job) {
	ws, err := t.state.AcceptWebSocket(w, r, &hibernate.AcceptOptions{Attachment: Watch{j.Number}})
	if over := (*hibernate.LimitError)(nil); errors.As(err, &over) {
		http.Error(w, "Too many are watching.", http.StatusServiceUnavailable)
		return
	}
	if err != nil {
		return // it was answered already: no upgrade, or one from another site
	}
	if err := tell(r.Context(), ws, j); err != nil {
		http.Error(w, "The job could not be shown.", http.StatusInternalServerError)
	}
}

// change stores a job and pushes it to those who watch it.
func (t *Tracker) change(ctx context.Context, j *Job, changed Job) error {
	if err := hibernate.Put(ctx, t.state.Storage(), j.key(), changed); err != nil {
		return err
	}
	*j = changed
	for _, ws := range t.state.WebSockets() {
		watch, _, err := hibernate.Attachment[Watch](ws)
		if err != nil {
			return err
		}
		if watch.Job == j.Number && ws.ReadyState() == hibernate.StateOpen {
			if err := tell(ctx, ws, *j); err != nil {
				return err
			}
		}
	}
	return t.setAlarm(ctx)
}

// tell shows a watcher the job, and takes leave if it is over.
func tell(ctx context.Context, ws hibernate.WebSocket, j Job) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	if err := ws.SendText(ctx, string(text)); err != nil || !j.State.Over() {
		return err
	}
	return ws.Close(ctx, 1000, "the job is over")
}

// setAlarm has the object woken when the next job has been silent for too long. It is part of the same
// commit as the change before it, and outlives the program.
func (t *Tracker) setAlarm(ctx context.Context) error {
	var next time.Time
	for _, j := range t.jobs {
		if due := j.Heard.Add(silence); j.State == Running && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	if next.IsZero() {
		return t.state.Storage().DeleteAlarm(ctx)
	}
	return t.state.Storage().SetAlarm(ctx, next)
}

// Alarm marks the jobs that have been silent since before the alarm was due.
func (t *Tracker) Alarm(ctx context.Context, a hibernate.AlarmInfo) error {
	for i := range t.jobs {
		j := &t.jobs[i]
		if j.State != Running || j.Heard.Add(silence).After(a.Scheduled) {
			continue
		}
		changed := *j
		changed.State, changed.Note = Silent, "No word from the worker"
		if err := t.change(ctx, j, changed); err != nil {
			return err
		}
	}
	return t.setAlarm(ctx)
}

// key orders jobs by their number.
func (j Job) key() string { return fmt.Sprintf("job/%020d", j.Number) }

// badTitle says what is wrong with a job's title, if anything is.
func badTitle(title string) string {
	if n := utf8.RuneCountInString(title); strings.TrimSpace(title) == "" || n > maxTitle {
		return fmt.Sprintf("A job has a title of 1 to %d characters.", maxTitle)
	}
	return ""
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that has left
}
