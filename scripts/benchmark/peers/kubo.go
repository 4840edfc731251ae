package peers

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// kubo is `ipfs p2p` over a transport, an unmodified Kubo that knows nobody;
// security is the one security transport that it may use over TCP.
func kubo(name, note, transport, security string) *Peer {
	return &Peer{
		Name: name, Note: note, Needs: []string{"ipfs"},
		Prepare: func(ctx context.Context, t *Tunnel) error {
			if err := t.pickPort(); err != nil {
				return err
			}
			if err := t.initKubo(ctx, "offer", t.kuboAddr(transport), security); err != nil {
				return err
			}
			id, err := t.ipfs(ctx, Side{}, "offer", "config", "Identity.PeerID")
			if err != nil {
				return err
			}
			t.secret = "/p2p/" + id
			return t.initKubo(ctx, "forward", strings.NewReplacer("IP", t.Forward.IP, "PORT", "0").Replace(transport), security)
		},
		Offer: func(ctx context.Context, t *Tunnel) error {
			if err := t.startKubo(ctx, t.Offer, "offer"); err != nil {
				return err
			}
			_, err := t.ipfs(ctx, t.Offer, "offer", "p2p", "listen", "/x/bench", "/ip4/127.0.0.1/tcp/"+t.servicePort())
			return err
		},
		Forward: func(ctx context.Context, t *Tunnel) error { return t.forwardKubo(ctx, t.kuboAddr(transport)) },
	}
}

// kuboAddr is where the offering Kubo listens.
func (t *Tunnel) kuboAddr(transport string) string {
	return strings.NewReplacer("IP", t.Offer.IP, "PORT", strconv.Itoa(t.port)).Replace(transport)
}

func kuboEnv(repo string) []string { return []string{"IPFS_PATH=" + repo, "IPFS_TELEMETRY=off"} }

// ipfs runs a command of one repository to its end.
func (t *Tunnel) ipfs(ctx context.Context, s Side, repo string, args ...string) (string, error) {
	return t.run(ctx, s, append([]string{t.Programs["ipfs"]}, args...), kuboEnv(t.path(repo))...)
}

func (t *Tunnel) startKubo(ctx context.Context, s Side, repo string) error {
	_, err := t.startUntil(ctx, s, "Daemon is ready", []string{t.Programs["ipfs"], "daemon"}, kuboEnv(t.path(repo))...)
	return err
}

func (t *Tunnel) forwardKubo(ctx context.Context, addr string) error {
	if err := t.startKubo(ctx, t.Forward, "forward"); err != nil {
		return err
	}
	port, err := t.bindHere()
	if err != nil {
		return err
	}
	if _, err := t.ipfs(ctx, t.Forward, "forward", "swarm", "connect", addr+t.secret); err != nil {
		return err
	}
	_, err = t.ipfs(ctx, t.Forward, "forward", "p2p", "forward", "/x/bench", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port), t.secret)
	return err
}

// initKubo makes a repository that leaves nothing but `ipfs p2p`.
func (t *Tunnel) initKubo(ctx context.Context, repo, swarm, security string) error {
	if _, err := t.ipfs(ctx, Side{}, repo, "init", "--empty-repo", "--profile=test"); err != nil {
		return err
	}
	path := t.path(repo + "/config")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	config := map[string]any{}
	if err := json.Unmarshal(data, &config); err != nil {
		return err
	}
	configureKubo(config, swarm, security)
	if data, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func configureKubo(config map[string]any, swarm, security string) {
	off := map[string]any{"Enabled": false}
	choice := map[string]any{"TLS": false, "Noise": false}
	if security == "" {
		choice = map[string]any{}
	} else {
		choice[security] = 100
	}
	config["Addresses"] = map[string]any{"Swarm": []string{swarm}, "API": "/ip4/127.0.0.1/tcp/0", "Gateway": []string{}}
	config["Bootstrap"] = []string{}
	config["Discovery"] = map[string]any{"MDNS": off}
	config["Swarm"] = map[string]any{
		"DisableNatPortMap": true, "EnableHolePunching": false, "RelayClient": off, "RelayService": off,
		"Transports": map[string]any{"Security": choice},
	}
	config["Routing"] = map[string]any{"Type": "none"}
	config["AutoNAT"] = map[string]any{"ServiceMode": "disabled"}
	config["HTTPRetrieval"], config["Provide"] = off, off
	config["Version"] = map[string]any{"SwarmCheckEnabled": false}
	config["Experimental"] = map[string]any{"Libp2pStreamMounting": true}
}
