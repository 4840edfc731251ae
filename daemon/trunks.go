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

// survivable is how long at most a listen keeps trunks without a link, unless
// it says otherwise.
const survivable = 24 * time.Hour

// trunks are those that peers have opened, and those that this node's forwards
// have: one for each peer and protocol.
type trunks struct {
	server *trunk.Server
	budget *trunk.Budget

	mu      sync.Mutex
	clients map[trunkTo]*trunkUse
}

type trunkTo struct{ peer, protocol string }

type trunkUse struct {
	*trunk.Client
	uses int
}

func (s *Server) startTrunks() {
	s.trunks = &trunks{budget: trunk.NewBudget(trunk.DefaultBudget), clients: map[trunkTo]*trunkUse{}}
	s.trunks.server = &trunk.Server{
		Allowed: s.access.Allowed,
		Survive: s.survivable,
		Budget:  s.trunks.budget,
		Told:    s.trunkChanged,
		Accept: func(peer, protocol string, st *trunk.Stream) {
			s.listens.Serve(registry.Incoming{Peer: peer, Protocol: protocol, Path: st.Path(), End: st})
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
	e, ok := s.registry.Listener(protocol)
	if !ok || e.Tunnel.Survive == 0 {
		return survivable
	}
	return time.Duration(e.Tunnel.Survive)
}

func (s *Server) trunkChanged(e trunk.Event) {
	s.log.Info("trunk", "op", e.Op, "peer", e.Peer, "protocol", e.Protocol, "away", e.Away, "replayed", e.Replayed, "streams", e.Streams, "reason", e.Reason)
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
			Peer: peer, Protocol: t.Protocol, Survive: time.Duration(t.Survive), Budget: s.trunks.budget, Told: s.trunkChanged,
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

// moveLimit bounds the move of a trunk to a better path.
const moveLimit = 15 * time.Second

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
		s.tasks.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, moveLimit)
			defer cancel()
			if err := use.Move(ctx); err != nil {
				s.log.Info("move a trunk", "peer", peer, "err", err)
			}
		})
	}
}

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
	if o.t.Survive == 0 || !o.s.node.TakesTrunks(peer) {
		return o.s.node.Open(ctx, peer, protocol)
	}
	st, err := o.trunk(peer).Open(ctx)
	if err != nil {
		return nil, registry.Path{}, err
	}
	return st, st.Path(), nil
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
	defer o.mu.Unlock()
	for _, end := range o.ends {
		end()
	}
	o.ends = nil
}
