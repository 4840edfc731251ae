package node

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"p2ptun/home"
)

// Where peers were reached before is written down, and dialled first the next
// time. It is a convenience: a file that can't be read is as none.

// Bounds of what is remembered.
const (
	maxKnown      = 256
	maxKnownAddrs = 4
	// rememberFor is how long an address that was good is tried.
	rememberFor = 30 * 24 * time.Hour
)

type knownPeer struct {
	Addrs []string  `json:"addrs"` // the last good one first
	Last  time.Time `json:"last"`
}

// memory remembers the addresses that peers were reached at.
type memory struct {
	path  string
	log   *slog.Logger
	dirty chan struct{} // holds one while the file is to be written

	mu    sync.Mutex
	peers map[string]knownPeer // by ID
}

func newMemory(path string, log *slog.Logger) *memory {
	m := &memory{path: path, log: log, dirty: make(chan struct{}, 1), peers: map[string]knownPeer{}}
	if path == "" {
		return m
	}
	data, err := home.ReadFile(path)
	if err != nil {
		return m
	}
	if err := json.Unmarshal(data, &m.peers); err != nil || m.peers == nil {
		log.Warn("addresses of earlier runs", "path", path, "err", err)
		m.peers = map[string]knownPeer{}
	}
	m.bound()
	return m
}

// lookup gives the addresses that were good, best first.
func (m *memory) lookup(p peer.ID) (addrs []ma.Multiaddr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.peers[p.String()]
	if time.Since(known.Last) > rememberFor {
		return nil
	}
	for _, text := range known.Addrs {
		if a, err := ma.NewMultiaddr(text); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// good notes that a peer was reached at an address by a dial of ours. It does
// not wait for the disk.
func (m *memory) good(p peer.ID, a ma.Multiaddr) {
	id, text := p.String(), a.String()
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.peers[id]
	if m.path == "" || slices.Contains(known.Addrs, text) && time.Since(known.Last) < time.Hour {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(known.Addrs), func(t string) bool { return t == text })
	m.peers[id] = knownPeer{Addrs: append([]string{text}, rest...), Last: time.Now()}
	m.bound()
	select {
	case m.dirty <- struct{}{}:
	default:
	}
}

// serve writes the file after changes, until ctx ends.
func (m *memory) serve(ctx context.Context) {
	for {
		select {
		case <-m.dirty:
			m.write()
		case <-ctx.Done():
			select {
			case <-m.dirty:
				m.write()
			default:
			}
			return
		}
	}
}

func (m *memory) write() {
	m.mu.Lock()
	data, err := json.MarshalIndent(m.peers, "", "  ")
	m.mu.Unlock()
	if err == nil {
		err = home.WriteFile(m.path, append(data, '\n'))
	}
	if err != nil {
		m.log.Info("remember an address", "err", err)
	}
}

// bound drops what is too much, the oldest first.
func (m *memory) bound() {
	for id, k := range m.peers {
		if len(k.Addrs) > maxKnownAddrs {
			k.Addrs = k.Addrs[:maxKnownAddrs]
			m.peers[id] = k
		}
	}
	for len(m.peers) > maxKnown {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(m.peers)), func(a, b string) int {
			return cmp.Or(m.peers[a].Last.Compare(m.peers[b].Last), cmp.Compare(a, b))
		})
		delete(m.peers, oldest)
	}
}
