package node

import (
	"net/netip"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"

	"p2ptun/proto"
)

// TunnelStreams is how many forwarded connections one trusted peer may hold at
// once, each way. libp2p's default stops at the 76th.
const TunnelStreams = 24_000

const (
	// streamMemory is what yamux reserves for a stream when it opens.
	streamMemory = 256 << 10
	// strangerExtra is on top of a stranger's, for libp2p's own services.
	strangerExtra = 1 << 20
	// windowMemory is on top, for windows that grow with need.
	windowMemory = 1 << 30
	// perAddress bounds the connections from one address: an office, a relay.
	// libp2p's default is 8.
	perAddress = 64
	// maxSticky bounds the peers whose limits were changed while their scope
	// stood: libp2p keeps such a scope for ever.
	maxSticky = 4096
	// halfOpen is how many incoming connections may be in their handshake at
	// once. See strangersMemory for what one costs.
	halfOpen = 512
	// handshakeStreams is how many streams may be without a protocol at once,
	// each way: a trusted peer opens thousands of connections at a time. Those
	// of strangers are bounded before they get here.
	handshakeStreams = 4096
	// trunkPrefix is where trunks will have their protocols.
	trunkPrefix = "/p2ptun/trunk/"
)

// What strangers may hold together. None of it is more on a larger machine, as
// libp2p's own limits are; where a machine is so small that libp2p gives less,
// that holds.
const (
	// strangersConns bounds the connections that strangers have opened.
	strangersConns = 96
	// strangersStreams bounds the streams that strangers have opened and that
	// live. Beyond it, and beyond a fair part of it, they are reset.
	strangersStreams = 128
	// strangersMemory bounds what strangers may have sent that nobody has read:
	// 256 KiB for a yamux stream, 512 KiB for a QUIC stream, and what their
	// windows grow by. Beyond a fair part of it a QUIC stream is reset and a TCP
	// connection ends: yamux knows no other answer, but meets the bound on
	// streams first.
	//
	// It is the larger part of all that they can make this node hold. The rest,
	// as measured (amd64, Go 1.26): 96 connections of 50 KiB over TCP or 70 KiB
	// over QUIC, 128 streams of 16 KiB, 512 half-open handshakes of 9 KiB that
	// say nothing or 30 KiB in the middle of TLS, and 4 MiB in the guard's
	// tables. Together 64 MiB, on a machine of 1 GB as on any other.
	strangersMemory = 36 << 20
	// One stranger's streams, to us and (identify, a DHT's questions) from us.
	strangerInbound  = 32
	strangerOutbound = 64
)

// tunnelLimits is what trusted peers, and the protocols of tunnels, may use.
func tunnelLimits(base rcmgr.BaseLimit, streams int) *rcmgr.BaseLimit {
	base.Streams = 2 * streams
	base.StreamsInbound = streams
	base.StreamsOutbound = streams
	base.Memory = int64(streams)*streamMemory + windowMemory
	return &base
}

// strangerLimits is what one stranger may use: of libp2p's default, connections
// and files.
func strangerLimits(base rcmgr.BaseLimit) *rcmgr.BaseLimit {
	base.Streams = strangerInbound + strangerOutbound
	base.StreamsInbound = strangerInbound
	base.StreamsOutbound = strangerOutbound
	base.Memory = int64(base.Streams)*streamMemory + strangerExtra
	return &base
}

// transientLimits is for what has no peer or no protocol yet.
func transientLimits(base rcmgr.BaseLimit) *rcmgr.BaseLimit {
	l := tunnelLimits(base, handshakeStreams)
	l.ConnsInbound = halfOpen
	l.Conns = halfOpen + l.ConnsOutbound
	l.FD = max(l.FD, l.Conns)
	return l
}

// limiter gives room for tunnels to trusted peers, little to strangers, and for
// the rest libp2p's own defaults for this machine. Protocol limits are not told
// the peer, so for tunnel protocols they are wide, and a stranger is bounded by
// its peer scope and by the guard.
type limiter struct {
	rcmgr.Limiter // the defaults
	trusted       func(peer.ID) bool
	system        rcmgr.Limit
	transient     rcmgr.Limit
	tunnel        rcmgr.Limit // protocol and protocol-peer scopes
	peer          rcmgr.Limit
	stranger      rcmgr.Limit
	strangers     int // connections that strangers may hold together
}

func newLimiter(trusted func(peer.ID) bool) *limiter {
	defaults := rcmgr.NewFixedLimiter(rcmgr.DefaultLimits.AutoScale())
	system := tunnelLimits(baseOf(defaults.GetSystemLimits()), 3*TunnelStreams)
	strangers := min(system.ConnsInbound*3/4, strangersConns)
	system.Conns += trustedConns + halfOpen
	system.ConnsInbound += trustedConns + halfOpen
	return &limiter{
		strangers: strangers,
		Limiter:   defaults,
		trusted:   trusted,
		// Several peers may hold that many; the file limit binds first.
		system:    system,
		transient: transientLimits(baseOf(defaults.GetTransientLimits())),
		tunnel:    tunnelLimits(rcmgr.BaseLimit{}, 3*TunnelStreams),
		peer:      tunnelLimits(baseOf(defaults.GetPeerLimits("")), TunnelStreams),
		stranger:  strangerLimits(baseOf(defaults.GetPeerLimits(""))),
	}
}

