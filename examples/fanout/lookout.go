package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hibernate-go/hibernate"
)

// A node is one object of a tree, as the page draws it.
type node struct {
	Name       string `json:"name"`
	InMemory   bool   `json:"inMemory"`
	Dashboards int    `json:"dashboards"`
}

// A lookout looks at trees without waking them, and not anew for each of the pages that ask.
type lookout struct {
	rt            *hibernate.Runtime
	feeds, relays *hibernate.Namespace

	mu   sync.Mutex // guards the following
	last view
}

type view struct {
	feed  string
	nodes []node
	at    time.Time
}

// look returns the objects of a tree: the feed, its relays, and their leaves.
func (l *lookout) look(ctx context.Context, feed string) ([]node, error) {
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	if last.feed == feed && time.Since(last.at) < 500*time.Millisecond {
		return last.nodes, nil
	}

	now := view{feed: feed, at: time.Now()}
	var failed error
	add := func(ns *hibernate.Namespace, name string) {
		o, err := l.rt.Inspect(ctx, ns.IDFromName(name))
		failed = errors.Join(failed, err)
		now.nodes = append(now.nodes, node{name, o.InMemory(), len(o.WebSockets)})
	}
	add(l.feeds, feed)
	for i := range width {
		add(l.relays, fmt.Sprintf("%s/%d", feed, i))
	}
	for i := range leaves {
		add(l.relays, fmt.Sprintf("%s/%d/%d", feed, i/width, i%width))
	}
	if failed != nil {
		return nil, failed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = now
	return now.nodes, nil
}
