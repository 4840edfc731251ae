package registry

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"p2ptun/proto"
)

// fates are what can become of a stream.
var fates = []func(g *rig, client, peer *memEnd){
	func(g *rig, client, peer *memEnd) { exchange(client, peer) },
	func(g *rig, client, peer *memEnd) { exchange(peer, client) },
	func(g *rig, client, _ *memEnd) { _ = client.Reset(proto.CodeReset) },
	func(g *rig, _, peer *memEnd) { _ = peer.Reset(proto.CodeTargetDown) },
	func(g *rig, client, peer *memEnd) {
		_, _ = client.Write(pattern(3000))
		g.ResetStreams(func(s *Stream) bool { return s.ID()%7 == 0 }, proto.CodeRevoked)
		exchange(client, peer)
	},
	func(g *rig, client, peer *memEnd) {
		client.leave()
		_, _ = peer.Write([]byte("for nobody"))
		_ = peer.CloseWrite()
		_, _ = io.Copy(io.Discard, peer)
	},
}

// exchange is a question, its answer, and the end; either may be cut off.
func exchange(a, b *memEnd) {
	_, _ = a.Write(pattern(5000))
	_ = a.CloseWrite()
	_, _ = io.Copy(io.Discard, b)
	_, _ = b.Write(pattern(100))
	_ = b.CloseWrite()
	_, _ = io.Copy(io.Discard, a)
}

func TestThousandsOfStreamsComeAndGoAndNothingIsLeft(t *testing.T) {
	g := newRig(t)
	const workers, each = 50, 60
	inner := make(chan *memEnd, 2*workers*each)
	done := watchAll(g)
	var crowd crew
	for range workers {
		crowd.run(func() {
			for range each {
				client, local := memPair(8 << 10)
				peer, remote := memPair(8 << 10)
				s := &Stream{Peer: fmt.Sprint(rand.IntN(5))}
				must(t, g.Pipe(g.entry, s, local, remote))
				fates[rand.IntN(len(fates))](g, client, peer)
				inner <- local
				inner <- remote
			}
		})
	}
	crowd.wait()
	g.drained()
	g.Wait()
	done()
	close(inner)
	checkReleased(t, inner)
	if st := g.entry.Status(); st.Streams != 0 || st.Total != workers*each || g.opened.Load() != workers*each || len(g.Streams()) != 0 {
		t.Errorf("left: %+v", st)
	}
}

// watchAll has everybody look on, until the function that it gives is called.
func watchAll(g *rig) (stop func()) {
	sub := subscribe[Event](g, g.Events, 4)
	quit := make(chan struct{})
	var lookers crew
	lookers.run(func() {
		for {
			if _, _, err := sub.Next(g.Context()); err != nil {
				return
			}
		}
	})
	for _, look := range []func(){
		func() { g.Streams(); g.Select(Selector{All: true}) },
		func() { gather(g, g.Registry) },
		func() { _ = g.Drain(g.Context(), func(s *Stream) bool { return s.ID()%100 == 0 }) },
	} {
		lookers.run(func() { until(quit, look) })
	}
	return func() { close(quit); sub.Close(); lookers.wait() }
}

func until(quit <-chan struct{}, f func()) {
	for {
		select {
		case <-quit:
			return
		default:
			f()
		}
	}
}

func checkReleased(tb testing.TB, ends <-chan *memEnd) {
	tb.Helper()
	for e := range ends {
		if e.closedSoon || e.closes+len(e.resets) != 1 {
			tb.Errorf("an end was closed %d times (too soon: %v) and reset %d times", e.closes, e.closedSoon, len(e.resets))
		}
	}
}

func TestManySocketsAreResetWhileTheyCarry(t *testing.T) {
	g := newRig(t)
	const streams = 200
	var clients, peers []*net.TCPConn
	for range streams {
		client, peer, _ := g.tcpBoth()
		clients, peers = append(clients, client), append(peers, peer)
	}
	var programs crew
	for i := range streams {
		programs.run(func() { _ = pourUntilError(clients[i]) })
		programs.run(func() { _, _ = io.Copy(io.Discard, peers[i]) })
	}
	eventually(t, func() bool { return g.bytesOut.Load() > 10<<20 })
	if n := g.ResetStreams(all, proto.CodeStopped); n != streams {
		t.Errorf("%d reset", n)
	}
	g.drained()
	programs.wait()
}
