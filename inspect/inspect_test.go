package inspect_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/inspect"
	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m, leak.Dead()...) }

// A room keeps what it is told to.
type room struct {
	state *hibernate.State
	free  chan struct{}
}

var (
	store = hibernate.NewMethod("store", func(r *room, ctx context.Context, v string) (bool, error) {
		return true, hibernate.Put(ctx, r.state.Storage(), "k", v)
	})
	work = hibernate.NewMethod("work", func(r *room, ctx context.Context, name string) (bool, error) {
		return true, r.state.WaitUntil(ctx, name, func(context.Context) { <-r.free })
	})
)

// A site is a runtime with rooms and its pages.
type site struct {
	t     *testing.T
	rt    *hibernate.Runtime
	rooms *hibernate.Namespace
	srv   *httptest.Server
	join  atomic.Pointer[hibernate.Join] // of the next connection
}

func newSite(t *testing.T) *site {
	rt, err := hibernate.Open("", &hibernate.Options{Logger: slog.New(slog.DiscardHandler), TurnTimes: true})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, rt: rt}
	free := make(chan struct{})
	s.rooms, err = hibernate.Register(rt, "Room", func(_ context.Context, st *hibernate.State) (*room, error) { return &room{st, free}, nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/ws/{name}", s.rooms.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
		join := *s.join.Load()
		join.Object = s.rooms.GetByName(h.PathValue("name"))
		return join, nil
	}))
	mux.Handle("/debug/hibernate/", inspect.Handler(rt))
	s.srv = httptest.NewServer(mux)
	t.Cleanup(func() {
		close(free)
		s.srv.Close()
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// connect opens a WebSocket to a room.
func (s *site) connect(name string, tags []string, attachment any) net.Conn {
	s.t.Helper()
	s.join.Store(&hibernate.Join{Tags: tags, Attachment: attachment})
	conn, _, _, err := ws.Dial(context.Background(), "ws"+strings.TrimPrefix(s.srv.URL, "http")+"/ws/"+url.PathEscape(name))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

func (s *site) call(m *hibernate.Method[*room, string, bool], name, arg string) {
	s.t.Helper()
	if _, err := m.Call(context.Background(), s.rooms.GetByName(name), arg); err != nil {
		s.t.Fatal(err)
	}
}

// get is the body of a page, which is whole and well-behaved.
func (s *site) get(path string) string {
	s.t.Helper()
	rec := httptest.NewRecorder()
	s.srv.Config.Handler.ServeHTTP(rec, httptest.NewRequest("GET", "/debug/hibernate/"+path, nil))
	body := rec.Body.String()
	if rec.Code != http.StatusOK || !strings.HasPrefix(rec.Header().Get("Content-Security-Policy"), "default-src 'none'; ") || rec.Header().Get("Cache-Control") != "no-store" {
		s.t.Fatalf("%s is %d with %v:\n%s", path, rec.Code, rec.Header(), body)
	}
	if !strings.Contains(body, "</html>") || inline.MatchString(body) {
		s.t.Fatalf("%s is not whole, or has inline code:\n%s", path, body)
	}
	return body
}

var inline = regexp.MustCompile(`(?i)<style|<script>|<[a-z][^>]*\s(style|on\w+)=|"javascript:`)

func (s *site) shows(body string, want ...string) {
	s.t.Helper()
	text := strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(body, " ")), " ")
	for _, w := range want {
		if !strings.Contains(text, w) {
			s.t.Errorf("the page does not show %q:\n%s", w, text)
		}
	}
}

// TestOverviewShowsObjectsByClassAndState, and finds those that are only stored by their name.
func TestOverviewShowsObjectsByClassAndState(t *testing.T) {
	s := newSite(t)
	s.shows(s.get(""), "Nothing is in memory and nobody is connected", "Room 0 0 0")
	s.connect("garden", nil, nil)
	s.call(store, "cellar", "beans")
	s.call(work, "kitchen", "boil water")
	all := s.get("")
	s.shows(all, "garden Room asleep 1", "cellar Room in memory 0", "kitchen Room blocked by 1 0", "by call", "Commits in a sync, mean 1.0")
	for query, want := range map[string]string{
		"state=asleep":                  "garden",
		"state=memory":                  "cellar kitchen",
		"state=blocked":                 "kitchen",
		"name=ITCH":                     "kitchen",
		"name=ITCH&state=asleep":        "",
		"class=Room&name=cell":          "cellar",
		"class=Else":                    "",
		"name=" + s.id("garden")[:10]:   "garden",
		"state=memory&after=nonsense":   "cellar kitchen",
		"name=%3Cscript%3E&class=%22'x": "",
	} {
		body := s.get("?" + query)
		for _, name := range []string{"garden", "cellar", "kitchen"} {
			if is := strings.Contains(body, `">`+name+`</a>`); is != strings.Contains(want, name) {
				t.Errorf("%s: %s is shown: %v", query, name, is)
			}
		}
	}
	if err := s.rt.Evict(context.Background(), s.rooms.IDFromName("cellar")); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second) // its record goes right behind its instance
	for strings.Contains(s.get(""), "cellar") {
		if time.Now().After(deadline) {
			t.Fatal("an object that is only stored is in the list of what is in memory")
		}
	}
	s.shows(s.get("?name=cellar"), "cellar Room stored 0")
	s.shows(s.get("?name=attic"), "Nothing here goes by that")
	if n := s.rt.Stats().Constructed; n != 2 {
		t.Errorf("%d instances were made: the pages wake objects", n)
	}
}

