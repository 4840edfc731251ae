//go:build linux

package main

import (
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Networks of one's own: closed by a key, by a relay's rules, by its limits, or
// without an internet.

// testPSK is a pre-shared key in the form of Kubo's swarm.key.
var testPSK = "/key/swarm/psk/1.0.0/\n/base16/\n" + strings.Repeat("5a", 32) + "\n"

func TestNetPreSharedKeyClosesTheNetwork(t *testing.T) {
	l := newLab(t, "nat", "--nat", "cone,cone")
	alice, bob := l.pair()
	key := filepath.Join(t.TempDir(), "swarm.key")
	writeFile(t, key, testPSK)
	psk := fmt.Sprintf("psk = %q\n", key)
	box := l.box("relay")
	self := &helper{box: box, addrs: []string{"/ip4/" + l.do("addr", "relay", "--public") + "/tcp/" + helpPort + "/p2p/" + box.id}}
	own := networkFile(t, []*helper{self}, nil, psk)
	relay := box.helpAt([]string{"/ip4/0.0.0.0/tcp/" + helpPort}, append([]string{"--network", own}, forever...)...)
	network := networkFile(t, []*helper{relay}, []*helper{relay}, psk)
	p := alice.listen("--network", network)
	p.saysOnStderr(t, "QUIC")
	alice.wantSlot(relay.id, atOnceReserved)
	r := bob.reach(alice.id, "--network", network)
	r.figure("pre-shared key, NAT, cone dials cone")
	r.wantDirect(fastPunch)
	if p := r.path(); p.Transport != "tcp" {
		t.Errorf("the path is %+v, want TCP", p)
	}
	open := networkFile(t, []*helper{relay}, []*helper{relay})
	wantExit(t, l.box("bob").start("forward", testProtocol, alice.id, "--network", open), 4)
}

func TestNetClosedRelayRefusesAndTheListenerSaysSo(t *testing.T) {
	l := newLab(t, "nat", "--nat", "cone,cone")
	alice, bob := l.pair()
	relay := l.box("relay").help("--allow", bob.id)
	network := networkFile(t, []*helper{relay}, []*helper{relay})
	alice.listen("--network", network)
	refused := regexp.MustCompile(`(?m)^relay      ` + relay.id + ` not reserved: .*(refused|PERMISSION_DENIED|not allowed)`)
	inTime(t, "status says that the relay refuses", 5*time.Second, func() bool { return refused.MatchString(alice.run("status")) })
	for line := range strings.Lines(alice.run("status")) {
		if strings.HasPrefix(line, "address") && strings.Contains(line, "p2p-circuit") {
			t.Errorf("an address through a relay that has refused: %q", line)
		}
	}
	relay.run("allow", "/relay/reserve", alice.id)
	alice.wantSlot(relay.id, time.Minute)
}

// TestNetWithoutInternet: the default network, of which nothing can be reached.
func TestNetWithoutInternet(t *testing.T) {
	l := newLab(t, "lan")
	alice, bob := l.pair()
	began := time.Now()
	p := alice.listen("--network", "public")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("listen was ready after %s", took)
	}
	r := bob.reach(alice.id, "--network", "public")
	r.figure("LAN, no internet, --network public")
	addr := p.waitFor(t, &p.out, "address    (/ip4/"+l.do("addr", "alice")+`/tcp/\S+)`)[1]
	byAddr := l.box("bob").reach(addr, "--network", "public")
	byAddr.figure("LAN, no internet, --network public, address")
	for _, r := range []*reached{r, byAddr} {
		if r.took > 2*time.Second {
			t.Errorf("the first byte took %s", r.took)
		}
		r.wantDirect(0)
	}
	for _, p := range []*process{p, r.process, byAddr.process} {
		if lines := strings.Count(p.err.String(), "\n"); lines > 3 {
			t.Errorf("%d lines on stderr: %s", lines, p.err.String())
		}
	}
	wantExit(t, l.box("bob").start("forward", testProtocol, newNodeOf(t, l.program).id, "--network", "public"), 4)
}

func TestNetRelayLimitIsSaidAndCountsDown(t *testing.T) {
	l := newNATLab(t, "symmetric", "symmetric", "--open")
	r := l.reach("--survive", "0")
	r.waitFor(t, &r.out, `path       relayed by `+l.relay.id+`, .*(2m|1m\d+s).* / 12\d\.\d KiB.*`)
	c := r.open()
	before := r.streamOf(c).Path
	const n = 32 << 10
	if _, err := c.Write(randomBytes(3, n)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	after := r.streamOf(c).Path
	if before.LimitBytes <= 0 || before.LimitBytes > 128<<10 || before.LimitSeconds <= 0 || before.LimitSeconds > 120 {
		t.Errorf("the limit of 2 min and 128 KiB is said as %+v", before)
	}
	if used := before.LimitBytes - after.LimitBytes; used < n || used > 2*n {
		t.Errorf("%d bytes went each way, and the limit went down by %d: %+v, then %+v", n, used, before, after)
	}
	_, _ = c.Write(make([]byte, 128<<10))
	if _, err := io.Copy(io.Discard, c); !isReset(err) {
		t.Errorf("a connection beyond the limit ended with %v, want a reset", err)
	}
	r.wantAgain()
}
