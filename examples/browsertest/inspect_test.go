package browsertest

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/inspect"
)

// A thing is an object of any of the classes that the inspector is shown with.
type thing struct {
	state *hibernate.State
	free  chan struct{}
}

func (t *thing) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	if m.Text() == "fail" {
		return fmt.Errorf("no")
	}
	return hibernate.Put(ctx, t.state.Storage(), "last", m.Text())
}

var (
	keep = hibernate.NewMethod("keep", func(t *thing, ctx context.Context, v string) (bool, error) {
		return true, hibernate.Put(ctx, t.state.Storage(), "v", v)
	})
	remind = hibernate.NewMethod("remind", func(t *thing, ctx context.Context, after time.Duration) (bool, error) {
		return true, t.state.Storage().SetAlarm(ctx, time.Now().Add(after))
	})
	busy = hibernate.NewMethod("busy", func(t *thing, ctx context.Context, name string) (bool, error) {
		return true, t.state.WaitUntil(ctx, name, func(context.Context) { <-t.free })
	})
)

func (t *thing) Alarm(context.Context, hibernate.AlarmInfo) error { return nil }

// A zoo is a runtime with the inspector before it.
type zoo struct {
	t    *testing.T
	rt   *hibernate.Runtime
	ns   map[string]*hibernate.Namespace
	url  string
	addr string
	join atomic.Pointer[hibernate.Join] // of the next connection
}

