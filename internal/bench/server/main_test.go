//go:build unix

package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestServerSpeaksTheBenchmarksProtocol(t *testing.T) {
	for _, door := range []string{"acceptor", "http"} {
		for _, dir := range []string{"", t.TempDir()} {
			ln, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- run(ctx, ln, dir, door, time.Minute) }()
			dial := func(path string) net.Conn {
				conn, br, _, err := ws.Dial(context.Background(), "ws://"+ln.Addr().String()+path)
				if err != nil || br != nil {
					t.Fatal(br, err)
				}
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				return conn
			}
			expect := func(conn net.Conn, op ws.OpCode, want string) {
				t.Helper()
				b, got, err := wsutil.ReadServerData(conn)
				if err != nil || got != op || string(b) != want {
					t.Fatalf("received %v %q, %v; want %v %q", got, b, err, op, want)
				}
			}
			a, b, other := dial("/room/a"), dial("/room/a"), dial("/tagged/b")
			wsutil.WriteClientText(a, []byte("i:"))
			expect(a, ws.OpText, "i:1")
			wsutil.WriteClientBinary(a, []byte("b:all"))
			expect(a, ws.OpBinary, "b:all")
			expect(b, ws.OpBinary, "b:all")
			wsutil.WriteClientText(other, []byte("i:x"))
			expect(other, ws.OpText, "i:2")
			wsutil.WriteClientBinary(b, []byte("echo"))
			expect(b, ws.OpBinary, "echo")
			resp, err := http.Get("http://" + ln.Addr().String() + "/")
			if err != nil {
				t.Fatal(err)
			}
			if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusNotFound || !strings.Contains(string(text), "/room/") {
				t.Errorf("answered %s %q", resp.Status, text)
			}
			resp.Body.Close()
			if resp, err = http.Get("http://" + ln.Addr().String() + "/stats"); err != nil {
				t.Fatal(err)
			}
			var stats map[string]int64
			if err := json.NewDecoder(resp.Body).Decode(&stats); err != nil || stats["goroutines"] == 0 || stats["sockets"] != 3 || stats["in_memory"] != 2 {
				t.Errorf("stats %v, %v", stats, err)
			}
			resp.Body.Close()
			http.DefaultClient.CloseIdleConnections()
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			a.Close()
			b.Close()
			other.Close()
		}
	}
}
