package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
)

// withRate runs a test in virtual time on a tunnel of that rate.
func withRate(t *testing.T, rate int64, f func(t *testing.T, g *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newRigOf(t, Tunnel{MaxRate: rate})) })
}

// throttled pipes two ends in memory as a stream of a peer with that rate, and
// gives the outer two.
func (g *rig) throttled(peer string, peerRate int64) (client, far *memEnd, s *Stream) {
	g.Helper()
	client, local := memPair(4 << 10)
	far, remote := memPair(4 << 10)
	s = &Stream{Peer: peer, Throttle: g.entry.Throttle(peer, func() int64 { return peerRate })}
	must(g, g.Pipe(g.entry, s, local, remote))
	return client, far, s
}

// took is how long bytes take from one end to the other.
func took(t testing.TB, from, to *memEnd, data []byte) time.Duration {
	t.Helper()
	start := time.Now()
	sent := background(writeOf(from, data))
	if got := readN(t, to, len(data)); !bytes.Equal(got, data) {
		t.Error("changed on its way")
	}
	must(t, <-sent)
	return time.Since(start)
}

// timeOf is how long n bytes take at a rate.
func timeOf(n int, rate int64) time.Duration {
	return time.Duration(float64(n) / float64(rate) * float64(time.Second))
}

// wantRate fails unless n bytes of a full bucket took as long as they must,
// and no more than a share of a second longer.
func wantRate(t testing.TB, name string, n int, rate int64, took time.Duration) {
	t.Helper()
	least := timeOf(n-burstOf(rate), rate)
	if took < least-time.Microsecond || took > least+time.Second/sharesASecond {
		t.Errorf("%s: %d bytes took %v, want %v", name, n, took, least)
	}
}

func TestTheLongRunRateIsExact(t *testing.T) {
	for rate, seconds := range map[int64]int64{1000: 60, 100_000: 20, 1 << 20: 5, 3_000_000: 2} {
		n := int(seconds*rate) + burstOf(rate)
		withRate(t, rate, func(t *testing.T, g *rig) {
			client, far, _ := g.throttled("p", 0)
			wantRate(t, "tunnel, out", n, rate, took(t, client, far, pattern(n)))
			wantRate(t, "tunnel, in", n, rate, took(t, far, client, pattern(n)))
		})
		withRate(t, 0, func(t *testing.T, g *rig) {
			client, far, _ := g.throttled("p", rate)
			wantRate(t, "peer, out", n, rate, took(t, client, far, pattern(n)))
		})
		withRate(t, 3*rate, func(t *testing.T, g *rig) {
			client, far, _ := g.throttled("p", rate)
			wantRate(t, "both", n, rate, took(t, client, far, pattern(n)))
		})
		withRate(t, rate, func(t *testing.T, g *rig) {
			client, far, _ := g.throttled("p", 3*rate)
			wantRate(t, "both, the tunnel's is less", n, rate, took(t, client, far, pattern(n)))
		})
	}
}

func TestEachDirectionHasItsOwnBucket(t *testing.T) {
	const rate, n = 100_000, 500_000
	withRate(t, rate, func(t *testing.T, g *rig) {
		client, far, _ := g.throttled("p", rate)
		start := time.Now()
		up, down := background(writeOf(client, pattern(n))), background(writeOf(far, pattern(n)))
		read := background(func() error { _, err := io.ReadFull(far, make([]byte, n)); return err })
		readN(t, client, n)
		must(t, errors.Join(<-read, <-up, <-down))
		wantRate(t, "both at once", n, rate, time.Since(start))
	})
}

func TestABucketHoldsAnEighthOfASecondAndNotLessThan16KiB(t *testing.T) {
	for rate, burst := range map[int64]int64{1: 16384, 1000: 16384, 131_072: 16384, 200_000: 25_000, 8_000_000: 1_000_000} {
		for _, rates := range [][2]int64{{rate, 0}, {0, rate}} {
			withRate(t, rates[0], func(t *testing.T, g *rig) {
				client, far, _ := g.throttled("p", rates[1])
				count := pour(client, far)
				synctest.Wait()
				if n := count(); n > burst || n < burst-int64(shareOf(rate)) {
					t.Errorf("rate %d: %d bytes go at once, want %d", rate, n, burst)
				}
			})
		}
	}
}

func TestShortWordsGoAtOnce(t *testing.T) {
	withRate(t, 100, func(t *testing.T, g *rig) {
		client, far, _ := g.throttled("p", 0)
		for range 100 {
			if d := took(t, client, far, pattern(100)); d != 0 {
				t.Fatalf("a word took %v", d)
			}
			time.Sleep(time.Second)
		}
	})
}

