package peers

import (
	"os/exec"
	"slices"
)

// The transports of libp2p, between IP and PORT.
const (
	overTCP  = "/ip4/IP/tcp/"
	overQUIC = "/ip4/IP/udp/"
)

// Own is the peer that all others are compared with.
const Own = "p2ptun"

// All lists the peers, in the order of the tables.
func All() []*Peer {
	return []*Peer{
		p2ptun(Own, "p2ptun: TCP, connections survive", overTCP+"0"),
		p2ptun("p2ptun-plain", "p2ptun, `--survive 0`", overTCP+"0", "--survive", "0"),
		p2ptun("p2ptun-quic", "p2ptun over QUIC", overQUIC+"0/quic-v1"),
		ssh(), stunnel(),
		kubo("kubo-tls", "Kubo, TCP with TLS", overTCP+"PORT", "TLS"),
		kubo("kubo-noise", "Kubo, TCP with Noise", overTCP+"PORT", "Noise"),
		kubo("kubo-quic", "Kubo, QUIC", overQUIC+"PORT/quic-v1", ""),
		chisel(), frp(), tlsPair(), splice(), plain(),
	}
}

// Missing names a program that a peer needs and that is not there.
func (p *Peer) Missing(programs map[string]string) string {
	i := slices.IndexFunc(p.Needs, func(name string) bool { return programs[name] == "" })
	if i < 0 {
		return ""
	}
	return p.Needs[i]
}

// Installed adds the programs that the system has.
func Installed(programs map[string]string) {
	for _, name := range []string{"ssh", "sshd", "ssh-keygen", "stunnel"} {
		for _, path := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
			if found, err := exec.LookPath(path); err == nil && programs[name] == "" {
				programs[name] = found
			}
		}
	}
}
