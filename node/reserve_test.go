package node

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
)

// connectedAs is a host with that key and a connection.
func connectedAs(t *testing.T, key crypto.PrivKey, to peer.AddrInfo) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.Identity(key), libp2p.DisableMetrics())
	must(t, err)
	t.Cleanup(func() { _ = h.Close() })
	must(t, h.Connect(within(t), to))
	return h
}

// A peer that has changed its network has another connection to the relay, and
// can't say that the old one is dead.
func TestWhoReservesFromElsewhereLosesItsOlderConnections(t *testing.T) {
	relay := newNodeOf(t, Config{Relay: &RelayService{Allowed: everybody}})
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	must(t, err)
	old := connectedAs(t, key, infoOf(relay))
	<-time.After(staleAge + 100*time.Millisecond)
	moved := connectedAs(t, key, infoOf(relay))
	if n := len(relay.host.Network().ConnsToPeer(moved.ID())); n != 2 {
		t.Fatalf("%d connections before the reservation, want 2", n)
	}
	_, err = client.Reserve(within(t), moved, infoOf(relay))
	must(t, err)
	eventually(t, "the older connection is closed", func() bool { return len(old.Network().Conns()) == 0 })
	if len(moved.Network().Conns()) != 1 {
		t.Error("so is the newer one")
	}
}
