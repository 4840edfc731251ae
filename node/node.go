package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"

	"p2ptun/proto"
	"p2ptun/registry"
)

// Connections are trimmed when they are more than three quarters of what
// strangers may hold, down to a half; those of tunnels, and of peers that are
// let in by name, never are.
const (
	connGrace = 20 * time.Second
	connLook  = 5 * time.Second
)

// While relays are to be chosen, peers are looked through every
// candidatesEvery, which costs no traffic; one that has refused is asked again
// after candidateRest.
const (
	candidatesEvery = 5 * time.Second
	candidateRest   = 5 * time.Minute
)

// Config is what a Node is made from.
type Config struct {
	KeyPath  string
	PortPath string
	// ListenAddrs are multiaddrs. If empty, TCP and QUIC on IPv4 and IPv6, on
	// the port of the last run.
	ListenAddrs []string
	// LAN finds peers by mDNS, and is found.
	LAN bool
	// DHT finds peers beyond the LAN. If nil, there is none.
	DHT *DHT
	// Relays carry connections to this node, and to the peers that it wants.
	Relays []peer.AddrInfo
	// AutoRelay has libp2p choose relays among the peers of the DHT where this
	// node can't be dialled. It goes with MapPorts, and with no Relays.
	AutoRelay bool
	// MapPorts asks the router for a way in (UPnP, NAT-PMP), and other nodes
	// whether there is one (AutoNAT v2).
	MapPorts bool
	// PSK closes the network to who does not have it (libp2p specs: pnet). QUIC
	// does not know it and is off then. If nil, there is none.
	PSK pnet.PSK
	// Relay makes this node a relay. If nil, it is none.
	Relay *RelayService
	// KnownPath is the file of addresses that peers were reached at. If empty,
	// none are remembered.
	KnownPath string
	// PathChanged is told when the way to a wanted peer, or to one with live
	// streams, has changed; up is false where there is none. It must not block.
	PathChanged func(peer string, path registry.Path, up bool)
	// Trusted says which peers may hold many streams. It is called with locks
	// of libp2p held: it must not call back into the Node.
	Trusted func(peer string) bool
	// Named says which peers are let in by name: their connections are not
	// trimmed. As Trusted.
	Named func(peer string) bool
	// Log takes what is worth telling a developer. If nil, nothing is told.
	Log *slog.Logger
}

// Node is the running libp2p host. Its methods may be called from any
// goroutine.
type Node struct {
	log  *slog.Logger
	host host.Host
	// network is the host's, for what libp2p calls while it makes the host: nil
	// until then.
	network atomic.Pointer[network.Network]
	lastID  atomic.Pointer[namedID]
	limits  *limiter
	guard   *guard
	sockets *sockets
	lan     *lan    // nil where the LAN is not asked
	finder  *finder // nil without a DHT
	slots   *reserver
	ranker  ranker
	// circuits are those by which peers are dialled again.
	circuits circuits
	prober   *prober
	memory   *memory
	here     *here
	poke     event.Emitter // of announce; nil where libp2p chooses relays itself
	judge    *judge        // nil where others are not asked, and in a relay
	notes    *notes
	visits   *visitor
	punch    *punchAddrs
	perf     *perfServer
	ledger   *ledger // of a relay; else nil
	relays   []peer.AddrInfo
	// autoRelay: libp2p chooses relays.
	autoRelay bool

	trusted func(peer string) bool
	named   func(peer string) bool
	told    func(peer string, path registry.Path, up bool)

	mu      sync.Mutex
	closed  bool
	wanted  map[peer.ID]*want
	custom  map[protocol.ID]int // protocols outside /x/ that are listened on
	held    map[peer.ID]int     // by the number of live streams
	sticky  map[peer.ID]struct{}
	changes map[peer.ID]chan struct{} // closed when a peer comes, goes or is found
	paths   map[peer.ID]registry.Path // that were told last
	climbs  map[peer.ID]struct{}      // peers that are being dialled directly, since they are relayed

	life     context.Context // ends with Close
	end      context.CancelFunc
	handlers sync.WaitGroup
	events   []event.Subscription
}

// want is what tunnels of this node want of one peer.
type want struct {
	uses  int
	addrs map[string]addrUse
	// relay is that of the newest connection; empty where it is direct.
	relay peer.ID
}

type addrUse struct {
	addr ma.Multiaddr
	uses int
}

