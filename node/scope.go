package node

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"p2ptun/proto"
)

const (
	// fairPart is the part of what is free that one stranger may hold, and
	// growPart that up to which its windows may grow.
	fairPart = 2
	growPart = 8
	// quicMemory is what a peer may send to a QUIC stream unread: quic-go
	// reserves nothing for its first windows. For all streams of a connection
	// it is less than as many times that.
	quicMemory = 512 << 10
)

// resources is a resource manager that asks a guard first. libp2p calls it
// before it does anything for an incoming connection, over TCP and over QUIC,
// and for an incoming stream. What this node dials is not the guard's matter.
type resources struct {
	network.ResourceManager
	guard *guard
}

func (r *resources) OpenConnection(dir network.Direction, usefd bool, endpoint ma.Multiaddr) (network.ConnManagementScope, error) {
	if dir == network.DirOutbound {
		return r.dial(usefd, endpoint)
	}
	from := netOf(endpoint)
	if !r.guard.admits(from) {
		return nil, errFromThere
	}
	quic := endpoint != nil && has(endpoint, ma.P_QUIC_V1)
	shaken, err := r.guard.begin(from, quic)
	if err != nil {
		return nil, err
	}
	scope, err := r.ResourceManager.OpenConnection(dir, usefd, endpoint)
	if err != nil {
		shaken()
		return nil, err
	}
	return &guestConn{ConnManagementScope: scope, from: from, quic: quic, shaken: shaken, account: account{guard: r.guard}}, nil
}

// dial opens the scope of a connection of our own, as if it went to loopback, which
// is free: what others may do from one address is no limit of what is dialled
// there. In an outage tries would use up what those from there are to come back
// with.
func (r *resources) dial(usefd bool, endpoint ma.Multiaddr) (network.ConnManagementScope, error) {
	if _, err := manet.ToIP(endpoint); err == nil {
		endpoint = freeAddr
	}
	return r.ResourceManager.OpenConnection(network.DirOutbound, usefd, endpoint)
}

var freeAddr = ma.StringCast("/ip4/127.0.0.1")

func (r *resources) VerifySourceAddress(addr net.Addr) bool {
	from, err := netip.ParseAddrPort(addr.String())
	if err == nil && r.guard.suspects(netOfIP(from.Addr())) {
		return true
	}
	return r.ResourceManager.VerifySourceAddress(addr)
}

func (r *resources) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	if dir == network.DirOutbound {
		return r.ResourceManager.OpenStream(p, dir)
	}
	leave, err := r.guard.enter(p)
	if err != nil {
		return nil, err
	}
	if leave == nil {
		leave = func() {}
	}
	scope, err := r.ResourceManager.OpenStream(p, dir)
	if err != nil {
		leave()
		return nil, err
	}
	return &guestStream{StreamManagementScope: scope, leave: sync.OnceFunc(leave)}, nil
}

// guestStream is the scope of a stream that a peer has opened.
type guestStream struct {
	network.StreamManagementScope
	leave func() // once, however often it is called
}

func (s *guestStream) Done() {
	s.StreamManagementScope.Done()
	s.leave()
}

// SetProtocol counts the streams of all tunnels as one protocol's: libp2p keeps
// a scope for each name that a peer thinks up, for a minute.
func (s *guestStream) SetProtocol(p protocol.ID) error {
	if isTunnel(p) {
		p = proto.Namespace
	}
	return s.StreamManagementScope.SetProtocol(p)
}

// account is the memory that one connection or stream of a stranger holds.
type account struct {
	guard *guard
	mu    sync.Mutex
	peer  peer.ID
	held  int
	done  bool
}

// reserve takes size for whoever is a stranger now.
func (a *account) reserve(size, part int) (counted, ok bool) {
	if a.guard.trusted(a.peer) {
		return false, true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done || !a.guard.reserve(a.peer, size, part) {
		return false, false
	}
	a.held += size
	return true, true
}

// release gives size back, as far as it was taken.
func (a *account) release(size int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	size = min(size, a.held)
	a.held -= size
	a.guard.release(a.peer, size)
}

func (a *account) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done = true
	a.guard.release(a.peer, a.held)
	a.held = 0
}

// reserveIn takes memory from the guard's share and from a libp2p scope. A
// priority under the highest is that of a window that would grow.
func (a *account) reserveIn(scope network.ResourceScope, size int, prio uint8) error {
	part := growPart
	if prio == network.ReservationPriorityAlways {
		part = fairPart
	}
	counted, ok := a.reserve(size, part)
	if !ok {
		return errTooMuch
	}
	err := scope.ReserveMemory(size, prio)
	if err != nil && counted {
		a.release(size)
	}
	return err
}

// guestConn is the scope of a connection that a peer has opened. Over QUIC its
// Done is called more than once.
type guestConn struct {
	network.ConnManagementScope
	account
	from   netip.Prefix
	quic   bool
	shaken func() // ends the handshake; may be called more than once
}

func (c *guestConn) SetPeer(p peer.ID) error {
	if err := c.ConnManagementScope.SetPeer(p); err != nil {
		return err
	}
	c.shaken()
	c.mu.Lock()
	c.peer = p
	c.mu.Unlock()
	c.guard.came(p, c.from, c.quic)
	return nil
}

func (c *guestConn) Done() {
	c.ConnManagementScope.Done()
	c.shaken()
	c.end()
}

func (c *guestConn) ReserveMemory(size int, prio uint8) error {
	return c.reserveIn(c.ConnManagementScope, size, prio)
}

func (c *guestConn) ReleaseMemory(size int) {
	c.ConnManagementScope.ReleaseMemory(size)
	c.release(size)
}

// PeerScope is where yamux reserves the memory of each stream.
func (c *guestConn) PeerScope() network.PeerScope {
	scope := c.ConnManagementScope.PeerScope()
	if scope == nil {
		return nil
	}
	return &guestPeer{PeerScope: scope, guard: c.guard}
}

type guestPeer struct {
	network.PeerScope
	guard *guard
}

func (s *guestPeer) BeginSpan() (network.ResourceScopeSpan, error) {
	span, err := s.PeerScope.BeginSpan()
	if err != nil {
		return nil, err
	}
	return &guestSpan{ResourceScopeSpan: span, account: account{guard: s.guard, peer: s.Peer()}}, nil
}

// guestSpan is the memory of one yamux stream.
type guestSpan struct {
	network.ResourceScopeSpan
	account
}

// ReserveMemory ends the span where the stream gets no memory to begin with:
// yamux drops such a span without ending it, and libp2p would keep the scope of
// its peer for ever.
func (s *guestSpan) ReserveMemory(size int, prio uint8) error {
	err := s.reserveIn(s.ResourceScopeSpan, size, prio)
	if err != nil && prio == network.ReservationPriorityAlways {
		s.Done()
		if errors.Is(err, errTooMuch) {
			s.guard.crowded(s.peer)
		}
	}
	return err
}

func (s *guestSpan) ReleaseMemory(size int) {
	s.ResourceScopeSpan.ReleaseMemory(size)
	s.release(size)
}

func (s *guestSpan) Done() {
	s.ResourceScopeSpan.Done()
	s.end()
}
