package peers

import (
	"context"
	"net"
)

// plain is no tunnel at all.
func plain() *Peer {
	return &Peer{Name: "tcp", Note: "plain TCP, no tunnel", Forward: func(_ context.Context, t *Tunnel) error {
		t.Addr = net.JoinHostPort(t.Offer.IP, t.servicePort())
		return nil
	}}
}

// splice is two relays that copy within the kernel, without crypto: what no
// tunnel of two processes can be better than.
func splice() *Peer {
	return ceiling("splice", "two relays that splice, no crypto", "relay", "relay")
}

// tlsPair is two relays with a TLS 1.3 connection for each connection.
func tlsPair() *Peer {
	return ceiling("tls-pair", "a TLS 1.3 connection each, 128 KiB to a write", "tls-server", "tls-client")
}

// ceiling is a pair of this program's own relays.
func ceiling(name, note, offer, forward string) *Peer {
	return &Peer{
		Name: name, Note: note,
		Prepare: func(_ context.Context, t *Tunnel) error { return t.pickPort() },
		Offer: func(ctx context.Context, t *Tunnel) error {
			_, err := t.startUntil(ctx, t.Offer, "^ready ", []string{t.Programs["self"], offer, t.contact(), t.Service})
			return err
		},
		Forward: func(ctx context.Context, t *Tunnel) error {
			if _, err := t.bindHere(); err != nil {
				return err
			}
			_, err := t.startUntil(ctx, t.Forward, "^ready ", []string{t.Programs["self"], forward, t.Addr, t.contact()})
			return err
		},
	}
}
