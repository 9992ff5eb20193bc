package leak

import (
	"net"
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestOpenDescriptorIsFound(t *testing.T) {
	before, err := descriptors()
	if err != nil {
		t.Skip(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open("leak.go")
	if err != nil {
		t.Fatal(err)
	}
	left := strings.Join(stay(before), "\n")
	ln.Close()
	if !strings.Contains(left, "socket:[") || !strings.Contains(left, "leak.go") {
		t.Errorf("found %q, want a socket and leak.go", left)
	}
	left = strings.Join(stay(before), "\n")
	if strings.Contains(left, "socket:[") || !strings.Contains(left, "leak.go") {
		t.Errorf("found %q, want leak.go", left)
	}
	file.Close()
	if left := stay(before); len(left) > 0 {
		t.Errorf("found %q, want nothing", left)
	}
}
