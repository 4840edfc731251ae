package node

import (
	"strconv"
	"sync"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"
)

// circuits are the addresses of peers that were reached through a relay last,
// while they are dialled again. libp2p joins dials to one peer, those of hole
// punching too, and answers a later one with the circuit that the earlier has
// brought, also when that has ended: until the punch is over, for seconds. So
// each such dial has an address that no other has had. The zero value works.
type circuits struct {
	mu   sync.Mutex
	now  map[peer.ID]*circuitDial
	last uint16 // part of the newest address
}

// circuitDial is how one peer is dialled.
type circuitDial struct {
	relay peer.ID
	addr  ma.Multiaddr
	dials int // that have it
}

// dial gives a peer's circuit to libp2p until the returned func is called. Dials
// at the same time share it, until one is to be anew: libp2p dials no address
// again that has failed while others of the peer are still silent.
func (c *circuits) dial(h host.Host, p, relay peer.ID, anew bool) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if anew && c.now[p] != nil {
		c.drop(h, p)
	}
	at := c.now[p]
	if at == nil {
		c.last++
		at = &circuitDial{relay: relay, addr: numberedCircuit(relay, c.last)}
		if c.now == nil {
			c.now = map[peer.ID]*circuitDial{}
		}
		c.now[p] = at
	}
	at.dials++
	h.Peerstore().AddAddr(p, at.addr, foundTTL)
	return func() { c.dialled(h, p, at) }
}

func (c *circuits) dialled(h host.Host, p peer.ID, at *circuitDial) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.dials--; at.dials == 0 && c.now[p] == at {
		c.drop(h, p)
	}
}

// came notes that the circuit to a peer is there: the next dial has another.
func (c *circuits) came(h host.Host, p peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now[p] != nil {
		c.drop(h, p)
	}
}

func (c *circuits) drop(h host.Host, p peer.ID) {
	h.Peerstore().SetAddr(p, c.now[p].addr, 0)
	delete(c.now, p)
}

// hides says that a peer is not to be dialled at an address: it has a circuit
// through the same relay.
func (c *circuits) hides(p peer.ID, a ma.Multiaddr) bool {
	if !isRelayed(a) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.now[p]
	if at == nil || a.Equal(at.addr) {
		return at == nil && isNumbered(a)
	}
	return isNumbered(a) || relayOf(a) == at.relay
}

// numberedCircuit is an address through a relay to which this node is
// connected. What follows the circuit is where the relay might dial the peer:
// relays of version 2 don't.
func numberedCircuit(relay peer.ID, n uint16) ma.Multiaddr {
	return ma.StringCast("/p2p/" + relay.String() + "/p2p-circuit/ip4/0.0.0.0/tcp/" + strconv.Itoa(int(n)))
}

func isNumbered(a ma.Multiaddr) bool {
	return len(a) > 0 && a[0].Protocol().Code == ma.P_P2P && has(a, ma.P_TCP)
}

// relayOf is the relay of a circuit's address; empty where there is none.
func relayOf(a ma.Multiaddr) peer.ID {
	if !isRelayed(a) {
		return ""
	}
	id, _ := a.ValueForProtocol(ma.P_P2P)
	p, _ := peer.Decode(id)
	return p
}

// isAsking says that a relay has been asked for a circuit, or a slot, and has not
// answered. libp2p asks it for one circuit to a peer at a time, and lets the others
// wait, also those of a later dial.
func (n *Node) isAsking(relay peer.ID) bool {
	asked := 0
	for _, c := range n.host.Network().ConnsToPeer(relay) {
		for _, s := range c.GetStreams() {
			if s.Protocol() == circuit.ProtoIDv2Hop && s.Stat().Direction == network.DirOutbound {
				asked++
			}
		}
	}
	for _, c := range n.host.Network().Conns() {
		if c.Stat().Direction == network.DirOutbound && relayOf(c.RemoteMultiaddr()) == relay {
			asked--
		}
	}
	return asked > 0
}
