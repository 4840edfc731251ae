package node

import (
	"slices"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Whether others can dial this node. AutoNAT v2 says so of each address, after
// others have tried it; libp2p's AutoRelay, which looks for relays where the
// node is not public, listens to AutoNAT v1 alone. That is sure of something
// after 15 to 45 s, and takes a full-cone NAT for public as long as a hole is
// open. So here v2 tells AutoRelay, and v1 is heard where v2 does not know.

// judge tells libp2p what v2 has found.
type judge struct {
	host host.Host
	tell event.Emitter
	last atomic.Int32  // network.Reachability that was told last, by whom ever
	look chan struct{} // holds one where there may be another verdict
}

// verdicts are the events after which there may be another one.
var verdicts = []any{
	new(event.EvtHostReachableAddrsChanged),
	new(event.EvtLocalReachabilityChanged),
	new(event.EvtPeerIdentificationCompleted),
}

// newJudge makes one that hears what comes out of the subscription.
func newJudge(h host.Host) (*judge, event.Subscription, error) {
	tell, err := h.EventBus().Emitter(new(event.EvtLocalReachabilityChanged))
	if err != nil {
		return nil, nil, err
	}
	sub, err := h.EventBus().Subscribe(verdicts)
	if err != nil {
		_ = tell.Close()
		return nil, nil, err
	}
	return &judge{host: h, tell: tell, look: make(chan struct{}, 1)}, sub, nil
}

// hear takes events until the subscription is closed. Some are its own: were it
// to tell, it could wait for itself.
func (j *judge) hear(sub event.Subscription) {
	defer close(j.look)
	for e := range sub.Out() {
		if told, ok := e.(event.EvtLocalReachabilityChanged); ok {
			j.last.Store(int32(told.Reachability))
		}
		select {
		case j.look <- struct{}{}:
		default:
		}
	}
}

// serve tells until hear has returned.
func (j *judge) serve() {
	for range j.look {
		found := reachability(j.host)
		if found != network.ReachabilityUnknown && found != j.told() {
			j.say(found)
		}
	}
}

func (j *judge) told() network.Reachability { return network.Reachability(j.last.Load()) }

func (j *judge) say(r network.Reachability) {
	j.last.Store(int32(r))
	_ = j.tell.Emit(event.EvtLocalReachabilityChanged{Reachability: r})
}

// repeat has libp2p look at this node's addresses at once, as after each
// verdict. Where there is none yet, relays are looked for as well.
func (j *judge) repeat() { j.say(j.told()) }

// reachability is what AutoNAT v2 has found. Where a node on the internet has
// no public address, there is nothing to try: it is private.
func reachability(h host.Host) network.Reachability {
	reachable, unreachable := confirmed(h)
	switch {
	case len(reachable) > 0:
		return network.ReachabilityPublic
	case len(unreachable) > 0:
		return network.ReachabilityPrivate
	case !slices.ContainsFunc(directAddrs(h), manet.IsPublicAddr) && slices.ContainsFunc(h.Network().Conns(), isOverInternet):
		return network.ReachabilityPrivate
	}
	return network.ReachabilityUnknown
}

// confirmed are this node's addresses that others could dial, and could not.
func confirmed(h host.Host) (reachable, unreachable []ma.Multiaddr) {
	if h, ok := h.(interface {
		ConfirmedAddrs() (reachable, unreachable, unknown []ma.Multiaddr)
	}); ok {
		reachable, unreachable, _ = h.ConfirmedAddrs()
	}
	return reachable, unreachable
}

// directAddrs are all addresses of a node but those through relays.
func directAddrs(h host.Host) []ma.Multiaddr {
	if h, ok := h.(interface{ AllAddrs() []ma.Multiaddr }); ok {
		return h.AllAddrs()
	}
	return nil
}

func isOverInternet(c network.Conn) bool {
	return !isRelayed(c.RemoteMultiaddr()) && manet.IsPublicAddr(c.RemoteMultiaddr())
}

// startJudge has AutoNAT v2 decide.
func (n *Node) startJudge() {
	j, sub, err := newJudge(n.host)
	if err != nil {
		n.log.Warn("follow AutoNAT", "err", err)
		return
	}
	n.judge, n.events = j, append(n.events, sub)
	n.handlers.Go(func() { j.hear(sub) })
	n.handlers.Go(j.serve)
}

// Reachability says whether others can dial this node, as AutoNAT found:
// public, private or unknown.
func (n *Node) Reachability() string {
	found := reachability(n.host)
	if found == network.ReachabilityUnknown && n.judge != nil {
		found = n.judge.told()
	}
	switch found {
	case network.ReachabilityPublic:
		return "public"
	case network.ReachabilityPrivate:
		return "private"
	}
	return "unknown"
}

// chosen are the relays that libp2p has chosen for this node. They are none of
// those that it trusts.
func (n *Node) chosen() (relays []peer.ID) {
	if !n.autoRelay {
		return nil
	}
	for _, a := range n.host.Addrs() {
		if !isRelayed(a) {
			continue
		}
		text, _ := a.ValueForProtocol(ma.P_P2P)
		if id, err := peer.Decode(text); err == nil && !slices.Contains(relays, id) {
			relays = append(relays, id)
		}
	}
	return relays
}
