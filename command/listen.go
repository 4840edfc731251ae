package command

import (
	"context"
	"fmt"
	"net"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/urfave/cli/v2"

	"p2ptun/daemon"
	"p2ptun/proto"
	"p2ptun/registry"
)

func (t *tool) listenCommand() *cli.Command {
	return &cli.Command{
		Name:      "listen",
		Usage:     "offer a local service to peers",
		ArgsUsage: "PROTOCOL [TARGET]",
		Description: "TARGET is 22, host:22, unix:/path or a multiaddr; left out, the system's port of that name.\n" +
			"Nobody is let in but whom you allow. Runs until Ctrl-C.",
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "allow", Usage: "let `PEER` in for as long as this runs, repeatable"},
			boolFlag("open", "let everybody in who knows the peer ID"),
			boolFlag("report-peer-id", "send the peer's ID and a newline to the target first", "r"),
			&cli.DurationFlag{Name: "silence", Usage: "end a connection without a byte for `T`", DefaultText: "never"},
			boolFlag("allow-custom-protocol", "take a protocol outside /x/"),
			boolFlag("bg", "hand it to the running node, which keeps it across restarts"),
		}, hostingFlags()...),
		Action: t.listen,
	}
}

func (t *tool) listen(c *cli.Context) error {
	if err := wantArgs(c, 1, 2); err != nil {
		return err
	}
	tunnel, err := t.listenTunnel(c)
	if err != nil {
		return err
	}
	return t.serve(c, tunnel)
}

func (t *tool) listenTunnel(c *cli.Context) (registry.Tunnel, error) {
	protocol, err := t.parseProtocol(c, c.Args().First())
	if err != nil {
		return registry.Tunnel{}, err
	}
	target := c.Args().Get(1)
	if c.NArg() < 2 {
		if target, err = defaultTarget(c.Context, protocol); err != nil {
			return registry.Tunnel{}, err
		}
	}
	if strings.Contains(target, "://") {
		return registry.Tunnel{}, notURL(target, "TARGET is HOST:PORT", t.typed(c).line(c.Args().First(), urlHost(target)))
	}
	allow, err := t.peerIDs(c.StringSlice("allow"))
	if err != nil {
		return registry.Tunnel{}, err
	}
	tunnel := registry.Tunnel{
		Kind: registry.KindListen, Protocol: protocol, Target: target,
		Allow: allow, Open: c.Bool("open"), ReportPeerID: c.Bool("report-peer-id"),
		Silence: registry.Duration(c.Duration("silence")), Custom: c.Bool("allow-custom-protocol"),
	}
	return tunnel, checkTunnel(&tunnel)
}

func (t *tool) parseProtocol(c *cli.Context, name string) (string, error) {
	if err := t.typed(c).checkFirst(); err != nil {
		return "", err
	}
	protocol, err := proto.ParseProtocol(name, c.Bool("allow-custom-protocol"))
	if err == nil {
		return protocol, nil
	}
	hint := "names look like ssh or /x/ssh"
	if strings.HasPrefix(name, "/") {
		hint = "p2ptun " + c.Command.Name + " /x" + shellQuote(name) + " …, or --allow-custom-protocol"
	}
	return "", usageHint(err.Error(), hint)
}

// checkTunnel brings a tunnel into its normal form; what is wrong is wrong
// use.
func checkTunnel(tunnel *registry.Tunnel) error {
	if err := daemon.Normalize(tunnel); err != nil {
		return usagef("%w", err)
	}
	return nil
}

// defaultTarget is the system's port of a service's name. A port is found
// whatever the case of its name, but a peer would not find the protocol.
func defaultTarget(ctx context.Context, protocol string) (string, error) {
	name := proto.ServiceName(protocol)
	lower := strings.ToLower(name)
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", lower)
	if err != nil || port == 0 {
		return "", usageHint(fmt.Sprintf("no TARGET given, and the system knows no port of the name %s", shellQuote(name)),
			fmt.Sprintf("p2ptun listen %s 127.0.0.1:PORT", shellQuote(protocol)))
	}
	if name != lower {
		return "", usageHint(fmt.Sprintf("no TARGET given, and the system's port is of the name %s: names are case-sensitive", lower),
			"p2ptun listen "+shellQuote(strings.TrimPrefix(strings.TrimSuffix(protocol, name)+lower, proto.Namespace)))
	}
	return fmt.Sprint(port), nil
}

// showListening prints the ready lines of a listen.
func (t *tool) showListening(e daemon.Event) {
	fmt.Fprintf(t.Out, "listening  %s → %s\n", e.Protocol, e.Target)
	fmt.Fprintf(t.Out, "peer       %s\n", e.Peer)
	for _, a := range e.Addrs {
		fmt.Fprintf(t.Out, "address    %s\n", a)
	}
	name := shellQuote(e.Protocol)
	if e.Access == "open" {
		fmt.Fprintln(t.Out, "access     open to any peer")
	} else {
		fmt.Fprintf(t.Out, "access     closed: %d peers allowed\n", e.Allowed)
		fmt.Fprintf(t.Out, "allow      %s allow %s PEER\n", t.self(), name)
	}
	fmt.Fprintf(t.Out, "forward    p2ptun forward %s %s\n", name, bestAddr(e.Addrs, e.Peer))
}

// bestAddr picks the address that most others can dial: a public one, then one
// of the LAN, TCP before QUIC, IPv4 before IPv6; the bare peer ID where there
// is none.
func bestAddr(addrs []string, peer string) string {
	best, bestScore := "/p2p/"+peer, 0
	for _, text := range addrs {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			continue
		}
		if s := addrScore(a); s > bestScore {
			best, bestScore = text, s
		}
	}
	return best
}

func addrScore(a ma.Multiaddr) int {
	score := 1
	if manet.IsPublicAddr(a) {
		score += 8
	}
	if !manet.IsIPLoopback(a) {
		score += 4
	}
	if _, err := a.ValueForProtocol(ma.P_TCP); err == nil {
		score += 2
	}
	if _, err := a.ValueForProtocol(ma.P_IP4); err == nil {
		score++
	}
	return score
}