func TestASlowRateIsSmooth(t *testing.T) {
	withRate(t, 1000, func(t *testing.T, g *rig) {
		client, far, _ := g.throttled("p", 0)
		sent := background(writeOf(client, pattern(60<<10)))
		readN(t, far, burstOf(1000))
		for range 100 {
			start := time.Now()
			n, err := far.Read(make([]byte, 60<<10))
			must(t, err)
			if d := time.Since(start); d > time.Second/sharesASecond || n > shareOf(1000) {
				t.Fatalf("%d bytes after %v", n, d)
			}
		}
		g.ResetStreams(all, proto.CodeClosed)
		<-sent
	})
}

// pour writes until the stream is reset, and counts what comes out.
func pour(from, to *memEnd) (count func() int64) {
	go func() { _ = pourUntilError(from) }()
	go func() { _, _ = io.Copy(io.Discard, to) }()
	return func() int64 {
		to.in.mu.Lock()
		defer to.in.mu.Unlock()
		return to.in.taken
	}
}

// after gives what each count grows by within a time.
func after(d time.Duration, counts ...func() int64) []int64 {
	grown := make([]int64, len(counts))
	for i, count := range counts {
		grown[i] = -count()
	}
	time.Sleep(d)
	for i, count := range counts {
		grown[i] += count()
	}
	return grown
}

func wantAbout(t testing.TB, name string, got, want int64) {
	t.Helper()
	if got < want*9/10 || got > want*11/10 {
		t.Errorf("%s: %d bytes, want %d", name, got, want)
	}
}

func TestStreamsOfOneBucketGetEqualParts(t *testing.T) {
	withRate(t, 80_000, func(t *testing.T, g *rig) {
		var counts []func() int64
		for i := range 8 {
			client, far, _ := g.throttled(fmt.Sprint(i%3), 0)
			counts = append(counts, pour(client, far))
		}
		for i, n := range after(100*time.Second, counts...) {
			wantAbout(t, fmt.Sprint("stream ", i), n, 1_000_000)
		}
		g.ResetStreams(all, proto.CodeClosed)
		g.drained()
	})
}

func TestStreamsOfOnePeerShareItsRate(t *testing.T) {
	withRate(t, 0, func(t *testing.T, g *rig) {
		var counts []func() int64
		for i := range 4 {
			client, far, _ := g.throttled(fmt.Sprint(i/2), 20_000)
			counts = append(counts, pour(client, far))
		}
		time.Sleep(10 * time.Second)
		for i, n := range after(100*time.Second, counts...) {
			wantAbout(t, fmt.Sprint("stream ", i), n, 1_000_000)
		}
		g.ResetStreams(all, proto.CodeClosed)
		g.drained()
	})
}

// A peer with many streams has no more than its own rate, which leaves the
// rest of the tunnel's to the others.
func TestAPeersRateKeepsTheTunnelsFromOneGreedyPeer(t *testing.T) {
	withRate(t, 100_000, func(t *testing.T, g *rig) {
		for range 50 {
			client, far, _ := g.throttled("greedy", 60_000)
			pour(client, far)
		}
		client, far, _ := g.throttled("modest", 60_000)
		count := pour(client, far)
		if n := after(3*time.Second, count)[0]; n < 3*40_000*9/10 {
			t.Errorf("the modest one got %d bytes in the first three seconds", n)
		}
		time.Sleep(10 * time.Second)
		wantAbout(t, "the modest one", after(100*time.Second, count)[0], 4_000_000)
		g.ResetStreams(all, proto.CodeClosed)
		g.drained()
	})
}

func TestAResetIsNotHeldBack(t *testing.T) {
	for name, reset := range map[string]func(g *rig, far *memEnd, s *Stream){
		"by the owner": func(g *rig, _ *memEnd, s *Stream) {
			g.ResetStreams(func(other *Stream) bool { return other == s }, proto.CodeRevoked)
		},
		"by the peer": func(_ *rig, far *memEnd, _ *Stream) { _ = far.Reset(proto.CodeTargetDown) },
	} {
		withRate(t, 1, func(t *testing.T, g *rig) {
			var fars []*memEnd
			var streams []*Stream
			for range 3 { // of which one waits for its time and the others for their turn
				client, far, s := g.throttled("p", 1)
				pour(client, far)
				fars, streams = append(fars, far), append(streams, s)
			}
			time.Sleep(time.Minute + time.Millisecond)
			start := time.Now()
			for i, s := range streams {
				reset(g, fars[i], s)
				must(t, g.Drain(t.Context(), func(other *Stream) bool { return other == s }))
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("%s: took %v", name, d)
			}
		})
	}
}

