package daemon

import (
	"context"
	"sync"
	"time"

	"p2ptun/node"
	"p2ptun/proto"
	"p2ptun/registry"
	"p2ptun/trunk"
)

// trunks are those that peers have opened, and those that this node's forwards
// have: one for each peer and protocol.
type trunks struct {
	server *trunk.Server
	budget *trunk.Budget
	counts trunkCounts

	mu      sync.Mutex
	clients map[trunkTo]*trunkUse
}

type trunkTo struct{ peer, protocol string }

type trunkUse struct {
	*trunk.Client
	uses int
}

func (s *Server) serveStream(peer, protocol string, st *trunk.Stream) {
	s.listens.Serve(registry.Incoming{Peer: peer, Protocol: protocol, Path: st.Path(), End: st})
}

func (s *Server) startTrunks() {
	s.trunks = &trunks{budget: trunk.NewBudget(trunk.DefaultBudget), clients: map[trunkTo]*trunkUse{}}
	s.trunks.server = &trunk.Server{
		Allowed: s.access.Allowed,
		Survive: s.survivable,
		Budget:  s.trunks.budget,
		Told:    s.trunkChanged,
		Accept: func(peer, protocol string, st *trunk.Stream) {
			registry.GrowStack()
			s.serveStream(peer, protocol, st)
		},
	}
	s.node.HandleTrunk(func(link node.Link, peer, protocol string) {
		if err := s.trunks.server.Serve(link, peer, protocol); err != nil {
			s.log.Debug("trunk", "peer", peer, "err", err)
			if !s.access.Allowed(peer, protocol) {
				s.peerRefused(peer, protocol)
			}
		}
	})
}

// survivable is how long a trunk of that protocol is kept here without a link.
func (s *Server) survivable(protocol string) time.Duration {
	if e, ok := s.registry.Listener(protocol); ok {
		return e.Tunnel.SurviveTime()
	}
	return registry.DefaultSurviveMax
}

// trunkChanged tells what happened to a trunk.
func (s *Server) trunkChanged(e trunk.Event) {
	s.trunks.counts.add(e)
	event := registry.TrunkEvent{
		Time: time.Now(), Op: string(e.Op), Kind: registry.KindListen, Protocol: e.Protocol, Peer: e.Peer, Streams: e.Streams,
		SurviveS: int64(e.Survive / time.Second), AwayMs: e.Away.Milliseconds(), Replayed: e.Replayed, Reason: e.Reason,
	}
	if e.Opener {
		event.Kind = registry.KindForward
	}
	switch e.Op {
	case trunk.Moved:
		event.From, event.To = &e.From, &e.To
	case trunk.Resumed:
		event.To = &e.To
	}
	s.registry.Events.Publish(event)
	s.log.Info("trunk", "op", e.Op, "kind", event.Kind, "peer", e.Peer, "protocol", e.Protocol, "away", e.Away, "replayed", e.Replayed, "streams", e.Streams, "reason", e.Reason)
}

// trunkTo gives the trunk to a peer's protocol until the returned func is
// called.
func (s *Server) trunkTo(peer string, t registry.Tunnel) (c *trunk.Client, end func()) {
	key := trunkTo{peer, t.Protocol}
	s.trunks.mu.Lock()
	defer s.trunks.mu.Unlock()
	use := s.trunks.clients[key]
	if use == nil {
		use = &trunkUse{Client: &trunk.Client{
			Peer: peer, Protocol: t.Protocol, Survive: t.SurviveTime(), Budget: s.trunks.budget, Told: s.trunkChanged,
			Dial: func(ctx context.Context) (trunk.Link, error) {
				link, err := s.node.OpenTrunk(ctx, peer, t.Protocol)
				if err == nil && link.Path().Relayed {
					s.lookAgain(peer)
				}
				return link, err
			},
			Watch: func() (bool, <-chan struct{}) { return s.node.Watch(peer) },
		}}
		s.trunks.clients[key] = use
	}
	use.uses++
	return use.Client, sync.OnceFunc(func() { s.releaseTrunk(key, use) })
}

