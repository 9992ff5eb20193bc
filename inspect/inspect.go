// Package inspect shows what a runtime holds as pages for the people who run it: its
// classes, the objects in memory and asleep, what woke them, what keeps them awake, their
// WebSockets with tags and attachments, and how long commits take.
//
//	mux.Handle("/debug/hibernate/", adminsOnly(inspect.Handler(rt)))
//
// The pages show names, tags and attachments of everybody's objects: mount them where
// only those come who may see that. They change nothing, wake no object, and work
// without scripts. The page of a million objects costs no more than that of a thousand:
// it looks at [MaxScan] objects at most.
package inspect

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"iter"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/hibernate-go/hibernate"
)

// MaxScan is how many objects one page looks at to find those that it shows. If they
// are not enough the page says so and has a link that goes on.
const MaxScan = 20_000

const (
	objectsPerPage = 50
	socketsPerPage = 50
	readTime       = 2 * time.Second // for what is read from storage
	refresh        = 2               // seconds
)

//go:embed page
var files embed.FS

// A handler serves the pages of one runtime. It is immutable.
type handler struct {
	rt     *hibernate.Runtime
	pages  *template.Template
	assets map[string]asset
}

type asset struct {
	content   []byte
	mediaType string
	tag       string
}

// Handler returns the pages of rt. Their links are relative, so it may be mounted at any
// path that ends in a slash. Only GET and HEAD are answered, and nothing that is asked for
// changes anything. Requests from outside should not get here: see the package doc.
func Handler(rt *hibernate.Runtime) http.Handler {
	h := &handler{rt: rt, assets: map[string]asset{}}
	h.pages = template.Must(template.New("").Funcs(template.FuncMap{
		"ago": ago, "lasted": func(now, since time.Time) string { return span(max(now.Sub(since), 0)) }, "took": took, "number": number, "short": short, "plural": plural,
		"arguments": func(o objectRow, now time.Time) any { return rowArguments{o, now} },
	}).ParseFS(files, "page/*.html"))
	for name, mediaType := range map[string]string{"style.css": "text/css; charset=utf-8", "live.js": "text/javascript; charset=utf-8"} {
		b, err := files.ReadFile("page/" + name)
		if err != nil {
			panic("BUG: " + err.Error()) // it is embedded
		}
		sum := sha256.Sum256(b)
		h.assets[name] = asset{b, mediaType, `"` + hex.EncodeToString(sum[:8]) + `"`}
	}
	return h
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "+
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "these pages are read only", http.StatusMethodNotAllowed)
		return
	}
	name := path.Base(r.URL.Path)
	if a, ok := h.assets[name]; ok {
		header.Set("Content-Type", a.mediaType)
		header.Set("Cache-Control", "no-cache")
		header.Set("ETag", a.tag)
		http.ServeContent(w, r, name, time.Time{}, strings.NewReader(string(a.content)))
		return
	}
	header.Set("Cache-Control", "no-store")
	switch {
	case strings.HasSuffix(r.URL.Path, "/") || r.URL.Path == "":
		h.render(w, "overview.html", h.overview(r))
	case name == "object":
		if p := h.object(r); p != nil {
			h.render(w, "object.html", p)
			return
		}
		http.Error(w, "no class has an object of this id", http.StatusNotFound)
	default:
		http.NotFound(w, r)
	}
}

// render writes a page whole or not at all.
func (h *handler) render(w http.ResponseWriter, name string, data any) {
	var b strings.Builder
	if err := h.pages.ExecuteTemplate(&b, name, data); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(b.String())) // a client that has left
}

// top is what all pages have.
type top struct {
	Title   string
	Now     time.Time
	Live    bool
	Refresh int
	Toggle  string // link to the same page, live or not
	Dead    error  // why the runtime has ended
}

