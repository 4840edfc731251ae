package node

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// A handshake over QUIC holds more memory than one over TCP.
func TestOneAddressHasFewerHandshakesOverQUIC(t *testing.T) {
	g, _ := newTestGuard(nil)
	begun := 0
	for ; ; begun++ {
		if _, err := g.begin(netip.MustParsePrefix(office), true); err != nil {
			break
		}
	}
	if most := halfOpen / (1 + quicShakePart); begun != most {
		t.Errorf("%d at once, want %d", begun, most)
	}
}

func TestAnAddressWhoseHandshakesAreRefusedTooOftenIsSlowed(t *testing.T) {
	g, _ := newTestGuard(nil)
	from := netip.MustParsePrefix(office)
	refused := 0
	for range halfOpen {
		if _, err := g.begin(from, false); err != nil {
			refused++
		}
		if g.isWatched(from, g.now()) {
			break
		}
	}
	if most := comeBurst/halfOpenCost + 1; refused != most {
		t.Errorf("watched after %d refusals, want %d", refused, most)
	}
}

func TestRefusedHandshakesOverRelaysSlowNobody(t *testing.T) {
	g, _ := newTestGuard(nil)
	for range 2 * halfOpen {
		_, _ = g.begin(netip.Prefix{}, false)
	}
	if len(g.watched.items) != 0 {
		t.Error("an address is watched")
	}
}

// sievedBy collects what a guard has sieved.
func sievedBy(g *guard) *[]netip.Prefix {
	var list []netip.Prefix
	g.sieve = func(from netip.Prefix) { list = append(list, from) }
	return &list
}

func TestAWatchedAddressThatGoesOnIsSieved(t *testing.T) {
	g, c := newTestGuard(nil)
	list, from := sievedBy(g), netip.MustParsePrefix(office)
	g.insist(from)
	for range watchBurst + sieveAfter - 1 {
		g.admits(from)
	}
	if len(*list) != 0 {
		t.Error("sieved too soon")
	}
	g.admits(from)
	if !slices.Equal(*list, []netip.Prefix{from}) {
		t.Errorf("sieved: %v", *list)
	}
	c.pass(sieveLeast)
	if !g.admits(from) {
		t.Error("it has no token after the sieve")
	}
}

func TestAnAddressThatIsTurnedAwayNowAndThenIsNotSieved(t *testing.T) {
	g, c := newTestGuard(nil)
	list, from := sievedBy(g), netip.MustParsePrefix(office)
	for range 1000 {
		g.insist(from)
		g.admits(from)
		c.pass(time.Second / (4 * watchRate))
	}
	if len(*list) != 0 {
		t.Error("sieved")
	}
}

// Packets whose sender has not shown its address are no tries.
func TestAskingForAProofOfAnAddressCountsForNothing(t *testing.T) {
	g, _ := newTestGuard(nil)
	list, from := sievedBy(g), netip.MustParsePrefix(office)
	g.insist(from)
	for range 1000 {
		if !g.suspects(from) {
			t.Fatal("not suspected")
		}
	}
	if len(*list) != 0 || !g.admits(from) {
		t.Error("whoever forges an address has it slowed")
	}
}

// Where they are too many they are fewer for a while, but only those.
func TestTooManyPacketsWithoutAProofAreThinned(t *testing.T) {
	g, c := newTestGuard(nil)
	thinned := 0
	g.thin = func(netip.Prefix) { thinned++ }
	from := netip.MustParsePrefix(office)
	g.insist(from)
	for range askBurst {
		g.suspects(from)
	}
	if thinned != 0 {
		t.Error("thinned too soon")
	}
	if g.suspects(from); thinned != 1 {
		t.Error("not thinned")
	}
	if g.suspects(netip.MustParsePrefix("127.0.0.2/32")); thinned != 1 {
		t.Error("another address is thinned")
	}
	if c.pass(thinLeast); !g.suspects(from) || thinned != 1 {
		t.Error("nobody comes through after that")
	}
}

func TestThinnedAddressesConnectOverTCP(t *testing.T) {
	s, from := newSieve(slog.New(slog.DiscardHandler)), netip.MustParsePrefix(office)
	s.thin(from)
	if n := s.nets[from]; !n.thin || time.Until(n.until) > thinMost {
		t.Errorf("thinned: %+v", n)
	}
	s.keepOut(from)
	if s.nets[from].thin {
		t.Error("what is thinned can't be kept out")
	}
	s.thin(from)
	if s.nets[from].thin {
		t.Error("who is kept out is thinned instead")
	}
}
