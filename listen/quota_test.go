package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

// served is a rig whose target takes connections, and a list of whom TooMany
// told of.
func served(t testing.TB) (r *rig, service *target, told *[]string) {
	r, service, told = newRig(), new(target), new([]string)
	r.answerDialsBy(service.dial)
	r.allow("other", true)
	r.TooMany = func(peer, protocol string) { *told = append(*told, peer+" "+protocol) }
	t.Cleanup(service.close)
	return r, service, told
}

func wantLive(t testing.TB, end *peerEnd) {
	t.Helper()
	select {
	case code := <-end.reset:
		t.Fatalf("reset with %q", code)
	default:
	}
}

// hangUp ends a stream of a peer's and returns when its slot is free.
func (r *rig) hangUp(t testing.TB, end *peerEnd) {
	t.Helper()
	before := r.counted()
	_ = end.Reset(proto.CodeNone)
	for start := time.Now(); r.counted() == before; time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatal("the slot is still taken")
		}
	}
}

// counted is how many streams the quota counts.
func (r *rig) counted() (n int) {
	r.quota.mu.Lock()
	defer r.quota.mu.Unlock()
	for _, c := range r.quota.live {
		n += c.all
	}
	return n
}

// wantNoneCounted fails unless the quota is as in the beginning.
func (r *rig) wantNoneCounted(t testing.TB) {
	t.Helper()
	r.quota.mu.Lock()
	defer r.quota.mu.Unlock()
	if len(r.quota.live) != 0 {
		t.Errorf("the quota still counts %v", r.quota.live)
	}
}

func TestOneStreamTooManyIsRefusedAndNothingIsDialled(t *testing.T) {
	r, _, told := served(t)
	e, stop := r.run(t, registry.Tunnel{MaxStreams: 2})
	first, second := r.serve(friend, "/x/t"), r.serve("other", "/x/t")
	dials := r.dialCount()
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeTooMany)
	wantReset(t, r.serve("other", "/x/t"), proto.CodeTooMany)
	if n := r.dialCount() - dials; n != 0 {
		t.Errorf("%d dials for streams that are too many", n)
	}
	if !slices.Equal(*told, []string{friend + " /x/t", "other /x/t"}) {
		t.Errorf("told of %v", *told)
	}
	if s := e.Status(); s.Streams != 2 || s.Reason != "max-streams 2: 2 connections refused" {
		t.Errorf("%d streams, reason %q", s.Streams, s.Reason)
	}
	wantLive(t, first)
	r.hangUp(t, second)
	third := r.serve("other", "/x/t")
	wantLive(t, third)
	wantReset(t, r.serve("other", "/x/t"), proto.CodeTooMany)
	stop()
	r.wantNoneCounted(t)
}

func TestEachPeerHasItsOwnLimit(t *testing.T) {
	r, _, _ := served(t)
	e, stop := r.run(t, registry.Tunnel{PeerMaxStreams: 1, MaxStreams: 3})
	wantLive(t, r.serve(friend, "/x/t"))
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeTooMany)
	wantLive(t, r.serve("other", "/x/t"))
	if s := e.Status(); s.Reason != "peer-max-streams 1: 1 connection refused" {
		t.Errorf("reason %q", s.Reason)
	}
	stop()
	r.wantNoneCounted(t)
}

func TestALimitIsOfItsTunnelAlone(t *testing.T) {
	r, _, _ := served(t)
	_, stop := r.run(t, registry.Tunnel{MaxStreams: 1})
	defer stop()
	_, stopOther := r.run(t, registry.Tunnel{Protocol: "/x/u", MaxStreams: 1})
	defer stopOther()
	wantLive(t, r.serve(friend, "/x/t"))
	wantLive(t, r.serve(friend, "/x/u"))
	wantReset(t, r.serve(friend, "/x/u"), proto.CodeTooMany)
	r.Registry.ResetStreams(func(*registry.Stream) bool { return true }, proto.CodeClosed)
}

// A stranger is refused as such, whatever the limits, and no limit is asked.
func TestAStrangerIsNoneOfTheLimits(t *testing.T) {
	r, _, told := served(t)
	e, stop := r.run(t, registry.Tunnel{MaxStreams: 1})
	defer stop()
	r.Limits = func(string, string) (int, int64) { t.Error("asked for a stranger"); return 1, 1 }
	for range 3 {
		wantReset(t, r.serve(stranger, "/x/t"), proto.CodeRefused)
	}
	if s := e.Status(); s.Reason != "" || len(*told) != 0 {
		t.Errorf("reason %q, told %v", s.Reason, *told)
	}
	r.wantNoneCounted(t)
}

