//go:build unix

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	p2p "p2ptun/node"
	"p2ptun/proto"
)

// Many peers and one invite: the listener is a real process, the peers are
// nodes of this one.

// newPeer is a node with an identity of its own.
func newPeer(t testing.TB) *p2p.Node {
	t.Helper()
	dir := t.TempDir()
	n, err := p2p.New(t.Context(), p2p.Config{
		KeyPath: filepath.Join(dir, "key"), PortPath: filepath.Join(dir, "port"), ListenAddrs: []string{overTCP},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func newPeers(t testing.TB, n int) (peers []*p2p.Node) {
	t.Helper()
	for range n {
		peers = append(peers, newPeer(t))
	}
	return peers
}

// askOnce reaches the peer at that address and asks it.
func askOnce(ctx context.Context, n *p2p.Node, addr string, q *proto.Question) (proto.Verdict, error) {
	found, err := p2p.Resolve(ctx, addr)
	if err != nil {
		return 0, err
	}
	end, err := n.Want(found[0])
	if err != nil {
		return 0, err
	}
	defer end()
	if err := n.Connect(ctx, found[0].ID, 0); err != nil {
		return 0, err
	}
	return n.Ask(ctx, found[0].ID, q)
}

// askUntil asks until there is an answer: strangers' connections are limited,
// and the listener may be away. ok is false where ctx has ended before.
func askUntil(ctx context.Context, n *p2p.Node, addr string, q *proto.Question) (v proto.Verdict, ok bool) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		v, err := askOnce(ctx, n, addr, q)
		if err == nil {
			return v, true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, false
		}
	}
}

// showing is the question of who shows an invite.
func showing(t testing.TB, text string) *proto.Question {
	t.Helper()
	i, err := proto.ParseInvite(text)
	if err != nil {
		t.Fatal(err)
	}
	id, err := proto.InviteIDBytes(i.ID)
	if err != nil {
		t.Fatal(err)
	}
	return &proto.Question{Protocol: i.Protocol, InviteId: id, InviteSecret: i.Secret}
}

// patiently is a context that only a failing test outlives.
func patiently(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestHundredPeersAtOnceRedeemAnInviteOfOneUseOnce(t *testing.T) {
	service := newNode(t)
	l, invite := startInviting(service, overTCP, serve(t, echoBack).addr())
	q, ctx := showing(t, invite), patiently(t)
	peers := newPeers(t, 100)
	start := make(chan struct{})
	var all sync.WaitGroup
	verdicts := make([]proto.Verdict, len(peers))
	for i, n := range peers {
		all.Go(func() {
			<-start
			verdicts[i], _ = askUntil(ctx, n, l.addr, q)
			if verdicts[i] != proto.Verdict_VERDICT_OK {
				_ = n.Close() // makes room for another stranger
			}
		})
	}
	close(start)
	all.Wait()
	winner := slices.Index(verdicts, proto.Verdict_VERDICT_OK)
	for i, v := range verdicts {
		if i != winner && v != proto.Verdict_VERDICT_INVITE_USED {
			t.Errorf("peer %d was answered %s", i, v)
		}
	}
	if winner < 0 {
		t.Fatal("nobody has won")
	}
	if rows := service.grants("invite"); len(rows) != 1 || !strings.Contains(rows[0], " 0 of 1 uses left") {
		t.Errorf("access ls says %q", rows)
	}
	if rows := service.grants("allow"); len(rows) != 1 || !strings.Contains(rows[0], peers[winner].ID()) {
		t.Errorf("access ls says %q, the winner is %s", rows, peers[winner].ID())
	}
	if v, err := askOnce(ctx, peers[winner], l.addr, q); v != proto.Verdict_VERDICT_OK || err != nil {
		t.Errorf("the winner's next try is answered %s, %v", v, err)
	}
}

func TestKilledListenerLetsInAsManyAsItsInviteSaysAndAllWhomItHasToldSo(t *testing.T) {
	const rounds, peerCount = 9, 8
	peers, echo := newPeers(t, peerCount), serve(t, echoBack)
	for i := range rounds {
		killWhileRedeeming(t, peers, echo.addr(), i%3)
	}
}

// killWhileRedeeming is one round of it, with a listener of its own that is
// killed about when after peers were told.
func killWhileRedeeming(t testing.TB, peers []*p2p.Node, target string, after int) {
	t.Helper()
	const uses = 3
	service, at := newNode(t), multiaddr(closedAddr(t))
	q := showing(t, service.invite(testProtocol, "--uses", fmt.Sprint(uses)).Text)
	told := redeemWhileKilled(t, service, at, target, peers, q, after)
	l := startListen(service, at, testProtocol, target)
	for _, n := range told {
		if v, _ := askUntil(patiently(t), n, l.addr, &proto.Question{Protocol: testProtocol}); v != proto.Verdict_VERDICT_OK {
			t.Errorf("a peer that was told that it is let in is answered %s after the restart", v)
		}
	}
	if in := letIn(t, peers, l.addr, q); len(in) != uses {
		t.Errorf("%d peers are let in by %d uses", len(in), uses)
	}
	if rows := service.grants("allow"); len(rows) != uses {
		t.Errorf("access ls says %q", rows)
	}
	l.kill()
}

// redeemWhileKilled has all peers redeem at a listener that is killed about
// when the after-th was told that it is let in, and gives those that were.
func redeemWhileKilled(t testing.TB, service *node, at, target string, peers []*p2p.Node, q *proto.Question, after int) (told []*p2p.Node) {
	t.Helper()
	l := startListen(service, at, testProtocol, target)
	ctx, cancel := context.WithCancel(patiently(t))
	var all sync.WaitGroup
	wins := make(chan *p2p.Node, len(peers))
	for _, n := range peers {
		all.Go(func() {
			if v, ok := askUntil(ctx, n, l.addr, q); ok && v == proto.Verdict_VERDICT_OK {
				wins <- n
			}
		})
	}
	for range after {
		select {
		case n := <-wins:
			told = append(told, n)
		case <-ctx.Done():
			t.Fatal("nobody is let in")
		}
	}
	<-time.After(time.Duration(rand.Int64N(int64(10 * time.Millisecond)))) // any moment of the next one's
	l.kill()
	cancel()
	all.Wait()
	close(wins)
	for n := range wins {
		told = append(told, n)
	}
	return told
}

// letIn has all peers redeem, one after the other, and gives those whom it has
// let in, now or before.
func letIn(t testing.TB, peers []*p2p.Node, addr string, q *proto.Question) (in []*p2p.Node) {
	t.Helper()
	for _, n := range peers {
		v, ok := askUntil(patiently(t), n, addr, q)
		switch {
		case !ok || v != proto.Verdict_VERDICT_OK && v != proto.Verdict_VERDICT_INVITE_USED:
			t.Errorf("answered %s", v)
		case v == proto.Verdict_VERDICT_OK:
			in = append(in, n)
		}
	}
	return in
}

func TestInviteWithAWrongSecretIsAnsweredAsNone(t *testing.T) {
	service := newNode(t)
	l, text := startInviting(service, overTCP, serve(t, echoBack).addr())
	right, ctx := showing(t, text), patiently(t)
	wrong := slices.Clone(right.InviteSecret)
	wrong[0] ^= 1
	for name, q := range map[string]*proto.Question{
		"no invite":                    {Protocol: testProtocol},
		"no invite, no service":        {Protocol: "/x/none"},
		"wrong secret":                 {Protocol: testProtocol, InviteId: right.InviteId, InviteSecret: wrong},
		"wrong secret, no service":     {Protocol: "/x/none", InviteId: right.InviteId, InviteSecret: wrong},
		"right secret, other protocol": {Protocol: "/x/none", InviteId: right.InviteId, InviteSecret: right.InviteSecret},
		"unknown id":                   {Protocol: testProtocol, InviteId: []byte("12345"), InviteSecret: right.InviteSecret},
		"unknown id, no service":       {Protocol: "/x/none", InviteId: []byte("12345"), InviteSecret: right.InviteSecret},
	} {
		if v, ok := askUntil(ctx, newPeer(t), l.addr, q); !ok || v != proto.Verdict_VERDICT_REFUSED {
			t.Errorf("%s: %s, want the same for all", name, v)
		}
	}
	if v, _ := askUntil(ctx, newPeer(t), l.addr, right); v != proto.Verdict_VERDICT_OK {
		t.Errorf("the right one is answered %s", v)
	}
}
