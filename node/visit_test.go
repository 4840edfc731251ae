package node

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"google.golang.org/protobuf/proto"
)

// newVisiting is a node that listens on all addresses, as by default, and for
// which libp2p has a second QUIC transport: it answers for AutoNAT.
func newVisiting(t testing.TB) *Node {
	t.Helper()
	return newNodeOf(t, Config{
		ListenAddrs: []string{onTCP, "/ip4/0.0.0.0/udp/0/quic-v1"},
		Relay:       &RelayService{Allowed: func(string) bool { return false }},
	})
}

// TestOneHelperSeesUsOverTCPAndOverQUIC: it has one connection of this node,
// over TCP, and has had a visit from the socket that this node listens on.
func TestOneHelperSeesUsOverTCPAndOverQUIC(t *testing.T) {
	helper, n := newTestNode(t, onTCP, onQUIC), newVisiting(t)
	connect(t, n, infoOf(helper.Node)) // over TCP
	box := peer.AddrInfo{ID: helper.host.ID(), Addrs: quicOf(helper)}
	s, err := n.visits.visit(within(t), box)
	must(t, err)
	list := []ma.Multiaddr{s.seen}
	eventually(t, "the helper's word over TCP is noted", func() bool { return len(n.notes.sightings([]peer.AddrInfo{box})) == 1 })
	list = append(list, n.notes.sightings([]peer.AddrInfo{box})[0].seen)
	for _, seen := range list {
		if !listens(n.host.Network().ListenAddresses(), seen) {
			t.Errorf("the helper sees %s, which is no port of %v", seen, n.host.Network().ListenAddresses())
		}
	}
	if !has(list[0], ma.P_UDP) || !has(list[1], ma.P_TCP) {
		t.Errorf("the helper sees %v, want one address of each transport", list)
	}
}

// TestAVisitorIsAnotherPeer: a relay does not try to carry anything over its
// connection.
func TestAVisitorIsAnotherPeer(t *testing.T) {
	helper, n := newTestNode(t, onTCP, onQUIC), newVisiting(t)
	connect(t, n, infoOf(helper.Node)) // over TCP
	came := make(chan network.Conn, 8)
	helper.host.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) { came <- c }})
	_, err := n.visits.visit(within(t), peer.AddrInfo{ID: helper.host.ID(), Addrs: quicOf(helper)})
	must(t, err)
	if c := <-came; c.RemotePeer() == n.host.ID() || !has(c.RemoteMultiaddr(), ma.P_QUIC_V1) {
		t.Errorf("the visitor came as %s from %s", c.RemotePeer(), c.RemoteMultiaddr())
	}
	eventually(t, "the visitor has left", func() bool { return len(helper.host.Network().Conns()) == 1 })
}

func TestAVisitToAnotherPeerThanTheHelperFails(t *testing.T) {
	other, n := newTestNode(t, onQUIC), newVisiting(t)
	id, err := peer.Decode(nobody)
	must(t, err)
	if s, err := n.visits.visit(within(t), peer.AddrInfo{ID: id, Addrs: quicOf(other)}); err == nil {
		t.Errorf("somebody else says that we are %s", s.seen)
	}
}

func quicOf(n *testNode) []ma.Multiaddr {
	addrs := n.host.Network().ListenAddresses()
	return slices.DeleteFunc(addrs, func(a ma.Multiaddr) bool { return !has(a, ma.P_QUIC_V1) })
}

func TestAMappingIsKeptFromTheListeningSocket(t *testing.T) {
	n := newVisiting(t)
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	defer socket.Close()
	to, err := manet.FromNetAddr(socket.LocalAddr())
	must(t, err)
	must(t, n.visits.nudge(to.Encapsulate(ma.StringCast("/quic-v1"))))
	_, from, err := socket.ReadFrom(make([]byte, 8))
	must(t, err)
	addr, err := manet.FromNetAddr(from)
	must(t, err)
	if !listens(n.host.Network().ListenAddresses(), addr) {
		t.Errorf("the datagram is from %s, want a port of %v", addr, n.host.Network().ListenAddresses())
	}
}

func TestHelpersOfTheInternetAreVisitedOverQUICAlone(t *testing.T) {
	tcp, quic4, quic6 := "/ip4/8.8.8.8/tcp/1", "/ip4/8.8.8.8/udp/1/quic-v1", "/ip6/2001:4860:4860::8888/udp/1/quic-v1"
	box := func(id peer.ID, addrs ...string) peer.AddrInfo {
		return peer.AddrInfo{ID: id, Addrs: multiaddrs(t, addrs...)}
	}
	got := visitable([]peer.AddrInfo{
		box("a", tcp, quic6, quic4), box("a", quic4), box("tcp alone", tcp), box("a LAN's", "/ip4/10.0.0.1/udp/1/quic-v1"),
		box("b", quic4), box("c", quic4), box("d", quic4), box("one too many", quic4),
	})
	if len(got) != maxVisited || got[0].ID != "a" || got[3].ID != "d" {
		t.Fatalf("to be visited: %v", got)
	}
	if want := multiaddrs(t, quic4, quic6); !slices.EqualFunc(got[0].Addrs, want, ma.Multiaddr.Equal) {
		t.Errorf("visited at %v, want %v", got[0].Addrs, want)
	}
}

func TestWhatAHelperSaysIsBounded(t *testing.T) {
	seen := ma.StringCast("/ip4/8.8.8.8/udp/1/quic-v1")
	message := func(m *pb.Identify) []byte {
		data, err := proto.Marshal(m)
		must(t, err)
		return append(binary.AppendUvarint(nil, uint64(len(data))), data...)
	}
	said := message(&pb.Identify{ObservedAddr: seen.Bytes()})
	other := message(&pb.Identify{AgentVersion: proto.String("x")})
	got, err := readObserved(bytes.NewReader(slices.Concat(other, said)))
	if err != nil || !got.Equal(seen) {
		t.Errorf("read %s, %v; want %s", got, err, seen)
	}
	for name, data := range map[string][]byte{
		"nothing":            nil,
		"cut short":          said[:len(said)-1],
		"too long":           binary.AppendUvarint(nil, maxIdentify+1),
		"too many":           slices.Concat(bytes.Repeat(other, maxIdentifies), said),
		"no message":         {1, 0xff},
		"no address":         message(&pb.Identify{ObservedAddr: []byte{0xff}}),
		"an endless varint":  bytes.Repeat([]byte{0xff}, 64),
		"nothing about this": other,
	} {
		if got, err := readObserved(bytes.NewReader(data)); err == nil {
			t.Errorf("%s: read %s", name, got)
		}
	}
}
