package node

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/quic-go/quic-go"
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

// TestARelayThatAnswersIsNotAskedInAHurry: hurry is for those who are silent.
func TestARelayThatAnswersIsNotAskedInAHurry(t *testing.T) {
	for name, prepare := range map[string]func(h host.Host, asked func()){
		"it closes": func(h host.Host, asked func()) {
			h.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
				asked()
				go c.Close()
			}})
		},
		"it refuses and closes": func(h host.Host, asked func()) {
			h.SetStreamHandler(circuit.ProtoIDv2Hop, func(s network.Stream) {
				asked()
				_ = s.Reset()
				go s.Conn().Close()
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			relay := newPlain(t)
			var times atomic.Int32
			prepare(relay, func() { times.Add(1) })
			newNodeOf(t, Config{Relays: []peer.AddrInfo{{ID: relay.ID(), Addrs: relay.Addrs()}}})
			eventually(t, "it is asked", func() bool { return times.Load() > 0 })
			<-time.After(3 * time.Second)
			if n := times.Load(); n > 6 {
				t.Errorf("asked %d times in 3 s", n)
			}
		})
	}
}

func TestSilenceIsNoAnswer(t *testing.T) {
	dial := func(causes ...error) error {
		var de swarm.DialError
		for _, c := range causes {
			de.DialErrors = append(de.DialErrors, swarm.TransportError{Cause: c})
		}
		return dialError{fmt.Errorf("connect: %w", &de)}
	}
	unreachable := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
	for _, c := range []struct {
		err    error
		silent bool
	}{
		{dial(unreachable), true},
		{dial(syscall.ECONNREFUSED, &quic.IdleTimeoutError{}), true},
		{dial(&quic.TransportError{}), true},
		{dial(&quic.TransportError{Remote: true}), false},
		{dial(unreachable, io.EOF), false},
		{dial(), false},
		{dialError{context.DeadlineExceeded}, true},
		{io.EOF, false},
	} {
		if got := isSilent(c.err); got != c.silent {
			t.Errorf("%v: %t", c.err, got)
		}
	}
}