func (h *handler) top(r *http.Request, title string) top {
	t := top{Title: title, Now: time.Now(), Live: r.FormValue("live") != "off", Refresh: refresh}
	q := r.URL.Query()
	if t.Live {
		q.Set("live", "off")
	} else {
		q.Del("live")
	}
	t.Toggle = "?" + q.Encode()
	select {
	case <-h.rt.Done():
		if t.Dead = h.rt.Err(); t.Dead == nil {
			t.Dead = fmt.Errorf("it was closed")
		}
	default:
	}
	return t
}

// An overview is the first page.
type overview struct {
	top
	Stats   hibernate.Stats
	Classes []classRow
	Causes  []hibernate.Cause
	Timed   bool // turns are
	Refused []refusal

	Class, Name, State string // the filter
	States             []string
	Exact              []objectRow // objects whose name is the filter's, in memory or not
	Objects            []objectRow
	Filtered           bool
	Scanned            int    // objects looked at, if they were not all
	Next, First        string // links; empty if there is nothing
}

type classRow struct {
	Name  string
	Stats hibernate.ClassStats
	Link  string
}

type refusal struct {
	Limit string
	Count uint64
}

type objectRow struct {
	hibernate.ObjectInfo
	Phase hibernate.Phase // "memory" if it is not known more exactly
	Link  string
}

// rowArguments are what the template of a row needs.
type rowArguments struct {
	Row objectRow
	Now time.Time
}

// MeanSync is how long a sync takes.
func (p *overview) MeanSync() time.Duration {
	return p.Stats.SyncTime / time.Duration(max(p.Stats.Syncs, 1))
}

// Grouped is how many commits share a sync.
func (p *overview) Grouped() float64 {
	return float64(p.Stats.Commits) / float64(max(p.Stats.Syncs, 1))
}

// The states that the filter knows.
const (
	stateAny     = ""
	stateMemory  = "memory"
	stateBlocked = "blocked"
	stateAsleep  = "asleep"
)

func (h *handler) overview(r *http.Request) *overview {
	p := &overview{
		top: h.top(r, "Objects"), Stats: h.rt.Stats(), Causes: hibernate.Causes(),
		Class: r.FormValue("class"), Name: r.FormValue("name"), State: r.FormValue("state"),
		States: []string{stateMemory, stateBlocked, stateAsleep},
	}
	for _, n := range h.rt.Namespaces() {
		c := classRow{Name: n.Class(), Stats: n.Stats(), Link: link("./", "class", n.Class())}
		p.Timed = p.Timed || c.Stats.TurnTime.Count() > 0
		p.Classes = append(p.Classes, c)
	}
	for limit, n := range p.Stats.Refused.All() {
		if n > 0 {
			p.Refused = append(p.Refused, refusal{limit, n})
		}
	}
	p.Filtered = p.Class != "" || p.Name != "" || p.State != stateAny
	after, _ := h.parseID(r.FormValue("after"))
	if after == (hibernate.ID{}) {
		p.exact(r.Context(), h.rt)
	} else {
		p.First = link("./", "class", p.Class, "name", p.Name, "state", p.State)
	}
	list := h.rt.Resident(after)
	if p.State == stateMemory || p.State == stateBlocked {
		list = h.rt.Awake(after)
	}
	p.find(list)
	return p
}

// exact finds the objects that have the name of the filter, also those that nothing in
// memory knows of.
func (p *overview) exact(ctx context.Context, rt *hibernate.Runtime) {
	if p.Name == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	for _, n := range rt.Namespaces() {
		if p.Class != "" && p.Class != n.Class() {
			continue
		}
		in, err := rt.Inspect(ctx, n.IDFromName(p.Name))
		if err != nil || in.Phase != hibernate.PhaseStored {
			continue // those with something in memory are in the list
		}
		p.Exact = append(p.Exact, row(hibernate.ObjectInfo{ID: in.ID, Class: in.Class, Name: in.Name}, in.Phase))
	}
}

