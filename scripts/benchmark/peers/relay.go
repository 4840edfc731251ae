package peers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"benchmark/proc"
)

// Relay is p2ptun's own, of the network lab.
type Relay struct {
	Network string // the file of the network that has it
	dir     string
	node    *proc.Process
}

// StartRelay starts one that lets everybody in, for as much as they like.
func StartRelay(ctx context.Context, s Side, program string) (r *Relay, err error) {
	r = &Relay{}
	if r.dir, err = os.MkdirTemp("", "p2ptun-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.Stop()
		}
	}()
	r.Network = filepath.Join(r.dir, "net.toml")
	args := append(append([]string{}, s.Exec...), program, "--home", filepath.Join(r.dir, "home"), "relay",
		"--listen-addr", "/ip4/"+s.IP+"/tcp/4001", "--listen-addr", "/ip4/"+s.IP+"/udp/4001/quic-v1", "--open", "--limit-time", "0s")
	if r.node, err = proc.Start(args); err != nil {
		return r, err
	}
	m, err := r.node.WaitFor(ctx, `^address +(/ip4/`+regexp.QuoteMeta(s.IP)+`/tcp/\S+)`)
	if err != nil {
		return r, err
	}
	list := fmt.Sprintf("[%q]", m[1])
	return r, os.WriteFile(r.Network, []byte("bootstrap = "+list+"\nrelays = "+list+"\n"), 0o600)
}

// Stop ends it and removes its files.
func (r *Relay) Stop() {
	if r.node != nil {
		r.node.Stop()
	}
	_ = os.RemoveAll(r.dir)
}
