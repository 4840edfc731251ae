package proto

import (
	"errors"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Peer is a peer as a person named it: exactly one of ID, DNSAddr and Name
// says who it is; Addrs may come with an ID.
type Peer struct {
	ID      peer.ID
	Addrs   []ma.Multiaddr // without /p2p/ID at the end
	DNSAddr ma.Multiaddr   // /dnsaddr/host, to be resolved to peers
	Name    string         // from `p2ptun peer add`
}

// ParsePeer reads `12D3Koo…`, a CIDv1 peer id, `/p2p/ID`, a multiaddr that ends
// in `/p2p/ID`, `/dnsaddr/host`, or a name. It refuses at once what no peer ID
// can be had from.
func ParsePeer(s string) (Peer, error) {
	switch {
	case s == "":
		return Peer{}, errors.New("peer is empty")
	case len(s) > maxTyped:
		return Peer{}, fmt.Errorf("peer is longer than %d bytes", maxTyped)
	case LooksLikeInvite(s): // first: errors must not hold it
		return Peer{}, errors.New("an invite stands for a peer in `forward` and `ping` only")
	case Printable(s, maxTyped) != s:
		return Peer{}, fmt.Errorf("peer %s: %w", Printable(s, 128), errInvisible)
	case strings.HasPrefix(s, "/"):
		return parsePeerAddr(s)
	}
	if id, err := peer.Decode(s); err == nil && isPeerID(id) {
		return Peer{ID: id}, nil
	}
	if err := CheckPeerName(s); err != nil {
		return Peer{}, fmt.Errorf("%s is neither a peer ID, a multiaddr that ends in /p2p/ID, nor a name", Printable(s, 128))
	}
	return Peer{Name: s}, nil
}

func parsePeerAddr(s string) (Peer, error) {
	addr, err := ma.NewMultiaddr(s)
	if err != nil {
		return Peer{}, fmt.Errorf("peer %s: not a multiaddr: %w", Printable(s, maxTyped), err)
	}
	if len(addr.String()) > maxTyped { // escaped, an http-path grows
		return Peer{}, fmt.Errorf("peer is longer than %d bytes when written out", maxTyped)
	}
	transport, id := peer.SplitAddr(addr)
	if id == "" {
		return parseDNSAddr(addr)
	}
	if _, second := peer.SplitAddr(transport); second != "" {
		return Peer{}, fmt.Errorf("peer %s: two peer IDs in a row: a relay's is followed by /p2p-circuit", s)
	}
	if !isPeerID(id) {
		return Peer{}, fmt.Errorf("peer %s: %s is not a peer ID", s, id)
	}
	p := Peer{ID: id}
	if len(transport) > 0 {
		p.Addrs = []ma.Multiaddr{transport}
	}
	return p, nil
}

func parseDNSAddr(addr ma.Multiaddr) (Peer, error) {
	if len(addr) != 1 || addr[0].Code() != ma.P_DNSADDR {
		return Peer{}, fmt.Errorf("peer %s: no peer ID: it must end in /p2p/ID", addr)
	}
	if !isHostName(addr[0].Value()) {
		return Peer{}, fmt.Errorf("peer %s: %s is not a host name", addr, addr[0].Value())
	}
	return Peer{DNSAddr: addr}, nil
}

// isPeerID takes a SHA-256 of a public key or a public key itself (libp2p
// specs: peer ids). peer.Decode takes any multihash, and so the ports 11, 161
// and 12111 too.
func isPeerID(id peer.ID) bool {
	key, err := id.ExtractPublicKey()
	if errors.Is(err, peer.ErrNoPublicKey) {
		return len(id) == 34 && strings.HasPrefix(string(id), "\x12\x20")
	}
	return err == nil && id.MatchesPublicKey(key)
}

// MaxPeerName bounds a name from `peer add`, in bytes.
const MaxPeerName = 63

// CheckPeerName takes a letter, then letters, digits, `-` and `_`: so a name
// never reads as an address. What decodes as a peer ID is no name.
func CheckPeerName(s string) error {
	if s == "" || len(s) > MaxPeerName {
		return fmt.Errorf("a peer name has 1 to %d characters", MaxPeerName)
	}
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		other := r >= '0' && r <= '9' || r == '-' || r == '_'
		if !letter && (i == 0 || !other) {
			return errors.New("a peer name is a letter, then letters, digits, - and _")
		}
	}
	if _, err := peer.Decode(s); err == nil {
		return errors.New("a peer ID can't be a name")
	}
	if LooksLikeInvite(s) {
		return errors.New("that reads as an invite")
	}
	return nil
}

// LooksLikeEndpoint says whether an argument reads as a BIND rather than a
// PEER. No string reads as both.
func LooksLikeEndpoint(s string) bool {
	if _, err := ParsePeer(s); err == nil {
		return false
	}
	_, err := ParseBind(s)
	return err == nil
}
