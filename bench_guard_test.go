//go:build linux

package main

import (
	"net"
	"os/exec"
	"path/filepath"
	"testing"
)

// Guards: benchmarks that fail. Each compares what was measured in turns in one
// run, never with a figure of another machine, and its bound is far enough from
// what is usual (docs/benchmarks.md) for a busy machine.

const (
	// guardTLS is how much more CPU time a tunnel may take than one TLS connection
	// each between two programs that do nothing else.
	guardTLS = 2.2
	// guardSurvive is how much more it may take that connections survive.
	guardSurvive = 1.5
	// guardConnections is the least part of the connections a second that plain
	// streams open.
	guardConnections = 0.6
	// guardRounds are measured at least, and the medians compared.
	guardRounds = 7
	// guardChurn are opened and closed at least before memory is looked at, and as
	// many after it; guardGrowth is how many bytes of both nodes each of the latter
	// may leave behind.
	guardChurn  = 20_000
	guardGrowth = 400
	// guardIdle is how many KiB an idle connection may take, in both nodes.
	guardIdle = 24
)

// startTLSPair starts a pair, which scripts/bench has among its ceilings, in
// front of a server of this process.
func startTLSPair(b *testing.B, serve func(net.Conn)) *benchTunnel {
	b.Helper()
	program := filepath.Join(b.TempDir(), "benchmark")
	mustRun(b, "go", "build", "-C", "scripts/benchmark", "-o", program, ".")
	t := &benchTunnel{}
	t.addr = serveHere(b, serve)
	for _, side := range []string{"tls-server", "tls-client"} {
		t.addr = t.startCommand(b, "ready", exec.Command(program, side, "127.0.0.1:0", t.addr))
	}
	return t
}

// atMost fails where what was measured is not at most that.
func atMost(b *testing.B, what string, ratio, most float64) {
	b.Helper()
	b.ReportMetric(ratio, what)
	if ratio > most {
		b.Errorf("%s: %.2f, more than %.2f", what, ratio, most)
	}
}

func BenchmarkGuardBulk(b *testing.B) {
	for name, work := range map[string]func(b *testing.B, t *benchTunnel, size int){"up": pourUp, "down": pourDown} {
		b.Run(name, func(b *testing.B) {
			w := startBothWays(b, giveOrTake)
			pair := startTLSPair(b, giveOrTake)
			var trunk, plain, reference []float64
			for range max(b.N, guardRounds) {
				for _, one := range []struct {
					of *benchTunnel
					to *[]float64
				}{{w.trunk, &trunk}, {pair, &reference}, {w.plain, &plain}} {
					*one.to = append(*one.to, cpuOfPour(b, one.of, work))
				}
			}
			b.ReportMetric(0, "ns/op")
			atMost(b, "cpu/tls-pair", median(trunk)/median(reference), guardTLS)
			atMost(b, "cpu/plain", median(trunk)/median(plain), guardSurvive)
		})
	}
}

// cpuOfPour is how many CPU-seconds a GiB takes.
func cpuOfPour(b *testing.B, t *benchTunnel, work func(b *testing.B, t *benchTunnel, size int)) float64 {
	b.Helper()
	const size = 128 << 20
	before := t.cpu(b)
	work(b, t, size)
	return (t.cpu(b) - before).Seconds() * (1 << 30) / size
}

func BenchmarkGuardConnections(b *testing.B) {
	w := startBothWays(b, echo)
	trunk, plain := w.turns(b, max(b.N, guardRounds), func(t *benchTunnel) float64 { return connectionsASecond(b, t) })
	b.ReportMetric(0, "ns/op")
	atMost(b, "plain/conns", median(plain)/median(trunk), 1/guardConnections)
}

func BenchmarkGuardIdle(b *testing.B) {
	t := startBenchTunnel(b, benchTCP, echo)
	held := idleMemory(b, t)
	b.ReportMetric(0, "ns/op")
	atMost(b, "KiB/idle-conn", held, guardIdle)
}

// BenchmarkGuardChurn looks for what connections leave behind. With a -benchtime of
// 1000000x a tenth of them come before the first look.
func BenchmarkGuardChurn(b *testing.B) {
	t := startBenchTunnel(b, benchTCP, echo)
	t.pings(b, max(b.N/10, guardChurn))
	before, running := t.rss(b), t.metric(b, "go_goroutines")
	count := max(b.N-b.N/10, guardChurn)
	t.pings(b, count)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(before)/(1<<20), "MiB-before")
	b.ReportMetric(float64(t.rss(b))/(1<<20), "MiB-after")
	b.ReportMetric(t.metric(b, "go_goroutines")-running, "goroutines-more")
	atMost(b, "bytes/conn-left", float64(t.rss(b)-before)/float64(count), guardGrowth)
}
