package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/time/rate"
)

// libp2p limits how much a peer holds at once, not how often it comes. What
// follows is for strangers alone: peers that are let in nowhere and that no
// tunnel of this node goes to.
const (
	// A stranger may open strangerBurst streams at once and strangerRate more
	// each second; a refusal costs as much as refusalCost streams on top. A
	// forwarder that is refused asks every 5 s, libp2p's own services and a
	// DHT peer open some streams a minute.
	strangerRate  = 20
	strangerBurst = 100
	refusalCost   = 5

	// Who opens more is kept out for banFirst, and twice as long for each
	// further time until banMemory after the last, up to banMost. What arrives within
	// banSettle of a ban, while the connections are being closed, is the same
	// offence.
	banFirst  = time.Minute
	banMost   = time.Hour
	banMemory = time.Hour
	banSettle = 10 * time.Second

	// A peer ID costs nothing, so the address of an offence may connect only
	// watchRate times a second, watchBurst at once, for watchFor.
	watchRate  = 4
	watchBurst = 8
	watchFor   = time.Minute

	// The strangers of one address may connect comeRate times a second,
	// comeBurst at once, as connRate has it: it spares loopback, and each
	// handshake costs us 2 ms. Beyond that the address is watched.
	comeRate  = 4
	comeBurst = 2 * perAddress

	// A handshake that is refused counts as that many strangers: 64 at once are
	// too many.
	halfOpenCost = 2

	// One address may have as many half-open handshakes as are left for the
	// others. Over UDP it has to show that it is not forged when it has more than
	// unproved of them, and everybody when half of all are taken.
	// Over UDP a handshake costs four times the memory, so one address may have no
	// more than 64.
	handshakePart = 1
	quicShakePart = 7
	unproved      = 16

	// One address is asked that askRate times a second, askBurst at once, before
	// its packets are thinned out: a question costs 30 us.
	askRate  = 500
	askBurst = 200

	// maxGuarded bounds each of the guard's tables.
	maxGuarded = 4096

	// closers close offenders' connections: a TLS connection whose peer reads
	// nothing takes 5 s to close.
	closers      = 4
	maxOffenders = 64
	banLogEvery  = 10 * time.Second
	banLogAtOnce = 5
)

var (
	errTooMany   = fmt.Errorf("strangers have too many streams: %w", network.ErrResourceLimitExceeded)
	errTooMuch   = fmt.Errorf("strangers have too much memory: %w", network.ErrResourceLimitExceeded)
	errKeptOut   = errors.New("peer is kept out")
	errFromThere = errors.New("address connects too often after an offence")
	errHalfOpen  = fmt.Errorf("address has too many handshakes: %w", network.ErrResourceLimitExceeded)
)

// guard counts what strangers do and hold, and says who is kept out. Its
// methods may be called from any goroutine, also by libp2p with its locks
// held: they never call back.
type guard struct {
	trusted func(peer.ID) bool
	now     func() time.Time
	log     *slog.Logger
	// sieve is told of a watched address that goes on when it is turned away.
	sieve func(from netip.Prefix)
	// thin is told of an address from which too many packets come that are to be
	// answered with a question for a proof.
	thin func(from netip.Prefix)

	offenders chan offence // to be closed

	mu        sync.Mutex
	strangers *table[peer.ID, *stranger]
	bans      *table[peer.ID, ban]
	watched   *table[netip.Prefix, *watch]
	comers    *table[netip.Prefix, *rate.Limiter] // strangers' addresses
	asked     *table[netip.Prefix, *rate.Limiter] // that were to show that they are not forged
	streams   share[peer.ID]                      // inbound
	memory    share[peer.ID]                      // bytes
	// Inbound connections without a peer, whoever it will be. Relayed ones count
	// as of one address.
	handshakes share[netip.Prefix]
	lines      *rate.Limiter
	untold     int // bans since the last line
}

type stranger struct {
	bucket *rate.Limiter
	from   netip.Prefix // of its last connection to us; not valid if relayed
	quic   bool         // it has come over QUIC
}

type ban struct {
	last  time.Time // of the offence
	until time.Time
	next  time.Duration
}

// watch is an address that connects under an eye.
type watch struct {
	bucket *rate.Limiter
	until  time.Time
	turned int // away since the last that was let in
}

// offence is what a closer has to do and to tell.
type offence struct {
	peer   peer.ID
	from   netip.Prefix
	outFor time.Duration
	tell   bool
	untold int
}

