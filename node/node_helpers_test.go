package node

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"p2ptun/registry"
)

const (
	onTCP  = "/ip4/127.0.0.1/tcp/0"
	onQUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
	// patience bounds what a test waits for on a real socket.
	patience = 60 * time.Second
	nobody   = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
)

// testNode is a Node with an answer to whom it trusts.
type testNode struct {
	*Node
	mu      sync.Mutex
	friends map[string]bool
}

func (n *testNode) trust(id string, trusted bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.friends[id] = trusted
}

func (n *testNode) trusts(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.friends[id]
}

func newTestNode(t testing.TB, addrs ...string) *testNode {
	t.Helper()
	dir := t.TempDir()
	n := &testNode{friends: map[string]bool{}}
	var err error
	n.Node, err = New(t.Context(), Config{
		KeyPath: filepath.Join(dir, "key"), PortPath: filepath.Join(dir, "port"), ListenAddrs: addrs, Trusted: n.trusts,
	})
	must(t, err)
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// newPlain is a libp2p host that is no p2ptun: Kubo's stand-in.
func newPlain(t testing.TB) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings(onTCP), libp2p.DisableMetrics())
	must(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until it is so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if is() {
			return
		}
		<-time.After(2 * time.Millisecond)
	}
	t.Fatalf("not so in %v: %s", patience, what)
}

// reach makes n want a host and connects to it.
func reach(t testing.TB, n *testNode, h host.Host) (end func()) {
	t.Helper()
	end, err := n.Want(PeerAddrs{ID: h.ID().String(), Addrs: h.Addrs()})
	must(t, err)
	must(t, n.Connect(within(t), h.ID().String(), 0))
	return end
}

// pair is two connected nodes; the first dials.
func pair(t testing.TB, addr string) (a, b *testNode) {
	t.Helper()
	a, b = newTestNode(t, addr), newTestNode(t, addr)
	reach(t, a, b.host)
	return a, b
}

func open(t testing.TB, n *testNode, id, name string) registry.End {
	t.Helper()
	end, _, err := n.Open(within(t), id, name)
	must(t, err)
	return end
}

// taken hands over the streams that a node gets.
func taken(n *testNode) <-chan registry.Incoming {
	ch := make(chan registry.Incoming, 1024)
	n.Handle(func(in registry.Incoming) { ch <- in })
	return ch
}

func next(t testing.TB, ch <-chan registry.Incoming) registry.Incoming {
	t.Helper()
	select {
	case in := <-ch:
		return in
	case <-time.After(patience):
		t.Fatal("no stream came")
		panic("not reached")
	}
}

func everyTransport(t *testing.T, f func(t *testing.T, addr string)) {
	for name, addr := range map[string]string{"tcp": onTCP, "quic": onQUIC} {
		t.Run(name, func(t *testing.T) { f(t, addr) })
	}
}

func multiaddrs(t testing.TB, addrs ...string) (list []ma.Multiaddr) {
	t.Helper()
	for _, a := range addrs {
		m, err := ma.NewMultiaddr(a)
		must(t, err)
		list = append(list, m)
	}
	return list
}

// offerX makes a plain host take streams as Kubo's `ipfs p2p` does.
func offerX(h host.Host, f network.StreamHandler) {
	h.SetStreamHandlerMatch("/x/", func(p protocol.ID) bool { return len(p) > 3 && p[:3] == "/x/" }, f)
}
