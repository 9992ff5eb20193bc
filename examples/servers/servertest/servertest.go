// Package servertest holds what every server in these examples promises. It is for their tests.
package servertest

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/examples/servers/room"
	"github.com/hibernate-go/hibernate/hibernatetest"
)

// Check runs a server's handler and checks that sessions decide who enters a room and by what name, before
// and after the room has slept.
func Check(t *testing.T, setup func(*hibernate.Runtime) (http.Handler, error)) {
	t.Helper()
	k := hibernatetest.New(t, setup, &hibernatetest.Options{EvictEveryTurn: true, Runtime: hibernate.Options{Limits: room.Limits}})
	lobby := k.Object("Room", "lobby")

	status, text := get(t, k.URL+"/", "")
	if status != http.StatusOK || text != "Good morning, stranger.\n" {
		t.Fatalf("home: %d %q", status, text)
	}
	ann, ben := Login(t, http.DefaultClient, k.URL, "Ann"), Login(t, http.DefaultClient, k.URL, "Ben")
	if _, text = get(t, k.URL+"/", ann); text != "Good morning, Ann.\n" {
		t.Fatalf("home: %q", text)
	}

	for name, c := range map[string]struct {
		cookie, origin string
		status         int
	}{
		"no session":     {"", "", http.StatusUnauthorized},
		"forged session": {strings.Replace(ann, "Ann", "Eve", 1), "", http.StatusUnauthorized},
		"another site":   {ann, "https://elsewhere.example", http.StatusForbidden},
	} {
		_, err := k.TryDial("/rooms/lobby", dial(c.cookie, c.origin))
		refused, ok := err.(*hibernatetest.HandshakeError)
		if !ok || refused.Status != c.status {
			t.Errorf("%s: %v, want status %d", name, err, c.status)
		}
	}
	if status, _ := get(t, k.URL+"/rooms/lobby", ann); status != http.StatusUpgradeRequired {
		t.Errorf("no upgrade: status %d", status)
	}
	if wakes := k.Wakes(lobby); len(wakes) != 0 {
		t.Errorf("who was refused has woken the room: %v", wakes)
	}

	a, b := k.DialWith("/rooms/lobby", dial(ann, k.URL)), k.DialWith("/rooms/lobby", dial(ben, ""))
	other := k.DialWith("/rooms/cellar", dial(ben, ""))
	for range 2 {
		a.Send("ping")
		a.Expect("pong")
	}
	if wakes := k.Wakes(lobby); len(wakes) != 1 {
		t.Errorf("two pings woke the room for %v", wakes)
	}
	a.Send("hello")
	a.Expect("Ann: hello")
	b.Expect("Ann: hello")
	b.Send("hello yourself")
	a.Expect("Ben: hello yourself")
	k.Settle()
	other.ExpectNothing()
}

// Login logs a user in and returns the cookie of the session.
func Login(t *testing.T, client *http.Client, site, user string) (cookie string) {
	t.Helper()
	resp, err := client.PostForm(site+"/login", url.Values{"user": {user}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	client.CloseIdleConnections()
	if len(resp.Cookies()) != 1 {
		t.Fatalf("login: %s, cookies %v", resp.Status, resp.Cookies())
	}
	c := resp.Cookies()[0]
	if secure := strings.HasPrefix(site, "https:"); c.Secure != secure || !c.HttpOnly {
		t.Errorf("the cookie of %s: %v", site, c)
	}
	return fmt.Sprintf("%s=%s", c.Name, c.Value)
}

func dial(cookie, origin string) *hibernatetest.DialOptions {
	h := http.Header{}
	if cookie != "" {
		h.Set("Cookie", cookie)
	}
	if origin != "" {
		h.Set("Origin", origin)
	}
	return &hibernatetest.DialOptions{Header: h}
}

func get(t *testing.T, url, cookie string) (status int, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Cookie", cookie)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	return resp.StatusCode, string(b)
}
