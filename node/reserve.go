package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/quic-go/quic-go"
)

// Reservations: a relay carries connections to who has a slot there (libp2p
// specs: circuit relay v2). libp2p's AutoRelay makes them once it is sure that
// the node is private; a relay that somebody has named is used at once here,
// and whether the node is public makes no difference: its own addresses stay.

const (
	// reserveLimit bounds one attempt; every longAttempt-th may take longLimit,
	// for a relay far away. A short limit is what finds one that has come back.
	reserveLimit = 3 * time.Second
	longLimit    = 12 * time.Second
	longAttempt  = 4
	// soonPause is between attempts that nobody has answered, the first
	// soonAttempts since the network changed: an address comes before the way
	// out. Others have reservePause at least.
	reservePause = time.Second
	soonPause    = 100 * time.Millisecond
	soonAttempts = 300
	// reserveEarly is how long before its end a reservation is made anew.
	reserveEarly = 5 * time.Minute
	// relayTag keeps the connection to a relay from being trimmed.
	relayTag = "p2ptun relay"
	// circuitsEach bounds the addresses through one relay.
	circuitsEach = 2
)

// reserver holds a slot at each relay that it serves.
type reserver struct {
	host    host.Host
	log     *slog.Logger
	watch   func(id string) (up bool, changed <-chan struct{})
	changed func() // the addresses may have changed

	mu    sync.Mutex
	held  map[peer.ID]RelayStatus
	tell  chan struct{} // closed when held changes
	moved chan struct{} // closed when this machine's addresses change
}

// RelayStatus is a relay of this node, for `status`.
type RelayStatus struct {
	Relay string `json:"relay"`
	// Reserved: it carries connections to this node now. Error is why not.
	Reserved bool   `json:"reserved"`
	Error    string `json:"error,omitempty"`
	// Limits of one relayed connection; zero for none.
	LimitSeconds int64     `json:"limit_seconds,omitempty"`
	LimitBytes   uint64    `json:"limit_bytes,omitempty"`
	Until        time.Time `json:"until,omitzero"`

	addrs []ma.Multiaddr
}

// newReserver makes one whose host is set before serve is called.
func newReserver(log *slog.Logger, watch func(string) (bool, <-chan struct{}), changed func()) *reserver {
	return &reserver{log: log, watch: watch, changed: changed, held: map[peer.ID]RelayStatus{}, tell: make(chan struct{}), moved: make(chan struct{})}
}

// serve keeps a slot at one relay until ctx ends.
func (r *reserver) serve(ctx context.Context, relay peer.AddrInfo) {
	r.host.ConnManager().Protect(relay.ID, relayTag)
	defer r.host.ConnManager().Unprotect(relay.ID, relayTag)
	for attempt := 1; ctx.Err() == nil; attempt++ {
		slot, err := r.reserve(ctx, relay, attempt)
		if err != nil {
			r.set(relay.ID, RelayStatus{Error: err.Error()})
			if r.pause(ctx, relay.ID, attempt, err) {
				attempt = 0
			}
			continue
		}
		attempt = 0
		r.set(relay.ID, r.describe(relay, slot))
		r.keep(ctx, relay.ID, slot.Expiration)
	}
	r.set(relay.ID, RelayStatus{Error: "stopped"})
}

func (r *reserver) reserve(ctx context.Context, relay peer.AddrInfo, attempt int) (*client.Reservation, error) {
	limit := reserveLimit
	if attempt%longAttempt == 0 {
		limit = longLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	clearBackoff(r.host, relay.ID)
	r.host.Peerstore().AddAddrs(relay.ID, relay.Addrs, peerstore.PermanentAddrTTL)
	ctx = network.WithForceDirectDial(ctx, "relay")
	if err := r.host.Connect(ctx, peer.AddrInfo{ID: relay.ID}); err != nil {
		return nil, dialError{err}
	}
	slot, err := client.Reserve(ctx, r.host, peer.AddrInfo{ID: relay.ID})
	if err != nil {
		return nil, fmt.Errorf("relay %s: %w", relay.ID, err)
	}
	return slot, nil
}

// pause waits before the next attempt, soonPause at least. Another address of this
// machine ends it, and a connection that comes in place of one that could not be
// made. What a relay refuses is asked for less and less often.
func (r *reserver) pause(ctx context.Context, relay peer.ID, attempt int, err error) (moved bool) {
	_, changed := r.watch(relay.String())
	ways, pause := r.ways(), reservePause
	switch {
	case !errors.As(err, new(dialError)):
		changed, pause = nil, min(reservePause<<min(attempt, 6), time.Minute)
	case attempt <= soonAttempts && isSilent(err):
		pause = soonPause
	}
	select {
	case <-time.After(soonPause):
	case <-ctx.Done():
	}
	select {
	case <-ways:
		return true
	case <-changed:
	case <-time.After(pause - soonPause):
	case <-ctx.Done():
	}
	return false
}

// ways is closed when this machine's addresses have changed.
func (r *reserver) ways() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.moved
}