// baseOf copies a limit, to change some of it.
func baseOf(l rcmgr.Limit) rcmgr.BaseLimit {
	return rcmgr.BaseLimit{
		Streams:         l.GetStreamTotalLimit(),
		StreamsInbound:  l.GetStreamLimit(network.DirInbound),
		StreamsOutbound: l.GetStreamLimit(network.DirOutbound),
		Conns:           l.GetConnTotalLimit(),
		ConnsInbound:    l.GetConnLimit(network.DirInbound),
		ConnsOutbound:   l.GetConnLimit(network.DirOutbound),
		FD:              l.GetFDLimit(),
		Memory:          l.GetMemoryLimit(),
	}
}

func (l *limiter) GetSystemLimits() rcmgr.Limit    { return l.system }
func (l *limiter) GetTransientLimits() rcmgr.Limit { return l.transient }

func (l *limiter) GetProtocolLimits(p protocol.ID) rcmgr.Limit {
	if isTunnel(p) {
		return l.tunnel
	}
	return l.Limiter.GetProtocolLimits(p)
}

func (l *limiter) GetProtocolPeerLimits(p protocol.ID) rcmgr.Limit {
	if isTunnel(p) {
		return l.tunnel
	}
	return l.Limiter.GetProtocolPeerLimits(p)
}

func (l *limiter) GetPeerLimits(p peer.ID) rcmgr.Limit {
	if l.trusted(p) {
		return l.peer
	}
	return l.stranger
}

func isTunnel(p protocol.ID) bool {
	return strings.HasPrefix(string(p), proto.Namespace) || strings.HasPrefix(string(p), trunkPrefix)
}

func newResourceManager(l *limiter, g *guard) (network.ResourceManager, error) {
	per := func(prefix, n int) rcmgr.ConnLimitPerSubnet {
		return rcmgr.ConnLimitPerSubnet{PrefixLength: prefix, ConnCount: n}
	}
	inner, err := rcmgr.NewResourceManager(l,
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{per(32, perAddress)},
			[]rcmgr.ConnLimitPerSubnet{per(56, perAddress), per(48, 4*perAddress)}),
		rcmgr.WithConnRateLimiters(connRate()))
	if err != nil {
		return nil, err
	}
	return &resources{ResourceManager: inner, guard: g}, nil
}

// connRate is how often one address may connect: the default, once in 5 s after
// 16, would keep an office waiting after a power cut. Loopback is free.
func connRate() *rate.Limiter {
	limit := rate.Limit{RPS: 4, Burst: 2 * perAddress}
	return &rate.Limiter{
		NetworkPrefixLimits: []rate.PrefixLimit{
			{Prefix: netip.MustParsePrefix("127.0.0.0/8")},
			{Prefix: netip.MustParsePrefix("::1/128")},
		},
		SubnetRateLimiter: rate.SubnetLimiter{
			IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: limit}},
			IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: limit}},
			GracePeriod:      time.Minute,
		},
	}
}

// RefreshLimits brings the scopes of connected peers, and what is trimmed, in
// line with who is trusted now. Call it after that has changed.
func (n *Node) RefreshLimits() {
	for _, p := range n.host.Network().Peers() {
		n.refreshLimit(p)
	}
}

// refreshLimit changes the scope of one peer where it stands with another
// limit than the peer is to have: a scope copies its limit when it is made.
func (n *Node) refreshLimit(p peer.ID) {
	if n.named != nil && n.named(p.String()) {
		n.host.ConnManager().Protect(p, ruleTag)
	} else {
		n.host.ConnManager().Unprotect(p, ruleTag)
	}
	want := n.limits.GetPeerLimits(p)
	err := n.host.Network().ResourceManager().ViewPeer(p, func(s network.PeerScope) error {
		scope, ok := s.(rcmgr.ResourceScopeLimiter)
		if !ok || scope.Limit() == want || !n.makeSticky(p) {
			return nil
		}
		scope.SetLimit(want)
		return nil
	})
	if err != nil {
		n.log.Debug("refresh limits", "peer", p, "err", err)
	}
}

// makeSticky notes a peer whose scope libp2p will keep; false when there are
// too many. Such a peer keeps its old limit until it has been away a minute.
func (n *Node) makeSticky(p peer.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, already := n.sticky[p]; !already && len(n.sticky) >= maxSticky {
		n.log.Warn("too many peers changed limits", "peer", p, "bound", maxSticky)
		return false
	}
	n.sticky[p] = struct{}{}
	return true
}
