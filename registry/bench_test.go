package registry

import (
	"io"
	"net"
	"runtime"
	"testing"
)

// BenchmarkPump carries bytes one way; "direct" is the same pair of programs
// without a pump between them.
func BenchmarkPump(b *testing.B) {
	b.Run("direct tcp", func(b *testing.B) {
		client, peer := tcpPair(b)
		benchTransfer(b, client, peer)
	})
	for _, network := range []string{"tcp", "unix"} {
		b.Run(network, func(b *testing.B) {
			client, peer := newRig(b).sockets(network)
			benchTransfer(b, client, peer)
		})
	}
	b.Run("small first", func(b *testing.B) {
		g := newRig(b)
		client, local := tcpPair(b)
		peer, remote := tcpPair(b)
		g.pipe(plainEnd{connEndOf(b, local)}, connEndOf(b, remote))
		benchTransfer(b, client, peer)
	})
}

// plainEnd can't be asked whether bytes are there, like a libp2p stream.
type plainEnd struct{ End }

func benchTransfer(b *testing.B, from, to net.Conn) {
	const block = 128 << 10
	b.SetBytes(block)
	b.ReportAllocs()
	data, sink := make([]byte, block), make([]byte, block)
	b.ResetTimer()
	sent := background(func() error { return writeTimes(from, data, b.N) })
	for range b.N {
		if _, err := io.ReadFull(to, sink); err != nil {
			b.Fatal(err)
		}
	}
	must(b, <-sent)
}

func writeTimes(w io.Writer, data []byte, n int) error {
	for range n {
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkPing is one byte there and one back.
func BenchmarkPing(b *testing.B) {
	client, peer, _ := newRig(b).tcpBoth()
	b.ReportAllocs()
	done := background(func() error { _, err := io.Copy(peer, peer); return err })
	ping := make([]byte, 1)
	for b.Loop() {
		_, _ = client.Write(ping)
		if _, err := io.ReadFull(client, ping); err != nil {
			b.Fatal(err)
		}
	}
	must(b, client.CloseWrite())
	must(b, <-done)
}

// BenchmarkStream is a stream's life: into the table, two ends, out of it. The
// ends are made outside the measure.
func BenchmarkStream(b *testing.B) {
	g := newRig(b)
	b.ReportAllocs()
	locals, remotes := make([]*memEnd, b.N), make([]*memEnd, b.N)
	for i := range b.N {
		locals[i], remotes[i] = finishedEnd(), finishedEnd()
	}
	b.ResetTimer()
	for i := range b.N {
		g.pipe(locals[i], remotes[i])
	}
	g.Wait()
}

// BenchmarkIdleStream reports what one stream holds that waits for bytes,
// without what its ends hold, both for fresh ones and after a burst each way.
func BenchmarkIdleStream(b *testing.B) {
	b.Run("mem", func(b *testing.B) { benchIdle(b, 10_000, memEnds) })
	b.Run("tcp and mem", func(b *testing.B) { benchIdle(b, 4_000, tcpAndMemEnds) })
}

type idleStream struct {
	client, peer  duplex
	local, remote End
}

func memEnds(testing.TB) idleStream {
	client, local := memPair(4 << 10)
	peer, remote := memPair(4 << 10)
	return idleStream{client, peer, local, remote}
}

func tcpAndMemEnds(tb testing.TB) idleStream {
	client, local := tcpPair(tb)
	peer, remote := memPair(4 << 10)
	return idleStream{client, peer, connEndOf(tb, local), remote}
}

func benchIdle(b *testing.B, n int, ends func(testing.TB) idleStream) {
	for b.Loop() {
		g := newRig(b)
		streams := make([]idleStream, n)
		for i := range streams {
			streams[i] = ends(b)
			burst(b, streams[i].local, streams[i].client) // the ends' buffers are made
			burst(b, streams[i].remote, streams[i].peer)
		}
		heap, stack := inUse()
		for _, s := range streams {
			g.pipe(s.local, s.remote)
		}
		report(b, "fresh", n, heap, stack)
		for _, s := range streams {
			burst(b, s.client, s.peer)
		}
		report(b, "used", n, heap, stack)
		runtime.KeepAlive(streams)
	}
}

func burst(b *testing.B, x, y io.ReadWriter) {
	for _, way := range [][2]io.ReadWriter{{x, y}, {y, x}} {
		must(b, writeOf(way[0], make([]byte, 4<<10))())
		readN(b, way[1], 4<<10)
	}
}

func report(b *testing.B, when string, n int, heap, stack uint64) {
	h, s := inUse()
	b.ReportMetric(float64(h-heap)/float64(n), when+"-heap-B/stream")
	b.ReportMetric(float64(s-stack)/float64(n), when+"-stack-B/stream")
}

func inUse() (heap, stack uint64) {
	runtime.GC()
	runtime.GC() // the first leaves what pools hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, m.StackInuse
}
