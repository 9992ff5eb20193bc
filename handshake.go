package hibernate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/hibernate-go/hibernate/internal/accept"
	"github.com/hibernate-go/hibernate/internal/limit"
	"github.com/hibernate-go/hibernate/internal/registry"
	"github.com/hibernate-go/hibernate/internal/socket"
	"github.com/hibernate-go/hibernate/internal/wire"
)

// A Handshake is what a [Route] knows of a request. It is valid until the Route returns.
type Handshake struct {
	r *http.Request   // nil at the acceptor
	q *accept.Request // nil in a Handler
}

// Path is the path of the request's URL, decoded.
func (h *Handshake) Path() string {
	if h.r == nil {
		return h.q.Head.Path()
	}
	return h.r.URL.Path
}

// PathValue is the value of a wildcard of the pattern that the request matched,
// as [net/http.Request.PathValue]. It is empty at the acceptor, where no pattern
// was matched: see [Runtime.WrapListener].
func (h *Handshake) PathValue(name string) string {
	if h.r == nil {
		return ""
	}
	return h.r.PathValue(name)
}

// Query are the parameters of the request's URL.
func (h *Handshake) Query() url.Values {
	if h.r == nil {
		values, _ := url.ParseQuery(h.q.Head.RawQuery()) // as (*url.URL).Query
		return values
	}
	return h.r.URL.Query()
}

// Header is the request's header. It must not be changed.
func (h *Handshake) Header() http.Header {
	if h.r == nil {
		return h.q.HTTP().Header
	}
	return h.r.Header
}

// Host is the host that the request names, with its port if it has one.
func (h *Handshake) Host() string {
	if h.r == nil {
		return h.q.Head.Host()
	}
	return h.r.Host
}

// RemoteAddr is the peer's address as "host:port": behind a proxy, the proxy's.
func (h *Handshake) RemoteAddr() string {
	if h.r == nil {
		return h.q.RemoteAddr()
	}
	return h.r.RemoteAddr
}

// Context is the request's context, with what the middleware before the Handler has put
// into it. At the acceptor it is [context.Background].
func (h *Handshake) Context() context.Context {
	if h.r == nil {
		return context.Background()
	}
	return h.r.Context()
}

// A Route decides which object a request is for. It runs before any object is
// woken, may run concurrently, and is the place to authorise. Its error is the
// answer: the status and text of a [Refuse]; 400 for [ErrInvalid], such as that of
// [Namespace.IDFromString], for a name that is too long, and for a subprotocol that the
// client did not offer. Any other is logged, and answered by [ClassOptions].ErrorHandler,
// without one by status 500; so is a Join that cannot be, because of its Object, Tags,
// Attachment or Header. The Handshake is valid until the Route returns.
type Route func(*Handshake) (Join, error)

// A Join says which object a request is for, and for an object without ServeHTTP
// how its WebSocket is to be accepted.
type Join struct {
	// Object is the object. It is required.
	Object Stub
	// Tags, Attachment and Protocol are those of the WebSocket, as in
	// [AcceptOptions], if the class has no ServeHTTP or SkipServeHTTP is set.
	Tags       []string
	Attachment any
	Protocol   string
	// Header goes with the 101 answer. Its names and values are checked.
	Header http.Header
	// Compression is that of [AcceptOptions].
	Compression bool
	// SkipServeHTTP has upgrades accepted without the object's ServeHTTP.
	SkipServeHTTP bool
}

// options are those of a WebSocket that the object is not asked about.
func (j *Join) options() AcceptOptions {
	return AcceptOptions{Tags: j.Tags, Attachment: j.Attachment, Protocol: j.Protocol, Compression: j.Compression}
}

// Refuse is an error that has a [Route]'s request answered with status, 400 to 599, and
// text, which is for the client to read. It is not logged.
func Refuse(status int, text string) error { return &refusal{status, text} }

type refusal struct {
	status int
	text   string
}

func (e *refusal) Error() string { return fmt.Sprintf("%d %s", e.status, e.text) }

// Handler serves what route decides: WebSocket upgrades and other requests.
//
// An upgrade request is checked first (426, 400 or 403 without waking anybody).
// A class with ServeHTTP gets the request there and accepts it with
// [State.AcceptWebSocket]. Without, the socket joins the object as the Join says,
// without constructing an instance, and requests that are no upgrades are
// answered 426.
func (n *Namespace) Handler(route Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		join, err := route(&Handshake{r: r})
		if err != nil {
			n.class.refuse(w, r, err)
			return
		}
		if !n.class.reachable(w, r, join.Object) {
			return
		}
		c := join.Object.class
		if c.http && !(join.SkipServeHTTP && wire.IsUpgrade(r)) {
			join.Object.ServeHTTP(w, r)
			return
		}
		c.join(w, r, &join)
	})
}