func (s *Server) releaseTrunk(key trunkTo, use *trunkUse) {
	s.trunks.mu.Lock()
	use.uses--
	last := use.uses == 0
	if last {
		delete(s.trunks.clients, key)
	}
	s.trunks.mu.Unlock()
	if last {
		use.Close(proto.CodeClosed)
	}
}

// moveTrunks takes the trunks to a peer off their relays: there is a direct way
// now.
func (s *Server) moveTrunks(peer string) {
	if s.trunks == nil {
		return // starting
	}
	s.trunks.mu.Lock()
	defer s.trunks.mu.Unlock()
	for key, use := range s.trunks.clients {
		if path, ok := use.Path(); key.peer != peer || !ok || !path.Relayed {
			continue
		}
		s.tasks.Go(func() { s.moveTrunk(peer, use.Client) })
	}
}

// moveTrunk moves one, again and again while that fails and there is a direct
// way: nothing else would say that there is.
func (s *Server) moveTrunk(peer string, c *trunk.Client) {
	for pause := moveAgainMin; ; pause = min(2*pause, moveAgainMax) {
		err := c.Move(s.ctx)
		if err == nil {
			return
		}
		s.log.Info("move a trunk", "peer", peer, "err", err)
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
			return
		}
		if path, up := s.node.Path(peer); !up || path.Relayed {
			return
		}
	}
}

// moveAgainMin and moveAgainMax are the pauses after a move that failed.
const (
	moveAgainMin = time.Second
	moveAgainMax = time.Minute
)

// lookAgain: a direct way may have come while a relayed link was being made.
func (s *Server) lookAgain(peer string) {
	s.tasks.Go(func() {
		select {
		case <-time.After(2 * helloTime):
		case <-s.ctx.Done():
			return
		}
		if path, up := s.node.Path(peer); up && !path.Relayed {
			s.moveTrunks(peer)
		}
	})
}

// helloTime is what a hello over a relay takes, most likely at most.
const helloTime = time.Second

// opener opens the streams of a forward: on the trunk to the peer where both
// sides can, else plain.
type opener struct {
	s *Server
	t registry.Tunnel

	mu     sync.Mutex
	trunks map[string]*trunk.Client // by peer
	ends   []func()
}

func (o *opener) open(ctx context.Context, peer, protocol string) (registry.End, registry.Path, error) {
	if !o.takesTrunks(peer) {
		return o.s.node.Open(ctx, peer, protocol)
	}
	st, err := o.trunk(peer).Open(ctx)
	if err != nil {
		return nil, registry.Path{}, err
	}
	return st, st.Path(), nil
}

// takesTrunks: while a trunk is parked libp2p may forget what the peer is.
func (o *opener) takesTrunks(peer string) bool {
	return o.t.SurviveTime() > 0 && (o.parked(peer) || o.s.node.TakesTrunks(peer))
}

// parked says that there is a trunk to a peer, and that it waits for a link.
func (o *opener) parked(peer string) bool {
	o.mu.Lock()
	c := o.trunks[peer]
	o.mu.Unlock()
	return c != nil && c.Parked()
}

func (o *opener) trunk(peer string) *trunk.Client {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.trunks[peer]
	if c == nil {
		var end func()
		c, end = o.s.trunkTo(peer, o.t)
		if o.trunks == nil {
			o.trunks = map[string]*trunk.Client{}
		}
		o.trunks[peer] = c
		o.ends = append(o.ends, end)
	}
	return c
}

// close releases the trunks, with the streams that still live on them.
func (o *opener) close() {
	o.mu.Lock()
	ends := o.ends
	o.ends = nil
	o.mu.Unlock()
	var ending sync.WaitGroup
	for _, end := range ends { // a peer that is silent is waited for
		ending.Go(end)
	}
	ending.Wait()
}
