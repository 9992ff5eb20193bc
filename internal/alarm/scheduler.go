package alarm

import (
	"sync"
	"time"
)

// relook is how often the timer looks again at the latest, because the system's
// clock may be set or the machine suspended.
const relook = 30 * time.Second

// maxRunning bounds the alarms under way at once, and window those read at
// once: the memory that any number of pending ones cost.
const (
	maxRunning = 256
	window     = 2 * maxRunning
)

// An Entry is one pending alarm.
type Entry struct {
	ID    [32]byte
	Class string
	Due   int64 // ms since the Unix epoch
}

// A Source keeps the pending alarms.
type Source interface {
	// Pending returns the first alarms behind after, in order of their due times
	// and then of their IDs, at most limit of them. Of after it looks at Due and
	// ID; the zero Entry is before all. It may block.
	Pending(after Entry, limit int) ([]Entry, error)
	// Fire starts the alarm e and calls concluded, on any goroutine, when its
	// outcome is on disk. It reports false if it cannot start e now.
	Fire(e Entry, concluded func()) bool
	// Busy is called with 1 when a scan begins and with -1 when it has ended. It may
	// be called under a lock, and must not block.
	Busy(delta int)
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
	afresh   bool // the next pass begins at the start
	stopped  bool
	ended    sync.WaitGroup // the scan; Add only under mu and before stopped

	// Owned by the scan. Everything before cold was refused: passes begin there,
	// or every alarm set would read all of a class that nobody registers.
	cold   Entry
	looked time.Time // when a pass last began at the start
}

// NewScheduler returns a scheduler that looks at its source at the first Wake.
func NewScheduler(clock Clock, source Source) *Scheduler {
	return &Scheduler{clock: clock, source: source, firing: map[[32]byte]struct{}{}}
}

// Wake says that alarms of the source may have changed.
func (s *Scheduler) Wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeLocked()
}

// Reconsider is Wake when the source may now start what it refused.
func (s *Scheduler) Reconsider() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.afresh = true
	s.wakeLocked()
}

func (s *Scheduler) wakeLocked() {
	if s.stopped {
		return
	}
	if s.scanning {
		s.again = true
		return
	}
	s.scanning = true
	s.source.Busy(1)
	s.ended.Add(1)
	go s.scan()
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
	defer s.source.Busy(-1)
	for {
		next, again := s.pass()
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
		if !s.stopped && (next != 0 || again) {
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
// is none, and whether to look again without a reason.
func (s *Scheduler) pass() (next int64, again bool) {
	now := s.clock.Now()
	s.mu.Lock()
	afresh := s.afresh
	s.afresh = false
	s.mu.Unlock()
	if since := now.Sub(s.looked); afresh || since < 0 || since >= relook {
		s.cold, s.looked = Entry{}, now
	}
	front := true // everything so far was refused
	for after := s.cold; ; {
		entries, err := s.source.Pending(after, window)
		if err != nil {
			return 0, true
		}
		for _, e := range entries {
			if e.Due > now.UnixMilli() {
				return e.Due, again
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
				return 0, again // concluded comes back
			}
			refused := !under && !s.source.Fire(e, func() { s.concluded(e.ID) })
			if refused {
				s.mu.Lock()
				delete(s.firing, e.ID)
				s.mu.Unlock()
				again = true
			}
			if front = front && refused; front {
				s.cold = Entry{Due: e.Due} // another of the same time may yet come before e
			}
		}
		if len(entries) < window {
			return 0, again
		}
		after = entries[len(entries)-1]
	}
}
