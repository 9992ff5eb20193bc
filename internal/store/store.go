package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Config says where a Store lives and how much memory it takes. Its zero value
// is a store in memory.
type Config struct {
	// Dir is the directory, created if it is not there; "" keeps everything in
	// memory.
	Dir string

	// FS replaces the operating system's files, in tests.
	FS vfs.FS

	// Logger gets Pebble's own log at Debug, what it merely reports at Error.
	// nil discards.
	Logger *slog.Logger

	// OnDead is called once, on a goroutine of its own, when the engine has
	// died. It may call Close.
	OnDead func(error)

	// CacheSize is the memory of Pebble's block cache in bytes. 0 = 64 MiB.
	CacheSize int64

	// MemTableSize is the memory of one memtable in bytes; up to five exist when
	// the disk is slow. 0 = 16 MiB.
	MemTableSize int

	// OpenFiles bounds the descriptors of table files kept open. 0 = 500.
	OpenFiles int

	// MaxPendingBytes and MaxPending are how much may wait to be durable before
	// Throttle blocks. 0 = 32 MiB, 65,536 commits.
	MaxPendingBytes int
	MaxPending      int

	// CloseTimeout is how long Close waits for a disk that does not answer
	// before it gives the engine up for dead. 0 = 30 s.
	CloseTimeout time.Duration
}

// Limits are those of the engine that Open opens.
func (*Config) Limits() Limits { return pebbleLimits }

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.CacheSize, defaultCacheSize)
	setDefault(&c.MemTableSize, defaultMemTableSize)
	setDefault(&c.OpenFiles, defaultOpenFiles)
	setDefault(&c.MaxPendingBytes, 32<<20)
	setDefault(&c.MaxPending, 64<<10)
	setDefault(&c.CloseTimeout, 30*time.Second)
}

func setDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// One group of the committer is at most this much, but always one commit.
const (
	maxGroup      = 4 << 10
	maxGroupBytes = 4 << 20
)

// A Store serves the objects of one engine. Safe for concurrent use.
type Store struct {
	eng    Engine
	epoch  uint64
	limits Limits
	cfg    Config

	dead     chan struct{}         // closed after err is set
	over     atomic.Pointer[error] // err, for those who hold another lock
	stopped  chan struct{}         // closed when the committer has ended
	answered chan struct{}         // closed when all commits made before the end are answered
	closing  chan struct{}         // closed by Close at its end: the watcher goes
	watching chan struct{}         // closed when the watcher has ended

	mu      sync.Mutex // guards the following
	entries map[ID]*entry

	full atomic.Bool // too much is pending; written under qmu

	qmu      sync.Mutex // guards the following
	wake     *sync.Cond // of the committer, on qmu
	err      error      // why the store is dead, or that it is closed
	phase    phase
	queue    []*commit // in order of Commit
	inflight []*commit // with the engine
	ready    []group   // answers of the engine, not delivered
	// answering is whether a goroutine runs answerLoop. There is one at a time,
	// so that an object's answers keep their order.
	answering bool
	answer    *sync.Cond    // of answerLoop, on qmu
	room      chan struct{} // closed when less is pending; nil if nobody waits
	stats     Stats

	closeOnce sync.Once
	closeErr  error
}

// phase is what the committer does, in order of its life.
type phase int

const (
	phaseOpen    phase = iota // commits are taken
	phaseClosing              // the queue is committed, then the committer ends
	phaseEnded                // commits are failed: the store is dead or closed
)

// Stats counts what a Store has done.
type Stats struct {
	Commits      uint64        // answered with nil
	Fenced       uint64        // answered with ErrFenced
	Failed       uint64        // answered with another error
	Groups       uint64        // calls of the engine, each with one sync
	MaxGroup     int           // commits in the largest
	Bytes        uint64        // of keys and values in commits answered with nil
	SyncTime     time.Duration // spent in the engine's Commit, sum
	MaxSyncTime  time.Duration
	Pending      int // commits not answered yet
	PendingBytes int
	Objects      int // ids with a handle or a pending commit
}

