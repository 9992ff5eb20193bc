package hibernate_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/hibernate-go/hibernate"
)

const fewDescriptors = 100

// cpuEcho echoes, and answers "cpu" with the process's CPU time in milliseconds.
type cpuEcho struct{}

func (cpuEcho) WebSocketMessage(ctx context.Context, ws hibernate.WebSocket, m hibernate.Message) error {
	if m.Text() != "cpu" {
		return ws.Send(ctx, m)
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return err
	}
	return ws.SendText(ctx, strconv.FormatInt((u.Utime.Nano()+u.Stime.Nano())/1e6, 10))
}

// TestServerWithFewDescriptors is the other process of TestDescriptorsRunOut: it
// serves at one of the doors, says where, and ends with its standard input.
func TestServerWithFewDescriptors(t *testing.T) {
	if os.Getenv("HIBERNATE_FEW_DESCRIPTORS") == "" {
		t.Skip("TestDescriptorsRunOut runs it")
	}
	few := syscall.Rlimit{Cur: fewDescriptors, Max: fewDescriptors}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	rt, err := hibernate.Open("", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	ns, err := hibernate.Register(rt, "Test", func(context.Context, *hibernate.State) (cpuEcho, error) { return cpuEcho{}, nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	route := func(h *hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: ns.GetByName(h.Path())}, nil
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("at %v\n", ln.Addr())
	if os.Getenv("HIBERNATE_FEW_DESCRIPTORS") == "acceptor" {
		if ln, err = rt.WrapListener(ln, route); err != nil {
			t.Fatal(err)
		}
	}
	srv := &http.Server{Handler: ns.Handler(route)}
	go srv.Serve(ln)
	io.Copy(io.Discard, os.Stdin)
	srv.Close()
}

// TestDescriptorsRunOut at either door: those who are connected go on, the server
// does not spin, and when descriptors are free again it accepts.
func TestDescriptorsRunOut(t *testing.T) {
	for _, door := range []string{"acceptor", "net/http"} {
		t.Run(door, func(t *testing.T) {
			child := exec.Command(os.Args[0], "-test.run=^TestServerWithFewDescriptors$")
			child.Env = append(os.Environ(), "HIBERNATE_FEW_DESCRIPTORS="+door)
			in, err := child.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				in.Close()
				if err := child.Wait(); err != nil {
					t.Errorf("the server: %v", err)
				}
			}()
			lines := bufio.NewScanner(out)
			addr, ok := "", false
			for !ok && lines.Scan() {
				addr, ok = strings.CutPrefix(lines.Text(), "at ")
			}
			go func() {
				for lines.Scan() { // or it would wait for a reader
				}
			}()
			join := func() (*client, error) {
				d := ws.Dialer{Timeout: patience}
				conn, br, _, err := d.Dial(context.Background(), "ws://"+addr+"/o/a")
				if err != nil {
					return nil, err
				}
				t.Cleanup(func() { conn.Close() })
				if br == nil {
					br = bufio.NewReader(conn)
				}
				return &client{t: t, conn: conn, br: br}, nil
			}
			member, err := join()
			if err != nil {
				t.Fatal(err)
			}
			cpu := func() (ms int) {
				member.send("cpu")
				if _, err := fmt.Sscanf(member.next(), "text:%d", &ms); err != nil {
					t.Fatal(err)
				}
				return ms
			}
			var held []net.Conn
			for range 3 * fewDescriptors { // the system takes what the server does not
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				held = append(held, conn)
			}
			before := cpu()
			const while = time.Second
			time.Sleep(while) // to see what it does with nothing to do
			if used := cpu() - before; used > int(while.Milliseconds())/4 {
				t.Errorf("without descriptors the server used %d ms of CPU in %v", used, while)
			}
			member.send("still here")
			member.expect("text:still here")
			for _, conn := range held {
				conn.Close()
			}
			// The held ones are gone for the server only once it has seen their end.
			newcomer, err := join()
			for give := time.Now().Add(patience); err != nil && time.Now().Before(give); {
				newcomer, err = join()
			}
			if err != nil {
				t.Fatalf("with descriptors again: %v", err)
			}
			newcomer.send("back")
			newcomer.expect("text:back")
			member.send("too")
			member.expect("text:too")
		})
	}
}
