package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"

	"p2ptun/proto"
	"p2ptun/registry"
)

const (
	// foundTTL is how long what the LAN said of a peer is dialled.
	foundTTL = 2 * time.Minute
	// A peer that could not be dialled is dialled again while somebody waits for
	// it, after a 32nd of its patience, between redialSoon and redial.
	redialSoon = 200 * time.Millisecond
	redial     = time.Second
	// maxKnocks bounds the further dials through a relay at the same time.
	maxKnocks = 8
	// pingLimit bounds one ping.
	pingLimit = 10 * time.Second
	// askLimit bounds one question to a peer, or one of a peer to us.
	askLimit = 20 * time.Second
	// strangerAskLimit bounds how long a stranger's question may be on its way,
	// once its stream is there: two round trips of 2 s pass.
	strangerAskLimit = 5 * time.Second
	// These mark connections that are not trimmed: to a peer that a tunnel
	// goes to, with live streams of a peer, of a peer let in by name.
	ruleTag = "p2ptun rule"
	wantTag = "p2ptun want"
	holdTag = "p2ptun hold"
)

var (
	// ErrNoAddress is returned where no address of a peer is known or found.
	ErrNoAddress = errors.New("no address known")
	// ErrCannotAsk is returned by Ask for a peer without the ask protocol:
	// Kubo, for one.
	ErrCannotAsk = errors.New("peer can't be asked")
	// errDead is returned by a dial to a peer that libp2p was dialling already:
	// it gives the connection that came of that, also when it has ended since.
	errDead = errors.New("the connection has ended meanwhile")
)

// PeerAddrs is a peer with the addresses that were given for it.
type PeerAddrs struct {
	ID    string
	Addrs []ma.Multiaddr
}

// Resolve turns what a person typed into peers; a /dnsaddr may hold several.
// A name is not for here: whoever knows the book of names looks it up first.
func Resolve(ctx context.Context, typed string) ([]PeerAddrs, error) {
	p, err := proto.ParsePeer(typed)
	switch {
	case err != nil:
		return nil, err
	case p.ID != "":
		return []PeerAddrs{{ID: p.ID.String(), Addrs: p.Addrs}}, nil
	case p.DNSAddr == nil:
		return nil, fmt.Errorf("peer %s: not resolved", typed)
	}
	addrs, err := madns.Resolve(ctx, p.DNSAddr)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", typed, err)
	}
	infos, err := peer.AddrInfosFromP2pAddrs(addrs...)
	if err != nil || len(infos) == 0 {
		return nil, fmt.Errorf("resolve %s: %w", typed, errors.Join(ErrNoAddress, err))
	}
	var peers []PeerAddrs
	for _, info := range infos {
		peers = append(peers, PeerAddrs{ID: info.ID.String(), Addrs: info.Addrs})
	}
	return peers, nil
}

// Want keeps a peer's given addresses, its connection and its resource limits
// for a tunnel, until the returned func is called.
func (n *Node) Want(p PeerAddrs) (end func(), err error) {
	id, err := peer.Decode(p.ID)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", p.ID, err)
	}
	if id == n.host.ID() {
		return nil, fmt.Errorf("peer %s is this node itself", p.ID)
	}
	n.mu.Lock()
	w := n.wanted[id]
	if w == nil {
		w = &want{addrs: map[string]addrUse{}}
		n.wanted[id] = w
	}
	w.uses++
	for _, a := range p.Addrs {
		w.addrs[a.String()] = addrUse{addr: a, uses: w.addrs[a.String()].uses + 1}
	}
	n.mu.Unlock()
	n.host.ConnManager().Protect(id, wantTag)
	if n.isConnected(id) {
		n.refreshLimit(id)
	}
	return func() { n.unwant(id, p.Addrs) }, nil
}

