package proto

import (
	"strconv"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	ed25519ID = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
	rsaID     = "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN"
)

func decodeID(t testing.TB, s string) peer.ID {
	t.Helper()
	id, err := peer.Decode(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestParsePeerReadsEveryFormOfAnID(t *testing.T) {
	ed, rsa := decodeID(t, ed25519ID), decodeID(t, rsaID)
	base36, err := peer.ToCid(ed).StringOfBase('k')
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		typed string
		id    peer.ID
		addr  string
	}{
		{ed25519ID, ed, ""},
		{rsaID, rsa, ""},
		{peer.ToCid(ed).String(), ed, ""},
		{peer.ToCid(rsa).String(), rsa, ""},
		{base36, ed, ""},
		{"/p2p/" + ed25519ID, ed, ""},
		{"/p2p/" + ed25519ID + "/", ed, ""},
		{"/ipfs/" + rsaID, rsa, ""},
		{"/p2p/" + base36, ed, ""},
		{"/ip4/192.168.1.7/tcp/4001/p2p/" + ed25519ID, ed, "/ip4/192.168.1.7/tcp/4001"},
		{"/ip6zone/eth0/ip6/fe80::1/udp/4001/quic-v1/p2p/" + ed25519ID, ed, "/ip6zone/eth0/ip6/fe80::1/udp/4001/quic-v1"},
		{"/dnsaddr/example.com/p2p/" + ed25519ID, ed, "/dnsaddr/example.com"},
		{"/dns4/example.com/tcp/443/tls/ws/p2p/" + ed25519ID, ed, "/dns4/example.com/tcp/443/tls/ws"},
		{"/ip4/192.168.1.7/tcp/4001/p2p/" + rsaID + "/p2p-circuit/p2p/" + ed25519ID, ed, "/ip4/192.168.1.7/tcp/4001/p2p/" + rsaID + "/p2p-circuit"},
		{"/p2p/" + rsaID + "/p2p-circuit/p2p/" + ed25519ID, ed, "/p2p/" + rsaID + "/p2p-circuit"},
	} {
		got, err := ParsePeer(c.typed)
		if err != nil || got.ID != c.id || got.Name != "" || got.DNSAddr != nil {
			t.Errorf("ParsePeer(%q) = %+v, %v; want %s", c.typed, got, err, c.id)
			continue
		}
		if c.addr == "" && len(got.Addrs) > 0 || c.addr != "" && (len(got.Addrs) != 1 || got.Addrs[0].String() != c.addr) {
			t.Errorf("ParsePeer(%q) has addresses %v, want %q", c.typed, got.Addrs, c.addr)
		}
	}
}

func TestParsePeerReadsADNSAddr(t *testing.T) {
	got, err := ParsePeer("/dnsaddr/bootstrap.libp2p.io")
	if err != nil || got.DNSAddr.String() != "/dnsaddr/bootstrap.libp2p.io" || got.ID != "" || got.Name != "" || got.Addrs != nil {
		t.Errorf("ParsePeer = %+v, %v", got, err)
	}
}

func TestParsePeerReadsAName(t *testing.T) {
	for _, name := range []string{"home", "a", "Home-server_2", "localhost", strings.Repeat("a", MaxPeerName)} {
		got, err := ParsePeer(name)
		if err != nil || got.Name != name || got.ID != "" || got.DNSAddr != nil || got.Addrs != nil {
			t.Errorf("ParsePeer(%q) = %+v, %v", name, got, err)
		}
	}
}

func TestParsePeerRefusesAtOnceWhatHasNoPeerID(t *testing.T) {
	const neither = "is neither a peer ID"
	for _, c := range []struct{ typed, want string }{
		{"", "peer is empty"},
		{" ", neither},
		{"22", neither},
		{"localhost:22", neither},
		{"192.168.1.7", neither},
		{"2home", neither},
		{"my home", neither},
		{"größe", neither},
		{ed25519ID[:len(ed25519ID)-1], neither},
		{"@" + ed25519ID, neither},
		{strings.Repeat("a", MaxPeerName+1), neither},
		// Multihashes that no key has: empty, one byte, SHA-512, CIDv1 of an empty one.
		{"11", neither},
		{"161", neither},
		{"12111", neither},
		{"f01720000", neither},
		{peer.ID("\x13\x40" + strings.Repeat("s", 64)).String(), neither},

		{"/", "not a multiaddr"},
		{"/x/ssh", "not a multiaddr"},
		{"/p2p/", "not a multiaddr"},
		{"/p2p/home", "not a multiaddr"},
		{"/p2p/11", "is not a peer ID"},
		{"/ip4/192.168.1.7/tcp/4001/p2p/161", "is not a peer ID"},
		{"/ip4/192.168.1.7/tcp/4001", "must end in /p2p/ID"},
		{"/unix/run/p2p/" + ed25519ID, "must end in /p2p/ID"},
		{"/p2p/" + rsaID + "/p2p-circuit", "must end in /p2p/ID"},
		{"/p2p/" + ed25519ID + "/tcp/22", "must end in /p2p/ID"},
		{"/p2p/" + rsaID + "/p2p/" + ed25519ID, "followed by /p2p-circuit"},
		{"/ip4/192.168.1.7/tcp/4001/p2p/" + rsaID + "/p2p/" + ed25519ID, "followed by /p2p-circuit"},
		{"/dnsaddr/example.com/tcp/4001", "must end in /p2p/ID"},
		{"/dns4/example.com", "must end in /p2p/ID"},
		{"/dnsaddr/a b", "a b is not a host name"},
		{"/dnsaddr/192.168.1.7", "192.168.1.7 is not a host name"},

		{"home\n", "control or invisible"},
		{"home\u200b", "control or invisible"},
		{"/dnsaddr/\x1b[31m", "control or invisible"},
		{"/dns4/\xff/tcp/1/p2p/" + ed25519ID, "control or invisible"},
		{strings.Repeat("a", maxTyped+1), "longer than 1024 bytes"},
		{"/http-path/" + strings.Repeat("!", 400) + "/p2p/" + ed25519ID, "longer than 1024 bytes when written out"},
	} {
		got, err := ParsePeer(c.typed)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("ParsePeer(%q) = %+v, %v; want an error with %q", c.typed, got, err, c.want)
			continue
		}
		checkShowable(t, err.Error())
	}
}

