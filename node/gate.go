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

// gate keeps strangers' connections to a part of libp2p's default limit, so
// that idle strangers can't keep out who is let in. It is asked when a peer has
// proved who it is.
type gate struct {
	most    int // connections of strangers
	trusted func(peer.ID) bool
	network atomic.Pointer[network.Network] // nil until the host is made
}

var _ connmgr.ConnectionGater = (*gate)(nil)

func (g *gate) InterceptPeerDial(peer.ID) bool               { return true }
func (g *gate) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }
func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool  { return true }

func (g *gate) InterceptSecured(dir network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return dir == network.DirOutbound || g.trusted(p) || g.strangers() < g.most
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