// Open opens the store in cfg.Dir and raises its epoch. Its error names the
// directory.
func Open(cfg Config) (*Store, error) {
	cfg.setDefaults()
	eng, err := openPebble(&cfg)
	if err != nil {
		return nil, err
	}
	return New(eng, cfg), nil
}

// New returns a Store on an engine, which it will close. Of cfg it reads what
// is not the engine's.
func New(eng Engine, cfg Config) *Store {
	cfg.setDefaults()
	s := &Store{
		eng:      eng,
		epoch:    eng.Epoch(),
		limits:   eng.Limits(),
		cfg:      cfg,
		dead:     make(chan struct{}),
		stopped:  make(chan struct{}),
		answered: make(chan struct{}),
		closing:  make(chan struct{}),
		watching: make(chan struct{}),
		entries:  make(map[ID]*entry),
	}
	s.wake, s.answer = sync.NewCond(&s.qmu), sync.NewCond(&s.qmu)
	s.answering = true
	go s.commitLoop()
	go s.answerLoop()
	go s.watch()
	return s
}

// Dead is closed when the engine has died. Every call answers ErrUnavailable
// from then on.
func (s *Store) Dead() <-chan struct{} { return s.dead }

// Err tells why the store is dead; nil while it lives and after a Close
// without failure.
func (s *Store) Err() error {
	select {
	case <-s.dead:
	default:
		return nil
	}
	s.qmu.Lock()
	defer s.qmu.Unlock()
	return s.err
}

// Epoch is the epoch of this opening.
func (s *Store) Epoch() uint64 { return s.epoch }

// Limits are the engine's.
func (s *Store) Limits() Limits { return s.limits }

// Stats returns the counters.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	n := len(s.entries)
	s.mu.Unlock()
	s.qmu.Lock()
	defer s.qmu.Unlock()
	st := s.stats
	st.Objects = n
	return st
}

// Snapshot writes a consistent copy of what is committed into a new directory,
// which Open opens. Turns go on meanwhile; their commits wait while the log is
// copied, which is at most a memtable's worth. dir must not exist. Canceling ctx
// has no effect once the copy has begun.
func (s *Store) Snapshot(ctx context.Context, dir string) error { return s.eng.Snapshot(ctx, dir) }

// DueAlarms returns the objects whose alarm is due at or before a time in ms
// since the Unix epoch, earliest first, those behind after, at most limit. The
// zero after is the start. It reads the committed index: an alarm change that is
// still pending is not in it.
func (s *Store) DueAlarms(ctx context.Context, after Due, before int64, limit int) ([]Due, error) {
	return s.eng.Due(ctx, after, before, limit)
}

// NextAlarm returns the earliest alarm of all; ok is false if there is none.
func (s *Store) NextAlarm(ctx context.Context) (d Due, ok bool, err error) {
	due, err := s.eng.Due(ctx, Due{}, 1<<63-1, 1)
	if err != nil || len(due) == 0 {
		return Due{}, false, err
	}
	return due[0], true, nil
}

// Objects lists objects of a class that have committed keys or an alarm, in
// order of their ids, those behind after, at most limit.
func (s *Store) Objects(ctx context.Context, class string, after ID, limit int) ([]Info, error) {
	return s.eng.Class(ctx, class, after, limit)
}

// Behind reports whether Throttle would block or fail.
func (s *Store) Behind() bool { return s.full.Load() || s.over.Load() != nil }

// countLocked notes that n more commits of so many bytes are pending, or fewer.
func (s *Store) countLocked(n, bytes int) {
	s.stats.Pending += n
	s.stats.PendingBytes += bytes
	full := s.stats.Pending >= s.cfg.MaxPending || s.stats.PendingBytes >= s.cfg.MaxPendingBytes
	if full != s.full.Load() {
		s.full.Store(full)
	}
}

