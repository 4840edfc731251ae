package proto

import (
	"errors"
	"fmt"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Network is a network of one's own, as a file describes it: who helps its
// nodes to find and to reach each other.
type Network struct {
	// Bootstrap are the nodes that know the others, and Relays those that carry
	// for who can't be dialled; all addresses of one box are in one element.
	Bootstrap []peer.AddrInfo
	Relays    []peer.AddrInfo
	// PSK is the path of a pre-shared key in the form of Kubo's swarm.key, as it
	// is written in the file; empty for none.
	PSK string
}

// MaxNetwork bounds the file of a network, in bytes; maxBoxes the addresses in
// each of its lists.
const (
	MaxNetwork = 64 << 10
	maxBoxes   = 64
)

type networkFile struct {
	Bootstrap []string `toml:"bootstrap"`
	Relays    []string `toml:"relays"`
	PSK       string   `toml:"psk"`
}

// ParseNetwork reads the file of a network, TOML with the keys bootstrap,
// relays and psk. A key that it does not know is an error, and so is a file
// that names nobody.
func ParseNetwork(data []byte) (Network, error) {
	if len(data) > MaxNetwork {
		return Network{}, fmt.Errorf("longer than %d bytes", MaxNetwork)
	}
	var f networkFile
	meta, err := toml.Decode(string(data), &f)
	if err != nil {
		return Network{}, errors.New(Printable(err.Error(), 512))
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return Network{}, fmt.Errorf("unknown key %s: there are bootstrap, relays and psk", Printable(unknown[0].String(), 64))
	}
	n := Network{PSK: f.PSK}
	if n.Bootstrap, err = ParseBoxes(f.Bootstrap); err != nil {
		return Network{}, fmt.Errorf("bootstrap: %w", err)
	}
	if n.Relays, err = ParseBoxes(f.Relays); err != nil {
		return Network{}, fmt.Errorf("relays: %w", err)
	}
	if len(n.Bootstrap) == 0 && len(n.Relays) == 0 {
		return Network{}, errors.New("it names neither bootstrap nodes nor relays")
	}
	return n, nil
}

// ParseBoxes reads addresses that end in /p2p/ID; those of one peer become one
// element, in the order of their first.
func ParseBoxes(texts []string) ([]peer.AddrInfo, error) {
	if len(texts) > maxBoxes {
		return nil, fmt.Errorf("more than %d addresses", maxBoxes)
	}
	var addrs []ma.Multiaddr
	for _, text := range texts {
		a, err := parseBox(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return gather(addrs), nil
}

// parseBox takes an address that can be dialled without help.
func parseBox(text string) (ma.Multiaddr, error) {
	p, err := ParsePeer(text)
	switch {
	case err != nil:
		return nil, err
	case p.ID == "" || len(p.Addrs) == 0:
		return nil, fmt.Errorf("%s: want an address that ends in /p2p/ID", Printable(text, 128))
	}
	if _, err := p.Addrs[0].ValueForProtocol(ma.P_CIRCUIT); err == nil {
		return nil, fmt.Errorf("%s: an address through a relay is of no help", Printable(text, 128))
	}
	return ma.NewMultiaddr(p.Addrs[0].String() + "/p2p/" + p.ID.String())
}

func gather(addrs []ma.Multiaddr) (boxes []peer.AddrInfo) {
	at := map[peer.ID]int{}
	for _, a := range addrs {
		transport, id := peer.SplitAddr(a)
		i, known := at[id]
		if !known {
			i = len(boxes)
			at[id] = i
			boxes = append(boxes, peer.AddrInfo{ID: id})
		}
		if !ma.Contains(boxes[i].Addrs, transport) {
			boxes[i].Addrs = append(boxes[i].Addrs, transport)
		}
	}
	return boxes
}
