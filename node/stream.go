package node

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
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
}

var _ registry.End = (*streamEnd)(nil)

// newDialled wraps a stream that this side has opened. libp2p negotiates a
// known protocol lazily, in a wrapper of its own: a swarm's bare stream has
// been negotiated.
func newDialled(ctx context.Context, s network.Stream) *streamEnd {
	end := &streamEnd{Stream: s}
	if _, negotiated := s.(*swarm.Stream); !negotiated {
		end.negotiateBy, _ = ctx.Deadline()
	}
	return end
}

func (s *streamEnd) Read(b []byte) (int, error) {
	if !s.negotiateBy.IsZero() {
		if err := s.negotiate(); err != nil {
			return 0, err
		}
	}
	n, err := s.Stream.Read(b)
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
	n, err := s.Stream.Write(b)
	return n, streamError(err)
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
	case errors.As(err, &se):
		code = proto.Code(se.ErrorCode)
	case errors.Is(err, network.ErrReset):
		code = proto.CodeNone
	case isNotSupported(err):
		code = proto.CodeNoService
	}
	return &registry.ResetError{Code: code, Err: err}
}

// isNotSupported says that negotiation failed because the peer does not have
// the protocol.
func isNotSupported(err error) bool {
	var ns multistream.ErrNotSupported[protocol.ID]
	return errors.As(err, &ns)
}

// pathOf reads a stream's path from its own connection.
func pathOf(c network.Conn) registry.Path {
	remote := c.RemoteMultiaddr()
	p := registry.Path{Transport: transportOf(remote), Addr: remote.String()}
	if isRelayed(remote) {
		p.Relayed = true
		p.Relay, _ = remote.ValueForProtocol(ma.P_P2P)
	}
	return p
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
