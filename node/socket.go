package node

import (
	"context"
	"errors"
	"net"
	"reflect"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/quic-go/quic-go"
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

// usesBBR says that the kernel has taken it for a socket.
var usesBBR atomic.Bool

// sockets makes libp2p's transports over sockets with our options. Those that
// others connect to are sieved.
type sockets struct {
	sieve *sieve
	pace  func(peer.ID) time.Duration // see eagerTCP
	quic  []*quicreuse.ConnManager    // the host's, and those of its dialers
}

func (s *sockets) newTCP(u transport.Upgrader, rcmgr network.ResourceManager, shared *tcpreuse.ConnMgr) (transport.Transport, error) {
	shares := &dialShares{ResourceManager: rcmgr}
	t, err := tcp.NewTCPTransport(socketUpgrader{u, s.sieve}, shares, shared)
	return &eagerTCP{t, s.pace, shares}, err
}

// newQUIC makes what libp2p makes where it is given none, over sockets that are
// sieved.
func (s *sockets) newQUIC(reset quic.StatelessResetKey, tokens quic.TokenGeneratorKey, rcmgr network.ResourceManager) (*quicreuse.ConnManager, error) {
	m, err := quicreuse.NewConnManager(reset, tokens,
		quicreuse.OverrideListenUDP(s.listenUDP),
		quicreuse.VerifySourceAddress(rcmgr.VerifySourceAddress),
		quicreuse.ConnContext(func(ctx context.Context, from *quic.ClientInfo) (context.Context, error) {
			return openScope(ctx, rcmgr, from.RemoteAddr)
		}))
	if err == nil {
		s.quic = append(s.quic, m)
	}
	return m, err
}

// close is for when the host is closed; it may be called more than once.
func (s *sockets) close() (err error) {
	for _, m := range s.quic {
		err = errors.Join(err, m.Close())
	}
	s.quic = nil
	return err
}

func (s *sockets) listenUDP(network string, at *net.UDPAddr) (net.PacketConn, error) {
	c, err := net.ListenUDP(network, at)
	if err != nil {
		return nil, err
	}
	s.sieve.watch(c, false)
	return c, nil
}

// openScope asks for an incoming connection over QUIC, whose scope lives as
// long as its context.
func openScope(ctx context.Context, rcmgr network.ResourceManager, from net.Addr) (context.Context, error) {
	addr, err := quicreuse.ToQuicMultiaddr(from, quic.Version1)
	if err != nil {
		addr = nil // the resource manager decides
	}
	scope, err := rcmgr.OpenConnection(network.DirInbound, false, addr)
	if err != nil {
		return ctx, err
	}
	ctx = network.WithConnManagementScope(ctx, scope)
	context.AfterFunc(ctx, scope.Done)
	return ctx, nil
}

// socketUpgrader sets the options of each socket before it is upgraded.
type socketUpgrader struct {
	transport.Upgrader
	sieve *sieve
}

// GateMaListener is called with each listener before anything comes of it.
func (u socketUpgrader) GateMaListener(l manet.Listener) transport.GatedMaListener {
	if of := socketOf(l); of != nil {
		u.sieve.watch(of, true)
	}
	return u.Upgrader.GateMaListener(l)
}

// socketOf finds the socket under libp2p's listeners, which embed each other as
// Listener and show nothing of it; nil where there is none.
func socketOf(l any) syscall.Conn {
	for depth := 0; depth < 4; depth++ {
		if of, ok := l.(syscall.Conn); ok {
			return of
		}
		v := reflect.Indirect(reflect.ValueOf(l))
		if v.Kind() != reflect.Struct {
			return nil
		}
		inner := v.FieldByName("Listener")
		if !inner.IsValid() || !inner.CanInterface() {
			return nil
		}
		l = inner.Interface()
	}
	return nil
}

func (u socketUpgrader) Upgrade(ctx context.Context, t transport.Transport, c manet.Conn, dir network.Direction, p peer.ID, scope network.ConnManagementScope) (transport.CapableConn, error) {
	setOptions(c)
	return u.Upgrader.Upgrade(ctx, t, newPaced(c), dir, p, scope)
}

func (u socketUpgrader) UpgradeGatedMaListener(t transport.Transport, l transport.GatedMaListener) transport.Listener {
	return u.Upgrader.UpgradeGatedMaListener(t, socketListener{l})
}

type socketListener struct{ transport.GatedMaListener }

func (l socketListener) Accept() (manet.Conn, network.ConnManagementScope, error) {
	c, scope, err := l.GatedMaListener.Accept()
	if err != nil {
		return c, scope, err
	}
	setOptions(c)
	return newPaced(c), scope, nil
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
		if setCongestionControl(fd, congestionControl) {
			usesBBR.Store(true)
		}
		_ = unsieve(int(fd))
	})
}
