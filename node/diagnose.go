package node

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/libp2p/zeroconf/v2"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"

	"p2ptun/registry"
)

// What `p2ptun doctor` asks of a node: facts, without a word on whether they
// are good.

const (
	// helperLimit bounds one bootstrap node or name that is asked.
	helperLimit = 8 * time.Second
	// maxNotes bounds the peers of which something is noted.
	maxNotes = 256
	// maxObserved bounds the connections whose observation is remembered.
	maxObserved = 1024
)

// notes are what a node remembers for a diagnosis alone.
type notes struct {
	bootstrap []peer.AddrInfo
	autonat   bool // others are asked whether they can dial us

	mu       sync.Mutex
	observed map[network.Conn]ma.Multiaddr
	punches  map[peer.ID]Punch
	said     map[peer.ID][]ma.Multiaddr // by the DHT
}

func newNotes(cfg Config) *notes {
	n := &notes{
		autonat:  cfg.MapPorts,
		observed: map[network.Conn]ma.Multiaddr{}, punches: map[peer.ID]Punch{}, said: map[peer.ID][]ma.Multiaddr{},
	}
	if cfg.DHT != nil {
		n.bootstrap = cfg.DHT.Bootstrap
		if cfg.DHT.Public && len(n.bootstrap) == 0 {
			n.bootstrap = dht.GetDefaultBootstrapPeerAddrInfos()
		}
	}
	return n
}

// put notes something of a key; where there are too many, some other goes.
func put[K comparable, V any](m map[K]V, k K, v V, most int) {
	if _, known := m[k]; !known && len(m) >= most {
		for other := range m {
			delete(m, other)
			break
		}
	}
	m[k] = v
}

// follow notes as what address each peer sees us, until the subscription ends.
func (n *notes) follow(sub event.Subscription) {
	for e := range sub.Out() {
		id, ok := e.(event.EvtPeerIdentificationCompleted)
		if !ok || id.Conn == nil || id.ObservedAddr == nil || id.Conn.IsClosed() {
			continue
		}
		n.mu.Lock()
		put(n.observed, id.Conn, id.ObservedAddr, maxObserved)
		n.mu.Unlock()
	}
}

// sightings are what these helpers see, by connections that are not relayed.
func (n *notes) sightings(helpers []peer.AddrInfo) (list []sighting) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c, seen := range n.observed {
		helps := slices.ContainsFunc(helpers, func(h peer.AddrInfo) bool { return h.ID == c.RemotePeer() })
		if helps && !isRelayed(c.RemoteMultiaddr()) {
			list = append(list, sighting{local: c.LocalMultiaddr(), observer: c.RemoteMultiaddr(), seen: seen})
		}
	}
	return list
}

func (n *notes) forget(c network.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.observed, c)
}

// foundByDHT notes what the DHT has said of a peer.
func (n *notes) foundByDHT(info peer.AddrInfo) {
	n.mu.Lock()
	defer n.mu.Unlock()
	put(n.said, info.ID, info.Addrs, maxNotes)
}

// Punch is how the last hole punch with a peer went, as far as it is known.
type Punch struct {
	At      time.Time
	Tried   bool   // a hole was punched, or that was tried
	Success bool   // and the way is direct by that
	Dialled bool   // it was not needed: the peer could be dialled, or could dial us
	Error   string // why it failed
}

// Trace implements holepunch.EventTracer.
func (n *notes) Trace(e *holepunch.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.punches[e.Remote]
	p.At = time.Unix(0, e.Timestamp)
	switch evt := e.Evt.(type) {
	case *holepunch.DirectDialEvt:
		p.Dialled = evt.Success
	case *holepunch.StartHolePunchEvt:
		p.Tried, p.Success, p.Error = true, false, ""
	case *holepunch.EndHolePunchEvt:
		p.Tried, p.Success, p.Error = true, evt.Success, evt.Error
	case *holepunch.ProtocolErrorEvt:
		p.Error = evt.Error
	}
	put(n.punches, e.Remote, p, maxNotes)
}

// LastPunch is the last hole punch with a peer; the zero value for none.
func (n *Node) LastPunch(id string) Punch {
	p, _ := peer.Decode(id)
	n.notes.mu.Lock()
	defer n.notes.mu.Unlock()
	return n.notes.punches[p]
}

