package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"
)

// lookAround is how often this machine's addresses are looked at: one system
// call. Other systems' notifications of it differ too much to be worth it.
const lookAround = time.Second

// localIPs are the addresses of this machine that others may reach, sorted.
func localIPs() (ips []netip.Addr) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			ips = append(ips, p.Addr().Unmap())
		}
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return ips
}

// followNetwork calls moved when this machine's addresses have changed, until
// ctx ends.
func followNetwork(ctx context.Context, look func() []netip.Addr, moved func(now []netip.Addr)) {
	tick := time.NewTicker(lookAround)
	defer tick.Stop()
	last := look()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := look(); !slices.Equal(now, last) {
			last = now
			moved(now)
		}
	}
}

// moved follows this machine to another network: connections from an address
// that it has no more are dead, and what could not be dialled before may be
// dialled now.
func (n *Node) moved(now []netip.Addr) {
	n.log.Info("this machine's addresses have changed", "now", now)
	for _, c := range n.host.Network().Conns() {
		ip, err := manet.ToIP(c.LocalMultiaddr())
		if err != nil || ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip); ok && !slices.Contains(now, a.Unmap()) {
			closeDead(c)
		}
	}
	n.prober.askAll(n.life, hurriedLimit)
	n.retry()
}