// New makes a node and starts to listen. Close it.
func New(ctx context.Context, cfg Config) (*Node, error) {
	n := &Node{
		log:     cfg.Log,
		trusted: cfg.Trusted,
		named:   cfg.Named,
		wanted:  map[peer.ID]*want{},
		custom:  map[protocol.ID]int{},
		held:    map[peer.ID]int{},
		sticky:  map[peer.ID]struct{}{},
		changes: map[peer.ID]chan struct{}{},
		paths:   map[peer.ID]registry.Path{},
		climbs:  map[peer.ID]struct{}{},
		relays:  cfg.Relays,
		told:    cfg.PathChanged,

		autoRelay: cfg.AutoRelay,
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	if n.told == nil {
		n.told = func(string, registry.Path, bool) {}
	}
	n.memory, n.here = newMemory(cfg.KnownPath, n.log), newHere(knownIPs())
	n.notes, n.perf = newNotes(cfg), newPerfServer()
	n.visits = newVisitor(n.log, n.Watch)
	n.punch = &punchAddrs{helpers: helpersOf(cfg), notes: n.notes, visits: n.visits}
	n.prober = newProber(n.log, n.neededConns)
	n.slots = newReserver(n.log, n.Watch, func() { n.announce(); n.addrsChanged() })
	n.limits = newLimiter(n.isTrusted)
	n.guard = newGuard(n.isTrusted, n.log)
	n.sockets = &sockets{sieve: newSieve(n.log), pace: n.pace}
	n.guard.sieve, n.guard.thin = n.sockets.sieve.keepOut, n.sockets.sieve.thin
	n.life, n.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := n.startHost(ctx, cfg); err != nil {
		n.end()
		return nil, err
	}
	n.host.Network().Notify(&network.NotifyBundle{
		ConnectedF:    func(_ network.Network, c network.Conn) { n.connected(c) },
		DisconnectedF: func(_ network.Network, c network.Conn) { n.disconnected(c) },
	})
	if cfg.LAN {
		n.lan = newLAN(n.host, n.log, n.changed)
		n.lan.announce()
	}
	if cfg.DHT != nil {
		if err := n.startDHT(*cfg.DHT); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	n.poke = newPoke(n.host.EventBus(), cfg.AutoRelay, n.log)
	if cfg.MapPorts && cfg.Relay == nil {
		n.startJudge()
	}
	n.announce()
	n.followAddrs()
	n.followObservers()
	n.visitHelpers(cfg)
	n.host.SetStreamHandler(proto.PerfProtocol, n.handlePerf)
	n.handlers.Go(func() { n.sockets.sieve.serve(n.life) })
	n.handlers.Go(func() { n.prober.serve(n.life) })
	n.handlers.Go(func() { n.memory.serve(n.life) })
	n.handlers.Go(func() { followNetwork(n.life, localIPs, n.moved) })
	for _, relay := range cfg.Relays {
		n.handlers.Go(func() { n.slots.serve(n.life, relay) })
	}
	return n, nil
}

// helpersOf are the boxes of this network that were named. Those of the public
// network are none: they are not asked for more than libp2p asks.
func helpersOf(cfg Config) []peer.AddrInfo {
	if cfg.DHT == nil || cfg.DHT.Public {
		return cfg.Relays
	}
	return slices.Concat(cfg.Relays, cfg.DHT.Bootstrap)
}

// visitHelpers, where there is QUIC, and holes to be punched: a relay has a
// public address.
func (n *Node) visitHelpers(cfg Config) {
	listening := n.host.Network().ListenAddresses()
	n.punch.listening.Store(&listening)
	if cfg.Relay != nil || !slices.ContainsFunc(listening, func(a ma.Multiaddr) bool { return has(a, ma.P_QUIC_V1) }) {
		return
	}
	for _, helper := range visitable(n.punch.helpers) {
		n.handlers.Go(func() { n.visits.serve(n.life, helper) })
	}
}

func (n *Node) startDHT(cfg DHT) (err error) {
	if n.finder, err = newFinder(n.host, cfg, n.log, n.found); err != nil {
		return err
	}
	n.handlers.Go(func() { n.finder.serve(n.life) })
	return nil
}

func (n *Node) startHost(ctx context.Context, cfg Config) error {
	key, err := LoadKey(ctx, cfg.KeyPath)
	if err != nil {
		return err
	}
	n.visits.key = key
	addrs := cfg.ListenAddrs
	if len(addrs) == 0 {
		port, err := choosePort(cfg.PortPath)
		if err != nil {
			return err
		}
		addrs = defaultAddrs(port, cfg.PSK == nil)
	}
	listen, err := parseAddrs(addrs)
	if err != nil {
		return err
	}
	resources, err := newResourceManager(n.limits, n.guard)
	if err != nil {
		return fmt.Errorf("resource manager: %w", err)
	}
	conns, err := connmgr.NewConnManager(n.limits.strangers/2, n.limits.strangers*3/4, connmgr.WithGracePeriod(connGrace), connmgr.WithSilencePeriod(connLook))
	if err != nil {
		return fmt.Errorf("connection manager: %w", err)
	}
	parts := hostParts{
		key:       key,
		listen:    listen,
		psk:       cfg.PSK,
		resources: resources,
		gate:      &gate{network: &n.network, guard: n.guard, most: n.limits.strangers, trusted: n.isTrusted, circuits: &n.circuits},
		ranker:    n.ranker.rank,
		tcp:       n.sockets.newTCP,
		sockets:   n.sockets.newQUIC,
		quic:      n.visits.newQUIC,
		basic: basichost.HostOpts{
			ConnManager:         conns,
			AddrsFactory:        n.shownAddrs,
			EnablePing:          true,
			UserAgent:           "p2ptun",
			EnableHolePunching:  true,
			HolePunchingOptions: []holepunch.Option{holepunch.DirectDialTimeout(punchLimit), holepunch.WithTracer(n.notes), holepunch.WithAddrFilter(n.punch)},
		},
	}
	n.reach(&parts, cfg)
	n.here.starting(cfg.Relays)
	host, err := newHost(parts)
	n.here.starting(nil)
	if err != nil {
		return errors.Join(fmt.Errorf("start libp2p: %w", err), n.sockets.close())
	}
	n.host, n.slots.host = host, host
	network := n.host.Network()
	n.network.Store(&network)
	for range closers {
		n.handlers.Go(func() {
			n.guard.serve(n.life, func(p peer.ID) { _ = network.ClosePeer(p) })
		})
	}
	return nil
}

// reach sets what depends on the network.
func (n *Node) reach(parts *hostParts, cfg Config) {
	if cfg.MapPorts {
		parts.basic.NATManager = newMapper(n.log)
	}
	parts.judged = cfg.MapPorts || cfg.Relay != nil // a relay answers the others
	if cfg.AutoRelay {
		parts.autoRelay = []autorelay.Option{autorelay.WithPeerSource(n.relayCandidates), autorelay.WithMinInterval(candidatesEvery), autorelay.WithBackoff(candidateRest), autorelay.WithBootDelay(0)}
	}
	if cfg.Relay != nil {
		n.ledger = newLedger()
		parts.basic.EnableRelayService, parts.basic.RelayServiceOpts = true, cfg.Relay.options(n.dropBefore)
		parts.answers, parts.reporter = true, n.ledger
	}
}

// followAddrs tells the LAN and the DHT when the addresses change.
func (n *Node) followAddrs() {
	sub, err := n.host.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		n.log.Warn("follow local addresses", "err", err)
		return
	}
	n.events = append(n.events, sub)
	n.handlers.Go(func() {
		for range sub.Out() {
			n.addrsChanged()
		}
	})
}

// followObservers notes as what address others see this node.
func (n *Node) followObservers() {
	sub, err := n.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		n.log.Warn("follow observers", "err", err)
		return
	}
	n.events = append(n.events, sub)
	n.handlers.Go(func() { n.notes.follow(sub) })
}

