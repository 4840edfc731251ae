package listen

import (
	"sync"

	"p2ptun/proto"
	"p2ptun/registry"
)

// quota counts the live streams of each tunnel and of each of its peers, those
// included whose target is being dialled. Who has none is not in it.
type quota struct {
	mu   sync.Mutex
	live map[*registry.Entry]*headcount
}

type headcount struct {
	all int
	by  map[string]int // by peer
}

// enter counts a stream in, or says which limit is reached; 0 is no limit.
func (q *quota) enter(e *registry.Entry, peer string, most, peerMost int) (reached registry.Limit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.live[e]
	if n == nil {
		n = &headcount{by: map[string]int{}}
	}
	switch {
	case peerMost > 0 && n.by[peer] >= peerMost:
		return registry.LimitPeerStreams
	case most > 0 && n.all >= most:
		return registry.LimitStreams
	}
	n.all++
	n.by[peer]++
	if q.live == nil {
		q.live = map[*registry.Entry]*headcount{}
	}
	q.live[e] = n
	return ""
}

// leave counts one out that enter has counted in.
func (q *quota) leave(e *registry.Entry, peer string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.live[e]
	n.all--
	if n.by[peer]--; n.by[peer] == 0 {
		delete(n.by, peer)
	}
	if n.all == 0 {
		delete(q.live, e)
	}
}

// enter counts a stream in; where a limit stands against it, the stream is
// reset and ok is false. leave, which must be called once, counts it out.
func (s *Service) enter(e *registry.Entry, in registry.Incoming) (leave func(), ok bool) {
	peerMost, _ := s.limits(e, in.Peer)
	switch limit := s.quota.enter(e, in.Peer, e.Tunnel.MaxStreams, peerMost); limit {
	case "":
		return func() { s.quota.leave(e, in.Peer) }, true
	case registry.LimitPeerStreams:
		e.TooMany(limit, peerMost)
	default:
		e.TooMany(limit, e.Tunnel.MaxStreams)
	}
	_ = in.End.Reset(proto.CodeTooMany)
	if s.TooMany != nil {
		s.TooMany(in.Peer, in.Protocol)
	}
	return nil, false
}

// limits are those of one peer: its own, or the tunnel's for each.
func (s *Service) limits(e *registry.Entry, peer string) (maxStreams int, maxRate int64) {
	maxStreams, maxRate = e.Tunnel.PeerMaxStreams, e.Tunnel.PeerMaxRate
	if s.Limits == nil {
		return maxStreams, maxRate
	}
	streams, rate := s.Limits(peer, e.Tunnel.Protocol)
	if streams > 0 {
		maxStreams = streams
	}
	if rate > 0 {
		maxRate = rate
	}
	return maxStreams, maxRate
}

// throttle is what a peer's next stream keeps to; nil where nothing can ever
// limit it.
func (s *Service) throttle(e *registry.Entry, peer string) *registry.Throttle {
	if s.Limits == nil && e.Tunnel.MaxRate == 0 && e.Tunnel.PeerMaxRate == 0 {
		return nil
	}
	return e.Throttle(peer, func() int64 { return s.rate(e, peer) })
}

func (s *Service) rate(e *registry.Entry, peer string) int64 {
	_, rate := s.limits(e, peer)
	return rate
}

// RefreshLimits asks for each peer's limits again: its rate holds for live
// streams from then on. How many streams it may have is asked at each new one
// anyway.
func (s *Service) RefreshLimits() {
	for _, e := range s.Registry.Tunnels() {
		if e.Tunnel.Kind == registry.KindListen {
			e.SetPeerRates(func(peer string) int64 { return s.rate(e, peer) })
		}
	}
}
