package hibernateprom_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gobwas/ws"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/hibernateprom"
	"github.com/hibernate-go/hibernate/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m, leak.Dead()...) }

type room struct{ state *hibernate.State }

func newRoom(_ context.Context, s *hibernate.State) (*room, error) { return &room{s}, nil }

var put = hibernate.NewMethod("put", func(r *room, ctx context.Context, key string) (bool, error) {
	return true, hibernate.Put(ctx, r.state.Storage(), key, 1)
})

// TestCollectorKeepsToTheConventions of Prometheus, and tells what has happened.
func TestCollectorKeepsToTheConventions(t *testing.T) {
	ctx := context.Background()
	rt, err := hibernate.Open("", &hibernate.Options{TurnTimes: true, Limits: hibernate.Limits{Key: 10}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	rooms, err := hibernate.Register(rt, "Room", newRoom, nil)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(rooms.Handler(func(*hibernate.Handshake) (hibernate.Join, error) {
		return hibernate.Join{Object: rooms.GetByName("b")}, nil
	}))
	defer srv.Close()
	conn, _, _, err := ws.Dial(ctx, "ws"+strings.TrimPrefix(srv.URL, "http"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := put.Call(ctx, rooms.GetByName("a"), "key"); err != nil {
		t.Fatal(err)
	}
	if _, err := put.Call(ctx, rooms.GetByName("a"), "a key that is too long"); err == nil {
		t.Fatal("a key over the limit was put")
	}
	c := hibernateprom.NewCollector(rt)
	problems, err := testutil.CollectAndLint(c)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP hibernate_objects Objects with an instance (memory), and with WebSockets alone (asleep).
# TYPE hibernate_objects gauge
hibernate_objects{class="Room",state="asleep"} 1
hibernate_objects{class="Room",state="memory"} 1
# HELP hibernate_websockets Connected WebSockets.
# TYPE hibernate_websockets gauge
hibernate_websockets{class="Room"} 1
# HELP hibernate_wakes_total Instances made, by what they were made for.
# TYPE hibernate_wakes_total counter
hibernate_wakes_total{cause="alarm",class="Room"} 0
hibernate_wakes_total{cause="call",class="Room"} 1
hibernate_wakes_total{cause="close",class="Room"} 0
hibernate_wakes_total{cause="drain",class="Room"} 0
hibernate_wakes_total{cause="error",class="Room"} 0
hibernate_wakes_total{cause="message",class="Room"} 0
hibernate_wakes_total{cause="request",class="Room"} 0
# HELP hibernate_commits_total Turns whose writes are durable.
# TYPE hibernate_commits_total counter
hibernate_commits_total 1
`), "hibernate_objects", "hibernate_websockets", "hibernate_wakes_total", "hibernate_commits_total"); err != nil {
		t.Error(err)
	}
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	for _, want := range []string{
		`hibernate_turn_duration_seconds_count{class="Room"} 3`, `hibernate_gate_wait_seconds_count 1`,
		`hibernate_gate_wait_seconds_bucket{le="+Inf"} 1`, `hibernate_refusals_total{limit="Key"} 1`, `hibernate_refusals_total{limit="Value"} 0`,
	} {
		if !strings.Contains(rec.Body.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, rec.Body)
		}
	}
}

func Example() {
	rt, err := hibernate.Open("", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer rt.Close()
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(hibernateprom.NewCollector(rt))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))

	srv := httptest.NewServer(mux)
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/metrics")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "hibernate_messages_total") {
			fmt.Print(line)
		}
	}
	// Output: hibernate_messages_total 0
}
