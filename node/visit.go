package node

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/multiformats/go-multistream"
	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"
)

// A hole can be punched over a transport only where somebody public has seen us
// come over it. libp2p keeps one connection to a peer, over TCP here; so each
// helper is also visited over QUIC, from the socket that this node listens on,
// just for as long as it takes to ask what address it sees (libp2p specs:
// identify). The visitor has a key of its own: to the helper it is another
// peer, and a relay never tries to carry anything to us over that connection.

const (
	// visitLimit bounds one visit, and visitPause is the pause after one that
	// failed, which grows: UDP may be blocked.
	visitLimit    = 3 * time.Second
	visitPause    = time.Second
	maxVisitPause = time.Minute
	// visitAgain is how long what was seen is taken for true where nothing
	// speaks against it, and visitGap the least time between two visits.
	visitAgain = 5 * time.Minute
	visitGap   = 500 * time.Millisecond
	// keepMapping is how often a datagram keeps a NAT from forgetting: more
	// often than the 30 s of those with the least patience (RFC 4787).
	keepMapping = 15 * time.Second
	// maxVisited bounds the helpers that are visited.
	maxVisited = 4
	// maxIdentify and maxIdentifies bound what a helper says of itself, as
	// libp2p does.
	maxIdentify   = 8 << 10
	maxIdentifies = 10
)

// visitor asks helpers over QUIC as what they see this node.
type visitor struct {
	log   *slog.Logger
	watch func(id string) (up bool, changed <-chan struct{})

	key crypto.PrivKey // of the node

	// Set when the host is made, where there is QUIC.
	quic     *quicreuse.ConnManager
	socket   transport.Transport // the one whose listening socket is used
	identity *libp2ptls.Identity

	mu   sync.Mutex
	seen map[peer.ID]sighting
}

// sighting is as what address a helper sees us.
type sighting struct {
	local, observer, seen ma.Multiaddr
}

func newVisitor(log *slog.Logger, watch func(string) (bool, <-chan struct{})) *visitor {
	return &visitor{log: log, watch: watch, seen: map[peer.ID]sighting{}}
}

// newIdentity is that of another peer.
func newIdentity() (*libp2ptls.Identity, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	return libp2ptls.NewIdentity(key)
}

// newQUIC is libp2p's QUIC transport, whose socket the visitor shares. libp2p
// also makes one for a host of its own, which dials others back for AutoNAT:
// that has another key.
func (v *visitor) newQUIC(key crypto.PrivKey, quic *quicreuse.ConnManager, psk pnet.PSK, gater connmgr.ConnectionGater, rcmgr network.ResourceManager) (transport.Transport, error) {
	t, err := libp2pquic.NewTransport(key, quic, psk, gater, rcmgr)
	if err != nil || !key.Equals(v.key) {
		return t, err
	}
	v.quic, v.socket = quic, t
	v.identity, err = newIdentity()
	return t, err
}

// visitable gives the helpers that are worth a visit, each with its QUIC
// addresses on the internet. IPv4 is first: there the NATs are.
func visitable(helpers []peer.AddrInfo) (list []peer.AddrInfo) {
	for _, h := range helpers {
		addrs := slices.DeleteFunc(slices.Clone(h.Addrs), func(a ma.Multiaddr) bool {
			return isRelayed(a) || !has(a, ma.P_QUIC_V1) || !manet.IsPublicAddr(a)
		})
		slices.SortStableFunc(addrs, func(a, b ma.Multiaddr) int {
			return cmp.Compare(a[0].Protocol().Code, b[0].Protocol().Code)
		})
		known := slices.ContainsFunc(list, func(other peer.AddrInfo) bool { return other.ID == h.ID })
		if len(addrs) > 0 && !known && len(list) < maxVisited {
			list = append(list, peer.AddrInfo{ID: h.ID, Addrs: addrs})
		}
	}
	return list
}

// serve visits one helper now and again until ctx ends: after failures, after
// each change of the connections to it, which an address of ours that is new
// brings about too, and every few minutes.
func (v *visitor) serve(ctx context.Context, helper peer.AddrInfo) {
	for pause := visitPause; ctx.Err() == nil; {
		_, changed := v.watch(helper.ID.String())
		s, err := v.visit(ctx, helper)
		if err != nil {
			v.log.Debug("visit over QUIC", "peer", helper.ID, "err", err)
			v.note(helper.ID, sighting{})
			rest(ctx, changed, pause)
			pause = min(2*pause, maxVisitPause)
			continue
		}
		pause = visitPause
		v.note(helper.ID, s)
		v.keep(ctx, changed, s.observer)
	}
}