// wake has the relays tried at once: this machine's addresses have changed.
func (r *reserver) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.moved)
	r.moved = make(chan struct{})
}

// isSilent says that a dial has failed without a word of the peer's but that
// nothing listens there.
func isSilent(err error) bool {
	var de *swarm.DialError
	if !errors.As(err, &de) || len(de.DialErrors) == 0 {
		return errors.Is(err, context.DeadlineExceeded)
	}
	return !slices.ContainsFunc(de.DialErrors, func(e swarm.TransportError) bool { return !isSilence(e.Cause) })
}

func isSilence(err error) bool {
	var timeout net.Error
	var quicErr *quic.TransportError
	return errors.As(err, &timeout) && timeout.Timeout() ||
		errors.As(err, &quicErr) && !quicErr.Remote || // no way out
		errors.Is(err, context.DeadlineExceeded) ||
		slices.ContainsFunc(silences, func(s error) bool { return errors.Is(err, s) })
}

// silences are errors of a socket.
var silences = []error{syscall.ECONNREFUSED, syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, context.Canceled}

// keep returns when the slot is to be made anew: it ends soon, or the
// connection to the relay is lost, and the slot with it.
func (r *reserver) keep(ctx context.Context, relay peer.ID, until time.Time) {
	left := time.Until(until)
	again := time.After(max(left-reserveEarly, left/2))
	for {
		up, changed := r.watch(relay.String())
		if !up {
			r.set(relay, RelayStatus{Error: "connection lost"})
			return
		}
		select {
		case <-changed:
		case <-again:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (r *reserver) describe(relay peer.AddrInfo, slot *client.Reservation) RelayStatus {
	s := RelayStatus{Reserved: true, LimitSeconds: int64(slot.LimitDuration / time.Second), LimitBytes: slot.LimitData, Until: slot.Expiration}
	vouched := slices.DeleteFunc(slices.Clone(slot.Addrs), func(a ma.Multiaddr) bool { return !farAddr(a) })
	for _, a := range slices.Concat(relay.Addrs, vouched) {
		transport, _ := peer.SplitAddr(a)
		if len(transport) == 0 || has(transport, ma.P_CIRCUIT) || len(s.addrs) >= circuitsEach {
			continue
		}
		if c := circuitAddr(transport, relay.ID); !ma.Contains(s.addrs, c) {
			s.addrs = append(s.addrs, c)
		}
	}
	return s
}

// circuitAddr is the address through a relay.
func circuitAddr(relayAddr ma.Multiaddr, relay peer.ID) ma.Multiaddr {
	return relayAddr.Encapsulate(ma.StringCast("/p2p/" + relay.String() + "/p2p-circuit"))
}

func (r *reserver) set(relay peer.ID, s RelayStatus) {
	s.Relay = relay.String()
	r.mu.Lock()
	was := r.held[relay]
	r.held[relay] = s
	close(r.tell)
	r.tell = make(chan struct{})
	r.mu.Unlock()
	if was.Reserved != s.Reserved || !slices.EqualFunc(was.addrs, s.addrs, ma.Multiaddr.Equal) {
		r.log.Info("relay", "relay", relay, "reserved", s.Reserved, "err", s.Error)
		r.changed()
	}
}

// addrs are this node's addresses through its relays.
func (r *reserver) addrs() (addrs []ma.Multiaddr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.held {
		addrs = append(addrs, s.addrs...)
	}
	return addrs
}

// list is each relay, by its ID.
func (r *reserver) list() []RelayStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []RelayStatus{}
	for _, s := range r.held {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b RelayStatus) int { return strings.Compare(a.Relay, b.Relay) })
	return list
}
