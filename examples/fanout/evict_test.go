package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/examples/internal/exampletest"
	"github.com/hibernate-go/hibernate/hibernatetest"
)

// TestTreeKeepsNothingInFieldsAlone builds every object of the tree anew before each event: what it forgets by
// that it would forget in production some day.
func TestTreeKeepsNothingInFieldsAlone(t *testing.T) {
	t.Parallel()
	k := hibernatetest.New(t, func(rt *hibernate.Runtime) (http.Handler, error) {
		handler, _, err := routes(rt, secret)
		return handler, err
	}, &hibernatetest.Options{EvictEveryTurn: true, Runtime: hibernate.Options{Limits: limits}})
	srv := &server{t: t, URL: k.URL}
	var dashboards []*hibernatetest.Client
	for range 3 * leaves {
		dashboards = append(dashboards, k.Dial("/feed/orders/ws"))
	}
	for i := range 5 {
		p := srv.hook("orders", Event{ID: fmt.Sprint(i), Source: "shop", Text: "order"})
		if p.Event.Seq != uint64(i+1) || p.Reached != len(dashboards) {
			t.Fatalf("event %d: %+v", i, p)
		}
		for _, c := range dashboards {
			var e Event
			if m := c.Next(); json.Unmarshal(m.Data, &e) != nil || e != p.Event {
				t.Fatalf("got %s, want %+v", m.Text(), p.Event)
			}
		}
	}
	if p := srv.hook("orders", Event{ID: "1", Source: "shop", Text: "order"}); p.Event.Seq != 2 {
		t.Fatalf("sent again: %+v", p)
	}
	k.Restart() // what somebody has seen is on disk
	if got := exampletest.Get[[]Event](t, srv.URL+"/feed/orders/events"); len(got) != 5 || got[4].Seq != 5 {
		t.Fatalf("after the restart: %+v", got)
	}
}