// Listening are the addresses that this node listens on, with the ports that
// it has.
func (n *Node) Listening() (addrs []string) {
	for _, a := range n.host.Network().ListenAddresses() {
		if !isRelayed(a) {
			addrs = append(addrs, a.String())
		}
	}
	slices.Sort(addrs)
	return addrs
}

// NameReply is what the DNS says of one name, /dnsaddr/… or /dns4/….
type NameReply struct {
	Name  string
	Addrs int
	Err   error
}

// ResolveNames asks the DNS for each name that this node's bootstrap nodes and
// relays have; nil where they have none.
func (n *Node) ResolveNames(ctx context.Context) []NameReply {
	var names []ma.Multiaddr
	for _, box := range slices.Concat(n.notes.bootstrap, n.relays) {
		for _, a := range box.Addrs {
			first, _ := ma.SplitFirst(a)
			if first != nil && madns.Matches(first.Multiaddr()) && !ma.Contains(names, first.Multiaddr()) {
				names = append(names, first.Multiaddr())
			}
		}
	}
	return each(ctx, names, func(ctx context.Context, name ma.Multiaddr) NameReply {
		addrs, err := madns.Resolve(ctx, name)
		return NameReply{Name: name.String(), Addrs: len(addrs), Err: err}
	})
}

// each asks all at once, each for helperLimit at most.
func each[T, R any](ctx context.Context, list []T, ask func(context.Context, T) R) []R {
	if len(list) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, helperLimit)
	defer cancel()
	replies := make([]R, len(list))
	var all sync.WaitGroup
	for i, one := range list {
		all.Go(func() { replies[i] = ask(ctx, one) })
	}
	all.Wait()
	return replies
}

// BootstrapReply is how one bootstrap node answers.
type BootstrapReply struct {
	Peer string
	RTT  time.Duration
	Err  error
}

// Bootstrap reaches each bootstrap node and waits for its answer to a ping; nil
// where this node has none.
func (n *Node) Bootstrap(ctx context.Context) []BootstrapReply {
	return each(ctx, n.notes.bootstrap, func(ctx context.Context, box peer.AddrInfo) BootstrapReply {
		r := BootstrapReply{Peer: box.ID.String()}
		n.clearBackoff(box.ID)
		if err := n.host.Connect(ctx, box); err != nil {
			r.Err = dialError{err}
			return r
		}
		got, ok := <-ping.Ping(ctx, n.host, box.ID)
		if !ok {
			got.Error = ctx.Err()
		}
		r.RTT, r.Err = got.RTT, got.Error
		return r
	})
}

// LANReport is what LAN discovery finds.
type LANReport struct {
	Joined []string // interfaces where mDNS can be heard
	Own    bool     // our own announcement was heard
	Others int      // other nodes that were
	Err    error    // why nothing could be heard
}

// LAN listens for our own announcement, and others', as libp2p does; asked is
// false where this node does not look at the LAN. It returns when it has heard
// ours, or when ctx ends.
func (n *Node) LAN(ctx context.Context) (r LANReport, asked bool) {
	if n.lan == nil {
		return r, false
	}
	r.Joined = joinable()
	if len(r.Joined) > 0 {
		n.lan.ask()
		r.Own, r.Err = hearMDNS(ctx, n.ID())
	}
	n.lan.mu.Lock()
	r.Others = len(n.lan.addrs)
	n.lan.mu.Unlock()
	return r, true
}

// joinable are the interfaces that mDNS's group can be joined on (RFC 6762).
func joinable() (names []string) {
	ifis, _ := net.Interfaces()
	for _, ifi := range ifis {
		if ifi.Flags&net.FlagUp == 0 || ifi.Flags&net.FlagMulticast == 0 {
			continue
		}
		c, err := net.ListenMulticastUDP("udp4", &ifi, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353})
		if err == nil {
			_ = c.Close()
			names = append(names, ifi.Name)
		}
	}
	return names
}

// hearMDNS says whether the announcement of that peer is heard until ctx ends.
func hearMDNS(ctx context.Context, id string) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	entries := make(chan *zeroconf.ServiceEntry, 64)
	ended := make(chan error, 1)
	go func() { ended <- zeroconf.Browse(ctx, mdns.ServiceName, "local", entries) }()
	for {
		select {
		case e, open := <-entries:
			if !open {
				entries = nil
			} else if announces(e, id) {
				heard = true
				cancel()
			}
		case err := <-ended:
			if ctx.Err() != nil {
				err = nil
			}
			return heard, err
		}
	}
}

