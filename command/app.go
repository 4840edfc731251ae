package command

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"p2ptun/daemon"
	"p2ptun/home"
	"p2ptun/proto"
)

// Env is what a command has of the outside world.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	// Soft ends with the first signal, Hard with the second.
	Soft, Hard context.Context
}

// Run runs one command line, args[0] being the program's name, and gives its
// exit code.
func Run(env Env, args []string) int {
	t := &tool{Env: env, screen: isTerminal(env.Err)}
	app := t.app()
	ordered, path, err := reorder(app, args)
	t.path = path
	if err == nil {
		err = app.RunContext(env.Soft, ordered)
	}
	return t.fail(err)
}

// tool is one run of the program.
type tool struct {
	Env
	json  bool
	quiet bool
	home  string   // as given by --home; empty for the default
	path  []string // the command's name
	log   *slog.Logger

	made     *daemon.InviteReply // an invite that was not explained yet
	invites  bool                // the ready line of a listen is to have one
	screen   bool                // a person reads stderr, not a log
	failures told                // of connections that a forward did not carry
}

const description = `p2ptun makes a TCP service on one machine appear on another, by peer ID.

On the machine with the service:   p2ptun listen ssh
On the other one:                  the command that it prints: p2ptun forward p2ptun1… 2222
Then:                              ssh -p 2222 localhost

Exit codes: 0 done, or ended by a signal after being ready; 1 failure;
2 wrong use; 3 not allowed; 4 peer not reached; 5 peer reached, service not
there or not answering; 6 local address taken; 7 no node running.`

func (t *tool) app() *cli.App {
	return &cli.App{
		Name:                      "p2ptun",
		HelpName:                  "p2ptun",
		Usage:                     "a TCP service of one machine on another, by peer ID, over libp2p",
		Description:               description,
		Version:                   Version,
		HideVersion:               true,
		Writer:                    t.Out,
		ErrWriter:                 t.Err,
		EnableBashCompletion:      true,
		DisableSliceFlagSeparator: true,
		OnUsageError:              onUsageError,
		ExitErrHandler:            func(*cli.Context, error) {},
		Before:                    t.before,
		Action:                    func(c *cli.Context) error { return cli.ShowAppHelp(c) },
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "home", EnvVars: []string{"P2PTUN_HOME"}, Usage: "`DIR` of identity, rules and kept tunnels", DefaultText: home.Default()},
			boolFlag("json", "print JSON, one object a line"),
			&cli.StringFlag{Name: "log-level", Value: "warn", Usage: "debug, info, warn or error"},
			boolFlag("quiet", "no notes on stderr, only errors", "q"),
		},
		Commands: t.commands(),
	}
}

func (t *tool) commands() []*cli.Command {
	commands := []*cli.Command{
		t.listenCommand(), t.forwardCommand(),
		t.lsCommand(), t.closeCommand(), t.streamCommand(),
		t.allowCommand(), t.denyCommand(), t.inviteCommand(), t.accessCommand(), t.peerCommand(),
		t.idCommand(), t.pingCommand(), t.doctorCommand(),
		t.statusCommand(), t.daemonCommand(), t.relayCommand(), t.reloadCommand(), t.stopCommand(),
		t.completionCommand(), t.manCommand(), t.versionCommand(),
	}
	setUsageErrors(commands)
	return commands
}

func setUsageErrors(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = onUsageError
		setUsageErrors(c.Subcommands)
	}
}

func (t *tool) before(c *cli.Context) error {
	t.json, t.quiet, t.home = c.Bool("json"), c.Bool("quiet"), c.String("home")
	if env, found := os.LookupEnv("P2PTUN_HOME"); t.home == "" && c.IsSet("home") && (!found || env != "") {
		return usageHint("--home is empty", "leave it out for "+home.Default())
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return usagef("log level %q is none of debug, info, warn, error", c.String("log-level"))
	}
	t.log = slog.New(slog.NewTextHandler(redacting{t.Err}, &slog.HandlerOptions{Level: level}))
	return nil
}

