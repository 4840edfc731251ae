package node

import (
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
)

const (
	// maxFound bounds the peers of the LAN that are remembered; the oldest
	// goes. Anybody on the LAN can announce any number.
	maxFound = 1024
	// askAgain is how often at most the LAN is asked anew for a peer.
	askAgain = 3 * time.Second
)

// lan finds peers on the local network by mDNS (specs: discovery/mdns).
type lan struct {
	host  host.Host
	log   *slog.Logger
	found func(peer.ID)

	mu      sync.Mutex
	service mdns.Service
	asked   time.Time
	closed  bool
	addrs   map[peer.ID]peer.AddrInfo
	order   []peer.ID
}

func newLAN(h host.Host, log *slog.Logger, found func(peer.ID)) *lan {
	return &lan{host: h, log: log, found: found, addrs: map[peer.ID]peer.AddrInfo{}}
}

// HandlePeerFound implements mdns.Notifee.
func (l *lan) HandlePeerFound(info peer.AddrInfo) {
	l.mu.Lock()
	if _, known := l.addrs[info.ID]; !known {
		if len(l.order) >= maxFound {
			delete(l.addrs, l.order[0])
			l.order = l.order[1:]
		}
		l.order = append(l.order, info.ID)
	}
	l.addrs[info.ID] = info
	l.mu.Unlock()
	l.found(info.ID)
}

// lookup gives what the LAN has said of a peer.
func (l *lan) lookup(p peer.ID) (peer.AddrInfo, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	info, ok := l.addrs[p]
	return info, ok
}

// ask asks who else is there, at most once in a while.
func (l *lan) ask() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.asked) >= askAgain {
		l.start()
	}
}

// announce says this node's addresses of now, and asks.
func (l *lan) announce() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start()
}

// start begins anew. A machine without a network that carries multicast is no
// error: it has no LAN.
func (l *lan) start() {
	if l.closed {
		return
	}
	l.asked = time.Now()
	l.stop()
	s := mdns.NewMdnsService(l.host, mdns.ServiceName, l)
	if err := s.Start(); err != nil {
		l.log.Debug("no LAN discovery", "err", err)
		return
	}
	l.service = s
}

func (l *lan) stop() {
	if l.service != nil {
		_ = l.service.Close()
		l.service = nil
	}
}

func (l *lan) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.stop()
}
