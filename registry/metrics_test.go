package registry

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"p2ptun/proto"
)

// gather gives the metrics by name, and fails where they are not consistent.
func gather(tb testing.TB, r *Registry) map[string]*dto.MetricFamily {
	tb.Helper()
	pedant := prometheus.NewPedanticRegistry()
	must(tb, pedant.Register(r))
	families, err := pedant.Gather()
	must(tb, err)
	byName := map[string]*dto.MetricFamily{}
	for _, f := range families {
		byName[f.GetName()] = f
	}
	return byName
}

// values are those of one metric by its labels' values.
func values(f *dto.MetricFamily) map[string]float64 {
	all := map[string]float64{}
	for _, m := range f.GetMetric() {
		key := ""
		for _, l := range m.GetLabel() {
			key += l.GetValue() + " "
		}
		all[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	return all
}

func TestMetricsOfEmptyRegistryGather(t *testing.T) { gather(t, New()) }

func TestMetricsGatherAfterResetsOfManyCodes(t *testing.T) {
	g := newRig(t)
	register(t, g.Registry, listenOn("other"))
	for range 2 {
		sub := subscribe[Event](t, g.Events, 3)
		defer sub.Close()
	}
	codes := []proto.Code{proto.CodeNone, proto.CodeReset, proto.CodeRefused, proto.CodeRefused, 0x1001, 0x1008, 0xffffffff}
	for _, code := range codes {
		_, peer, _, _ := g.memBoth(10)
		must(t, peer.Reset(code))
	}
	g.drained()
	m := gather(t, g.Registry)
	resets := values(m["p2ptun_streams_reset_total"])
	if resets["refused "] != 2 || resets["reset "] != 1 || resets["reset by the peer's libp2p "] != 3 {
		t.Errorf("resets %v", resets)
	}
	if v := values(m["p2ptun_streams_opened_total"])[""]; v != float64(len(codes)) {
		t.Errorf("%v opened", v)
	}
	if v := values(m["p2ptun_tunnels"])["listen starting "]; v != 2 {
		t.Errorf("tunnels %v", values(m["p2ptun_tunnels"]))
	}
	if v := values(m["p2ptun_event_queue_bound"])["test "]; v != 6 {
		t.Errorf("bound %v of two queues of 3", v)
	}
}

func TestMetricsCountBytesByDirection(t *testing.T) {
	g := newRig(t)
	client, peer, _ := g.tcpBoth()
	must(t, writeOf(client, pattern(300))())
	must(t, writeOf(peer, pattern(200))())
	must(t, client.CloseWrite())
	must(t, peer.CloseWrite())
	g.drained()
	if v := values(gather(t, g.Registry)["p2ptun_bytes_total"]); v["out "] != 300 || v["in "] != 200 {
		t.Errorf("bytes %v", v)
	}
}

func TestSlowCollectorHoldsUpNoStream(t *testing.T) {
	g := newRig(t)
	g.resets.add(proto.CodeReset)
	metrics := make(chan prometheus.Metric)
	go func() { defer close(metrics); g.Collect(metrics) }()
	for range metrics {
		client, _, _, _ := g.memBoth(10)
		must(t, client.Reset(proto.CodeRefused))
		g.drained()
	}
}

func TestMetricsGatherWhileStreamsComeAndGo(t *testing.T) {
	g := newRig(t)
	busy := background(func() error {
		for range 500 {
			client, _, _, _ := g.memBoth(10)
			_ = client.Reset(proto.CodeReset)
		}
		return nil
	})
	for range 20 {
		gather(t, g.Registry)
	}
	must(t, <-busy)
}
