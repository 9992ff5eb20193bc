package alarm

import (
	"sync"
	"time"
)

// relook is how often the timer looks again at the latest, because the system's
// clock may be set or the machine suspended.
const relook = 30 * time.Second

// maxRunning bounds the alarms under way at once, and with it the memory that
// any number of pending ones cost.
const maxRunning = 256

// An Entry is one pending alarm.
type Entry struct {
	ID    [32]byte
	Class string
	Due   int64 // ms since the Unix epoch
}

// A Source keeps the pending alarms.
type Source interface {
	// Pending returns the first alarms in order of their due times, at most
	// limit of them. It may block.
	Pending(limit int) ([]Entry, error)
	// Fire starts the alarm e and calls concluded, on any goroutine, when its
	// outcome is on disk. It reports false if it cannot start e now.
	Fire(e Entry, concluded func()) bool
}

// A Scheduler fires what a Source keeps when it is due, behind one timer.
type Scheduler struct {
	clock  Clock
	source Source

	mu       sync.Mutex // guards the following; not held while the source is called
	timer    Timer
	firing   map[[32]byte]struct{} // fired, not concluded
	scanning bool
	again    bool // something changed during the scan
	stopped  bool
	ended    sync.WaitGroup // the scan; Add only under mu and before stopped
}

// NewScheduler returns a scheduler that looks at its source at the first Wake.
func NewScheduler(clock Clock, source Source) *Scheduler {
	return &Scheduler{clock: clock, source: source, firing: map[[32]byte]struct{}{}}
}

// Wake says that the source may have changed.
func (s *Scheduler) Wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	if s.scanning {
		s.again = true
		return
	}
	s.scanning = true
	s.ended.Add(1)
	go s.scan()
}

// Quiet reports whether no scan and no alarm is under way.
func (s *Scheduler) Quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.scanning
}

// Stop fires nothing more. What was fired goes on.
func (s *Scheduler) Stop() {
	s.mu.Lock()
	s.stopped = true
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.mu.Unlock()
}

// Wait waits, after Stop, for the scan to end.
func (s *Scheduler) Wait() { s.ended.Wait() }

func (s *Scheduler) concluded(id [32]byte) {
	s.mu.Lock()
	delete(s.firing, id)
	s.mu.Unlock()
	s.Wake()
}

// scan looks at the source until nothing has changed meanwhile, and sets the
// timer for what comes next.
func (s *Scheduler) scan() {
	defer s.ended.Done()
	for {
		next, failed := s.pass()
		s.mu.Lock()
		if s.again && !s.stopped {
			s.again = false
			s.mu.Unlock()
			continue
		}
		s.scanning, s.again = false, false
		if s.timer != nil {
			s.timer.Stop()
			s.timer = nil
		}
		if !s.stopped && (next != 0 || failed) {
			wait := relook
			if next != 0 {
				wait = min(wait, time.UnixMilli(next).Sub(s.clock.Now()))
			}
			s.timer = s.clock.AfterFunc(wait, s.Wake)
		}
		s.mu.Unlock()
		return
	}
}

// pass fires what is due and returns when the first other alarm is, 0 if there
// is none.
func (s *Scheduler) pass() (next int64, failed bool) {
	now := s.clock.Now().UnixMilli()
	seen := 0
	for limit := 2 * maxRunning; ; limit *= 2 {
		entries, err := s.source.Pending(limit)
		if err != nil {
			return 0, true
		}
		for _, e := range entries[min(seen, len(entries)):] {
			if e.Due > now {
				return e.Due, false
			}
			s.mu.Lock()
			_, under := s.firing[e.ID]
			full := len(s.firing) >= maxRunning
			if !under && !full && !s.stopped {
				s.firing[e.ID] = struct{}{}
			}
			stopped := s.stopped
			s.mu.Unlock()
			if stopped || full {
				return 0, false // concluded comes back
			}
			if !under && !s.source.Fire(e, func() { s.concluded(e.ID) }) {
				s.mu.Lock()
				delete(s.firing, e.ID)
				s.mu.Unlock()
			}
		}
		if len(entries) < limit {
			return 0, false
		}
		seen = limit
	}
}
