package command

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
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
			"Nobody is let in but whom you allow, and who redeems an invite. Runs until Ctrl-C.",
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "allow", Usage: "let `PEER` in for as long as this runs, repeatable"},
			boolFlag("open", "let everybody in who knows the peer ID"),
			boolFlag("invite", "print an invite: one use, over in 1h (on a terminal that is done unasked)"),
			boolFlag("report-peer-id", "send the peer's ID and a newline to the target first", "r"),
			boolFlag("proxy-protocol", "tell the target the peer's address and ID first, by the PROXY protocol v2"),
			&cli.DurationFlag{Name: "survive", Value: registry.DefaultSurviveMax, Usage: "keep connections for `T` at most while the way to the peer is lost, whatever it asks for"},
			&cli.DurationFlag{Name: "silence", Usage: "end a connection without a byte for `T`", DefaultText: "never"},
			limitFlag("max-streams", "take at most `N` connections at once, of all peers together"),
			limitFlag("peer-max-streams", "take at most `N` connections at once of each peer"),
			limitFlag("max-rate", "carry at most `BYTES/s` each way, for all peers together: 512k, 5MB/s, 1MiB"),
			limitFlag("peer-max-rate", "carry at most `BYTES/s` each way for each peer"),
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
	if c.Bool("invite") && tunnel.Open {
		return usagef("--open lets everybody in: --invite says nothing beside it")
	}
	t.invites = c.Bool("invite") || !t.json && !t.quiet && !tunnel.Open && isTerminal(t.Out)
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
		Allow: allow, Open: c.Bool("open"), ReportPeerID: c.Bool("report-peer-id"), ProxyProtocol: c.Bool("proxy-protocol"),
		Silence: registry.Duration(c.Duration("silence")), Survive: surviveFlag(c), Custom: c.Bool("allow-custom-protocol"),
	}
	if err := setLimits(c, &tunnel); err != nil {
		return registry.Tunnel{}, err
	}
	return tunnel, checkTunnel(&tunnel)
}

func limitFlag(name, usage string) cli.Flag {
	return &cli.StringFlag{Name: name, Usage: usage, DefaultText: "no limit"}
}

func setLimits(c *cli.Context, tunnel *registry.Tunnel) error {
	var errs [4]error
	tunnel.MaxStreams, errs[0] = countFlag(c, string(registry.LimitStreams))
	tunnel.PeerMaxStreams, errs[1] = countFlag(c, string(registry.LimitPeerStreams))
	tunnel.MaxRate, errs[2] = rateFlag(c, string(registry.LimitRate))
	tunnel.PeerMaxRate, errs[3] = rateFlag(c, string(registry.LimitPeerRate))
	return cmp.Or(errs[:]...)
}

func (t *tool) parseProtocol(c *cli.Context, name string) (string, error) {
	if err := t.typed(c).checkFirst(); err != nil {
		return "", err
	}
	protocol, err := proto.ParseProtocol(name, c.Bool("allow-custom-protocol") || name == daemon.RelayRight)
	if err == nil {
		return protocol, nil
	}
	hint := "names look like ssh or /x/ssh"
	if strings.HasPrefix(name, "/") {
		hint = "p2ptun " + c.Command.Name + " /x" + proto.ShellQuote(name) + " …, or --allow-custom-protocol"
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
		return "", usageHint(fmt.Sprintf("no TARGET given, and the system knows no port of the name %s", proto.ShellQuote(name)),
			fmt.Sprintf("p2ptun listen %s 127.0.0.1:PORT", named(protocol)))
	}
	if name != lower {
		return "", usageHint(fmt.Sprintf("no TARGET given, and the system's port is of the name %s: names are case-sensitive", lower),
			"p2ptun listen "+proto.ShellQuote(strings.TrimPrefix(strings.TrimSuffix(protocol, name)+lower, proto.Namespace)))
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
	name := named(e.Protocol)
	if e.Access == "open" {
		fmt.Fprintln(t.Out, "access     open to any peer")
	} else {
		fmt.Fprintf(t.Out, "access     closed: %d peers allowed\n", e.Allowed)
		fmt.Fprintf(t.Out, "allow      %s allow %s PEER\n", t.self(), name)
	}
	if e.Invite != "" {
		fmt.Fprintf(t.Out, "invite     p2ptun forward %s%s%s\n", e.Invite, bindFor(e.Target), customFor(e.Protocol))
		return
	}
	fmt.Fprintf(t.Out, "forward    p2ptun forward %s %s\n", name, bestAddr(e.Addrs, e.Peer))
}

// addInvite makes an invite for the ready line of a listen. Without one it
// works as well.
func (t *tool) addInvite(ctx context.Context, client *daemon.Client, e *daemon.Event) {
	if !t.invites || e.Kind != string(registry.KindListen) {
		return
	}
	t.invites = false // one is enough, also after a take-over
	made, err := client.Invite(ctx, daemon.InviteRequest{Protocol: e.Protocol})
	if err != nil {
		t.note("warning: no invite could be made: %v", err)
		return
	}
	e.Invite, e.Until = made.Text, made.Until
	t.made = &made
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
		if s := daemon.AddrScore(a); s > bestScore {
			best, bestScore = text, s
		}
	}
	return best
}