func (n *Node) unwant(id peer.ID, addrs []ma.Multiaddr) {
	n.mu.Lock()
	w := n.wanted[id]
	for _, a := range addrs {
		use := w.addrs[a.String()]
		if use.uses--; use.uses <= 0 {
			delete(w.addrs, a.String())
			continue
		}
		w.addrs[a.String()] = use
	}
	w.uses--
	last := w.uses == 0
	if last {
		delete(n.wanted, id)
	}
	n.mu.Unlock()
	if last {
		n.changed(id) // nobody is to wait for what nobody wants
		n.host.ConnManager().Unprotect(id, wantTag)
		n.refreshLimit(id)
	}
}

// Hold keeps a peer's connections from being trimmed until the returned func,
// to be called once, is called: for as long as a stream of it lives.
func (n *Node) Hold(id string) (end func()) {
	p, err := n.idOf(id)
	if err != nil {
		return func() {}
	}
	n.hold(p, 1)
	return func() { n.hold(p, -1) }
}

func (n *Node) hold(p peer.ID, by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.held[p]
	n.held[p] = was + by
	switch {
	case was == 0:
		n.host.ConnManager().Protect(p, holdTag)
	case was+by == 0:
		delete(n.held, p)
		n.host.ConnManager().Unprotect(p, holdTag)
	}
}