// dir opens the home.
func (t *tool) dir() (home.Dir, error) {
	path := t.home
	if path == "" {
		path = home.Default()
	}
	return home.Open(path)
}

// self is how this program is called in a command to paste.
func (t *tool) self() string {
	if t.home == "" || t.home == os.Getenv("P2PTUN_HOME") {
		return "p2ptun"
	}
	return "p2ptun --home " + proto.ShellQuote(t.home)
}

// owner gives a client of the running node, or exit code 7.
func (t *tool) owner(ctx context.Context) (*daemon.Client, error) {
	dir, err := t.dir()
	if err != nil {
		return nil, err
	}
	return daemon.Find(ctx, dir)
}

// tellNetwork says, once for each home, what leaves the network by default.
func (t *tool) tellNetwork(opts daemon.Options) {
	h := opts.Hosting.Network
	if h == "" && opts.Relay == nil && (opts.Inherit.Network == "" || opts.Inherit.Network == daemon.NetworkPublic) && opts.Home.TellOnce("public") {
		t.note("peers are found by the public IPFS DHT too, whose nodes see this peer ID and its addresses; to turn that off: --network lan")
	}
	if n, err := daemon.ReadNetwork(h); err == nil && n.PSK != "" {
		t.note("a network with a pre-shared key has no QUIC: TCP alone is used")
	}
}

// network gives a network's file by its absolute path.
func network(name string) (string, error) {
	switch name {
	case "", daemon.NetworkPublic, daemon.NetworkLAN, daemon.NetworkNone:
		return name, nil
	}
	if _, err := os.Stat(name); err != nil {
		return "", usageHint("network "+proto.ShellQuote(name)+" is none of public, lan, none, nor a file", "--network lan")
	}
	path, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	if _, err := daemon.ReadNetwork(path); err != nil {
		return "", err
	}
	return path, nil
}

// isTerminal says whether a person reads that.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// isTerminalIn says whether a person writes that.
func isTerminalIn(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// boolFlag is a switch, which is off unless it is named.
func boolFlag(name, usage string, aliases ...string) cli.Flag {
	return &cli.BoolFlag{Name: name, Aliases: aliases, Usage: usage, DisableDefaultText: true}
}

// hostingFlags are those of commands that may host the node.
func hostingFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "listen-addr", Usage: "`MULTIADDR` where libp2p listens, repeatable (default: TCP and QUIC on a port that is kept)"},
		&cli.StringFlag{Name: "network", Usage: "who helps to find peers: `public` (mDNS and the IPFS DHT, the default), lan (mDNS), none (given addresses only), or a FILE", DefaultText: "public"},
		&cli.StringSliceFlag{Name: "relay", Usage: "be reachable, and reach others, through the relay at `ADDR`, repeatable"},
		&cli.DurationFlag{Name: "drain", Value: 10 * time.Second, Usage: "how long live connections may finish at a stop; a second signal ends at once"},
	}
}

// hosting reads those flags.
func (t *tool) hosting(c *cli.Context) (daemon.Options, error) {
	dir, err := t.dir()
	if err != nil {
		return daemon.Options{}, err
	}
	h := daemon.Hosting{ListenAddrs: c.StringSlice("listen-addr"), Relays: c.StringSlice("relay")}
	if h.Network, err = network(c.String("network")); err != nil {
		return daemon.Options{}, err
	}
	if _, err := proto.ParseBoxes(h.Relays); err != nil {
		return daemon.Options{}, usageHint("relay: "+err.Error(), "--relay /ip4/203.0.113.7/tcp/4001/p2p/12D3KooW…, as `p2ptun relay` prints it")
	}
	for _, a := range h.ListenAddrs {
		if err := checkListenAddr(a); err != nil {
			return daemon.Options{}, err
		}
	}
	if c.Duration("drain") < 0 {
		return daemon.Options{}, usagef("drain can't be negative")
	}
	return daemon.Options{Home: dir, Hosting: h, Version: Version, Log: t.log}, nil
}
