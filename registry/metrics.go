package registry

import (
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"p2ptun/proto"
)

// resetCounts counts ended streams by their reset code; the codes are few.
type resetCounts struct {
	mu sync.Mutex
	by map[string]int64
}

func (c *resetCounts) add(code proto.Code) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]int64{}
	}
	c.by[code.String()]++
}

func (c *resetCounts) copy() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.by)
}

var (
	descTunnels = prometheus.NewDesc("p2ptun_tunnels", "Tunnels in the table.", []string{"kind", "state"}, nil)
	descStreams = prometheus.NewDesc("p2ptun_streams", "Live forwarded connections.", nil, nil)
	descOpened  = prometheus.NewDesc("p2ptun_streams_opened_total", "Forwarded connections since start.", nil, nil)
	descResets  = prometheus.NewDesc("p2ptun_streams_reset_total", "Forwarded connections that ended by a reset, by reason.", []string{"reason"}, nil)
	descTooMany = prometheus.NewDesc("p2ptun_streams_refused_total", "Forwarded connections of peers refused because of a limit.", []string{"limit"}, nil)
	descBytes   = prometheus.NewDesc("p2ptun_bytes_total", "Payload bytes carried since start; in is from peers.", []string{"direction"}, nil)
	descQueue   = prometheus.NewDesc("p2ptun_event_queue_depth", "Events that wait in a subscriber's queue.", []string{"subscriber"}, nil)
	descBound   = prometheus.NewDesc("p2ptun_event_queue_bound", "The bound of a subscriber's queue.", []string{"subscriber"}, nil)
	descLost    = prometheus.NewDesc("p2ptun_events_lost_total", "Events that slow subscribers lost since start.", nil, nil)
)

// Describe implements prometheus.Collector.
func (r *Registry) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descTunnels, descStreams, descOpened, descResets, descTooMany, descBytes, descQueue, descBound, descLost} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (r *Registry) Collect(ch chan<- prometheus.Metric) {
	r.mu.RLock()
	live := len(r.streams)
	r.mu.RUnlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	for key, n := range r.tunnelsByState() {
		gauge(descTunnels, float64(n), key[0], key[1])
	}
	gauge(descStreams, float64(live))
	count(descOpened, float64(r.opened.Load()))
	for code, n := range r.resets.copy() {
		count(descResets, float64(n), code)
	}
	count(descTooMany, float64(r.tooMany.Load()), string(LimitStreams))
	count(descTooMany, float64(r.peerTooMany.Load()), string(LimitPeerStreams))
	count(descBytes, float64(r.bytesIn.Load()), "in")
	count(descBytes, float64(r.bytesOut.Load()), "out")
	count(descLost, float64(r.Events.Lost()))
	queued, bound := map[string]int{}, map[string]int{}
	for _, q := range r.Events.Depths() {
		queued[q.Name] += q.Queued
		bound[q.Name] += q.Bound
	}
	for name := range queued {
		gauge(descQueue, float64(queued[name]), name)
		gauge(descBound, float64(bound[name]), name)
	}
}

func (r *Registry) tunnelsByState() map[[2]string]int {
	counts := map[[2]string]int{}
	for _, e := range r.Tunnels() {
		s := e.Status()
		counts[[2]string{string(s.Kind), string(s.State)}]++
	}
	return counts
}