// Connect reaches a peer: over a standing connection, or by all addresses that
// are given or known for it, that the LAN and the DHT say, and through our
// relays, at once. It goes on trying until ctx ends, or for patience after the
// last thing that could be tried has failed.
func (n *Node) Connect(ctx context.Context, id string, patience time.Duration) error {
	p, err := peer.Decode(id)
	if err != nil {
		return fmt.Errorf("peer %s: %w", id, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &approach{n: n, peer: p, results: make(chan error, maxDials), knocks: make(chan error, maxKnocks), pause: min(max(patience/32, redialSoon), redial)}
	return a.run(ctx, id, time.Now().Add(patience))
}

// settleLimit is how long a connected peer may take to say what it is.
const settleLimit = time.Second

// maxDials bounds the dials to one peer at the same time: one more for each
// time that an address was found meanwhile.
const maxDials = 8

// approach is one Connect.
type approach struct {
	n       *Node
	peer    peer.ID
	results chan error
	dials   int // under way
	last    error
	pause   time.Duration // before another dial, or another knock

	knocks    chan error
	knocking  int             // under way
	round     context.Context // of those
	endKnocks context.CancelFunc
}

func (a *approach) run(ctx context.Context, id string, deadline time.Time) error {
	searching := a.n.search(a.peer)
	a.dial(ctx)
	for {
		up, changed := a.n.Watch(id)
		if up {
			a.settle(ctx)
			return nil
		}
		var again <-chan time.Time
		left := time.Until(deadline)
		switch {
		case a.dials == 0 && searching == nil && left <= 0:
			return a.last
		case a.dials == 0 && searching == nil:
			again = time.After(min(a.pause, left))
		case a.mayKnock():
			again = time.After(a.pause)
		}
		select {
		case err := <-a.knocks:
			if a.knocking--; hasReached(err) {
				return err
			}
		case err := <-a.results:
			a.dials, a.last = a.dials-1, err
			if a.dials == 0 && !hasReached(err) {
				err = a.leaveOff(err)
			}
			if hasReached(err) {
				return err
			}
		case <-searching:
			searching = nil
		case <-changed:
			if !a.n.isConnected(a.peer) {
				a.dial(ctx) // with what was found; libp2p joins it to the dials under way
			}
		case <-again:
			if a.dials > 0 {
				if !a.n.isAsking(a.n.lastRelay(a.peer)) {
					a.knock(ctx)
				}
				continue
			}
			searching = a.n.search(a.peer)
			a.dial(ctx)
		case <-ctx.Done():
			return cmp.Or(a.last, ctx.Err())
		}
	}
}

// hasReached says that the peer was reached, if only for a moment: our callers try
// again.
func hasReached(err error) bool { return err == nil || errors.Is(err, errDead) }

// settle waits a moment for a dial that is about to return: it does so when
// the peers have told each other what they are.
func (a *approach) settle(ctx context.Context) {
	limit := time.After(settleLimit)
	for a.dials > 0 {
		select {
		case <-a.results:
			return
		case err := <-a.knocks:
			if hasReached(err) {
				return
			}
		case <-limit:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (a *approach) dial(ctx context.Context) {
	if a.dials >= maxDials {
		return
	}
	a.dials++
	go func() { a.results <- a.n.dial(ctx, a.peer, false) }()
}

// mayKnock says that the peer's relay is to be asked for it again, while other
// ways are silent: it may be back there at any moment.
func (a *approach) mayKnock() bool {
	relay := a.n.lastRelay(a.peer)
	return a.dials > 0 && a.knocking < maxKnocks && relay != "" && a.n.isConnected(relay)
}

// knock does so once. The first dial has all the time that there is.
func (a *approach) knock(ctx context.Context) {
	if a.knocking++; a.knocking == 1 {
		a.round, a.endKnocks = context.WithCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(a.round, maxKnocks*a.pause)
	go func() {
		defer cancel()
		a.knocks <- a.n.dial(ctx, a.peer, true)
	}()
}

// leaveOff ends the knocks, since libp2p's dial goes on for them, which dials no
// address again. It returns what one of them has brought after all, or err.
func (a *approach) leaveOff(err error) error {
	if a.knocking > 0 {
		a.endKnocks()
	}
	for ; a.knocking > 0; a.knocking-- {
		if now := <-a.knocks; hasReached(now) {
			err = now
		}
	}
	return err
}

// search asks who may know where a peer is. The channel is closed when there is
// nothing to wait for any more; nil where there never was.
func (n *Node) search(p peer.ID) <-chan struct{} {
	if n.lan != nil {
		n.lan.ask()
	}
	if n.finder == nil {
		return nil
	}
	return n.finder.search(n.life, p)
}

// found takes what the DHT says of a peer.
func (n *Node) found(info peer.AddrInfo) {
	n.notes.foundByDHT(info)
	n.host.Peerstore().AddAddrs(info.ID, info.Addrs, foundTTL)
	n.changed(info.ID)
}

// retry has those who wait for a peer try again at once.
func (n *Node) retry() {
	n.mu.Lock()
	var waiting []peer.ID
	for p := range n.changes {
		waiting = append(waiting, p)
	}
	n.mu.Unlock()
	for _, p := range waiting {
		n.clearBackoff(p)
		n.changed(p)
	}
}

func (n *Node) clearBackoff(p peer.ID) { clearBackoff(n.host, p) }

// clearBackoff: our callers pause themselves.
func clearBackoff(h host.Host, p peer.ID) {
	if s, ok := h.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(p)
	}
}

// dial tries once. anew is for a circuit beside those that are being tried.
func (n *Node) dial(ctx context.Context, p peer.ID, anew bool) error {
	n.refreshAddrs(p)
	if len(n.host.Peerstore().Addrs(p)) == 0 {
		return ErrNoAddress
	}
	n.clearBackoff(p)
	if relay := n.lastRelay(p); relay != "" {
		defer n.ranker.redial()()
		if n.isConnected(relay) {
			defer n.circuits.dial(n.host, p, relay, anew)()
		}
	}
	ctx = network.WithAllowLimitedConn(ctx, "tunnel")
	if err := n.host.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
		return dialError{err}
	}
	if !n.isConnected(p) {
		return errDead
	}
	return nil
}

// dialError shows what libp2p's error tells, a list of lines, in one: each
// address with what went wrong there.
type dialError struct{ error }

func (e dialError) Error() string {
	var de *swarm.DialError
	if !errors.As(e.error, &de) || len(de.DialErrors) == 0 {
		return strings.Join(strings.Fields(e.error.Error()), " ")
	}
	var parts []string
	for _, te := range de.DialErrors {
		parts = append(parts, fmt.Sprintf("%s: %v", te.Address, te.Cause))
	}
	return strings.Join(parts, "; ")
}

func (e dialError) Unwrap() error { return e.error }

// refreshAddrs puts the wanted addresses, those that were good before, what the
// LAN says and the ways through our relays where libp2p dials from; identify
// may have thrown them out.
func (n *Node) refreshAddrs(p peer.ID) {
	addrs := n.givenAddrs(p)
	addrs = append(addrs, n.memory.lookup(p)...)
	if n.lan != nil {
		if info, ok := n.lan.lookup(p); ok {
			addrs = append(addrs, info.Addrs...)
		}
	}
	for _, r := range n.relays {
		for _, a := range r.Addrs {
			if r.ID != p {
				addrs = append(addrs, circuitAddr(a, r.ID))
			}
		}
	}
	n.host.Peerstore().AddAddrs(p, addrs, foundTTL)
}

func (n *Node) givenAddrs(p peer.ID) (addrs []ma.Multiaddr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.wanted[p]; w != nil {
		for _, use := range w.addrs {
			addrs = append(addrs, use.addr)
		}
	}
	return addrs
}

// Open opens a stream to a connected peer, as Kubo's `ipfs p2p` does: nothing
// but multistream-select before the first byte. With a protocol that was used
// before it returns without a round trip: the first Read tells what the peer
// says to it, and fails where the peer says nothing before ctx's deadline.
func (n *Node) Open(ctx context.Context, id, name string) (registry.End, registry.Path, error) {
	s, err := n.open(ctx, id, protocol.ID(name))
	if err != nil {
		return nil, registry.Path{}, err
	}
	end := n.newDialled(ctx, s)
	return end, end.Path(), nil
}

func (n *Node) open(ctx context.Context, id string, name protocol.ID) (network.Stream, error) {
	p, err := peer.Decode(id)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", id, err)
	}
	n.refreshAddrs(p)
	ctx = network.WithAllowLimitedConn(ctx, "tunnel")
	s, err := n.host.NewStream(ctx, p, name)
	if err != nil {
		return nil, openError(name, err)
	}
	return s, nil
}

// openError names the reasons that have a code as resets are named.
func openError(name protocol.ID, err error) error {
	err = fmt.Errorf("open %s: %w", name, err)
	if isNotSupported(err) {
		return &registry.ResetError{Code: proto.CodeNoService, Err: err}
	}
	var se *network.StreamError
	if errors.As(err, &se) {
		return &registry.ResetError{Code: proto.Code(se.ErrorCode), Err: err}
	}
	return err
}

// Ask puts a question to a connected peer: may this node use a protocol, and is
// its service up? Errors: ErrCannotAsk.
func (n *Node) Ask(ctx context.Context, id string, q *proto.Question) (proto.Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	s, err := n.open(ctx, id, proto.AskProtocol)
	if err != nil {
		return proto.Verdict_VERDICT_UNKNOWN, askError(err)
	}
	defer s.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = s.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := proto.WriteQuestion(s, q); err != nil {
		return proto.Verdict_VERDICT_UNKNOWN, askError(err)
	}
	// This fails where the peer has answered and closed already: over QUIC its
	// close cancels our way out.
	_ = s.CloseWrite()
	v, err := proto.ReadAnswer(s)
	if err != nil {
		_ = s.Reset()
		return proto.Verdict_VERDICT_UNKNOWN, askError(err)
	}
	return v, nil
}

func askError(err error) error {
	if isNotSupported(err) {
		return fmt.Errorf("%w: it does not have %s", ErrCannotAsk, proto.AskProtocol)
	}
	return fmt.Errorf("ask: %w", err)
}

// HandleAsk answers peers' questions by f, which gets a context with a
// deadline.
func (n *Node) HandleAsk(f func(ctx context.Context, peer string, q *proto.Question) proto.Verdict) {
	n.host.SetStreamHandler(proto.AskProtocol, func(s network.Stream) {
		if !n.begin() {
			_ = s.Reset()
			return
		}
		defer n.handlers.Done()
		_ = s.SetReadDeadline(time.Now().Add(n.questionLimit(s.Conn().RemotePeer())))
		if err := answer(n.life, s, f); err != nil {
			n.log.Debug("answer a question", "peer", s.Conn().RemotePeer(), "err", err)
			_ = s.ResetWithError(network.StreamProtocolViolation)
			return
		}
		_ = s.Close()
	})
}

// questionLimit is how long a peer may take to send its question.
func (n *Node) questionLimit(p peer.ID) time.Duration {
	if n.isTrusted(p) {
		return askLimit
	}
	return strangerAskLimit
}

// answer reads a question until the stream's read deadline, and answers it.
func answer(ctx context.Context, s network.Stream, f func(ctx context.Context, peer string, q *proto.Question) proto.Verdict) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	_ = s.SetWriteDeadline(time.Now().Add(askLimit))
	q, err := proto.ReadQuestion(s)
	if err != nil {
		return err
	}
	return proto.WriteAnswer(s, f(ctx, s.Conn().RemotePeer().String(), q))
}

// Ping measures one round trip to a connected peer over libp2p's ping, and
// says which way it went.
func (n *Node) Ping(ctx context.Context, id string) (time.Duration, registry.Path, error) {
	p, err := peer.Decode(id)
	if err != nil {
		return 0, registry.Path{}, fmt.Errorf("peer %s: %w", id, err)
	}
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "ping"), pingLimit)
	defer cancel()
	path, _ := n.Path(id)
	select {
	case r, ok := <-ping.Ping(ctx, n.host, p):
		if !ok {
			return 0, path, fmt.Errorf("ping %s: %w", id, ctx.Err())
		}
		if r.Error != nil {
			return 0, path, fmt.Errorf("ping %s: %w", id, r.Error)
		}
		return r.RTT, path, nil
	case <-ctx.Done():
		return 0, path, fmt.Errorf("ping %s: no answer: %w", id, ctx.Err())
	}
}

