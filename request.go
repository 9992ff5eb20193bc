package hibernate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// ServeHTTP hands a request to the object's ServeHTTP, in a turn, and writes its
// answer once the turn is durable. The request's context in the object is the
// turn; it carries the values of r's.
//
// An upgrade request is checked before the object is woken (426, 400, 403). The
// body of others is read before the turn begins, up to [Limits].RequestBody (413).
// A client that leaves while its request waits for a turn is forgotten; one that
// leaves later does not cancel the turn. A class without ServeHTTP accepts
// upgrades and answers anything else 426. Failures are answered by
// [ClassOptions].ErrorHandler.
func (s Stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := s.class
	if c == nil { // nobody who would log it
		http.Error(w, s.check().Error(), http.StatusInternalServerError)
		return
	}
	if !c.reachable(w, r, s) {
		return
	}
	if !c.http {
		c.join(w, r, &Join{Object: s})
		return
	}
	var body []byte
	var err error
	if wire.IsUpgrade(r) {
		if !c.checkUpgrade(w, r) {
			return
		}
	} else if r.Body != nil && r.Body != http.NoBody {
		if body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, c.rt.opt.Limits.RequestBody)); err != nil {
			if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
				err = errors.Join(c.rt.refused.Refuse(limit.RequestBody, tooLarge.Limit, max(r.ContentLength, tooLarge.Limit+1)), err)
			}
			c.fail(w, r, err)
			return
		}
	}
	res := &response{class: c, request: r, header: http.Header{}, changed: make(chan struct{}, 1)}
	work := &registry.Work{
		Cause:  registry.CauseRequest,
		Values: r.Context(),
		Run: func(t *registry.Turn, instance any) error {
			res.turn = t
			q := r.WithContext(t)
			q.Body = http.NoBody
			if body != nil {
				q.Body = io.NopCloser(bytes.NewReader(body))
			}
			instance.(http.Handler).ServeHTTP(res, q)
			res.handlerReturned()
			return nil
		},
	}
	if t := registry.TurnOf(r.Context()); t != nil { // one object asks another
		err = c.rt.reg.Call(r.Context(), c.reg, s.id.key, s.name, work)
		if err == nil {
			res.answer(w, r)
		}
	} else {
		err = s.serve(w, r, res, work)
	}
	if err != nil {
		if res.started {
			panic(http.ErrAbortHandler) // the answer cannot be completed
		}
		c.fail(w, r, err)
	}
}

// serve posts work and writes its answer. It returns an error if there is none.
func (s Stub) serve(w http.ResponseWriter, r *http.Request, res *response, work *registry.Work) error {
	c := s.class
	done := make(chan error, 1)
	work.Done = func(err error) { done <- err }
	if err := c.rt.reg.Post(c.reg, s.id.key, s.name, work); err != nil {
		return err
	}
	left := r.Context().Done()
	for {
		select {
		case <-res.changed:
			res.writeTo(w)
			continue
		case err := <-done:
			if err != nil {
				return err
			}
		case <-left:
			if c.rt.reg.Withdraw(s.id.key, work) {
				return nil // nobody to answer
			}
			left = nil
			continue
		}
		break
	}
	res.answer(w, r)
	return nil
}

// answer writes the answer, or the rest of it, after the turn.
func (res *response) answer(w http.ResponseWriter, r *http.Request) {
	if res.sock != nil {
		res.class.upgrade(w, r, res.sock, *res.upgrade)
		return
	}
	res.mu.Lock()
	res.ready, res.body = append(res.ready, res.body...), nil
	res.mu.Unlock()
	res.writeTo(w)
}

// A response is the ResponseWriter that an object's ServeHTTP gets. What it is
// given waits for the turn.
type response struct {
	class   *class
	request *http.Request
	turn    *registry.Turn // set before the handler runs
	changed chan struct{}  // something may be written; capacity 1

	mu      sync.Mutex // guards the following
	header  http.Header
	status  int // 0: none yet
	body    []byte
	sock    *socket.Socket
	upgrade *upgrade
	leaving bool        // ready may be written
	sent    http.Header // as of the first Flush or the end
	ready   []byte      // durable, not written

	started bool // owned by the goroutine of the request: the head was written
}

// responseOf finds the response in w.
func responseOf(w http.ResponseWriter) *response {
	for {
		if res, ok := w.(*response); ok {
			return res
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return nil
		}
		w = u.Unwrap()
	}
}

func (res *response) Header() http.Header { return res.header }

func (res *response) WriteHeader(status int) {
	res.mu.Lock()
	defer res.mu.Unlock()
	if res.status == 0 && status >= 200 {
		res.status = status
		if res.sent == nil {
			res.sent = res.header.Clone()
		}
	}
}

func (res *response) Write(p []byte) (int, error) {
	if err := res.turn.Check(); err != nil {
		return 0, err
	}
	res.WriteHeader(http.StatusOK)
	res.mu.Lock()
	defer res.mu.Unlock()
	rt := res.class.rt
	if n := int64(len(res.body) + len(res.ready) + len(p)); n > rt.opt.Limits.Response {
		return 0, rt.refused.Refuse(limit.Response, rt.opt.Limits.Response, n)
	}
	res.body = append(res.body, p...)
	return len(p), nil
}

// FlushError commits the turn so far, waits until it is durable and sends what
// was written. http.ResponseController finds it. Inside a transaction, which
// cannot be committed by half, it is ErrState.
func (res *response) FlushError() error {
	if res.turn.Activation().Store.InSavepoint() {
		return fmt.Errorf("%w: Flush inside a transaction", ErrState)
	}
	res.WriteHeader(http.StatusOK)
	res.mu.Lock()
	if res.sock != nil {
		res.mu.Unlock()
		return errors.New("request was accepted as a WebSocket")
	}
	body := res.body
	res.body = nil
	res.mu.Unlock()
	durable := make(chan error, 1)
	err := res.turn.Flush(func(err error) {
		if err == nil {
			res.release(body)
		}
		durable <- err
	})
	if err != nil {
		return err
	}
	return <-durable
}

// Flush is FlushError for http.Flusher.
func (res *response) Flush() { _ = res.FlushError() }

// release lets body go to the client.
func (res *response) release(body []byte) {
	res.mu.Lock()
	res.ready = append(res.ready, body...)
	res.leaving = true
	res.mu.Unlock()
	select {
	case res.changed <- struct{}{}:
	default:
	}
}

// handlerReturned runs at the end of the handler, still in its turn.
func (res *response) handlerReturned() {
	res.mu.Lock()
	sock := res.sock
	refused := sock != nil && res.status != 0 && res.status != http.StatusSwitchingProtocols
	if refused {
		res.sock = nil
	}
	if res.sock == nil {
		if res.status == 0 {
			res.status = http.StatusOK
		}
		if res.sent == nil {
			res.sent = res.header.Clone()
		}
	}
	res.mu.Unlock()
	if refused {
		registry.Unlist(sock)
	}
}

// writeTo writes what may be written. It runs on the goroutine of the request.
func (res *response) writeTo(w http.ResponseWriter) {
	res.mu.Lock()
	body, flush := res.ready, res.leaving
	res.ready, res.leaving = nil, false
	head, status := res.sent, res.status
	res.mu.Unlock()
	if !res.started {
		res.started = true
		for name, values := range head {
			w.Header()[name] = values
		}
		w.WriteHeader(status)
	}
	if len(body) > 0 {
		_, _ = w.Write(body) // a client that has left
	}
	if flush {
		_ = http.NewResponseController(w).Flush()
	}
}
