package node

import (
	"slices"
	"testing"
	"time"
)

const viaRelay = "/ip4/8.8.4.4/tcp/4001/p2p/" + nobody + "/p2p-circuit"

func TestDirectTCPIsDialledFirst(t *testing.T) {
	for name, c := range map[string]struct {
		addrs []string
		first string
		later map[string]time.Duration // at least so much after the first
	}{
		"lan":        {[]string{"/ip4/10.0.0.2/udp/1/quic-v1", "/ip4/10.0.0.2/tcp/1"}, "/ip4/10.0.0.2/tcp/1", map[string]time.Duration{"/ip4/10.0.0.2/udp/1/quic-v1": quicDelayPrivate}},
		"public":     {[]string{"/ip4/8.8.8.8/udp/1/quic-v1", "/ip4/8.8.8.8/tcp/1"}, "/ip4/8.8.8.8/tcp/1", map[string]time.Duration{"/ip4/8.8.8.8/udp/1/quic-v1": quicDelayPublic}},
		"loopback":   {[]string{"/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/tcp/1"}, "/ip4/127.0.0.1/tcp/1", map[string]time.Duration{"/ip4/127.0.0.1/udp/1/quic-v1": quicDelayPrivate}},
		"relay last": {[]string{viaRelay, "/ip4/8.8.8.8/udp/1/quic-v1", "/ip4/8.8.8.8/tcp/1"}, "/ip4/8.8.8.8/tcp/1", map[string]time.Duration{viaRelay: relayDelay}},
		"quic alone": {[]string{"/ip4/8.8.8.8/udp/1/quic-v1"}, "/ip4/8.8.8.8/udp/1/quic-v1", nil},
		"relay only": {[]string{viaRelay}, viaRelay, nil},
	} {
		t.Run(name, func(t *testing.T) {
			at := map[string]time.Duration{}
			for _, r := range new(ranker).rank(multiaddrs(t, c.addrs...)) {
				at[r.Addr.String()] = r.Delay
			}
			if len(at) != len(c.addrs) || at[c.first] != 0 {
				t.Errorf("ranked %v, want %s at once", at, c.first)
			}
			for addr, least := range c.later {
				if at[addr] < least {
					t.Errorf("%s is dialled after %v, want %v at least", addr, at[addr], least)
				}
			}
		})
	}
}

func TestNoAddressIsLostInTheRanking(t *testing.T) {
	addrs := multiaddrs(t, "/ip6/::1/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip6/::1/udp/1/quic-v1", "/ip4/127.0.0.1/udp/1/quic-v1", viaRelay, "/dns4/example.org/tcp/1")
	var ranked []string
	for _, r := range new(ranker).rank(addrs) {
		ranked = append(ranked, r.Addr.String())
	}
	for _, a := range addrs {
		if !slices.Contains(ranked, a.String()) {
			t.Errorf("%s is lost", a)
		}
	}
	if len(new(ranker).rank(nil)) != 0 {
		t.Error("something out of nothing")
	}
}

func TestTCPIsUsedWhereBothAreThere(t *testing.T) {
	for range 3 {
		a, b := newTestNode(t, onTCP), newTestNode(t, onQUIC, onTCP)
		reach(t, a, b.host)
		if path, ok := a.Path(b.ID()); !ok || path.Transport != "tcp" || path.Relayed {
			t.Errorf("path %+v, %v", path, ok)
		}
	}
}

func TestAPeerThatWasRelayedIsDialledThroughItsRelaySooner(t *testing.T) {
	addrs := multiaddrs(t, "/ip4/10.0.0.2/tcp/1", viaRelay)
	delay := func(r *ranker) time.Duration {
		for _, a := range r.rank(addrs) {
			if isRelayed(a.Addr) {
				return a.Delay
			}
		}
		t.Fatal("the relay is lost")
		return 0
	}
	var r ranker
	end := r.redial()
	if d := delay(&r); d == 0 || d > relayDelay/2 {
		t.Errorf("dialled again, the relay waits for %v", d)
	}
	end()
	if d := delay(&r); d != relayDelay {
		t.Errorf("after that, the relay waits for %v", d)
	}
}
