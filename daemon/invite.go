package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"p2ptun/access"
	"p2ptun/home"
	"p2ptun/node"
	"p2ptun/proto"
	"p2ptun/registry"
)

// InviteRequest is the body of `POST /invites`.
type InviteRequest struct {
	Protocol string `json:"protocol"`
	// For is how long the invite may be redeemed, and how long it lets in. If
	// zero, DefaultInvite.
	For registry.Duration `json:"for,omitempty"`
	// Uses is how many peers may redeem it, 1 to access.MaxUses. If zero, 1.
	Uses    int    `json:"uses,omitempty"`
	Comment string `json:"comment,omitempty"`
}

// DefaultInvite is how long an invite lasts unless told otherwise.
const DefaultInvite = time.Hour

// InviteReply is a new invite. Text is a secret, and is not kept here.
type InviteReply struct {
	Text     string    `json:"invite"`
	ID       string    `json:"id"`
	Protocol string    `json:"protocol"`
	Uses     int       `json:"uses"`
	Until    time.Time `json:"until"`
	Addrs    int       `json:"addrs"` // how many are in it
}

// NewInvite makes an invite to a node, whose addresses end in /p2p/ID, and
// writes it into the home's access file, where it holds when this returns: for
// a home that no process owns. Errors: *Error of CodeUsage, those of
// access.AddInvite.
func NewInvite(ctx context.Context, dir home.Dir, id string, addrs []string, req InviteRequest) (InviteReply, error) {
	if err := normalizeInvite(&req); err != nil {
		return InviteReply{}, err
	}
	self, err := peer.Decode(id)
	if err != nil {
		return InviteReply{}, err
	}
	made, err := proto.NewInvite(self, inviteAddrs(addrs), req.Protocol)
	if err != nil {
		return InviteReply{}, err
	}
	until := time.Now().Add(time.Duration(req.For) + time.Second - 1) // the file has whole seconds, not less than asked for
	i, err := access.AddInvite(ctx, dir.Access(), made, req.Uses, until, req.Comment)
	if err != nil {
		return InviteReply{}, err
	}
	return InviteReply{Text: made.Text(), ID: i.ID, Protocol: i.Protocol, Uses: i.Uses, Until: i.Until, Addrs: len(made.Addrs)}, nil
}

// maxComment bounds the comment of an invite, in bytes.
const maxComment = 256

func normalizeInvite(req *InviteRequest) (err error) {
	if req.Protocol, err = proto.ParseProtocol(req.Protocol, true); err != nil {
		return usage(err.Error())
	}
	req.For = cmp.Or(req.For, registry.Duration(DefaultInvite))
	req.Uses = cmp.Or(req.Uses, 1)
	if time.Duration(req.For) < time.Second {
		return usage("an invite lasts for a second at least")
	}
	if strings.ContainsAny(req.Comment, "\r\n") || len(req.Comment) > maxComment {
		return usage(fmt.Sprintf("a comment is one line of at most %d bytes", maxComment))
	}
	if req.Uses < 1 || req.Uses > access.MaxUses {
		return usage(fmt.Sprintf("an invite has 1 to %d uses", access.MaxUses))
	}
	return nil
}

// Bounds of the addresses in one invite: it is to be pasted.
const (
	inviteAddrMax   = 8
	inviteAddrBytes = 256 // together
)

// inviteAddrs picks the addresses that most others can dial, best first. Those
// of loopback serve only where there is no other.
func inviteAddrs(texts []string) []ma.Multiaddr {
	var all []ma.Multiaddr
	for _, text := range texts {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			continue
		}
		if a, _ = peer.SplitAddr(a); len(a) > 0 {
			all = append(all, a)
		}
	}
	slices.SortStableFunc(all, func(a, b ma.Multiaddr) int { return cmp.Compare(AddrScore(b), AddrScore(a)) })
	far := slices.DeleteFunc(slices.Clone(all), isNear)
	if len(far) == 0 {
		far = all
	}
	return fit(far)
}

// isNear says that an address means nothing on another machine, or another
// cable.
func isNear(a ma.Multiaddr) bool {
	ip, err := manet.ToIP(a)
	return err == nil && (ip.IsLoopback() || ip.IsLinkLocalUnicast())
}

// BestAddrs are those of a node's addresses that go into an invite.
func BestAddrs(texts []string, id string) (best []string) {
	for _, a := range inviteAddrs(texts) {
		best = append(best, a.String()+"/p2p/"+id)
	}
	return best
}

func fit(addrs []ma.Multiaddr) (picked []ma.Multiaddr) {
	room := inviteAddrBytes
	for _, a := range addrs {
		if n := len(a.Bytes()); n <= room && len(picked) < inviteAddrMax {
			room -= n
			picked = append(picked, a)
		}
	}
	return picked
}

// AddrScore is higher for an address that more others can dial: a public one,
// then one through a relay, then one of the LAN; TCP before QUIC, IPv4 before
// IPv6.
func AddrScore(a ma.Multiaddr) int {
	score := 1
	has := func(code int) bool { _, err := a.ValueForProtocol(code); return err == nil }
	switch {
	case has(ma.P_CIRCUIT):
		score += 12
	case manet.IsPublicAddr(a):
		score += 16
	case !manet.IsIPLoopback(a):
		score += 8
	}
	if has(ma.P_TCP) {
		score += 2
	}
	if has(ma.P_IP4) {
		score++
	}
	return score
}

