package node

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"

	"p2ptun/proto"
	"p2ptun/registry"
)

// streamEnd is a libp2p stream as one side of a registry stream.
type streamEnd struct {
	network.Stream
	// negotiateBy bounds the negotiation that the first Read ends; zero where
	// it has ended. Only Read uses it.
	negotiateBy time.Time
	node        *Node
	traffic     *traffic                      // of its connection
	ended       atomic.Bool                   // by a peer that takes any end for the end of both ways
	path        atomic.Pointer[registry.Path] // what does not change of it; nil until asked
}

// deafLimit is how long a peer that has ended both ways may take nothing:
// yamux does not say that it never will.
const deafLimit = 10 * time.Second

var _ registry.End = (*streamEnd)(nil)

func (n *Node) newStreamEnd(s network.Stream) *streamEnd {
	return &streamEnd{Stream: s, node: n, traffic: n.prober.of(s.Conn())}
}

// newDialled wraps a stream that this side has opened. libp2p negotiates a
// known protocol lazily, in a wrapper of its own: a swarm's bare stream has
// been negotiated.
func (n *Node) newDialled(ctx context.Context, s network.Stream) *streamEnd {
	end := n.newStreamEnd(s)
	if _, negotiated := s.(*swarm.Stream); !negotiated {
		end.negotiateBy, _ = ctx.Deadline()
	}
	return end
}

// Path is that of the stream's own connection, at this moment.
func (s *streamEnd) Path() registry.Path {
	fixed := s.path.Load()
	if fixed == nil {
		p := pathOf(s.Conn())
		fixed = &p
		s.path.Store(fixed)
	}
	return s.node.complete(s.Conn(), *fixed)
}

func (s *streamEnd) Read(b []byte) (int, error) {
	if !s.negotiateBy.IsZero() {
		if err := s.negotiate(); err != nil {
			return 0, err
		}
	}
	n, err := s.Stream.Read(b)
	s.traffic.in.Add(int64(n))
	if err == io.EOF && s.node.endsBothWays(s.Conn().RemotePeer()) {
		s.ended.Store(true)
		_ = s.SetWriteDeadline(time.Now().Add(deafLimit))
	}
	return n, streamError(err)
}

// negotiate ends a lazy negotiation: a Read of nothing returns when the peer
// has answered it.
func (s *streamEnd) negotiate() error {
	_ = s.Stream.SetReadDeadline(s.negotiateBy)
	s.negotiateBy = time.Time{}
	if _, err := s.Stream.Read(nil); err != nil {
		return streamError(err)
	}
	return s.Stream.SetReadDeadline(time.Time{})
}

func (s *streamEnd) Write(b []byte) (int, error) {
	if s.ended.Load() {
		_ = s.SetWriteDeadline(time.Now().Add(deafLimit))
	}
	n, err := s.Stream.Write(b)
	s.traffic.out.Add(int64(n))
	var late net.Error
	if errors.As(err, &late) && late.Timeout() && s.ended.Load() {
		return n, err // takes no more, and was not reset: see registry.End
	}
	return n, streamError(err)
}

// endsBothWays says that a peer is a Kubo: at the end of either way its
// `ipfs p2p` closes the stream for reading and writing.
func (n *Node) endsBothWays(p peer.ID) bool {
	agent, err := n.host.Peerstore().Get(p, "AgentVersion")
	name, ok := agent.(string)
	return err == nil && ok && strings.HasPrefix(name, "kubo/")
}

// Reset tells the peer why (specs: connections, "Resetting Streams").
func (s *streamEnd) Reset(code proto.Code) error {
	return s.Stream.ResetWithError(network.StreamErrorCode(code))
}

// streamError names the reason of a reset, of a connection that was lost, and
// of a protocol that the peer had when it was cached and has no more.
func streamError(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	var se *network.StreamError
	code := proto.CodePeerAway
	switch {
	case isNotSupported(err):
		code = proto.CodeNoService
	case errors.As(err, &se):
		code = proto.Code(se.ErrorCode)
	case errors.Is(err, network.ErrReset):
		code = proto.CodeNone
	}
	return &registry.ResetError{Code: code, Err: err}
}

// isNotSupported says that negotiation failed because the peer does not have
// the protocol. A libp2p that says so resets the stream right after, and the
// reset may overtake the word.
func isNotSupported(err error) bool {
	var ns multistream.ErrNotSupported[protocol.ID]
	var se *network.StreamError
	return errors.As(err, &ns) ||
		errors.As(err, &se) && se.Remote && se.ErrorCode == network.StreamProtocolNegotiationFailed
}

func transportOf(a ma.Multiaddr) string {
	if has(a, ma.P_QUIC_V1) {
		return "quic"
	}
	if has(a, ma.P_TCP) {
		return "tcp"
	}
	var names []string
	for _, p := range a.Protocols() {
		names = append(names, p.Name)
	}
	return strings.Join(names, "/")
}
