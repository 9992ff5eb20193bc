package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/examples/internal/exampletest"
	"github.com/hibernate-go/hibernate/examples/servers/room"
	"github.com/hibernate-go/hibernate/examples/servers/servertest"
	"github.com/hibernate-go/hibernate/examples/servers/site"
	"github.com/hibernate-go/hibernate/hibernatetest"
	"github.com/hibernate-go/hibernate/internal/leak"
)

// TestMain lets the test binary be the server, so that a test can interrupt it.
func TestMain(m *testing.M) {
	if !exampletest.RunMain(main) {
		leak.Main(m)
	}
}

// TestSessionsDecideWhoEnters a room, behind net/http's mux and the site's middleware.
func TestSessionsDecideWhoEnters(t *testing.T) {
	servertest.Check(t, func(rt *hibernate.Runtime) (http.Handler, error) { return routes(rt, "a key") })
}

// TestForgottenMiddlewareLetsNobodyIn: a route without it is a mistake, and not an open door.
func TestForgottenMiddlewareLetsNobodyIn(t *testing.T) {
	k := hibernatetest.New(t, func(rt *hibernate.Runtime) (http.Handler, error) {
		rooms, err := room.Handler(rt, site.User)
		mux := http.NewServeMux()
		mux.Handle("GET /rooms/{name}", rooms)
		return mux, err
	}, nil)
	_, err := k.TryDial("/rooms/lobby", nil)
	var refused *hibernatetest.HandshakeError
	if !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized {
		t.Fatal(err)
	}
}

// TestPlainAndTLS talks to the program itself, and ends it.
func TestPlainAndTLS(t *testing.T) {
	dir := t.TempDir()
	trust := certificate(t, dir)
	for name, flags := range map[string][]string{
		"plain": nil,
		"TLS":   {"-tls-cert", filepath.Join(dir, "cert.pem"), "-tls-key", filepath.Join(dir, "key.pem")},
	} {
		t.Run(name, func(t *testing.T) {
			p := exampletest.Start(t, append([]string{"-addr", "127.0.0.1:0", "-dir", t.TempDir()}, flags...)...)
			talk(t, p.URL, trust, p.Interrupt)
		})
	}
}

// TestBehindNginx runs the configuration that the documentation shows, on other ports.
func TestBehindNginx(t *testing.T) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx, err = exec.LookPath("/usr/sbin/nginx") // not in everybody's path
	}
	if err != nil {
		const missing = "no nginx here; on Debian: apt-get install nginx-light"
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	p := exampletest.Start(t, "-addr", "127.0.0.1:0", "-dir", t.TempDir())
	dir := t.TempDir()
	trust := certificate(t, dir)
	front := startNginx(t, nginx, dir, p.Addr())
	talk(t, front, trust, p.Interrupt)
}

// talk logs in, enters a room over HTTP/1.1, talks in it, and checks that the end of the server comes through as a Close.
func talk(t *testing.T, url string, trust *tls.Config, end func()) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true}}
	cookie := servertest.Login(t, client, url, "Ann")
	enter := func(cookie, origin string) (*exampletest.Client, error) {
		return exampletest.TryDial(t, url+"/rooms/lobby", &ws.Dialer{
			TLSConfig: trust,
			Header:    ws.HandshakeHeaderHTTP{"Cookie": {cookie}, "Origin": {origin}},
		})
	}
	for name, c := range map[string]struct{ cookie, origin, status string }{
		"no session":   {"", url, "401"},
		"another site": {cookie, "https://elsewhere.example", "403"},
	} {
		if _, err := enter(c.cookie, c.origin); err == nil || !strings.Contains(err.Error(), c.status) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ann, err := enter(cookie, url) // as a browser does: the origin is the page's
	if err != nil {
		t.Fatal(err)
	}
	ben, err := enter(servertest.Login(t, client, url, "Ben"), url)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("long ", 800)
	for _, text := range []string{"hello", long} {
		ann.SendText(text)
		for _, c := range []*exampletest.Client{ann, ben} {
			if got := c.Text(); got != "Ann: "+text {
				t.Fatalf("got %q", got)
			}
		}
	}
	ann.SendText("ping")
	if got := ann.Text(); got != "pong" {
		t.Fatalf("ping was answered with %q", got)
	}
	client.CloseIdleConnections()

	ended := make(chan error, 2)
	for _, c := range []*exampletest.Client{ann, ben} {
		go func() {
			_, err := c.Receive() // answers the Close too
			ended <- err
		}()
	}
	end()
	for range cap(ended) {
		var closed wsutil.ClosedError
		if err := <-ended; !errors.As(err, &closed) || closed.Code != ws.StatusGoingAway {
			t.Errorf("the connection ended with %v, want a Close with 1001", err)
		}
	}
}

// startNginx runs the example's configuration in dir, in front of app, and returns its URL.
func startNginx(t *testing.T, nginx, dir, app string) string {
	t.Helper()
	conf, err := os.ReadFile("../nginx/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	front := freeAddr(t)
	for old, now := range map[string]string{"127.0.0.1:8443": front, "127.0.0.1:8080": app} {
		if bytes.Count(conf, []byte(old)) != 1 {
			t.Fatalf("nginx.conf names %s other than once", old)
		}
		conf = bytes.Replace(conf, []byte(old), []byte(now), 1)
	}
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), conf, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(nginx, "-p", dir, "-c", "nginx.conf", "-e", "stderr")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // its master ends its workers
		<-done
		if t.Failed() {
			t.Logf("nginx said:\n%s", &log)
		}
	})
	exampletest.Until(t, "nginx listens", func() bool {
		select {
		case <-done:
			t.Fatalf("nginx ended:\n%s", &log)
		default:
		}
		c, err := net.Dial("tcp", front)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	return "https://" + front
}

// freeAddr is a port that nobody listens on, or did not a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// certificate writes cert.pem and key.pem for 127.0.0.1 into dir, and returns who trusts them.
func certificate(t *testing.T, dir string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "hibernate example"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: der},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{RootCAs: roots}
}