// reachable reports whether there can be an object of s, and answers the request if not.
func (c *class) reachable(w http.ResponseWriter, r *http.Request, s Stub) bool {
	if err := s.checkClass(); err != nil {
		c.mistaken(w, r, err)
		return false
	}
	if err := s.checkName(); err != nil {
		c.refuse(w, r, err)
		return false
	}
	return true
}

// refuse answers a request whose route failed, or that asks for what it cannot have.
func (c *class) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var refused *refusal
	var limit *LimitError
	switch {
	case errors.As(err, &refused):
		http.Error(w, refused.text, refused.status)
	case errors.As(err, &limit) && limit.Limit == limitName, errors.Is(err, ErrInvalid):
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		c.mistaken(w, r, err)
	}
}

// mistaken answers a request whose route has failed through no fault of the client's, which
// therefore is not told how.
func (c *class) mistaken(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil { // else the client has left, and that may be why
		c.rt.log.Error("route failed", "class", c.name, "path", r.URL.Path, "err", err)
	}
	c.fail(w, r, err)
}

// fail answers a request that failed.
func (c *class) fail(w http.ResponseWriter, r *http.Request, err error) {
	if c.opt.ErrorHandler != nil {
		c.opt.ErrorHandler(w, r, err)
		return
	}
	status := http.StatusInternalServerError
	var limit *LimitError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, ErrUnavailable):
		status = http.StatusServiceUnavailable
	case errors.As(err, &tooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.As(err, &limit) && limit.Overload():
		status = http.StatusServiceUnavailable
	}
	http.Error(w, http.StatusText(status), status)
}

// checkUpgrade answers an upgrade request that must not go on, and reports
// whether it may.
func (c *class) checkUpgrade(w http.ResponseWriter, r *http.Request) bool {
	if bad := wire.CheckHandshake(r); bad != nil {
		for name, values := range bad.Header {
			w.Header()[name] = values
		}
		http.Error(w, bad.Text, bad.Status)
		return false
	}
	if most := c.rt.opt.Limits.HandshakeBytes; headSize(r) > most {
		c.rt.refused.Count(limit.HandshakeBytes)
		http.Error(w, http.StatusText(http.StatusRequestHeaderFieldsTooLarge), http.StatusRequestHeaderFieldsTooLarge)
		return false
	}
	check := c.opt.CheckOrigin
	if check == nil {
		check = wire.SameOrigin
	}
	if !check(r) {
		http.Error(w, "origin not allowed", http.StatusForbidden)
		return false
	}
	if !hijackable(w) {
		http.Error(w, "the connection cannot be taken over: is a middleware hiding http.Hijacker?", http.StatusInternalServerError)
		return false
	}
	return true
}

// headSize is the number of bytes that the head of r takes in HTTP/1.1.
func headSize(r *http.Request) int {
	const separators = 4 // ": " and the line's end, or those of the request line
	n := len(r.Method) + len(r.RequestURI) + len(r.Proto) + separators + len("Host") + len(r.Host) + separators + 2
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v) + separators
		}
	}
	return n
}

// hijackable reports whether w, or what it wraps, can be hijacked.
func hijackable(w http.ResponseWriter) bool {
	for {
		if _, ok := w.(http.Hijacker); ok {
			return true
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return false
		}
		w = u.Unwrap()
	}
}

// join accepts an upgrade for an object without asking it.
func (c *class) join(w http.ResponseWriter, r *http.Request, j *Join) {
	if !c.checkUpgrade(w, r) {
		return
	}
	u, err := c.newUpgrade(offered{r}, j.options(), j.Header)
	switch {
	case errors.Is(err, errNotOffered):
		c.refuse(w, r, err)
		return
	case err != nil:
		c.mistaken(w, r, err)
		return
	}
	s, err := c.rt.reg.Join(c.reg, j.Object.id.key, j.Object.name, u.tags, u.attachment, u.window)
	if err != nil {
		c.fail(w, r, err)
		return
	}
	c.upgrade(w, r, s, u)
}

// AcceptOptions say how a WebSocket is accepted.
type AcceptOptions struct {
	// Tags are at most 10 distinct ones of at most 256 bytes (semantics 1.5, 1.6).
	Tags []string
	// Attachment is the first attachment, encoded at once, of at most
	// [Limits].Attachment bytes; nil is none.
	Attachment any
	// Protocol is the subprotocol, one of those that the client offered; empty is
	// none.
	Protocol string
	// Compression accepts permessage-deflate if the client offers it, as
	// [ClassOptions].Compression does for all WebSockets of the class.
	Compression bool
}

// An upgrade is an accepted handshake, ready to be answered.
type upgrade struct {
	tags       socket.Tags
	attachment []byte
	window     wire.Window
	protocol   string
	extension  string
	header     http.Header
}

// offers are what a client would like.
type offers interface {
	Offers(protocol string) bool
	OfferedDeflate() (w wire.Window, answer string)
}

// offered are the offers of a request that net/http has read.
type offered struct{ r *http.Request }

