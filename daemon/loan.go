package daemon

import (
	"slices"
	"sync"

	"p2ptun/access"
)

// maxLent bounds the peers that are let in for the life of one tunnel while it
// runs.
const maxLent = 1000

// loans are rights that end with a tunnel: those of its flags, and those that
// its owner gave while it ran.
type loans struct {
	mu    sync.Mutex
	ended bool
	peers []string
	ends  []func()
}

// add keeps the end of a right. It reports false where there are too many, or
// the tunnel has ended.
func (l *loans) add(peer string, lend func() (end func())) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Contains(l.peers, peer) {
		return true
	}
	if l.ended || len(l.peers) >= maxLent {
		return false
	}
	l.peers = append(l.peers, peer)
	l.ends = append(l.ends, lend())
	return true
}

// end takes all back.
func (l *loans) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	for _, end := range l.ends {
		end()
	}
	l.ends, l.peers = nil, nil
}

func (l *loans) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.peers)
}

// lend lets a peer in for as long as the tunnel lives.
func (r *run) lend(table *access.Table, peer string) bool {
	return r.loans.add(peer, func() (end func()) {
		return table.Lend(r.entry.Tunnel.Protocol, []string{peer}, false)
	})
}

// lentPeers lists those that were let in while the tunnel ran.
func (r *run) lentPeers() []string { return r.loans.list() }
