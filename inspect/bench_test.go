package inspect_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/hibernate-go/hibernate"
	"github.com/hibernate-go/hibernate/inspect"
)

// BenchmarkOverview is the first page, and one that finds nothing among what it looks at.
func BenchmarkOverview(b *testing.B) {
	rt, err := hibernate.Open("", &hibernate.Options{Logger: slog.New(slog.DiscardHandler), IdleTimeout: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	defer rt.Close()
	rooms, err := hibernate.Register(rt, "Room", func(_ context.Context, s *hibernate.State) (*room, error) { return &room{state: s}, nil }, nil)
	if err != nil {
		b.Fatal(err)
	}
	there := 0
	for _, objects := range []int{1_000, 300_000} {
		for ; there < objects; there++ {
			if _, err := touch.Call(context.Background(), rooms.GetByName(fmt.Sprint("room", there)), 0); err != nil {
				b.Fatal(err)
			}
		}
		for name, query := range map[string]string{"first": "", "nothing": "?class=Room&name=nobody"} {
			b.Run(fmt.Sprintf("objects=%d/page=%s", objects, name), func(b *testing.B) {
				h := inspect.Handler(rt)
				for b.Loop() {
					rec := httptest.NewRecorder()
					h.ServeHTTP(rec, httptest.NewRequest("GET", "/"+query, nil))
					if rec.Code != 200 {
						b.Fatal(rec.Code)
					}
				}
			})
		}
	}
}

var touch = hibernate.NewMethod("touch", func(r *room, _ context.Context, n int) (int, error) { return n, nil })