func (o offered) Offers(protocol string) bool {
	return slices.Contains(wire.OfferedProtocols(o.r), protocol)
}

func (o offered) OfferedDeflate() (w wire.Window, answer string) { return wire.OfferedDeflate(o.r) }

// errNotOffered is the fault of a client, if of a Join, and of the handler, if of AcceptOptions.
var errNotOffered = fmt.Errorf("%w: subprotocol was not offered", ErrInvalid)

func (c *class) newUpgrade(client offers, o AcceptOptions, header http.Header) (upgrade, error) {
	u := upgrade{protocol: o.Protocol, header: header}
	var err error
	if u.tags, err = newTags(o.Tags); err != nil {
		return u, err
	}
	if o.Attachment != nil {
		if u.attachment, err = c.encodeAttachment(o.Attachment); err != nil {
			return u, err
		}
	}
	if o.Protocol != "" && !client.Offers(o.Protocol) {
		return u, fmt.Errorf("%w: %q", errNotOffered, o.Protocol)
	}
	if o.Compression || c.opt.Compression {
		u.window, u.extension = client.OfferedDeflate()
	}
	return u, nil
}

// upgrade takes the connection over, answers 101 and connects s. If that fails s
// leaves its object without an event.
func (c *class) upgrade(w http.ResponseWriter, r *http.Request, s *socket.Socket, u upgrade) {
	response, err := wire.AppendSwitching(nil, r.Header.Get("Sec-WebSocket-Key"), u.protocol, u.extension, u.header)
	if err != nil {
		registry.Unlist(s)
		c.rt.log.Error("handshake cannot be answered", "class", c.name, "path", r.URL.Path, "err", err)
		c.fail(w, r, fmt.Errorf("%w: %w", ErrInvalid, err))
		return
	}
	if r.Context().Err() != nil {
		registry.Unlist(s)
		return
	}
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		registry.Unlist(s)
		c.fail(w, r, err)
		return
	}
	var early []byte
	if n := rw.Reader.Buffered(); n > 0 {
		early, _ = rw.Reader.Peek(n) // never fails: they are there
		early = early[:n:n]
	}
	// What the acceptor had read and net/http has not comes behind what net/http has.
	nc, unread := accept.Unwrap(nc)
	if err := s.Open(c.rt.conns, nc, response, append(early, unread...)); err != nil {
		registry.Unlist(s)
		c.upgradeFailed(s, err)
	}
}

// upgradeFailed says that the client of s has left before it was connected.
func (c *class) upgradeFailed(s *socket.Socket, err error) {
	o := s.Owner().(*registry.Object)
	c.rt.log.Debug("upgrade failed", "class", c.name, "id", ID{o.ID()}.String(), "name", o.Name(), "err", err)
}

// AcceptWebSocket accepts the upgrade request that ServeHTTP was called with. w and
// r are ServeHTTP's own, or wrap them; r's context is the turn. o may be nil.
//
// The socket is listed at once, and can be sent to. The connection is taken over
// and answered 101 when ServeHTTP has returned and its turn is durable: headers
// set until then go with the 101, frames sent before follow it. If ServeHTTP
// writes another status after all, panics, or the client has left by then, the
// socket goes without an event.
//
// A request that is no valid upgrade is answered here (426, 400; 403 for its
// origin). A *LimitError or [ErrInvalid] for the options leaves the request
// untouched, so that another accept or an answer may follow (semantics 1.7); without
// either the client is told 200. A second accept of one request is [ErrState].
func (s *State) AcceptWebSocket(w http.ResponseWriter, r *http.Request, o *AcceptOptions) (WebSocket, error) {
	t, err := s.turn(r.Context())
	if err != nil {
		return WebSocket{}, err
	}
	res := responseOf(w)
	if res == nil || res.turn != t {
		return WebSocket{}, fmt.Errorf("%w: the ResponseWriter is not that of this turn", ErrOutsideTurn)
	}
	if err := t.Check(); err != nil {
		return WebSocket{}, err
	}
	res.mu.Lock()
	used := res.sock != nil || res.status != 0
	res.mu.Unlock()
	if used {
		return WebSocket{}, fmt.Errorf("%w: the request was accepted or answered already", ErrState)
	}
	if !wire.IsUpgrade(res.request) { // else it was checked before the object was woken
		s.class.checkUpgrade(w, r)
		return WebSocket{}, fmt.Errorf("%w: not a WebSocket upgrade request", ErrInvalid)
	}
	if o == nil {
		o = &AcceptOptions{}
	}
	u, err := s.class.newUpgrade(offered{r}, *o, res.header)
	if err != nil {
		return WebSocket{}, err
	}
	sock, err := t.Accept(u.tags, u.attachment, u.window)
	if err != nil {
		return WebSocket{}, err
	}
	res.mu.Lock()
	res.sock, res.upgrade = sock, &u
	res.mu.Unlock()
	return WebSocket{sock}, nil
}
