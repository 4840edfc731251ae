package node

import (
	"time"

	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// RelayService is how this node carries for others (libp2p specs: circuit
// relay v2).
type RelayService struct {
	// Allowed says which peers may reserve a slot, and so be reached through
	// this node. It must not call back into the Node.
	Allowed func(peer string) bool
	// Duration and Bytes (each way) end one relayed connection, whoever uses
	// it: go-libp2p has one limit for all. Zero for none.
	Duration time.Duration
	Bytes    int64
	// Slots bounds the peers with a reservation, Circuits the relayed
	// connections of each.
	Slots, Circuits int
}

// Bounds where RelayService does not say.
const (
	defaultSlots    = 256
	defaultCircuits = 1024
	relayBuffer     = 32 << 10 // of each way of a relayed connection
)

func (r RelayService) options() []relay.Option {
	res := relay.DefaultResources()
	res.MaxReservations, res.MaxCircuits, res.BufferSize = defaultSlots, defaultCircuits, relayBuffer
	if r.Slots > 0 {
		res.MaxReservations = r.Slots
	}
	if r.Circuits > 0 {
		res.MaxCircuits = r.Circuits
	}
	res.MaxReservationsPerIP, res.MaxReservationsPerASN = res.MaxReservations, res.MaxReservations
	opts := []relay.Option{relay.WithResources(res), relay.WithACL(relayACL{r.Allowed}), relay.WithReservationAddressFilter(farAddr)}
	if r.Duration == 0 && r.Bytes == 0 {
		return append(opts, relay.WithInfiniteLimits())
	}
	limit := &relay.RelayLimit{Duration: r.Duration, Data: r.Bytes}
	if limit.Duration == 0 {
		limit.Duration = 365 * 24 * time.Hour
	}
	if limit.Data == 0 {
		limit.Data = 1 << 62
	}
	return append(opts, relay.WithLimit(limit))
}

// farAddr: a relay of a network of one's own may have a private address.
func farAddr(a ma.Multiaddr) bool {
	return !manet.IsIPLoopback(a) && !manet.IsIP6LinkLocal(a) && !isLinkLocal4(a)
}

func isLinkLocal4(a ma.Multiaddr) bool {
	ip, err := manet.ToIP(a)
	return err == nil && ip.IsLinkLocalUnicast()
}

// relayACL asks who may reserve. Whoever has may be reached by all: it has its
// own rules.
type relayACL struct{ allowed func(peer string) bool }

func (a relayACL) AllowReserve(p peer.ID, _ ma.Multiaddr) bool      { return a.allowed(p.String()) }
func (a relayACL) AllowConnect(peer.ID, ma.Multiaddr, peer.ID) bool { return true }

// PeerTraffic is what one peer has sent and received through this relay, with
// what it said to the relay itself.
type PeerTraffic struct {
	Peer string `json:"peer"`
	In   int64  `json:"bytes_in"`  // from the peer
	Out  int64  `json:"bytes_out"` // to the peer
}

// accounts lists the traffic of each peer.
func accounts(b *metrics.BandwidthCounter) (list []PeerTraffic) {
	for p, s := range b.GetBandwidthByPeer() {
		list = append(list, PeerTraffic{Peer: p.String(), In: s.TotalIn, Out: s.TotalOut})
	}
	return list
}
