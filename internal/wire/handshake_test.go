package wire

import (
	"bufio"
	"bytes"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// The sample of RFC 6455 §1.3.
const (
	sampleKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	sampleAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

func upgradeRequest() *http.Request {
	r := httptest.NewRequest("GET", "http://example.com/chat", nil)
	r.Header.Set("Upgrade", "websocket")
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Sec-WebSocket-Key", sampleKey)
	r.Header.Set("Sec-WebSocket-Version", "13")
	return r
}

// RFC 6455 §4.2.1.
func TestCheckHandshake(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*http.Request)
		status int // 0: accepted
		header http.Header
	}{
		{"as it should be", func(r *http.Request) {}, 0, nil},
		{"connection is a list", func(r *http.Request) { r.Header.Set("Connection", "keep-alive, UPGRADE") }, 0, nil},
		{"connection in several lines", func(r *http.Request) { r.Header["Connection"] = []string{"keep-alive", "upgrade"} }, 0, nil},
		{"upgrade in capitals", func(r *http.Request) { r.Header.Set("Upgrade", "WebSocket") }, 0, nil},
		{"upgrade is a list", func(r *http.Request) { r.Header.Set("Upgrade", "h2c, websocket") }, 0, nil},
		{"http/2", func(r *http.Request) { r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0; r.Header.Del("Upgrade") }, 505, nil},
		{"http/1.0", func(r *http.Request) { r.Proto, r.ProtoMinor = "HTTP/1.0", 0 }, 400, nil},
		{"post", func(r *http.Request) { r.Method = "POST" }, 405, http.Header{"Allow": {"GET"}}},
		{"no upgrade", func(r *http.Request) { r.Header.Del("Upgrade") }, 426, http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}}},
		{"post without upgrade", func(r *http.Request) { r.Method = "POST"; r.Header.Del("Upgrade") }, 426, http.Header{"Upgrade": {"websocket"}}},
		{"upgrade to something else", func(r *http.Request) { r.Header.Set("Upgrade", "h2c") }, 426, nil},
		{"upgrade with a kelvin sign", func(r *http.Request) { r.Header.Set("Upgrade", "websoc\u212aet") }, 426, nil},
		{"no connection", func(r *http.Request) { r.Header.Del("Connection") }, 400, nil},
		{"connection without upgrade", func(r *http.Request) { r.Header.Set("Connection", "keep-alive, upgrades") }, 400, nil},
		{"no host", func(r *http.Request) { r.Host = "" }, 400, nil},
		{"no version", func(r *http.Request) { r.Header.Del("Sec-WebSocket-Version") }, 400, nil},
		{"version 8", func(r *http.Request) { r.Header.Set("Sec-WebSocket-Version", "8") }, 426, http.Header{"Sec-Websocket-Version": {"13"}, "Upgrade": {"websocket"}}},
		{"version 013", func(r *http.Request) { r.Header.Set("Sec-WebSocket-Version", "013") }, 426, nil},
		{"two versions", func(r *http.Request) { r.Header.Add("Sec-WebSocket-Version", "13") }, 426, nil},
		{"no key", func(r *http.Request) { r.Header.Del("Sec-WebSocket-Key") }, 400, nil},
		{"two keys", func(r *http.Request) { r.Header.Add("Sec-WebSocket-Key", sampleKey) }, 400, nil},
		{"empty key", func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", "") }, 400, nil},
		{"key of 15 bytes", func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAA") }, 400, nil},
		{"key of 18 bytes", func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAAAA") }, 400, nil},
		{"key not base64", func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25j!Q==") }, 400, nil},
		{"key with a line break", func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ\r\n") }, 400, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := upgradeRequest()
			tt.change(r)
			e := CheckHandshake(r)
			if tt.status == 0 {
				if e != nil {
					t.Fatalf("refused: %v", e)
				}
				return
			}
			if e == nil {
				t.Fatal("accepted")
			}
			if e.Status != tt.status || e.Text == "" || !strings.Contains(e.Error(), e.Text) {
				t.Errorf("answer %d %q", e.Status, e.Text)
			}
			for name, v := range tt.header {
				if !slices.Equal(e.Header[name], v) {
					t.Errorf("%s: %q, want %q", name, e.Header[name], v)
				}
			}
		})
	}
}

func TestIsUpgrade(t *testing.T) {
	r := upgradeRequest()
	r.Header.Del("Sec-WebSocket-Key")
	if !IsUpgrade(r) {
		t.Error("a faulty handshake still asks for an upgrade")
	}
	r.Header.Del("Upgrade")
	if IsUpgrade(r) {
		t.Error("no Upgrade header, still an upgrade")
	}
}

// RFC 6455 §11.3.4.
func TestOfferedProtocols(t *testing.T) {
	r := upgradeRequest()
	if got := OfferedProtocols(r); got != nil {
		t.Errorf("%q from nothing", got)
	}
	r.Header["Sec-Websocket-Protocol"] = []string{"chat.v2,\tchat.v1 ,", "not a token, , last"}
	if got, want := OfferedProtocols(r), []string{"chat.v2", "chat.v1", "last"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestValidToken(t *testing.T) {
	for c := range 256 {
		want := strings.ContainsRune("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", rune(c)) && c < 128
		if got := ValidToken("a" + string([]byte{byte(c)})); got != want {
			t.Errorf("byte %#x: %v", c, got)
		}
	}
	if ValidToken("") {
		t.Error("empty token")
	}
}

// RFC 6455 §4.2.2, with the sample of §1.3.
func TestAppendSwitching(t *testing.T) {
	got, err := AppendSwitching([]byte("before "), sampleKey, "chat", "", http.Header{
		"X-B":                      {"2", " 3 "},
		"X-A":                      {"gr\xc3\xbc\xc3\x9fe\tdich"},
		"Date":                     nil,
		"connection":               {"close"},
		"Upgrade":                  {"h2c"},
		"Sec-WebSocket-Accept":     {"forged"},
		"Sec-Websocket-Extensions": {"permessage-deflate"},
		"Content-Length":           {"5"},
		"Transfer-Encoding":        {"chunked"},
		"Sec-Websocket-Protocol":   {"other"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "before HTTP/1.1 101 Switching Protocols\r\n" +
		"Upgrade: websocket\r\n" +
		"Connection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: " + sampleAccept + "\r\n" +
		"X-A: gr\xc3\xbc\xc3\x9fe\tdich\r\n" +
		"X-B: 2\r\n" +
		"X-B: 3\r\n" +
		"Sec-WebSocket-Protocol: chat\r\n" +
		"\r\n"
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestProtocolMayComeFromTheHeader(t *testing.T) {
	got, err := AppendSwitching(nil, sampleKey, "", "", http.Header{"Sec-Websocket-Protocol": {"chat"}})
	if err != nil || !strings.HasSuffix(string(got), "\r\nSec-WebSocket-Protocol: chat\r\n\r\n") {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestAppendSwitchingRefusesInjection(t *testing.T) {
	for _, tt := range []struct {
		names    string
		protocol string
		header   http.Header
	}{
		{"chat\\r", "chat\r\nX: y", nil},
		{"a b", "a b", nil},
		{"X-Line", "", http.Header{"X-Line": {"a\r\nX: y"}}},
		{"X-Feed", "", http.Header{"X-Feed": {"ok", "a\nX: y"}}},
		{"X-Return", "", http.Header{"X-Return": {"a\rX: y"}}},
		{"X-Nul", "", http.Header{"X-Nul": {"a\x00"}}},
		{"X-Del", "", http.Header{"X-Del": {"a\x7f"}}},
		{"X: y", "", http.Header{"X: y\r\nX-Z": {"a"}}},
		{"X Y", "", http.Header{"X Y": {"a"}}},
		{`""`, "", http.Header{"": {"a"}}},
		{"Sec-Websocket-Protocol", "", http.Header{"Sec-Websocket-Protocol": {"a", "b"}}},
		{"Sec-Websocket-Protocol", "", http.Header{"Sec-Websocket-Protocol": {"a, b"}}},
	} {
		got, err := AppendSwitching([]byte("kept"), sampleKey, tt.protocol, "", tt.header)
		if err == nil || !strings.Contains(err.Error(), tt.names) {
			t.Errorf("protocol %q, header %q: error %v does not name it", tt.protocol, tt.header, err)
		}
		if string(got) != "kept" {
			t.Errorf("protocol %q, header %q: dst became %q", tt.protocol, tt.header, got)
		}
	}
}

// RFC 6455 §4.2.2 step 4 and §10.2.
func TestSameOrigin(t *testing.T) {
	for _, tt := range []struct {
		host    string
		origins []string
		want    bool
	}{
		{"example.com", nil, true},
		{"example.com", []string{"https://example.com"}, true},
		{"example.com", []string{"http://example.com"}, true},
		{"EXAMPLE.com", []string{"https://example.COM"}, true},
		{"example.com", []string{"https://example.com:443"}, true},
		{"example.com:443", []string{"https://example.com"}, true},
		{"example.com:80", []string{"http://example.com"}, true},
		{"localhost:8080", []string{"http://localhost:8080"}, true},
		{"[::1]:8080", []string{"http://[::1]:8080"}, true},
		{"[::1]", []string{"http://[::1]:80"}, true},
		{"example.com", []string{"https://example.com:8443"}, false},
		{"example.com:8443", []string{"https://example.com"}, false},
		{"example.com:80", []string{"https://example.com"}, false},
		{"example.com", []string{"https://evil.com"}, false},
		{"example.com", []string{"https://example.com.evil.com"}, false},
		{"example.com", []string{"https://evil.com/example.com"}, false},
		{"example.com", []string{"https://example.com@evil.com"}, false},
		{"example.com", []string{"https://evil.com@example.com"}, false},
		{"example.com", []string{"https://example.com/"}, false},
		{"example.com", []string{"https://example.com?"}, false},
		{"example.com", []string{"https://example.com#"}, false},
		{"example.com", []string{"https://%65xample.com"}, false},
		{"example.com", []string{"null"}, false},
		{"example.com", []string{""}, false},
		{"example.com", []string{"example.com"}, false},
		{"example.com", []string{"//example.com"}, false},
		{"example.com", []string{"file://example.com"}, false},
		{"example.com", []string{"https://"}, false},
		{"", []string{"https://"}, false},
		{"", []string{"https://:443"}, false},
		{"example.com", []string{"https://exa mple.com"}, false},
		{"example.com", []string{"https://example.com:port"}, false},
		{"example.com", []string{"https://example.com", "https://example.com"}, false},
	} {
		r := upgradeRequest()
		r.Host = tt.host
		r.Header["Origin"] = tt.origins
		if got := SameOrigin(r); got != tt.want {
			t.Errorf("host %q, origin %q: %v", tt.host, tt.origins, got)
		}
	}
}

// FuzzHandshake holds that no header, name, value, key or subprotocol makes a
// response of more lines, other lines or a body than what it says.
func FuzzHandshake(f *testing.F) {
	f.Add(sampleKey, "chat", "X-A", "b", "https://example.com", "example.com", "websocket", "13")
	f.Add("k\r\nX: y", "a,b", "X-A: b\r\nX-C", "b\r\n\r\nbody", "null", "[::1", "h2c , websocket", "8")
	f.Add("", "", "sec-websocket-protocol", "chat", "http://[::1]:80", "[::1]", "", "")
	f.Add("", "", "Content-Length", "9", "https://a:1:2", "a:1:2", ",", "013")
	f.Fuzz(func(t *testing.T, key, protocol, name, value, origin, host, upgrade, version string) {
		r := &http.Request{Method: "GET", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: host, Header: http.Header{
			"Connection": {"upgrade"}, "Upgrade": {upgrade}, "Origin": {origin}, "Sec-Websocket-Key": {key},
			"Sec-Websocket-Version": {version}, "Sec-Websocket-Protocol": {protocol}, name: {value},
		}}
		for _, p := range OfferedProtocols(r) {
			if !ValidToken(p) {
				t.Fatalf("offered %q", p)
			}
		}
		SameOrigin(r)
		IsUpgrade(r)
		if e := CheckHandshake(r); e != nil && (e.Status < 400 || e.Text == "") {
			t.Fatalf("refused with %d %q", e.Status, e.Text)
		}

		head, err := AppendSwitching(nil, key, protocol, "", http.Header{name: {value}})
		if err != nil {
			if len(head) != 0 {
				t.Fatalf("error %v and head %q", err, head)
			}
			return
		}
		br := bufio.NewReader(bytes.NewReader(head))
		resp, err := http.ReadResponse(br, r)
		if err != nil {
			t.Fatalf("net/http cannot read %q: %v", head, err)
		}
		if resp.StatusCode != 101 || br.Buffered() != 0 {
			t.Fatalf("status %d, %d bytes behind the head %q", resp.StatusCode, br.Buffered(), head)
		}
		allowed := map[string]bool{"Upgrade": true, "Connection": true, "Sec-Websocket-Accept": true, http.CanonicalHeaderKey(name): true}
		if protocol != "" {
			allowed["Sec-Websocket-Protocol"] = true
		}
		for n, v := range resp.Header {
			if !allowed[n] || len(v) != 1 {
				t.Fatalf("injected %s: %q by %q", n, v, head)
			}
		}
		if lines := bytes.Count(head, []byte("\n")); lines > 7 || bytes.Count(head, []byte("\r")) != lines {
			t.Fatalf("%d lines in %q", lines, head)
		}
	})
}