// Path is the way that a new stream to a peer would go, or false where there
// is no connection. libp2p prefers an unlimited connection, then a direct one,
// then the one with most streams.
func (n *Node) Path(id string) (registry.Path, bool) {
	p, err := peer.Decode(id)
	if err != nil {
		return registry.Path{}, false
	}
	var best network.Conn
	for _, c := range n.host.Network().ConnsToPeer(p) {
		if best == nil || better(c, best) {
			best = c
		}
	}
	if best == nil {
		return registry.Path{}, false
	}
	return n.describe(best), true
}

func better(a, b network.Conn) bool {
	if a.Stat().Limited != b.Stat().Limited {
		return b.Stat().Limited
	}
	aRelayed, bRelayed := isRelayed(a.RemoteMultiaddr()), isRelayed(b.RemoteMultiaddr())
	if aRelayed != bRelayed {
		return bRelayed
	}
	return len(a.GetStreams()) > len(b.GetStreams())
}

// PeerStatus is one connected peer, for `status`.
type PeerStatus struct {
	Peer      string  `json:"peer"`
	Path      string  `json:"path"` // direct, relayed
	Relay     string  `json:"relay,omitempty"`
	Transport string  `json:"transport"`
	Addr      string  `json:"addr"`
	RTTms     float64 `json:"rtt_ms,omitempty"` // 0: not measured yet
	// What is left of the relay's limit; 0 where there is none.
	LimitBytes   int64 `json:"limit_bytes,omitempty"`
	LimitSeconds int64 `json:"limit_seconds,omitempty"`
}

// Peers lists the connected peers, by their IDs.
func (n *Node) Peers() []PeerStatus {
	peers := []PeerStatus{}
	for _, p := range n.host.Network().Peers() {
		path, ok := n.Path(p.String())
		if !ok {
			continue
		}
		s := PeerStatus{
			Peer: p.String(), Path: "direct", Relay: path.Relay, Transport: path.Transport, Addr: path.Addr,
			RTTms: path.RTTms, LimitBytes: path.LimitBytes, LimitSeconds: path.LimitSeconds,
		}
		if path.Relayed {
			s.Path = "relayed"
		}
		if s.RTTms == 0 {
			s.RTTms = float64(n.host.Peerstore().LatencyEWMA(p).Microseconds()) / 1000
		}
		peers = append(peers, s)
	}
	slices.SortFunc(peers, func(a, b PeerStatus) int { return strings.Compare(a.Peer, b.Peer) })
	return peers
}
