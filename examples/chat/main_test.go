package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate/examples/internal/exampletest"
	"github.com/hibernate-go/hibernate/internal/leak"
)

// TestMain lets the test binary be the chat, so that a test can kill it.
func TestMain(m *testing.M) {
	if !exampletest.RunMain(main) {
		leak.Main(m)
	}
}

func TestBadRequestsAreAnsweredClearly(t *testing.T) {
	url := serve(t, t.TempDir(), time.Hour)
	long := strings.Repeat("n", maxRoomName+1)
	upgrade := map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket",
		"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
	}
	foreign := map[string]string{"Origin": "https://elsewhere.example"}
	for k, v := range upgrade {
		foreign[k] = v
	}
	for _, c := range []struct {
		name, path string
		header     map[string]string
		status     int
		text       string
	}{
		{"the root leads to the lobby", "/", nil, http.StatusFound, ""},
		{"the page", "/room/garden", nil, http.StatusOK, "<!doctype html>"},
		{"its script", "/page/chat.js", nil, http.StatusOK, "WebSocket"},
		{"its style", "/page/chat.css", nil, http.StatusOK, "prefers-color-scheme"},
		{"the state of a room nobody entered", "/room/garden/state", nil, http.StatusOK, `"inMemory":false`},
		{"no upgrade", "/room/garden/ws", nil, http.StatusUpgradeRequired, "pgrade"},
		{"foreign origin", "/room/garden/ws", foreign, http.StatusForbidden, "rigin"},
		{"long name of a socket", "/room/" + long + "/ws", upgrade, http.StatusBadRequest, "100 bytes"},
		{"long name of a page", "/room/" + long, nil, http.StatusBadRequest, "100 bytes"},
		{"long name of a state", "/room/" + long + "/state", nil, http.StatusBadRequest, "100 bytes"},
		{"nothing there", "/elsewhere", nil, http.StatusNotFound, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || !strings.Contains(string(body), c.text) {
				t.Fatalf("%s %.200q, want %d with %q", resp.Status, body, c.status, c.text)
			}
		})
	}
	if s := state(t, url, "garden"); s.Constructed != 0 {
		t.Fatalf("requests that reach no room constructed one: %+v", s)
	}
}

// TestAcknowledgedMessageSurvivesKill kills the server while messages are on their way, at another moment
// each round. HIBERNATE_SLOW asks for 200 rounds.
func TestAcknowledgedMessageSurvivesKill(t *testing.T) {
	rounds := 20
	if os.Getenv("HIBERNATE_SLOW") != "" {
		rounds = 200
	}
	dir := t.TempDir()
	acknowledged := 0
	var before []string // acknowledged in the round before
	for round := range rounds + 1 {
		p := start(t, "127.0.0.1:0", dir, "10s")
		if round > 0 {
			room := fmt.Sprint("round-", round-1)
			found := texts(enter(t, p.URL, room, "Reader").history)
			for _, text := range before {
				if !slices.Contains(found, text) {
					t.Fatalf("%s: %q was acknowledged and is gone; the room has %q", room, text, found)
				}
			}
			acknowledged += len(before)
			before = nil
		}
		if round == rounds {
			p.Kill()
			break
		}
		c := enter(t, p.URL, fmt.Sprint("round-", round), "Writer")
		for i := range maxHistory - 1 { // all that the history can hold, at once
			c.say(fmt.Sprint("c", i), fmt.Sprintf("message %d of round %d", i, round))
		}
		for {
			b, err := c.tryRead() // what is in the socket when the server dies was acknowledged too
			if err != nil {
				break
			}
			var o output
			if err := json.Unmarshal(b, &o); err != nil || o.Type != "line" {
				t.Fatalf("got %s (%v)", b, err)
			}
			before = append(before, o.Line.Text)
			if len(before) == 1+round*7%60 {
				p.Kill()
			}
		}
		if len(before) == 0 {
			t.Fatal("nothing was acknowledged")
		}
	}
	t.Logf("%d rounds, %d messages acknowledged, none lost", rounds, acknowledged)
}

func TestHistorySurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	p := start(t, "127.0.0.1:0", dir, "10s")
	ann := enter(t, p.URL, "garden", "Ann")
	ann.say("a", "Remember this.")
	ann.line()
	ann.conn.Close() // nobody whose answer to a Close would be waited for
	p.Interrupt()

	p = start(t, p.Addr(), dir, "10s") // the same port is free again
	if got := texts(enter(t, p.URL, "garden", "Ben").history); !slices.Equal(got, []string{"Remember this."}) {
		t.Fatalf("history: %q", got)
	}
}

// TestInterruptEndsInTime has what could hold the end up: members that answer no Close, a request of which only half has come,
// and a connection on which nothing has come.
func TestInterruptEndsInTime(t *testing.T) {
	p := start(t, "127.0.0.1:0", t.TempDir(), "1ms")
	ann, ben := enter(t, p.URL, "garden", "Ann"), enter(t, p.URL, "cellar", "Ben")
	asleep(t, p.URL, "garden")
	for _, sent := range []string{"", "GET / HTTP/1.1\r\nHost:"} {
		conn, err := net.Dial("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, sent); err != nil {
			t.Fatal(err)
		}
	}
	p.Interrupt()
	for _, c := range []*client{ann, ben} {
		if _, err := c.tryRead(); err == nil {
			t.Fatal("a connection outlived the server")
		}
	}
}

func TestSecondServerInTheSameDirectoryFails(t *testing.T) {
	dir := t.TempDir()
	start(t, "127.0.0.1:0", dir, "10s")
	out, err := exampletest.Command("-addr", "127.0.0.1:0", "-dir", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), dir) {
		t.Fatalf("the second server: %v, %q; want a failure that names %s", err, out, dir)
	}
}

// TestSleepingRoomsHoldNoGoroutine has one connection in each of many rooms. All of them sleep, and all answer.
func TestSleepingRoomsHoldNoGoroutine(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("this system has a goroutine for each connection")
	}
	const rooms, slack = 2000, 10
	p := start(t, "127.0.0.1:0", t.TempDir(), "100ms")
	type stats struct {
		Goroutines int
		Runtime    struct{ Sockets, ObjectsInMemory int }
	}
	settled := func(sockets int) (s stats) {
		t.Helper()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
			get(t, p.URL+"/stats", &s)
			if s.Runtime.ObjectsInMemory == 0 && s.Runtime.Sockets == sockets {
				return s
			}
		}
		t.Fatalf("never asleep with %d sockets: %+v", sockets, s)
		return s
	}

	first := enter(t, p.URL, "first", "Ann") // what starts with the first room is not counted
	before := settled(1)
	clients := make([]*client, rooms)
	for i := range clients {
		clients[i] = dial(t, p.URL, fmt.Sprint("room-", i))
		clients[i].send(input{Type: "hello", Member: Member{Name: "Ann"}})
	}
	for _, c := range clients {
		c.next("welcome")
	}
	after := settled(1 + rooms)
	if grown := after.Goroutines - before.Goroutines; grown > slack {
		t.Errorf("%d sleeping rooms hold %d goroutines", rooms, grown)
	}
	t.Logf("goroutines with 1 room %d, with %d more rooms %d", before.Goroutines, rooms, after.Goroutines)

	clients = append(clients, first)
	for _, c := range clients {
		c.say("c", "Still there?")
	}
	for i, c := range clients {
		if got := c.line(); got.Text != "Still there?" {
			t.Fatalf("connection %d got %+v", i, got)
		}
	}
}

// start runs the chat as a process of its own.
func start(t *testing.T, addr, dir, idle string) *exampletest.Process {
	t.Helper()
	return exampletest.Start(t, "-addr", addr, "-dir", dir, "-idle", idle)
}
