//go:build linux

package main

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// What it costs that connections survive: the same work over a trunk and over
// plain streams, in turns, in one run. Each benchmark reports the ratio of the
// two; 1 is the same.

// bothWays are two tunnels that differ in that alone.
type bothWays struct{ trunk, plain *benchTunnel }

func startBothWays(b *testing.B, serve func(net.Conn)) *bothWays {
	b.Helper()
	w := &bothWays{trunk: startBenchTunnel(b, benchTCP, serve), plain: startBenchTunnel(b, benchTCP, serve, "--survive", "0")}
	for _, t := range []*benchTunnel{w.trunk, w.plain} {
		if err := ping(t.addr); err != nil {
			b.Fatal(err)
		}
	}
	return w
}

// turns does the work over both, n times, and gives what it measured of each.
func (w *bothWays) turns(b *testing.B, n int, work func(t *benchTunnel) float64) (trunk, plain []float64) {
	b.Helper()
	for i := range n {
		one, other := w.trunk, w.plain
		if i%2 == 1 {
			one, other = other, one
		}
		a, c := work(one), work(other)
		if i%2 == 1 {
			a, c = c, a
		}
		trunk, plain = append(trunk, a), append(plain, c)
	}
	return trunk, plain
}

// report gives the ratio of the medians, and both.
func report(b *testing.B, unit string, trunk, plain []float64) {
	b.Helper()
	b.ReportMetric(median(trunk), unit+"-trunk")
	b.ReportMetric(median(plain), unit+"-plain")
	b.ReportMetric(median(trunk)/median(plain), unit+"-ratio")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSurviveBulk sends 128 MiB b.N times each way: the CPU of both nodes.
func BenchmarkSurviveBulk(b *testing.B) {
	for name, work := range map[string]func(b *testing.B, t *benchTunnel, size int){"up": pourUp, "down": pourDown} {
		b.Run(name, func(b *testing.B) {
			w := startBothWays(b, giveOrTake)
			trunk, plain := w.turns(b, b.N, func(t *benchTunnel) float64 { return cpuOfPour(b, t, work) })
			report(b, "cpu-s/GiB", trunk, plain)
		})
	}
}

// giveOrTake serves pourUp, pourDown and ping: 'd' and a number of MiB, or 'u' and bytes to the end, or
// one byte.
func giveOrTake(c net.Conn) {
	defer c.Close()
	head := make([]byte, 2)
	if n, _ := io.ReadFull(c, head[:1]); n == 0 {
		return
	}
	switch head[0] {
	case 'u':
		_, _ = io.Copy(io.Discard, c)
		_, _ = c.Write(head[:1])
	case 'd':
		_, _ = io.ReadFull(c, head[1:])
		block := make([]byte, 1<<20)
		for range head[1] {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	default:
		_, _ = c.Write(head[:1])
		_, _ = io.Copy(c, c)
	}
}

func pourUp(b *testing.B, t *benchTunnel, size int) {
	b.Helper()
	c := t.dial(b)
	defer c.Close()
	block := make([]byte, 1<<20)
	_, err := c.Write([]byte{'u'})
	for left := size; left > 0 && err == nil; left -= len(block) {
		_, err = c.Write(block)
	}
	_ = c.CloseWrite()
	if _, rerr := io.ReadFull(c, block[:1]); err != nil || rerr != nil {
		b.Fatal(err, rerr)
	}
}

func pourDown(b *testing.B, t *benchTunnel, size int) {
	b.Helper()
	c := t.dial(b)
	defer c.Close()
	if _, err := c.Write([]byte{'d', byte(size >> 20)}); err != nil {
		b.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, c); err != nil || n != int64(size) {
		b.Fatal(n, err)
	}
}

// BenchmarkSurviveConnections opens 500 connections, eight at a time, b.N times.
func BenchmarkSurviveConnections(b *testing.B) {
	w := startBothWays(b, echo)
	trunk, plain := w.turns(b, b.N, func(t *benchTunnel) float64 { return connectionsASecond(b, t) })
	report(b, "conns/s", trunk, plain)
}

// connectionsASecond opens 500, eight at a time, each with a byte there and back.
func connectionsASecond(b *testing.B, t *benchTunnel) float64 {
	b.Helper()
	const count = 500
	began := time.Now()
	t.pings(b, count)
	return count / time.Since(began).Seconds()
}

// BenchmarkSurviveRoundTrip bounces 64 bytes 2,000 times, b.N times; then
// beside a connection that is poured into, 200 times.
func BenchmarkSurviveRoundTrip(b *testing.B) {
	for name, beside := range map[string]bool{"idle": false, "beside bulk": true} {
		b.Run(name, func(b *testing.B) {
			w := startBothWays(b, giveOrTake)
			count := 2000
			if beside {
				count = 200
			}
			trunk, plain := w.turns(b, b.N, func(t *benchTunnel) float64 {
				stop := func() {}
				if beside {
					stop = pourOn(b, t)
				}
				defer stop()
				return median(bounces(b, t, count))
			})
			report(b, "ms", trunk, plain)
		})
	}
}

// pourOn pours into a connection until the returned func is called.
func pourOn(b *testing.B, t *benchTunnel) (stop func()) {
	b.Helper()
	c := t.dial(b)
	if _, err := c.Write([]byte{'u'}); err != nil {
		b.Fatal(err)
	}
	var pouring sync.WaitGroup
	pouring.Go(func() {
		block := make([]byte, 1<<20)
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	})
	return func() {
		c.Close()
		pouring.Wait()
	}
}

// bounces gives the round trips of 64 bytes, in ms.
func bounces(b *testing.B, t *benchTunnel, count int) (took []float64) {
	b.Helper()
	c := t.dial(b)
	defer c.Close()
	block := make([]byte, 64)
	for range count {
		began := time.Now()
		if _, err := c.Write(block); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, block); err != nil {
			b.Fatal(err)
		}
		took = append(took, float64(time.Since(began).Microseconds())/1000)
	}
	return took
}

// BenchmarkSurviveIdle opens 4,000 connections over each: the memory of both
// nodes for one. A second time the memory is there already.
func BenchmarkSurviveIdle(b *testing.B) {
	w := startBothWays(b, echo)
	trunk, plain := w.turns(b, 1, func(t *benchTunnel) float64 { return idleMemory(b, t) })
	report(b, "KiB/conn", trunk, plain)
}

// idleMemory is how many KiB of both nodes one of 4,000 connections takes that
// have carried a byte there and back.
func idleMemory(b *testing.B, t *benchTunnel) float64 {
	b.Helper()
	const count = 4000
	before := t.rss(b)
	conns := make([]net.Conn, 0, count)
	defer func() { closeAll(conns) }()
	for range count {
		c := t.dial(b)
		conns = append(conns, c)
		if _, err := c.Write([]byte{1}); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
	}
	return float64(t.rss(b)-before) / count / 1024
}
