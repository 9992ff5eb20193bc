package browsertest

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
)

// TestWhiteboardHibernatesBetweenTwoTabs: what one tab draws the other sees, also when the board has left
// memory in between, and after a restart.
func TestWhiteboardHibernatesBetweenTwoTabs(t *testing.T) {
	browser := startBrowser(t)
	bin, dir := build(t, "whiteboard"), t.TempDir()
	srv := start(t, bin, "127.0.0.1:0", dir)
	page := srv.url + "?room=garden"
	ann, ben := openTab(t, browser, page), openTab(t, browser, page)
	for _, tab := range []*tab{ann, ben} {
		tab.see(online)
		tab.see(`document.querySelectorAll("#guests li").length === 2`)
	}

	ann.draw(0.2, 0.2, 0.4, 0.5, 0.6, 0.3)
	for _, tab := range []*tab{ann, ben} {
		tab.see(drawn(1))
		tab.see(inked)
	}
	ben.see(`!document.querySelector(".cursor").hidden`)
	ben.see(`document.querySelector("#residence").dataset.state === "hibernating"`)
	ben.see(online)
	const constructed = `Number(document.querySelector("#explain").dataset.times)`
	times := ben.count(constructed) // more than once if the two were slow to come

	ben.draw(0.7, 0.7)
	ann.see(drawn(2))
	ann.see(fmt.Sprintf(`%s > %d`, constructed, times))

	addr := srv.addr()
	srv.interrupt()
	ann.see(`document.querySelector("#connection").dataset.state !== "online"`)
	ann.draw(0.1, 0.9, 0.9, 0.9) // while the server is away
	ann.see(`document.querySelector("#board").dataset.pending === "1"`)
	start(t, bin, addr, dir)
	for _, tab := range []*tab{ann, ben} {
		tab.see(online)
		tab.see(drawn(3))
		tab.see(`document.querySelector("#board").dataset.pending === "0"`)
	}
	ben.do(chromedp.Click(chromedp.CSS("#clear")))
	ann.see(drawn(0))
	ann.never(inked)
}

// TestWhiteboardScreenshots shows every state of the page.
func TestWhiteboardScreenshots(t *testing.T) {
	dir := screenshots(t)
	browser := startBrowser(t)
	srv := start(t, build(t, "whiteboard"), "127.0.0.1:0", t.TempDir())
	page := srv.url + "?room=garden%20plan"
	ann := openTab(t, browser, page)
	ann.see(online)
	ann.shoot(filepath.Join(dir, "whiteboard-empty"))
	ben := openTab(t, browser, page)
	ben.set("#name", "Ben the gardener")
	ben.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#name").dispatchEvent(new Event("change"))`))
	ben.see(online)
	ann.see(`[...document.querySelectorAll("#guests li")].some((e) => e.title === "Ben the gardener")`)
	ann.do(chromedp.EmulateViewport(1200, 760))
	ben.do(chromedp.EmulateViewport(1200, 760))
	strokes := 0
	for i, points := range [][]float64{
		{.12, .2, .12, .5, .12, .8, .3, .8, .5, .8, .5, .5, .5, .2, .3, .2, .12, .2},
		{.18, .3, .25, .24, .3, .32, .36, .25, .44, .33},
		{.6, .7, .64, .5, .7, .42, .76, .5, .8, .7},
		{.62, .66, .66, .7, .7, .66, .74, .7, .78, .66},
		{.2, .6, .2, .68, .26, .6, .26, .68, .32, .6, .32, .68},
	} {
		tab := []*tab{ann, ben}[i%2]
		tab.do(
			chromedp.Click(chromedp.CSS(fmt.Sprintf("#inks input:nth-of-type(%d)", 1+i))),
			chromedp.Click(chromedp.CSS(fmt.Sprintf("#pens input:nth-of-type(%d)", 1+i%3))),
		)
		tab.draw(points...)
		strokes++
		ann.see(drawn(strokes))
		ben.see(drawn(strokes))
	}
	ann.seeWhile(`document.querySelector("#residence").dataset.state === "awake"`, func() { ben.draw(0.7, 0.7) })
	ann.shoot(filepath.Join(dir, "whiteboard-awake"))
	ann.see(`document.querySelector("#residence").dataset.state === "hibernating"`)
	ann.shoot(filepath.Join(dir, "whiteboard-hibernating"))
	srv.interrupt()
	ann.see(`document.querySelector("#residence").dataset.state === "unknown"`)
	ann.shoot(filepath.Join(dir, "whiteboard-offline"))
}

const (
	online = `document.querySelector("#connection").dataset.state === "online"`
	// inked: some pixel of the canvas is not empty.
	inked = `(() => { const c = document.querySelector("#drawn"); return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some((v) => v > 0); })()`
)

func drawn(strokes int) string {
	return fmt.Sprintf(`document.querySelector("#drawn").dataset.strokes === "%d"`, strokes)
}

// draw moves the mouse with the button down over points of the board, each coordinate from 0 to 1.
func (b *tab) draw(points ...float64) {
	b.t.Helper()
	box, err := chromedp.Run(b.ctx, chromedp.Evaluate[[]float64](`(({x, y, width, height}) => [x, y, width, height])(document.querySelector("#live").getBoundingClientRect())`))
	if err != nil {
		b.t.Fatalf("browser: %v", err)
	}
	mouse := func(typ input.DispatchMouseEventType, x, y float64) {
		b.t.Helper()
		b.do(command(input.DispatchMouseEvent, input.DispatchMouseEventParams{
			Type: typ, X: box[0] + x*box[2], Y: box[1] + y*box[3], Button: input.MouseButtonLeft, Buttons: 1, ClickCount: 1,
		}))
	}
	mouse(input.DispatchMouseEventTypeMousePressed, points[0], points[1])
	for i := 2; i < len(points); i += 2 {
		const steps = 6
		for s := 1.0; s <= steps; s++ {
			mouse(input.DispatchMouseEventTypeMouseMoved, points[i-2]+(points[i]-points[i-2])*s/steps, points[i-1]+(points[i+1]-points[i-1])*s/steps)
		}
	}
	mouse(input.DispatchMouseEventTypeMouseReleased, points[len(points)-2], points[len(points)-1])
}
