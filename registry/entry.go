package registry

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// ErrClosed is the cause with which a tunnel's context ends when it was closed
// by selector.
var ErrClosed = errors.New("tunnel closed")

// Entry is a tunnel in the table, from Register to Deregister. Its methods may
// be called from any goroutine.
type Entry struct {
	Tunnel Tunnel // never written after Register

	reg    *Registry
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	state  State
	reason string
	bound  string
	peer   string

	live, total       atomic.Int64
	bytesIn, bytesOut atomic.Int64

	rates                rates
	tooMany, peerTooMany tooMany
}

func newEntry(ctx context.Context, r *Registry, t Tunnel) *Entry {
	e := &Entry{Tunnel: t, reg: r, state: StateStarting}
	if len(t.Peers) > 0 {
		e.peer = t.Peers[0]
	}
	e.ctx, e.cancel = context.WithCancelCause(ctx)
	return e
}

// Context ends when the tunnel is closed; its cause is ErrClosed or the
// opener's.
func (e *Entry) Context() context.Context { return e.ctx }

// Close ends the tunnel's context with that cause. Whoever serves the tunnel
// sees it, stops and deregisters.
func (e *Entry) Close(cause error) { e.cancel(cause) }

// SetState records a state with its reason and, where either changed,
// publishes a TunnelEvent. Closed is the last state.
func (e *Entry) SetState(s State, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state == StateClosed || e.state == s && e.reason == reason {
		return
	}
	e.state, e.reason = s, reason
	e.publish()
}

// publish tells of the entry as it is, without what limits did. With e.mu
// held, so that events come in the order of the states; Publish never blocks.
func (e *Entry) publish() {
	e.reg.Events.Publish(TunnelEvent{Time: now(), Tunnel: e.status()})
}

// SetBound records the address that forward has bound, with its real port.
func (e *Entry) SetBound(addr string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bound = addr
}

// SetPeer records the peer that new connections go to.
func (e *Entry) SetPeer(peer string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.peer = peer
}

// Status is the entry at this moment.
func (e *Entry) Status() TunnelStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.status()
	s.Reason = e.limited(s.Reason)
	return s
}

func (e *Entry) status() TunnelStatus {
	s := TunnelStatus{
		ID: e.Tunnel.ID, Kind: e.Tunnel.Kind, Protocol: e.Tunnel.Protocol,
		Bind: e.bound, Target: e.Tunnel.Target, Peer: e.peer,
		State: e.state, Reason: e.reason, Kept: e.Tunnel.Keep,
		Streams: e.live.Load(), Total: e.total.Load(),
		BytesIn: e.bytesIn.Load(), BytesOut: e.bytesOut.Load(),
	}
	if s.Bind == "" {
		s.Bind = e.Tunnel.Bind
	}
	if e.Tunnel.Kind == KindListen {
		s.Access = e.Tunnel.access()
	}
	return s
}
