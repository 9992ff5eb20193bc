// Package exampletest runs the examples and speaks to them as a client does. It is for their tests.
package exampletest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
)

// Patience is how long a test waits for something that must happen.
const Patience = 30 * time.Second

// runMain is the variable that makes a test binary the program it tests.
const runMain = "EXAMPLE_RUN_MAIN"

// RunMain runs main and reports true if this process was made by [Start].
func RunMain(main func()) bool {
	if os.Getenv(runMain) == "" {
		return false
	}
	main()
	return true
}

// A Process is a running example that can be killed.
type Process struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan error // its end

	URL string // the one that it printed first, without the slash at the end
}

// Command is this test binary as the example it tests: its TestMain calls [RunMain].
func Command(flags ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], flags...)
	cmd.Env = append(os.Environ(), runMain+"=1")
	return cmd
}

// Start runs [Command] until the end of the test.
func Start(t *testing.T, flags ...string) *Process {
	t.Helper()
	cmd := Command(flags...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &Process{t: t, cmd: cmd, done: make(chan error, 1)}
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	for _, word := range strings.Fields(line) {
		if strings.HasPrefix(word, "http") {
			p.URL = strings.TrimSuffix(word, "/")
			break
		}
	}
	go func() {
		_, _ = io.Copy(io.Discard, r)
		p.done <- cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.Kill)
	if p.URL == "" {
		t.Fatalf("the program printed no URL: %q, %v", line, err)
	}
	return p
}

// Addr is the host and port that the program listens on.
func (p *Process) Addr() string { return p.URL[strings.Index(p.URL, "://")+3:] }

// Kill is kill -9, and waits until the process is gone. A second call does nothing.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	for range p.done { // how it ends is what a kill does
	}
	http.DefaultClient.CloseIdleConnections()
}

// Interrupt is Ctrl-C, and checks that the program ends with status 0.
func (p *Process) Interrupt() {
	p.t.Helper()
	if runtime.GOOS == "windows" {
		p.t.Skip("a process cannot be interrupted here")
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
	select {
	case err := <-p.done:
		if err != nil {
			p.t.Fatalf("the program ended with %v", err)
		}
	case <-time.After(Patience):
		p.t.Fatal("the program did not end after an interrupt")
	}
	http.DefaultClient.CloseIdleConnections()
}

// A Client is one WebSocket. Its methods fail the test.
type Client struct {
	t    *testing.T
	conn net.Conn
	r    io.Reader
}

// Dial connects to the http or https URL of a WebSocket, by d if it is not nil.
func Dial(t *testing.T, url string, d *ws.Dialer) *Client {
	t.Helper()
	c, err := TryDial(t, url, d)
	if err != nil {
		t.Fatalf("dial %s: %v", url, err)
	}
	return c
}

// TryDial is [Dial] and returns the error.
func TryDial(t *testing.T, url string, d *ws.Dialer) (*Client, error) {
	if d == nil {
		d = &ws.Dialer{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	conn, br, _, err := d.Dial(ctx, "ws"+strings.TrimPrefix(url, "http"))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(3 * Patience)); err != nil {
		return nil, err
	}
	c := &Client{t: t, conn: conn, r: conn}
	if br != nil { // the server's first frames came with its answer
		c.r = br
	}
	return c, nil
}

func (c *Client) Read(p []byte) (int, error)  { return c.r.Read(p) }
func (c *Client) Write(p []byte) (int, error) { return c.conn.Write(p) }

// Send sends v as JSON.
func (c *Client) Send(v any) {
	c.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		c.t.Fatal(err)
	}
	c.SendText(string(b))
}

// SendText sends one message.
func (c *Client) SendText(s string) {
	c.t.Helper()
	if err := wsutil.WriteClientText(c.conn, []byte(s)); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// Receive returns the next message, or the error that the connection ended with.
func (c *Client) Receive() (string, error) {
	b, err := wsutil.ReadServerText(c)
	return string(b), err
}

// Text returns the next message.
func (c *Client) Text() string {
	c.t.Helper()
	s, err := c.Receive()
	if err != nil {
		c.t.Fatalf("read: %v", err)
	}
	return s
}

// Drop ends the connection without a Close frame.
func (c *Client) Drop() { c.conn.Close() }

// Next returns the next message, which must be JSON with this type.
func Next[T any](c *Client, typ string) (v T) {
	c.t.Helper()
	s := c.Text()
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal([]byte(s), &head); err != nil || head.Type != typ {
		c.t.Fatalf("got %s, want a %s (%v)", s, typ, err)
	}
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		c.t.Fatalf("%s: %v", s, err)
	}
	return v
}

// Get reads JSON from a URL.
func Get[T any](t *testing.T, url string) (v T) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		t.Fatalf("GET %s: %s: %v", url, resp.Status, err)
	}
	return v
}

// Until asks until the answer is yes.
func Until(t *testing.T, what string, yes func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(Patience); !yes(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
