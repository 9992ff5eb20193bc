// Package browsertest drives the chat in headless Chromium.
package browsertest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

const patience = 30 * time.Second // for one step of the conversation

// TestRoomHibernatesBetweenTwoTabs is the promise of the example from start to end: two tabs chat, the
// room leaves memory while both stay connected, a message brings it back with its history, and
// a restarted server finds the history and gets both tabs back.
func TestRoomHibernatesBetweenTwoTabs(t *testing.T) {
	browser := startBrowser(t)
	bin := buildChat(t)
	dir := t.TempDir()
	srv := startChat(t, bin, "127.0.0.1:0", dir)
	page := srv.url + "room/garden"

	ann, ben := openTab(t, browser, page), openTab(t, browser, page)
	ann.enter("Ann", 0)
	ann.see(`document.querySelector("#connection").dataset.state === "online"`)
	ben.enter("Ben", 3)
	ben.see(`document.querySelector("#connection").dataset.state === "online"`)
	ann.see(`document.querySelectorAll("#members li").length === 2`)
	ann.see(says("Ben joined"))

	ann.say("Good morning, Ben.")
	ben.see(says("Good morning, Ben."))
	ben.say("<b>Markup</b> stays text & so do <script>scripts</script>.")
	ann.see(says("<b>Markup</b> stays text & so do <script>scripts</script>."))
	ann.see(`document.querySelector("#log b, #log script") === null || document.querySelector("#log p b, #log p script") === null`)
	ann.see(allAcknowledged)

	// Both tabs hold their connection while nothing of the room is in memory.
	for _, tab := range []*tab{ann, ben} {
		tab.see(`document.querySelector("#residence").dataset.state === "hibernating"`)
		tab.see(`document.querySelector("#constructed").dataset.times === "1"`)
		tab.see(`document.querySelector("#connection").dataset.state === "online"`)
	}

	ben.say("Are you still there?")
	ann.see(says("Are you still there?"))
	ann.see(`document.querySelector("#residence").dataset.state === "awake"`)
	ann.see(`document.querySelector("#constructed").dataset.times === "2"`)
	ann.never(says("Ben left"))

	// A third tab finds what was said before and after.
	cat := openTab(t, browser, page)
	cat.enter("Cat", 6)
	for _, text := range []string{"Good morning, Ben.", "Are you still there?"} {
		cat.see(says(text))
	}
	cat.close()
	ann.see(says("Cat left"))

	// The same directory and port; nobody touches the tabs.
	addr := srv.addr()
	srv.interrupt()
	for _, tab := range []*tab{ann, ben} {
		tab.see(`document.querySelector("#connection").dataset.state !== "online"`)
	}
	ann.say("Written while the server was away.")
	startChat(t, bin, addr, dir)
	for _, tab := range []*tab{ann, ben} {
		tab.see(`document.querySelector("#connection").dataset.state === "online"`)
		tab.see(says("Good morning, Ben."))
		tab.see(says("Written while the server was away."))
		tab.see(allAcknowledged)
	}
	ben.say("And back again.")
	ann.see(says("And back again."))
	ann.see(`document.querySelector("#text").value === ""`)
	ann.see(onlyOnce)
	ben.see(onlyOnce)
}

// TestRefusalsAreReadable shows the server's own words where the page itself would let bad input pass.
func TestRefusalsAreReadable(t *testing.T) {
	browser := startBrowser(t)
	srv := startChat(t, buildChat(t), "127.0.0.1:0", t.TempDir())
	ann := openTab(t, browser, srv.url+"room/garden")
	ann.do(chromedp.RemoveAttribute(chromedp.CSS("#name"), "maxlength"))
	ann.enter(strings.Repeat("a", 25), 0)
	ann.see(`document.querySelector("#complaint").textContent.includes("24 characters")`)
	ann.enter("Ann", 0)
	ann.see(`document.querySelector("#connection").dataset.state === "online"`)
	ann.set("#text", strings.Repeat("long ", 500))
	ann.do(chromedp.Click(chromedp.CSS("#send")))
	ann.see(`document.querySelector("#refusal").textContent.includes("2000 characters")`)
}