func TestARuleStandsInPlaceOfTheTunnelsLimitForEachPeer(t *testing.T) {
	r, _, _ := served(t)
	e, stop := r.run(t, registry.Tunnel{PeerMaxStreams: 2})
	defer stop()
	var most atomic.Int32
	r.Limits = func(peer, protocol string) (int, int64) {
		if peer != friend || protocol != "/x/t" {
			return 0, 0
		}
		return int(most.Load()), 0
	}
	most.Store(3)
	for range 3 {
		wantLive(t, r.serve(friend, "/x/t"))
	}
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeTooMany)
	most.Store(1) // for new ones only
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeTooMany)
	if s := e.Status(); s.Streams != 3 || s.Reason != "peer-max-streams 1: 2 connections refused" {
		t.Errorf("%d streams, reason %q", s.Streams, s.Reason)
	}
	most.Store(0) // the tunnel's again
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeTooMany)
	for range 2 {
		wantLive(t, r.serve("other", "/x/t"))
	}
	wantReset(t, r.serve("other", "/x/t"), proto.CodeTooMany)
}

func TestStreamsThatAreBeingDialledCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		r.answerDialsBy(down)
		_, stop := r.run(t, registry.Tunnel{MaxStreams: 2})
		r.answerDialsBy(hang)
		var dialling sync.WaitGroup
		for range 2 {
			dialling.Go(func() { r.serve(friend, "/x/t") })
		}
		synctest.Wait()
		wantReset(t, r.serve(friend, "/x/t"), proto.CodeTooMany)
		dialling.Wait() // until the dials give up
		r.wantNoneCounted(t)
		r.answerDialsBy(down)
		wantReset(t, r.serve(friend, "/x/t"), proto.CodeTargetDown)
		stop()
	})
}

// Whatever becomes of a stream, its slot is free again.
func TestEveryFateOfAStreamFreesItsSlot(t *testing.T) {
	r, service, _ := served(t)
	e, stop := r.run(t, registry.Tunnel{MaxStreams: 1})
	defer stop()
	fates := map[string]func(){
		"target down": func() {
			r.answerDialsBy(down)
			wantReset(t, r.serve(friend, "/x/t"), proto.CodeTargetDown)
		},
		"no stream": func() {
			here, there := net.Pipe()
			r.answerDialsBy(func(context.Context) (net.Conn, error) { return there, nil })
			wantReset(t, r.serve(friend, "/x/t"), proto.CodeTargetDown)
			here.Close()
		},
		"revoked during the dial": func() {
			r.answerDialsBy(func(ctx context.Context) (net.Conn, error) {
				r.allow(friend, false)
				return service.dial(ctx)
			})
			wantReset(t, r.serve(friend, "/x/t"), proto.CodeRevoked)
			r.allow(friend, true)
		},
		"carried": func() {
			r.answerDialsBy(service.dial)
			r.hangUp(t, r.serve(friend, "/x/t"))
		},
		"closed by the owner": func() {
			r.answerDialsBy(service.dial)
			r.serve(friend, "/x/t")
			r.Registry.ResetStreams(func(*registry.Stream) bool { return true }, proto.CodeClosed)
			r.Registry.Wait()
		},
	}
	for range 3 {
		for name, fate := range fates {
			fate()
			r.wantNoneCounted(t)
			if t.Failed() {
				t.Fatal(name)
			}
		}
	}
	if s := e.Status(); strings.Contains(s.Reason, "refused;") || s.Streams != 0 {
		t.Errorf("%d streams, reason %q", s.Streams, s.Reason)
	}
}

func TestATunnelThatEndsDuringTheDialFreesTheSlot(t *testing.T) {
	r, service, _ := served(t)
	e, stop := r.run(t, registry.Tunnel{MaxStreams: 1})
	r.answerDialsBy(func(ctx context.Context) (net.Conn, error) {
		r.Registry.Deregister(e, proto.CodeClosed)
		return service.dial(ctx)
	})
	end := r.serve(friend, "/x/t")
	stop()
	if len(end.reset) != 1 {
		t.Error("not reset")
	}
	r.wantNoneCounted(t)
}

func TestALimitHoldsWhenAllComeAtOnce(t *testing.T) {
	r, _, _ := served(t)
	r.TooMany = nil
	e, stop := r.run(t, registry.Tunnel{MaxStreams: 5, PeerMaxStreams: 3})
	var refused atomic.Int32
	var all sync.WaitGroup
	for i := range 100 {
		r.allow(fmt.Sprint(i%4), true)
		all.Go(func() {
			if end := r.serve(fmt.Sprint(i%4), "/x/t"); len(end.reset) == 1 {
				refused.Add(1)
			}
		})
	}
	all.Wait()
	if s := e.Status(); s.Streams != 5 || refused.Load() != 95 {
		t.Errorf("%d streams live, %d refused", s.Streams, refused.Load())
	}
	stop()
	r.wantNoneCounted(t)
}

// flood is a peer's stream that sends as fast as it is taken, and notes what
// came back.
type flood struct {
	*peerEnd
	block []byte
}

