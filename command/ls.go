package command

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"p2ptun/proto"
	"p2ptun/registry"
)

func (t *tool) lsCommand() *cli.Command {
	return &cli.Command{
		Name: "ls", Usage: "list the tunnels", Flags: []cli.Flag{headerFlag()}, Action: t.ls,
	}
}

func (t *tool) ls(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	client, err := t.owner(c.Context)
	if err != nil {
		return err
	}
	list, err := client.Tunnels(c.Context)
	if err != nil {
		return err
	}
	return t.printTunnels(c.Bool("v"), list)
}

func (t *tool) printTunnels(header bool, list []registry.TunnelStatus) error {
	var rows [][]string
	for _, s := range list {
		if t.json {
			if err := t.printJSON(s); err != nil {
				return err
			}
			continue
		}
		where, who := s.Bind, s.Peer
		if s.Kind == registry.KindListen {
			where, who = s.Target, s.Access
		}
		if s.Path != nil && s.Path.Relayed {
			who += " (relayed)"
		}
		state := string(s.State)
		if s.Reason != "" {
			state += ": " + s.Reason
		}
		rows = append(rows, []string{
			s.ID, string(s.Kind), s.Protocol, where, who,
			fmt.Sprint(s.Streams), size(s.BytesIn), size(s.BytesOut), state,
		})
	}
	if t.json {
		return nil
	}
	return t.table(header, []string{"ID", "KIND", "PROTOCOL", "ADDRESS", "PEER", "STREAMS", "IN", "OUT", "STATE"}, rows)
}

func (t *tool) closeCommand() *cli.Command {
	return &cli.Command{
		Name: "close", Usage: "close tunnels", ArgsUsage: "[ID...]",
		Description: "What is given must all match. Live connections are reset.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "protocol", Aliases: []string{"p"}, Usage: "of that `PROTOCOL`"},
			&cli.StringFlag{Name: "listen-address", Aliases: []string{"l"}, Usage: "forwards bound to `ADDR`"},
			&cli.StringFlag{Name: "target-address", Aliases: []string{"t"}, Usage: "listens with target `ADDR`"},
			boolFlag("all", "all of them", "a"),
		},
		Action: t.closeTunnels,
	}
}

func (t *tool) closeTunnels(c *cli.Context) error {
	sel, err := selectorOf(c)
	if err != nil {
		return err
	}
	client, err := t.owner(c.Context)
	if err != nil {
		return err
	}
	closed, err := client.Close(c.Context, sel, 0)
	if err != nil {
		return err
	}
	if len(closed) == 0 && !sel.All {
		return &exitError{exitFailure, fmt.Errorf("no such tunnel"), t.self() + " ls"}
	}
	if t.json {
		return t.printTunnels(false, closed)
	}
	for _, s := range closed {
		fmt.Fprintf(t.Out, "closed %s %s %s\n", s.ID, s.Kind, s.Protocol)
	}
	return nil
}

func selectorOf(c *cli.Context) (sel registry.Selector, err error) {
	sel = registry.Selector{IDs: c.Args().Slice(), All: c.Bool("all")}
	if name := c.String("protocol"); name != "" {
		if sel.Protocol, err = proto.ParseProtocol(name, true); err != nil {
			return sel, usagef("%w", err)
		}
	}
	if sel.Bind, err = addrFlag(c, "listen-address"); err != nil {
		return sel, err
	}
	if sel.Target, err = addrFlag(c, "target-address"); err != nil {
		return sel, err
	}
	picks := len(sel.IDs) > 0 || sel.Protocol != "" || sel.Bind != "" || sel.Target != ""
	if picks == sel.All {
		return sel, usageHint("say which tunnels: IDs, -p, -l or -t; or -a for all", "p2ptun close ID")
	}
	return sel, nil
}

func addrFlag(c *cli.Context, name string) (string, error) {
	if c.String(name) == "" {
		return "", nil
	}
	addr, err := proto.ParseBind(c.String(name))
	if err != nil {
		return "", usagef("%w", err)
	}
	return addr.String(), nil
}

func (t *tool) streamCommand() *cli.Command {
	return &cli.Command{
		Name: "stream", Usage: "live connections",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list them", Flags: []cli.Flag{headerFlag()}, Action: t.streamList},
			{
				Name: "close", Usage: "reset them", ArgsUsage: "[ID...]", Action: t.streamClose,
				Flags: []cli.Flag{boolFlag("all", "all of them", "a")},
			},
		},
		Action: needSubcommand,
	}
}

func (t *tool) streamList(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	client, err := t.owner(c.Context)
	if err != nil {
		return err
	}
	list, err := client.Streams(c.Context)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, s := range list {
		if t.json {
			if err := t.printJSON(s); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{
			fmt.Sprint(s.ID), s.Tunnel, s.Protocol, s.Origin, s.Peer, streamWay(s),
			size(s.BytesIn), size(s.BytesOut), time.Since(s.Opened).Round(time.Second).String(),
		})
	}
	if t.json {
		return nil
	}
	return t.table(c.Bool("v"), []string{"ID", "TUNNEL", "PROTOCOL", "LOCAL", "PEER", "PATH", "IN", "OUT", "AGE"}, rows)
}

// streamWay is the way of a connection in a word or two, and what its trunk has
// gone through.
func streamWay(s registry.StreamStatus) string {
	way := "direct " + s.Path.Transport
	if s.Path.Relayed {
		way = "relayed " + s.Path.Transport
	}
	k := s.Trunk
	if k == nil {
		return way
	}
	if !k.Parked.IsZero() {
		way = "parked " + time.Since(k.Parked).Round(time.Second).String()
	}
	if k.Resumed > 0 {
		way += fmt.Sprintf(", resumed %d×", k.Resumed)
	}
	if k.Moved > 0 {
		way += fmt.Sprintf(", moved %d×", k.Moved)
	}
	return way
}

func (t *tool) streamClose(c *cli.Context) error {
	ids, all := c.Args().Slice(), c.Bool("all")
	if (len(ids) > 0) == all {
		return usageHint("say which connections: IDs, or -a for all", "p2ptun stream ls")
	}
	client, err := t.owner(c.Context)
	if err != nil {
		return err
	}
	n, err := client.CloseStreams(c.Context, ids, all)
	if err != nil {
		return err
	}
	if n == 0 && !all {
		return &exitError{exitFailure, fmt.Errorf("no such connection"), t.self() + " stream ls"}
	}
	if t.json {
		return t.printJSON(map[string]int{"closed": n})
	}
	fmt.Fprintf(t.Out, "closed %d\n", n)
	return nil
}
