package daemon

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"p2ptun/trunk"
)

// trunkCounts counts what happened to trunks since the start.
type trunkCounts struct {
	parked, resumed, moved, ended atomic.Int64
	replayed                      atomic.Int64 // bytes
}

func (c *trunkCounts) add(e trunk.Event) {
	c.replayed.Add(int64(e.Replayed))
	switch e.Op {
	case trunk.Parked:
		c.parked.Add(1)
	case trunk.Resumed:
		c.resumed.Add(1)
	case trunk.Moved:
		c.moved.Add(1)
	case trunk.Ended:
		c.ended.Add(1)
	}
}

var (
	descTrunks      = prometheus.NewDesc("p2ptun_trunks", "Trunks, by whether they have a link.", []string{"state"}, nil)
	descTrunkOps    = prometheus.NewDesc("p2ptun_trunk_changes_total", "What happened to trunks since start.", []string{"op"}, nil)
	descTrunkAgain  = prometheus.NewDesc("p2ptun_trunk_replayed_bytes_total", "Bytes that were sent again over a new link since start.", nil, nil)
	descTrunkMemory = prometheus.NewDesc("p2ptun_trunk_memory_bytes", "Memory promised to the connections on trunks.", nil, nil)
	descTrunkBound  = prometheus.NewDesc("p2ptun_trunk_memory_bound_bytes", "The bound of that memory.", nil, nil)
)

// Describe implements prometheus.Collector.
func (k *trunks) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descTrunks, descTrunkOps, descTrunkAgain, descTrunkMemory, descTrunkBound} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (k *trunks) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, float64(v), labels...)
	}
	all, parked := k.count()
	send(descTrunks, prometheus.GaugeValue, int64(all-parked), "linked")
	send(descTrunks, prometheus.GaugeValue, int64(parked), "parked")
	send(descTrunkOps, prometheus.CounterValue, k.counts.parked.Load(), string(trunk.Parked))
	send(descTrunkOps, prometheus.CounterValue, k.counts.resumed.Load(), string(trunk.Resumed))
	send(descTrunkOps, prometheus.CounterValue, k.counts.moved.Load(), string(trunk.Moved))
	send(descTrunkOps, prometheus.CounterValue, k.counts.ended.Load(), string(trunk.Ended))
	send(descTrunkAgain, prometheus.CounterValue, k.counts.replayed.Load())
	send(descTrunkMemory, prometheus.GaugeValue, k.budget.Used())
	send(descTrunkBound, prometheus.GaugeValue, k.budget.Max())
}

// count counts the trunks of both sides.
func (k *trunks) count() (all, parked int) {
	all, parked = k.server.Count()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, use := range k.clients {
		if _, lives := use.Path(); lives {
			all++
		}
		if use.Parked() {
			parked++
		}
	}
	return all, parked
}
