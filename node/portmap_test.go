package node

import (
	"net/netip"
	"testing"

	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	ma "github.com/multiformats/go-multiaddr"
)

func TestOnlyPortsForOthersOverIPv4AreMapped(t *testing.T) {
	for addr, want := range map[string]mappedPort{
		"/ip4/0.0.0.0/tcp/4001":           {"tcp", 4001},
		"/ip4/192.168.1.5/tcp/4001":       {"tcp", 4001},
		"/ip4/0.0.0.0/udp/4002/quic-v1":   {"udp", 4002},
		"/ip4/127.0.0.1/tcp/4001":         {},
		"/ip6/::/tcp/4001":                {},
		"/ip4/0.0.0.0/tcp/0":              {},
		"/p2p-circuit":                    {},
		"/unix/tmp/socket":                {},
		"/dns4/example.com/tcp/4001":      {},
		"/ip4/169.254.1.1/udp/1/quic-v1":  {},
		"/ip4/224.0.0.251/udp/5353":       {},
		"/ip4/255.255.255.255/udp/1":      {},
		"/ip4/0.0.0.0/sctp/4001":          {},
		"/ip4/0.0.0.0/tcp/4001/ws":        {"tcp", 4001},
		"/ip6/::/udp/4002/quic-v1":        {},
		"/ip4/10.1.2.3/udp/4003/quic-v1/": {"udp", 4003},
	} {
		a, err := ma.NewMultiaddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := portToMap(a); got != want && ok || ok != (want.port > 0) {
			t.Errorf("%s: port %+v, %v, want %+v", addr, got, ok, want)
		}
	}
}

// noMapping is a router that does not know UPnP.
type noMapping struct{ basichost.NATManager }

func (noMapping) GetMapping(ma.Multiaddr) ma.Multiaddr { return nil }

func TestMappedAddressKeepsItsTransport(t *testing.T) {
	m := &mapper{NATManager: noMapping{}, open: map[mappedPort]netip.AddrPort{
		{"udp", 4002}: netip.MustParseAddrPort("1.2.3.4:999"),
		{"tcp", 4001}: netip.MustParseAddrPort("1.2.3.4:998"),
	}}
	for addr, want := range map[string]string{
		"/ip4/0.0.0.0/udp/4002/quic-v1": "/ip4/1.2.3.4/udp/999/quic-v1",
		"/ip4/0.0.0.0/tcp/4001":         "/ip4/1.2.3.4/tcp/998",
	} {
		if got := m.GetMapping(ma.StringCast(addr)); got == nil || got.String() != want {
			t.Errorf("%s is mapped to %v, want %s", addr, got, want)
		}
	}
	if got := m.GetMapping(ma.StringCast("/ip4/0.0.0.0/tcp/4002")); got != nil {
		t.Errorf("a port that is not open is mapped to %v", got)
	}
}
