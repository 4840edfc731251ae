package peers

import (
	"context"
	"fmt"
	"strings"
	"time"

	"benchmark/proc"
)

// p2ptun is the project's own, over a transport, with more flags of forward.
func p2ptun(name, note, transport string, flags ...string) *Peer {
	return &Peer{
		Name: name, Note: note, Needs: []string{"p2ptun"},
		Prepare: func(ctx context.Context, t *Tunnel) (err error) {
			if _, err = t.p2ptun(ctx, "offer", "id"); err != nil {
				return err
			}
			t.secret, err = t.p2ptun(ctx, "forward", "id")
			return err
		},
		Offer: func(ctx context.Context, t *Tunnel) error { return t.listen(ctx, transport) },
		Forward: func(ctx context.Context, t *Tunnel) error {
			return t.forward(ctx, transport, flags)
		},
	}
}

// p2ptun runs a command of one home to its end.
func (t *Tunnel) p2ptun(ctx context.Context, home string, args ...string) (string, error) {
	return t.run(ctx, Side{}, append([]string{t.Programs["p2ptun"], "--home", t.path(home)}, args...))
}

// listen starts the offering node; t.secret is then its address.
func (t *Tunnel) listen(ctx context.Context, transport string) error {
	args := []string{t.Programs["p2ptun"], "--home", t.path("offer"), "listen", "bench", t.Service, "--allow", t.secret}
	n, err := t.start(t.Offer, append(args, t.nodeFlags(t.Offer, transport)...))
	if err != nil {
		return err
	}
	if _, err := n.WaitFor(ctx, `^forward    `); err != nil {
		return err
	}
	if t.Relay != nil {
		if t.secret, err = t.p2ptun(ctx, "offer", "id"); err != nil {
			return err
		}
		return t.awaitSlot(ctx)
	}
	m, err := n.WaitFor(ctx, `^address    (\S*/ip4/`+t.Offer.IP+`/\S+)`)
	if err == nil {
		t.secret = m[1]
	}
	return err
}

// forward starts the other node.
func (t *Tunnel) forward(ctx context.Context, transport string, flags []string) error {
	args := []string{t.Programs["p2ptun"], "--home", t.path("forward"), "forward", "bench", t.secret}
	args = append(append(args, flags...), t.nodeFlags(t.Forward, transport)...)
	n, err := t.start(t.Forward, args)
	if err != nil {
		return err
	}
	m, err := n.WaitFor(ctx, `^forwarding /ip4/127\.0\.0\.1/tcp/(\d+) `)
	if err != nil {
		return err
	}
	t.Addr = "127.0.0.1:" + m[1]
	_, err = n.WaitFor(ctx, `^path       `)
	return err
}

// awaitSlot waits until the offering node can be reached through the relay.
func (t *Tunnel) awaitSlot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proc.Patience)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		said, err := t.p2ptun(ctx, "offer", "status")
		if err == nil && strings.Contains(said, "/p2p-circuit") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no slot at the relay: %s, %w", said, ctx.Err())
		case <-again.C:
		}
	}
}

// nodeFlags are those of both commands.
func (t *Tunnel) nodeFlags(s Side, transport string) []string {
	if t.Relay != nil {
		return []string{"--network", t.Relay.Network, "--drain", "0s"}
	}
	return []string{"--network", "none", "--drain", "0s", "--listen-addr", strings.Replace(transport, "IP", s.IP, 1)}
}
