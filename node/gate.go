package node

import (
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// trustedConns is the room for connections of trusted peers, on top of
// libp2p's default for all: strangers can't take it.
const trustedConns = 1024

// gate keeps strangers' connections to a few, so that idle strangers can't keep
// out who is let in, and keeps out those that the guard names. It is asked when
// a peer has proved who it is; what an address may do before that, the guard is
// asked by the resource manager, since over QUIC the gate comes too late for it.
// Whoever is kept out may still be dialled.
type gate struct {
	guard   *guard
	most    int // connections of strangers
	trusted func(peer.ID) bool
	// circuits are the addresses that some peers are dialled at.
	circuits *circuits
	network  *atomic.Pointer[network.Network] // nil until the host is made
}

var _ connmgr.ConnectionGater = (*gate)(nil)

func (g *gate) InterceptPeerDial(peer.ID) bool              { return true }
func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool { return true }

func (g *gate) InterceptAddrDial(p peer.ID, a ma.Multiaddr) bool { return !g.circuits.hides(p, a) }

func (g *gate) InterceptSecured(dir network.Direction, p peer.ID, addrs network.ConnMultiaddrs) bool {
	switch {
	case dir == network.DirOutbound:
		return true
	case g.guard.keepsOut(p):
		g.guard.insist(netOf(addrs.RemoteMultiaddr()))
		return false
	}
	return g.trusted(p) || g.strangers() < g.most
}

func (g *gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

func (g *gate) strangers() (n int) {
	net := g.network.Load()
	if net == nil {
		return 0
	}
	for _, c := range (*net).Conns() {
		if c.Stat().Direction == network.DirInbound && !g.trusted(c.RemotePeer()) {
			n++
		}
	}
	return n
}