func (s *site) id(name string) string { return s.rooms.IDFromName(name).String() }

// TestObjectShowsWhyItIsAwake, its sockets and its state.
func TestObjectShowsWhyItIsAwake(t *testing.T) {
	s := newSite(t)
	page := func(name string) string { return s.get("object?id=" + s.id(name)) }
	s.shows(page("nobody"), "Nothing is known of it")
	s.connect("garden", []string{"admin", "eu"}, map[string]any{"who": "Ann", "since": time.Unix(0, 0).UTC(), "raw": []byte{1, 255}, "n": []int{1, 2}})
	s.connect("garden", nil, nil)
	s.shows(page("garden"), "garden asleep", "Room "+s.id("garden"), "WebSockets 2", "open admin eu {n: [1, 2], raw: 0x01ff, since: 1970-01-01T00:00:00Z, who: &#34;Ann&#34;}", "Its WebSockets stay connected")
	s.call(work, "garden", "water the <beans>")
	s.shows(page("garden"), "garden blocked", "Why it is in memory WaitUntil water the &lt;beans&gt; for 0 s", "Last woken now, by call", "Next alarm none", "0 outputs")
	s.call(store, "cellar", "x")
	s.shows(page("cellar"), "cellar idle", "Nothing keeps it")
}

// TestAttachmentsAreBoundedAndEscaped whatever clients put there.
func TestAttachmentsAreBoundedAndEscaped(t *testing.T) {
	s := newSite(t)
	deep := any("x")
	for range 20 {
		deep = []any{deep}
	}
	for i, v := range []any{"<script>alert(1)</script>", strings.Repeat("é", 5000), make([]byte, 8000), deep, map[any]any{1: nil, "b": true}} {
		name := fmt.Sprint("room", i)
		s.connect(name, []string{`"><img src=x onerror=alert(1)>`}, v)
		body := s.get("object?id=" + s.id(name))
		if strings.Contains(body, "<script>alert") || strings.Contains(body, "<img") || len(body) > 8000 {
			t.Errorf("attachment %d is not escaped or not cut: %d bytes", i, len(body))
		}
	}
	s.shows(s.get("object?id="+s.id("room1")), "é…")
	s.shows(s.get("object?id="+s.id("room3")), "[[[[[")
	s.shows(s.get("object?id="+s.id("room4")), "{1: null, b: true}")
}