func announces(e *zeroconf.ServiceEntry, id string) bool {
	return slices.ContainsFunc(e.Text, func(text string) bool { return strings.HasSuffix(text, "/p2p/"+id) })
}

// NATKind is what a NAT does with the port of this node.
type NATKind string

// The kinds of mapping, in the words of RFC 4787.
const (
	NATUnknown     NATKind = ""
	NATNone        NATKind = "none"                 // others see our own address
	NATIndependent NATKind = "endpoint-independent" // all see the same one
	NATDependent   NATKind = "endpoint-dependent"   // each sees another: symmetric
)

// observation is as what address one peer out there sees us.
type observation struct {
	tcp             bool
	local, observer string // the observer by its IP
	seen            string
	own             bool // which is an address of this machine
}

// NAT compares as what addresses peers with public addresses see this node.
// observers are those peers; two at least are needed for a kind.
func (n *Node) NAT() (tcp, udp NATKind, observers int) {
	var list []observation
	from, ips := map[string]bool{}, knownIPs()
	add := func(s sighting) {
		if o, ok := observe(s.local, s.observer, s.seen, ips); ok {
			list = append(list, o)
			from[o.observer] = true
		}
	}
	for _, s := range n.visits.sightings() {
		add(s)
	}
	n.notes.mu.Lock()
	defer n.notes.mu.Unlock()
	for c, seen := range n.notes.observed {
		add(sighting{local: c.LocalMultiaddr(), observer: c.RemoteMultiaddr(), seen: seen})
	}
	return natKind(list, true), natKind(list, false), len(from)
}

// observe takes what says something of a NAT towards the internet. ips are this
// machine's.
func observe(local, remote, seen ma.Multiaddr, ips []netip.Addr) (o observation, ok bool) {
	if isRelayed(remote) || isRelayed(local) || !manet.IsPublicAddr(remote) {
		return o, false
	}
	observer, _, ok := thinWaist(remote)
	here, tcp, hereOK := thinWaist(local)
	there, seenTCP, seenOK := thinWaist(seen)
	if !ok || !hereOK || !seenOK || tcp != seenTCP || here.Addr().Is4() != there.Addr().Is4() {
		return o, false
	}
	own := here.Port() == there.Port() && slices.Contains(ips, there.Addr())
	return observation{tcp: tcp, local: here.String(), observer: observer.Addr().String(), seen: there.String(), own: own}, true
}

// thinWaist is IP and port, and whether it is one of TCP or of UDP.
func thinWaist(a ma.Multiaddr) (at netip.AddrPort, tcp, ok bool) {
	if len(a) < 2 || a[1].Protocol().Code != ma.P_TCP && a[1].Protocol().Code != ma.P_UDP {
		return at, false, false
	}
	at, err := netip.ParseAddrPort(net.JoinHostPort(a[0].Value(), a[1].Value()))
	return at, a[1].Protocol().Code == ma.P_TCP, err == nil
}

// natKind judges by the local ports that two observers or more have seen.
func natKind(list []observation, tcp bool) NATKind {
	kind := NATUnknown
	for i, a := range list {
		for _, b := range list[:i] {
			switch {
			case a.tcp != tcp || b.tcp != tcp || a.local != b.local || a.observer == b.observer:
			case a.seen != b.seen:
				return NATDependent
			case a.own:
				kind = cmp.Or(kind, NATNone)
			default:
				kind = NATIndependent
			}
		}
	}
	return kind
}

// Reach is what others have found who tried to dial this node (AutoNAT v2).
type Reach struct {
	Asked     bool // this node asks others
	Helpers   int  // connected peers that can be asked
	Private   bool // nobody could, or there is nothing to try
	Reachable []string
	Not       []string
	Relayed   []string // addresses through relays
}

