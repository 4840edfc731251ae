package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
)

// TestANodeThatCannotListenSaysSo, whatever it is made of, and leaves nothing
// behind: the leaks are looked for at the end.
func TestANodeThatCannotListenSaysSo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	taken := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port)
	for name, cfg := range map[string]Config{
		"plain": {}, "with AutoNAT v2, a relay": {Relay: &RelayService{}}, "with AutoRelay": {AutoRelay: true},
	} {
		for addr, want := range map[string]string{taken: "address already in use", "/nonsense": `address "/nonsense"`} {
			cfg.KeyPath = filepath.Join(t.TempDir(), "key")
			cfg.ListenAddrs = []string{addr}
			n, err := New(context.Background(), cfg)
			if n != nil || err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s, %s: %v", name, addr, err)
			}
		}
	}
}

// closes counts what is closed of a host's parts.
type closes map[string]int

// partsOf a host of nothing, which counts what is closed.
func partsOf(t *testing.T) (hostParts, closes) {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	must(t, err)
	c := closes{}
	return hostParts{
		key: key, ranker: swarm.NoDelayDialRanker, gate: new(gate), resources: &countedResources{c: c},
		basic: basichost.HostOpts{ConnManager: countedConns{c: c}},
		tcp: func(transport.Upgrader, network.ResourceManager, *tcpreuse.ConnMgr) (transport.Transport, error) {
			return nil, errNoTCP
		},
	}, c
}

var errNoTCP = errors.New("no TCP here")

type countedConns struct {
	connmgr.NullConnMgr
	c closes
}

func (c countedConns) Close() error { c.c["connections"]++; return nil }

type countedResources struct {
	network.NullResourceManager
	c closes
}

func (r *countedResources) Close() error { r.c["resources"]++; return nil }

// TestAHostThatFailsClosesItsParts, once each, and says why it failed.
func TestAHostThatFailsClosesItsParts(t *testing.T) {
	parts, closed := partsOf(t)
	if h, err := newHost(parts); h != nil || !errors.Is(err, errNoTCP) {
		t.Errorf("%v", err)
	}
	if len(closed) != 2 || closed["connections"] != 1 || closed["resources"] != 1 {
		t.Errorf("closed: %v", closed)
	}
}

// TestAHostIsNotPublicAgainstTheEnvironment: libp2p's $LIBP2P_FORCE_PNET.
func TestAHostIsNotPublicAgainstTheEnvironment(t *testing.T) {
	pnet.ForcePrivateNetwork = true
	defer func() { pnet.ForcePrivateNetwork = false }()
	parts, closed := partsOf(t)
	if h, err := newHost(parts); h != nil || !errors.Is(err, pnet.ErrNotInPrivateNetwork) {
		t.Errorf("%v", err)
	}
	if closed["connections"] != 1 || closed["resources"] != 1 {
		t.Errorf("closed: %v", closed)
	}
}
