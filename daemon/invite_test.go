package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"p2ptun/access"
	"p2ptun/node"
	"p2ptun/proto"
	"p2ptun/registry"
)

func addrsOf(t testing.TB, texts ...string) (addrs []ma.Multiaddr) {
	t.Helper()
	for _, text := range texts {
		a, err := ma.NewMultiaddr(text)
		must(t, err)
		addrs = append(addrs, a)
	}
	return addrs
}

func textOf(addrs []ma.Multiaddr) string {
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, " ")
}

const relayAddr = "/ip4/1.2.3.4/tcp/4001/p2p/" + somebody + "/p2p-circuit"

func TestAddressesThatMoreCanDialScoreHigher(t *testing.T) {
	descending := addrsOf(t,
		"/ip4/8.8.8.8/tcp/4001", "/ip6/2001:4860::1/tcp/4001", "/ip4/8.8.8.8/udp/4001/quic-v1", "/ip6/2001:4860::1/udp/4001/quic-v1",
		relayAddr,
		"/ip4/192.168.1.7/tcp/4001", "/ip6/fd00::7/tcp/4001", "/ip4/192.168.1.7/udp/4001/quic-v1", "/ip6/fd00::7/udp/4001/quic-v1",
		"/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001", "/ip4/127.0.0.1/udp/4001/quic-v1", "/ip6/::1/udp/4001/quic-v1",
	)
	for i := 1; i < len(descending); i++ {
		if a, b := descending[i-1], descending[i]; AddrScore(a) <= AddrScore(b) {
			t.Errorf("%s scores %d, %s %d", a, AddrScore(a), b, AddrScore(b))
		}
	}
}

func TestInviteHoldsTheAddressesThatMoreCanDial(t *testing.T) {
	const self = "/p2p/" + somebody
	lan, public, loopback := "/ip4/192.168.1.7/tcp/4001", "/ip4/8.8.8.8/udp/4001/quic-v1", "/ip4/127.0.0.1/tcp/4001"
	for name, c := range map[string]struct{ given, want []string }{
		"best first, no loopback":  {[]string{loopback + self, lan + self, public + self}, []string{public, lan}},
		"loopback where all is so": {[]string{loopback + self}, []string{loopback}},
		"a relay's":                {[]string{lan + self, relayAddr + self}, []string{relayAddr, lan}},
		"none":                     {nil, nil},
		"what is no address":       {[]string{"nonsense", self, lan + self}, []string{lan}},
	} {
		if got := textOf(inviteAddrs(c.given)); got != strings.Join(c.want, " ") {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestAddressesOfAnInviteAreBounded(t *testing.T) {
	var many, long []string
	for i := range 50 {
		many = append(many, fmt.Sprintf("/ip4/192.168.1.%d/tcp/4001", i+1))
		long = append(long, fmt.Sprintf("/dns4/%s%d.example.com/tcp/4001", strings.Repeat("x", 60), i))
	}
	if got := inviteAddrs(many); len(got) != inviteAddrMax {
		t.Errorf("%d addresses", len(got))
	}
	bytes := 0
	for _, a := range inviteAddrs(long) {
		bytes += len(a.Bytes())
	}
	if bytes > inviteAddrBytes || bytes == 0 {
		t.Errorf("%d bytes of addresses", bytes)
	}
}

func TestInviteLastsAsLongAsItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newHome(t)
		time.Sleep(999 * time.Millisecond) // virtual; the file has whole seconds
		for _, last := range []time.Duration{time.Second, 90 * time.Second, 0} {
			made, err := NewInvite(context.Background(), dir, somebody, nil, InviteRequest{Protocol: "ssh", For: registry.Duration(last)})
			must(t, err)
			if last == 0 {
				last = DefaultInvite
			}
			if lasts := time.Until(made.Until); lasts < last || lasts > last+time.Second {
				t.Errorf("asked for %s, it lasts %s", last, lasts)
			}
		}
	})
}

// The owner of the forwarder's clock says nothing: an invite holds no time.
func TestForwarderTakesAnInviteWhateverItsClockSays(t *testing.T) {
	made, err := NewInvite(t.Context(), newHome(t), somebody, []string{"/ip4/192.168.1.7/tcp/1/p2p/" + somebody}, InviteRequest{Protocol: "ssh"})
	must(t, err)
	tunnel := registry.Tunnel{Kind: registry.KindForward, Protocol: "/x/ssh", Bind: "2222", Peers: []string{"/p2p/" + somebody}, Invite: made.Text}
	synctest.Test(t, func(t *testing.T) { // in the year 2000
		if now := time.Now(); !now.Before(made.Until.Add(-2 * DefaultInvite)) {
			t.Fatalf("it is %s", now)
		}
		must(t, Normalize(&tunnel))
		if _, err := newQuestioner(nil, tunnel); err != nil {
			t.Error(err)
		}
	})
}

