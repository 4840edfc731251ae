package node

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// TestAPeerIsToldToPunchWhereHelpersSeeASocketThatListens: and nowhere else.
func TestAPeerIsToldToPunchWhereHelpersSeeASocketThatListens(t *testing.T) {
	known, quic := "/ip4/8.8.8.8/tcp/1000", "/ip4/8.8.8.8/udp/2000/quic-v1"
	for name, c := range map[string]struct{ local, seen, want string }{
		"listening":       {"/ip4/0.0.0.0/udp/1/quic-v1", quic, quic},
		"known already":   {"/ip4/192.168.1.2/tcp/1", known, ""},
		"another port":    {"/ip4/0.0.0.0/udp/2/quic-v1", quic, ""},
		"private":         {"/ip4/0.0.0.0/udp/1/quic-v1", "/ip4/10.0.0.1/udp/1/quic-v1", ""},
		"through a relay": {"/ip4/0.0.0.0/udp/1/quic-v1", viaRelay, ""},
	} {
		p := &punchAddrs{notes: newNotes(Config{}), visits: newVisitor(slog.New(slog.DiscardHandler), nil)}
		p.visits.note("helper", sighting{local: ma.StringCast(c.local), observer: ma.StringCast(quic), seen: ma.StringCast(c.seen)})
		if got := p.FilterLocal("peer", multiaddrs(t, known)); len(got) != 1 {
			t.Errorf("%s: %v before the node listens", name, got)
		}
		listening := multiaddrs(t, "/ip4/0.0.0.0/udp/1/quic-v1", "/ip4/0.0.0.0/tcp/1", "/p2p-circuit")
		p.listening.Store(&listening)
		want := multiaddrs(t, known)
		if c.want != "" {
			want = append(want, ma.StringCast(c.want))
		}
		if got := p.FilterLocal("peer", multiaddrs(t, known)); !slices.EqualFunc(got, want, ma.Multiaddr.Equal) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// TestStrangersAreNoWitnesses: what they say that they see is not passed on.
func TestStrangersAreNoWitnesses(t *testing.T) {
	a, b := pair(t, onTCP)
	eventually(t, "what the peer sees is noted", func() bool {
		return len(a.notes.sightings([]peer.AddrInfo{{ID: b.host.ID()}})) > 0
	})
	if list := a.notes.sightings(nil); len(list) != 0 {
		t.Errorf("noted as of helpers: %v", list)
	}
}
