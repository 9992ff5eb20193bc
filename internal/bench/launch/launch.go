//go:build linux

// Package launch builds the benchmarks' programs and runs servers, each as a process of its own that ends with ours.
package launch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Root is the directory of the library's module. The working directory must be inside.
func Root(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/hibernate-go/hibernate").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", explain(err, nil))
	}
	return strings.TrimSpace(string(out)), nil
}

// Build builds programs of the module at dir into the directory bin. An executable is named as its package's directory.
func Build(ctx context.Context, dir, bin string, packages ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-o", bin + string(filepath.Separator)}, packages...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %v: %w", packages, explain(err, out))
	}
	return nil
}

func explain(err error, out []byte) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(out) == 0 {
		out = exit.Stderr
	}
	if len(out) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
}

// A Server is a process that listens.
type Server struct {
	Addr string // IPv4 host:port
	PID  int

	cmd    *exec.Cmd
	cancel context.CancelFunc
	ended  chan struct{}
	output tail
}

const starting = 30 * time.Second

// Start runs a program with -addr, and returns when it accepts connections. The process gets SIGTERM when ctx ends or
// Stop is called, SIGKILL two seconds later, and SIGKILL when the calling thread ends: call it on a goroutine that is
// locked to its thread, or be prepared for that.
func Start(ctx context.Context, program string, args ...string) (*Server, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &Server{Addr: addr, cancel: cancel, ended: make(chan struct{})}
	s.cmd = exec.CommandContext(ctx, program, append([]string{"-addr", addr}, args...)...)
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.WaitDelay = 2 * time.Second
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.cmd.Stdout, s.cmd.Stderr = &s.output, &s.output
	if err := s.cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	s.PID = s.cmd.Process.Pid
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	for deadline := time.Now().Add(starting); ; {
		if conn, err := net.DialTimeout("tcp4", addr, time.Second); err == nil {
			conn.Close()
			return s, nil
		}
		select {
		case <-s.ended:
			cancel()
			return nil, fmt.Errorf("%s ended: %s", filepath.Base(program), s.Log())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.Stop()
			return nil, fmt.Errorf("%s does not listen: %s", filepath.Base(program), s.Log())
		}
	}
}

// Stop ends the process and returns when it is gone.
func (s *Server) Stop() {
	s.cancel()
	<-s.ended
}

// Log is the end of what the process has written.
func (s *Server) Log() string { return s.output.String() }

// Output runs a program to its end and returns what it has printed. What Start says of ctx and threads holds here too.
func Output(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, explain(err, nil)
	}
	return out, nil
}

// freeAddr is an address that nobody listens on, below the ports that the kernel gives to clients.
func freeAddr() (string, error) {
	for range 100 {
		ln, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err == nil {
			return ln.Addr().String(), ln.Close()
		}
	}
	return "", errors.New("no port is free")
}

// A tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex // guards the following
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const size = 2 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*size {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-size:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}