func TestForwardTakesOnlyAnInviteToItsProtocolAndPeer(t *testing.T) {
	const other = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
	made, err := NewInvite(t.Context(), newHome(t), somebody, nil, InviteRequest{Protocol: "ssh"})
	must(t, err)
	for name, c := range map[string]struct{ protocol, peer, invite, says string }{
		"right":          {"/x/ssh", "/p2p/" + somebody, made.Text, ""},
		"resolved later": {"/x/ssh", "/dnsaddr/example.com", made.Text, ""},
		"other protocol": {"/x/web", "/p2p/" + somebody, made.Text, "the invite is to /x/ssh, not to /x/web"},
		"other peer":     {"/x/ssh", "/p2p/" + other, made.Text, "none of the forward's peers"},
		"typo":           {"/x/ssh", "/p2p/" + somebody, made.Text[:100], "mistyped"},
	} {
		tunnel := registry.Tunnel{Kind: registry.KindForward, Protocol: c.protocol, Bind: "2222", Peers: []string{c.peer}, Invite: c.invite}
		err := Normalize(&tunnel)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || asError(err).Code != CodeUsage) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), made.Text[12:30]) {
			t.Errorf("%s: the error holds the invite: %v", name, err)
		}
	}
	listen := keeps("", "/x/ssh")
	listen.Invite = made.Text
	if err := Normalize(&listen); err == nil {
		t.Error("a listen takes an invite")
	}
}

// asking is a node that asks a server.
func asking(t testing.TB, s *Server) *node.Node {
	t.Helper()
	dir := newHome(t)
	n, err := node.New(t.Context(), node.Config{KeyPath: dir.Key(), PortPath: dir.Port(), ListenAddrs: []string{"/ip4/127.0.0.1/tcp/0"}})
	must(t, err)
	t.Cleanup(func() { _ = n.Close() })
	found, err := node.Resolve(t.Context(), s.node.Addrs()[0])
	must(t, err)
	end, err := n.Want(found[0])
	must(t, err)
	t.Cleanup(end)
	must(t, n.Connect(t.Context(), s.node.ID(), time.Minute))
	return n
}

func TestQuestionerShowsItsInviteUntilItIsLetIn(t *testing.T) {
	client, s := own(t, newHome(t))
	made, err := client.Invite(t.Context(), InviteRequest{Protocol: "ssh"})
	must(t, err)
	q, err := newQuestioner(asking(t, s), registry.Tunnel{Protocol: "/x/ssh", Invite: made.Text})
	must(t, err)
	done := 0
	q.done = func() { done++ }
	ask := func(want proto.Verdict) {
		t.Helper()
		if v, err := q.ask(t.Context(), s.node.ID(), "/x/ssh"); v != want || err != nil {
			t.Errorf("answered %s, %v; want %s", v, err, want)
		}
	}
	ask(proto.Verdict_VERDICT_NO_SERVICE) // let in, there is only no service yet
	ask(proto.Verdict_VERDICT_NO_SERVICE)
	must(t, client.RevokeInvite(t.Context(), made.ID))
	ask(proto.Verdict_VERDICT_REFUSED)
	if done != 1 || !q.redeemed.Load() {
		t.Errorf("redeemed %d times", done)
	}
}

func TestUseThatCanNotBeWrittenLetsNobodyIn(t *testing.T) {
	dir := newHome(t)
	client, s := own(t, dir)
	made, err := client.Invite(t.Context(), InviteRequest{Protocol: "ssh"})
	must(t, err)
	fill(t, dir)
	q, err := newQuestioner(asking(t, s), registry.Tunnel{Protocol: "/x/ssh", Invite: made.Text})
	must(t, err)
	if v, err := q.ask(t.Context(), s.node.ID(), "/x/ssh"); v != proto.Verdict_VERDICT_INVITE_LATER || err != nil {
		t.Errorf("answered %s, %v", v, err)
	}
	empty(t, dir)
	if v, err := q.ask(t.Context(), s.node.ID(), "/x/ssh"); v != proto.Verdict_VERDICT_NO_SERVICE || err != nil {
		t.Errorf("then answered %s, %v", v, err)
	}
}