// rest returns after a pause, earlier, but not at once, where something changes.
func rest(ctx context.Context, changed <-chan struct{}, pause time.Duration) {
	select {
	case <-time.After(visitGap):
	case <-ctx.Done():
	}
	select {
	case <-changed:
	case <-time.After(pause):
	case <-ctx.Done():
	}
}

// keep keeps the NAT's mapping until the helper is to be visited again.
func (v *visitor) keep(ctx context.Context, changed <-chan struct{}, helper ma.Multiaddr) {
	for until := time.Now().Add(visitAgain); time.Now().Before(until) && ctx.Err() == nil; {
		rest(ctx, changed, keepMapping)
		select {
		case <-changed:
			return
		default:
		}
		if err := v.nudge(helper); err != nil {
			v.log.Debug("keep a NAT's mapping", "err", err)
		}
	}
}

// nudge sends a datagram of one byte from the listening socket, which no QUIC
// server takes for one of its own (RFC 9443).
func (v *visitor) nudge(helper ma.Multiaddr) error {
	addr, _, err := quicreuse.FromQuicMultiaddr(helper)
	if err != nil {
		return err
	}
	t, err := v.quic.TransportWithAssociationForDial(v.socket, udpOf(addr), addr)
	if err != nil {
		return err
	}
	defer t.DecreaseCount()
	_, err = t.WriteTo([]byte{0}, addr)
	return err
}

func udpOf(addr *net.UDPAddr) string {
	if addr.IP.To4() != nil {
		return "udp4"
	}
	return "udp6"
}

// note remembers what was seen; the zero value forgets.
func (v *visitor) note(helper peer.ID, s sighting) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s.seen == nil {
		delete(v.seen, helper)
		return
	}
	v.seen[helper] = s
}

// sightings are those that are held for true.
func (v *visitor) sightings() (list []sighting) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range v.seen {
		list = append(list, s)
	}
	return list
}

// visit asks a helper at its addresses, one after the other.
func (v *visitor) visit(ctx context.Context, helper peer.AddrInfo) (s sighting, err error) {
	ctx, cancel := context.WithTimeout(ctx, visitLimit)
	defer cancel()
	err = errors.New("no address")
	for _, name := range helper.Addrs {
		addrs, failed := madns.Resolve(ctx, name)
		err = cmp.Or(failed, err)
		for _, a := range addrs {
			a, _ = peer.SplitAddr(a)
			if s, err = v.ask(ctx, a, helper.ID); err == nil {
				return s, nil
			}
		}
	}
	return s, err
}

// ask makes a connection, asks, and closes it.
func (v *visitor) ask(ctx context.Context, helper ma.Multiaddr, id peer.ID) (s sighting, err error) {
	conf, _ := v.identity.ConfigForPeer(id)
	narrow := func(*quic.Conn, uint64) bool { return false }
	c, err := v.quic.DialQUIC(quicreuse.WithAssociation(ctx, v.socket), helper, conf, narrow)
	if err != nil {
		return s, fmt.Errorf("dial %s: %w", helper, err)
	}
	defer func() { _ = c.CloseWithError(0, "") }()
	stream, err := c.OpenStreamSync(ctx)
	if err != nil {
		return s, fmt.Errorf("ask %s: %w", helper, err)
	}
	deadline, _ := ctx.Deadline()
	_ = stream.SetDeadline(deadline)
	if err := multistream.SelectProtoOrFail(identify.ID, stream); err != nil {
		return s, fmt.Errorf("ask %s: %w", helper, err)
	}
	s.seen, err = readObserved(stream)
	if err != nil {
		return s, fmt.Errorf("answer of %s: %w", helper, err)
	}
	s.observer = helper
	s.local, err = quicreuse.ToQuicMultiaddr(c.LocalAddr(), quic.Version1)
	return s, err
}

// readObserved finds the address that a peer sees us by among what it says of
// itself: messages with their lengths before them.
func readObserved(r io.Reader) (ma.Multiaddr, error) {
	in := bufio.NewReader(io.LimitReader(r, maxIdentifies*maxIdentify))
	for range maxIdentifies {
		size, err := binary.ReadUvarint(in)
		if err != nil {
			return nil, err
		}
		if size > maxIdentify {
			return nil, fmt.Errorf("a message of %d bytes", size)
		}
		data := make([]byte, size)
		if _, err := io.ReadFull(in, data); err != nil {
			return nil, err
		}
		var msg pb.Identify
		if err := proto.Unmarshal(data, &msg); err != nil {
			return nil, err
		}
		if msg.ObservedAddr != nil {
			return ma.NewMultiaddrBytes(msg.ObservedAddr)
		}
	}
	return nil, errors.New("no observed address")
}
