package node

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
)

// The first packet of a TCP connection that nobody answers is sent again by the
// kernel after 1, 3 and 7 s (RFC 6298, 5.7): a way that is back is found late.
// Peers that something depends on get one of another socket meanwhile.

const (
	// synAgain is how long the first packet may stay unanswered before another
	// socket sends one; never less than synTrips round trips, where they are
	// known.
	synAgain = 250 * time.Millisecond
	synTrips = 3
)

// updatingDialer is the part of libp2p's TCP that dials.
type updatingDialer interface {
	DialWithUpdates(context.Context, ma.Multiaddr, peer.ID, chan<- transport.DialUpdate) (transport.CapableConn, error)
}

// eagerTCP is libp2p's TCP with those dials.
type eagerTCP struct {
	*tcp.TcpTransport
	pace   func(p peer.ID) time.Duration // 0 for a peer that may wait
	shares *dialShares
}

func (t *eagerTCP) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.DialWithUpdates(ctx, addr, p, nil)
}

func (t *eagerTCP) DialWithUpdates(ctx context.Context, addr ma.Multiaddr, p peer.ID, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	pace := t.pace(p)
	if punch, _, _ := network.GetSimultaneousConnect(ctx); punch || pace == 0 {
		return t.TcpTransport.DialWithUpdates(ctx, addr, p, updates)
	}
	defer t.shares.begin(addr, p)()
	d := eagerDial{by: t.TcpTransport, addr: addr, peer: p, pace: pace}
	return d.run(ctx, updates)
}

// eagerDial is one dial by up to two sockets at a time: a patient one, as of any
// dial, whose port NATs know and which a long way needs, and beside it a quick one,
// which is replaced at every pace. The first whose packet is answered goes on
// alone.
type eagerDial struct {
	by   updatingDialer
	addr ma.Multiaddr
	peer peer.ID
	pace time.Duration
}

func (d *eagerDial) run(ctx context.Context, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	patient, quick := d.attempt(ctx), new(attempt)
	defer func() { patient.drop(); quick.drop() }()
	tick := time.NewTicker(d.pace)
	defer tick.Stop()
	for {
		select {
		case u := <-patient.answered:
			quick.drop()
			return patient.finish(u, updates)
		case u := <-quick.answered:
			patient.drop()
			return quick.finish(u, updates)
		case <-patient.done:
			return patient.take()
		case <-quick.done:
			if quick.err == nil || errors.Is(quick.err, syscall.ECONNREFUSED) {
				return quick.take()
			}
			quick = new(attempt) // what it needs is not to be had: the other goes on
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
			if len(quick.answered) > 0 {
				continue
			}
			if quick.stop(); quick.conn != nil {
				return quick.take()
			}
			quick = d.attempt(ctx)
		}
	}
}

// attempt is one socket's. The zero value has no end, and nothing to drop.
type attempt struct {
	answered chan transport.DialUpdate
	cancel   context.CancelFunc
	done     chan struct{} // closed when the following are set
	conn     transport.CapableConn
	err      error
}

func (d *eagerDial) attempt(ctx context.Context) *attempt {
	ctx, cancel := context.WithCancel(ctx)
	a := &attempt{answered: make(chan transport.DialUpdate, 1), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.conn, a.err = d.by.DialWithUpdates(ctx, d.addr, d.peer, a.answered)
	}()
	return a
}

// finish waits for the rest of a dial whose packet was answered.
func (a *attempt) finish(u transport.DialUpdate, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	select {
	case updates <- u:
	default: // as libp2p does: no dial waits for who hears of it
	}
	<-a.done
	return a.take()
}

// take gives what a dial has brought, once it is done.
func (a *attempt) take() (transport.CapableConn, error) {
	conn := a.conn
	a.conn = nil
	return conn, a.err
}

// stop ends the dial.
func (a *attempt) stop() {
	if a.done != nil {
		a.cancel()
		<-a.done
	}
}

// drop ends the dial, and what it has brought.
func (a *attempt) drop() {
	if a.stop(); a.conn != nil {
		_ = a.conn.Close()
		a.conn = nil
	}
}

// pace is how soon a peer gets a further first packet; 0 for one that nothing
// depends on, or that a relay led to.
func (n *Node) pace(p peer.ID) time.Duration {
	if !n.isRelay(p) && (!n.isNeeded(p) || n.lastRelay(p) != "") {
		return 0
	}
	h := n.network.Load()
	if h == nil {
		return synAgain
	}
	return max(synAgain, synTrips*(*h).Peerstore().LatencyEWMA(p))
}

// dialShares has the sockets of one dial counted as one, by limits and by rates:
// they share what the resource manager gives.
type dialShares struct {
	network.ResourceManager

	mu  sync.Mutex
	now map[dialKey]*dialShare
}

type dialKey struct {
	addr string
	peer peer.ID
}

// dialShare is what the sockets of one dial share. The lock of dialShares is held
// by who changes it.
type dialShare struct {
	scope network.ConnManagementScope // nil until a socket needs it
	users int
}

// begin has the sockets of a dial share until the returned func is called; those of
// two dials to one peer at one address all do.
func (s *dialShares) begin(addr ma.Multiaddr, p peer.ID) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := dialKey{addr.String(), p}
	d := s.now[key]
	if d == nil {
		d = &dialShare{}
		if s.now == nil {
			s.now = map[dialKey]*dialShare{}
		}
		s.now[key] = d
	}
	d.users++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.leave(d); s.now[key] == d {
			delete(s.now, key)
		}
	}
}

// leave is called by each user, once. The lock is held.
func (s *dialShares) leave(d *dialShare) {
	if d.users--; d.users == 0 && d.scope != nil {
		d.scope.Done()
	}
}

// OpenConnection waits with a dialled connection for its peer.
func (s *dialShares) OpenConnection(dir network.Direction, fd bool, addr ma.Multiaddr) (network.ConnManagementScope, error) {
	if dir != network.DirOutbound {
		return s.ResourceManager.OpenConnection(dir, fd, addr)
	}
	return &dialScope{of: s, fd: fd, addr: addr}, nil
}

// join opens the scope of a socket, or gives that of its dial.
func (s *dialShares) join(addr ma.Multiaddr, fd bool, p peer.ID) (*dialShare, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.now[dialKey{addr.String(), p}]
	if d == nil {
		d = &dialShare{}
	}
	if d.scope == nil {
		scope, err := s.ResourceManager.OpenConnection(network.DirOutbound, fd, addr)
		if err != nil {
			return nil, err
		}
		if err := scope.SetPeer(p); err != nil {
			scope.Done()
			return nil, err
		}
		d.scope = scope
	}
	d.users++
	return d, nil
}

// dialScope is one socket's. Nothing but SetPeer and Done is called before SetPeer
// has succeeded.
type dialScope struct {
	network.ConnManagementScope
	of   *dialShares
	addr ma.Multiaddr
	fd   bool

	mu    sync.Mutex
	share *dialShare // nil before that, and after Done
}

func (d *dialScope) SetPeer(p peer.ID) error {
	share, err := d.of.join(d.addr, d.fd, p)
	if err != nil {
		return err
	}
	d.ConnManagementScope, d.share = share.scope, share
	return nil
}

func (d *dialScope) Done() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.share == nil {
		return
	}
	d.of.mu.Lock()
	defer d.of.mu.Unlock()
	d.of.leave(d.share)
	d.share = nil
}
