//go:build linux

package main

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Reach without anything named: relays that a node chooses itself, what others
// find who try to dial it, and ports that its router opens.

// chosenLimit is how soon a node that nobody can dial has a relay that it has
// chosen itself.
const chosenLimit = 30 * time.Second

// helpers makes public machines help, each of them knowing the first.
func (l *lab) helpers(names []string, flags ...string) (list []*helper) {
	l.t.Helper()
	for _, name := range names {
		more := flags
		if len(list) > 0 {
			more = append([]string{"--relay", list[0].addrs[0]}, flags...)
		}
		list = append(list, l.box(name).help(more...))
	}
	return list
}

// wantAddr waits for an address of the node that matches, as `status` has it.
func (b *box) wantAddr(pattern string, limit time.Duration) (addr string, took time.Duration) {
	b.t.Helper()
	re := regexp.MustCompile(pattern)
	took = inTime(b.t, b.name+" has an address like "+pattern, limit, func() bool {
		for _, a := range b.status().Addrs {
			if re.MatchString(a) {
				addr = a
			}
		}
		return addr != ""
	})
	return addr, took
}

func TestNetChoosesRelaysOfTheDHTWhereNoneIsNamed(t *testing.T) {
	l := newLab(t, "nat", "--nat", "symmetric,symmetric")
	alice, bob := l.pair()
	boxes := l.helpers([]string{"relay", "boot"}, "--open")
	network := networkFile(t, boxes, nil)
	alice.listen("--network", network)
	_, took := alice.wantAddr("/p2p-circuit", chosenLimit)
	figure(t, "NAT, relays chosen from an own DHT", "an address through one", took)
	r := bob.reach(alice.id, "--network", network)
	r.figure("NAT, symmetric dials symmetric, by a relay that was chosen")
	p := r.path()
	if addrs := strings.Join(alice.status().Addrs, " "); p == nil || !p.Relayed || !strings.Contains(addrs, p.Relay+"/p2p-circuit") {
		t.Errorf("the path is %+v, want through a relay of %s", p, addrs)
	}
}

// tcpOnly is where a helper listens that sees others over TCP alone: four that
// see a node at one address are what libp2p believes.
var tcpOnly = []string{"/ip4/0.0.0.0/tcp/" + helpPort}

// wantVerdict waits for what `status` says others have found who tried to dial.
func (b *box) wantVerdict(want string, limit time.Duration) time.Duration {
	b.t.Helper()
	return inTime(b.t, b.name+" is found to be "+want, limit, func() bool { return b.status().Reachability == want })
}

func TestNetNodeWithoutNATIsFoundPublicAndKeepsItsAddresses(t *testing.T) {
	l := newLab(t, "nat", "--nat", "none,none", "--public", "c1,c2,c3,c4")
	alice := l.box("alice")
	boxes := l.helpers([]string{"c1", "c2", "c3", "c4"}, "--open")
	alice.listen("--network", networkFile(t, boxes, nil))
	took := alice.wantVerdict("public", time.Minute)
	figure(t, "no NAT", "found public", took)
	public := l.publicAddrs("alice")
	for _, a := range alice.status().Addrs {
		if strings.Contains(a, "/p2p-circuit") {
			t.Errorf("a public node shows an address through a relay: %s", a)
		}
	}
	for _, transport := range []string{"tcp", "quic-v1"} {
		if addr, _ := alice.wantAddr(public.String()+".*"+transport, time.Second); addr == "" {
			t.Errorf("no public address of %s", transport)
		}
	}
}

func TestNetNodeBehindNATIsFoundPrivateByThoseWhoTry(t *testing.T) {
	l := newLab(t, "nat", "--nat", "port-restricted,none", "--public", "c1,c2,c3,c4,c5")
	alice := l.box("alice")
	var boxes []*helper
	for _, name := range []string{"c1", "c2", "c3", "c4", "c5"} {
		boxes = append(boxes, l.box(name).helpAt(tcpOnly))
	}
	alice.listen("--network", networkFile(t, boxes, nil))
	figure(t, "NAT, port-restricted", "found private", alice.wantVerdict("private", time.Minute))
	tried := regexp.MustCompile("others could not dial /ip4/" + l.do("addr", "alice", "--public") + "/tcp/")
	figure(t, "NAT, port-restricted", "others have tried", inTime(t, "doctor says that others have tried", time.Minute, func() bool {
		p := alice.start("doctor")
		p.exit(t)
		return tried.MatchString(p.out.String())
	}))
	alice.wantVerdict("private", 0)
}

// wantMapping has alice's router open ports for her, by one protocol, and bob
// come in that way. No hole can be punched between their NATs.
func wantMapping(t *testing.T, protocol string) {
	wantProgram(t, "miniupnpd", "miniupnpd-nftables")
	l := newLab(t, "nat", "--nat", "symmetric,symmetric", "--net", "192.0.1")
	l.do("upnp", "alice", protocol)
	alice, bob := l.pair()
	boxes := l.helpers([]string{"relay", "boot"}, forever...)
	network := networkFile(t, boxes, boxes[:1])
	alice.listen("--network", network)
	_, took := alice.wantAddr("^/ip4/"+l.do("addr", "alice", "--public")+"/tcp/", 30*time.Second)
	figure(t, "port mapping by "+protocol, "public address", took)
	r := bob.reach(alice.id, "--network", network)
	r.figure("NAT, symmetric dials symmetric, port mapped by " + protocol)
	r.wantDirect(slowPunch)
	if p, mapped := r.path(), alice.status().Addrs; p == nil || !slices.Contains(mapped, p.Addr+"/p2p/"+alice.id) {
		t.Errorf("the path is %+v, want by one of %q", p, mapped)
	}
}

func TestNetPortMappedByUPnPLetsInWhereNoHoleCanBePunched(t *testing.T) { wantMapping(t, "upnp") }

func TestNetPortMappedByNATPMPLetsInWhereNoHoleCanBePunched(t *testing.T) { wantMapping(t, "nat-pmp") }

// wantProgram skips a test where a program is missing.
func wantProgram(t *testing.T, program, pkg string) {
	t.Helper()
	wantNet(t)
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("SKIP: no %s; hint: Debian: apt-get install %s", program, pkg)
	}
}
