package node

import (
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// newIdler is a libp2p host that only dials.
func newIdler(t testing.TB) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics(), libp2p.DisableRelay(), libp2p.ResourceManager(&network.NullResourceManager{}))
	must(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// idle has n strangers connect and do nothing.
func idle(t testing.TB, to peer.AddrInfo, n int) {
	t.Helper()
	const atOnce = 16
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for range n {
		h := newIdler(t)
		slots <- struct{}{}
		all.Go(func() {
			_ = h.Connect(t.Context(), to) // what is refused is refused
			<-slots
		})
	}
	all.Wait()
}

func TestIdleStrangersDoNotKeepOutWhoIsLetIn(t *testing.T) {
	n := newTestNode(t, onTCP)
	to := peer.AddrInfo{ID: n.host.ID(), Addrs: n.host.Addrs()}
	idle(t, to, baseOf(n.limits.Limiter.GetSystemLimits()).ConnsInbound+20)
	if got := len(n.host.Network().Conns()); got > n.limits.strangers {
		t.Errorf("strangers hold %d connections, want at most %d", got, n.limits.strangers)
	}
	friend := newIdler(t)
	n.trust(friend.ID().String(), true)
	must(t, friend.Connect(t.Context(), to))
	s, err := friend.NewStream(t.Context(), to.ID, "/ipfs/ping/1.0.0")
	must(t, err)
	_ = s.Reset()
}
