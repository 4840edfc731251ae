package node

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"p2ptun/registry"
)

// climbAfter are the pauses before the attempts to reach a relayed peer
// directly; the last goes on. Hole punching, which the peer begins, has about
// five seconds before the first: what it needs is not dialled meanwhile.
var climbAfter = []time.Duration{5 * time.Second, 15 * time.Second, time.Minute}

// punchLimit bounds each of libp2p's attempts at hole punching, and the dial
// before them of a public address that a firewall may be silent about. A TCP
// connection through a path with a round trip of half a second passes.
const punchLimit = 2500 * time.Millisecond

// lanClimb is the first pause where the LAN says where the peer is.
const lanClimb = 200 * time.Millisecond

// climbLimit bounds one such attempt.
const climbLimit = 15 * time.Second

// follow does what a new connection calls for.
func (n *Node) follow(c network.Conn) {
	p := c.RemotePeer()
	if !n.isNeeded(p) {
		return
	}
	relayed := isRelayed(c.RemoteMultiaddr())
	n.noteRelay(p, relayOf(c.RemoteMultiaddr()))
	if !relayed && c.Stat().Direction == network.DirOutbound && n.isWanted(p) {
		n.memory.good(p, c.RemoteMultiaddr())
	}
	if relayed && c.Stat().Direction == network.DirOutbound {
		n.climb(p)
	}
	n.tellPath(p)
}

// staleAge is how old a connection is at least that a new relayed one shows to
// be dead: younger, both may come from one dial.
const staleAge = 3 * time.Second

// isBefore says that a peer had old before it had now, and not beside it: it is
// much older, or comes from where the peer is no more. One dial may come from
// both families of addresses.
func isBefore(old, now network.Conn) bool {
	age := now.Stat().Opened.Sub(old.Stat().Opened)
	return age > staleAge || age > 0 && isElsewhere(old.RemoteMultiaddr(), now.RemoteMultiaddr())
}

// isElsewhere says that two direct addresses are of one family, and not of one
// IP.
func isElsewhere(a, b ma.Multiaddr) bool {
	if isRelayed(a) || isRelayed(b) {
		return false
	}
	one, errOne := manet.ToIP(a)
	other, errOther := manet.ToIP(b)
	return errOne == nil && errOther == nil && !one.Equal(other) && (one.To4() == nil) == (other.To4() == nil)
}

// dropStale closes the connections of a peer that comes through a relay: it
// would not, if it still had them. As long as a direct one stands no hole is
// punched, and the talk about the punch would go over a relayed one.
func (n *Node) dropStale(c network.Conn) {
	if c.Stat().Direction != network.DirInbound || !isRelayed(c.RemoteMultiaddr()) {
		return
	}
	for _, old := range n.host.Network().ConnsToPeer(c.RemotePeer()) {
		if old != c && isBefore(old, c) {
			n.log.Info("a stale connection", "peer", old.RemotePeer(), "addr", old.RemoteMultiaddr())
			closeDead(old)
		}
	}
}

// dropBefore closes the connections that a peer had before the one from which it
// reserves a slot at this relay: there it wants to be reached. A circuit would be
// opened on the one with most streams, and nobody would answer there if the
// peer has moved to another network.
func (n *Node) dropBefore(p peer.ID, from ma.Multiaddr) {
	host := n.network.Load()
	if host == nil {
		return
	}
	conns := (*host).ConnsToPeer(p)
	i := slices.IndexFunc(conns, func(c network.Conn) bool { return c.RemoteMultiaddr().Equal(from) })
	for _, old := range conns {
		if i >= 0 && isBefore(old, conns[i]) {
			n.log.Info("a connection from before", "peer", p, "addr", old.RemoteMultiaddr())
			closeDead(old)
		}
	}
}

// doubtOlder asks a peer's older connections whether they live, when it dials
// again: it does not while it has one. A relay would open circuits on the dead
// one, which has more streams, until the kernel gives that up.
func (n *Node) doubtOlder(c network.Conn) {
	if c.Stat().Direction != network.DirInbound || isRelayed(c.RemoteMultiaddr()) {
		return
	}
	for _, old := range n.host.Network().ConnsToPeer(c.RemotePeer()) {
		if old == c || !isBefore(old, c) || !n.begin() {
			continue
		}
		go func() {
			defer n.handlers.Done()
			n.prober.doubt(n.life, old)
		}()
	}
}

// climb dials a peer directly, again and again, while it is only relayed.
func (n *Node) climb(p peer.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, already := n.climbs[p]; already || n.closed {
		return
	}
	n.climbs[p] = struct{}{}
	n.handlers.Go(func() {
		n.climbUp(p)
		n.mu.Lock()
		delete(n.climbs, p)
		n.mu.Unlock()
		if n.onlyRelayed(p) && n.isNeeded(p) && n.life.Err() == nil {
			n.climb(p) // relayed again meanwhile
		}
	})
}

// climbUp ends with the peer being reached directly: should it be relayed again
// later, its hole punching has its five seconds again.
func (n *Node) climbUp(p peer.ID) {
	for try := 0; n.isNeeded(p); try++ {
		pause := climbAfter[min(try, len(climbAfter)-1)]
		if n.lan != nil && try == 0 {
			if _, near := n.lan.lookup(p); near {
				pause = lanClimb
			}
		}
		if !n.staysRelayed(p, pause) {
			return
		}
		n.refreshAddrs(p)
		n.log.Debug("dial a relayed peer directly", "peer", p, "err", n.climbOnce(p))
	}
}

