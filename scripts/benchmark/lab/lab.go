// Package lab makes small internets of network namespaces, with scripts/netlab.
package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"benchmark/peers"
	"benchmark/proc"
)

// Lab is one that is up.
type Lab struct {
	script, name string
}

// Why says why there can be no lab here, "" where there can.
func Why() string {
	if os.Getuid() != 0 {
		return "only root can make networks"
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return "no /dev/net/tun"
	}
	for _, need := range []string{"ip", "bridge", "nft", "flock"} {
		if _, err := exec.LookPath(need); err != nil {
			return "no " + need + "; hint: Debian: apt-get install iproute2 nftables util-linux"
		}
	}
	return ""
}

// Up builds a lab of that topology.
func Up(ctx context.Context, script string, args ...string) (*Lab, error) {
	l := &Lab{script: script, name: fmt.Sprintf("bench-%d", os.Getpid())}
	if _, err := l.Do(ctx, append([]string{"up"}, args...)...); err != nil {
		l.Down()
		return nil, err
	}
	return l, nil
}

// Do runs a netlab command and gives what it prints.
func (l *Lab) Do(ctx context.Context, args ...string) (string, error) {
	return proc.Run(ctx, append([]string{l.script}, args...), "NETLAB_NAME="+l.name)
}

// Down takes it down, whatever state it is in.
func (l *Lab) Down() { _, _ = l.Do(context.Background(), "down") }

// Side is one of its machines, by the address that others reach.
func (l *Lab) Side(ctx context.Context, host string) (peers.Side, error) {
	ip, err := l.Do(ctx, "addr", host)
	return peers.Side{IP: ip, Exec: []string{"env", "NETLAB_NAME=" + l.name, l.script, "exec", host}}, err
}
