//go:build unix

package main

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// slowBytes is the most that a tunnel may take of a service for a client
	// that reads nothing: the windows of libp2p (16 MiB at most) and the buffers of
	// four sockets (6 MiB each at most by Linux's default).
	slowBytes = 48 << 20
	// slowMemory is how much each process may grow meanwhile: a full window,
	// and as much again for the collector and for the race detector.
	slowMemory = 64 << 20
	// calm is how long nothing may move to count as being at rest.
	calm = 2 * time.Second
)

// pushing is a service that sends as fast as it can, for ever, and counts.
func pushing(t testing.TB) (s *service, pushed *atomic.Int64) {
	pushed = new(atomic.Int64)
	s = serve(t, func(c net.Conn) {
		if !begun(c) {
			return
		}
		block := pushedBlock()
		for {
			n, err := c.Write(block)
			pushed.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	return s, pushed
}

// pushedBlock is what that service sends again and again.
func pushedBlock() []byte { return randomBytes(9, 256<<10) }

func TestSlowReaderHoldsNoMemoryAndNobodyUp(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s, pushed := pushing(t)
		tun := startTunnel(t, transport, s.addr())
		before := [2]int64{tun.listen.rss(t), tun.forward.rss(t)}
		slow := tun.forward.dial(t)
		begin(slow)
		taken := settled(t, "the push to a client that does not read", calm, pushed.Load)
		if taken == 0 || taken > slowBytes {
			t.Fatalf("%d bytes were taken for a client that reads nothing, want at most %d", taken, slowBytes)
		}
		other := tun.forward.dial(t)
		begin(other)
		readThrough(t, other, 2*slowBytes)
		for i, p := range []*process{tun.listen.process, tun.forward.process} {
			if grown := p.rss(t) - before[i]; grown > slowMemory {
				t.Errorf("%s has grown by %d bytes, want at most %d", p.cmd.Args[3], grown, slowMemory)
			}
		}
		// The slow one has lost nothing: it reads on.
		readThrough(t, slow, 2*slowBytes)
	})
}

// readThrough reads n bytes of a pushing service, which have to be its blocks
// in order.
func readThrough(t testing.TB, c net.Conn, n int) {
	t.Helper()
	want := pushedBlock()
	got := make([]byte, len(want))
	for read := 0; read < n; read += len(got) {
		if _, err := io.ReadFull(c, got); err != nil {
			t.Fatalf("after %d bytes: %v", read, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("after %d bytes: a block has been altered", read)
		}
	}
}
