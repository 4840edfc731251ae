//go:build !race

package registry

import "testing"

// A throttle is there for every stream that a rule may limit one day; until
// then, and while the bucket holds enough, it costs no allocation.
func TestAThrottleThatHoldsNothingBackAllocatesNothing(t *testing.T) {
	for _, rate := range []int64{0, 1 << 40} {
		g := newRigOf(t, Tunnel{MaxRate: rate})
		client, local := tcpPair(t)
		peer, remote := tcpPair(t)
		s := &Stream{Throttle: g.entry.Throttle("p", func() int64 { return rate })}
		must(t, g.Pipe(g.entry, s, connEndOf(t, local), connEndOf(t, remote)))
		for _, size := range []int{1, 2 << 10, 64 << 10} {
			wantNoAllocs(t, "tcp", client, peer, size)
			wantNoAllocs(t, "tcp", peer, client, size)
		}
	}
}
