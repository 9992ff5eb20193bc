package browsertest

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestFanoutReachesBothTabs: an event that one tab sends reaches both and the crowd, the tree sleeps again, and
// a restarted server has the events and gets both tabs back.
func TestFanoutReachesBothTabs(t *testing.T) {
	browser := startBrowser(t)
	bin, dir := build(t, "fanout"), t.TempDir()
	srv := start(t, bin, "127.0.0.1:0", dir, "-crowd", "200")
	ann, ben := openTab(t, browser, srv.url), openTab(t, browser, srv.url)
	for _, tab := range []*tab{ann, ben} {
		tab.see(online)
		tab.see(`document.querySelector("#dashboards").textContent === "202"`)
		tab.see(`!document.querySelector("#empty").hidden`)
	}
	ann.send()
	ann.see(`document.querySelector("#told").textContent.startsWith("Event 1 went to 202 dashboards in ")`)
	ann.seeWhile(`document.querySelector("#awake").textContent === "21 of 21"`, ann.send)
	for _, tab := range []*tab{ann, ben} {
		tab.see(`document.querySelector('#events [data-seq="1"]') !== null`)
		tab.see(`document.querySelector("#residence").dataset.state === "hibernating"`)
		tab.see(`document.querySelector("#awake").textContent === "0 of 21"`)
		tab.see(online)
	}

	const all = `document.querySelectorAll("#events li").length`
	events := ann.count(all)
	addr := srv.addr()
	srv.interrupt()
	ann.see(`document.querySelector("#connection").dataset.state === "offline"`)
	start(t, bin, addr, dir)
	for _, tab := range []*tab{ann, ben} {
		tab.see(online)
	}
	ben.send()
	for _, tab := range []*tab{ann, ben} {
		tab.see(fmt.Sprintf(`%s === %d`, all, events+1))
		tab.see(all + ` === Number(document.querySelector("#events li").dataset.seq)`)
	}
}

// TestFanoutScreenshots shows every state of the page.
func TestFanoutScreenshots(t *testing.T) {
	dir := screenshots(t)
	browser := startBrowser(t)
	srv := start(t, build(t, "fanout"), "127.0.0.1:0", t.TempDir(), "-crowd", "4000")
	ann := openTab(t, browser, srv.url)
	ann.see(`document.querySelector("#dashboards").textContent === "4,001"`)
	ann.see(`document.querySelector("#residence").dataset.state === "hibernating"`)
	ann.shoot(filepath.Join(dir, "fanout-empty"))
	for i := range 7 {
		ann.send()
		ann.see(`document.querySelector("#events").children.length === ` + string(rune('1'+i)))
	}
	ann.seeWhile(`document.querySelector("#awake").textContent === "21 of 21"`, ann.send)
	ann.shoot(filepath.Join(dir, "fanout-awake"))
	ann.see(`document.querySelector("#residence").dataset.state === "hibernating"`)
	ann.shoot(filepath.Join(dir, "fanout-hibernating"))
	srv.interrupt()
	ann.see(`document.querySelector("#residence").dataset.state === "unknown"`)
	ann.do(chromedp.Click(chromedp.CSS("#try")))
	ann.see(`document.querySelector("#told.bad") !== null`)
	ann.shoot(filepath.Join(dir, "fanout-offline"))
}

// send presses the button for an event.
func (b *tab) send() {
	b.t.Helper()
	b.do(chromedp.WaitEnabled(chromedp.CSS("#try")), chromedp.Click(chromedp.CSS("#try")))
}