// A side that is held back is not read while it is. But it is soon.
func TestAResetOfTheSideThatIsHeldBackIsSeenSoon(t *testing.T) {
	withRate(t, 1000, func(t *testing.T, g *rig) {
		client, far, _ := g.throttled("p", 0)
		pour(client, far)
		time.Sleep(time.Minute)
		start := time.Now()
		must(t, client.Reset(proto.CodeReset))
		g.drained()
		g.Wait()
		if d := time.Since(start); d > resetGrace+time.Second/sharesASecond {
			t.Errorf("took %v", d)
		}
	})
}

// Many streams wait for the tunnel's bucket and are reset, as by a denial: the
// next stream has nothing of theirs to wait for.
func TestWhoGivesUpWaitingLeavesNoDebt(t *testing.T) {
	const rate = 8000
	withRate(t, rate, func(t *testing.T, g *rig) {
		for range 200 {
			client, far, _ := g.throttled("denied", 0)
			pour(client, far)
		}
		time.Sleep(10*time.Second + time.Second/sharesASecond/10)
		g.ResetStreams(all, proto.CodeRevoked)
		g.drained()
		client, far, _ := g.throttled("other", 0)
		if d := took(t, client, far, pattern(rate)); d > time.Second+time.Millisecond {
			t.Errorf("a second's bytes took %v", d)
		}
	})
}

func TestTheEndComesAfterTheLastByteAndOneWayAtATime(t *testing.T) {
	for name, kind := range map[string]func(g *rig) (duplex, duplex){
		"mem": func(g *rig) (duplex, duplex) { c, f, _ := g.throttled("p", 90_000_000); return c, f },
		"tcp": func(g *rig) (duplex, duplex) {
			client, local := tcpPair(g)
			peer, remote := tcpPair(g)
			s := &Stream{Throttle: g.entry.Throttle("p", func() int64 { return 90_000_000 })}
			must(g, g.Pipe(g.entry, s, connEndOf(g, local), connEndOf(g, remote)))
			return client, peer
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRigOf(t, Tunnel{MaxRate: 80_000_000})
			client, peer := kind(g)
			replyAfterShutdown(g, client, peer)
		})
	}
}

func TestBeingHeldBackIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRigOf(t, Tunnel{MaxRate: 8, Silence: Duration(time.Second)})
		for range 40 { // so that each has its turn after 5 s
			client, far, _ := g.throttled("p", 0)
			pour(client, far)
		}
		time.Sleep(10 * time.Minute)
		if n := len(g.Streams()); n != 40 {
			t.Errorf("%d of 40 streams are live", n)
		}
		g.ResetStreams(all, proto.CodeClosed)
		g.drained()
	})
}

func TestAnIdleStreamIsSilentWhateverItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRigOf(t, Tunnel{MaxRate: 1000, Silence: Duration(time.Minute)})
		client, far, s := g.throttled("p", 0)
		took(t, client, far, pattern(30_000))
		start := time.Now()
		g.drained()
		if d := time.Since(start); d < 45*time.Second || d > 90*time.Second || s.Status().Code != proto.CodeSilence {
			t.Errorf("ended after %v with %q", d, s.Status().Reset)
		}
	})
}

// A client that has sent all and gone, and whose last bytes wait for their
// turn for longer than lingering lasts.
func TestLingeringWaitsForBytesThatAreHeldBack(t *testing.T) {
	withRate(t, 8, func(t *testing.T, g *rig) {
		client, far, s := g.throttled("p", 0)
		took(t, client, far, pattern(burstOf(8)))
		data := pattern(20)
		must(t, writeOf(client, data)())
		for range 200 { // so that each has its turn after 25 s
			c, f, _ := g.throttled("p", 0)
			pour(c, f)
		}
		client.leave()
		must(t, writeOf(far, []byte("answer"))())
		must(t, far.CloseWrite())
		if got := readAll(t, far); !bytes.Equal(got, data) || s.Status().Reset != "" {
			t.Errorf("%d bytes of %d came through, reset: %q", len(got), len(data), s.Status().Reset)
		}
		g.ResetStreams(all, proto.CodeClosed)
		g.drained()
	})
}

func TestComingBackGivesNoNewBucket(t *testing.T) {
	const rate = 1000
	withRate(t, 0, func(t *testing.T, g *rig) {
		for range 3 { // the first burst is all there is
			client, far, _ := g.throttled("p", rate)
			pour(client, far)
			synctest.Wait()
			must(t, client.Reset(proto.CodeReset))
			g.drained()
		}
		client, far, _ := g.throttled("p", rate)
		if d := took(t, client, far, pattern(rate)); d < time.Second*9/10 {
			t.Errorf("a second's bytes took %v", d)
		}
	})
}

