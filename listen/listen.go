// Package listen is the side that offers a service: for each stream of a peer
// it asks whether the peer may, dials the target and hands both to the
// registry. It knows no libp2p and no rule of access: node brings the streams,
// access answers the question, daemon wires them.
package listen

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"p2ptun/proto"
	"p2ptun/registry"
)

const (
	// dialLimit bounds a dial to a target, its name's resolution included.
	dialLimit = 10 * time.Second
	// probeEvery is how often at most a target is dialled to answer questions.
	probeEvery = 10 * time.Second
)

// Service serves all listening tunnels of a node. Its methods may be called
// from any goroutine.
type Service struct {
	Registry *registry.Registry
	// Allowed says whether a peer may use a protocol. It is asked before
	// anything else is done for a stream, and must take the same time whether
	// the protocol exists or not.
	Allowed func(peer, protocol string) bool
	// Refused is told of each refusal. It must not block. If nil, nobody is.
	Refused func(peer, protocol string)
	// Limits says how many live streams a peer may have of a protocol, and how
	// many bytes a second each way they may carry together; what is 0 is as the
	// tunnel has it for each peer. If nil, all is. It is called with a lock held
	// that RefreshLimits takes.
	Limits func(peer, protocol string) (maxStreams int, maxRate int64)
	// TooMany is told of each stream that was refused because of a limit. It
	// must not block. If nil, nobody is.
	TooMany func(peer, protocol string)
	// Hold keeps the connection of a peer while a stream of it lives. If nil,
	// nothing is kept.
	Hold func(peer string) (end func())
	// Dial dials a target. If nil, a net.Dialer's DialContext.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu     sync.Mutex
	probes map[*registry.Entry]*probe

	quota quota
}

// Run offers a tunnel's service until its context ends: from the first call on
// the registry finds it. ready is called once the target has been tried; its
// error, or nil, is passed on: a target that is down is no error of the
// tunnel's.
func (s *Service) Run(e *registry.Entry, ready func(target error)) {
	ctx := e.Context()
	s.mu.Lock()
	if s.probes == nil {
		s.probes = map[*registry.Entry]*probe{}
	}
	s.probes[e] = newProbe()
	s.mu.Unlock()
	ready(s.probe(e))
	<-ctx.Done()
	s.mu.Lock()
	delete(s.probes, e)
	s.mu.Unlock()
}

// Serve takes one stream of a peer and owns it. It returns when the stream is
// carried by the registry, or reset.
func (s *Service) Serve(in registry.Incoming) {
	registry.GrowStack()
	if !s.Allowed(in.Peer, in.Protocol) {
		_ = in.End.Reset(proto.CodeRefused)
		if s.Refused != nil {
			s.Refused(in.Peer, in.Protocol)
		}
		return
	}
	e, ok := s.Registry.Listener(in.Protocol)
	if !ok || e.Context().Err() != nil {
		_ = in.End.Reset(proto.CodeNoService)
		return
	}
	leave, ok := s.enter(e, in)
	if !ok {
		return
	}
	if !s.join(e, in, leave) {
		leave()
	}
}

// join dials the target and has the registry carry the stream, whose end calls
// leave. If it reports false the stream is reset, and leave was not called.
func (s *Service) join(e *registry.Entry, in registry.Incoming, leave func()) bool {
	local, err := s.open(e, in)
	s.note(e, err)
	if err != nil {
		_ = in.End.Reset(proto.CodeTargetDown)
		return false
	}
	if !s.Allowed(in.Peer, in.Protocol) { // the right has gone in the meantime
		_ = local.Reset(proto.CodeRevoked)
		_ = in.End.Reset(proto.CodeRevoked)
		return false
	}
	return s.carry(e, in, local, leave)
}

// carry hands both ends to the registry, and asks once more: whoever takes a
// right away resets the streams that are in the registry by then.
func (s *Service) carry(e *registry.Entry, in registry.Incoming, local registry.End, leave func()) bool {
	stream := &registry.Stream{Peer: in.Peer, Path: in.Path, Origin: e.Tunnel.Target, Throttle: s.throttle(e, in.Peer)}
	release := func() {}
	if s.Hold != nil {
		release = s.Hold(in.Peer)
	}
	stream.OnClosed = func(*registry.Stream) { release(); leave() }
	if err := s.Registry.Pipe(e, stream, local, in.End); err != nil {
		release()
		return false
	}
	if !s.Allowed(in.Peer, in.Protocol) {
		s.Registry.ResetStreams(func(st *registry.Stream) bool { return st == stream }, proto.CodeRevoked)
	}
	return true
}

// open dials the target and tells it who the peer is, where the tunnel says so.
func (s *Service) open(e *registry.Entry, in registry.Incoming) (registry.End, error) {
	ctx, cancel := context.WithTimeout(e.Context(), dialLimit)
	defer cancel()
	conn, err := s.dial(ctx, e.Tunnel.Target)
	if err != nil {
		return nil, err
	}
	if err := introduce(conn, e.Tunnel, in); err != nil {
		conn.Close()
		return nil, err
	}
	end, err := registry.NewConnEnd(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return end, nil
}

// dial resolves the target's name, if it is one, each time.
func (s *Service) dial(ctx context.Context, target string) (net.Conn, error) {
	addr, err := ma.NewMultiaddr(target)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", target, err)
	}
	network, address, err := proto.DialArgs(addr)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", target, err)
	}
	dial := s.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("dial target %s: %w", target, err)
	}
	return conn, nil
}

// note shows in the tunnel's state whether its target answers.
func (s *Service) note(e *registry.Entry, err error) {
	switch {
	case e.Context().Err() != nil:
	case err != nil:
		e.SetState(registry.StateReady, "service down: "+err.Error())
	default:
		e.SetState(registry.StateReady, "")
	}
}