// addrsChanged tells where this node can be found now.
func (n *Node) addrsChanged() {
	if n.lan != nil {
		n.lan.announce()
	}
	if n.finder != nil {
		n.finder.move()
	}
}

// Close ends all connections and returns when nothing of the node runs any
// more.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.end()
	for _, sub := range n.events {
		_ = sub.Close()
	}
	if n.poke != nil {
		defer n.poke.Close()
	}
	if n.judge != nil {
		defer n.judge.tell.Close()
	}
	if n.lan != nil {
		n.lan.close()
	}
	var err error
	if n.finder != nil {
		err = n.finder.close()
	}
	err = errors.Join(err, n.host.Close(), n.sockets.close())
	n.handlers.Wait()
	return err
}

// ID is this node's peer ID.
func (n *Node) ID() string { return n.host.ID().String() }

// Addrs are the addresses that others may dial, each with this node's peer ID.
func (n *Node) Addrs() []string {
	suffix := "/p2p/" + n.ID()
	var addrs []string
	for _, a := range n.host.Addrs() {
		addrs = append(addrs, a.String()+suffix)
	}
	return addrs
}

// isTrusted: the peers that this node's own forwards go to, and its relays,
// are trusted as well as those that are let in.
func (n *Node) isTrusted(p peer.ID) bool {
	n.mu.Lock()
	_, wanted := n.wanted[p]
	n.mu.Unlock()
	return wanted || n.isRelay(p) || n.trusted != nil && n.trusted(p.String())
}

