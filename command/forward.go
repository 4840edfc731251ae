package command

import (
	"net"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
	"github.com/urfave/cli/v2"

	"p2ptun/proto"
	"p2ptun/registry"
)

func (t *tool) forwardCommand() *cli.Command {
	return &cli.Command{
		Name:      "forward",
		Usage:     "bring a peer's service to a local address",
		ArgsUsage: "PROTOCOL [BIND] PEER... | INVITE [BIND]",
		Description: "INVITE is what `listen` or `invite` printed; - reads it from stdin, and $P2PTUN_INVITE may hold it:\n" +
			"arguments are seen by others on this machine.\n" +
			"BIND is 2222, host:2222, unix:/path or a multiaddr; left out, a free loopback port.\n" +
			"PEER is a peer ID, a multiaddr that ends in /p2p/ID, /dnsaddr/host, or a name from `p2ptun peer add`;\n" +
			"several in order of preference. Runs until Ctrl-C.",
		Flags: append([]cli.Flag{
			boolFlag("wait", "bind even while the peer is away"),
			&cli.DurationFlag{Name: "dial-timeout", Value: defaultDialTimeout, Usage: "`T` that one connection's dial and negotiation may take together"},
			&cli.DurationFlag{Name: "survive", Value: registry.DefaultSurvive, Usage: "keep connections for `T` while the way to the peer is lost (0: plain streams)"},
			&cli.DurationFlag{Name: "silence", Usage: "end a connection without a byte for `T`", DefaultText: "never"},
			boolFlag("allow-custom-protocol", "take a protocol outside /x/"),
			boolFlag("bg", "hand it to the running node, which keeps it across restarts"),
		}, hostingFlags()...),
		Action: t.forward,
	}
}

func (t *tool) forward(c *cli.Context) error {
	tunnel, err := t.forwardTunnel(c)
	if err != nil {
		return err
	}
	return t.serve(c, tunnel)
}

// surviveFlag is nil where it was not given, so that the node's default holds.
func surviveFlag(c *cli.Context) *registry.Duration {
	if !c.IsSet("survive") {
		return nil
	}
	d := registry.Duration(c.Duration("survive"))
	return &d
}

// freeBind is a free loopback port.
const freeBind = "/ip4/127.0.0.1/tcp/0"

func (t *tool) forwardTunnel(c *cli.Context) (tunnel registry.Tunnel, err error) {
	if c.Duration("dial-timeout") <= 0 {
		return tunnel, usagef("dial-timeout must be more than 0")
	}
	text, rest, err := t.inviteArgs(c.Args().Slice())
	if err != nil {
		return tunnel, err
	}
	if text != "" {
		tunnel, err = t.invitedTunnel(c, text, rest)
	} else {
		tunnel, err = t.namedTunnel(c)
	}
	if err != nil {
		return tunnel, err
	}
	tunnel.Kind, tunnel.Wait, tunnel.Custom = registry.KindForward, c.Bool("wait"), c.Bool("allow-custom-protocol")
	tunnel.DialTimeout, tunnel.Silence = registry.Duration(c.Duration("dial-timeout")), registry.Duration(c.Duration("silence"))
	tunnel.Survive = surviveFlag(c)
	if tunnel.Bind == "" {
		tunnel.Bind = freeBind
	}
	return tunnel, checkTunnel(&tunnel)
}

// invitedTunnel is INVITE [BIND].
func (t *tool) invitedTunnel(c *cli.Context, text string, rest []string) (registry.Tunnel, error) {
	i, err := parseInvite(text)
	if err != nil {
		return registry.Tunnel{}, err
	}
	if len(rest) > 1 || len(rest) == 1 && !proto.LooksLikeEndpoint(rest[0]) {
		return registry.Tunnel{}, usageHint("after an invite comes at most an address to bind", "p2ptun forward p2ptun1… 2222")
	}
	if !c.Bool("allow-custom-protocol") {
		if _, err := proto.ParseProtocol(i.Protocol, false); err != nil {
			return registry.Tunnel{}, usageHint(err.Error(), "if that is meant: --allow-custom-protocol")
		}
	}
	tunnel := registry.Tunnel{Protocol: i.Protocol, Peers: i.Peers(), Invite: strings.Join(strings.Fields(text), "")}
	if len(rest) == 1 {
		tunnel.Bind = rest[0]
	}
	return tunnel, nil
}

// namedTunnel is PROTOCOL [BIND] PEER..., where a PEER may be an invite.
func (t *tool) namedTunnel(c *cli.Context) (registry.Tunnel, error) {
	if err := wantArgs(c, 2, -1); err != nil {
		return registry.Tunnel{}, err
	}
	args := c.Args().Slice()
	protocol, err := t.parseProtocol(c, args[0])
	if err != nil {
		return registry.Tunnel{}, err
	}
	bind, peers := "", args[1:]
	if proto.LooksLikeEndpoint(peers[0]) {
		bind, peers = peers[0], peers[1:]
	}
	if len(peers) == 0 {
		return registry.Tunnel{}, usageHint("no PEER given: "+bind+" is an address to bind",
			"p2ptun forward "+proto.ShellQuote(args[0])+" "+proto.ShellQuote(bind)+" PEER")
	}
	if err := t.typed(c).checkOrder(bind, peers); err != nil {
		return registry.Tunnel{}, err
	}
	tunnel := registry.Tunnel{Protocol: protocol, Bind: bind}
	for _, arg := range peers {
		if proto.LooksLikeInvite(arg) {
			if tunnel.Invite != "" {
				return tunnel, usagef("one invite at most")
			}
			tunnel.Invite = arg
		}
	}
	tunnel.Peers, err = t.peerAddrs(peers)
	return tunnel, err
}

// hostPortOf shows an address without its protocols: 192.168.1.7:4001.
func hostPortOf(addr string) string {
	m, err := ma.NewMultiaddr(addr)
	if err != nil {
		return addr
	}
	host, herr := m.ValueForProtocol(ma.P_IP4)
	if herr != nil {
		host, herr = m.ValueForProtocol(ma.P_IP6)
	}
	port, perr := m.ValueForProtocol(ma.P_TCP)
	if perr != nil {
		port, perr = m.ValueForProtocol(ma.P_UDP)
	}
	if herr != nil || perr != nil {
		return addr
	}
	return net.JoinHostPort(host, port)
}
