package wire

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const ours = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

// RFC 7692 §5 and §7.1, RFC 6455 §9.1.
func TestOffersOfDeflate(t *testing.T) {
	bits := func(n string) string { return ours + "; server_max_window_bits=" + n }
	for _, tt := range []struct {
		offers  string // fields, divided by |
		window  Window
		answer  string
		refused bool // with status 400
	}{
		{offers: "permessage-deflate", window: 15, answer: ours},
		{offers: "permessage-deflate; client_max_window_bits", window: 15, answer: ours},
		{offers: "permessage-deflate;client_max_window_bits=10", window: 15, answer: ours},
		{offers: `permessage-deflate; client_max_window_bits="10"`, window: 15, answer: ours},
		{offers: "permessage-deflate; server_no_context_takeover", window: 15, answer: ours},
		{offers: "permessage-deflate; client_no_context_takeover", window: 15, answer: ours},
		{offers: "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=8; server_max_window_bits=9", window: 9, answer: bits("9")},
		{offers: "permessage-deflate; server_max_window_bits=8", window: 8, answer: bits("8")},
		{offers: "permessage-deflate; server_max_window_bits=12", window: 12, answer: bits("12")},
		{offers: "permessage-deflate; server_max_window_bits=15", window: 15, answer: bits("15")},
		{offers: `permessage-deflate; server_max_window_bits="10"`, window: 10, answer: bits("10")},
		{offers: `permessage-deflate; server_max_window_bits="1\0"`, window: 10, answer: bits("10")},
		{offers: " permessage-deflate \t;\tserver_max_window_bits = 10 ", window: 10, answer: bits("10")},

		// The first acceptable one is taken.
		{offers: "permessage-deflate; server_max_window_bits=10, permessage-deflate", window: 10, answer: bits("10")},
		{offers: "permessage-deflate; server_max_window_bits=16, permessage-deflate", window: 15, answer: ours},
		{offers: "permessage-deflate; mode=fast, permessage-deflate; server_max_window_bits=11, permessage-deflate", window: 11, answer: bits("11")},
		{offers: "permessage-deflate; mode=fast|permessage-deflate", window: 15, answer: ours},
		{offers: "permessage-deflate|permessage-deflate; server_max_window_bits=9", window: 15, answer: ours},
		{offers: "foo, permessage-deflate", window: 15, answer: ours},
		{offers: `foo; bar="baz"; x, permessage-deflate`, window: 15, answer: ours},
		{offers: "x-webkit-deflate-frame, permessage-deflate; client_max_window_bits", window: 15, answer: ours},
		{offers: ",, permessage-deflate ,,", window: 15, answer: ours},

		// Declined (§7.1).
		{offers: ""},
		{offers: "foo"},
		{offers: "permessage-bzip2"},
		{offers: "PERMESSAGE-DEFLATE"},
		{offers: "permessage-deflate; foo"},
		{offers: "permessage-deflate; foo=bar"},
		{offers: "permessage-deflate; server_no_context_takeover; server_no_context_takeover"},
		{offers: "permessage-deflate; client_no_context_takeover; client_no_context_takeover"},
		{offers: "permessage-deflate; client_max_window_bits; client_max_window_bits=10"},
		{offers: "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10"},
		{offers: "permessage-deflate; server_no_context_takeover=1"},
		{offers: "permessage-deflate; client_no_context_takeover=true"},
		{offers: "permessage-deflate; server_max_window_bits"},
		{offers: "permessage-deflate; server_max_window_bits=7"},
		{offers: "permessage-deflate; server_max_window_bits=16"},
		{offers: "permessage-deflate; server_max_window_bits=08"},
		{offers: "permessage-deflate; server_max_window_bits=010"},
		{offers: "permessage-deflate; server_max_window_bits=+10"},
		{offers: "permessage-deflate; server_max_window_bits=-10"},
		{offers: "permessage-deflate; server_max_window_bits=0x9"},
		{offers: "permessage-deflate; server_max_window_bits=1_0"},
		{offers: "permessage-deflate; server_max_window_bits=ten"},
		{offers: "permessage-deflate; server_max_window_bits=266"},
		{offers: "permessage-deflate; server_max_window_bits=99999999999999999999"},
		{offers: "permessage-deflate; client_max_window_bits=7"},
		{offers: "permessage-deflate; client_max_window_bits=16"},
		{offers: "permessage-deflate; client_max_window_bits=09"},
		{offers: "permessage-deflate; Server_No_Context_Takeover"},

		// Not a list of extensions (RFC 6455 §9.1).
		{offers: ";", refused: true},
		{offers: "permessage-deflate;", refused: true},
		{offers: "permessage-deflate; ;", refused: true},
		{offers: "permessage-deflate; =10", refused: true},
		{offers: "permessage-deflate; server_max_window_bits=", refused: true},
		{offers: `permessage-deflate; server_max_window_bits=""`, refused: true},
		{offers: `permessage-deflate; server_max_window_bits="10`, refused: true},
		{offers: `permessage-deflate; server_max_window_bits="1 0"`, refused: true},
		{offers: `permessage-deflate; server_max_window_bits="10\`, refused: true},
		{offers: `permessage-deflate; server_max_window_bits="10"1`, refused: true},
		{offers: "permessage-deflate; server_max_window_bits=10 11", refused: true},
		{offers: "permessage deflate", refused: true},
		{offers: "permessage-deflate=1", refused: true},
		{offers: `"permessage-deflate"`, refused: true},
		{offers: "permessage-deflate, foo;", refused: true},
		{offers: "permessage-deflate|foo/bar", refused: true},
		{offers: "d\u00e9flate", refused: true},
	} {
		t.Run(tt.offers, func(t *testing.T) {
			fields := strings.Split(tt.offers, "|")
			r := upgradeRequest()
			r.Header["Sec-Websocket-Extensions"] = fields
			bad := CheckHandshake(r)
			if tt.refused != (bad != nil) || bad != nil && bad.Status != http.StatusBadRequest {
				t.Fatalf("the handshake: %v", bad)
			}
			h, ok := ParseHandshake([]byte(handshakeHead("/", "sec-websocket-extensions: "+strings.Join(fields, "\r\nSec-WebSocket-Extensions:"))))
			if ok == tt.refused {
				t.Fatalf("the head of the handshake is in order: %v", ok)
			}
			if tt.refused {
				return
			}
			if w, answer := OfferedDeflate(r); w != tt.window || answer != tt.answer {
				t.Errorf("window %d, answer %q; want %d, %q", w, answer, tt.window, tt.answer)
			}
			if w, answer := h.OfferedDeflate(); w != tt.window || answer != tt.answer {
				t.Errorf("at the head: window %d, answer %q; want %d, %q", w, answer, tt.window, tt.answer)
			}
		})
	}
}

// TestSwitchingAnswersTheOffer, in both forms, whatever others have set.
func TestSwitchingAnswersTheOffer(t *testing.T) {
	header := http.Header{"Sec-Websocket-Extensions": {"foo"}, "X-Y": {"z"}}
	b, err := AppendSwitching(nil, sampleKey, "chat", ours, header)
	if err != nil {
		t.Fatal(err)
	}
	h, ok := ParseHandshake([]byte(handshakeHead("/", "Sec-WebSocket-Extensions: permessage-deflate")))
	if !ok {
		t.Fatal("the handshake is not in order")
	}
	c, err := h.AppendSwitching(nil, "chat", ours, header)
	if err != nil {
		t.Fatal(err)
	}
	for _, head := range [][]byte{b, c} {
		r := response(t, head)
		if got := r.Header["Sec-Websocket-Extensions"]; len(got) != 1 || got[0] != ours || r.Header.Get("X-Y") != "z" || r.Header.Get("Sec-WebSocket-Protocol") != "chat" {
			t.Errorf("answered %v", r.Header)
		}
	}
	if c, err = h.AppendSwitching(nil, "", ours, nil); err != nil || response(t, c).Header.Get("Sec-WebSocket-Extensions") != ours {
		t.Errorf("answered %q, %v", c, err)
	}
}

func TestCheckingExtensionsDoesNotAllocate(t *testing.T) {
	line := []byte(`foo; a="b", permessage-deflate; client_max_window_bits; server_max_window_bits=10; server_no_context_takeover`)
	if n := testing.AllocsPerRun(100, func() {
		if !validExtensions(line) {
			t.Fatal("not valid")
		}
	}); n > 1 { // for a quoted string
		t.Errorf("%v allocations", n)
	}
}

var (
	aToken     = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
	aParam     = `[ \t]*;[ \t]*` + aToken + `(?:[ \t]*=[ \t]*(?:` + aToken + `|"(?:\\?` + strings.TrimSuffix(aToken, "+") + `)+"))?`
	anOffer    = aToken + `(?:` + aParam + `)*`
	offerList  = regexp.MustCompile(`^[, \t]*(?:` + anOffer + `[ \t]*(?:,[, \t]*` + anOffer + `[ \t]*)*[, \t]*)?$`)
	offerParam = regexp.MustCompile(`^(` + aToken + `)(?:[ \t]*=[ \t]*(.*))?$`)
)

// referenceOffer is the answer to a well-formed list, written down anew.
func referenceOffer(list string) Window {
	for offer := range strings.SplitSeq(list, ",") { // quoted strings have no commas
		params := strings.Split(offer, ";")
		if strings.Trim(params[0], " \t") != "permessage-deflate" {
			continue
		}
		w, acceptable, seen := Window(15), true, map[string]bool{}
		for _, p := range params[1:] {
			m := offerParam.FindStringSubmatch(strings.Trim(p, " \t"))
			name, value := m[1], strings.NewReplacer(`"`, "", `\`, "").Replace(m[2])
			n, err := strconv.Atoi(value)
			number := err == nil && n >= 8 && n <= 15 && strconv.Itoa(n) == value
			switch name {
			case "server_no_context_takeover", "client_no_context_takeover":
				acceptable = acceptable && value == ""
			case "client_max_window_bits":
				acceptable = acceptable && (value == "" || number)
			case "server_max_window_bits":
				acceptable = acceptable && number
				w = Window(n)
			default:
				acceptable = false
			}
			acceptable = acceptable && !seen[name]
			seen[name] = true
		}
		if acceptable {
			return w
		}
	}
	return 0
}

func FuzzExtensions(f *testing.F) {
	for _, s := range []string{"permessage-deflate; client_max_window_bits", `foo; a="\b";c = d,permessage-deflate; server_max_window_bits="1\0"; server_no_context_takeover`,
		"permessage-deflate; server_max_window_bits=16, permessage-deflate;server_max_window_bits=8;client_max_window_bits=15; client_no_context_takeover", ",, ;"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if got, want := validExtensions([]byte(line)), offerList.MatchString(line); got != want {
			t.Fatalf("%q is well-formed: %v, want %v", line, got, want)
		} else if !got {
			return
		}
		w, answer := OfferedDeflate(&http.Request{Header: http.Header{"Sec-Websocket-Extensions": {line}}})
		if want := referenceOffer(line); w != want {
			t.Fatalf("%q: window %d, want %d", line, w, want)
		}
		if w == 0 {
			if answer != "" {
				t.Fatalf("%q: answer %q without acceptance", line, answer)
			}
			return
		}
		if answer != ours && answer != ours+"; server_max_window_bits="+strconv.Itoa(int(w)) {
			t.Fatalf("%q: answer %q", line, answer)
		}
	})
}
