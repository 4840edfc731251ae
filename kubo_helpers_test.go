//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// kuboProgram builds Kubo once a run, into a place that the next run finds
// again; $P2PTUN_TEST_IPFS names one that is built already.
var kuboProgram = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("P2PTUN_TEST_IPFS"); path != "" {
		return path, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "p2ptun-test", "ipfs")
	build := exec.Command("go", "build", "-C", filepath.Join("scripts", "kubo"), "-o", path, "github.com/ipfs/kubo/cmd/ipfs")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", build, err, out)
	}
	return path, nil
})

// kuboNode is an unmodified Kubo on loopback, which knows nobody.
type kuboNode struct {
	t      testing.TB
	binary string
	repo   string
	id     string
	addr   string // ends in /p2p/ID; the port is kept at a restart
	daemon *process
}

// startKubo starts a Kubo that listens on that transport alone.
func startKubo(t testing.TB, transport string) *kuboNode {
	t.Helper()
	binary, err := kuboProgram()
	if err != nil {
		t.Skipf("SKIPPED: Kubo can't be built here, so it is not known whether p2ptun works with it: %v", err)
	}
	k := &kuboNode{t: t, binary: binary, repo: t.TempDir()}
	k.run("init", "--empty-repo", "--profile=test")
	k.configure(transport)
	k.start()
	k.id = strings.TrimSpace(k.run("id", "-f", "<id>"))
	k.addr = strings.TrimSpace(k.run("id", "-f", "<addrs>"))
	where, ok := strings.CutSuffix(k.addr, "/p2p/"+k.id)
	if !ok || strings.ContainsAny(where, " \n") {
		t.Fatalf("Kubo's addresses: want one that ends in /p2p/%s, got %q", k.id, k.addr)
	}
	k.configure(where)
	return k
}

// configure leaves nothing but loopback and `ipfs p2p`.
func (k *kuboNode) configure(swarm string) {
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
	config["Addresses"] = map[string]any{"Swarm": []string{swarm}, "API": overTCP, "Gateway": []string{}}
	config["Bootstrap"] = []string{}
	config["Discovery"] = map[string]any{"MDNS": off}
	config["Swarm"] = map[string]any{"DisableNatPortMap": true, "EnableHolePunching": false, "RelayClient": off, "RelayService": off}
	config["Routing"] = map[string]any{"Type": "none"}
	config["AutoNAT"] = map[string]any{"ServiceMode": "disabled"}
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

func (k *kuboNode) env() []string { return []string{"IPFS_PATH=" + k.repo, "IPFS_TELEMETRY=off"} }

// run runs an `ipfs` command that must succeed, and gives what it prints.
func (k *kuboNode) run(args ...string) string {
	k.t.Helper()
	cmd := exec.Command(k.binary, args...)
	cmd.Env = append(cleanEnv(), k.env()...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		k.t.Fatalf("ipfs %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (k *kuboNode) start() {
	k.t.Helper()
	env, err := exec.LookPath("env") // which becomes the daemon
	if err != nil {
		k.t.Fatal(err)
	}
	k.daemon = startFrom(k.t, env, "env", append(k.env(), k.binary, "daemon")...)
	k.daemon.waitFor(k.t, &k.daemon.out, "Daemon is ready.*")
}

// crash ends the daemon as a power cut does. It leaves a file with its API's
// address, which would mislead the next command.
func (k *kuboNode) crash() {
	k.t.Helper()
	k.daemon.kill()
	if err := os.Remove(filepath.Join(k.repo, "api")); err != nil {
		k.t.Fatal(err)
	}
}

// listen has Kubo offer a service, host:port.
func (k *kuboNode) listen(protocol, target string, flags ...string) {
	k.t.Helper()
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		k.t.Fatal(err)
	}
	k.run(append(append([]string{"p2p", "listen"}, flags...), protocol, "/ip4/"+host+"/tcp/"+port)...)
}

// forward has Kubo bind a free port and gives it as host:port. Kubo must know
// the peer's address: it takes an ID alone here.
func (k *kuboNode) forward(protocol, peer string, flags ...string) string {
	k.t.Helper()
	k.run("swarm", "connect", peer)
	_, id, _ := strings.Cut(peer, "/p2p/")
	k.run(append(append([]string{"p2p", "forward"}, flags...), protocol, overTCP, "/p2p/"+id)...)
	for line := range strings.Lines(k.run("p2p", "ls")) {
		words := strings.Fields(line)
		if len(words) == 3 && words[0] == protocol && words[2] == "/p2p/"+id {
			return (&forwarding{bind: words[1]}).hostPort()
		}
	}
	k.t.Fatalf("ipfs p2p ls does not show the forward of %s", protocol)
	return ""
}
