package node

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
)

// connFrom is a connection of which only this is known.
type connFrom struct {
	network.Conn
	from   string
	opened time.Time
}

func (c connFrom) RemoteMultiaddr() ma.Multiaddr { return ma.StringCast(c.from) }
func (c connFrom) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Opened: c.opened}}
}

func TestAPeerThatHasMovedHasLeftItsOlderConnections(t *testing.T) {
	const (
		here    = "/ip4/192.0.2.1/tcp/1"
		there   = "/ip4/198.51.100.1/tcp/1"
		v6      = "/ip6/2001:db8::1/tcp/1"
		relayed = "/ip4/198.51.100.1/tcp/1/p2p/12D3KooWQ1R9B2rXM5Suh2qzon46fiA3V3rZ1fen8yp3ncQCX944/p2p-circuit"
		quick   = 10 * time.Millisecond
		long    = staleAge + quick
	)
	for _, c := range []struct {
		old, now string
		age      time.Duration
		before   bool
	}{
		{here, there, quick, true},
		{here, there, long, true},
		{there, here, -quick, false}, // the newer one stays
		{here, "/ip4/192.0.2.1/udp/2/quic-v1", quick, false},
		{here, here, long, true},
		{here, v6, quick, false}, // one dial, both families
		{here, v6, long, true},
		{here, relayed, quick, false},
		{here, here, 0, false},
	} {
		now := time.Now()
		if got := isBefore(connFrom{from: c.old, opened: now.Add(-c.age)}, connFrom{from: c.now, opened: now}); got != c.before {
			t.Errorf("%s, then %s after %s: %t", c.old, c.now, c.age, got)
		}
	}
}
