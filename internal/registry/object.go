package registry

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibernate-go/hibernate/internal/gate"
	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// errRemoved says that a record has left the registry; look it up again.
var errRemoved = errors.New("record was removed")

// An Object is the record of one object: what stays while its instance is gone. At
// rest it is this struct, its name, and 8 to 16 bytes in the index.
type Object struct {
	class *Class   // immutable
	id    store.ID // immutable

	mu      sync.Mutex // guards the following, and the fields of live; no call out of this package is made under it
	removed bool       // no longer in the registry
	inLine  bool       // for a slot; guarded by slots.mu instead
	name    string     // "" until known
	sockets socket.List
	wakes   wakes
	rare    atomic.Pointer[rare] // what few objects have; nil: nothing. Written under mu
	*live                        // what an object that does something has; nil at rest
}

// A rare is immutable.
type rare struct {
	auto    []Pair
	timeout time.Duration // of socket events; 0: none
}

// A live is the part of a record that exists while there is an instance, work, or
// output that may not leave yet.
type live struct {
	obj  *Object // immutable
	gate gate.Gate[output]

	// flush is owned by whoever drains the gate.
	flush []*socket.Socket

	undelivered atomic.Int64 // bytes for sockets that wait at the gate, a broadcast's once
	frames      atomic.Int64 // of turns and WaitUntil work for sockets, a broadcast's for each
	queued      bool         // in releasers.queue, whose lock guards it

	// Guarded by the object's lock.
	mail   mailbox // what waits for a turn
	runner *runner // holds the right to run turns; nil: nobody
	act    *Activation
}

// bringLocked makes sure that o.live is there. settle lets go of it.
func (o *Object) bringLocked() {
	if o.live == nil {
		l := &live{obj: o}
		l.gate.Init(l.release, l.released)
		o.live = l
	}
}

// activation is the object's, nil if it sleeps.
func (o *Object) activation() *Activation {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.live == nil {
		return nil
	}
	return o.act
}

// outlet is what output goes through, nil for an object at rest: nothing is held there.
func (o *Object) outlet() *live {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.live
}

// A Pair is one auto-response, its answer encoded as a frame.
type Pair struct {
	Request, Response string
	frame             []byte
}

// NewPair encodes a pair.
func NewPair(request, response string) Pair {
	return Pair{request, response, wire.AppendFrame(nil, wire.Text, []byte(response))}
}

// An output is something that leaves through the gate: a frame for a socket, the
// outcome of work, or the call of a function that waits.
type output struct {
	sock  *socket.Socket
	all   []*socket.Socket // instead of sock; frame is shared
	frame socket.Frame
	own   bool  // the runtime's, not the turn's: it leaves though the turn is undone
	work  *Work // its outcome is told
	done  func(error)

	// To be taken off the live's counts; alone, they are of the outputs before.
	undelivered, frames int64
}

// counts reports whether out is nothing but counts.
func (out *output) counts() bool {
	return out.sock == nil && out.all == nil && out.work == nil && out.done == nil
}

// framesOf is how many frames outs are.
func framesOf(outs []output) (n int64) {
	for i := range outs {
		if outs[i].sock != nil {
			n++
		}
		n += int64(len(outs[i].all))
	}
	return n
}

// hold puts out behind everything that is held. size is what counts of it for the limit of bytes.
func (l *live) hold(out output, size int64) {
	out.undelivered, out.frames = size, framesOf([]output{out})
	l.undelivered.Add(out.undelivered)
	l.frames.Add(out.frames)
	l.gate.Hold(out)
}

