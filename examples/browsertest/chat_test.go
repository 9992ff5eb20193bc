package browsertest

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
)

// TestChatRoomHibernatesBetweenTwoTabs is the promise of the example from start to end: two tabs chat, the
// room leaves memory while both stay connected, a message brings it back with its history, and
// a restarted server finds the history and gets both tabs back.
func TestChatRoomHibernatesBetweenTwoTabs(t *testing.T) {
	browser := startBrowser(t)
	bin := build(t, "chat")
	dir := t.TempDir()
	srv := start(t, bin, "127.0.0.1:0", dir)
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
		tab.see(`document.querySelector("#connection").dataset.state === "online"`)
	}
	times := ann.count(constructed) // more than once if the two were slow to come

	ben.say("Are you still there?")
	ann.see(says("Are you still there?"))
	ann.see(fmt.Sprintf(`%s === %d`, constructed, times+1))
	ann.never(says("Ben left"))
	ann.seeWhile(`document.querySelector("#residence").dataset.state === "awake"`, func() { ben.say("Hello?") })

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
	start(t, bin, addr, dir)
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

// TestChatRefusalsAreReadable shows the server's own words where the page itself would let bad input pass.
func TestChatRefusalsAreReadable(t *testing.T) {
	browser := startBrowser(t)
	srv := start(t, build(t, "chat"), "127.0.0.1:0", t.TempDir())
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

// TestChatScreenshots shows every state of the page.
func TestChatScreenshots(t *testing.T) {
	dir := screenshots(t)
	browser := startBrowser(t)
	srv := start(t, build(t, "chat"), "127.0.0.1:0", t.TempDir())
	page := srv.url + "room/garden"
	ann, ben := openTab(t, browser, page), openTab(t, browser, page)
	shots := func(name string) {
		t.Helper()
		ann.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#log").scrollTop = 1e9`))
		ann.shoot(filepath.Join(dir, "chat-"+name))
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
	constructed     = `Number(document.querySelector("#constructed").dataset.times)`
	allAcknowledged = `document.querySelector(".pending, .failed") === null`
	onlyOnce        = `(() => { const s = [...document.querySelectorAll("#log [data-seq]")].map((e) => e.dataset.seq); return new Set(s).size === s.length; })()`
)

// says is the expression for: the log shows a message or notice with exactly this text.
func says(text string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#log .line:not(.pending) p, #log .notice")].some((e) => e.textContent === %q)`, text)
}

// enter says who one is.
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
