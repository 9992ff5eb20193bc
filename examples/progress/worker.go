package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const maxWorkers = 8 // jobs at once

// Workers stand for the machines that do the jobs. They know the server by its URL and their token alone,
// and would work the same anywhere else.
type Workers struct {
	url   string
	token string
	pause time.Duration // between two reports

	client  http.Client
	running sync.WaitGroup
	slots   chan struct{}
}

func newWorkers(url, token string, pause time.Duration) *Workers {
	return &Workers{
		url: url, token: token, pause: pause,
		client: http.Client{Timeout: 10 * time.Second},
		slots:  make(chan struct{}, maxWorkers),
	}
}

// Take begins a job and reports false if everybody is busy. It ends early when ctx does.
func (w *Workers) Take(ctx context.Context, queue string, job uint64) bool {
	select {
	case w.slots <- struct{}{}:
	default:
		return false
	}
	w.running.Go(func() {
		defer func() { <-w.slots }()
		if err := w.work(ctx, queue, job); err != nil && ctx.Err() == nil {
			slog.Error("a worker gave up", "queue", queue, "job", job, "err", err)
		}
	})
	return true
}

// Wait returns when nobody works any more.
func (w *Workers) Wait() {
	w.running.Wait()
	w.client.CloseIdleConnections()
}

func (w *Workers) work(ctx context.Context, queue string, job uint64) error {
	steps := []string{"Reading the source", "Measuring", "First pass", "Second pass", "Sound", "Putting it together", "Checking", "Uploading"}
	for i, note := range steps {
		if err := w.report(ctx, queue, job, Report{Running, 100 * i / len(steps), note}); err != nil {
			return err
		}
		select {
		case <-time.After(w.pause/2 + rand.N(w.pause)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if rand.IntN(6) == 0 {
		return w.report(ctx, queue, job, Report{Failed, 97, "The upload was refused"})
	}
	return w.report(ctx, queue, job, Report{Done, 100, "Ready"})
}

func (w *Workers) report(ctx context.Context, queue string, job uint64, r Report) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	to := fmt.Sprintf("%s/q/%s/jobs/%d", w.url, url.PathEscape(queue), job)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	resp, err := w.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("report to %s: %s: %s", to, resp.Status, bytes.TrimSpace(text))
	}
	return nil
}
