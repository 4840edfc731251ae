// Package peers starts what is compared: p2ptun, and what a user would pick
// instead.
package peers

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"benchmark/load"
	"benchmark/proc"
)

// Peer is one way to reach a service.
type Peer struct {
	Name string // on the command line and in the results
	Note string // for the table
	// Needs names the programs without which the peer is skipped.
	Needs []string
	// Prepare, if not nil, makes keys and files: its time does not count.
	Prepare func(ctx context.Context, t *Tunnel) error
	// Offer starts the node beside the service, if not nil, and returns when it
	// is ready.
	Offer func(ctx context.Context, t *Tunnel) error
	// Forward starts the node beside the client, if not nil, and sets t.Addr. It
	// returns when that is ready, as far as it can be seen.
	Forward func(ctx context.Context, t *Tunnel) error
}

// Side is where a node runs: here, or on a machine of the network lab.
type Side struct {
	IP   string   // that the other side reaches
	Exec []string // what runs a command there; nil is here
}

// Place is what a tunnel is built between, and from.
type Place struct {
	Offer, Forward Side
	Service        string            // host:port on the offering side's loopback
	Programs       map[string]string // name to path
	Relay          *Relay            // of the network lab; nil for none
}

// Tunnel is one that runs.
type Tunnel struct {
	Place
	Dir  string // of its own, removed at the end
	Addr string // where the client connects, host:port

	Nodes []*proc.Process // the offering one, the forwarding one

	OfferReady   time.Duration // from the start of the offering node
	ForwardReady time.Duration // from the start of the forwarding node
	FirstByte    time.Duration // likewise, until a byte came back

	secret string // what one side must know of the other
	port   int    // where the offering side listens
}

// Start builds a tunnel and returns when a byte has come back through it.
func (p *Peer) Start(ctx context.Context, at Place) (t *Tunnel, err error) {
	t = &Tunnel{Place: at}
	if t.Dir, err = os.MkdirTemp("", "p2ptun-bench-"); err != nil {
		return nil, err
	}
	if err := p.build(ctx, t); err != nil {
		t.Stop()
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	return t, nil
}

// build takes the steps, and the times.
func (p *Peer) build(ctx context.Context, t *Tunnel) (err error) {
	if _, err = timed(ctx, t, p.Prepare); err != nil {
		return err
	}
	if t.OfferReady, err = timed(ctx, t, p.Offer); err != nil {
		return err
	}
	began := time.Now()
	if t.ForwardReady, err = timed(ctx, t, p.Forward); err != nil {
		return err
	}
	err = t.await(ctx)
	t.FirstByte = time.Since(began)
	return err
}

// timed says how long a step took.
func timed(ctx context.Context, t *Tunnel, step func(context.Context, *Tunnel) error) (time.Duration, error) {
	if step == nil {
		return 0, nil
	}
	began := time.Now()
	err := step(ctx, t)
	return time.Since(began), err
}

// Stop ends its nodes and removes its files.
func (t *Tunnel) Stop() {
	for i := len(t.Nodes) - 1; i >= 0; i-- {
		t.Nodes[i].Stop()
	}
	_ = os.RemoveAll(t.Dir)
}

// CPU is what all its processes have used.
func (t *Tunnel) CPU() (sum time.Duration) {
	for _, n := range t.Nodes {
		sum += n.CPU()
	}
	return sum
}

// RSS is the memory of all its processes, in bytes.
func (t *Tunnel) RSS() (sum int64) {
	for _, n := range t.Nodes {
		sum += n.RSS()
	}
	return sum
}

// start starts a node on a side.
func (t *Tunnel) start(s Side, args []string, env ...string) (*proc.Process, error) {
	n, err := proc.Start(append(append([]string{}, s.Exec...), args...), env...)
	if err == nil {
		t.Nodes = append(t.Nodes, n)
	}
	return n, err
}

// startUntil starts a node and waits for a line, whose submatches it gives.
func (t *Tunnel) startUntil(ctx context.Context, s Side, line string, args []string, env ...string) ([]string, error) {
	n, err := t.start(s, args, env...)
	if err != nil {
		return nil, err
	}
	return n.WaitFor(ctx, line)
}

// run runs a command on a side, to its end.
func (t *Tunnel) run(ctx context.Context, s Side, args []string, env ...string) (string, error) {
	return proc.Run(ctx, append(append([]string{}, s.Exec...), args...), env...)
}

// await waits for the first byte, from the forwarding side.
func (t *Tunnel) await(ctx context.Context) error {
	if t.Forward.Exec == nil {
		return load.Await(ctx, t.Addr, proc.Patience)
	}
	_, err := t.run(ctx, t.Forward, []string{t.Programs["self"], "await", t.Addr})
	return err
}

// path is a file of the tunnel's.
func (t *Tunnel) path(name string) string { return filepath.Join(t.Dir, name) }

// write writes one.
func (t *Tunnel) write(name, text string) error {
	return os.WriteFile(t.path(name), []byte(text), 0o600)
}

// bindHere picks a free port for the client to connect to.
func (t *Tunnel) bindHere() (port int, err error) {
	if port, err = freePort(); err == nil {
		t.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	return port, err
}

// pickPort picks a free port for the offering side to listen on.
func (t *Tunnel) pickPort() (err error) {
	t.port, err = freePort()
	return err
}

// contact is where the offering side listens.
func (t *Tunnel) contact() string { return net.JoinHostPort(t.Offer.IP, strconv.Itoa(t.port)) }

// freePort gives a port that is free now: some programs can't choose one and
// say which.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// servicePort is the port of the service.
func (t *Tunnel) servicePort() string {
	_, port, _ := net.SplitHostPort(t.Service)
	return port
}