func TestFullBucketsAreForgotten(t *testing.T) {
	withRate(t, 0, func(t *testing.T, g *rig) {
		peers := &g.entry.rates.peers
		visit := func(peer string, n int) {
			client, far, _ := g.throttled(peer, 1000)
			took(t, client, far, pattern(n))
			must(t, client.CloseWrite())
			must(t, far.CloseWrite())
			g.drained()
			g.Wait()
		}
		if visit("reader", 0); len(*peers) != 0 {
			t.Errorf("%d peers are remembered that have used nothing", len(*peers))
		}
		if visit("user", 5000); len(*peers) != 1 {
			t.Errorf("%d peers are remembered, want 1", len(*peers))
		}
		time.Sleep(timeOf(5000, 1000))
		if visit("reader", 0); len(*peers) != 0 || g.entry.rates.idle.Len() != 0 {
			t.Errorf("%d peers are remembered whose buckets are full again", len(*peers))
		}
	})
}

func TestNoMoreThanSoManyIdleBucketsAreKept(t *testing.T) {
	withRate(t, 0, func(t *testing.T, g *rig) {
		r := &g.entry.rates
		for i := range maxIdleThrottles + 10 {
			throttle := g.entry.Throttle(fmt.Sprint(i), func() int64 { return 1 })
			throttle.in.tokens.AllowN(time.Now(), 100)
			throttle.leave()
		}
		if len(r.peers) != maxIdleThrottles || r.idle.Len() != maxIdleThrottles {
			t.Errorf("%d peers, %d idle", len(r.peers), r.idle.Len())
		}
		if r.peers["9"] != nil || r.peers["10"] == nil {
			t.Error("not the oldest were forgotten")
		}
		back := g.entry.Throttle("10", func() int64 { return 1 })
		if back.in.full() || r.idle.Len() != maxIdleThrottles-1 {
			t.Error("the peer that is back has another bucket")
		}
		back.leave()
	})
}

func TestAPipeThatFailsGivesTheThrottleBack(t *testing.T) {
	g := newRig(t)
	g.Deregister(g.entry, proto.CodeClosed)
	s := &Stream{Throttle: g.entry.Throttle("p", func() int64 { return 5 })}
	if err := g.Pipe(g.entry, s, finishedEnd(), finishedEnd()); err == nil {
		t.Fatal("a closed tunnel takes a stream")
	}
	if n := len(g.entry.rates.peers); n != 0 {
		t.Errorf("%d peers are remembered", n)
	}
}

func TestANewRateHoldsForLiveStreamsAtOnce(t *testing.T) {
	withRate(t, 0, func(t *testing.T, g *rig) {
		client, far, _ := g.throttled("p", 0)
		other, otherFar, _ := g.throttled("other", 7000)
		for _, rate := range []int64{10_000, 1000, 200_000, 1, 50_000} {
			g.entry.SetPeerRates(func(peer string) int64 {
				if peer == "p" {
					return rate
				}
				return 7000
			})
			took(t, client, far, pattern(burstOf(rate)))
			n := int(20 * rate)
			d, want := took(t, client, far, pattern(n)), timeOf(n, rate)
			if d < want-time.Second/sharesASecond-time.Microsecond || d > want+time.Second {
				t.Errorf("%d bytes took %v, want %v", n, d, want)
			}
		}
		g.entry.SetPeerRates(func(string) int64 { return 0 })
		if d := took(t, client, far, pattern(10<<20)); d != 0 {
			t.Errorf("without a limit 10 MiB took %v", d)
		}
		took(t, other, otherFar, pattern(1000))
	})
}

func TestANewRateHoldsForWhoeverWaits(t *testing.T) {
	withRate(t, 0, func(t *testing.T, g *rig) {
		client, far, _ := g.throttled("p", 1)
		const n = 1 << 20
		sent := background(writeOf(client, pattern(n)))
		read := background(func() error { _, err := io.ReadFull(far, make([]byte, n)); return err })
		time.Sleep(time.Minute)
		g.entry.SetPeerRates(func(string) int64 { return 0 })
		start := time.Now()
		must(t, errors.Join(<-sent, <-read))
		if d := time.Since(start); d > time.Second {
			t.Errorf("the rest took %v", d)
		}
	})
}

func TestAStreamsNextPeerRateHoldsForTheOthersOfThePeer(t *testing.T) {
	withRate(t, 0, func(t *testing.T, g *rig) {
		client, far, _ := g.throttled("p", 0)
		g.throttled("p", 1000)
		took(t, client, far, pattern(burstOf(1000)))
		if d := took(t, client, far, pattern(3000)); d < 3*time.Second-time.Microsecond {
			t.Errorf("3 s worth of bytes took %v", d)
		}
	})
}
