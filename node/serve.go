package node

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
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

// options are those of libp2p's service. reserved is told which peer reserves a
// slot, and from where.
func (r RelayService) options(reserved func(p peer.ID, from ma.Multiaddr)) []relay.Option {
	res := relay.DefaultResources()
	res.MaxReservations, res.MaxCircuits, res.BufferSize = defaultSlots, defaultCircuits, relayBuffer
	if r.Slots > 0 {
		res.MaxReservations = r.Slots
	}
	if r.Circuits > 0 {
		res.MaxCircuits = r.Circuits
	}
	res.MaxReservationsPerIP, res.MaxReservationsPerASN = res.MaxReservations, res.MaxReservations
	opts := []relay.Option{relay.WithResources(res), relay.WithACL(relayACL{r.Allowed, reserved}), relay.WithReservationAddressFilter(farAddr)}
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
type relayACL struct {
	allowed  func(peer string) bool
	reserved func(p peer.ID, from ma.Multiaddr)
}

func (a relayACL) AllowReserve(p peer.ID, from ma.Multiaddr) bool {
	if !a.allowed(p.String()) {
		return false
	}
	a.reserved(p, from)
	return true
}

func (a relayACL) AllowConnect(peer.ID, ma.Multiaddr, peer.ID) bool { return true }

// PeerTraffic is what one peer has sent and received through this relay, with
// what it said to the relay itself.
type PeerTraffic struct {
	Peer string `json:"peer"`
	In   int64  `json:"bytes_in"`  // from the peer
	Out  int64  `json:"bytes_out"` // to the peer
}

// maxAccounts bounds the peers that a relay keeps account of; further ones are
// carried without.
const maxAccounts = 4096

// ledger counts what a relay carries, by peer. libp2p's own counter keeps every
// peer and protocol name that anybody ever showed.
type ledger struct {
	mu    sync.Mutex
	peers map[peer.ID]*PeerTraffic
}

var _ metrics.Reporter = (*ledger)(nil)

func newLedger() *ledger { return &ledger{peers: map[peer.ID]*PeerTraffic{}} }

func (l *ledger) count(p peer.ID, proto protocol.ID, in, out int64) {
	if proto != circuit.ProtoIDv2Hop && proto != circuit.ProtoIDv2Stop {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.peers[p]
	if t == nil {
		if len(l.peers) >= maxAccounts {
			return
		}
		t = &PeerTraffic{Peer: p.String()}
		l.peers[p] = t
	}
	t.In += in
	t.Out += out
}

// list is by peer.
func (l *ledger) list() (list []PeerTraffic) {
	l.mu.Lock()
	for _, t := range l.peers {
		list = append(list, *t)
	}
	l.mu.Unlock()
	slices.SortFunc(list, func(a, b PeerTraffic) int { return strings.Compare(a.Peer, b.Peer) })
	return list
}

// What libp2p tells, and what it may ask for: nothing but streams' bytes is
// kept.
func (l *ledger) LogSentMessageStream(n int64, proto protocol.ID, p peer.ID) { l.count(p, proto, 0, n) }
func (l *ledger) LogRecvMessageStream(n int64, proto protocol.ID, p peer.ID) { l.count(p, proto, n, 0) }
func (l *ledger) Reset()                                                     {}
func (l *ledger) TrimIdle(time.Time)                                         {}
func (l *ledger) LogSentMessage(int64)                                       {}
func (l *ledger) LogRecvMessage(int64)                                       {}
func (l *ledger) GetBandwidthForPeer(peer.ID) metrics.Stats                  { return metrics.Stats{} }
func (l *ledger) GetBandwidthForProtocol(protocol.ID) metrics.Stats          { return metrics.Stats{} }
func (l *ledger) GetBandwidthTotals() metrics.Stats                          { return metrics.Stats{} }
func (l *ledger) GetBandwidthByPeer() map[peer.ID]metrics.Stats              { return nil }
func (l *ledger) GetBandwidthByProtocol() map[protocol.ID]metrics.Stats      { return nil }
