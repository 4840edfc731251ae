package daemon

import (
	"fmt"

	"p2ptun/proto"
	"p2ptun/registry"
)

// Normalize checks a tunnel's description and brings its addresses and peers
// into their normal form: what the command line, the control API and the file
// of kept tunnels all go through. Errors are of CodeUsage.
func Normalize(t *registry.Tunnel) error {
	name, err := proto.ParseProtocol(t.Protocol, t.Custom)
	if err != nil {
		return usage(err.Error())
	}
	t.Protocol = name
	if t.Silence < 0 || t.DialTimeout < 0 || t.SurviveTime() < 0 {
		return usage("a duration can't be negative")
	}
	if t.SurviveTime() > registry.MaxSurvive {
		return usage(fmt.Sprintf("survive is %s at most", registry.MaxSurvive))
	}
	switch t.Kind {
	case registry.KindListen:
		return normalizeListen(t)
	case registry.KindForward:
		return normalizeForward(t)
	}
	return usage(fmt.Sprintf("kind is %q, want listen or forward", t.Kind))
}

func normalizeListen(t *registry.Tunnel) error {
	if t.Bind != "" || len(t.Peers) > 0 || t.Wait || t.DialTimeout != 0 || t.Invite != "" {
		return usage("bind, peers, wait, dial_timeout and invite are for a forward")
	}
	target, err := proto.ParseTarget(t.Target)
	if err != nil {
		return usage(err.Error())
	}
	t.Target = target.String()
	if t.MaxStreams < 0 || t.MaxRate < 0 || t.PeerMaxStreams < 0 || t.PeerMaxRate < 0 {
		return usage("a limit can't be negative")
	}
	if t.ProxyProtocol && t.ReportPeerID {
		return usage("proxy_protocol tells the peer's ID too: report_peer_id can't be beside it")
	}
	if t.Open && len(t.Allow) > 0 {
		return usage("open lets everybody in: allow says nothing beside it")
	}
	for i, typed := range t.Allow {
		p, err := proto.ParsePeer(typed)
		if err != nil {
			return usage(err.Error())
		}
		if p.ID == "" {
			return usage(fmt.Sprintf("allow %s: want a peer ID", typed))
		}
		t.Allow[i] = p.ID.String()
	}
	return nil
}

// maxPeers bounds the peers of one forward.
const maxPeers = 32

func normalizeForward(t *registry.Tunnel) error {
	if t.Target != "" || t.Open || len(t.Allow) > 0 || t.ReportPeerID || t.ProxyProtocol {
		return usage("target, open, allow, report_peer_id and proxy_protocol are for a listen")
	}
	if t.MaxStreams != 0 || t.MaxRate != 0 || t.PeerMaxStreams != 0 || t.PeerMaxRate != 0 {
		return usage("max_streams and max_rate are for a listen")
	}
	bind, err := proto.ParseBind(t.Bind)
	if err != nil {
		return usage(err.Error())
	}
	t.Bind = bind.String()
	if len(t.Peers) == 0 || len(t.Peers) > maxPeers {
		return usage(fmt.Sprintf("a forward has 1 to %d peers", maxPeers))
	}
	if t.Invite != "" {
		if err := checkInvite(t); err != nil {
			return usage(err.Error())
		}
	}
	for i, typed := range t.Peers {
		p, err := proto.ParsePeer(typed)
		if err != nil {
			return usage(err.Error())
		}
		if t.Peers[i], err = peerText(p); err != nil {
			return err
		}
	}
	return nil
}

// checkInvite: a forward's invite is to its protocol, and to one of its peers.
func checkInvite(t *registry.Tunnel) error {
	i, err := proto.ParseInvite(t.Invite)
	if err != nil {
		return err
	}
	if i.Protocol != t.Protocol {
		return fmt.Errorf("the invite is to %s, not to %s", i.Protocol, t.Protocol)
	}
	for _, typed := range t.Peers {
		if p, err := proto.ParsePeer(typed); err == nil && (p.ID == i.Peer || p.DNSAddr != nil) {
			return nil
		}
	}
	return fmt.Errorf("the invite is of peer %s, which is none of the forward's peers", i.Peer)
}

// peerText is the normal form of a peer: a multiaddr.
func peerText(p proto.Peer) (string, error) {
	switch {
	case p.Name != "":
		return "", usage(fmt.Sprintf("peer %s: a name is for the command line; give its addresses", p.Name))
	case p.DNSAddr != nil:
		return p.DNSAddr.String(), nil
	case len(p.Addrs) == 0:
		return "/p2p/" + p.ID.String(), nil
	}
	return p.Addrs[0].String() + "/p2p/" + p.ID.String(), nil
}
