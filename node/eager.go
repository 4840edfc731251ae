package node

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
)

// The first packet of a TCP connection that nobody answers is sent again by the
// kernel after 1, 3 and 7 s (RFC 6298, 5.7): a way that is back is found late.
// Peers that something depends on get another socket meanwhile.

const (
	// synAgain is how long the first packet may stay unanswered before the next
	// socket sends one; never less than synTrips round trips, where they are
	// known.
	synAgain = 250 * time.Millisecond
	synTrips = 3
	// quickSyns is how many do so before one begins that is left alone, for a
	// path with a longer round trip.
	quickSyns = 3
)

// updatingDialer is the part of libp2p's TCP that dials.
type updatingDialer interface {
	DialWithUpdates(context.Context, ma.Multiaddr, peer.ID, chan<- transport.DialUpdate) (transport.CapableConn, error)
}

// eagerTCP is libp2p's TCP with those dials.
type eagerTCP struct {
	*tcp.TcpTransport
	pace func(p peer.ID) time.Duration // 0 for a peer that may wait
}

func (t *eagerTCP) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.DialWithUpdates(ctx, addr, p, nil)
}

func (t *eagerTCP) DialWithUpdates(ctx context.Context, addr ma.Multiaddr, p peer.ID, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	pace := t.pace(p)
	if punch, _, _ := network.GetSimultaneousConnect(ctx); punch || pace == 0 {
		return t.TcpTransport.DialWithUpdates(ctx, addr, p, updates)
	}
	d := eagerDial{by: t.TcpTransport, addr: addr, peer: p, pace: pace}
	return d.run(ctx, updates)
}

// eagerDial is one dial by up to two sockets at a time: a quick one, which is
// replaced at every pace, and a patient one. The first whose packet is answered
// goes on alone. A quick one takes over its predecessor's port, which NATs know.
type eagerDial struct {
	by   updatingDialer
	addr ma.Multiaddr
	peer peer.ID
	pace time.Duration
}

func (d *eagerDial) run(ctx context.Context, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	quick, patient := d.attempt(ctx), new(attempt)
	defer func() { quick.drop(); patient.drop() }()
	tick := time.NewTicker(d.pace)
	defer tick.Stop()
	for n := 1; ; {
		select {
		case u := <-quick.answered:
			patient.drop()
			return quick.finish(u, updates)
		case u := <-patient.answered:
			quick.drop()
			return patient.finish(u, updates)
		case <-quick.done:
			return quick.take()
		case <-patient.done:
			return patient.take()
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
		if n++; n == quickSyns+1 {
			patient = d.attempt(ctx)
		}
		if quick.stop(); quick.conn != nil {
			return quick.take()
		}
		quick = d.attempt(ctx)
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