// Work is one thing to be done in a turn of an object.
type Work struct {
	Cause Cause
	// Values is the context whose values the turn carries, nil if none.
	Values context.Context
	// Run is called in the turn, on its goroutine.
	Run func(t *Turn, instance any) error
	// Done is called once: with nil when everything before it is durable, or
	// with why the work did not succeed. It must not block. It may be nil.
	Done func(error)

	called bool           // a turn waits for it; registry.calls is to know who runs it
	only   *Activation    // run in this activation or fail
	sock   *socket.Socket // of a socket event
	event  *socket.Event  // its own, nil if it is not of a socket
	resume *runner        // hand the right to run turns to this one
	// internal is bookkeeping in the object's storage, which needs no instance.
	internal func(*store.Object)

	// Guarded by the object's lock.
	queued     bool
	prev, next *Work
	finished   bool // Done was called, or handed to the gate
}

// Cause says why a turn runs, and so why an object was woken.
type Cause uint8

const (
	CauseMessage Cause = iota + 1
	CauseClose
	CauseError
	CauseRequest
	CauseAlarm
	CauseCall
	CauseDo
	CauseEvict
	CauseDrain

	CauseCount = iota + 1 // length of an array by Cause
)

var causes = [...]string{"", "message", "close", "error", "request", "alarm", "call", "do", "evict", "drain"}

func (c Cause) String() string { return causes[c] }

// A mailbox is a queue of work. Its lock is the object's.
type mailbox struct {
	first, last *Work
	n           int32  // requests, calls and Do functions
	kib         uint32 // of messages, each rounded up
}

func (m *mailbox) push(w *Work) {
	w.queued, w.prev, w.next = true, m.last, nil
	if m.last != nil {
		m.last.next = w
	} else {
		m.first = w
	}
	m.last = w
	m.kib += w.kib()
	if w.counted() {
		m.n++
	}
}

func (m *mailbox) remove(w *Work) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		m.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		m.last = w.prev
	}
	w.queued, w.prev, w.next = false, nil, nil
	m.kib -= w.kib()
	if w.counted() {
		m.n--
	}
}

// kib is the size of a message.
func (w *Work) kib() uint32 {
	if w.event == nil {
		return 0
	}
	return uint32((len(w.event.Data) + 1023) >> 10)
}

// newEvent is the work of an event of s.
func newEvent(cause Cause, s *socket.Socket, e socket.Event) *Work {
	w := &struct {
		Work
		socket.Event
	}{Work{Cause: cause, sock: s}, e}
	w.Work.event = &w.Event
	return &w.Work
}

// counted reports whether w counts towards the mailbox's limit. Socket events
// are bounded by the sockets, resumes by the handlers, and of alarms there is one.
func (w *Work) counted() bool { return w.sock == nil && w.resume == nil && w.Cause != CauseAlarm }

// ID is the object's id.
func (o *Object) ID() store.ID { return o.id }

// Is reports whether p is a record of the same object. A record that nobody needs
// is removed, and a handle of a connection that is gone may outlive it.
func (o *Object) Is(p *Object) bool { return o == p || o.class.reg == p.class.reg && o.id == p.id }

// Config is what the object's sockets share with all of its class.
func (o *Object) Config() *socket.Config { return o.class.Sockets }

// Class is the object's class.
func (o *Object) Class() *Class { return o.class }

// Name is the name the object was found by, if that is known.
func (o *Object) Name() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.name
}

func (o *Object) setName(name string) {
	o.mu.Lock()
	if o.name == "" {
		o.name = name
	}
	o.mu.Unlock()
}

func (o *Object) log() *slog.Logger {
	return o.class.reg.cfg.Logger.With("class", o.class.Name, "id", hex.EncodeToString(o.id[:]), "name", o.Name())
}

// post queues w and sees to it that somebody runs it.
func (o *Object) post(w *Work, name string) error {
	o.mu.Lock()
	if o.removed {
		o.mu.Unlock()
		return errRemoved
	}
	if most := o.class.reg.cfg.Mailbox; w.counted() && most > 0 && o.live != nil && int(o.mail.n) >= most {
		o.mu.Unlock()
		return o.class.reg.cfg.Refused.Refuse(limit.Waiting, int64(most), int64(most)+1)
	}
	o.bringLocked()
	var learns *Activation
	if o.name == "" && name != "" {
		name = strings.Clone(name)
		o.name, learns = name, o.act
	}
	o.mail.push(w)
	run := o.claimLocked()
	o.mu.Unlock()
	if learns != nil {
		learns.Store.SetName(name)
	}
	run.start(o)
	return nil
}

