package browsertest

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestProgressArrivesWhileTheTrackerSleeps: a job goes from its button to its end, the tracker leaves memory in
// between, and a second tab that comes later sees the same.
func TestProgressArrivesWhileTheTrackerSleeps(t *testing.T) {
	browser := startBrowser(t)
	bin, dir := build(t, "progress"), t.TempDir()
	srv := start(t, bin, "127.0.0.1:0", dir, "-idle", "100ms", "-pause", "5s") // so that the job does not end too early
	page := srv.url + "q/garden"
	ann := openTab(t, browser, page)
	ann.see(`!document.querySelector("#empty").hidden`)
	ann.begin("Render <b>the</b> trailer")
	ann.see(`document.querySelector(".job h2").textContent === "Render <b>the</b> trailer"`)
	ann.see(`document.querySelector(".job progress").value > 0`)
	ann.see(`document.querySelector("#residence").dataset.state === "hibernating"`)
	ann.see(`document.querySelector(".job .link").textContent === "Connected"`)
	ann.see(`document.querySelector("#constructed").dataset.times > "1"`)

	// Nobody touches the tab when the server restarts; its worker is gone.
	addr := srv.addr()
	srv.interrupt()
	ann.see(`document.querySelector(".job .link").textContent === "Offline"`)
	start(t, bin, addr, dir, "-idle", "100ms", "-pause", "20ms")
	ann.see(`document.querySelector(".job .link").textContent === "Connected"`)

	ann.begin("Another")
	ben := openTab(t, browser, page)
	for _, tab := range []*tab{ann, ben} {
		tab.see(`document.querySelectorAll(".job").length === 2`)
		tab.see(`["done", "failed"].includes(document.querySelector('.job[data-number="2"]')?.dataset.state)`)
		tab.see(`document.querySelector('.job[data-number="2"] .link')?.textContent === ""`)
	}
}

// TestProgressScreenshots shows every state of the page.
func TestProgressScreenshots(t *testing.T) {
	dir := screenshots(t)
	browser := startBrowser(t)
	bin, data := build(t, "progress"), t.TempDir()
	srv := start(t, bin, "127.0.0.1:0", data, "-pause", "10ms")
	ann := openTab(t, browser, srv.url)
	ann.see(`!document.querySelector("#empty").hidden`)
	ann.shoot(filepath.Join(dir, "progress-empty"))
	for i, title := range []string{"Thumbnails for the archive", "Export the annual report", "Rebuild the search index"} {
		ann.begin(title)
		ann.see(fmt.Sprintf(`["done", "failed"].includes(document.querySelector('.job[data-number="%d"]')?.dataset.state)`, i+1))
	}
	addr := srv.addr()
	srv.interrupt()
	srv = start(t, bin, addr, data, "-pause", "3s", "-idle", "500ms")
	ann.begin("Transcode episode 7, with the commentary of the whole crew")
	ann.see(`document.querySelector('.job[data-number="4"] progress')?.value > 20`)
	ann.begin("Render the trailer")
	ann.see(`document.querySelector('.job[data-number="5"] .link')?.textContent === "Connected"`)
	ann.see(`document.querySelector("#residence").dataset.state === "hibernating"`)
	ann.shoot(filepath.Join(dir, "progress-hibernating"))
	srv.interrupt()
	ann.see(`document.querySelector("#residence").dataset.state === "unknown"`)
	ann.begin("One more")
	ann.see(`!document.querySelector("#refusal").hidden`)
	ann.shoot(filepath.Join(dir, "progress-offline"))
}

// begin starts a job.
func (b *tab) begin(title string) {
	b.t.Helper()
	b.set("#title", title)
	b.do(chromedp.Click(chromedp.CSS("#start button")))
}
