package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"

	"p2ptun/record"
	"p2ptun/registry"
)

// secureTLS is libp2p's TLS (libp2p specs: tls), with the same bytes on the wire:
// crypto/tls shakes hands, with the certificates of libp2p's package, and then
// hands over to record, which copies less and makes fewer system calls.
type secureTLS struct {
	id       protocol.ID
	local    peer.ID
	identity *libp2ptls.Identity
	muxers   []string
}

var _ sec.SecureTransport = (*secureTLS)(nil)

func newTLS(id protocol.ID, key crypto.PrivKey, muxers []tptu.StreamMuxer) (*secureTLS, error) {
	local, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	identity, err := libp2ptls.NewIdentity(key)
	if err != nil {
		return nil, err
	}
	t := &secureTLS{id: id, local: local, identity: identity}
	for _, m := range muxers {
		t.muxers = append(t.muxers, string(m.ID))
	}
	return t, nil
}

func (t *secureTLS) ID() protocol.ID { return t.id }

// SecureInbound shakes hands as the server, with anybody where p is empty. It
// closes the connection where that fails.
func (t *secureTLS) SecureInbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	config, keys := t.identity.ConfigForPeer(p)
	config.NextProtos = append(t.muxers[:len(t.muxers):len(t.muxers)], config.NextProtos...)
	whole := config.NextProtos
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		config.NextProtos = t.clientsChoice(hello.SupportedProtos, whole)
		return config, nil
	}
	return t.secure(ctx, c, true, config, keys)
}

// SecureOutbound shakes hands as the client. That the server does not like this
// node's certificate is told by the first Read. It closes the connection where
// the handshake fails.
func (t *secureTLS) SecureOutbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	config, keys := t.identity.ConfigForPeer(p)
	config.NextProtos = append(t.muxers[:len(t.muxers):len(t.muxers)], config.NextProtos...)
	return t.secure(ctx, c, false, config, keys)
}

// clientsChoice is the client's first muxer that this node has too, where
// crypto/tls would take the server's first; whole where there is none.
func (t *secureTLS) clientsChoice(theirs, whole []string) []string {
	for _, p := range theirs {
		if slices.Contains(t.muxers, p) {
			return []string{p}
		}
	}
	return whole
}

// secure closes c where it fails.
func (t *secureTLS) secure(ctx context.Context, c net.Conn, server bool, config *tls.Config, keys <-chan crypto.PubKey) (_ sec.SecureConn, err error) {
	defer func() {
		if r := recover(); r != nil { // a peer's certificate must not end the node
			err = fmt.Errorf("panic in the TLS handshake: %v", r)
		}
		if err != nil {
			_ = c.Close()
		}
	}()
	var told record.Secrets
	config.KeyLogWriter, config.SessionTicketsDisabled = &told, true
	side := tls.Client
	if server {
		side = tls.Server
	}
	shaking := side(&record.Handshake{Conn: c}, config)
	if err := shaking.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	select {
	case key := <-keys:
		if key != nil {
			return t.secured(c, shaking, server, key, &told)
		}
	default:
	}
	return nil, errors.New("no key of the peer's after the TLS handshake")
}

// secured goes on after the handshake. Where crypto/tls has agreed on what record
// does not know, it goes on itself.
func (t *secureTLS) secured(c net.Conn, shaken *tls.Conn, server bool, key crypto.PubKey, told *record.Secrets) (sec.SecureConn, error) {
	remote, err := peer.IDFromPublicKey(key)
	if err != nil {
		return nil, err
	}
	state := shaken.ConnectionState()
	chosen := protocol.ID(state.NegotiatedProtocol)
	if chosen == laterALPN {
		chosen = ""
	}
	conn := &secureConn{Conn: shaken, local: t.local, remote: remote, key: key}
	conn.state = network.ConnectionState{StreamMultiplexer: chosen, UsedEarlyMuxerNegotiation: chosen != ""}
	if r, err := record.New(c, readReady(c), told, state.CipherSuite, server); err == nil {
		conn.Conn, conn.records = r, r
	}
	return conn, nil
}

// readReady is nil where a connection can't be read that way.
func readReady(c net.Conn) record.ReadReady {
	sys, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	ready, err := registry.NewReadyReader(sys)
	if err != nil {
		return nil
	}
	return func(into record.Room, most int) (int, error) { return ready.Read(into, most) }
}

// laterALPN is from peers that choose a muxer after the handshake.
const laterALPN = "libp2p"

// secureConn is the connection as its user sees it.
type secureConn struct {
	net.Conn              // record.Conn, or crypto/tls
	records  *record.Conn // nil where crypto/tls goes on

	local, remote peer.ID
	key           crypto.PubKey
	state         network.ConnectionState
}

func (c *secureConn) LocalPeer() peer.ID                 { return c.local }
func (c *secureConn) RemotePeer() peer.ID                { return c.remote }
func (c *secureConn) RemotePublicKey() crypto.PubKey     { return c.key }
func (c *secureConn) ConnState() network.ConnectionState { return c.state }

// WriteBoth writes both pieces as one. Errors are those of Write.
func (c *secureConn) WriteBoth(head, body []byte) error {
	if c.records != nil {
		return c.records.WriteBoth(head, body)
	}
	_, err := c.Write(append(append(make([]byte, 0, len(head)+len(body)), head...), body...))
	return err
}

// Ahead says that something is there to be read, as far as is known. One goroutine
// may ask, and read.
func (c *secureConn) Ahead() bool { return c.records != nil && c.records.Ahead() }
