package node

import (
	"net/netip"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

func addrsOf(t testing.TB, texts ...string) (addrs []ma.Multiaddr) {
	t.Helper()
	for _, text := range texts {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, a)
	}
	return addrs
}

func TestAddressesOfTheLastNetworkAreNotShown(t *testing.T) {
	h := newHere([]netip.Addr{netip.MustParseAddr("192.168.1.7")})
	stale := addrsOf(t, "/ip4/127.0.0.1/tcp/4001", "/ip4/192.168.1.7/tcp/4001", "/ip4/203.0.113.5/tcp/4001",
		"/ip4/192.168.1.7/tcp/9/p2p/12D3KooWGYFUkQV35QaKUxN5c6TSaExQ7Jbvtn331n3NGMgaCAhe/p2p-circuit")
	if got := h.correct(addrsOf(t, "/ip4/192.168.1.7/tcp/4001")); len(got) != 1 {
		t.Errorf("before any move: %s", got)
	}
	h.move([]netip.Addr{netip.MustParseAddr("10.0.0.9")}, addrsOf(t, "/ip4/0.0.0.0/tcp/4001", "/p2p-circuit"))
	got := h.correct(stale)
	want := addrsOf(t, "/ip4/127.0.0.1/tcp/4001", "/ip4/203.0.113.5/tcp/4001",
		"/ip4/192.168.1.7/tcp/9/p2p/12D3KooWGYFUkQV35QaKUxN5c6TSaExQ7Jbvtn331n3NGMgaCAhe/p2p-circuit", "/ip4/10.0.0.9/tcp/4001")
	if len(got) != len(want) {
		t.Fatalf("shown are %s, want %s", got, want)
	}
	for _, a := range want {
		if !ma.Contains(got, a) {
			t.Errorf("%s is not shown: %s", a, got)
		}
	}
	h.move([]netip.Addr{netip.MustParseAddr("192.168.1.7")}, addrsOf(t, "/ip4/0.0.0.0/tcp/4001"))
	if got := h.correct(addrsOf(t, "/ip4/192.168.1.7/tcp/4001", "/ip4/10.0.0.9/tcp/4001")); len(got) != 1 || got[0].String() != "/ip4/192.168.1.7/tcp/4001" {
		t.Errorf("back where it was, shown are %s", got)
	}
}