// ReachedFrom gives that of this moment.
func (n *Node) ReachedFrom() Reach {
	r := Reach{Asked: n.notes.autonat}
	for _, p := range n.host.Network().Peers() {
		if has, err := n.host.Peerstore().SupportsProtocols(p, autonatv2.DialProtocol); err == nil && len(has) > 0 {
			r.Helpers++
		}
	}
	r.Private = reachability(n.host) == network.ReachabilityPrivate
	reachable, not := confirmed(n.host)
	r.Reachable, r.Not = texts(reachable), texts(not)
	for _, a := range n.host.Addrs() {
		if isRelayed(a) {
			r.Relayed = append(r.Relayed, a.String())
		}
	}
	return r
}

func texts(addrs []ma.Multiaddr) (list []string) {
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return list
}

// AwaitRelays returns when every relay that was named has a slot for this node,
// or when ctx ends, with what each said last.
func (n *Node) AwaitRelays(ctx context.Context) (list []RelayStatus) {
	for {
		n.slots.mu.Lock()
		tell := n.slots.tell
		list = list[:0]
		missing := 0
		for _, r := range n.relays {
			s, known := n.slots.held[r.ID]
			if !known {
				s = RelayStatus{Relay: r.ID.String(), Error: "no answer yet"}
			}
			if !s.Reserved {
				missing++
			}
			list = append(list, s)
		}
		n.slots.mu.Unlock()
		if missing == 0 {
			return list
		}
		select {
		case <-tell:
		case <-ctx.Done():
			return list
		}
	}
}

// Source is one that says where a peer is.
type Source struct {
	By    string   // given, remembered, LAN, DHT, relay
	Addrs []string // as multiaddrs without the peer's ID
}

// Sources are those that know addresses of a peer now; a relay of ours is
// tried whether it knows the peer or not.
func (n *Node) Sources(id string) (list []Source) {
	p, err := peer.Decode(id)
	if err != nil {
		return nil
	}
	add := func(by string, addrs []ma.Multiaddr) {
		if len(addrs) > 0 {
			list = append(list, Source{by, texts(addrs)})
		}
	}
	add("given", n.givenAddrs(p))
	add("remembered", n.memory.lookup(p))
	if n.lan != nil {
		info, _ := n.lan.lookup(p)
		add("LAN", info.Addrs)
	}
	n.notes.mu.Lock()
	add("DHT", n.notes.said[p])
	n.notes.mu.Unlock()
	for _, r := range n.relays {
		for _, a := range r.Addrs {
			if r.ID != p {
				add("relay", []ma.Multiaddr{circuitAddr(a, r.ID)})
			}
		}
	}
	return list
}

// PeerConn is one connection to a peer.
type PeerConn struct {
	registry.Path
	Inbound bool // the peer has dialled
	Opened  time.Time

	conn network.Conn
}

// Conns are the connections to a peer, that which new streams take first.
func (n *Node) Conns(id string) (list []PeerConn) {
	p, err := peer.Decode(id)
	if err != nil {
		return nil
	}
	conns := slices.Clone(n.host.Network().ConnsToPeer(p))
	slices.SortStableFunc(conns, func(a, b network.Conn) int {
		switch {
		case better(a, b):
			return -1
		case better(b, a):
			return 1
		}
		return 0
	})
	for _, c := range conns {
		list = append(list, PeerConn{Path: n.describe(c), Inbound: c.Stat().Direction == network.DirInbound, Opened: c.Stat().Opened, conn: c})
	}
	return list
}

// Pings measures round trips over that connection, one after the other. It
// gives those before an error, too.
func (c PeerConn) Pings(ctx context.Context, times int) (rtts []time.Duration, err error) {
	l := &line{busy: make(chan struct{}, 1)}
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	defer l.hangUp()
	defer context.AfterFunc(ctx, l.hangUp)()
	for range times {
		if err := l.ping(ctx, c.conn); err != nil {
			return rtts, fmt.Errorf("ping: %w", cmp.Or(ctx.Err(), err))
		}
		rtts = append(rtts, time.Duration(l.last.Load()))
	}
	return rtts, nil
}

// AwaitDirect says whether there is a direct way to a connected peer, or comes
// to be before ctx ends.
func (n *Node) AwaitDirect(ctx context.Context, id string) bool {
	p, err := peer.Decode(id)
	if err != nil {
		return false
	}
	for {
		up, changed := n.Watch(id)
		if up && !n.onlyRelayed(p) {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