func startZoo(t *testing.T, classes ...string) *zoo {
	t.Helper()
	rt, err := hibernate.Open(t.TempDir(), &hibernate.Options{IdleTimeout: time.Hour, TurnTimes: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	z := &zoo{t: t, rt: rt, ns: map[string]*hibernate.Namespace{}}
	free := make(chan struct{})
	mux := http.NewServeMux()
	for _, class := range classes {
		ns, err := hibernate.Register(rt, class, func(_ context.Context, s *hibernate.State) (*thing, error) { return &thing{s, free}, nil }, nil)
		if err != nil {
			t.Fatal(err)
		}
		z.ns[class] = ns
		mux.Handle("/"+class+"/{name}", ns.Handler(func(h *hibernate.Handshake) (hibernate.Join, error) {
			join := *z.join.Load()
			join.Object = ns.GetByName(h.PathValue("name"))
			return join, nil
		}))
	}
	mux.Handle("/debug/objects/", inspect.Handler(rt))
	srv := httptest.NewServer(mux)
	z.url, z.addr = srv.URL+"/debug/objects/", strings.TrimPrefix(srv.URL, "http://")
	t.Cleanup(func() {
		close(free)
		srv.Close()
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	})
	return z
}

// connect opens a WebSocket to an object and sends it messages.
func (z *zoo) connect(class, name string, tags []string, attachment any, messages ...string) {
	z.t.Helper()
	z.join.Store(&hibernate.Join{Tags: tags, Attachment: attachment})
	conn, _, _, err := ws.Dial(context.Background(), fmt.Sprintf("ws://%s/%s/%s", z.addr, class, name))
	if err != nil {
		z.t.Fatal(err)
	}
	z.t.Cleanup(func() { conn.Close() })
	for _, m := range messages {
		if err := ws.WriteFrame(conn, ws.MaskFrame(ws.NewTextFrame([]byte(m)))); err != nil {
			z.t.Fatal(err)
		}
	}
}

func call[In any](z *zoo, m *hibernate.Method[*thing, In, bool], class, name string, in In) {
	z.t.Helper()
	if _, err := m.Call(context.Background(), z.ns[class].GetByName(name), in); err != nil {
		z.t.Fatal(err)
	}
}

func (z *zoo) evict(class, name string) {
	z.t.Helper()
	if err := z.rt.Evict(context.Background(), z.ns[class].IDFromName(name)); err != nil {
		z.t.Fatal(err)
	}
}

// shows is the expression for: the row of the object has the text.
func shows(object, text string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#list tbody tr")].some((r) => r.querySelector("a").textContent === %q && r.innerText.includes(%q))`, object, text)
}

// TestInspectorIsLive: what changes in the runtime changes in the page, which keeps what its reader is doing.
func TestInspectorIsLive(t *testing.T) {
	z := startZoo(t, "Room", "Board")
	tab := openTab(t, startBrowser(t), z.url)
	tab.see(`document.querySelector("#list").innerText.includes("Nothing is in memory")`)
	tab.do(chromedp.Evaluate[chromedp.Void](`void (window.untouched = true, document.querySelector("input[name=name]").value = "gar")`))
	z.connect("Room", "garden", []string{"admin"}, map[string]any{"who": "<b>Ann</b>"})
	tab.see(shows("garden", "asleep"))
	call(z, busy, "Room", "garden", "water the beans")
	tab.see(shows("garden", "blocked by 1"))
	tab.see(`window.untouched && document.querySelector("input[name=name]").value === "gar"`)

	// By form and link, as without scripts.
	call(z, keep, "Board", "plan", "x")
	tab.see(shows("plan", "in memory"))
	tab.do(chromedp.Click(chromedp.CSS("form button")))
	tab.see(shows("garden", "Room") + ` && !` + shows("plan", "Board"))
	tab.do(chromedp.Click(chromedp.CSS("#list tbody a")))
	tab.see(`document.querySelector(".name").textContent.startsWith("garden") && document.querySelector(".blockers").innerText.includes("water the beans")`)
	tab.see(`document.querySelector(".attachment").textContent === '{who: "<b>Ann</b>"}' && document.querySelector(".tag").textContent === "admin"`)
	z.connect("Room", "garden", nil, nil)
	tab.see(`document.querySelectorAll(".sockets tbody tr").length === 2`)

	// Paused, it stays as it is.
	tab.do(chromedp.Click(chromedp.CSS(".clock a")))
	tab.see(`document.querySelector(".clock a").textContent === "go live" && document.querySelector("script") === null`)
	if n := z.ns["Room"].Stats().Wakes.By(hibernate.CauseCall); n != 1 {
		t.Errorf("the room was woken %d times: looking wakes it", n)
	}
	if err := z.rt.Close(); err != nil {
		t.Fatal(err)
	}
	tab.do(chromedp.Click(chromedp.CSS(".clock a")))
	tab.see(`document.querySelector(".alert").textContent.includes("has ended")`)
}

// TestInspectorScreenshots writes what the pages look like, see screenshots.
func TestInspectorScreenshots(t *testing.T) {
	dir := screenshots(t)
	z := startZoo(t, "Room", "Board", "Job", "AClassWithARatherLongName")
	tab := openTab(t, startBrowser(t), z.url)
	tab.shoot(filepath.Join(dir, "inspect-empty"))

	for i := range 70 {
		name := fmt.Sprintf("room-%02d", i)
		for j := range i % 4 {
			z.connect("Room", name, nil, map[string]any{"who": "guest", "seat": j})
		}
		if i%3 == 0 {
			call(z, keep, "Room", name, "x")
		}
		if i%5 == 0 {
			call(z, keep, "Board", name, "x")
		}
	}
	z.connect("Room", "garden", []string{"admin", "eu-west"}, map[string]any{"who": "Ann", "joined": time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), "colour": "teal"}, "hello", "fail")
	z.connect("Room", "garden", []string{"guest"}, map[string]any{"who": "Ben the gardener", "key": []byte{0xde, 0xad, 0xbe, 0xef}, "path": strings.Repeat("wordsthatdonotend", 20)})
	z.connect("Room", "garden", nil, nil)
	call(z, remind, "Room", "garden", 3*time.Hour)
	call(z, busy, "Room", "garden", "fetch the weather")
	call(z, busy, "Room", "garden", "upload yesterday's photographs")
	call(z, busy, "Job", "an-object-with-a-name-that-does-not-end-and-is-not-broken-by-a-space-anywhere-at-all", "x")
	call(z, keep, "Job", "stored", "x")
	z.evict("Job", "stored")
	tab.see(`document.querySelector(".tiles").innerText.includes("WebSockets")`)
	open := func(query string) {
		tab.do(chromedp.Navigate(z.url + query))
	}
	open("?live=off")
	tab.shoot(filepath.Join(dir, "inspect-overview"))
	tab.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#objects").scrollIntoView()`))
	tab.shoot(filepath.Join(dir, "inspect-objects"))
	open("?state=blocked")
	tab.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#objects").scrollIntoView()`))
	tab.shoot(filepath.Join(dir, "inspect-blocked"))
	open("object?id=" + z.ns["Room"].IDFromName("garden").String())
	tab.shoot(filepath.Join(dir, "inspect-object"))
	open("object?id=" + z.ns["Job"].IDFromName("stored").String())
	tab.shoot(filepath.Join(dir, "inspect-stored"))
	if err := z.rt.Close(); err != nil {
		t.Fatal(err)
	}
	open("")
	tab.see(`document.querySelector(".alert") !== null`)
	tab.shoot(filepath.Join(dir, "inspect-dead"))

	// Nothing is wider than a narrow screen.
	tab.do(chromedp.EmulateViewport(390, 780))
	tab.see(`document.documentElement.scrollWidth <= 390`)
}