// Throttle blocks while too much waits to be durable. It is called before a
// turn, as Commit itself never blocks.
func (s *Store) Throttle(ctx context.Context) error {
	for {
		s.qmu.Lock()
		if s.phase == phaseEnded {
			err := s.err
			s.qmu.Unlock()
			return err
		}
		if !s.full.Load() {
			s.qmu.Unlock()
			return nil
		}
		if s.room == nil {
			s.room = make(chan struct{})
		}
		room := s.room
		s.qmu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Close commits everything queued and gives the directory back. Of a dead
// store it only does the latter. Commits made after it are failed.
func (s *Store) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	s.qmu.Lock()
	if s.phase == phaseOpen {
		s.phase = phaseClosing
	}
	s.wake.Signal()
	s.qmu.Unlock()

	closed := make(chan error, 1)
	go func() {
		select {
		case <-s.stopped:
		case <-s.eng.Dead(): // the committer may never stop
		}
		<-s.answered
		closed <- s.eng.Close()
	}()
	timeout := time.NewTimer(s.cfg.CloseTimeout)
	defer timeout.Stop()
	var err error
	select {
	case err = <-closed:
	case <-timeout.C:
		// The disk hangs. Its goroutines are left to it.
		err = fmt.Errorf("close: the disk did not answer for %v: %w", s.cfg.CloseTimeout, ErrUnavailable)
		s.bury(err)
	}
	close(s.closing)
	<-s.watching
	return err
}

// commit is a write set on its way to the disk.
type commit struct {
	Commit
	e      *entry
	bytes  int
	doomed error // answer that is known already: the handle is stale; immutable
	done   func(error)
}

// enqueue hands c over. The caller holds c.e.mu, so that an object's commits
// queue in their order.
func (s *Store) enqueue(c *commit) {
	s.qmu.Lock()
	defer s.qmu.Unlock()
	s.queue = append(s.queue, c)
	s.countLocked(1, c.bytes)
	if s.phase != phaseEnded {
		s.wake.Signal()
	} else if !s.answering {
		s.answering = true
		go s.answerLoop()
	}
}

// group is some commits with their answers.
type group struct {
	commits []*commit
	answers []error // of those that are not doomed
	err     error   // of all others
}

// commitLoop is the committer's goroutine, the only one that writes. It parks
// inside the engine if that dies.
func (s *Store) commitLoop() {
	defer close(s.stopped)
	var spare []Commit
	for {
		group := s.take()
		if group == nil || !s.write(group, &spare) {
			return
		}
	}
}

// take waits for commits and makes them inflight. It returns nil when there
// will be none.
func (s *Store) take() []*commit {
	s.qmu.Lock()
	defer s.qmu.Unlock()
	for len(s.queue) == 0 && s.phase == phaseOpen {
		s.wake.Wait()
	}
	if s.phase == phaseEnded {
		return nil
	}
	if len(s.queue) == 0 {
		s.end(errClosed)
		return nil
	}
	n, bytes := 0, 0
	for n < len(s.queue) && n < maxGroup && (n == 0 || bytes+s.queue[n].bytes <= maxGroupBytes) {
		bytes += s.queue[n].bytes
		n++
	}
	s.inflight = s.queue[:n:n]
	if s.queue = s.queue[n:]; len(s.queue) == 0 {
		s.queue = nil
	}
	return s.inflight
}

// write makes a group durable and hands its answers over. It reports false if
// the store has ended meanwhile: then answerLoop has taken the group. spare is memory.
func (s *Store) write(group []*commit, spare *[]Commit) bool {
	commits := (*spare)[:0]
	for _, c := range group {
		if c.doomed == nil {
			commits = append(commits, c.Commit)
		}
	}
	var answers []error
	var took time.Duration
	if len(commits) > 0 {
		start := time.Now()
		answers = s.eng.Commit(commits)
		took = time.Since(start)
	}
	n := len(commits)
	clear(commits)
	*spare = commits
	err := s.eng.Err() // no gate opens on the word of a dead engine
	s.qmu.Lock()
	defer s.qmu.Unlock()
	if s.phase == phaseEnded {
		return false
	}
	if err != nil {
		s.end(err) // before the watcher does
		return false
	}
	s.push(group, answers)
	if n > 0 {
		s.stats.Groups++
		s.stats.MaxGroup = max(s.stats.MaxGroup, n)
		s.stats.SyncTime += took
		s.stats.MaxSyncTime = max(s.stats.MaxSyncTime, took)
	}
	return true
}

// push hands the answers to inflight over. The caller holds qmu.
func (s *Store) push(commits []*commit, answers []error) {
	s.inflight = nil
	s.ready = append(s.ready, group{commits: commits, answers: answers})
	s.answer.Signal()
}

// end stops taking commits. The caller holds qmu.
func (s *Store) end(err error) {
	s.phase, s.err = phaseEnded, err
	s.over.Store(&err)
	s.wake.Signal()
	s.answer.Signal()
	s.makeRoom()
}

func (s *Store) makeRoom() {
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

// answerLoop calls back, in order of the commits. Once the store has ended, it
// answers what is left with its error, and ends too; a later commit starts it
// again.
func (s *Store) answerLoop() {
	for {
		groups := s.takeAnswers()
		if groups == nil {
			return
		}
		for _, g := range groups {
			s.deliver(g)
		}
	}
}

// takeAnswers waits for answers to deliver. It returns nil when there are no
// more of them.
func (s *Store) takeAnswers() []group {
	s.qmu.Lock()
	defer s.qmu.Unlock()
	for len(s.ready) == 0 && s.phase != phaseEnded {
		s.answer.Wait()
	}
	groups := s.ready
	s.ready = nil
	if len(groups) > 0 || s.phase != phaseEnded {
		return groups
	}
	if len(s.inflight)+len(s.queue) > 0 {
		left := append(s.inflight[:len(s.inflight):len(s.inflight)], s.queue...)
		s.inflight, s.queue = nil, nil
		return []group{{commits: left, err: s.err}}
	}
	s.answering = false
	select {
	case <-s.answered:
	default:
		close(s.answered)
	}
	return nil
}

// deliver answers a group in order: first every overlay forgets what was
// answered, then the callbacks run.
func (s *Store) deliver(g group) {
	var idle []*entry
	var ok, fenced, failed, bytes uint64
	pending := 0
	answers := make([]error, len(g.commits))
	for i, c := range g.commits {
		pending += c.bytes
		err := g.err
		switch {
		case c.doomed != nil: // it is in no overlay
			if err == nil {
				err = c.doomed
			}
		default:
			if err == nil {
				err = g.answers[0]
				g.answers = g.answers[1:]
			}
			if c.e.retire(c, err) {
				idle = append(idle, c.e)
			}
		}
		if g.err == nil { // else the engine may still read it
			c.recycle()
		}
		switch answers[i] = err; {
		case err == nil:
			ok++
			bytes += uint64(c.bytes)
		case errors.Is(err, ErrFenced):
			fenced++
		default:
			failed++
		}
	}
	s.forget(idle)

	s.qmu.Lock()
	s.stats.Commits += ok
	s.stats.Fenced += fenced
	s.stats.Failed += failed
	s.stats.Bytes += bytes
	s.countLocked(-len(g.commits), -pending)
	s.makeRoom()
	s.qmu.Unlock()
	for i, c := range g.commits {
		if c.done != nil {
			c.done(answers[i])
		}
	}
}

// watch waits for the engine's death and makes it the store's.
func (s *Store) watch() {
	defer close(s.watching)
	select {
	case <-s.eng.Dead():
		s.bury(s.eng.Err())
	case <-s.closing:
		if err := s.eng.Err(); err != nil {
			s.bury(err)
		}
	}
}

// bury ends the store because of a failure.
func (s *Store) bury(err error) {
	s.qmu.Lock()
	defer s.qmu.Unlock()
	select {
	case <-s.dead:
		return
	default:
	}
	if s.phase != phaseEnded {
		s.end(err)
	}
	s.err = err
	s.over.Store(&err)
	close(s.dead)
	if s.cfg.OnDead != nil {
		go s.cfg.OnDead(err)
	}
}
