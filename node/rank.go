package node

import (
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