// climbOnce dials a peer directly while it is only relayed: libp2p joins who
// wants it back, once that is lost, to this dial, see errDead.
func (n *Node) climbOnce(p peer.ID) error {
	ctx, cancel := context.WithTimeout(network.WithForceDirectDial(n.life, "leave the relay"), climbLimit)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.host.Connect(ctx, peer.AddrInfo{ID: p}) }()
	for {
		_, changed := n.Watch(p.String())
		if !n.onlyRelayed(p) {
			cancel()
			return <-done
		}
		select {
		case err := <-done:
			return err
		case <-changed:
		}
	}
}

// staysRelayed waits, and says whether a peer was only relayed all the while.
func (n *Node) staysRelayed(p peer.ID, pause time.Duration) bool {
	over := time.After(pause)
	for {
		_, changed := n.Watch(p.String())
		if !n.onlyRelayed(p) {
			return false
		}
		select {
		case <-changed:
		case <-over:
			return true
		case <-n.life.Done():
			return false
		}
	}
}

// onlyRelayed says that there are connections to a peer, and all of them go
// through relays.
func (n *Node) onlyRelayed(p peer.ID) bool {
	conns := n.host.Network().ConnsToPeer(p)
	return len(conns) > 0 && !slices.ContainsFunc(conns, func(c network.Conn) bool { return !isRelayed(c.RemoteMultiaddr()) })
}

func (n *Node) isWanted(p peer.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, wanted := n.wanted[p]
	return wanted
}

// noteRelay notes how a wanted peer was reached last.
func (n *Node) noteRelay(p, relay peer.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.wanted[p]; w != nil {
		w.relay = relay
	}
}

// lastRelay is the relay through which a wanted peer was reached last; empty for
// none.
func (n *Node) lastRelay(p peer.ID) peer.ID {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.wanted[p]; w != nil {
		return w.relay
	}
	return ""
}

// isNeeded says that a tunnel or a live stream depends on that peer.
func (n *Node) isNeeded(p peer.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, wanted := n.wanted[p]
	return wanted || n.held[p] > 0
}

func (n *Node) isRelay(p peer.ID) bool {
	return slices.ContainsFunc(n.relays, func(r peer.AddrInfo) bool { return r.ID == p })
}

// neededConns are the connections that something depends on: those of needed
// peers, and of relays.
func (n *Node) neededConns() (conns []network.Conn) {
	chosen := n.chosen()
	for _, c := range n.host.Network().Conns() {
		if p := c.RemotePeer(); n.isNeeded(p) || n.isRelay(p) || slices.Contains(chosen, p) {
			conns = append(conns, c)
		}
	}
	return conns
}

// tellPath tells when the way to a needed peer has changed.
func (n *Node) tellPath(p peer.ID) {
	if !n.isNeeded(p) {
		n.mu.Lock()
		delete(n.paths, p)
		n.mu.Unlock()
		return
	}
	path, up := n.Path(p.String())
	n.mu.Lock()
	last, had := n.paths[p]
	same := had == up && (!up || last.Relayed == path.Relayed && last.Relay == path.Relay && last.Transport == path.Transport && last.Addr == path.Addr)
	if up {
		n.paths[p] = path
	} else {
		delete(n.paths, p)
	}
	n.mu.Unlock()
	if !same {
		n.told(p.String(), path, up)
	}
}

// pathOf reads a stream's path from its own connection.
func pathOf(c network.Conn) registry.Path {
	remote := c.RemoteMultiaddr()
	p := registry.Path{Transport: transportOf(remote), Addr: remote.String(), Local: c.LocalMultiaddr().String()}
	if isRelayed(remote) {
		p.Relayed = true
		p.Relay, _ = remote.ValueForProtocol(ma.P_P2P)
	}
	return p
}

// describe is pathOf with what changes.
func (n *Node) describe(c network.Conn) registry.Path { return n.complete(c, pathOf(c)) }

// complete adds what changes: the round trip, and what is left of a relay's limit.
func (n *Node) complete(c network.Conn, p registry.Path) registry.Path {
	p.RTTms = float64(n.prober.rtt(c).Microseconds()) / 1000
	stat := c.Stat()
	if bytes, ok := stat.Extra[client.StatLimitData].(uint64); ok && bytes > 0 {
		used := n.prober.of(c).snapshot(c)
		p.LimitBytes = max(1, int64(bytes)-max(used.in, used.out))
	}
	if d, ok := stat.Extra[client.StatLimitDuration].(time.Duration); ok && d > 0 {
		p.LimitSeconds = max(1, int64((d-time.Since(stat.Opened))/time.Second))
	}
	return p
}

// relayCandidates are peers that may carry for us, those of the DHT among them.
// Through one that is not on the internet nobody else would come.
func (n *Node) relayCandidates(_ context.Context, num int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, num)
	defer close(out)
	for _, p := range n.host.Network().Peers() {
		if len(out) == cap(out) {
			break
		}
		if n.isRelaying(p) && slices.ContainsFunc(n.host.Network().ConnsToPeer(p), isOverInternet) {
			out <- n.host.Peerstore().PeerInfo(p)
		}
	}
	return out
}

func (n *Node) isRelaying(p peer.ID) bool {
	has, err := n.host.Peerstore().SupportsProtocols(p, proto.ProtoIDv2Hop)
	return err == nil && len(has) > 0
}

// Relays lists this node's relays: those that were named, then those that it
// has chosen.
func (n *Node) Relays() []RelayStatus {
	list := n.slots.list()
	for _, p := range n.chosen() {
		list = append(list, RelayStatus{Relay: p.String(), Reserved: true})
	}
	return list
}

// Accounts lists what this node has carried for each peer, as a relay.
func (n *Node) Accounts() []PeerTraffic {
	if n.ledger == nil {
		return nil
	}
	return n.ledger.list()
}

// DHTSize is how many nodes of the DHT are known; -1 without one.
func (n *Node) DHTSize() int {
	if n.finder == nil {
		return -1
	}
	return n.finder.known()
}
