package registry

import (
	"time"

	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/store"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// Send queues a frame of the current stretch for s.
func (t *Turn) Send(s *socket.Socket, f socket.Frame) error {
	t.act.mu.Lock()
	err := t.sendLocked(s, f)
	t.act.mu.Unlock()
	return err
}

func (t *Turn) sendLocked(s *socket.Socket, f socket.Frame) error {
	if err := t.checkLocked(); err != nil {
		return err
	}
	if ok, err := s.Sendable(); !ok {
		return err
	}
	if err := s.Room(len(f.Bytes)); err != nil {
		return err
	}
	if err := t.act.holdLocked(int64(len(f.Bytes))); err != nil {
		return err
	}
	t.act.outs = append(t.act.outs, output{sock: s, frame: f})
	return nil
}

// holdLocked counts n more bytes of the stretch.
func (a *Activation) holdLocked(n int64) error {
	size := a.outSize + n
	if err := a.live.holds(size); err != nil {
		return err
	}
	a.outSize = size
	return nil
}

// SendMessage is Send of a small message, whose frame is made in memory of the
// activation: at most [socket.MaxCopied] bytes of payload less the header.
func (t *Turn) SendMessage(s *socket.Socket, kind wire.Kind, payload []byte) error {
	a := t.act
	a.mu.Lock()
	from := len(a.buf)
	a.buf = wire.AppendFrame(a.buf, kind, payload)
	err := t.sendLocked(s, socket.Frame{Bytes: a.buf[from:len(a.buf):len(a.buf)]})
	if err != nil {
		a.buf = a.buf[:from]
	}
	a.mu.Unlock()
	return err
}

// SendAll queues a shared frame of the current stretch for many sockets.
func (t *Turn) SendAll(all []*socket.Socket, f socket.Frame) error {
	a := t.act
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := t.checkLocked(); err != nil {
		return err
	}
	if err := a.holdLocked(int64(len(f.Bytes))); err != nil {
		return err
	}
	a.outs = append(a.outs, output{all: all, frame: f})
	return nil
}

// CloseSocket closes s in the current stretch.
func (t *Turn) CloseSocket(s *socket.Socket, f socket.Frame) error {
	a := t.act
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := t.checkLocked(); err != nil {
		return err
	}
	if s.StartClose() {
		a.undo = append(a.undo, func(*Object) { s.UndoClose() })
		a.outs = append(a.outs, output{sock: s, frame: f})
	}
	return nil
}

// Send queues a frame behind everything the object has held.
func (x *Outside) Send(s *socket.Socket, f socket.Frame) error {
	if err := x.act.Ended(); err != nil {
		return err
	}
	if ok, err := s.Sendable(); !ok {
		return err
	}
	if err := s.Room(len(f.Bytes)); err != nil {
		return err
	}
	return x.hold(output{sock: s, frame: f})
}

// hold puts out behind everything the object has held, within the limit.
func (x *Outside) hold(out output) error {
	l, size := x.act.live, int64(len(out.frame.Bytes))
	if err := l.holds(size); err != nil {
		return err
	}
	l.hold(out, size)
	return nil
}

// holds is an error if size more bytes for sockets are too many to wait.
func (l *live) holds(size int64) error {
	cfg := &l.obj.class.reg.cfg
	if size += l.undelivered.Load(); cfg.Undelivered > 0 && size > cfg.Undelivered {
		return cfg.Refused.Refuse(limit.Undelivered, cfg.Undelivered, size)
	}
	return nil
}

// SendAll queues a shared frame for many sockets behind everything the object has held.
func (x *Outside) SendAll(all []*socket.Socket, f socket.Frame) error {
	if err := x.act.Ended(); err != nil {
		return err
	}
	return x.hold(output{all: all, frame: f})
}

// CloseSocket closes s behind everything the object has held.
func (x *Outside) CloseSocket(s *socket.Socket, f socket.Frame) error {
	if err := x.act.Ended(); err != nil {
		return err
	}
	if s.StartClose() {
		x.act.live.hold(output{sock: s, frame: f}, 0)
	}
	return nil
}

// SetAttachment replaces the attachment of s in the current stretch.
func (t *Turn) SetAttachment(s *socket.Socket, b []byte) error {
	return t.Use(func() error {
		before := s.SetAttachment(b)
		t.act.undo = append(t.act.undo, func(*Object) { s.SetAttachment(before) })
		return nil
	})
}

// SetAutoResponses replaces the pairs in the current stretch.
func (t *Turn) SetAutoResponses(pairs []Pair) error {
	return t.set(func(r *rare) { pairs, r.auto = r.auto, pairs })
}

// SetEventTimeout replaces the event timeout in the current stretch.
func (t *Turn) SetEventTimeout(d time.Duration) error {
	return t.set(func(r *rare) { d, r.timeout = r.timeout, d })
}

// set calls swap under the object's lock, and again to undo it.
func (t *Turn) set(swap func(*rare)) error {
	locked := func(o *Object) {
		o.mu.Lock()
		defer o.mu.Unlock()
		var r rare
		if old := o.rare.Load(); old != nil {
			r = *old
		}
		swap(&r)
		if r.auto == nil && r.timeout == 0 {
			o.rare.Store(nil)
		} else {
			o.rare.Store(&r)
		}
	}
	return t.Use(func() error {
		locked(t.act.obj)
		t.act.undo = append(t.act.undo, locked)
		return nil
	})
}

// Accept lists a new socket. It is not connected yet.
func (t *Turn) Accept(tags socket.Tags, attachment []byte, window wire.Window) (*socket.Socket, error) {
	o := t.act.obj
	s := socket.New(o, tags, attachment, window)
	err := t.Use(func() error {
		if err := o.list(s); err != nil {
			return err
		}
		t.act.undo = append(t.act.undo, func(o *Object) {
			if o.removeSocket(s) {
				s.Cut()
			}
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Join lists a new socket without a turn, and without waking the object.
func (r *Registry) Join(c *Class, id store.ID, name string, tags socket.Tags, attachment []byte, window wire.Window) (*socket.Socket, error) {
	for {
		if r.closing.Load() {
			return nil, ErrShutdown
		}
		o := r.object(c, id, name)
		s := socket.New(o, tags, attachment, window)
		if err := o.list(s); err != errRemoved {
			if err != nil {
				o.settle()
				return nil, err
			}
			return s, nil
		}
	}
}

// list adds s to the object's sockets, within the limits.
func (o *Object) list(s *socket.Socket) error {
	cfg := &o.class.reg.cfg
	if cfg.Pool.Crowded() {
		return cfg.Refused.Refuse(limit.Buffered, cfg.Pool.Limit, cfg.Pool.Len())
	}
	if n := o.class.reg.sockets.Add(1); cfg.Sockets > 0 && n > int64(cfg.Sockets) {
		o.class.reg.sockets.Add(-1)
		return cfg.Refused.Refuse(limit.Sockets, int64(cfg.Sockets), n)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.removed {
		o.class.reg.sockets.Add(-1)
		return errRemoved
	}
	if n := o.sockets.Len(); cfg.SocketsPerObject > 0 && n >= cfg.SocketsPerObject {
		o.class.reg.sockets.Add(-1)
		return cfg.Refused.Refuse(limit.SocketsPerObject, int64(cfg.SocketsPerObject), int64(n)+1)
	}
	o.sockets.Add(s)
	o.class.counts.sockets.Add(1)
	return nil
}

// Unlist takes back a socket that was accepted and never connected, without an
// event.
func Unlist(s *socket.Socket) {
	o := s.Owner().(*Object)
	if o.removeSocket(s) {
		o.settle()
	}
	s.Cut()
}
