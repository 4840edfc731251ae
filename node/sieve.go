package node

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"
)

// Whoever is turned away has cost us an accept, or a packet to be decrypted and
// answered. An address that goes on all the same is sieved: for about a second
// the kernel drops what would begin a connection from there, at a thousandth of
// the cost. What is connected already goes on.

const (
	// sieveAfter is how often a watched address is turned away in a row before
	// it is sieved.
	sieveAfter = 8
	// sieveLeast and sieveMost bound how long: then the address has tokens again.
	// It is not the same each time, or the second try of an honest SYN, after
	// 1 s (RFC 6298), would always find the sieve as the first did.
	sieveLeast = 750 * time.Millisecond
	sieveMost  = 1250 * time.Millisecond
	// thinLeast and thinMost bound how long all packets from an address that would
	// begin a connection over QUIC are dropped where there are too many, forged ones
	// for what we know. Between such times an honest one comes through.
	thinLeast = 50 * time.Millisecond
	thinMost  = 250 * time.Millisecond
	// sieveRoom bounds the nets in the sieve: the kernel compares them one by one,
	// and has 20 KiB for a socket's filters.
	sieveRoom = 128
	// The kernel gets a new filter sieveRate times a second, sieveBurst at once.
	sieveRate  = 10
	sieveBurst = 4
)

// sieve keeps nets from beginning connections with this node's sockets, where
// the system can (Linux). Its methods may be called from any goroutine.
type sieve struct {
	log  *slog.Logger
	hold func() time.Duration // for how long a net is kept out

	changed chan struct{} // something is to be applied

	mu      sync.Mutex
	nets    map[netip.Prefix]sieved
	sockets []sievedSocket
	stale   bool // the sockets have another filter than nets says
}

// sieved is what is done with a net.
type sieved struct {
	until time.Time
	thin  bool // over UDP alone
}

// sievedSocket is a TCP listener, or a socket for QUIC.
type sievedSocket struct {
	raw    syscall.RawConn
	stream bool // TCP
}

func newSieve(log *slog.Logger) *sieve {
	return &sieve{
		log:     log,
		hold:    func() time.Duration { return sieveLeast + rand.N(sieveMost-sieveLeast) },
		changed: make(chan struct{}, 1),
		nets:    map[netip.Prefix]sieved{},
	}
}

// keepOut puts a net into the sieve for a while, if there is room. serve applies
// it. The net is one of netOf's.
func (s *sieve) keepOut(from netip.Prefix) {
	s.put(from, sieved{until: time.Now().Add(s.hold())})
}

// thin is keepOut over UDP alone, and shorter: the packets from there may be
// forged.
func (s *sieve) thin(from netip.Prefix) {
	s.put(from, sieved{until: time.Now().Add(thinLeast + rand.N(thinMost-thinLeast)), thin: true})
}

func (s *sieve) put(from netip.Prefix, n sieved) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, already := s.nets[from]
	if already && (!old.thin || n.thin) || !from.IsValid() || !already && len(s.nets) >= sieveRoom {
		return
	}
	s.nets[from] = n
	s.change()
}

// watch adds a socket, until it is closed.
func (s *sieve) watch(of syscall.Conn, stream bool) {
	raw, err := of.SyscallConn()
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
	s.sockets = append(s.sockets, sievedSocket{raw, stream})
	if len(s.nets) > 0 {
		s.change()
	}
}

// forget drops the sockets that are closed. The lock is held.
func (s *sieve) forget() {
	var live []sievedSocket
	for _, k := range s.sockets {
		if k.raw.Control(func(uintptr) {}) == nil {
			live = append(live, k)
		}
	}
	s.sockets = live
}

// change has serve apply what is new. The lock is held.
func (s *sieve) change() {
	s.stale = true
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// serve keeps the sockets' filters as they are to be until ctx ends.
func (s *sieve) serve(ctx context.Context) {
	pace := rate.NewLimiter(sieveRate, sieveBurst)
	expiry := time.NewTimer(0)
	defer expiry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
		case <-expiry.C:
		}
		if pace.Wait(ctx) != nil {
			return
		}
		if next, any := s.apply(time.Now()); any {
			expiry.Reset(time.Until(next))
		}
	}
}

// apply lets out what has been in the sieve long enough, tells the kernel, and
// says when to come again.
func (s *sieve) apply(now time.Time) (next time.Time, any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for from, n := range s.nets {
		if !now.Before(n.until) {
			delete(s.nets, from)
			s.stale = true
			continue
		}
		if next.IsZero() || n.until.Before(next) {
			next = n.until
		}
	}
	if s.stale {
		s.stale = false
		s.forget()
		s.setFilters()
	}
	return next, len(s.nets) > 0
}

// setFilters has every socket drop what begins a connection from the nets. The
// lock is held.
func (s *sieve) setFilters() {
	var tcp, udp []netip.Prefix
	for from, n := range s.nets {
		udp = append(udp, from)
		if !n.thin {
			tcp = append(tcp, from)
		}
	}
	f, err := newFilters(tcp, udp)
	if err != nil {
		s.log.Debug("make a sieve", "nets", len(udp), "err", err)
		return
	}
	for _, k := range s.sockets {
		var failed error
		err := k.raw.Control(func(fd uintptr) { failed = f.set(int(fd), k.stream) })
		if err == nil && failed != nil {
			s.log.Debug("set a sieve", "nets", len(udp), "err", failed)
		}
	}
}