// find fills a page with the objects that the filter lets through.
func (p *overview) find(list iter.Seq[hibernate.ObjectInfo]) {
	scanned := 0
	var last hibernate.ID
	name := strings.ToLower(p.Name)
	next := func() string {
		return link("./", "class", p.Class, "name", p.Name, "state", p.State, "after", last.String())
	}
	for o := range list {
		if scanned == MaxScan {
			p.Scanned, p.Next = scanned, next()
			return
		}
		scanned++
		if p.passes(&o, name) {
			if len(p.Objects) == objectsPerPage {
				p.Next = next()
				return
			}
			phase := hibernate.PhaseHibernated
			switch {
			case o.Blockers > 0:
				phase = hibernate.PhaseBlocked
			case o.InMemory:
				phase = stateMemory
			}
			p.Objects = append(p.Objects, row(o, phase))
		}
		last = o.ID
	}
}

func row(o hibernate.ObjectInfo, phase hibernate.Phase) objectRow {
	return objectRow{o, phase, link("object", "id", o.ID.String())}
}

// passes reports whether the filter lets o through. name is the filter's in lower case.
func (p *overview) passes(o *hibernate.ObjectInfo, name string) bool {
	switch p.State {
	case stateMemory:
		if !o.InMemory {
			return false
		}
	case stateBlocked:
		if o.Blockers == 0 {
			return false
		}
	case stateAsleep:
		if o.InMemory {
			return false
		}
	}
	if p.Class != "" && p.Class != o.Class {
		return false
	}
	return name == "" || strings.Contains(strings.ToLower(o.Name), name) ||
		strings.Trim(name, "0123456789abcdef") == "" && strings.HasPrefix(o.ID.String(), name)
}

// An object is the page of one.
type object struct {
	top
	hibernate.Inspection
	Failed     error // why storage could not be read
	Sockets    []socketRow
	From       int // index of the first socket shown
	Prev, Next string
}

type socketRow struct {
	State      string
	Tags       []string
	Attachment string
	Unsent     int64     // bytes that the peer has not taken
	Answered   time.Time // by an auto-response
}

// object is nil if no class can have an object of the id that is asked for.
func (h *handler) object(r *http.Request) *object {
	id, ok := h.parseID(r.FormValue("id"))
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), readTime)
	defer cancel()
	p := &object{}
	p.Inspection, p.Failed = h.rt.Inspect(ctx, id)
	title := p.Name
	if title == "" {
		title = short(id)
	}
	p.top = h.top(r, title)
	if from, err := strconv.Atoi(r.FormValue("from")); err == nil && from > 0 && from < len(p.WebSockets) {
		p.From = from
	}
	self := func(from int) string { return link("object", "id", id.String(), "from", strconv.Itoa(from)) }
	if p.From > 0 {
		p.Prev = self(max(p.From-socketsPerPage, 0))
	}
	shown := p.WebSockets[p.From:]
	if len(shown) > socketsPerPage {
		shown = shown[:socketsPerPage]
		p.Next = self(p.From + socketsPerPage)
	}
	for _, ws := range shown {
		s := socketRow{
			State: [...]string{"", "open", "closing", "closed"}[ws.ReadyState()],
			Tags:  ws.Tags(), Attachment: attachment(ws), Unsent: ws.BufferedAmount(), Answered: ws.AutoResponseTime(),
		}
		p.Sockets = append(p.Sockets, s)
	}
	return p
}

// First is the number of the first socket shown, from 1.
func (p *object) First() int { return p.From + 1 }

// To is the index behind the last socket shown.
func (p *object) To() int { return p.From + len(p.Sockets) }

// parseID finds the ID whose String is s.
func (h *handler) parseID(s string) (hibernate.ID, bool) {
	if s == "" {
		return hibernate.ID{}, false
	}
	for _, n := range h.rt.Namespaces() {
		if id, err := n.IDFromString(s); err == nil {
			return id, true
		}
	}
	return hibernate.ID{}, false
}

// link is a relative one, with those of the given pairs that are not empty.
func link(to string, pairs ...string) string {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	if len(q) > 0 {
		to += "?" + q.Encode()
	}
	return to
}
