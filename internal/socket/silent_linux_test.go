//go:build !portable

package socket

import (
	"net"
	"os"
	"syscall"
	"testing"
)

func init() { silent["descriptors"] = unixPair }

func unixPair(t *testing.T) (server, client net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := ends[0].(*net.UnixConn).SetWriteBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	return ends[0], ends[1]
}
