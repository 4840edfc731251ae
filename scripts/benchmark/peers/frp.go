package peers

import (
	"context"
	"fmt"
)

// frp is frpc beside the service and frps beside the client: so it is frps that
// starts first.
func frp() *Peer {
	return &Peer{
		Name: "frp", Note: "frp, TLS and yamux", Needs: []string{"frpc", "frps"},
		Prepare: func(_ context.Context, t *Tunnel) error { return t.pickPort() },
		Offer: func(ctx context.Context, t *Tunnel) error {
			if err := t.write("frps.toml", fmt.Sprintf("bindAddr = %q\nbindPort = %d\nproxyBindAddr = \"127.0.0.1\"\nlog.disablePrintColor = true\n", t.Forward.IP, t.port)); err != nil {
				return err
			}
			_, err := t.startUntil(ctx, t.Forward, "started successfully", []string{t.Programs["frps"], "-c", t.path("frps.toml")})
			return err
		},
		Forward: func(ctx context.Context, t *Tunnel) error {
			port, err := t.bindHere()
			if err != nil {
				return err
			}
			if err := t.write("frpc.toml", fmt.Sprintf(`serverAddr = %q
serverPort = %d
log.disablePrintColor = true
[[proxies]]
name = "bench"
type = "tcp"
localIP = "127.0.0.1"
localPort = %s
remotePort = %d
`, t.Forward.IP, t.port, t.servicePort(), port)); err != nil {
				return err
			}
			_, err = t.startUntil(ctx, t.Offer, "start proxy success", []string{t.Programs["frpc"], "-c", t.path("frpc.toml")})
			return err
		},
	}
}