// claimLocked takes the right to run turns if it is free and there is work.
func (o *Object) claimLocked() *runner {
	if o.runner != nil || o.mail.first == nil {
		return nil
	}
	slot := o.constructsLocked()
	if slot && !o.class.reg.take(o) {
		return nil // in line
	}
	o.runner = o.class.reg.runners.get()
	o.runner.slot = slot
	return o.runner
}

// Withdraw takes w out of the queue and reports whether it was still there.
// Its Done is then not called.
func (o *Object) withdraw(w *Work) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !w.queued {
		return false
	}
	o.mail.remove(w)
	return true
}

// Withdraw takes back work that has not begun and reports whether it could. Its
// Done is then not called.
func (r *Registry) Withdraw(id store.ID, w *Work) bool {
	o := r.find(id)
	return o != nil && o.withdraw(w)
}

// step does one piece of work and reports whether to go on.
func (o *Object) step(me *runner) bool {
	o.mu.Lock()
	o.bringLocked()
	if o.runner != me {
		o.mu.Unlock()
		return false
	}
	w := o.mail.first
	if w == nil {
		o.runner = nil
		o.mu.Unlock()
		o.settle()
		return false
	}
	o.mail.remove(w)
	if w.resume != nil {
		o.runner = w.resume
		o.mu.Unlock()
		w.resume.resumed <- struct{}{}
		return false
	}
	a, l := o.act, o.live
	evict := a != nil && w.internal == nil && (w.Cause == CauseEvict || o.class.reg.cfg.EvictEveryTurn) && len(a.blockers) == 0
	if evict {
		o.dropLocked()
	}
	busy := 0
	if a != nil {
		busy = len(a.blockers)
	}
	o.mu.Unlock()
	if evict {
		o.hibernated(a)
		a = nil
	}
	if w.Cause == CauseEvict {
		var err error
		if a != nil {
			err = &BusyError{Blockers: busy}
		}
		o.finish(w, err)
		return true
	}
	if w.internal != nil {
		o.keepBooks(a, l, w)
		return true
	}
	if w.only != nil && w.only != a {
		o.finish(w, ErrReset)
		return true
	}
	if a == nil {
		if a = o.construct(me, w); a == nil {
			return true
		}
	}
	o.turn(me, a, w)
	return true
}

// keepBooks runs internal work, with no instance if there is none. A reset may take a and l
// away meanwhile.
func (o *Object) keepBooks(a *Activation, l *live, w *Work) {
	if a == nil {
		st := o.class.reg.cfg.Store.Object(o.id, o.class.Name, o.Name())
		defer st.Close()
		w.internal(st)
		l.commitStore(st, true, true)
	} else {
		w.internal(a.Store)
		a.mu.Lock()
		if a.ended == nil {
			l.commitStore(a.Store, true, true)
		}
		a.mu.Unlock()
	}
	l.gate.Hold(output{done: func(err error) { o.finish(w, err) }})
}

// BusyError is why an object could not be evicted.
type BusyError struct{ Blockers int }

func (e *BusyError) Error() string {
	return fmt.Sprintf("object is busy: %d handlers or tasks under way", e.Blockers)
}

// finish tells w's outcome, once.
func (o *Object) finish(w *Work, err error) {
	if w != nil && o.settleWork(w) && w.Done != nil {
		w.Done(err)
	}
}

// settleWork reports whether w's outcome was still to be told; the caller does.
func (o *Object) settleWork(w *Work) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	first := !w.finished
	w.finished = true
	return first
}

