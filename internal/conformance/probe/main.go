// Probe serves the conformance protocol on a loopback port, for a driver that
// compares the library with transcripts of workerd. It prints the address it serves.
//
//	probe -port 8787 -data DIR -idle 10s
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/hibernate-go/hibernate/internal/conformance/probeserver"
)

func main() {
	port := flag.Int("port", 8787, "loopback port to serve; 0 is any")
	data := flag.String("data", "", "directory of the storage; empty keeps it in memory")
	idle := flag.Duration("idle", 10*time.Second, "how long an idle object stays in memory")
	verbose := flag.Bool("v", false, "log what handlers return and more")
	flag.Parse()
	if err := serve(*port, *data, *idle, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// serve does not return before something fails.
func serve(port int, data string, idle time.Duration, verbose bool) error {
	log := slog.New(slog.DiscardHandler)
	if verbose {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s, err := probeserver.Open(probeserver.Config{Dir: data, Idle: idle, Logger: log})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	return (&http.Server{Handler: s}).Serve(ln)
}