func (f flood) Read(b []byte) (int, error) {
	select {
	case <-f.gone:
		return 0, net.ErrClosed
	default:
		return copy(b, f.block), nil
	}
}

// floodedBy serves such a stream, and gives how many bytes the target has got.
// stop resets the stream, and gives how the target's reading ended.
func (r *rig) floodedBy(peer string, service *target) (got *atomic.Int64, stop func() error) {
	f := flood{newPeerEnd(), make([]byte, 1<<10)}
	r.Serve(registry.Incoming{Peer: peer, Protocol: "/x/t", End: f})
	got = new(atomic.Int64)
	conn := service.last()
	done := make(chan error, 1)
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := conn.Read(b)
			got.Add(int64(n))
			if err != nil {
				done <- err
				return
			}
		}
	}()
	return got, func() error { _ = f.Reset(proto.CodeNone); return <-done }
}

// await polls until cond holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for start := time.Now(); !cond(); time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatalf("%s: never", what)
		}
	}
}

func TestRatesOfTunnelPeerAndRuleHoldAStreamBack(t *testing.T) {
	for name, c := range map[string]struct {
		tunnel registry.Tunnel
		limits func(string, string) (int, int64)
		reason string
	}{
		"tunnel":               {registry.Tunnel{MaxRate: 1}, nil, "max-rate 1 B/s: slowed"},
		"peer":                 {registry.Tunnel{PeerMaxRate: 2}, nil, "peer-max-rate 2 B/s: slowed"},
		"rule":                 {registry.Tunnel{}, rateOf(3), "peer-max-rate 3 B/s: slowed"},
		"rule before peer's":   {registry.Tunnel{PeerMaxRate: 1 << 40}, rateOf(4), "peer-max-rate 4 B/s: slowed"},
		"rule that says none":  {registry.Tunnel{PeerMaxRate: 5}, rateOf(0), "peer-max-rate 5 B/s: slowed"},
		"rule beside tunnel's": {registry.Tunnel{MaxRate: 6}, rateOf(1 << 40), "max-rate 6 B/s: slowed"},
	} {
		t.Run(name, func(t *testing.T) {
			r, service, _ := served(t)
			r.Limits = c.limits
			e, stopTunnel := r.run(t, c.tunnel)
			got, stop := r.floodedBy(friend, service)
			await(t, "slowed", func() bool { return e.Status().Reason == c.reason })
			_ = stop()
			stopTunnel()
			if n := got.Load(); n > 32<<10 {
				t.Errorf("%d bytes came through", n)
			}
		})
	}
}

func rateOf(rate int64) func(string, string) (int, int64) {
	return func(string, string) (int, int64) { return 0, rate }
}

func TestWithoutAnyLimitNothingIsHeldBack(t *testing.T) {
	r, service, _ := served(t)
	e, stopTunnel := r.run(t, registry.Tunnel{})
	defer stopTunnel()
	if s := r.throttle(e, friend); s != nil {
		t.Error("a stream that nothing can limit has a throttle")
	}
	got, stop := r.floodedBy(friend, service)
	await(t, "some megabytes", func() bool { return got.Load() > 4<<20 })
	_ = stop()
	if s := e.Status(); s.Reason != "" {
		t.Errorf("reason %q", s.Reason)
	}
}

// A rule comes and goes while a stream lives: first it holds it back, then it
// lets it go.
func TestRefreshLimitsReachesLiveStreams(t *testing.T) {
	r, service, _ := served(t)
	var rate atomic.Int64
	r.Limits = func(string, string) (int, int64) { return 0, rate.Load() }
	e, stopTunnel := r.run(t, registry.Tunnel{})
	defer stopTunnel()
	got, stop := r.floodedBy(friend, service)
	defer func() { _ = stop() }()
	await(t, "some megabytes", func() bool { return got.Load() > 4<<20 })
	rate.Store(100)
	r.RefreshLimits()
	await(t, "slowed", func() bool { return e.Status().Reason == "peer-max-rate 100 B/s: slowed" })
	rate.Store(0)
	r.RefreshLimits()
	before := got.Load()
	await(t, "some more megabytes", func() bool { return got.Load() > before+4<<20 })
}

func TestARevocationIsNotHeldBackByARate(t *testing.T) {
	r, service, _ := served(t)
	e, stopTunnel := r.run(t, registry.Tunnel{MaxRate: 1})
	defer stopTunnel()
	_, stop := r.floodedBy(friend, service)
	await(t, "slowed", func() bool { return e.Status().Reason != "" })
	r.Registry.ResetStreams(func(*registry.Stream) bool { return true }, proto.CodeRevoked)
	r.Registry.Wait()
	if err := stop(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the target reads %v, want a reset", err)
	}
	r.wantNoneCounted(t)
}