func newGuard(trusted func(peer.ID) bool, log *slog.Logger) *guard {
	return &guard{
		trusted:    trusted,
		now:        time.Now,
		log:        log,
		sieve:      func(netip.Prefix) {},
		thin:       func(netip.Prefix) {},
		offenders:  make(chan offence, maxOffenders),
		strangers:  newTable[peer.ID, *stranger](maxGuarded),
		bans:       newTable[peer.ID, ban](maxGuarded),
		watched:    newTable[netip.Prefix, *watch](maxGuarded),
		comers:     newTable[netip.Prefix, *rate.Limiter](maxGuarded),
		asked:      newTable[netip.Prefix, *rate.Limiter](maxGuarded),
		streams:    newShare[peer.ID](strangersStreams),
		memory:     newShare[peer.ID](strangersMemory),
		handshakes: newShare[netip.Prefix](halfOpen),
		lines:      rate.NewLimiter(rate.Every(banLogEvery), banLogAtOnce),
	}
}

// enter asks for an inbound stream, before anything is negotiated for it.
// leave, which may be nil, is to be called once when the stream has ended,
// whatever the peer has become by then.
func (g *guard) enter(p peer.ID) (leave func(), err error) {
	if g.trusted(p) {
		return nil, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if !g.pay(p, 1, now) || g.banned(p, now) {
		return nil, errKeptOut
	}
	if !g.streams.take(p, 1, fairPart) {
		return nil, errTooMany
	}
	size := 0 // yamux reserves it by itself
	if g.stranger(p, now).quic {
		size = quicMemory
	}
	if !g.memory.take(p, size, fairPart) {
		g.streams.give(p, 1)
		return nil, errTooMuch
	}
	return func() { g.leave(p, size) }, nil
}

func (g *guard) leave(p peer.ID, size int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.streams.give(p, 1)
	g.memory.give(p, size)
}

// refused charges a stranger for a question or a stream that was refused.
func (g *guard) refused(p peer.ID) {
	if g.trusted(p) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pay(p, refusalCost, g.now())
}

// pay takes tokens from a stranger's bucket; where there are too few it is an
// offence. The lock is held.
func (g *guard) pay(p peer.ID, tokens int, now time.Time) bool {
	s := g.stranger(p, now)
	if s.bucket.AllowN(now, tokens) {
		return true
	}
	s.bucket = rate.NewLimiter(strangerRate, strangerBurst) // for what comes after it
	g.offend(p, s.from, now)
	return false
}

func (g *guard) stranger(p peer.ID, now time.Time) *stranger {
	s, ok := g.strangers.get(p)
	if !ok {
		s = &stranger{bucket: rate.NewLimiter(strangerRate, strangerBurst)}
		g.strangers.put(p, s, func(s *stranger) bool { return s.bucket.TokensAt(now) >= strangerBurst })
	}
	return s
}

func (g *guard) offend(p peer.ID, from netip.Prefix, now time.Time) {
	o := offence{peer: p, from: from}
	b, ok := g.bans.get(p)
	if !ok || now.Sub(b.until) > banMemory {
		b = ban{next: banFirst}
	}
	if now.Sub(b.last) > banSettle {
		o.outFor = b.next
		b = ban{last: now, until: now.Add(b.next), next: min(2*b.next, banMost)}
		g.bans.put(p, b, func(b ban) bool { return now.After(b.until) })
		g.watch(from, now)
		if o.tell = g.lines.AllowN(now, 1); o.tell {
			o.untold, g.untold = g.untold, 0
		} else {
			g.untold++
		}
	}
	g.dismiss(o)
}

// dismiss has a peer's connections closed. Where too many wait for it, the
// peer's next offence brings it here again.
func (g *guard) dismiss(o offence) {
	select {
	case g.offenders <- o:
	default:
	}
}

// serve closes what offenders have until ctx ends. Several may run.
func (g *guard) serve(ctx context.Context, closePeer func(peer.ID)) {
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-g.offenders:
			g.punish(o, closePeer)
		}
	}
}

func (g *guard) punish(o offence, closePeer func(peer.ID)) {
	if o.tell {
		g.log.Info("a stranger opened too many streams and is kept out",
			"peer", o.peer, "from", o.from, "for", o.outFor, "others_since_last_line", o.untold)
	}
	if !g.trusted(o.peer) {
		closePeer(o.peer)
	}
}

