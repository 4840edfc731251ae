package node

import (
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// punchAddrs adds to the addresses that a peer is told to punch a hole to those
// that helpers see. libp2p knows but those of its own connections, and after a
// change of network, for a minute, not those over TCP: it looks only then what
// this machine's own addresses are.
type punchAddrs struct {
	helpers []peer.AddrInfo
	notes   *notes
	visits  *visitor

	listening atomic.Pointer[[]ma.Multiaddr] // nil until the host listens
}

var _ holepunch.AddrFilter = (*punchAddrs)(nil)

// FilterLocal implements holepunch.AddrFilter.
func (p *punchAddrs) FilterLocal(_ peer.ID, addrs []ma.Multiaddr) []ma.Multiaddr {
	return ma.Unique(append(addrs, p.seen()...))
}

// FilterRemote implements holepunch.AddrFilter.
func (p *punchAddrs) FilterRemote(_ peer.ID, addrs []ma.Multiaddr) []ma.Multiaddr { return addrs }

// seen are the addresses on the internet of sockets that this node listens on,
// as its helpers see them.
func (p *punchAddrs) seen() (addrs []ma.Multiaddr) {
	listening := p.listening.Load()
	if listening == nil {
		return nil
	}
	for _, s := range append(p.notes.sightings(p.helpers), p.visits.sightings()...) {
		if manet.IsPublicAddr(s.seen) && !isRelayed(s.seen) && listens(*listening, s.local) {
			addrs = append(addrs, s.seen)
		}
	}
	return ma.Unique(addrs)
}

// listens says whether the local address of a connection is one that is
// listened on, going by its port.
func listens(listening []ma.Multiaddr, local ma.Multiaddr) bool {
	at, tcp, ok := thinWaist(local)
	for _, a := range listening {
		other, otherTCP, otherOK := thinWaist(a)
		if ok && otherOK && tcp == otherTCP && at.Port() == other.Port() && at.Addr().Is4() == other.Addr().Is4() {
			return true
		}
	}
	return false
}