func TestCheckPeerNameTakesALetterThenWordCharacters(t *testing.T) {
	for name, ok := range map[string]bool{
		"home": true, "H": true, "a1": true, "a-": true, "a_b-C9": true, strings.Repeat("z", MaxPeerName): true,
		"": false, "1a": false, "-a": false, "_a": false, "a b": false, "a.b": false, "a:1": false, "a/b": false,
		"ä": false, "aä": false, "a\xff": false, "a\n": false, strings.Repeat("z", MaxPeerName+1): false,
		rsaID: false, peer.ToCid(decodeID(t, ed25519ID)).String(): false,
	} {
		if err := CheckPeerName(name); (err == nil) != ok {
			t.Errorf("CheckPeerName(%q) = %v; want it taken: %v", name, err, ok)
		}
	}
}

func TestNoStringReadsAsBothBindAndPeer(t *testing.T) {
	for _, c := range endpoints {
		if _, err := ParsePeer(c.typed); err == nil || !LooksLikeEndpoint(c.typed) {
			t.Errorf("%q is an endpoint; ParsePeer says %v, LooksLikeEndpoint %v", c.typed, err, LooksLikeEndpoint(c.typed))
		}
	}
	for _, s := range []string{
		"", "home", "localhost", ed25519ID, rsaID, "/p2p/" + ed25519ID, "/ip4/127.0.0.1/tcp/22/p2p/" + ed25519ID,
		"/dnsaddr/example.com", "udp:53", "65536", "/ip4/127.0.0.1",
	} {
		if LooksLikeEndpoint(s) {
			t.Errorf("LooksLikeEndpoint(%q)", s)
		}
	}
	// All ports: some of them are the base58 of a multihash.
	for port := range 1 << 16 {
		if !LooksLikeEndpoint(strconv.Itoa(port)) {
			t.Errorf("port %d does not look like an endpoint", port)
		}
	}
}

// wordsOf writes a Peer as a person could have typed it.
func wordsOf(t testing.TB, p Peer) string {
	t.Helper()
	switch {
	case p.ID != "" && p.Name == "" && p.DNSAddr == nil && len(p.Addrs) == 0:
		return p.ID.String()
	case p.ID != "" && p.Name == "" && p.DNSAddr == nil && len(p.Addrs) == 1:
		return p.Addrs[0].String() + "/p2p/" + p.ID.String()
	case p.DNSAddr != nil && p.ID == "" && p.Name == "" && len(p.Addrs) == 0:
		return p.DNSAddr.String()
	case p.Name != "" && p.ID == "" && p.DNSAddr == nil && len(p.Addrs) == 0:
		return p.Name
	}
	t.Fatalf("not exactly one of ID, DNSAddr and Name: %+v", p)
	return ""
}

func samePeer(a, b Peer) bool {
	if len(a.Addrs) != len(b.Addrs) {
		return false
	}
	for i := range a.Addrs {
		if !a.Addrs[i].Equal(b.Addrs[i]) {
			return false
		}
	}
	return a.ID == b.ID && a.Name == b.Name && a.DNSAddr.Equal(b.DNSAddr)
}

func FuzzParsePeer(f *testing.F) {
	id := decodeID(f, ed25519ID)
	for _, s := range []string{
		ed25519ID, rsaID, "home", "11", "161", "/p2p/11", peer.ToCid(id).String(), "f01720000",
		"/p2p/" + ed25519ID, "/ip4/192.168.1.7/tcp/4001/p2p/" + ed25519ID, "/dnsaddr/example.com",
		"/p2p/" + rsaID + "/p2p-circuit/p2p/" + ed25519ID, "/p2p/" + rsaID + "/p2p/" + ed25519ID,
		"/http-path/a%20b/p2p/" + ed25519ID, "/http-path/" + strings.Repeat("!", 400) + "/p2p/" + ed25519ID, "/unix/p2p/" + ed25519ID, "22", "localhost:22", "/dnsaddr/\x1b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePeer(s)
		if named := CheckPeerName(s) == nil; named != (err == nil && p.Name != "") {
			t.Errorf("CheckPeerName(%q) takes it: %v, ParsePeer = %+v, %v", s, named, p, err)
		}
		if err != nil {
			checkShowable(t, err.Error())
			return
		}
		if LooksLikeEndpoint(s) {
			t.Errorf("LooksLikeEndpoint(%q), and ParsePeer = %+v", s, p)
		}
		words := wordsOf(t, p)
		checkShowable(t, words)
		if again, err := ParsePeer(words); err != nil || !samePeer(again, p) {
			t.Errorf("ParsePeer(%q) = %q, and of that %+v, %v", s, words, again, err)
		}
		if len(p.Addrs) == 1 {
			if _, id := peer.SplitAddr(p.Addrs[0]); id != "" {
				t.Errorf("ParsePeer(%q) keeps %s in the address", s, id)
			}
			checkJSON(t, p.Addrs[0])
		}
		if p.ID != "" {
			if again, err := ParsePeer(peer.ToCid(p.ID).String()); err != nil || again.ID != p.ID {
				t.Errorf("the CIDv1 of %s reads as %+v, %v", p.ID, again, err)
			}
		}
	})
}
