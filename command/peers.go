package command

import (
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"p2ptun/home"
	"p2ptun/proto"
)

const defaultDialTimeout = 30 * time.Second

// peerAddrs turns PEER arguments into addresses: names are looked up in the
// book.
func (t *tool) peerAddrs(typed []string) ([]string, error) {
	var addrs []string
	for _, arg := range typed {
		found, err := t.lookupPeer(arg)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, found...)
	}
	return addrs, nil
}

func (t *tool) lookupPeer(arg string) ([]string, error) {
	if proto.LooksLikeInvite(arg) {
		i, err := parseInvite(arg)
		return i.Peers(), err
	}
	p, err := proto.ParsePeer(arg)
	if err != nil {
		return nil, usageHint(err.Error(), "a peer looks like 12D3KooW… or /ip4/192.168.1.7/tcp/4001/p2p/12D3KooW…")
	}
	if p.Name == "" {
		return []string{arg}, nil
	}
	dir, err := t.dir()
	if err != nil {
		return nil, err
	}
	addrs, err := dir.FindName(p.Name)
	if err != nil {
		return nil, &exitError{exitUsage, err, t.self() + " peer add " + p.Name + " ADDR"}
	}
	return addrs, nil
}

// peerIDs turns PEER arguments into bare peer IDs, for rules.
func (t *tool) peerIDs(typed []string) ([]string, error) {
	if slices.ContainsFunc(typed, proto.LooksLikeInvite) { // it is of who made it, who is not meant
		return nil, usageHint("an invite is no peer to let in: whoever gets it redeems it", "p2ptun forward p2ptun1… 2222")
	}
	addrs, err := t.peerAddrs(typed)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, addr := range addrs {
		p, err := proto.ParsePeer(addr)
		if err != nil {
			return nil, err
		}
		if p.ID == "" {
			return nil, usagef("peer %s: a rule needs a peer ID", addr)
		}
		ids = append(ids, p.ID.String())
	}
	return ids, nil
}

func (t *tool) peerCommand() *cli.Command {
	return &cli.Command{
		Name:  "peer",
		Usage: "names for peers",
		Subcommands: []*cli.Command{
			{Name: "add", Usage: "name a peer, or change what the name stands for", ArgsUsage: "NAME ADDR...", Action: t.peerAdd},
			{Name: "rm", Usage: "forget a name", ArgsUsage: "NAME", Action: t.peerRemove},
			{Name: "ls", Usage: "list the names", Action: t.peerList},
		},
		Action: needSubcommand,
	}
}

func (t *tool) peerAdd(c *cli.Context) error {
	if err := wantArgs(c, 2, -1); err != nil {
		return err
	}
	args := c.Args().Slice()
	if err := proto.CheckPeerName(args[0]); err != nil {
		return usageHint(err.Error(), "p2ptun peer add laptop 12D3KooW…")
	}
	for _, addr := range args[1:] {
		p, err := proto.ParsePeer(addr)
		if err != nil {
			return usageHint(err.Error(), "an address looks like 12D3KooW… or /ip4/192.168.1.7/tcp/4001/p2p/12D3KooW…")
		}
		if p.Name != "" {
			return usagef("%s is a name, not an address", addr)
		}
	}
	dir, err := t.dir()
	if err != nil {
		return err
	}
	return dir.SetName(c.Context, home.NamedPeer{Name: args[0], Addrs: args[1:]})
}

func (t *tool) peerRemove(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	dir, err := t.dir()
	if err != nil {
		return err
	}
	return dir.RemoveName(c.Context, c.Args().First())
}

func (t *tool) peerList(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	dir, err := t.dir()
	if err != nil {
		return err
	}
	names, err := dir.Names()
	if err != nil {
		return err
	}
	var rows [][]string
	for _, p := range names {
		if t.json {
			if err := t.printJSON(p); err != nil {
				return err
			}
		}
		rows = append(rows, []string{p.Name, strings.Join(p.Addrs, " ")})
	}
	if t.json {
		return nil
	}
	return t.table(false, []string{"NAME", "ADDRESSES"}, rows)
}

// needSubcommand is the action of a command that is only a group.
func needSubcommand(c *cli.Context) error {
	var names []string
	for _, sub := range c.Command.Subcommands {
		if sub.Name != "help" {
			names = append(names, sub.Name)
		}
	}
	return usageHint("p2ptun "+c.Command.Name+" needs one of: "+strings.Join(names, ", "), "p2ptun "+c.Command.Name+" --help")
}
