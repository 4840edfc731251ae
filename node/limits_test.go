package node

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"p2ptun/proto"
	"p2ptun/registry"
)

// greet answers each stream with one byte and keeps it until the peer ends it.
func greet(n *testNode) {
	n.Handle(func(in registry.Incoming) {
		_, _ = in.End.Write([]byte("k"))
		_, _ = io.Copy(io.Discard, in.End)
		_ = in.End.Reset(proto.CodeNone)
	})
}

// openMany opens streams at once, and gives those that the peer has taken.
func openMany(t testing.TB, a, b *testNode, n int) (held []registry.End) {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(n))
	for range 16 {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				end, _, err := a.Open(within(t), b.ID(), "/x/t")
				if err != nil {
					continue
				}
				if _, err := io.ReadFull(end, make([]byte, 1)); err != nil {
					_ = end.Reset(proto.CodeNone)
					continue
				}
				mu.Lock()
				held = append(held, end)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return held
}

func release(ends []registry.End) {
	for _, end := range ends {
		_ = end.Reset(proto.CodeNone)
	}
}

func nobodyIsTrusted(peer.ID) bool { return false }

const many = 5200

func TestAStrangerHoldsFewStreamsAndAFriendMany(t *testing.T) {
	a, b := pair(t, onTCP)
	greet(b)
	fewAtMost := func(what string) {
		t.Helper()
		held := openMany(t, a, b, strangerInbound+8)
		// identify and its like hold some of them
		if n := len(held); n > strangerInbound || n < strangerInbound/2 {
			t.Errorf("%s holds %d streams, want %d", what, n, strangerInbound)
		}
		release(held)
		eventually(t, "streams are free again", func() bool { return streamsOf(b, a) < strangerInbound/2 })
	}
	fewAtMost("a stranger")

	b.trust(a.ID(), true) // while it is connected
	b.RefreshLimits()
	asFriend := openMany(t, a, b, many)
	if n := len(asFriend); n != many {
		t.Errorf("a friend holds %d streams, want %d", n, many)
	}

	b.trust(a.ID(), false)
	b.RefreshLimits()
	if n := len(openMany(t, a, b, 10)); n != 0 {
		t.Errorf("one that is distrusted got %d more streams", n)
	}
	release(asFriend)
	eventually(t, "streams are free again", func() bool { return streamsOf(b, a) < strangerInbound/2 })
	fewAtMost("one that is distrusted")
}

// streamsOf counts the streams that a peer has to a node.
func streamsOf(n, peer *testNode) int { return inboundOf(n, peer.host) }

func TestOneThatIsTrustedFromTheStartMayHoldMany(t *testing.T) {
	a, b := newTestNode(t, onTCP), newTestNode(t, onTCP)
	b.trust(a.ID(), true)
	greet(b)
	reach(t, a, b.host)
	held := openMany(t, a, b, many)
	if n := len(held); n != many {
		t.Errorf("holds %d streams, want %d", n, many)
	}
	release(held)
}

// A scope whose limit was changed outlives its connection: the one who comes
// back is judged anew.
func TestTrustLostWhileAwayIsLostOnReturn(t *testing.T) {
	a, b := pair(t, onTCP)
	limitOf := func() (l rcmgr.Limit) {
		_ = b.host.Network().ResourceManager().ViewPeer(a.host.ID(), func(s network.PeerScope) error {
			l = s.(rcmgr.ResourceScopeLimiter).Limit()
			return nil
		})
		return l
	}
	b.trust(a.ID(), true)
	b.RefreshLimits()
	if limitOf() != b.limits.peer {
		t.Error("the wide limit did not reach the scope")
	}
	lose(t, a, b)
	b.trust(a.ID(), false)
	b.RefreshLimits()
	must(t, a.Connect(within(t), b.ID(), 0))
	eventually(t, "the narrow limit holds", func() bool { return limitOf() == b.limits.stranger })
}

func TestThePeersWhoseScopesAreKeptAreBounded(t *testing.T) {
	n := newTestNode(t, onTCP)
	for i := range maxSticky {
		if !n.makeSticky(peer.ID(fmt.Sprint(i))) {
			t.Fatalf("peer %d is one too many", i)
		}
	}
	if n.makeSticky("one more") || len(n.sticky) != maxSticky {
		t.Errorf("%d peers are kept", len(n.sticky))
	}
	if !n.makeSticky("0") {
		t.Error("one that is kept already was refused")
	}
}

// libp2p's default lets 8 connections in from one address, and makes the 17th
// within a minute wait; loopback is free, so documentation addresses stand in
// (RFC 5737, RFC 3849).
func TestAnOfficeMayConnectFromOneAddress(t *testing.T) {
	for _, addr := range []string{"/ip4/192.0.2.1/tcp/4001", "/ip6/2001:db8::1/tcp/4001"} {
		rm, err := newResourceManager(newLimiter(nobodyIsTrusted), newGuard(nobodyIsTrusted, slog.New(slog.DiscardHandler)))
		must(t, err)
		opened := 0
		for range perAddress + 20 {
			if _, err := rm.OpenConnection(network.DirInbound, true, multiaddrs(t, addr)[0]); err == nil {
				opened++
			}
		}
		if opened != perAddress {
			t.Errorf("%d connections from %s, want %d", opened, addr, perAddress)
		}
		must(t, rm.Close())
	}
}

// TestOurDialsLeaveOthersTheirTurns: an address that is dialled again and again in
// an outage is one that others come from when it is over.
func TestOurDialsLeaveOthersTheirTurns(t *testing.T) {
	rm, err := newResourceManager(newLimiter(nobodyIsTrusted), newGuard(nobodyIsTrusted, slog.New(slog.DiscardHandler)))
	must(t, err)
	defer rm.Close()
	addr := multiaddrs(t, "/ip4/192.0.2.1/tcp/1")[0]
	for range 1000 {
		scope, err := rm.OpenConnection(network.DirOutbound, true, addr)
		must(t, err)
		scope.Done()
	}
	scope, err := rm.OpenConnection(network.DirInbound, true, addr)
	must(t, err)
	scope.Done()
}
