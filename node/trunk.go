package node

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"

	"p2ptun/registry"
)

// A trunk's protocol is this prefix and the service's own name, which starts
// with a slash. Identify tells peers the prefix alone.
const trunkVersion = trunkPrefix + "1.0.0"

// Link is a stream that carries a trunk. It has the methods that trunk asks
// for.
type Link struct{ *streamEnd }

// limitedWrite is how much is written at once over a relay with a limit: what of
// one write does not arrive in whole is lost, as a message of yamux, up to
// 64 KiB of the usual 128.
const limitedWrite = 8 << 10

// Write writes all of b, unless it fails.
func (l Link) Write(b []byte) (n int, err error) {
	if !l.Conn().Stat().Limited {
		return l.streamEnd.Write(b)
	}
	for piece := range slices.Chunk(b, limitedWrite) {
		m, err := l.streamEnd.Write(piece)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// Waits says that Write waits while more than a little waits to be sent on the
// whole path: on a direct one over TCP, whose unsent bytes are bounded, and whose
// pace follows the path and not the room on it. A relay has room of its own.
func (l Link) Waits() bool {
	at := l.Conn().RemoteMultiaddr()
	return canPace && usesBBR.Load() && has(at, ma.P_TCP) && !isRelayed(at)
}

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

// OpenTrunk opens a link for a trunk to a connected peer that has said before
// that it takes trunks; others keep it connected. It does not wait for any word
// of the peer, nor for identify on a new connection: the first Read tells what
// the peer says.
func (n *Node) OpenTrunk(ctx context.Context, id, name string) (Link, error) {
	p, err := peer.Decode(id)
	if err != nil {
		return Link{}, fmt.Errorf("peer %s: %w", id, err)
	}
	link := protocol.ID(trunkVersion + name)
	ctx = network.WithNoDial(network.WithAllowLimitedConn(ctx, "trunk"), "trunk")
	s, err := n.host.Network().NewStream(ctx, p)
	if err != nil {
		return Link{}, openError(link, err)
	}
	if err := s.SetProtocol(link); err != nil {
		_ = s.Reset()
		return Link{}, openError(link, err)
	}
	return Link{n.newDialled(ctx, &lazyStream{Stream: s, rw: multistream.NewMSSelect(s, link)})}, nil
}

// lazyStream is a stream whose protocol is negotiated with the first bytes.
type lazyStream struct {
	network.Stream
	rw io.ReadWriter
}

func (s *lazyStream) Read(b []byte) (int, error)  { return s.rw.Read(b) }
func (s *lazyStream) Write(b []byte) (int, error) { return s.rw.Write(b) }

// CloseWrite says which protocol it is at least. What fails then, a Read tells.
func (s *lazyStream) CloseWrite() error {
	if f, ok := s.rw.(interface{ Flush() error }); ok {
		_ = f.Flush()
	}
	return s.Stream.CloseWrite()
}

var _ interface{ Path() registry.Path } = Link{}