func (s *Server) postInvite(w http.ResponseWriter, r *http.Request) error {
	var req InviteRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	made, err := NewInvite(r.Context(), s.opts.Home, s.node.ID(), s.node.Addrs(), req)
	if err != nil {
		return err
	}
	s.access.Reload()
	return reply(w, made, s.access.Err())
}

// deleteInvite revokes the invite that the query names; those who have
// redeemed it are out when the answer goes out.
func (s *Server) deleteInvite(w http.ResponseWriter, r *http.Request) error {
	err := access.RevokeInvite(r.Context(), s.opts.Home.Access(), r.URL.Query().Get("id"))
	s.access.Reload()
	return reply(w, struct{}{}, errors.Join(err, s.access.Err()))
}

// GroupRequest is the body of `POST /groups`.
type GroupRequest struct {
	Name  string   `json:"name"`
	Peers []string `json:"peers"` // IDs
	// Remove takes them out, or the whole group where Peers is empty.
	Remove bool `json:"remove,omitempty"`
}

// SetGroup changes a group in the home's access file: for a home that no
// process owns.
func SetGroup(ctx context.Context, dir home.Dir, req GroupRequest) error {
	if err := access.CheckGroupName(req.Name); err != nil {
		return usage(err.Error())
	}
	for i, text := range req.Peers {
		p, err := proto.ParsePeer(text)
		if err != nil || p.ID == "" {
			return usage("a group holds peer IDs")
		}
		req.Peers[i] = p.ID.String()
	}
	if req.Remove {
		return access.RemoveFromGroup(ctx, dir.Access(), req.Name, req.Peers)
	}
	if len(req.Peers) == 0 {
		return usage("no peer for the group")
	}
	return access.AddToGroup(ctx, dir.Access(), req.Name, req.Peers)
}

func (s *Server) postGroup(w http.ResponseWriter, r *http.Request) error {
	var req GroupRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	err := SetGroup(r.Context(), s.opts.Home, req)
	s.access.Reload()
	return reply(w, struct{}{}, errors.Join(err, s.access.Err()))
}

// answer answers a peer's question, after its invite, if it shows one.
func (s *Server) answer(ctx context.Context, peer string, q *proto.Question) proto.Verdict {
	if len(q.GetInviteId()) > 0 {
		if v := s.redeem(ctx, peer, q); v != proto.Verdict_VERDICT_OK {
			return v
		}
	}
	return s.listens.Answer(peer, q.GetProtocol())
}

// redeem says VERDICT_OK where the question is to be answered as any other: a
// peer whose invite is unknown, or that is let in anyway, learns no more. Where
// the rules can't be read or written, only who knows the secret reads so.
func (s *Server) redeem(ctx context.Context, peer string, q *proto.Question) proto.Verdict {
	i, fresh, err := s.access.Redeem(ctx, peer, q.GetProtocol(), q.GetInviteId(), q.GetInviteSecret())
	if fresh && err == nil {
		s.registry.Events.Publish(registry.RedeemedEvent{
			Time: time.Now(), Protocol: i.Protocol, Peer: peer, Invite: i.ID, Left: i.Left(), Until: i.Until,
		})
	}
	if err == nil || errors.Is(err, access.ErrInviteUnknown) || s.access.Allowed(peer, q.GetProtocol()) {
		return proto.Verdict_VERDICT_OK
	}
	for known, verdict := range map[error]proto.Verdict{
		access.ErrInviteUsed: proto.Verdict_VERDICT_INVITE_USED,
		access.ErrInviteOver: proto.Verdict_VERDICT_INVITE_OVER,
	} {
		if errors.Is(err, known) {
			s.refused(peer, q.GetProtocol(), known.Error())
			return verdict
		}
	}
	s.log.Info("redeem an invite", "invite", i.ID, "peer", peer, "err", err)
	s.refused(peer, q.GetProtocol(), "its invite can't be redeemed: "+withHint(err))
	return proto.Verdict_VERDICT_INVITE_LATER
}

// questioner asks for a forward, and shows its invite until that has let it in.
type questioner struct {
	node     *node.Node
	invite   *proto.Invite // nil for none
	done     func()        // called once when the invite has let it in; nil for nothing
	redeemed atomic.Bool
}

func newQuestioner(n *node.Node, t registry.Tunnel) (*questioner, error) {
	a := &questioner{node: n}
	if t.Invite == "" {
		return a, nil
	}
	i, err := proto.ParseInvite(t.Invite)
	if err != nil {
		return nil, usage(err.Error())
	}
	a.invite = &i
	return a, nil
}

// errNoInvites says that the peer can't be asked, and so takes no invite.
var errNoInvites = errors.New("the peer takes no invites: it is no p2ptun")

func (a *questioner) ask(ctx context.Context, peer, protocol string) (proto.Verdict, error) {
	q := &proto.Question{Protocol: protocol}
	shows := a.invite != nil && !a.redeemed.Load() && a.invite.Peer.String() == peer
	if shows {
		q.InviteId, _ = proto.InviteIDBytes(a.invite.ID)
		q.InviteSecret = a.invite.Secret
	}
	v, err := a.node.Ask(ctx, peer, q)
	if shows && errors.Is(err, node.ErrCannotAsk) {
		return v, errNoInvites
	}
	switch v {
	case proto.Verdict_VERDICT_OK, proto.Verdict_VERDICT_SERVICE_DOWN, proto.Verdict_VERDICT_NO_SERVICE:
		if shows && !a.redeemed.Swap(true) && a.done != nil {
			a.done()
		}
	}
	return v, err
}