// settle is called when something of the object has come to an end: it starts
// the idle time of an instance, or removes a record nobody needs.
func (o *Object) settle() {
	o.mu.Lock()
	o.settleLocked(time.Time{})
}

// settleLocked is settle at a time, zero for now. It unlocks.
func (o *Object) settleLocked(now time.Time) {
	if o.live == nil || o.act == nil {
		o.restLocked()
		return
	}
	a := o.act
	if now.IsZero() {
		now = o.class.reg.cfg.Clock.Now()
	}
	a.idleSince = now
	arm := !a.idleArmed && o.runner == nil && len(a.blockers) == 0
	if arm {
		a.idleArmed = true
	}
	o.mu.Unlock()
	if arm {
		o.class.reg.timers.Set(&a.idle, o.class.reg.cfg.IdleTimeout)
	}
}

// rest is settle after output was released that was nobody's turn: it does not count as a use of the instance.
func (o *Object) rest() {
	o.mu.Lock()
	if o.live == nil || o.act != nil {
		o.mu.Unlock()
		return
	}
	o.restLocked()
}

// restLocked is settle for an object without an instance: it lets go of what only
// an object that does something needs, and of the record if nobody needs that. It
// unlocks.
func (o *Object) restLocked() {
	if o.live != nil {
		if o.runner != nil || o.mail.first != nil || !o.gate.Quiet() {
			o.mu.Unlock()
			return
		}
		o.live = nil
	}
	gone := !o.removed && o.sockets.Len() == 0
	if gone {
		o.removed = true
	}
	o.mu.Unlock()
	if gone {
		sh := o.class.reg.shard(o.id)
		sh.mu.Lock()
		sh.objects.remove(o.id)
		sh.mu.Unlock()
		o.class.reg.stats.records.Add(-1)
		o.class.counts.records.Add(-1)
	}
}

// idleCheck runs when a's idle time may be over.
func (o *Object) idleCheck(a *Activation) {
	o.mu.Lock()
	a.idleArmed = false
	o.bringLocked()
	if o.act != a || o.runner != nil || len(a.blockers) > 0 || o.mail.first != nil {
		o.mu.Unlock() // settle comes when it ends
		return
	}
	if left := o.class.reg.cfg.IdleTimeout - o.class.reg.cfg.Clock.Now().Sub(a.idleSince); left > 0 {
		a.idleArmed = true
		o.mu.Unlock()
		o.class.reg.timers.Set(&a.idle, left)
		return
	}
	o.dropLocked()
	o.mu.Unlock()
	o.hibernated(a)
	o.settle()
}

// dropLocked lets go of the instance. The caller calls hibernated after unlocking.
func (o *Object) dropLocked() { o.act = nil }

// hibernated ends an activation that left nothing behind.
func (o *Object) hibernated(a *Activation) {
	o.class.reg.stats.hibernated.Add(1)
	o.unmade(a)
	a.end(ErrReset)
}

func (o *Object) addBlocker(a *Activation, kind BlockerKind, name string) *Blocker {
	b := &Blocker{Kind: kind, Name: name, Since: o.class.reg.cfg.Clock.Now()}
	o.mu.Lock()
	a.blockers[b] = struct{}{}
	o.mu.Unlock()
	return b
}

func (o *Object) dropBlocker(a *Activation, b *Blocker) {
	o.mu.Lock()
	delete(a.blockers, b)
	o.mu.Unlock()
	o.class.reg.revoked.gone(b)
	o.settle()
}

