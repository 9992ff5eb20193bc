// Package hibernateprom shows a runtime to Prometheus.
//
//	prometheus.MustRegister(hibernateprom.NewCollector(rt))
//
// Several runtimes in one registry are told apart by a label of their own:
//
//	prometheus.WrapRegistererWith(prometheus.Labels{"runtime": "eu"}, registry).MustRegister(hibernateprom.NewCollector(rt))
//
// The metrics, with their labels:
//
//	hibernate_websockets{class}                       connected WebSockets
//	hibernate_objects{class,state}                    objects: state is "memory" or "asleep"
//	hibernate_wakes_total{class,cause}                instances made, by what they were made for
//	hibernate_turn_duration_seconds{class}            histogram, with hibernate.Options.TurnTimes or Observer
//	hibernate_hibernations_total                      instances dropped because they were idle or evicted
//	hibernate_constructor_failures_total
//	hibernate_resets_total                            objects reset
//	hibernate_revoked_goroutines                      of user code whose object was reset, and that go on
//	hibernate_messages_total                          messages delivered to handlers
//	hibernate_auto_responses_total                    messages answered without a handler
//	hibernate_handler_errors_total
//	hibernate_handler_panics_total
//	hibernate_commits_total                           turns whose writes are durable
//	hibernate_commits_pending                         commits that are not durable yet
//	hibernate_commit_groups_total                     groups of commits, each with one sync of the disk
//	hibernate_commit_group_seconds_total              time that those took
//	hibernate_gate_wait_seconds                       histogram, from a commit until its output may leave
//	hibernate_buffered_bytes                          what peers leave unread or incomplete
//	hibernate_vanished_total                          peers that did not answer a ping
//	hibernate_refusals_total{limit}                   what met a limit, by its name in hibernate.Limits
package hibernateprom

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hibernate-go/hibernate"
)

// A collector reads the runtime's counters when it is asked.
type collector struct{ rt *hibernate.Runtime }

// NewCollector returns a collector of rt's metrics, for one or more Prometheus
// registries. A registry takes one: a second runtime's, also in another test of the same
// process, needs a registry or a label of its own. It holds nothing but rt, blocks on nothing, and may outlive rt: then it
// repeats the last figures.
func NewCollector(rt *hibernate.Runtime) prometheus.Collector { return collector{rt} }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("hibernate_"+name, help, labels, nil)
}

var (
	websockets     = desc("websockets", "Connected WebSockets.", "class")
	objects        = desc("objects", "Objects with an instance (memory), and with WebSockets alone (asleep).", "class", "state")
	wakes          = desc("wakes_total", "Instances made, by what they were made for.", "class", "cause")
	turnDuration   = desc("turn_duration_seconds", "How long handlers and constructors took, Awaits included.", "class")
	hibernations   = desc("hibernations_total", "Instances dropped because they were idle or evicted.")
	failures       = desc("constructor_failures_total", "Constructors that failed.")
	resets         = desc("resets_total", "Objects reset.")
	revoked        = desc("revoked_goroutines", "Goroutines of user code whose object was reset, and that go on.")
	messages       = desc("messages_total", "Messages delivered to handlers.")
	autoResponses  = desc("auto_responses_total", "Messages answered without a handler.")
	handlerErrors  = desc("handler_errors_total", "Handlers that returned an error.")
	handlerPanics  = desc("handler_panics_total", "Handlers that panicked.")
	commits        = desc("commits_total", "Turns whose writes are durable.")
	commitsPending = desc("commits_pending", "Commits that are not durable yet.")
	groups         = desc("commit_groups_total", "Groups of commits, each with one sync of the disk.")
	groupSeconds   = desc("commit_group_seconds_total", "Time that writing and syncing groups of commits took.")
	gateWait       = desc("gate_wait_seconds", "Time from a turn's commit until its output may leave.")
	buffered       = desc("buffered_bytes", "Bytes that peers leave unread or incomplete; hibernate.Limits.Buffered limits them.")
	vanished       = desc("vanished_total", "Connections cut because the peer did not answer a ping.")
	refusals       = desc("refusals_total", "What met a limit, by its name in hibernate.Limits.", "limit")
)

var all = []*prometheus.Desc{
	websockets, objects, wakes, turnDuration, hibernations, failures, resets, revoked, messages, autoResponses,
	handlerErrors, handlerPanics, commits, commitsPending, groups, groupSeconds, gateWait, buffered, vanished, refusals,
}

// Describe sends what Collect may send.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range all {
		to <- d
	}
}

// Collect reads the counters.
func (c collector) Collect(to chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		send(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		send(d, prometheus.CounterValue, float64(v), labels...)
	}
	for _, n := range c.rt.Namespaces() {
		s, class := n.Stats(), n.Class()
		gauge(websockets, s.Sockets, class)
		gauge(objects, s.ObjectsInMemory, class, "memory")
		gauge(objects, s.ObjectsAsleep, class, "asleep")
		for _, cause := range hibernate.Causes() {
			counter(wakes, s.Wakes.By(cause), class, cause.String())
		}
		if s.TurnTime.Count() > 0 {
			to <- histogram(turnDuration, s.TurnTime, class)
		}
	}
	s := c.rt.Stats()
	counter(hibernations, s.Hibernated)
	counter(failures, s.Failed)
	counter(resets, s.Resets)
	gauge(revoked, s.Revoked)
	counter(messages, s.Messages)
	counter(autoResponses, s.AutoResponses)
	counter(handlerErrors, s.HandlerErrors)
	counter(handlerPanics, s.Panics)
	counter(commits, s.Commits)
	gauge(commitsPending, int64(s.Pending))
	counter(groups, s.Syncs)
	send(groupSeconds, prometheus.CounterValue, s.SyncTime.Seconds())
	to <- histogram(gateWait, s.GateWait)
	gauge(buffered, s.Buffered)
	counter(vanished, s.Vanished)
	for limit, n := range s.Refused.All() {
		counter(refusals, n, limit)
	}
}

func histogram(d *prometheus.Desc, h hibernate.Histogram, labels ...string) prometheus.Metric {
	below, n := map[float64]uint64{}, uint64(0)
	for i, count := range h.Buckets {
		n += count
		if bound := h.Bound(i); bound >= 0 {
			below[bound.Seconds()] = n
		}
	}
	return prometheus.MustNewConstHistogram(d, n, h.Sum.Seconds(), below, labels...)
}
