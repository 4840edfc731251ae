package daemon

import (
	"bytes"
	"cmp"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/pnet"

	"p2ptun/home"
	"p2ptun/node"
	"p2ptun/proto"
)

// Hosting is how the owner of a home runs its node.
type Hosting struct {
	// ListenAddrs are multiaddrs; empty for the default.
	ListenAddrs []string `json:"listen_addrs,omitempty"`
	// Network is who helps to find peers: public, lan, none, or the absolute
	// path of a file that describes a network of one's own.
	Network string `json:"network,omitempty"`
	// Relays are addresses that end in /p2p/ID.
	Relays []string `json:"relays,omitempty"`
}

// The networks.
const (
	NetworkPublic = "public"
	NetworkLAN    = "lan"
	NetworkNone   = "none"
	// NetworkOwn is that of a relay: it is what others enter the network by.
	NetworkOwn = "own"
)

// RelayOptions make the owner's node a relay, bootstrap node and DHT server of
// a network of one's own.
type RelayOptions struct {
	// Allow are peer IDs that may reserve a slot, besides those that the rules
	// allow RelayRight; Open lets everybody.
	Allow []string
	Open  bool
	// Duration and Bytes end one relayed connection; zero for no limit.
	Duration time.Duration
	Bytes    int64
	// Slots and Circuits bound the peers with a slot and the connections to
	// each; zero for the default.
	Slots, Circuits int
}

// RelayRight is what a rule allows to a peer that may be reached through this
// node's relay.
const RelayRight = "/relay/reserve"

// Options are what a Server is made from.
type Options struct {
	Home    home.Dir
	Hosting Hosting
	// Inherit is how to host where Hosting does not say: as the owner before,
	// whose tunnels are taken over.
	Inherit Hosting
	// Relay makes it a relay. If nil, it is none.
	Relay   *RelayOptions
	Version string
	Log     *slog.Logger // if nil, nothing is logged
}

// hosting is how the node is run: as asked, else as inherited, else by default.
func (o Options) hosting() Hosting {
	h := o.Hosting
	byDefault, inherited := NetworkPublic, o.Inherit.Network
	if o.Relay != nil {
		byDefault = NetworkOwn
	} else if inherited == NetworkOwn {
		inherited = "" // that was a relay's
	}
	h.Network = cmp.Or(h.Network, inherited, byDefault)
	if len(h.ListenAddrs) == 0 {
		h.ListenAddrs = o.Inherit.ListenAddrs
	}
	if len(h.Relays) == 0 {
		h.Relays = o.Inherit.Relays
	}
	return h
}

// NetworkError says that the file of a network can't be used.
type NetworkError struct {
	Path string
	Err  error
}

func (e *NetworkError) Error() string { return fmt.Sprintf("network %s: %v", e.Path, e.Err) }
func (e *NetworkError) Unwrap() error { return e.Err }

// Hint is how such a file looks.
func (e *NetworkError) Hint() string {
	return `such a file has lines like: bootstrap = ["/ip4/…/tcp/4001/p2p/12D3…"]  relays = ["…"]  psk = "swarm.key"`
}

// network fills in what a node's configuration says of the network.
func (h Hosting) network(cfg *node.Config) error {
	relays, err := proto.ParseBoxes(h.Relays)
	if err != nil {
		return usage("relay: " + err.Error())
	}
	cfg.Relays = relays
	cfg.LAN = h.Network != NetworkNone && h.Network != NetworkOwn
	switch h.Network {
	case NetworkNone, NetworkLAN:
	case NetworkPublic:
		cfg.DHT = &node.DHT{Public: true}
		cfg.MapPorts, cfg.AutoRelay = true, len(relays) == 0
	case NetworkOwn:
		cfg.DHT = &node.DHT{Server: true, Bootstrap: relays}
	default:
		return h.ownNetwork(cfg)
	}
	return nil
}

// ownNetwork reads the file of a network.
func (h Hosting) ownNetwork(cfg *node.Config) error {
	n, err := ReadNetwork(h.Network)
	if err != nil {
		return err
	}
	cfg.MapPorts = true
	cfg.Relays = slices.Concat(cfg.Relays, n.Relays)
	if len(n.Bootstrap) > 0 || cfg.Relay != nil {
		cfg.DHT = &node.DHT{Bootstrap: n.Bootstrap, Server: cfg.Relay != nil}
	}
	cfg.AutoRelay = cfg.DHT != nil && cfg.Relay == nil && len(cfg.Relays) == 0
	if n.PSK != "" {
		cfg.PSK, err = readPSK(filepath.Dir(h.Network), n.PSK)
	}
	if err != nil {
		return &NetworkError{h.Network, err}
	}
	return nil
}

// ReadNetwork reads the file of a network of one's own. Errors: *NetworkError.
func ReadNetwork(path string) (proto.Network, error) {
	data, err := home.ReadFile(path)
	if err != nil {
		return proto.Network{}, &NetworkError{path, err}
	}
	n, err := proto.ParseNetwork(data)
	if err != nil {
		return n, &NetworkError{path, err}
	}
	return n, nil
}

// readPSK reads a pre-shared key in the form of Kubo's swarm.key; its path is
// relative to the network's file.
func readPSK(dir, path string) (pnet.PSK, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	data, err := home.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("psk: %w", err)
	}
	key, err := pnet.DecodeV1PSK(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("psk %s: not a key in the form of swarm.key", path) // the error may hold some of it
	}
	return key, nil
}

// relayService is what the node is told of being a relay.
func (s *Server) relayService() *node.RelayService {
	r := s.opts.Relay
	if r == nil {
		return nil
	}
	s.access.Lend(RelayRight, r.Allow, false) // until the end
	return &node.RelayService{
		// Open is not lent: who is let in anywhere has no limits of strangers.
		Allowed:  func(peer string) bool { return r.Open || s.access.Allowed(peer, RelayRight) },
		Duration: r.Duration, Bytes: r.Bytes, Slots: r.Slots, Circuits: r.Circuits,
	}
}
