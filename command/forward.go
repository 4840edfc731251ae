package command

import (
	"net"

	ma "github.com/multiformats/go-multiaddr"
	"github.com/urfave/cli/v2"

	"p2ptun/proto"
	"p2ptun/registry"
)

func (t *tool) forwardCommand() *cli.Command {
	return &cli.Command{
		Name:      "forward",
		Usage:     "bring a peer's service to a local address",
		ArgsUsage: "PROTOCOL [BIND] PEER...",
		Description: "BIND is 2222, host:2222, unix:/path or a multiaddr; left out, a free loopback port.\n" +
			"PEER is a peer ID, a multiaddr that ends in /p2p/ID, /dnsaddr/host, or a name from `p2ptun peer add`;\n" +
			"several in order of preference. Runs until Ctrl-C.",
		Flags: append([]cli.Flag{
			boolFlag("wait", "bind even while the peer is away"),
			&cli.DurationFlag{Name: "dial-timeout", Value: defaultDialTimeout, Usage: "`T` that one connection's dial and negotiation may take together"},
			&cli.DurationFlag{Name: "silence", Usage: "end a connection without a byte for `T`", DefaultText: "never"},
			boolFlag("allow-custom-protocol", "take a protocol outside /x/"),
			boolFlag("bg", "hand it to the running node, which keeps it across restarts"),
		}, hostingFlags()...),
		Action: t.forward,
	}
}

func (t *tool) forward(c *cli.Context) error {
	if err := wantArgs(c, 2, -1); err != nil {
		return err
	}
	tunnel, err := t.forwardTunnel(c)
	if err != nil {
		return err
	}
	return t.serve(c, tunnel)
}

// freeBind is a free loopback port.
const freeBind = "/ip4/127.0.0.1/tcp/0"

func (t *tool) forwardTunnel(c *cli.Context) (registry.Tunnel, error) {
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
			"p2ptun forward "+shellQuote(args[0])+" "+shellQuote(bind)+" PEER")
	}
	if err := t.typed(c).checkOrder(bind, peers); err != nil {
		return registry.Tunnel{}, err
	}
	if bind == "" {
		bind = freeBind
	}
	addrs, err := t.peerAddrs(peers)
	if err != nil {
		return registry.Tunnel{}, err
	}
	if c.Duration("dial-timeout") <= 0 {
		return registry.Tunnel{}, usagef("dial-timeout must be more than 0")
	}
	tunnel := registry.Tunnel{
		Kind: registry.KindForward, Protocol: protocol, Bind: bind, Peers: addrs, Wait: c.Bool("wait"),
		DialTimeout: registry.Duration(c.Duration("dial-timeout")), Silence: registry.Duration(c.Duration("silence")),
		Custom: c.Bool("allow-custom-protocol"),
	}
	return tunnel, checkTunnel(&tunnel)
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
