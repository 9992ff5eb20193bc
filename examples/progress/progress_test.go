package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/examples/internal/exampletest"
	"github.com/hibernate-go/hibernate/internal/leak"
)

// TestMain lets the test binary be the program, so that a test can kill it.
func TestMain(m *testing.M) {
	if !exampletest.RunMain(main) {
		leak.Main(m)
	}
}

const token = "a secret"

// TestReportWakesTheTrackerAndReachesTheWatchersOfItsJob is the example in one test.
func TestReportWakesTheTrackerAndReachesTheWatchersOfItsJob(t *testing.T) {
	srv := serve(t, 20*time.Millisecond)
	film, book := srv.begin("film"), srv.begin("book")
	ann, ben, cat := srv.watch(film), srv.watch(film), srv.watch(book)
	for _, w := range []*exampletest.Client{ann, ben} {
		if j := next(t, w); j.Title != "film" || j.State != Running || j.Percent != 0 {
			t.Fatalf("got %+v", j)
		}
	}
	next(t, cat)
	for percent := 20; percent <= 60; percent += 20 {
		exampletest.Until(t, "the tracker hibernates", func() bool { return !srv.state().InMemory })
		before := srv.state()
		if before.Watchers != 3 {
			t.Fatalf("%d watchers are connected", before.Watchers)
		}
		srv.report(film, Report{Running, percent, "Half-way"}, http.StatusOK)
		for _, w := range []*exampletest.Client{ann, ben} {
			if j := next(t, w); j.Percent != percent || j.Note != "Half-way" {
				t.Fatalf("got %+v", j)
			}
		}
		if now := srv.state(); now.Constructed != before.Constructed+1 {
			t.Fatalf("constructed %d times before the report and %d after it", before.Constructed, now.Constructed)
		}
	}

	// The last report ends the connections of its watchers, and of nobody else.
	srv.report(film, Report{Done, 100, "Ready"}, http.StatusOK)
	for _, w := range []*exampletest.Client{ann, ben} {
		if j := next(t, w); j.State != Done {
			t.Fatalf("got %+v", j)
		}
		over(t, w)
	}
	srv.report(book, Report{Failed, 3, "Out of ink"}, http.StatusOK)
	if j := next(t, cat); j.State != Failed || j.Note != "Out of ink" {
		t.Fatalf("got %+v", j)
	}
	late := srv.watch(film)
	if j := next(t, late); j.State != Done {
		t.Fatalf("who comes late sees %+v", j)
	}
	over(t, late)
}

func TestOldestJobIsForgotten(t *testing.T) {
	srv := serve(t, time.Hour)
	for i := range maxJobs + 2 {
		srv.begin(fmt.Sprint("job ", i))
	}
	srv.evict() // what the next instance finds is what storage holds
	jobs := exampletest.Get[[]Job](t, srv.URL+"/q/studio/jobs")
	if len(jobs) != maxJobs || jobs[0].Title != "job 2" || jobs[maxJobs-1].Title != fmt.Sprint("job ", maxJobs+1) {
		t.Fatalf("%d jobs, from %+v to %+v", len(jobs), jobs[0], jobs[len(jobs)-1])
	}
}

func TestReportsAreChecked(t *testing.T) {
	srv := serve(t, time.Hour)
	number, over := srv.begin("film"), srv.begin("book")
	srv.report(over, Report{State: Done}, http.StatusOK)
	for name, c := range map[string]struct {
		job    any
		body   string
		status int
		text   string
	}{
		"not JSON":          {number, "{", http.StatusBadRequest, "JSON"},
		"no state":          {number, "{}", http.StatusBadRequest, "running, done or failed"},
		"unknown state":     {number, `{"state":"silent"}`, http.StatusBadRequest, "running, done or failed"},
		"too much":          {number, `{"state":"running","percent":101}`, http.StatusBadRequest, "0 to 100"},
		"too little":        {number, `{"state":"running","percent":-1}`, http.StatusBadRequest, "0 to 100"},
		"long note":         {number, `{"state":"running","note":"` + strings.Repeat("é", maxNote+1) + `"}`, http.StatusBadRequest, "200 characters"},
		"very long":         {number, `{"note":"` + strings.Repeat("a", 5<<10) + `"}`, http.StatusRequestEntityTooLarge, ""},
		"job that is over":  {over, `{"state":"running"}`, http.StatusConflict, "is done"},
		"no such job":       {99, `{"state":"running"}`, http.StatusNotFound, "no such job"},
		"no number":         {"one", `{"state":"running"}`, http.StatusNotFound, "no such job"},
		"number with zeros": {"01", `{"state":"running"}`, http.StatusNotFound, "no such job"},
	} {
		t.Run(name, func(t *testing.T) {
			status, text := srv.post(fmt.Sprint("/q/studio/jobs/", c.job), token, c.body)
			if status != c.status || !strings.Contains(text, c.text) {
				t.Fatalf("%d %q, want %d with %q", status, text, c.status, c.text)
			}
		})
	}
}