// TestScreenshots writes what the page looks like into the directory that SCREENSHOTS names.
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		dir = t.TempDir()
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	browser := startBrowser(t)
	srv := startChat(t, buildChat(t), "127.0.0.1:0", t.TempDir())
	page := srv.url + "room/garden"
	ann, ben := openTab(t, browser, page), openTab(t, browser, page)
	shots := func(name string) {
		t.Helper()
		for _, size := range []struct {
			name string
			w, h int64
		}{{"wide", 1200, 760}, {"narrow", 390, 780}} {
			for _, scheme := range []string{"light", "dark"} {
				ann.do(
					chromedp.EmulateViewport(size.w, size.h),
					command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
						Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
					}),
					chromedp.Evaluate[chromedp.Void](`document.querySelector("#log").scrollTop = 1e9`),
					chromedp.Evaluate[chromedp.Void](`Promise.allSettled(document.getAnimations().map((a) => a.finished))`, chromedp.EvalAwaitPromise),
				)
				png, err := chromedp.Run(ann.ctx, chromedp.CaptureScreenshot())
				if err != nil {
					t.Fatalf("screenshot: %v", err)
				}
				file := filepath.Join(dir, fmt.Sprintf("%s-%s-%s.png", name, size.name, scheme))
				if err := os.WriteFile(file, png, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}

	shots("hello")
	ann.enter("Ann", 0)
	ann.see(`document.querySelector("#connection").dataset.state === "online"`)
	shots("empty")
	ben.enter("Ben the gardener", 3)
	ann.see(says("Ben the gardener joined"))
	for _, l := range []struct {
		tab  *tab
		text string
	}{
		{ben, "Good morning! The beans came up over night."},
		{ben, "All of them."},
		{ann, "Already? I sowed them on Tuesday."},
		{ben, "It was warm. Have a look at the plan I made for the bed by the wall: beans, then lettuce where the peas were, and the pumpkin where it can run as far as it likes."},
		{ann, "The pumpkin again!"},
		{ann, "Wordsthatdonotendmustnotpushthepageasidehoweverlongtheybecomeandnobodyknowswhytheyarewrittenbuttheyare"},
	} {
		l.tab.say(l.text)
		ann.see(says(l.text))
	}
	ann.see(allAcknowledged)
	shots("awake")
	ann.see(`document.querySelector("#residence").dataset.state === "hibernating"`)
	shots("hibernating")
	srv.interrupt()
	ann.see(`document.querySelector("#connection").dataset.state === "offline"`)
	ann.see(`document.querySelector("#residence").dataset.state === "unknown"`)
	ann.say("Is anybody there?")
	shots("offline")
}

const (
	allAcknowledged = `document.querySelector(".pending, .failed") === null`
	onlyOnce        = `(() => { const s = [...document.querySelectorAll("#log [data-seq]")].map((e) => e.dataset.seq); return new Set(s).size === s.length; })()`
)

// says is the expression for: the log shows a message or notice with exactly this text.
func says(text string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#log .line:not(.pending) p, #log .notice")].some((e) => e.textContent === %q)`, text)
}

// A tab is one page of the browser, used from the test's goroutine.
type tab struct {
	t   *testing.T
	ctx context.Context
}

func openTab(t *testing.T, browser context.Context, url string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	// The first call opens the tab and ties it to the context it is given, so it gets no timeout.
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("open a tab: %v", err)
	}
	err := chromedp.Listen(ctx, func(e any) {
		if e, ok := e.(*cdpruntime.EventExceptionThrown); ok {
			t.Errorf("the page threw: %s %s", e.ExceptionDetails.Text, e.ExceptionDetails.Exception.Description)
		}
	})
	if err != nil {
		t.Fatalf("listen to a tab: %v", err)
	}
	b := &tab{t, ctx}
	// A page in the background would stop asking for the room's state.
	b.do(
		command(emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true}),
		chromedp.EmulateViewport(1000, 700),
		chromedp.Navigate(url),
	)
	return b
}

func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("browser: %v", err)
	}
}

