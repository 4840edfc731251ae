package node

import (
	"context"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	manet "github.com/multiformats/go-multiaddr/net"
)

// unackedLimit is how long the kernel may wait for what it has sent on a TCP
// connection to be acknowledged before it gives the connection up (RFC 5482).
// It is the kernel's own word on a path that carries much, where a ping would
// wait behind what is queued.
const unackedLimit = 7 * time.Second

// congestionControl is the algorithm of TCP connections where the kernel offers
// it to us: it takes no loss for a full path, as the usual ones do
// (draft-ietf-ccwg-bbr).
const congestionControl = "bbr"

// newTCP is libp2p's TCP transport over sockets with our options.
func newTCP(u transport.Upgrader, rcmgr network.ResourceManager, shared *tcpreuse.ConnMgr) (transport.Transport, error) {
	return tcp.NewTCPTransport(socketUpgrader{u}, rcmgr, shared)
}

// socketUpgrader sets the options of each socket before it is upgraded.
type socketUpgrader struct{ transport.Upgrader }

func (u socketUpgrader) Upgrade(ctx context.Context, t transport.Transport, c manet.Conn, dir network.Direction, p peer.ID, scope network.ConnManagementScope) (transport.CapableConn, error) {
	setOptions(c)
	return u.Upgrader.Upgrade(ctx, t, c, dir, p, scope)
}

func (u socketUpgrader) UpgradeGatedMaListener(t transport.Transport, l transport.GatedMaListener) transport.Listener {
	return u.Upgrader.UpgradeGatedMaListener(t, socketListener{l})
}

type socketListener struct{ transport.GatedMaListener }

func (l socketListener) Accept() (manet.Conn, network.ConnManagementScope, error) {
	c, scope, err := l.GatedMaListener.Accept()
	if err == nil {
		setOptions(c)
	}
	return c, scope, err
}

// setOptions leaves a socket as it is where the system does not know them.
func setOptions(c manet.Conn) {
	sys, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		setUnackedLimit(fd, unackedLimit)
		setCongestionControl(fd, congestionControl)
	})
}
