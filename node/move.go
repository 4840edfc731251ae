package node

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// lookAround is how often this machine's addresses are looked at: a few system
// calls. Other systems' notifications of it differ too much to be worth it.
const lookAround = 200 * time.Millisecond

// localIPs are the addresses of this machine that others may reach, sorted.
func localIPs() (ips []netip.Addr, err error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			ips = append(ips, p.Addr().Unmap())
		}
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return ips, nil
}

// knownIPs is localIPs, or nothing where they can't be looked at.
func knownIPs() []netip.Addr {
	ips, _ := localIPs()
	return ips
}

// followNetwork calls moved when this machine's addresses have changed, until
// ctx ends. lost says that some are gone. What can't be looked at, for want of
// file descriptors for one, has not changed.
func followNetwork(ctx context.Context, look func() ([]netip.Addr, error), moved func(now []netip.Addr, lost bool)) {
	tick := time.NewTicker(lookAround)
	defer tick.Stop()
	last, err := look()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, again := look()
		if again != nil {
			continue
		}
		if err != nil { // the first that could be looked at
			last, err = now, nil
			continue
		}
		if !slices.Equal(now, last) {
			lost := slices.ContainsFunc(last, func(ip netip.Addr) bool { return !slices.Contains(now, ip) })
			last = now
			moved(now, lost)
		}
	}
}

// moved follows this machine to another network: connections from an address
// that it has no more are dead, and what could not be dialled before may be
// dialled now.
func (n *Node) moved(now []netip.Addr, lost bool) {
	n.log.Info("this machine's addresses have changed", "now", now)
	n.here.move(now, n.host.Network().ListenAddresses())
	n.announce()
	if n.poke == nil && n.judge != nil {
		n.judge.repeat()
	}
	for _, c := range n.host.Network().Conns() {
		ip, err := manet.ToIP(c.LocalMultiaddr())
		if err != nil || ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip); ok && !slices.Contains(now, a.Unmap()) {
			closeDead(c)
		}
	}
	if lost { // one more interface is no reason to doubt
		n.prober.askAll(n.life, hurriedLimit)
	}
	n.slots.wake()
	n.retry()
}

// here is where this machine is, for libp2p, which looks at its addresses once
// a minute.
type here struct {
	mu        sync.Mutex
	last      []netip.Addr
	gone      map[netip.Addr]struct{} // addresses that it had before
	listening []ma.Multiaddr
	promised  []ma.Multiaddr // see starting
}

func newHere(now []netip.Addr) *here { return &here{last: now, gone: map[netip.Addr]struct{}{}} }

// move notes the addresses of now.
func (h *here) move(now []netip.Addr, listening []ma.Multiaddr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ip := range h.last {
		h.gone[ip] = struct{}{}
	}
	for _, ip := range now {
		delete(h.gone, ip)
	}
	h.last = now
	h.listening = slices.DeleteFunc(listening, isRelayed)
}

// starting has libp2p believe, until it has started, that this node can be
// reached through its relays already. It takes no part in hole punching before
// it has a public address, and looks for one at growing intervals: a peer that
// asks in between does so once, and both would stay on the relay.
func (h *here) starting(relays []peer.AddrInfo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.promised = nil
	for _, r := range relays {
		for _, a := range r.Addrs {
			h.promised = append(h.promised, circuitAddr(a, r.ID))
		}
	}
}

// correct takes from libp2p's addresses those that this machine had before, and
// adds those of now where it listens on all.
func (h *here) correct(addrs []ma.Multiaddr) []ma.Multiaddr {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.gone) == 0 {
		return append(addrs, h.promised...)
	}
	addrs = slices.DeleteFunc(addrs, h.isGone)
	var ips []ma.Multiaddr
	for _, ip := range h.last {
		if a, err := manet.FromIP(ip.AsSlice()); err == nil {
			ips = append(ips, a)
		}
	}
	now, err := manet.ResolveUnspecifiedAddresses(h.listening, ips)
	if err != nil {
		return addrs
	}
	return ma.Unique(append(addrs, now...))
}

func (h *here) isGone(a ma.Multiaddr) bool {
	ip, err := manet.ToIP(a)
	if err != nil || isRelayed(a) {
		return false
	}
	addr, _ := netip.AddrFromSlice(ip)
	_, gone := h.gone[addr.Unmap()]
	return gone
}

// shownAddrs are the addresses that others may dial, from those that libp2p
// knows.
func (n *Node) shownAddrs(addrs []ma.Multiaddr) []ma.Multiaddr {
	return append(n.here.correct(slices.Clone(addrs)), n.slots.addrs()...)
}

// newPoke is what announce pokes libp2p with: news of no relays. Where it
// chooses relays itself, that would make it forget them: nil.
func newPoke(bus event.Bus, autoRelay bool, log *slog.Logger) event.Emitter {
	if autoRelay {
		return nil
	}
	poke, err := bus.Emitter(new(event.EvtAutoRelayAddrsUpdated))
	if err != nil {
		log.Warn("announce addresses", "err", err)
		return nil
	}
	return poke
}

// announce has libp2p look at this node's addresses, and tell the peers, at
// once and not within seconds.
func (n *Node) announce() {
	if n.poke != nil {
		_ = n.poke.Emit(event.EvtAutoRelayAddrsUpdated{})
	}
}