func TestStrangersWakeNobody(t *testing.T) {
	srv := serve(t, time.Hour)
	for _, wrong := range []string{"", "another secret", token + "x"} {
		if status, _ := srv.post("/q/studio/jobs/1", wrong, `{"state":"done"}`); status != http.StatusUnauthorized {
			t.Fatalf("token %q: status %d", wrong, status)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/q/studio/start", strings.NewReader(`{"title":"film"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Fatalf("start from another site: %s", resp.Status)
	}
	for _, title := range []string{"", " ", strings.Repeat("é", maxTitle+1)} {
		body, _ := json.Marshal(map[string]string{"title": title})
		if status, text := srv.post("/q/studio/start", "", string(body)); status != http.StatusBadRequest || !strings.Contains(text, "1 to 80") {
			t.Fatalf("title %q: %d %q", title, status, text)
		}
	}
	if status, _ := srv.post("/q/"+strings.Repeat("q", maxQueueName+1)+"/start", "", `{"title":"film"}`); status != http.StatusBadRequest {
		t.Fatalf("long name: status %d", status)
	}
	if s := srv.state(); s.Constructed != 0 {
		t.Fatalf("the tracker was constructed: %+v", s)
	}
}

// TestWorkersDoJobs has the whole program run, from the page's button to the last report, and over a restart.
func TestWorkersDoJobs(t *testing.T) {
	dir := t.TempDir()
	flags := []string{"-addr", "127.0.0.1:0", "-dir", dir, "-idle", "1ms", "-pause", "4ms", "-token", token}
	p := exampletest.Start(t, flags...)
	srv := &server{t: t, URL: p.URL}
	w := srv.watch(srv.begin("film"))
	j := next(t, w)
	for ; !j.State.Over(); j = next(t, w) {
		if j.Title != "film" {
			t.Fatalf("got %+v", j)
		}
	}
	over(t, w)
	p.Interrupt()

	p = exampletest.Start(t, flags...)
	jobs := exampletest.Get[[]Job](t, p.URL+"/q/studio/jobs")
	if len(jobs) != 1 || jobs[0] != j {
		t.Fatalf("after the restart: %+v, want %+v", jobs, j)
	}
}

// TestInterruptWhileWorkersWork ends in time, and leaves the job to its alarm.
func TestInterruptWhileWorkersWork(t *testing.T) {
	p := exampletest.Start(t, "-addr", "127.0.0.1:0", "-dir", t.TempDir(), "-pause", "1h")
	srv := &server{t: t, URL: p.URL}
	next(t, srv.watch(srv.begin("film")))
	p.Interrupt()
}

// ---- helpers ----

type server struct {
	t   *testing.T
	rt  *hibernate.Runtime // nil: it is another process
	URL string
}

// serve runs the handler in this process, without workers.
func serve(t *testing.T, idle time.Duration) *server {
	t.Helper()
	rt, err := hibernate.Open(t.TempDir(), &hibernate.Options{IdleTimeout: idle, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := routes(rt, time.Now, token, func(string, uint64) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		srv.Close()
		if err := rt.Close(); err != nil {
			t.Errorf("close the runtime: %v", err)
		}
	})
	return &server{t, rt, srv.URL}
}

func (s *server) evict() {
	s.t.Helper()
	if err := s.rt.EvictAll(context.WithoutCancel(s.t.Context())); err != nil {
		s.t.Fatal(err)
	}
}

type state struct {
	Constructed uint64 `json:"constructed"`
	InMemory    bool   `json:"inMemory"`
	Watchers    int    `json:"watchers"`
}

func (s *server) state() state {
	s.t.Helper()
	return exampletest.Get[state](s.t, s.URL+"/q/studio/state")
}

func (s *server) post(path, token, body string) (status int, text string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.URL+path, bytes.NewReader([]byte(body)))
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// begin starts a job as the page does, and returns its number.
func (s *server) begin(title string) uint64 {
	s.t.Helper()
	body, err := json.Marshal(map[string]string{"title": title})
	if err != nil {
		s.t.Fatal(err)
	}
	status, text := s.post("/q/studio/start", "", string(body))
	var j Job
	if err := json.Unmarshal([]byte(text), &j); status != http.StatusCreated || err != nil {
		s.t.Fatalf("start: %d %q", status, text)
	}
	return j.Number
}

func (s *server) report(job uint64, r Report, status int) {
	s.t.Helper()
	body, err := json.Marshal(r)
	if err != nil {
		s.t.Fatal(err)
	}
	if got, text := s.post(fmt.Sprint("/q/studio/jobs/", job), token, string(body)); got != status {
		s.t.Fatalf("report: %d %q, want %d", got, text, status)
	}
}

func (s *server) watch(job uint64) *exampletest.Client {
	s.t.Helper()
	return exampletest.Dial(s.t, fmt.Sprintf("%s/q/studio/jobs/%d/ws", s.URL, job), nil)
}

// next returns what a watcher is told next.
func next(t *testing.T, c *exampletest.Client) (j Job) {
	t.Helper()
	if text := c.Text(); json.Unmarshal([]byte(text), &j) != nil {
		t.Fatalf("got %s", text)
	}
	return j
}

// over checks that the server closes the connection with 1000.
func over(t *testing.T, c *exampletest.Client) {
	t.Helper()
	text, err := c.Receive()
	var closed wsutil.ClosedError
	if !errors.As(err, &closed) || closed.Code != ws.StatusNormalClosure {
		t.Fatalf("got %q, %v; want a Close with 1000", text, err)
	}
}
