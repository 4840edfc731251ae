package node

import (
	"context"
	"crypto/rand"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// punchInVain dials a peer directly, as hole punching does, where nobody
// answers, until the test ends.
func punchInVain(t testing.TB, n *Node, p peer.ID) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	at, err := manet.FromNetAddr(l.Addr())
	must(t, err)
	n.host.Peerstore().ClearAddrs(p)
	n.host.Peerstore().AddAddr(p, at, peerstore.PermanentAddrTTL)
	ctx, cancel := context.WithCancel(network.WithForceDirectDial(context.Background(), "test"))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = n.host.Connect(ctx, peer.AddrInfo{ID: p})
	}()
	c, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { cancel(); <-ended; c.Close(); l.Close() })
}

func TestACircuitThatEndsIsFollowedByAnotherWhileAHoleIsPunched(t *testing.T) {
	a, b, relay := relayed(t, 0)
	p := b.host.ID()
	connect(t, a, infoOf(relay))
	punchInVain(t, a, p)
	for range 3 {
		must(t, a.host.Network().ClosePeer(p))
		a.host.Peerstore().ClearAddrs(p) // identify has told the direct ones
		must(t, a.dial(within(t), p, false))
		if path, _ := a.Path(p.String()); path.Relay != relay.ID() {
			t.Fatalf("the path is %+v, want through the relay", path)
		}
	}
	for _, addr := range a.host.Peerstore().Addrs(p) {
		if isNumbered(addr) {
			t.Errorf("%s is kept", addr)
		}
	}
}

// TestAPeerIsAskedForAtItsRelayWhileOtherWaysAreSilent: it comes back there, and
// nobody says so.
func TestAPeerIsAskedForAtItsRelayWhileOtherWaysAreSilent(t *testing.T) {
	relay := newNodeOf(t, Config{Relay: &RelayService{Allowed: everybody}})
	key := filepath.Join(t.TempDir(), "key")
	b, a := newRelayed(t, relay, key), newNodeOf(t, Config{})
	p := b.host.ID()
	circuit := circuitAddr(infoOf(relay).Addrs[0], relay.host.ID())
	connect(t, a, peer.AddrInfo{ID: p, Addrs: multiaddrs(t, circuit.String())})
	connect(t, a, infoOf(relay))
	must(t, b.Close())
	eventually(t, "it is away", func() bool { return !relay.isConnected(p) && !a.isConnected(p) })
	punchInVain(t, a, p)
	reached := make(chan error, 1)
	go func() { reached <- a.Connect(within(t), p.String(), 0) }()
	eventually(t, "the relay is asked again and again", func() bool {
		a.circuits.mu.Lock()
		defer a.circuits.mu.Unlock()
		return a.circuits.last >= 3
	})
	newRelayed(t, relay, key)
	eventually(t, "it is reached", func() bool { return a.isConnected(p) })
	there := time.Now()
	must(t, <-reached)
	if late := time.Since(there); late > settleLimit/2 {
		t.Errorf("Connect returns %s after that", late)
	}
	if path, _ := a.Path(p.String()); path.Relay != relay.ID() {
		t.Errorf("the path is %+v, want through the relay", path)
	}
}

// TestAPeerIsReachedDirectlyThoughItsRelayIsSlow: libp2p dials no address twice
// while it waits for a circuit.
func TestAPeerIsReachedDirectlyThoughItsRelayIsSlow(t *testing.T) {
	const slow = 700 * time.Millisecond
	relay, a := newPlain(t), newNodeOf(t, Config{})
	var asked atomic.Int32
	relay.SetStreamHandler(circuit.ProtoIDv2Hop, func(s network.Stream) {
		asked.Add(1)
		time.AfterFunc(slow, func() { _ = s.Reset() })
	})
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	must(t, err)
	p, err := peer.IDFromPrivateKey(key)
	must(t, err)
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	at, err := manet.FromNetAddr(free.Addr())
	must(t, err)
	must(t, free.Close())
	connect(t, a, peer.AddrInfo{ID: relay.ID(), Addrs: relay.Addrs()})
	_, err = a.Want(PeerAddrs{ID: p.String(), Addrs: []ma.Multiaddr{at}})
	must(t, err)
	a.noteRelay(p, relay.ID())
	reached := make(chan error, 1)
	go func() { reached <- a.Connect(within(t), p.String(), patience) }()
	eventually(t, "the relay is asked again", func() bool { return asked.Load() > 2 })
	h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrs(at), libp2p.DisableMetrics())
	must(t, err)
	t.Cleanup(func() { _ = h.Close() })
	back := asked.Load()
	must(t, <-reached)
	if n := asked.Load() - back; n > 8 {
		t.Errorf("the relay was asked %d times meanwhile", n)
	}
}