// fall takes the instance away from everybody who still uses it. Handlers that
// come back from Await meet cause. With cut, the sockets go too: that is a reset
// (semantics 10.5). Either way the next event constructs anew.
func (o *Object) fall(a *Activation, cause error, cut bool) {
	o.mu.Lock()
	o.bringLocked()
	if o.act != a {
		o.mu.Unlock()
		return
	}
	o.act = nil
	falling := new(runner) // the handler that runs now, if any, has lost its right
	o.runner = falling     // and nobody has it until everything is taken back
	var sockets []*socket.Socket
	var lost []*Work
	if cut {
		sockets = o.takeSocketsLocked()
	}
	for w := o.mail.first; w != nil; {
		next := w.next
		if w.resume != nil || cut && w.sock != nil {
			o.mail.remove(w)
			if w.resume != nil {
				lost = append(lost, w)
			}
		}
		w = next
	}
	o.mu.Unlock()

	// Counted before anybody is told.
	o.unmade(a)
	o.countSockets(-len(sockets))
	if cut {
		o.class.reg.stats.resets.Add(1)
	}
	running := a.end(cause)
	o.revoke(a)
	o.mu.Lock()
	o.bringLocked()
	if o.runner == falling {
		o.runner = nil
	}
	o.mu.Unlock()
	for _, t := range running {
		o.finish(t.work, resetError(cause))
	}
	for _, w := range lost {
		w.resume.resumed <- struct{}{} // it finds its activation ended
	}
	for _, s := range sockets {
		s.Cut()
	}
	o.mu.Lock()
	o.bringLocked()
	next := o.claimLocked()
	o.mu.Unlock()
	next.start(o)
	if next == nil {
		o.settle()
	}
}

// takeSocketsLocked empties the object of sockets and of what belongs to them.
func (o *Object) takeSocketsLocked() []*socket.Socket {
	var all []*socket.Socket
	for s := range o.sockets.OldestFirst() {
		all = append(all, s)
	}
	for _, s := range all {
		o.sockets.Remove(s)
	}
	o.rare.Store(nil)
	return all
}

// detachSockets empties the object of sockets for a farewell.
func (o *Object) detachSockets() []*socket.Socket {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.takeSocketsLocked()
}

// kill ends the object for good: queued work fails with err.
func (o *Object) kill(err error) {
	o.mu.Lock()
	o.bringLocked()
	a := o.act
	var failed []*Work
	for w := o.mail.first; w != nil; {
		next := w.next
		if w.resume == nil {
			o.mail.remove(w)
			failed = append(failed, w)
		}
		w = next
	}
	o.mu.Unlock()
	for _, w := range failed {
		o.finish(w, err)
	}
	if a != nil {
		o.fall(a, err, true)
		return
	}
	o.mu.Lock()
	sockets := o.takeSocketsLocked()
	o.mu.Unlock()
	for _, s := range sockets {
		s.Cut()
	}
	o.countSockets(-len(sockets))
	o.settle()
}

// countSockets counts n more sockets, or fewer.
func (o *Object) countSockets(n int) {
	o.class.reg.sockets.Add(int64(n))
	o.class.counts.sockets.Add(int64(n))
}

// Deliver takes an event of one of the object's sockets.
func (o *Object) Deliver(s *socket.Socket, e socket.Event) bool {
	if !o.class.Behavior.HandlesSocket(e.Kind) {
		if e.Kind != socket.Message {
			o.removeSocket(s)
			o.settle()
		}
		return false
	}
	w := newEvent(o.count(e.Kind), s, e)
	o.class.reg.lives.add() // as in Serve
	defer o.class.reg.lives.done()
	if o.class.reg.closing.Load() {
		return true // unanswered; the farewell comes
	}
	o.mu.Lock()
	if !socket.Listed(s) {
		o.mu.Unlock()
		return false // cut, or taken back: nobody waits for its events
	}
	o.bringLocked()
	if most := o.class.reg.cfg.WaitingBytes; most > 0 && o.mail.kib > 0 && int64(o.mail.kib+w.kib()) > most>>10 {
		got := int64(o.mail.kib+w.kib()) << 10
		o.mu.Unlock()
		s.Refuse(limit.WaitingBytes, 1013, most, got)
		return true
	}
	o.mail.push(w)
	run := o.claimLocked()
	o.mu.Unlock()
	run.start(o)
	return true
}