// see waits until the JavaScript expression is true.
func (b *tab) see(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	err := chromedp.Do(ctx, chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(0)))
	if err != nil {
		text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.body.innerText"))
		b.t.Fatalf("never true: %s\n%v\nthe page shows:\n%s", expression, err, text)
	}
}

// never fails the test if the expression is true now.
func (b *tab) never(expression string) {
	b.t.Helper()
	is, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](expression))
	if err != nil {
		b.t.Fatalf("browser: %v", err)
	}
	if is {
		b.t.Fatalf("true, and should not be: %s", expression)
	}
}

func (b *tab) enter(name string, colour int) {
	b.t.Helper()
	b.do(chromedp.WaitVisible(chromedp.CSS("#name")))
	b.set("#name", "") // the page proposes the name of an earlier tab
	b.do(
		chromedp.SendKeys(chromedp.CSS("#name"), name),
		chromedp.Click(chromedp.CSS(fmt.Sprintf("#colours input:nth-child(%d)", colour+1))),
		chromedp.Click(chromedp.CSS("#enter")),
	)
}

// set puts a value into a field as a script would, with no regard for its limits.
func (b *tab) set(selector, value string) {
	b.t.Helper()
	b.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf("void (document.querySelector(%q).value = %q)", selector, value)))
}

func (b *tab) say(text string) {
	b.t.Helper()
	b.do(
		chromedp.WaitEnabled(chromedp.CSS("#text")),
		chromedp.SendKeys(chromedp.CSS("#text"), text),
		command(input.DispatchKeyEvent, enterKey(input.DispatchKeyEventTypeKeyDown)),
		command(input.DispatchKeyEvent, enterKey(input.DispatchKeyEventTypeKeyUp)),
	)
}

// enterKey is what a keyboard sends. SendKeys adds a character that a page which handled the key does not get.
func enterKey(typ input.DispatchKeyEventType) input.DispatchKeyEventParams {
	return input.DispatchKeyEventParams{Type: typ, Key: "Enter", Code: "Enter", Text: "\r", WindowsVirtualKeyCode: 13}
}

func (b *tab) close() {
	b.t.Helper()
	if err := chromedp.Cancel(b.ctx); err != nil {
		b.t.Fatalf("close a tab: %v", err)
	}
}

// command is the action that runs a command of the DevTools protocol.
func command[P any](cmd cdp.Command[P, cdp.Empty], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, cmd, params)
		return err
	})
}

// startBrowser starts a Chromium with a profile of its own. Without one the test is skipped, but never in CI.
func startBrowser(t *testing.T) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		const missing = "no Chromium here; on Debian: apt-get install chromium chromium-driver"
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	alloc, cancel := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WSURLReadTimeout(60*time.Second),
	)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(alloc)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil { // waits until the browser has ended and its profile can be removed
			t.Logf("end the browser: %v", err)
		}
		cancel()
	})
	return ctx
}

func buildChat(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "chat")
	if runtime.GOOS == "windows" {
		bin += ".exe"
	}
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// A server is a running chat.
type server struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string
	done chan error // the program's end
}

func startChat(t *testing.T, bin, addr, dir string) *server {
	t.Helper()
	cmd := exec.Command(bin, "-addr", addr, "-dir", dir, "-idle", "2s")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, cmd: cmd, done: make(chan error, 1)}
	line, err := bufio.NewReader(out).ReadString('\n')
	for _, word := range strings.Fields(line) {
		if strings.HasPrefix(word, "http://") {
			s.url = word
		}
	}
	go func() {
		_, _ = io.Copy(io.Discard, out)
		s.done <- cmd.Wait()
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if s.url == "" {
		t.Fatalf("the chat printed no URL: %q, %v", line, err)
	}
	return s
}

func (s *server) addr() string {
	return strings.TrimSuffix(strings.TrimPrefix(s.url, "http://"), "/")
}

// interrupt is Ctrl-C.
func (s *server) interrupt() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.done:
		if err != nil {
			s.t.Fatalf("the chat ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		s.t.Fatal("the chat did not end within 5 s of an interrupt")
	}
	if c, err := net.Dial("tcp", s.addr()); err == nil {
		_ = c.Close()
		s.t.Fatal("the port still answers")
	}
}
