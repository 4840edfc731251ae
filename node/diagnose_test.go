package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/zeroconf/v2"
	ma "github.com/multiformats/go-multiaddr"
)

// absent is a peer with an address where nobody listens.
func absent(t testing.TB) peer.AddrInfo {
	t.Helper()
	id, err := peer.Decode(nobody)
	must(t, err)
	return peer.AddrInfo{ID: id, Addrs: multiaddrs(t, "/ip4/127.0.0.1/tcp/1")}
}

func briefly(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestBootstrapTellsWhoAnswersFromWhoDoesNot(t *testing.T) {
	b := newNodeOf(t, Config{})
	a := newNodeOf(t, Config{DHT: &DHT{Bootstrap: []peer.AddrInfo{infoOf(b), absent(t)}}})
	got := a.Bootstrap(within(t))
	if len(got) != 2 || got[0].Peer != b.ID() || got[0].Err != nil || got[0].RTT <= 0 {
		t.Errorf("the one that lives: %+v", got)
	}
	if got[1].Peer != nobody || got[1].Err == nil || strings.Contains(got[1].Err.Error(), "\n") {
		t.Errorf("the one that does not: %+v", got[1])
	}
	if got := newNodeOf(t, Config{}).Bootstrap(within(t)); got != nil {
		t.Errorf("without any: %+v", got)
	}
}

func TestThePublicNetworkHasBootstrapNodes(t *testing.T) {
	if n := newNotes(Config{DHT: &DHT{Public: true}}); len(n.bootstrap) == 0 {
		t.Error("none")
	}
}

func TestEachNameIsResolvedOnce(t *testing.T) {
	id, err := peer.Decode(nobody)
	must(t, err)
	n := newNodeOf(t, Config{})
	n.notes.bootstrap = []peer.AddrInfo{{ID: id, Addrs: multiaddrs(t, "/dns4/localhost/tcp/1", "/dns4/localhost/udp/1/quic-v1", "/ip4/127.0.0.1/tcp/1")}}
	n.relays = []peer.AddrInfo{{ID: id, Addrs: multiaddrs(t, "/dns4/no.such.name.invalid/tcp/1")}}
	got := n.ResolveNames(within(t))
	n.relays = nil
	if len(got) != 2 || got[0].Name != "/dns4/localhost" || got[0].Err != nil || got[0].Addrs == 0 {
		t.Fatalf("%+v", got)
	}
	if got[1].Err == nil && got[1].Addrs > 0 {
		t.Errorf("a name that can't be: %+v", got[1])
	}
	if got := newNodeOf(t, Config{}).ResolveNames(within(t)); got != nil {
		t.Errorf("without names: %+v", got)
	}
}

func TestARelayThatIsNotThereIsNotReserved(t *testing.T) {
	relay := newNodeOf(t, Config{Relay: &RelayService{Allowed: everybody}})
	n := newNodeOf(t, Config{Relays: []peer.AddrInfo{absent(t), infoOf(relay)}})
	eventually(t, "the one that lives has a slot for us", func() bool {
		got := n.AwaitRelays(briefly(t))
		return len(got) == 2 && got[0].Relay == nobody && !got[0].Reserved && got[0].Error != "" && got[1].Reserved
	})
}

func TestARelayThatAllowsNobodyRefuses(t *testing.T) {
	relay := newNodeOf(t, Config{Relay: &RelayService{Allowed: func(string) bool { return false }}})
	n := newNodeOf(t, Config{Relays: []peer.AddrInfo{infoOf(relay)}})
	eventually(t, "the relay's word", func() bool {
		got := n.AwaitRelays(briefly(t))
		return !got[0].Reserved && strings.Contains(got[0].Error, "PERMISSION_DENIED")
	})
}

func TestTheLANIsAskedOnlyWhereItIsToBe(t *testing.T) {
	if _, asked := newNodeOf(t, Config{}).LAN(within(t)); asked {
		t.Error("a node that does not look at the LAN has heard it")
	}
	n := newNodeOf(t, Config{LAN: true})
	ctx, cancel := context.WithTimeout(within(t), 10*time.Second)
	defer cancel()
	r, asked := n.LAN(ctx)
	if !asked || len(r.Joined) == 0 && (r.Own || r.Err != nil) {
		t.Errorf("%+v, %v", r, asked)
	}
	if len(r.Joined) > 0 && r.Err == nil && !r.Own {
		t.Errorf("not even its own announcement is heard on %s", r.Joined)
	}
}

func TestAnAnnouncementIsOfThePeerThatItEndsIn(t *testing.T) {
	e := &zeroconf.ServiceEntry{Text: []string{"dnsaddr=/ip4/192.0.2.1/tcp/1/p2p/" + nobody}}
	if !announces(e, nobody) || announces(e, nobody[:40]) || announces(&zeroconf.ServiceEntry{}, nobody) {
		t.Error("another's")
	}
}

func TestANATIsJudgedByTwoObserversOrNot(t *testing.T) {
	here := []netip.Addr{netip.MustParseAddr("192.168.1.7"), netip.MustParseAddr("8.8.4.4")}
	const one, two, lan = "/ip4/1.1.1.1/tcp/4001", "/ip4/9.9.9.9/tcp/4001", "/ip4/192.168.1.9/tcp/4001"
	const local, mapped, other = "/ip4/192.168.1.7/tcp/5", "/ip4/8.8.8.8/tcp/1005", "/ip4/8.8.8.8/tcp/1006"
	for name, c := range map[string]struct {
		seen [][3]string // local, remote, seen
		want NATKind
	}{
		"nobody":                       {nil, NATUnknown},
		"one":                          {[][3]string{{local, one, mapped}}, NATUnknown},
		"one, twice":                   {[][3]string{{local, one, mapped}, {local, one, other}}, NATUnknown},
		"two agree":                    {[][3]string{{local, one, mapped}, {local, two, mapped}}, NATIndependent},
		"two differ":                   {[][3]string{{local, one, mapped}, {local, two, other}}, NATDependent},
		"one of three differs":         {[][3]string{{local, one, mapped}, {local, two, mapped}, {local, "/ip4/5.5.5.5/tcp/1", other}}, NATDependent},
		"from different ports of ours": {[][3]string{{local, one, mapped}, {"/ip4/192.168.1.7/tcp/6", two, other}}, NATUnknown},
		"one is in the LAN":            {[][3]string{{local, one, mapped}, {local, lan, local}}, NATUnknown},
		"one by a relay":               {[][3]string{{local, one, mapped}, {local, two + "/p2p/" + nobody + "/p2p-circuit", other}}, NATUnknown},
		"no NAT":                       {[][3]string{{"/ip4/0.0.0.0/tcp/5", one, "/ip4/8.8.4.4/tcp/5"}, {"/ip4/0.0.0.0/tcp/5", two, "/ip4/8.8.4.4/tcp/5"}}, NATNone},
		"nonsense":                     {[][3]string{{local, one, "/dns4/a/tcp/1"}, {local, two, "/ip4/8.8.8.8"}}, NATUnknown},
		"another transport":            {[][3]string{{local, one, mapped}, {local, two, "/ip4/8.8.8.8/udp/9/quic-v1"}}, NATUnknown},
	} {
		var list []observation
		for _, o := range c.seen {
			m := multiaddrs(t, o[:]...)
			if o, ok := observe(m[0], m[1], m[2], here); ok {
				list = append(list, o)
			}
		}
		if got := natKind(list, true); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if got := natKind(list, false); got != NATUnknown {
			t.Errorf("%s: UDP is %q", name, got)
		}
	}
}

func TestObserversOnLoopbackSayNothingOfANAT(t *testing.T) {
	a, _ := measured(t, onTCP, everybody)
	eventually(t, "the peer has said as what it sees us", func() bool {
		a.notes.mu.Lock()
		defer a.notes.mu.Unlock()
		return len(a.notes.observed) > 0
	})
	if tcp, udp, n := a.NAT(); tcp != NATUnknown || udp != NATUnknown || n != 0 {
		t.Errorf("%q, %q by %d", tcp, udp, n)
	}
	must(t, a.host.Network().ClosePeer(a.host.Network().Peers()[0]))
	eventually(t, "what has ended is forgotten", func() bool {
		a.notes.mu.Lock()
		defer a.notes.mu.Unlock()
		return len(a.notes.observed) == 0
	})
}

func TestReachabilityIsNotClaimedWhereNobodyTries(t *testing.T) {
	if r := newNodeOf(t, Config{}).ReachedFrom(); r.Asked || len(r.Reachable) > 0 {
		t.Errorf("%+v", r)
	}
	if r := newNodeOf(t, Config{MapPorts: true}).ReachedFrom(); !r.Asked || r.Helpers != 0 || len(r.Reachable) > 0 {
		t.Errorf("%+v", r)
	}
}

func TestSourcesNameWhoKnowsAPeer(t *testing.T) {
	relay := newNodeOf(t, Config{Relay: &RelayService{Allowed: everybody}})
	n := newNodeOf(t, Config{Relays: []peer.AddrInfo{infoOf(relay)}, KnownPath: t.TempDir() + "/known"})
	who := absent(t)
	by := func() (names []string) {
		for _, s := range n.Sources(nobody) {
			names = append(names, s.By)
		}
		return names
	}
	if got := fmt.Sprint(by()); got != "[relay]" {
		t.Errorf("nobody knows it: %s", got)
	}
	_, err := n.Want(PeerAddrs{ID: nobody, Addrs: who.Addrs})
	must(t, err)
	n.memory.good(who.ID, who.Addrs[0])
	n.found(who)
	if got := fmt.Sprint(by()); got != "[given remembered DHT relay]" {
		t.Errorf("%s", got)
	}
	if n.Sources("nonsense") != nil {
		t.Error("of nonsense")
	}
}

func TestNotesAreBounded(t *testing.T) {
	m := map[int]int{}
	for i := range 10 {
		put(m, i, i, 3)
		put(m, i, i, 3)
	}
	if len(m) != 3 || m[9] != 9 {
		t.Errorf("%v", m)
	}
}

func TestAHolePunchIsSaidOnlyOnceItIsKnown(t *testing.T) {
	n := newNodeOf(t, Config{})
	who := absent(t).ID
	if p := n.LastPunch(nobody); p != (Punch{}) {
		t.Errorf("out of nothing: %+v", p)
	}
	for _, c := range []struct {
		evt  any
		want Punch
	}{
		{&holepunch.DirectDialEvt{}, Punch{}},
		{&holepunch.StartHolePunchEvt{}, Punch{Tried: true}},
		{&holepunch.EndHolePunchEvt{Error: "no luck"}, Punch{Tried: true, Error: "no luck"}},
		{&holepunch.StartHolePunchEvt{}, Punch{Tried: true}},
		{&holepunch.EndHolePunchEvt{Success: true}, Punch{Tried: true, Success: true}},
		{&holepunch.DirectDialEvt{Success: true}, Punch{Tried: true, Success: true, Dialled: true}},
		{&holepunch.ProtocolErrorEvt{Error: "odd"}, Punch{Tried: true, Success: true, Dialled: true, Error: "odd"}},
	} {
		n.notes.Trace(&holepunch.Event{Remote: who, Evt: c.evt})
		got := n.LastPunch(nobody)
		got.At = time.Time{}
		if got != c.want {
			t.Errorf("after %+v: %+v", c.evt, got)
		}
	}
}

func TestARelayedPeerIsNotDirect(t *testing.T) {
	a, b, _ := relayed(t, 0)
	if a.AwaitDirect(briefly(t), b.ID()) {
		t.Error("it is said to be direct at once")
	}
	_, err := a.Want(PeerAddrs{ID: b.ID(), Addrs: infoOf(b).Addrs})
	must(t, err)
	if !a.AwaitDirect(within(t), b.ID()) {
		t.Error("it does not become direct")
	}
	list := a.Conns(b.ID())
	if len(list) == 0 || list[0].Relayed {
		t.Errorf("the way that is taken first: %+v", list)
	}
	if a.AwaitDirect(briefly(t), nobody) {
		t.Error("a peer that is not connected is direct")
	}
}

func TestPingsAreOfThatConnection(t *testing.T) {
	a, b := measured(t, onTCP, everybody)
	c := conn(t, a, b.ID())
	rtts, err := c.Pings(within(t), 3)
	if err != nil || len(rtts) != 3 {
		t.Fatalf("%v, %v", rtts, err)
	}
	if c := conn(t, b, a.ID()); !c.Inbound || c.Path.Addr == "" {
		t.Errorf("the other side: %+v", c)
	}
	must(t, c.conn.Close())
	if rtts, err := c.Pings(within(t), 3); err == nil || len(rtts) != 0 {
		t.Errorf("over a closed one: %v, %v", rtts, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	connect(t, a, infoOf(b))
	if _, err := conn(t, a, b.ID()).Pings(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestListeningHasThePortsThatItGot(t *testing.T) {
	got := newNodeOf(t, Config{ListenAddrs: []string{onTCP, onQUIC}}).Listening()
	if len(got) != 2 || strings.Contains(got[0], "/tcp/0") || strings.Contains(got[1], "/udp/0") {
		t.Errorf("%v", got)
	}
	for _, a := range got {
		if _, err := ma.NewMultiaddr(a); err != nil {
			t.Error(err)
		}
	}
}