// AutoResponse finds the answer to text and notes the time (semantics 7).
func (o *Object) AutoResponse(s *socket.Socket, text []byte) ([]byte, bool) {
	auto := o.AutoResponses()
	for i := range auto {
		if auto[i].Request == string(text) {
			s.SetAnswered(o.class.reg.cfg.Clock.Now())
			o.class.reg.stats.autoResponses.Add(1)
			return auto[i].frame, true
		}
	}
	return nil, false
}

// Hold queues a frame of the runtime's own behind everything that is held.
func (o *Object) Hold(s *socket.Socket, f socket.Frame) {
	if l := o.outlet(); l != nil {
		l.gate.Hold(output{sock: s, frame: f})
		o.rest()
	} else {
		s.Emit(f)
	}
}

// HoldBehindTurn is Hold, behind what a turn under way has sent too.
func (o *Object) HoldBehindTurn(s *socket.Socket, f socket.Frame) {
	a := o.activation()
	if a == nil {
		o.Hold(s, f)
		return
	}
	out := output{sock: s, frame: f, own: true}
	a.mu.Lock()
	if a.ended == nil && len(a.outs) > 0 {
		a.outs = append(a.outs, out)
	} else {
		a.live.gate.Append(out)
	}
	a.mu.Unlock()
	a.live.gate.Drain()
	o.rest()
}

// Busy counts work that Quiet waits for.
func (o *Object) Busy(delta int) { o.class.reg.busy.Add(int64(delta)) }

// release lets one output go. The gate calls it, one at a time.
func (l *live) release(out output, err error) {
	if out.undelivered != 0 || out.frames != 0 {
		l.undelivered.Add(-out.undelivered)
		l.frames.Add(-out.frames)
	}
	if out.counts() {
		return
	}
	if out.all != nil {
		if err == nil {
			for _, s := range out.all {
				s.Emit(out.frame)
			}
		}
		return
	}
	if out.sock == nil {
		l.released() // whoever is told may cut the sockets
		if out.work != nil {
			l.obj.finish(out.work, err)
		} else {
			out.done(err)
		}
		return
	}
	if err == nil && out.sock.Queue(out.frame) {
		l.flush = append(l.flush, out.sock)
	}
}

// released writes what release has queued.
func (l *live) released() {
	for i, s := range l.flush {
		s.Flush()
		l.flush[i] = nil
	}
	if cap(l.flush) > 64 {
		l.flush = nil
	} else {
		l.flush = l.flush[:0]
	}
}

// removeSocket takes s out of the list and reports whether it was in.
func (o *Object) removeSocket(s *socket.Socket) bool {
	o.mu.Lock()
	was := o.sockets.Remove(s)
	o.mu.Unlock()
	if was {
		o.countSockets(-1)
	}
	return was
}

// Sockets are the object's sockets: without tags the newest first, with tags
// those that have all of them, the oldest first (semantics 2.1).
func (o *Object) Sockets(tags []string) []*socket.Socket {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(tags) == 0 {
		all := make([]*socket.Socket, 0, o.sockets.Len())
		for s := range o.sockets.NewestFirst() {
			all = append(all, s)
		}
		return all
	}
	var all []*socket.Socket
	for s := range o.sockets.OldestFirst() {
		if s.Tags().HasAll(tags) {
			all = append(all, s)
		}
	}
	return all
}

// AutoResponses are the pairs in force. The slice must not be changed.
func (o *Object) AutoResponses() []Pair {
	if r := o.rare.Load(); r != nil {
		return r.auto
	}
	return nil
}

// EventTimeout bounds each socket event; 0: it does not.
func (o *Object) EventTimeout() time.Duration {
	if r := o.rare.Load(); r != nil {
		return r.timeout
	}
	return 0
}
