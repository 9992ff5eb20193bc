// Package probeserver exposes every call of the library over HTTP and
// WebSocket, so that a driver can compare it from outside with transcripts of
// workerd.
//
// It serves the probe protocol on the public API alone: JSON operations run
// inside an object's handlers, and a log of events and the handlers' programs
// are kept outside of the objects, so that looking at them wakes nobody.
package probeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibernate-go/hibernate"
)

// kvPrefix marks objects whose storage enforces the classic key-value limits,
// barePrefix those of a class with ServeHTTP only.
const (
	kvPrefix   = "kv-"
	barePrefix = "bare-"
)

// Config are the surroundings of a Server.
type Config struct {
	Dir    string          // of the storage; empty keeps it in memory
	Idle   time.Duration   // Options.IdleTimeout
	Clock  hibernate.Clock // nil is the system's
	Logger *slog.Logger
}

// systemClock is the system's time.
type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }
func (systemClock) AfterFunc(d time.Duration, f func()) hibernate.Timer {
	return time.AfterFunc(d, f)
}

// A Server is the probe's handler. Its methods are safe for concurrent use.
type Server struct {
	clock hibernate.Clock
	big   *house // values of any size
	kv    *house // classic key-value limits

	// started counts what a timer or a WaitUntil has set off and that is not in
	// its turn yet.
	started atomic.Int64

	came, answered atomic.Int64 // requests to objects
	pinned         atomic.Int64 // handlers inside something that holds their turn

	mu       sync.Mutex // guards the following
	worlds   map[string]*world
	requests map[*request]struct{} // not answered
}

// A request is one to an object. Its context carries it.
type request struct {
	stage atomic.Int32
}

// The stages of a request, in order.
const (
	stageCame    = iota
	stageHandled // the object's handler runs
	stageLeft    // it has returned
)

type requestKey struct{}

// A house is one runtime and its two classes.
type house struct {
	rt         *hibernate.Runtime
	full, bare *hibernate.Namespace
}

// Open opens a server's runtimes, in two directories below cfg.Dir.
func Open(cfg Config) (*Server, error) {
	if cfg.Clock == nil {
		cfg.Clock = systemClock{}
	}
	s := &Server{clock: cfg.Clock, worlds: map[string]*world{}, requests: map[*request]struct{}{}}
	limits := hibernate.Limits{Message: 32 << 20, RequestBody: 64 << 20}
	var err error
	if s.kv, err = s.open(cfg, "kv", limits); err != nil {
		return nil, err
	}
	limits.Key, limits.Keys = 1<<16, 1<<20
	limits.Value = 8<<20 - limits.Key - 16 // what a commit holds beside the longest key
	if s.big, err = s.open(cfg, "main", limits); err != nil {
		return nil, errors.Join(err, s.kv.rt.Close())
	}
	return s, nil
}

func (s *Server) open(cfg Config, dir string, limits hibernate.Limits) (*house, error) {
	if cfg.Dir != "" {
		dir = filepath.Join(cfg.Dir, dir)
	} else {
		dir = ""
	}
	rt, err := hibernate.Open(dir, &hibernate.Options{
		IdleTimeout: cfg.Idle,
		Logger:      cfg.Logger,
		Clock:       cfg.Clock,
		Limits:      limits,
	})
	if err != nil {
		return nil, err
	}
	o := &hibernate.ClassOptions{
		CheckOrigin:      func(*http.Request) bool { return true },
		ManualCloseReply: true,
		CloseTimeout:     -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			answer(w, http.StatusInternalServerError, map[string]any{"thrown": describe(err)})
		},
	}
	h := &house{rt: rt}
	if h.full, err = hibernate.Register(rt, "Probe", s.newFull, o); err == nil {
		h.bare, err = hibernate.Register(rt, "Bare", s.newBare, o)
	}
	if err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	return h, nil
}

// Close closes the runtimes.
func (s *Server) Close() error { return errors.Join(s.big.rt.Close(), s.kv.rt.Close()) }

// ServeHTTP serves the protocol's surface.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, verb, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case name == "":
		fmt.Fprintln(w, "ready")
	case verb == "events":
		from, _ := strconv.Atoi(r.URL.Query().Get("from"))
		answer(w, http.StatusOK, s.world(name).since(from))
	case verb == "program":
		var p map[string][]op
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.world(name).setProgram(p)
		answer(w, http.StatusOK, map[string]any{})
	default:
		q := &request{}
		s.mu.Lock()
		s.requests[q] = struct{}{}
		s.mu.Unlock()
		s.came.Add(1)
		defer func() {
			s.answered.Add(1)
			s.mu.Lock()
			delete(s.requests, q)
			s.mu.Unlock()
		}()
		s.stub(name).ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, q)))
	}
}

func (s *Server) stub(name string) hibernate.Stub {
	h := s.big
	if strings.HasPrefix(name, kvPrefix) {
		h = s.kv
	}
	if strings.HasPrefix(name, barePrefix) {
		return h.bare.GetByName(name)
	}
	return h.full.GetByName(name)
}

func (s *Server) world(name string) *world {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.worlds[name]
	if w == nil {
		w = &world{runs: map[string]int{}}
		s.worlds[name] = w
	}
	return w
}

// A world is what the probe keeps of an object name outside of the object.
type world struct {
	mu        sync.Mutex // guards the following
	log       []any
	instances int
	program   map[string][]op
	runs      map[string]int // how often each program has run
}

// construct counts an instance and returns its number.
func (w *world) construct() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.instances++
	return w.instances
}

func (w *world) add(entry map[string]any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, entry)
}

func (w *world) since(from int) []any {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]any{}, w.log[min(max(from, 0), len(w.log)):]...)
}

func (w *world) setProgram(p map[string][]op) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.program, w.runs = p, map[string]int{}
}

// next is the program of a handler, and which run of it this is.
func (w *world) next(at string) (ops []op, run int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.runs[at]++
	return w.program[at], w.runs[at]
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(encode(v)) // a client that has left
}

// Quiet reports whether nothing will happen inside before something comes from
// outside or from the clock: both runtimes are quiet, what a timer or a WaitUntil
// has set off is in its turn, and no request is on its way to its handler or
// from it.
func (s *Server) Quiet() bool {
	return s.started.Load() == 0 && !s.moving() && s.big.rt.Quiet() && s.kv.rt.Quiet() && s.started.Load() == 0
}

// moving reports whether a request is outside of its handler, other than to wait
// for a turn that somebody holds.
func (s *Server) moving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for q := range s.requests {
		switch q.stage.Load() {
		case stageCame:
			if s.pinned.Load() == 0 {
				return true
			}
		case stageLeft:
			return true
		}
	}
	return false
}

// Requests tells how many requests have come to objects, and how many of them
// have been answered.
func (s *Server) Requests() (came, answered int64) {
	answered = s.answered.Load()
	return s.came.Load(), answered
}
