package node

import (
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

// sieved collects what a guard has sieved.
func sieved(g *guard) *[]netip.Prefix {
	var list []netip.Prefix
	g.sieve = func(from netip.Prefix) { list = append(list, from) }
	return &list
}

func TestAWatchedAddressThatGoesOnIsSieved(t *testing.T) {
	g, c := newTestGuard(nil)
	list, from := sieved(g), netip.MustParsePrefix(office)
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
	list, from := sieved(g), netip.MustParsePrefix(office)
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
	list, from := sieved(g), netip.MustParsePrefix(office)
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