// keepsOut says whether a peer is not to connect now. Trust ends a ban.
func (g *guard) keepsOut(p peer.ID) bool {
	trusted := g.trusted(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	if trusted {
		g.bans.delete(p)
		return false
	}
	return g.banned(p, g.now())
}

func (g *guard) banned(p peer.ID, now time.Time) bool {
	b, ok := g.bans.get(p)
	return ok && now.Before(b.until)
}

// came notes where a stranger's connection comes from, and how.
func (g *guard) came(p peer.ID, from netip.Prefix, quic bool) {
	if g.trusted(p) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	s := g.stranger(p, now)
	s.from = from
	s.quic = s.quic || quic
	g.count(from, 1, now)
}

// count takes tokens from the bucket of an address, which is watched where
// there are too few. The lock is held.
func (g *guard) count(from netip.Prefix, tokens int, now time.Time) {
	if from.IsValid() && !g.comer(from, now).AllowN(now, tokens) {
		g.watch(from, now)
	}
}

func (g *guard) comer(from netip.Prefix, now time.Time) *rate.Limiter {
	return bucketOf(g.comers, from, now, comeRate, comeBurst)
}

// bucketOf is an address's bucket in a table, a full one at first.
func bucketOf(in *table[netip.Prefix, *rate.Limiter], from netip.Prefix, now time.Time, often rate.Limit, burst int) *rate.Limiter {
	b, ok := in.get(from)
	if !ok {
		b = rate.NewLimiter(often, burst)
		in.put(from, b, func(b *rate.Limiter) bool { return b.TokensAt(now) >= float64(burst) })
	}
	return b
}

// crowded is told of a stranger whose connection ends for want of memory. That
// is no offence, where others have it, but its address may not go on like that.
func (g *guard) crowded(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	g.watch(g.stranger(p, now).from, now)
}

// insist is a try of one that is kept out: each costs us a handshake, so its
// address is watched on.
func (g *guard) insist(from netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watch(from, g.now())
}

func (g *guard) watch(from netip.Prefix, now time.Time) {
	if !from.IsValid() {
		return
	}
	w, ok := g.watched.get(from)
	if !ok {
		w = &watch{bucket: rate.NewLimiter(watchRate, watchBurst)}
		g.watched.put(from, w, func(w *watch) bool { return now.After(w.until) })
	}
	w.until = now.Add(watchFor)
}

// admits says whether a connection may come from an address, before anything
// is done for it. Over UDP a watched address has shown by then that it is not
// forged (suspects), so nobody else gets it sieved.
func (g *guard) admits(from netip.Prefix) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if !g.isWatched(from, now) {
		return true
	}
	w, _ := g.watched.get(from)
	if w.bucket.AllowN(now, 1) {
		w.turned = 0
		return true
	}
	if w.turned++; w.turned >= sieveAfter {
		g.sieve(from)
	}
	return false
}

// suspects says whether an address has to show, over UDP, that it is not forged:
// before that costs it a token, or a handshake that others want.
func (g *guard) suspects(from netip.Prefix) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	h, now := &g.handshakes, g.now()
	if h.held[from] < unproved && h.used < halfOpen/2 && !g.isWatched(from, now) {
		return false
	}
	if !bucketOf(g.asked, from, now, askRate, askBurst).AllowN(now, 1) {
		g.thin(from)
	}
	return true
}

// begin asks for a handshake, from whomever. end, which may be called more than
// once, is to be called when it has ended, well or not.
func (g *guard) begin(from netip.Prefix, quic bool) (end func(), err error) {
	part := handshakePart
	if quic {
		part = quicShakePart
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.handshakes.take(from, 1, part) {
		g.count(from, halfOpenCost, g.now())
		return nil, errHalfOpen
	}
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.handshakes.give(from, 1)
	}), nil
}

func (g *guard) isWatched(from netip.Prefix, now time.Time) bool {
	w, ok := g.watched.get(from)
	if ok && now.After(w.until) {
		g.watched.delete(from)
		ok = false
	}
	return ok
}

// reserve takes memory for a stranger; what it gives must be given back by
// release.
func (g *guard) reserve(p peer.ID, size, part int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.memory.take(p, size, part)
}

func (g *guard) release(p peer.ID, size int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.memory.give(p, size)
}

// share is what strangers may hold together of something.
type share[K comparable] struct {
	total, used int
	held        map[K]int
}

func newShare[K comparable](total int) share[K] {
	return share[K]{total: total, held: map[K]int{}}
}

// take takes n for a peer, or an address, unless it would then hold more than the part-th of
// what is free. So k that take all that they can leave part/(part+k) of the
// total, and whoever comes next finds some.
func (s *share[K]) take(p K, n, part int) bool {
	if (s.held[p]+n)*part > s.total-s.used {
		return false
	}
	s.held[p] += n
	s.used += n
	return true
}

func (s *share[K]) give(p K, n int) {
	s.used -= n
	if s.held[p] -= n; s.held[p] <= 0 {
		delete(s.held, p)
	}
}

// netOf is the net that one customer has: an IPv4 address, an IPv6 /56. There
// is none for a relayed address, which is the relay's.
func netOf(addr ma.Multiaddr) (from netip.Prefix) {
	if addr == nil || isRelayed(addr) {
		return from
	}
	raw, err := manet.ToIP(addr)
	if err != nil {
		return from
	}
	ip, ok := netip.AddrFromSlice(raw)
	if !ok {
		return from
	}
	return netOfIP(ip)
}

func netOfIP(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 56
	}
	from, _ := ip.Prefix(bits)
	return from
}
