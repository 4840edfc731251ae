package registry

import (
	"testing"
	"time"
)

func wantReason(t testing.TB, e *Entry, want string) {
	t.Helper()
	if got := e.Status().Reason; got != want {
		t.Errorf("reason %q, want %q", got, want)
	}
}

func TestStatusSaysWhatLimitsKeptOut(t *testing.T) {
	g := newRig(t)
	e := g.entry
	wantReason(t, e, "")
	e.TooMany(LimitStreams, 2)
	wantReason(t, e, "max-streams 2: 1 connection refused")
	for range 4 {
		e.TooMany(LimitStreams, 2)
	}
	e.TooMany(LimitPeerStreams, 3)
	e.TooMany(LimitPeerStreams, 1)
	wantReason(t, e, "max-streams 2: 5 connections refused; peer-max-streams 1: 2 connections refused")
	e.SetState(StateReady, "service down: no")
	wantReason(t, e, "service down: no; max-streams 2: 5 connections refused; peer-max-streams 1: 2 connections refused")
	refused := values(gather(t, g.Registry)["p2ptun_streams_refused_total"])
	if refused["max-streams "] != 5 || refused["peer-max-streams "] != 2 {
		t.Errorf("metrics %v", refused)
	}
}

// Refusals are as many as a peer likes: none makes an event.
func TestWhatLimitsDidMakesNoEvent(t *testing.T) {
	g := newRig(t)
	sub := subscribe[Event](t, g.Events, 10)
	defer sub.Close()
	g.entry.TooMany(LimitStreams, 2)
	g.entry.SetState(StateReady, "")
	event, _, err := sub.Next(t.Context())
	must(t, err)
	if told, ok := event.(TunnelEvent); !ok || told.Tunnel.State != StateReady || told.Tunnel.Reason != "" {
		t.Errorf("told %+v", event)
	}
}

func TestStatusSaysSlowedWhileItIs(t *testing.T) {
	withRate(t, 1_500_000, func(t *testing.T, g *rig) {
		client, far, _ := g.throttled("p", 0)
		took(t, client, far, pattern(1000))
		wantReason(t, g.entry, "")
		for range 3 {
			took(t, client, far, pattern(400_000))
			wantReason(t, g.entry, "max-rate 1.5 MB/s: slowed")
			time.Sleep(slowedFor + time.Second)
			wantReason(t, g.entry, "")
		}
	})
}

func TestStatusSaysThatAPeerIsSlowed(t *testing.T) {
	withRate(t, 0, func(t *testing.T, g *rig) {
		client, far, _ := g.throttled("p", 512_000)
		g.entry.TooMany(LimitStreams, 1)
		took(t, far, client, pattern(400_000))
		wantReason(t, g.entry, "max-streams 1: 1 connection refused; peer-max-rate 512 kB/s: slowed")
	})
}

func TestRatesAreShownInThreeDigits(t *testing.T) {
	for rate, want := range map[int64]string{
		1: "1 B/s", 999: "999 B/s", 1000: "1 kB/s", 1536: "1.54 kB/s", 512_000: "512 kB/s", 999_499: "999 kB/s",
		999_500: "1 MB/s", 1 << 20: "1.05 MB/s", 5_000_000: "5 MB/s", 2_000_000_000: "2 GB/s", 123_456_000_000_000: "1.23e+05 GB/s",
	} {
		if got := rateText(rate); got != want {
			t.Errorf("%d: %q, want %q", rate, got, want)
		}
	}
}
