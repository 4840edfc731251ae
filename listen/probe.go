package listen

import (
	"context"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

// probe remembers whether a target answered.
type probe struct {
	turn chan struct{} // holds one while the target is dialled: others wait for its answer
	at   time.Time
	err  error
}

func newProbe() *probe { return &probe{turn: make(chan struct{}, 1)} }

// Answer answers a peer's question: may it, and is the service up? A peer
// without a right gets the same answer at the same time for every name.
func (s *Service) Answer(peer, protocol string) proto.Verdict {
	if !s.Allowed(peer, protocol) {
		if s.Refused != nil {
			s.Refused(peer, protocol)
		}
		return proto.Verdict_VERDICT_REFUSED
	}
	e, ok := s.Registry.Listener(protocol)
	if !ok || e.Context().Err() != nil {
		return proto.Verdict_VERDICT_NO_SERVICE
	}
	if s.probe(e) != nil {
		return proto.Verdict_VERDICT_SERVICE_DOWN
	}
	return proto.Verdict_VERDICT_OK
}

// probe says whether the target accepts connections, from a dial made at most
// once in probeEvery.
func (s *Service) probe(e *registry.Entry) error {
	s.mu.Lock()
	p := s.probes[e]
	s.mu.Unlock()
	if p == nil {
		return registry.ErrClosed
	}
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	if !p.at.IsZero() && time.Since(p.at) < probeEvery {
		return p.err
	}
	ctx, cancel := context.WithTimeout(e.Context(), dialLimit)
	defer cancel()
	conn, err := s.dial(ctx, e.Tunnel.Target)
	if err == nil {
		err = introduceProbe(conn, e.Tunnel)
		conn.Close()
	}
	p.at, p.err = time.Now(), err
	s.note(e, err)
	return err
}
