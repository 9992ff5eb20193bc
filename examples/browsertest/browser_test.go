// Package browsertest drives the examples and the inspector in headless Chromium.
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
	"github.com/chromedp/cdproto/log"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

const patience = time.Minute // for one step of a conversation

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
		switch e := e.(type) {
		case *cdpruntime.EventExceptionThrown:
			t.Errorf("the page threw: %s %s", e.ExceptionDetails.Text, e.ExceptionDetails.Exception.Description)
		case *log.EventEntryAdded:
			if e.Entry.Source == log.EntrySourceSecurity {
				t.Errorf("the page broke its own policy: %s", e.Entry.Text)
			}
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

// see waits until the JavaScript expression is true. One that throws, for what is not there yet, is not.
func (b *tab) see(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	patient := fmt.Sprintf("(() => { try { return (%s); } catch { return false; } })()", expression)
	poll := chromedp.Poll[chromedp.Void](patient, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(0))
	err := chromedp.Do(ctx, poll)
	// The page that was asked may have gone: the next one is asked.
	for err != nil && (strings.Contains(err.Error(), "navigated") || strings.Contains(err.Error(), "Cannot find context")) {
		err = chromedp.Do(ctx, poll)
	}
	if err != nil {
		text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.body.innerText"))
		b.t.Fatalf("never true: %s\n%v\nthe page shows:\n%s", expression, err, text)
	}
}

// seeWhile waits until the expression is true, and does again and again what makes it true for a moment: on a slow machine
// the page may ask too late.
func (b *tab) seeWhile(expression string, do func()) {
	b.t.Helper()
	for end := time.Now().Add(patience); ; {
		do()
		late := fmt.Sprintf("new Promise((done) => { const end = Date.now() + 1500, look = () => (%s) || Date.now() > end ? done(%[1]s) : setTimeout(look, 50); look(); })", expression)
		seen, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](late, chromedp.EvalAwaitPromise))
		if err != nil {
			b.t.Fatalf("browser: %v", err)
		}
		if seen {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("never true: %s", expression)
		}
	}
}

// count is the number that the JavaScript expression comes to.
func (b *tab) count(expression string) int {
	b.t.Helper()
	n, err := chromedp.Run(b.ctx, chromedp.Evaluate[int](expression))
	if err != nil {
		b.t.Fatalf("browser: %v", err)
	}
	return n
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

// set puts a value into a field as a script would, with no regard for its limits.
func (b *tab) set(selector, value string) {
	b.t.Helper()
	b.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf("void (document.querySelector(%q).value = %q)", selector, value)))
}

// screenshots is the directory that SCREENSHOTS names, or one for nobody.
func screenshots(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return t.TempDir()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// shoot writes what the page looks like, wide and narrow, light and dark, into files that begin with name.
func (b *tab) shoot(name string) {
	b.t.Helper()
	for _, size := range []struct {
		name string
		w, h int64
	}{{"wide", 1200, 760}, {"narrow", 390, 780}} {
		for _, scheme := range []string{"light", "dark"} {
			b.do(
				chromedp.EmulateViewport(size.w, size.h),
				command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
					Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
				}),
				chromedp.Evaluate[chromedp.Void](`new Promise(requestAnimationFrame)`, chromedp.EvalAwaitPromise),
				chromedp.Evaluate[chromedp.Void](`Promise.allSettled(document.getAnimations().map((a) => a.finished))`, chromedp.EvalAwaitPromise),
			)
			png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
			if err != nil {
				b.t.Fatalf("screenshot: %v", err)
			}
			if err := os.WriteFile(fmt.Sprintf("%s-%s-%s.png", name, size.name, scheme), png, 0o644); err != nil {
				b.t.Fatal(err)
			}
		}
	}
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

// build compiles an example.
func build(t *testing.T, example string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), example)
	if runtime.GOOS == "windows" {
		bin += ".exe"
	}
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Dir = filepath.Join("..", example)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// A server is a running example.
type server struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string
	done chan error // the program's end
}

// start runs an example with short times, and more flags.
func start(t *testing.T, bin, addr, dir string, flags ...string) *server {
	t.Helper()
	cmd := exec.Command(bin, append([]string{"-addr", addr, "-dir", dir, "-idle", "2s"}, flags...)...)
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
		close(s.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		for range s.done { // until it writes no more to its directory
		}
	})
	if s.url == "" {
		t.Fatalf("the program printed no URL: %q, %v", line, err)
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
			s.t.Fatalf("the program ended with %v", err)
		}
	case <-time.After(patience):
		s.t.Fatalf("the program did not end within %v of an interrupt", patience)
	}
	if c, err := net.Dial("tcp", s.addr()); err == nil {
		_ = c.Close()
		s.t.Fatal("the port still answers")
	}
}
