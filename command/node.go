package command

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"

	"p2ptun/daemon"
	"p2ptun/node"
)

// Version is this program's.
const Version = "0.1.0"

func (t *tool) idCommand() *cli.Command {
	return &cli.Command{Name: "id", Usage: "print this node's peer ID", Action: t.id}
}

func (t *tool) id(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	dir, err := t.dir()
	if err != nil {
		return err
	}
	id, err := node.PeerID(c.Context, dir.Key())
	if err != nil {
		return err
	}
	if !t.json {
		fmt.Fprintln(t.Out, id)
		return nil
	}
	addrs := []string{}
	if client, err := daemon.Find(c.Context, dir); err == nil {
		if st, err := client.Status(c.Context); err == nil {
			addrs = st.Addrs
		}
	}
	return t.printJSON(struct {
		Peer  string   `json:"peer"`
		Addrs []string `json:"addrs"`
	}{id, addrs})
}

func (t *tool) pingCommand() *cli.Command {
	return &cli.Command{
		Name: "ping", Usage: "measure the way to a peer", ArgsUsage: "PEER",
		Flags: append([]cli.Flag{
			&cli.IntFlag{Name: "count", Aliases: []string{"c"}, Value: 3, Usage: "how many round trips"},
			boolFlag("until-direct", "go on until the way is direct, for a minute at most (or --count)"),
		}, hostingFlags()...),
		Action: t.ping,
	}
}

// untilDirect is how many round trips, one a second, a direct way may take to
// come.
const untilDirect = 60

// ping asks the running node, or runs one for as long as it takes.
func (t *tool) ping(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	if c.Int("count") < 1 {
		return usagef("count must be at least 1")
	}
	peers, err := t.lookupPeer(c.Args().First())
	if err != nil {
		return err
	}
	opts, err := t.hosting(c)
	if err != nil {
		return err
	}
	client, server, err := daemon.Attach(c.Context, opts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	if server != nil {
		t.tellNetwork(opts)
		server.OnStop(func(daemon.StopReason) { cancel() })
		defer func() { _ = server.Stop(0, true) }()
	}
	return t.pings(ctx, c, client, peers)
}

func (t *tool) pings(ctx context.Context, c *cli.Context, client *daemon.Client, peers []string) error {
	count, toDirect := c.Int("count"), c.Bool("until-direct")
	if toDirect && !c.IsSet("count") {
		count = untilDirect
	}
	for i := range count {
		if i > 0 && !sleep(ctx, time.Second) {
			return nil
		}
		r, err := client.Ping(ctx, peers)
		if err != nil {
			return err
		}
		if err := t.showPing(r); err != nil {
			return err
		}
		if toDirect && !r.Path.Relayed {
			return nil
		}
	}
	if toDirect {
		return &exitError{exitFailure, fmt.Errorf("still relayed after %d round trips", count), t.self() + " doctor PEER"}
	}
	return nil
}

// sleep says false when ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (t *tool) showPing(r daemon.PingReply) error {
	e := daemon.Event{Event: "ping", Peer: r.Peer}
	e.SetPath(r.Path)
	e.RTTms = r.RTTms
	if t.json {
		return t.printJSON(e)
	}
	e.RTTms = 0 // it stands in front
	_, err := fmt.Fprintf(t.Out, "%s  %.2f ms  %s\n", r.Peer, r.RTTms, pathText(e))
	return err
}

func (t *tool) daemonCommand() *cli.Command {
	return &cli.Command{
		Name: "daemon", Usage: "run the node of this home until Ctrl-C, with its kept tunnels",
		Flags: hostingFlags(), Action: t.daemon,
	}
}

func (t *tool) daemon(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	opts, err := t.hosting(c)
	if err != nil {
		return err
	}
	return t.own(c, opts, t.showDaemon)
}

// own runs the node of the home until a signal or `p2ptun stop`; show prints
// the ready lines.
func (t *tool) own(c *cli.Context, opts daemon.Options, show func(*cli.Context, daemon.Options) error) error {
	server, err := daemon.Become(c.Context, opts)
	if err != nil {
		return err
	}
	stop := newStopper(t, server, c.Duration("drain"))
	if err := show(c, opts); err != nil {
		return errors.Join(err, stop.stop(0, true))
	}
	t.tellNetwork(opts)
	_, _ = sd.SdNotify(false, sd.SdNotifyReady)
	select {
	case <-t.Soft.Done():
	case <-stop.wanted:
	}
	_, _ = sd.SdNotify(false, sd.SdNotifyStopping)
	return stop.stop(c.Duration("drain"), !stop.asked())
}

func (t *tool) showDaemon(c *cli.Context, opts daemon.Options) error {
	client, err := daemon.Find(c.Context, opts.Home)
	if err != nil {
		return err
	}
	st, err := client.Status(c.Context)
	if err != nil {
		return err
	}
	if st.AccessError != "" {
		t.note("warning: nobody is let in: %s", st.AccessError)
	}
	if t.json {
		return t.printJSON(daemon.Event{Event: "ready", Kind: "daemon", Peer: st.Peer, Addrs: st.Addrs})
	}
	fmt.Fprintf(t.Out, "peer       %s\n", st.Peer)
	for _, a := range st.Addrs {
		fmt.Fprintf(t.Out, "address    %s\n", a)
	}
	fmt.Fprintf(t.Out, "tunnels    %d kept\n", st.Tunnels)
	return nil
}

func (t *tool) reloadCommand() *cli.Command {
	return &cli.Command{Name: "reload", Usage: "have the running node reread its access rules and kept tunnels", Action: t.reload}
}

func (t *tool) reload(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	client, err := t.owner(c.Context)
	if err != nil {
		return nothingTo("reload", err)
	}
	return client.Reload(c.Context)
}

func (t *tool) stopCommand() *cli.Command {
	return &cli.Command{Name: "stop", Usage: "end the running node, with all its tunnels", Action: t.stop}
}

// nothingTo says that no node is an answer, not a reason to start one.
func nothingTo(verb string, err error) error {
	if !errors.Is(err, daemon.ErrNoOwner) {
		return err
	}
	return &exitError{exitNoNode, fmt.Errorf("nothing to %s: %w", verb, err), "if another home is meant: p2ptun --home DIR " + verb}
}

// stop returns when the node has ended.
func (t *tool) stop(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	dir, err := t.dir()
	if err != nil {
		return err
	}
	client, err := daemon.Find(c.Context, dir)
	if err != nil {
		return nothingTo("stop", err)
	}
	was, err := client.Status(c.Context)
	if err != nil {
		return err
	}
	if err := client.Stop(c.Context); err != nil {
		return err
	}
	return daemon.AwaitEnd(c.Context, dir, was)
}

func (t *tool) versionCommand() *cli.Command {
	return &cli.Command{Name: "version", Usage: "print the version", Action: func(c *cli.Context) error {
		if err := wantArgs(c, 0, 0); err != nil {
			return err
		}
		if t.json {
			return t.printJSON(map[string]string{"version": Version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
		}
		_, err := fmt.Fprintf(t.Out, "p2ptun %s (%s, %s/%s)\n", Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}}
}
