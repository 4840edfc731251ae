//go:build linux

package main

import (
	"fmt"
	"testing"
	"time"
)

// Bounds of the paths that NATs allow.
const (
	fastPunch = 5 * time.Second  // a punch that both NATs let through
	slowPunch = 30 * time.Second // one that has to guess
)

// figure records how long the first byte took.
func (r *reached) figure(scenario string) { figure(r.t, scenario, "first byte", r.took) }

func TestNetLANByPeerIDAlone(t *testing.T) {
	alice, bob := newLab(t, "lan").pair()
	alice.listen("--network", "lan")
	r := bob.reach(alice.id, "--network", "lan")
	r.figure("LAN, mDNS")
	r.wantDirect(0)
}

func TestNetWANByAddress(t *testing.T) {
	l := newLab(t, "wan")
	p := l.box("alice").listen("--network", "none")
	where := "/ip4/" + l.do("addr", "alice") + "/"
	for _, transport := range []string{"tcp", "udp"} {
		addr := p.waitFor(t, &p.out, "address    ("+where+transport+`/\S+)`)[1]
		r := l.box("bob").reach(addr, "--network", "none")
		r.figure("WAN, address, " + transport)
		r.wantDirect(0)
	}
}

func TestNetWANByPeerIDOverAnOwnDHT(t *testing.T) {
	l := newLab(t, "wan", "--hosts", "alice,bob,boot")
	alice, bob := l.pair()
	boot := l.box("boot").help()
	network := networkFile(t, []*helper{boot}, nil)
	alice.listen("--network", network)
	r := bob.reach(alice.id, "--network", network)
	r.figure("WAN, own DHT")
	r.wantDirect(0)
}

// natLab is two machines behind NATs, with a relay and a bootstrap node.
type natLab struct {
	*lab
	alice, bob  *box
	relay, boot *helper
	network     string // its file
}

func newNATLab(t *testing.T, aliceNAT, bobNAT string, relayFlags ...string) *natLab {
	t.Helper()
	if len(relayFlags) == 0 {
		relayFlags = forever
	}
	return (&natLab{lab: newLab(t, "nat", "--nat", aliceNAT+","+bobNAT)}).furnish(relayFlags)
}

// furnish starts the helpers.
func (l *natLab) furnish(relayFlags []string) *natLab {
	l.t.Helper()
	l.alice, l.bob = l.pair()
	l.relay = l.box("relay").help(relayFlags...)
	l.boot = l.box("boot").help("--relay", l.relay.addrs[0])
	l.network = networkFile(l.t, []*helper{l.relay, l.boot}, []*helper{l.relay})
	return l
}

// atOnceReserved is how soon after a node is ready it has its slot.
const atOnceReserved = time.Second

// reach has alice listen, with a slot at the relay, and bob forward to her.
func (l *natLab) reach(flags ...string) *reached {
	l.t.Helper()
	l.alice.listen("--network", l.network)
	l.alice.wantSlot(l.relay.id, atOnceReserved)
	return l.bob.reach(l.alice.id, append([]string{"--network", l.network}, flags...)...)
}

// natKinds are those of scripts/netlab.
var natKinds = []string{"none", "firewall", "cone", "restricted", "port-restricted", "symmetric"}

// directWithin says how soon a forwarder behind one NAT has a direct path to a
// listener behind another; 0 for never: a symmetric NAT sends from a port that
// nobody can know, and the other lets in none but those that it has sent to.
func directWithin(listener, forwarder string) time.Duration {
	strict := map[string]bool{"firewall": true, "port-restricted": true, "symmetric": true}
	switch {
	case listener == "symmetric" && strict[forwarder], forwarder == "symmetric" && strict[listener]:
		return 0
	case listener == "symmetric" && (forwarder == "cone" || forwarder == "restricted"):
		return slowPunch
	}
	return fastPunch
}

func TestNetThroughNAT(t *testing.T) {
	wantNet(t)
	for _, listener := range natKinds {
		for _, forwarder := range natKinds {
			t.Run(fmt.Sprintf("%s dials %s", forwarder, listener), func(t *testing.T) {
				l := newNATLab(t, listener, forwarder)
				r := l.reach()
				scenario := fmt.Sprintf("NAT, %s dials %s", forwarder, listener)
				r.figure(scenario)
				limit := directWithin(listener, forwarder)
				if limit == 0 {
					r.wantRelayed(l.relay.id)
					return
				}
				figure(t, scenario, "direct", r.wantDirect(limit))
			})
		}
	}
}

// TestNetUDPIsPunchedWithOneRelayReachedOverTCP: no TCP hole can be punched, and
// who knows their UDP addresses can only have been asked over QUIC.
func TestNetUDPIsPunchedWithOneRelayReachedOverTCP(t *testing.T) {
	wantNet(t)
	for _, nat := range []string{"cone", "port-restricted"} {
		t.Run(nat, func(t *testing.T) {
			l := newOneRelayLab(t, nat)
			l.do("block", "alice", "tcp-in")
			l.do("block", "bob", "tcp-in")
			r := l.reach()
			scenario := "one relay, no TCP in, " + nat + " dials " + nat
			r.figure(scenario)
			figure(t, scenario, "direct", r.wantDirect(fastPunch))
			if p := r.path(); p.Transport != "quic" {
				t.Errorf("the path is %+v, want QUIC", p)
			}
			for _, b := range []*box{l.alice, l.bob} {
				b.wantPeerOver("tcp", l.relay.id)
			}
		})
	}
}

// newOneRelayLab is a natLab with one box that helps.
func newOneRelayLab(t *testing.T, nat string) *natLab {
	t.Helper()
	l := &natLab{lab: newLab(t, "nat", "--nat", nat+","+nat)}
	l.alice, l.bob = l.pair()
	l.relay = l.box("relay").help(forever...)
	l.network = networkFile(t, []*helper{l.relay}, []*helper{l.relay})
	return l
}

// wantPeerOver checks the transport of the connection to a peer.
func (b *box) wantPeerOver(transport, peer string) {
	b.t.Helper()
	for _, p := range b.status().Peers {
		if p.Peer == peer && p.Transport == transport {
			return
		}
	}
	b.t.Errorf("%s has no connection to %s over %s: %+v", b.name, peer, transport, b.status().Peers)
}

// TestNetThroughNATFarAway: hole punching may begin before a node knows its own
// public address; when, depends on the distance.
func TestNetThroughNATFarAway(t *testing.T) {
	wantNet(t)
	for _, delay := range []string{"30ms", "40ms", "60ms", "90ms"} {
		t.Run(delay, func(t *testing.T) {
			l := (&natLab{lab: newLab(t, "nat", "--nat", "cone,cone", "--delay", delay)}).furnish(forever)
			l.alice.listen("--network", l.network)
			l.alice.wantSlot(l.relay.id, 3*time.Second)
			r := l.bob.reach(l.alice.id, "--network", l.network)
			scenario := "NAT, cone dials cone, each " + delay + " away"
			r.figure(scenario)
			figure(t, scenario, "direct", r.wantDirect(fastPunch))
		})
	}
}
