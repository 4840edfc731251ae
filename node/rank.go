package node

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
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
)

// rankDials tries direct TCP first, then QUIC, then relays; libp2p's default
// ends on QUIC, whose 257th stream hangs and which costs three times the CPU.
// Within each group libp2p's own order (RFC 8305) holds.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	var tcp, other, relayed []ma.Multiaddr
	quicDelay := quicDelayPrivate
	for _, a := range addrs {
		switch {
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
	return appendLater(ranked, relayed, relayDelay)
}

// witnesses are the addresses of helpers that are dialled over QUIC first. A
// hole can be punched over a transport only where somebody public has seen us
// come over it: so of several helpers every second one is reached by QUIC.
type witnesses map[string]struct{}

// newWitnesses takes the helpers in the order in which they are named.
func newWitnesses(groups ...[]peer.AddrInfo) witnesses {
	w, known := witnesses{}, map[peer.ID]bool{}
	for _, box := range slices.Concat(groups...) {
		if known[box.ID] {
			continue
		}
		known[box.ID] = true
		for _, a := range box.Addrs {
			if len(known)%2 == 0 && has(a, ma.P_QUIC_V1) {
				w[a.String()] = struct{}{}
			}
		}
	}
	return w
}

// rank is rankDials, but for witnesses: QUIC first, then the others.
func (w witnesses) rank(addrs []ma.Multiaddr) []network.AddrDelay {
	var quic, rest []ma.Multiaddr
	for _, a := range addrs {
		if _, first := w[a.String()]; first {
			quic = append(quic, a)
		} else {
			rest = append(rest, a)
		}
	}
	if len(quic) == 0 {
		return rankDials(addrs)
	}
	ranked := swarm.DefaultDialRanker(quic)
	for _, a := range rankDials(rest) {
		a.Delay += quicDelayPublic
		ranked = append(ranked, a)
	}
	return ranked
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
