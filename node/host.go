package node

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/host/autonat"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	blankhost "github.com/libp2p/go-libp2p/p2p/host/blank"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/observedaddrs"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/quic-go/quic-go"

	"p2ptun/mux"
)

// hostParts are what a host of libp2p is put together from. libp2p.New does the
// same by a configuration that links each transport there is, WebRTC too: a
// seventh of this program, and of what it holds when idle.
type hostParts struct {
	key       crypto.PrivKey
	listen    []ma.Multiaddr
	psk       pnet.PSK // nil where the network is public; then there is QUIC
	resources network.ResourceManager
	gate      connmgr.ConnectionGater
	reporter  metrics.Reporter // nil where nobody counts
	ranker    network.DialRanker
	tcp       func(transport.Upgrader, network.ResourceManager, *tcpreuse.ConnMgr) (transport.Transport, error)
	sockets   func(quic.StatelessResetKey, quic.TokenGeneratorKey, network.ResourceManager) (*quicreuse.ConnManager, error)
	quic      func(crypto.PrivKey, *quicreuse.ConnManager, pnet.PSK, connmgr.ConnectionGater, network.ResourceManager) (transport.Transport, error)
	basic     basichost.HostOpts // but for what is made here
	judged    bool               // AutoNAT v2 asks whether the own addresses can be reached
	answers   bool               // a relay: it is public, and answers AutoNAT v1
	autoRelay []autorelay.Option // nil where no relays are looked for
}

// builtHost is a host with what ends with it.
type builtHost struct {
	*basichost.BasicHost
	ends []func() error // in the order in which they began
}

// Close ends all, the youngest part first.
func (h *builtHost) Close() error {
	h.endParts()
	return h.BasicHost.Close()
}

func (h *builtHost) endParts() {
	for _, end := range slices.Backward(h.ends) {
		_ = end()
	}
	h.ends = nil
}

// newHost makes a host that listens. The parts' resource manager and connection
// manager are its own from then on, also where it fails.
func newHost(parts hostParts) (*builtHost, error) {
	if pnet.ForcePrivateNetwork && parts.psk == nil { // by the environment; QUIC does not ask
		return nil, errors.Join(pnet.ErrNotInPrivateNetwork, parts.close())
	}
	bus := eventbus.NewBus()
	net, err := parts.newSwarm(parts.key, bus, swarm.WithDialRanker(parts.ranker))
	if err != nil {
		return nil, errors.Join(err, parts.close())
	}
	h := &builtHost{ends: []func() error{net.Close}}
	if err := parts.build(h, net, bus); err != nil {
		h.endParts()
		if h.BasicHost != nil {
			return nil, errors.Join(err, h.BasicHost.Close())
		}
		return nil, errors.Join(err, net.Peerstore().Close(), parts.close())
	}
	return h, nil
}

// close is for parts that no host owns.
func (parts *hostParts) close() error {
	return errors.Join(parts.basic.ConnManager.Close(), parts.resources.Close())
}

// build makes the host upon its swarm. Where it fails, h has what is to be closed.
func (parts *hostParts) build(h *builtHost, net *swarm.Swarm, bus event.Bus) error {
	upgrader, err := parts.addTransports(net, parts.key)
	if err != nil {
		return err
	}
	observed, err := observedaddrs.NewManager(bus, net)
	if err != nil {
		return err
	}
	h.ends = append(h.ends, observed.Close)
	judge, back, err := parts.newJudge()
	if err != nil {
		return err
	}
	opts := parts.basic
	opts.EventBus, opts.ObservedAddrsManager, opts.AutoNATv2 = bus, observed, judge
	if h.BasicHost, err = basichost.NewHost(net, &opts); err != nil {
		h.ends = append(h.ends, back)
		return err
	}
	started, err := parts.start(h, net, upgrader, observed)
	if err != nil && !started && judge != nil {
		_ = judge.Start(h.BasicHost) // which its Close takes for granted
	}
	return err
}

// start listens, and begins what needs a host that does; started says that the
// host itself was.
func (parts *hostParts) start(h *builtHost, net *swarm.Swarm, upgrader transport.Upgrader, observed *observedaddrs.Manager) (started bool, err error) {
	if err := net.Listen(parts.listen...); err != nil {
		return false, err
	}
	if err := client.AddTransport(h.BasicHost, upgrader); err != nil { // listens, too
		return false, err
	}
	observed.Start(net)
	if parts.autoRelay != nil {
		finder, err := autorelay.NewAutoRelay(h.BasicHost, parts.autoRelay...)
		if err != nil {
			return false, err
		}
		finder.Start()
		h.ends = append(h.ends, finder.Close)
	}
	h.Start()
	return true, parts.addAutoNAT(h)
}