// connected also ends a connection of a peer that was banned while it was made.
func (n *Node) connected(c network.Conn) {
	if c.Stat().Direction == network.DirInbound && n.guard.keepsOut(c.RemotePeer()) {
		n.guard.dismiss(offence{peer: c.RemotePeer()})
	}
	if isRelayed(c.RemoteMultiaddr()) {
		n.circuits.came(n.host, c.RemotePeer())
	}
	n.dropStale(c)
	n.doubtOlder(c)
	n.refreshLimit(c.RemotePeer())
	n.changed(c.RemotePeer())
	n.follow(c)
}

func (n *Node) disconnected(c network.Conn) {
	n.prober.forget(c)
	n.notes.forget(c)
	n.changed(c.RemotePeer())
	n.tellPath(c.RemotePeer())
}

// changed wakes those who wait for something of a peer.
func (n *Node) changed(p peer.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ch, ok := n.changes[p]; ok {
		close(ch)
		delete(n.changes, p)
	}
}

// Watch says whether a wanted peer is connected, and gives a channel that is
// closed when that may have changed, or when the peer was found on the LAN.
func (n *Node) Watch(id string) (up bool, changed <-chan struct{}) {
	p, err := n.idOf(id)
	if err != nil {
		return false, nil
	}
	n.mu.Lock()
	ch, ok := n.changes[p]
	if !ok {
		ch = make(chan struct{})
		n.changes[p] = ch
	}
	n.mu.Unlock()
	return n.isConnected(p), ch
}

// idOf decodes a peer ID. It remembers the last: base58 is slow, and each
// connection of a tunnel asks for the same.
func (n *Node) idOf(text string) (peer.ID, error) {
	if last := n.lastID.Load(); last != nil && last.text == text {
		return last.id, nil
	}
	id, err := peer.Decode(text)
	if err == nil {
		n.lastID.Store(&namedID{text, id})
	}
	return id, err
}

type namedID struct {
	text string
	id   peer.ID
}

func (n *Node) isConnected(p peer.ID) bool {
	c := n.host.Network().Connectedness(p)
	return c == network.Connected || c == network.Limited
}

// Handle hands every incoming tunnel stream to f, on a goroutine of its own
// with a fresh stack. Identify tells peers no more than `/x/`.
func (n *Node) Handle(f func(registry.Incoming)) {
	match := func(p protocol.ID) bool { return strings.HasPrefix(string(p), proto.Namespace) || n.isCustom(p) }
	n.host.SetStreamHandlerMatch(proto.Namespace, match, func(s network.Stream) {
		in := registry.Incoming{
			Peer:     s.Conn().RemotePeer().String(),
			Protocol: string(s.Protocol()),
			Path:     pathOf(s.Conn()),
			End:      n.newStreamEnd(s),
		}
		if !n.begin() {
			_ = s.ResetWithError(network.StreamErrorCode(proto.CodeStopped))
			return
		}
		go func() {
			defer n.handlers.Done()
			f(in)
		}()
	})
}

// Refused tells the node that a peer was refused a question or a stream. A
// stranger that is refused too often is disconnected and kept out for a while.
// It does not block.
func (n *Node) Refused(id string) {
	if p, err := peer.Decode(id); err == nil {
		n.guard.refused(p)
	}
}

// begin counts a handler, unless the node is closed.
func (n *Node) begin() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.handlers.Add(1)
	return true
}

func (n *Node) isCustom(p protocol.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.custom[p] > 0
}

// Offer makes the node take streams of a protocol outside /x/, until the
// returned func is called. Others need no Offer.
func (n *Node) Offer(name string) (end func()) {
	n.offer(protocol.ID(name), 1)
	return sync.OnceFunc(func() { n.offer(protocol.ID(name), -1) })
}

func (n *Node) offer(p protocol.ID, by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.custom[p] += by; n.custom[p] <= 0 {
		delete(n.custom, p)
	}
}
