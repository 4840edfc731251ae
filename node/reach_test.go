package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestAGivenAddressIsKeptAsLongAsItIsWanted(t *testing.T) {
	a, b := newTestNode(t, onTCP), newTestNode(t, onTCP)
	one := reach(t, a, b.host)
	two, err := a.Want(PeerAddrs{ID: b.ID(), Addrs: b.host.Addrs()})
	must(t, err)
	for range 3 {
		lose(t, a, b)
		must(t, a.Connect(within(t), b.ID(), 0))
	}
	one()
	lose(t, a, b)
	must(t, a.Connect(within(t), b.ID(), 0)) // the other tunnel still wants it
	two()
	lose(t, a, b)
	if err := a.Connect(within(t), b.ID(), 0); !errors.Is(err, ErrNoAddress) {
		t.Errorf("wanted by nobody: %v", err)
	}
	if len(a.wanted) != 0 {
		t.Error("something is still wanted")
	}
}

// lose ends the connection, and all that libp2p knows of the peer's addresses:
// identify and time throw them out.
func lose(t testing.TB, a, b *testNode) {
	t.Helper()
	must(t, a.host.Network().ClosePeer(b.host.ID()))
	eventually(t, "the connection has ended", func() bool { return !a.isConnected(b.host.ID()) && !b.isConnected(a.host.ID()) })
	a.host.Peerstore().ClearAddrs(b.host.ID())
}

func TestOneselfAndNonsenseAreNotWanted(t *testing.T) {
	a := newTestNode(t, onTCP)
	for _, id := range []string{a.ID(), "", "x", "/p2p/" + nobody} {
		if _, err := a.Want(PeerAddrs{ID: id}); err == nil {
			t.Errorf("%q was taken", id)
		}
	}
}

func TestWatchTellsOfComingAndGoing(t *testing.T) {
	a, b := newTestNode(t, onTCP), newTestNode(t, onTCP)
	up, changed := a.Watch(b.ID())
	if up {
		t.Error("there before it came")
	}
	reach(t, a, b.host)
	wantClosed(t, changed)
	up, changed = a.Watch(b.ID())
	if !up {
		t.Error("not there")
	}
	must(t, b.Close())
	wantClosed(t, changed)
	eventually(t, "gone", func() bool { up, _ := a.Watch(b.ID()); return !up })
}

func wantClosed(t testing.TB, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatal("nobody was told")
	}
}

func TestConnectIsPatientAndEndsWithItsContext(t *testing.T) {
	a, b := newTestNode(t, onTCP), newTestNode(t, onTCP)
	if err := a.Connect(t.Context(), nobody, 0); !errors.Is(err, ErrNoAddress) {
		t.Errorf("without patience: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Connect(ctx, nobody, time.Hour); err == nil {
		t.Error("connected to nobody")
	}
	done := make(chan error, 1)
	go func() { done <- a.Connect(within(t), b.ID(), patience) }()
	eventually(t, "somebody waits", func() bool { a.Node.mu.Lock(); defer a.Node.mu.Unlock(); return len(a.changes) > 0 })
	must(t, b.host.Connect(within(t), peer.AddrInfo{ID: a.host.ID(), Addrs: a.host.Addrs()}))
	must(t, <-done) // the peer came by itself
}

func TestPingTellsTimeAndPath(t *testing.T) {
	a, b := pair(t, onTCP)
	rtt, path, err := a.Ping(within(t), b.ID())
	if err != nil || rtt <= 0 || path.Transport != "tcp" {
		t.Errorf("%v over %+v, %v", rtt, path, err)
	}
	peers := a.Peers()
	if len(peers) != 1 || peers[0].Peer != b.ID() || peers[0].Path != "direct" || peers[0].Transport != "tcp" {
		t.Errorf("peers %+v", peers)
	}
}

func TestAHeldOrWantedPeerIsNotTrimmed(t *testing.T) {
	a, b := newTestNode(t, onTCP), newTestNode(t, onTCP)
	protected := func(tag string) bool { return a.host.ConnManager().IsProtected(b.host.ID(), tag) }
	unwant := reach(t, a, b.host)
	one, two := a.Hold(b.ID()), a.Hold(b.ID())
	one()
	if !protected(wantTag) || !protected(holdTag) {
		t.Error("not protected")
	}
	two()
	unwant()
	if protected(wantTag) || protected(holdTag) || len(a.held) != 0 {
		t.Error("protected for ever")
	}
}

func TestResolve(t *testing.T) {
	got, err := Resolve(t.Context(), "/ip4/192.0.2.1/tcp/4001/p2p/"+nobody)
	if err != nil || len(got) != 1 || got[0].ID != nobody || len(got[0].Addrs) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	for _, typed := range []string{"", "a-name", "/ip4/192.0.2.1/tcp/4001", "/dnsaddr/"} {
		if got, err := Resolve(t.Context(), typed); err == nil {
			t.Errorf("%q: %v", typed, got)
		}
	}
}
