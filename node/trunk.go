package node

import (
	"context"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"p2ptun/registry"
)

// A trunk's protocol is this prefix and the service's own name, which starts
// with a slash. Identify tells peers the prefix alone.
const trunkVersion = trunkPrefix + "1.0.0"

// Link is a stream that carries a trunk. It has the methods that trunk asks
// for.
type Link struct{ *streamEnd }

// Reset ends the link. It does not block.
func (l Link) Reset() { _ = l.Stream.Reset() }

// HandleTrunk hands every incoming link of a trunk to f, on a goroutine of its
// own.
func (n *Node) HandleTrunk(f func(link Link, peer, protocol string)) {
	match := func(p protocol.ID) bool { return strings.HasPrefix(string(p), trunkVersion+"/") }
	n.host.SetStreamHandlerMatch(trunkVersion+"/", match, func(s network.Stream) {
		if !n.begin() {
			_ = s.Reset()
			return
		}
		go func() {
			defer n.handlers.Done()
			f(Link{n.newStreamEnd(s)}, s.Conn().RemotePeer().String(), strings.TrimPrefix(string(s.Protocol()), trunkVersion))
		}()
	})
}

// TakesTrunks says whether a peer has said that it takes trunks. Only what
// identify has listed counts: whoever names several protocols to libp2p gets
// the one that was used before.
func (n *Node) TakesTrunks(id string) bool {
	p, err := peer.Decode(id)
	if err != nil {
		return false
	}
	has, err := n.host.Peerstore().SupportsProtocols(p, trunkVersion+"/")
	return err == nil && len(has) > 0
}

// OpenTrunk opens a link for a trunk to a connected peer; others keep it
// connected.
func (n *Node) OpenTrunk(ctx context.Context, id, name string) (Link, error) {
	ctx = network.WithNoDial(ctx, "trunk")
	s, err := n.open(ctx, id, protocol.ID(trunkVersion+name))
	if err != nil {
		return Link{}, err
	}
	return Link{n.newDialled(ctx, s)}, nil
}

var _ interface{ Path() registry.Path } = Link{}
