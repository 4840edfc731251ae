package listen

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"github.com/pires/go-proxyproto"

	"p2ptun/registry"
)

// TLVPeerID is the type of the field of a PROXY protocol v2 header that holds
// the peer's ID as text (12D3Koo…), in every header that is sent for a peer:
// the first of the types that the protocol leaves to applications
// (proxy-protocol.txt, 2.2.8: PP2_TYPE_MIN_CUSTOM).
const TLVPeerID proxyproto.PP2Type = 0xE0

// introduce tells the target who the peer is, where the tunnel asks for it and
// in the way that it asks for, before any byte of the peer's.
func introduce(conn net.Conn, t registry.Tunnel, in registry.Incoming) error {
	switch {
	case t.ReportPeerID: // as Kubo does
		return tell(conn, strings.NewReader(in.Peer+"\n"), "report peer id to "+t.Target)
	case t.ProxyProtocol:
		h := peerHeader(in.Path)
		if err := h.SetTLVs([]proxyproto.TLV{{Type: TLVPeerID, Value: []byte(in.Peer)}}); err != nil {
			return fmt.Errorf("proxy protocol header: %w", err)
		}
		return tell(conn, h, "send proxy protocol header to "+t.Target)
	}
	return nil
}

// introduceProbe tells a target that expects a header that no peer will
// follow, as HAProxy does in its checks: many services log a connection
// without a header as an error.
func introduceProbe(conn net.Conn, t registry.Tunnel) error {
	if !t.ProxyProtocol {
		return nil
	}
	return tell(conn, localHeader(), "send proxy protocol header to "+t.Target)
}

func tell(conn net.Conn, first io.WriterTo, what string) error {
	_ = conn.SetWriteDeadline(time.Now().Add(dialLimit))
	if _, err := first.WriteTo(conn); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	_ = conn.SetWriteDeadline(time.Time{})
	return nil
}

// peerHeader is the PROXY protocol v2 header of a stream with that path. On a
// direct path it says TCP over IPv4 or IPv6, whatever the transport: the
// source is the peer's end of the libp2p connection, the destination this
// node's. On a relayed path, and where an end can't be read, the family is
// UNSPEC and there are no addresses.
//
// The command is LOCAL then. A receiver may refuse PROXY with UNSPEC, and
// HAProxy and go-proxyproto do; LOCAL must be taken by all (proxy-protocol.txt,
// 2.2). Both mean the same to it: that the connection is from whom it sees.
func peerHeader(p registry.Path) *proxyproto.Header {
	source, ok := ipEnd(p.Addr)
	destination, also := ipEnd(p.Local)
	if p.Relayed || !ok || !also || source.Addr().Is4() != destination.Addr().Is4() {
		return localHeader()
	}
	return proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(source), net.TCPAddrFromAddrPort(destination))
}

func localHeader() *proxyproto.Header {
	return &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
}

// ipEnd reads the IP address and port of a direct connection's multiaddr. A
// zone is dropped; a v4-mapped address is IPv4.
func ipEnd(text string) (netip.AddrPort, bool) {
	a, err := ma.NewMultiaddr(text)
	if err != nil {
		return netip.AddrPort{}, false
	}
	if len(a) > 0 && a[0].Code() == ma.P_IP6ZONE {
		a = a[1:]
	}
	if !isIPEnd(a) {
		return netip.AddrPort{}, false
	}
	end, err := netip.ParseAddrPort(net.JoinHostPort(a[0].Value(), a[1].Value()))
	return netip.AddrPortFrom(end.Addr().Unmap(), end.Port()), err == nil
}

// isIPEnd says that a multiaddr begins with an IP address and a port, and that
// they are not a relay's.
func isIPEnd(a ma.Multiaddr) bool {
	if len(a) < 2 {
		return false
	}
	ip := a[0].Code() == ma.P_IP4 || a[0].Code() == ma.P_IP6
	port := a[1].Code() == ma.P_TCP || a[1].Code() == ma.P_UDP
	_, err := a.ValueForProtocol(ma.P_CIRCUIT)
	return ip && port && err != nil
}