// TestPagesFollowEachOther: no object and no socket is left out or shown twice.
func TestPagesFollowEachOther(t *testing.T) {
	s := newSite(t)
	for i := range 120 {
		s.call(store, fmt.Sprint("room", i), "x")
	}
	for range 120 {
		s.connect("garden", nil, nil)
	}
	next := regexp.MustCompile(`<a rel="next" href="([^"]*)"`)
	walk := func(page string, item *regexp.Regexp) (items []string) {
		for pages := 0; ; pages++ {
			body := s.get(page)
			for _, m := range item.FindAllStringSubmatch(body, -1) {
				items = append(items, m[1])
			}
			m := next.FindStringSubmatch(body)
			if m == nil {
				if pages != 2 {
					t.Errorf("%d pages of %s", pages+1, page)
				}
				return items
			}
			page = strings.TrimPrefix(strings.ReplaceAll(m[1], "&amp;", "&"), "./")
		}
	}
	seen := map[string]bool{}
	for _, name := range walk("?state=memory", regexp.MustCompile(`<th scope="row"><a href="object\?id=[0-9a-f]{64}">(room\d+)</a>`)) {
		if seen[name] {
			t.Errorf("%s is shown twice", name)
		}
		seen[name] = true
	}
	if len(seen) != 120 {
		t.Errorf("%d objects are shown", len(seen))
	}
	if n := len(walk("object?id="+s.id("garden"), regexp.MustCompile(`phase (open)"`))); n != 120 {
		t.Errorf("%d sockets are shown", n)
	}
}

// TestOnlyReadersAreServed, and nothing but the pages.
func TestOnlyReadersAreServed(t *testing.T) {
	s := newSite(t)
	for _, x := range []struct {
		method, path string
		status       int
	}{
		{"POST", "", 405}, {"DELETE", "object?id=" + s.id("a"), 405}, {"HEAD", "", 200}, {"GET", "style.css", 200}, {"GET", "live.js", 200},
		{"GET", "overview.html", 404}, {"GET", "object", 404}, {"GET", "object?id=zz", 404}, {"GET", "object?id=" + strings.Repeat("0", 64), 404},
		{"GET", "?live=off", 200}, {"GET", "object?from=-5&id=" + s.id("a"), 200}, {"GET", "object?from=99999999999999999999&id=" + s.id("a"), 200},
	} {
		rec := httptest.NewRecorder()
		s.srv.Config.Handler.ServeHTTP(rec, httptest.NewRequest(x.method, "/debug/hibernate/"+x.path, nil))
		if rec.Code != x.status {
			t.Errorf("%s %s is %d, want %d", x.method, x.path, rec.Code, x.status)
		}
	}
	if body := s.get("?live=off"); strings.Contains(body, "live.js") || strings.Contains(body, "http-equiv") {
		t.Error("a page that was paused refreshes itself")
	}
}

// TestPagesTellOfADeadRuntime instead of failing with it.
func TestPagesTellOfADeadRuntime(t *testing.T) {
	s := newSite(t)
	s.call(store, "cellar", "x")
	if err := s.rt.Close(); err != nil {
		t.Fatal(err)
	}
	s.shows(s.get(""), "The runtime has ended")
	s.shows(s.get("object?id="+s.id("cellar")), "The runtime has ended", "Storage could not be read")
}

func ExampleHandler() {
	rt, err := hibernate.Open("", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer rt.Close()
	admins := func(next http.Handler) http.Handler { // whatever the rest of the server uses
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, password, _ := r.BasicAuth(); password != "correct horse" {
				w.Header().Set("WWW-Authenticate", "Basic")
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	mux := http.NewServeMux()
	mux.Handle("/debug/hibernate/", admins(inspect.Handler(rt)))

	srv := httptest.NewServer(mux)
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/debug/hibernate/")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 401 Unauthorized
}