// newSwarm makes a swarm with the peerstore of its own. Black holes are not
// looked for: after an outage of minutes, what is back would be taken for
// blocked, for a hundred dials more.
func (parts *hostParts) newSwarm(key crypto.PrivKey, bus event.Bus, opts ...swarm.Option) (*swarm.Swarm, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	opts = append(opts,
		swarm.WithUDPBlackHoleSuccessCounter(nil), swarm.WithIPv6BlackHoleSuccessCounter(nil),
		swarm.WithConnectionGater(parts.gate), swarm.WithResourceManager(parts.resources))
	if parts.reporter != nil {
		opts = append(opts, swarm.WithMetrics(parts.reporter))
	}
	err = errors.Join(store.AddPrivKey(id, key), store.AddPubKey(id, key.GetPublic()))
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	net, err := swarm.NewSwarm(id, store, bus, opts...)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return net, nil
}

// addTransports gives a swarm TCP, and QUIC where the network is public.
func (parts *hostParts) addTransports(net *swarm.Swarm, key crypto.PrivKey) (transport.Upgrader, error) {
	muxers := []tptu.StreamMuxer{{ID: mux.ID, Muxer: mux.Transport{}}}
	secure, err := newTLS(libp2ptls.ID, key, muxers)
	if err != nil {
		return nil, err
	}
	noisy, err := noise.New(noise.ID, key, muxers)
	if err != nil {
		return nil, err
	}
	upgrader, err := tptu.New([]sec.SecureTransport{secure, noisy}, muxers, parts.psk, parts.resources, parts.gate)
	if err != nil {
		return nil, err
	}
	overTCP, err := parts.tcp(upgrader, parts.resources, nil)
	if err == nil {
		err = net.AddTransport(overTCP)
	}
	if err == nil && parts.psk == nil {
		err = parts.addQUIC(net, key)
	}
	return upgrader, err
}

// addQUIC gives a swarm QUIC. The secrets of its socket come of the key, as
// libp2p makes them: a node that has come back is known to who it knew.
func (parts *hostParts) addQUIC(net *swarm.Swarm, key crypto.PrivKey) error {
	var reset quic.StatelessResetKey
	var token quic.TokenGeneratorKey
	raw, err := key.Raw()
	if err != nil {
		return err
	}
	for info, to := range map[string][]byte{"libp2p quic stateless reset key": reset[:], "libp2p quic token generator key": token[:]} {
		secret, err := hkdf.Key(sha256.New, raw, nil, info, len(to))
		if err != nil {
			return err
		}
		copy(to, secret)
	}
	sockets, err := parts.sockets(reset, token, parts.resources)
	if err != nil {
		return err
	}
	t, err := parts.quic(key, sockets, nil, parts.gate, parts.resources)
	if err != nil {
		return err
	}
	return net.AddTransport(t)
}

// dialer is a swarm with another key than the host's, which dials others back
// for AutoNAT and does not listen.
type dialer struct{ *swarm.Swarm }

func (d dialer) Close() error { return errors.Join(d.Swarm.Close(), d.Peerstore().Close()) }

func (parts *hostParts) newDialer() (dialer, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return dialer{}, err
	}
	net, err := parts.newSwarm(key, eventbus.NewBus(), swarm.WithDialRanker(swarm.NoDelayDialRanker))
	if err != nil {
		return dialer{}, err
	}
	if _, err = parts.addTransports(net, key); err != nil {
		return dialer{}, errors.Join(err, dialer{net}.Close())
	}
	return dialer{net}, nil
}

// newJudge makes AutoNAT v2, nil where it is not wanted. A host closes it; end is
// for where there is none.
func (parts *hostParts) newJudge() (judge *autonatv2.AutoNAT, end func() error, err error) {
	if !parts.judged {
		return nil, func() error { return nil }, nil
	}
	back, err := parts.newDialer()
	if err != nil {
		return nil, nil, err
	}
	if judge, err = autonatv2.New(blankhost.NewBlankHost(back)); err != nil {
		return nil, nil, errors.Join(err, back.Close())
	}
	return judge, back.Close, nil
}

// addAutoNAT gives a host AutoNAT v1, by which others learn whether they can be
// reached. It is asked about public addresses alone.
func (parts *hostParts) addAutoNAT(h *builtHost) error {
	shown := func() []ma.Multiaddr {
		return slices.DeleteFunc(slices.Clone(parts.basic.AddrsFactory(h.AllAddrs())),
			func(a ma.Multiaddr) bool { return !manet.IsPublicAddr(a) })
	}
	opts := []autonat.Option{autonat.UsingAddresses(shown)}
	if parts.answers {
		back, err := parts.newDialer()
		if err != nil {
			return err
		}
		opts = append(opts, autonat.EnableService(back), autonat.WithReachability(network.ReachabilityPublic))
	}
	nat, err := autonat.New(h.BasicHost, opts...)
	if err != nil {
		return err
	}
	h.SetAutoNat(nat)
	return nil
}

// parseAddrs gives multiaddrs.
func parseAddrs(texts []string) ([]ma.Multiaddr, error) {
	addrs := make([]ma.Multiaddr, len(texts))
	for i, text := range texts {
		var err error
		if addrs[i], err = ma.NewMultiaddr(text); err != nil {
			return nil, fmt.Errorf("address %q: %w", text, err)
		}
	}
	return addrs, nil
}
