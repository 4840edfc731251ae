package peers

import (
	"context"
	"strconv"
)

// chisel is ssh's protocol within a WebSocket.
func chisel() *Peer {
	return &Peer{
		Name: "chisel", Note: "chisel, ssh in a WebSocket", Needs: []string{"chisel"},
		Prepare: func(_ context.Context, t *Tunnel) error { return t.pickPort() },
		Offer: func(ctx context.Context, t *Tunnel) error {
			_, err := t.startUntil(ctx, t.Offer, "Listening on", []string{
				t.Programs["chisel"], "server", "--host", t.Offer.IP, "--port", strconv.Itoa(t.port),
			})
			return err
		},
		Forward: func(ctx context.Context, t *Tunnel) error {
			if _, err := t.bindHere(); err != nil {
				return err
			}
			_, err := t.startUntil(ctx, t.Forward, "Connected", []string{
				t.Programs["chisel"], "client", "http://" + t.contact(), t.Addr + ":" + t.Service,
			})
			return err
		},
	}
}