func TestInviteOfABrokenFileWaitsAndTheOwnerReadsWhy(t *testing.T) {
	dir := newHome(t)
	client, s := own(t, dir)
	made, err := client.Invite(t.Context(), InviteRequest{Protocol: "ssh"})
	must(t, err)
	good, err := os.ReadFile(dir.Access())
	must(t, err)
	must(t, os.WriteFile(dir.Access(), append([]byte("alow\n"), good...), 0o600))
	s.access.Reload()
	sub, err := registry.Subscribe[registry.RefusedEvent](s.registry.Events, "test", 10)
	must(t, err)
	defer sub.Close()
	tunnel := registry.Tunnel{Protocol: "/x/ssh", Invite: made.Text}
	q, err := newQuestioner(asking(t, s), tunnel)
	must(t, err)
	guess, err := newQuestioner(q.node, tunnel)
	must(t, err)
	guess.invite.Secret = append([]byte(nil), guess.invite.Secret...)
	guess.invite.Secret[0] ^= 1
	wantVerdict(t, guess, s, proto.Verdict_VERDICT_REFUSED)
	_, _, _ = sub.Next(t.Context())
	wantVerdict(t, q, s, proto.Verdict_VERDICT_INVITE_LATER)
	s.refusals = newRefusals(s.registry.Events) // who was told of once is told of again
	wantVerdict(t, q, s, proto.Verdict_VERDICT_INVITE_LATER)
	e, _, err := sub.Next(t.Context())
	if want := "edit line 1 of " + dir.Access(); err != nil || !strings.Contains(e.Reason, want) || !strings.Contains(e.Reason, "invite") {
		t.Errorf("the owner reads %q, %v; want %s", e.Reason, err, want)
	}
	must(t, os.WriteFile(dir.Access(), good, 0o600))
	s.access.Reload()
	wantVerdict(t, q, s, proto.Verdict_VERDICT_NO_SERVICE) // let in
}

func wantVerdict(t testing.TB, q *questioner, s *Server, want proto.Verdict) {
	t.Helper()
	if v, err := q.ask(t.Context(), s.node.ID(), "/x/ssh"); v != want || err != nil {
		t.Errorf("answered %s, %v; want %s", v, err, want)
	}
}

func TestRevocationHoldsWhenItIsAnswered(t *testing.T) {
	client, s := own(t, newHome(t))
	for range 5 {
		made, err := client.Invite(t.Context(), InviteRequest{Protocol: "ssh"})
		must(t, err)
		i, err := proto.ParseInvite(made.Text)
		must(t, err)
		id, _ := proto.InviteIDBytes(i.ID)
		_, fresh, err := s.access.Redeem(t.Context(), somebody, "/x/ssh", id, i.Secret)
		must(t, err)
		if !fresh || !s.access.Allowed(somebody, "/x/ssh") {
			t.Fatal("not let in")
		}
		must(t, client.RevokeInvite(t.Context(), made.ID))
		if s.access.Allowed(somebody, "/x/ssh") {
			t.Fatal("still let in when the revocation is answered")
		}
	}
	if err := client.RevokeInvite(t.Context(), "aaaaaaaa"); asError(err).Code != CodeNoInvite {
		t.Errorf("an unknown one: %v", err)
	}
}

func TestBookForgetsAnInvite(t *testing.T) {
	b := newBook(t)
	with := registry.Tunnel{ID: "2", Kind: registry.KindForward, Protocol: "/x/b", Bind: "/ip4/127.0.0.1/tcp/1", Peers: []string{"/p2p/" + somebody}}
	made, err := NewInvite(t.Context(), newHome(t), somebody, nil, InviteRequest{Protocol: "/x/b"})
	must(t, err)
	with.Invite = made.Text
	must(t, b.add(keeps("1", "/x/a")))
	must(t, b.add(with))
	for _, id := range []string{"1", "99"} {
		must(t, b.dropInvite(id))
		if text, _ := os.ReadFile(b.path); !strings.Contains(string(text), made.Text) {
			t.Fatal("the invite of another tunnel is gone")
		}
	}
	must(t, b.dropInvite("2"))
	if text, _ := os.ReadFile(b.path); strings.Contains(string(text), made.Text) {
		t.Error("the invite is on disk")
	}
	if got := protocols(b); got != "1/x/a 2/x/b" {
		t.Errorf("kept are %q", got)
	}
}

func TestCommentsOfInvitesAreOneLine(t *testing.T) {
	dir := newHome(t)
	for _, comment := range []string{"a\nallow /x/ssh " + somebody, "a\rb", strings.Repeat("x", maxComment+1)} {
		_, err := NewInvite(t.Context(), dir, somebody, nil, InviteRequest{Protocol: "ssh", Comment: comment})
		if asError(errors.Join(err)).Code != CodeUsage {
			t.Errorf("%q: %v", comment, err)
		}
	}
	if list, err := access.List(dir.Access()); err != nil || len(list.Rules)+len(list.Invites) > 0 {
		t.Errorf("%+v, %v", list, err)
	}
}
