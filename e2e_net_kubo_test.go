//go:build linux

package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"p2ptun/daemon"
)

// labKubo is an unmodified Kubo on a machine of a lab: it knows its relay, and
// no other way to anybody.
type labKubo struct {
	*box
	ipfs, repo string
	id         string
}

// kubo starts one there, and returns when it has a slot at the relay.
func (b *box) kubo(relay *helper) *labKubo {
	b.t.Helper()
	ipfs, err := kuboProgram()
	if err != nil {
		b.t.Skipf("SKIPPED: Kubo can't be built here, so it is not known whether p2ptun works with it: %v", err)
	}
	k := &labKubo{box: b, ipfs: ipfs, repo: b.t.TempDir()}
	k.must("init", "--empty-repo", "--profile=test")
	k.configure(relay)
	d := k.ipfsStart("daemon")
	d.waitFor(b.t, &d.out, "Daemon is ready.*")
	k.id = strings.TrimSpace(k.must("id", "-f", "<id>"))
	inTime(b.t, "Kubo has a slot at the relay", 10*time.Second, k.hasSlotAnywhere)
	return k
}

func (k *labKubo) configure(relay *helper) {
	k.t.Helper()
	path := filepath.Join(k.repo, "config")
	data, err := os.ReadFile(path)
	if err != nil {
		k.t.Fatal(err)
	}
	config := map[string]any{}
	if err := json.Unmarshal(data, &config); err != nil {
		k.t.Fatal(err)
	}
	off := map[string]any{"Enabled": false}
	config["Addresses"] = map[string]any{"Swarm": []string{"/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"}, "API": overTCP, "Gateway": []string{}}
	config["Bootstrap"] = relay.addrs
	config["Discovery"] = map[string]any{"MDNS": off}
	config["Swarm"] = map[string]any{
		"DisableNatPortMap": true, "EnableHolePunching": true, "RelayService": off,
		// with two addresses of one relay Kubo waits three minutes for another
		"RelayClient": map[string]any{"Enabled": true, "StaticRelays": relay.addrs[:1]},
	}
	config["Internal"] = map[string]any{"Libp2pForceReachability": "private"}
	config["Routing"] = map[string]any{"Type": "none"}
	config["HTTPRetrieval"], config["Provide"] = off, off
	config["Version"] = map[string]any{"SwarmCheckEnabled": false}
	config["Experimental"] = map[string]any{"Libp2pStreamMounting": true}
	if data, err = json.Marshal(config); err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		k.t.Fatal(err)
	}
}

func (k *labKubo) hasSlotAnywhere() bool {
	return strings.Contains(k.must("id", "-f", "<addrs>"), "/p2p-circuit")
}

func (k *labKubo) ipfsStart(args ...string) *process {
	k.t.Helper()
	return k.exec("env", append([]string{"IPFS_PATH=" + k.repo, "IPFS_TELEMETRY=off", k.ipfs}, args...)...)
}

// must runs an `ipfs` command that must succeed, and gives what it prints.
func (k *labKubo) must(args ...string) string {
	k.t.Helper()
	p := k.ipfsStart(args...)
	if code := p.exit(k.t); code != 0 {
		k.t.Fatalf("ipfs %v: exit code %d: %s", args, code, p.err.String())
	}
	return p.out.String()
}

// through is what p2ptun's status says of the way to a peer.
func (b *box) through(peer string) (path, relay string) {
	for _, p := range b.status().Peers {
		if p.Peer == peer {
			return p.Path, p.Relay
		}
	}
	return "", ""
}

func TestNetKuboOffersThroughNAT(t *testing.T) {
	wantNet(t)
	for _, nat := range []string{"cone", "symmetric"} {
		t.Run(nat, func(t *testing.T) {
			l := newNATLab(t, nat, nat)
			k := l.alice.kubo(l.relay)
			host, port, _ := strings.Cut(k.service(echoBack).addr(), ":")
			k.must("p2p", "listen", testProtocol, "/ip4/"+host+"/tcp/"+port)
			r := l.bob.reach(k.id, "--network", l.network)
			figure(t, "NAT, "+nat+" dials "+nat+", Kubo offers", "first byte", r.took)
			if nat == "symmetric" {
				r.wantRelayed(l.relay.id)
				return
			}
			figure(t, "NAT, "+nat+" dials "+nat+", Kubo offers", "direct", r.wantDirect(fastPunch))
		})
	}
}

func TestNetKuboForwardsThroughNAT(t *testing.T) {
	wantNet(t)
	for _, nat := range []string{"cone", "symmetric"} {
		t.Run(nat, func(t *testing.T) {
			l := newNATLab(t, nat, nat)
			l.alice.listen("--network", l.network)
			l.alice.wantSlot(l.relay.id, atOnceReserved)
			k := l.bob.kubo(l.relay)
			k.must("swarm", "connect", l.relay.addrs[0]+"/p2p-circuit/p2p/"+l.alice.id)
			if nat == "cone" {
				took := inTime(t, "Kubo has a direct path", fastPunch, func() bool { path, _ := l.alice.through(k.id); return path == "direct" })
				figure(t, "NAT, "+nat+" dials "+nat+", Kubo forwards", "direct", took)
			}
			c := k.forward(l.alice.id)
			mirror(t, c, some)
			want := map[string]string{"cone": "", "symmetric": l.relay.id}[nat]
			st := runJSON[daemon.Status](l.alice, "status")[0]
			for _, p := range st.Peers {
				if p.Peer == k.id && p.Relay != want {
					t.Errorf("status says %+v, want relay %q", p, want)
				}
			}
		})
	}
}

// forward has Kubo bind a port to a peer's service, and connects to it.
func (k *labKubo) forward(peer string) net.Conn {
	k.t.Helper()
	k.must("p2p", "forward", testProtocol, overTCP, "/p2p/"+peer)
	for line := range strings.Lines(k.must("p2p", "ls")) {
		words := strings.Fields(line)
		if len(words) == 3 && words[2] == "/p2p/"+peer {
			c, err := k.dial((&forwarding{bind: words[1]}).hostPort())
			if err != nil {
				k.t.Fatal(err)
			}
			k.t.Cleanup(func() { c.Close() })
			return c
		}
	}
	k.t.Fatal("ipfs p2p ls does not show the forward")
	return nil
}
