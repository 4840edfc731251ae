package node

import (
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// How much later the second choice is dialled, where the first has not
// answered. Where the first fails, the next is dialled at once.
const (
	quicDelayPrivate = 150 * time.Millisecond
	quicDelayPublic  = 500 * time.Millisecond
	relayDelay       = time.Second
	// relayDelayAgain is for a peer that no other way led to before: a LAN
	// answers sooner.
	relayDelayAgain = 200 * time.Millisecond
)

// ranker says in which order addresses are dialled. The zero value works.
type ranker struct {
	again atomic.Int32 // dials under way to peers that were reached through a relay last
}

// redial notes a dial to a peer that was reached through a relay last, until
// the returned func is called. libp2p does not say whose addresses it has
// ranked, so what else is dialled meanwhile is ranked alike: at worst it comes
// through a relay first, and leaves it.
func (r *ranker) redial() (end func()) {
	r.again.Add(1)
	return func() { r.again.Add(-1) }
}

func (r *ranker) rank(addrs []ma.Multiaddr) []network.AddrDelay {
	if r.again.Load() > 0 {
		return rankDials(addrs, relayDelayAgain)
	}
	return rankDials(addrs, relayDelay)
}

// rankDials tries direct TCP first, then QUIC, then relays; libp2p's default
// ends on QUIC, whose 257th stream hangs and which costs three times the CPU.
// Within each group libp2p's own order (RFC 8305) holds. A circuit of a peer
// that a relay led to a moment ago does not wait: see circuits.
func rankDials(addrs []ma.Multiaddr, relayDelay time.Duration) []network.AddrDelay {
	var tcp, other, relayed, numbered []ma.Multiaddr
	quicDelay := quicDelayPrivate
	for _, a := range addrs {
		switch {
		case isNumbered(a):
			numbered = append(numbered, a)
		case isRelayed(a):
			relayed = append(relayed, a)
		case has(a, ma.P_TCP):
			tcp = append(tcp, a)
		default:
			other = append(other, a)
		}
		if !isRelayed(a) && manet.IsPublicAddr(a) {
			quicDelay = quicDelayPublic
		}
	}
	ranked := swarm.DefaultDialRanker(tcp)
	ranked = appendLater(ranked, other, quicDelay)
	ranked = appendLater(ranked, relayed, relayDelay)
	return append(ranked, swarm.NoDelayDialRanker(numbered)...)
}

// appendLater ranks addrs after what is ranked already, if anything is.
func appendLater(ranked []network.AddrDelay, addrs []ma.Multiaddr, delay time.Duration) []network.AddrDelay {
	if len(ranked) == 0 {
		delay = 0
	}
	for _, a := range swarm.DefaultDialRanker(addrs) {
		a.Delay += delay
		ranked = append(ranked, a)
	}
	return ranked
}

func isRelayed(a ma.Multiaddr) bool { return has(a, ma.P_CIRCUIT) }

func has(a ma.Multiaddr, code int) bool {
	_, err := a.ValueForProtocol(code)
	return err == nil
}
