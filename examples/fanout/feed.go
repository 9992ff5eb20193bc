package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/hibernate-go/hibernate"
)

// A feed is a tree of objects: the Feed itself, width relays below it, and width below each of these. The
// dashboards are connected to the last ones, the leaves. An object holds at most 32,768 connections; a feed
// holds that many at each of its leaves, and none of its objects calls more than width others.
const (
	width  = 4
	depth  = 2 // of relays
	leaves = width * width

	maxEvents = 100
	maxID     = 100 // bytes
	maxSource = 40  // characters
	maxText   = 400 // characters
	patience  = 10 * time.Second
)

// An Event is what a webhook tells, as it is stored and as every dashboard sees it.
type Event struct {
	Seq    uint64    `json:"seq"`
	ID     string    `json:"id"` // the sender's own, so that one that is sent again is known
	Source string    `json:"source"`
	Text   string    `json:"text"`
	At     time.Time `json:"at"`
}

// A Feed is the root of one tree while it is in memory. It numbers the events and keeps the last ones.
type Feed struct {
	state  *hibernate.State
	relays *hibernate.Namespace
	events []Event // as in storage, the oldest first
}

// A Relay is any other object of a tree. It passes events on, to the relays below it or, at a leaf, to the
// dashboards. It keeps nothing: its name says where it is.
type Relay struct {
	state  *hibernate.State
	relays *hibernate.Namespace
}

// A Publication tells a sender what has become of its event.
type Publication struct {
	Event   Event `json:"event"`
	Reached int   `json:"reached"` // dashboards
}

// The calls. Pass is made in init because it calls itself, which Go takes for an initialization cycle.
var (
	Publish = hibernate.NewMethod("publish", (*Feed).Publish)
	Recent  = hibernate.NewMethod("recent", (*Feed).Recent)
	Pass    *hibernate.Method[*Relay, Event, int]
)

func init() { Pass = hibernate.NewMethod("pass", (*Relay).Pass) }

// register registers both classes with rt. What a class needs of another comes by closure.
func register(rt *hibernate.Runtime) (feeds, relays *hibernate.Namespace, err error) {
	relays, err = hibernate.Register(rt, "Relay", func(_ context.Context, s *hibernate.State) (*Relay, error) {
		return &Relay{state: s, relays: relays}, nil
	}, nil)
	if err != nil {
		return nil, nil, err
	}
	feeds, err = hibernate.Register(rt, "Feed", func(ctx context.Context, s *hibernate.State) (*Feed, error) {
		f := &Feed{state: s, relays: relays}
		for e, err := range hibernate.List[Event](ctx, s.Storage(), hibernate.Prefix("event/")) {
			if err != nil {
				return nil, err
			}
			f.events = append(f.events, e.Value)
		}
		return f, nil
	}, nil)
	return feeds, relays, err
}

// Publish stores an event and passes it down the tree. If that fails somewhere the sender is told, and sends it
// again: it keeps its number, and a dashboard shows each number once.
//
// The event is on disk before the first relay hears of it. While it is on its way the feed takes the next,
// which may overtake it on another path; the dashboards put them in order.
func (f *Feed) Publish(ctx context.Context, e Event) (Publication, error) {
	e, err := f.store(ctx, e)
	if err != nil {
		return Publication{}, err
	}
	n, err := passOn(ctx, f.relays, f.state.Name(), e)
	return Publication{e, n}, err
}

func (f *Feed) store(ctx context.Context, e Event) (Event, error) {
	e.Seq = 1
	for _, old := range f.events {
		if old.ID == e.ID {
			return old, nil
		}
		e.Seq = old.Seq + 1
	}
	if err := hibernate.Put(ctx, f.state.Storage(), e.key(), e); err != nil {
		return Event{}, err
	}
	f.events = append(f.events, e)
	if len(f.events) > maxEvents {
		if _, err := f.state.Storage().Delete(ctx, f.events[0].key()); err != nil {
			return Event{}, err
		}
		f.events = f.events[1:]
	}
	return e, nil
}

// Recent returns the events with a number above after, the oldest first.
func (f *Feed) Recent(_ context.Context, after uint64) ([]Event, error) {
	events := []Event{}
	for _, e := range f.events {
		if e.Seq > after {
			events = append(events, e)
		}
	}
	return events, nil
}

// Pass passes an event on and returns how many dashboards it has reached.
func (r *Relay) Pass(ctx context.Context, e Event) (int, error) {
	if strings.Count(r.state.Name(), "/") < depth {
		return passOn(ctx, r.relays, r.state.Name(), e)
	}
	text, err := json.Marshal(e)
	if err != nil {
		return 0, err
	}
	return r.state.Broadcast(ctx, hibernate.Text(string(text)), nil)
}

// passOn calls the relays below parent side by side. A turn makes one call at a time, so they are made
// from outside of it, while it is given up: nothing of the object waits for the slowest of them.
func passOn(ctx context.Context, relays *hibernate.Namespace, parent string, e Event) (reached int, err error) {
	var counts [width]int
	err = hibernate.Await(ctx, func(context.Context) error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		var calls errgroup.Group // that one fails stops no other
		for i := range width {
			calls.Go(func() (err error) {
				counts[i], err = Pass.Call(ctx, relays.GetByName(fmt.Sprintf("%s/%d", parent, i)), e)
				return err
			})
		}
		return calls.Wait()
	})
	for _, n := range counts {
		reached += n
	}
	return reached, err
}

// anyLeaf is the name of one of a feed's leaves. By chance they fill evenly; one that is full
// answers 503, and the dashboard's next try goes elsewhere.
func anyLeaf(feed string) string {
	return fmt.Sprintf("%s/%d/%d", feed, rand.IntN(width), rand.IntN(width))
}

// key orders events by their number.
func (e Event) key() string { return fmt.Sprintf("event/%020d", e.Seq) }

// wrong says what is wrong with an event that a webhook has sent, if anything is.
func (e Event) wrong() string {
	switch source, text := utf8.RuneCountInString(e.Source), utf8.RuneCountInString(e.Text); {
	case e.ID == "" || len(e.ID) > maxID:
		return fmt.Sprintf("An event needs an id of 1 to %d bytes.", maxID)
	case source < 1 || source > maxSource:
		return fmt.Sprintf("An event has a source of 1 to %d characters.", maxSource)
	case text < 1 || text > maxText:
		return fmt.Sprintf("An event has a text of 1 to %d characters.", maxText)
	}
	return ""
}
