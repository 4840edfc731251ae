package command

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"p2ptun/access"
	"p2ptun/daemon"
)

func (t *tool) allowCommand() *cli.Command {
	return &cli.Command{
		Name: "allow", Usage: "let a peer use a protocol", ArgsUsage: "PROTOCOL PEER",
		Description: "Kept in the file `access` of the home, which you may edit as well. Takes effect at once.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "for", Usage: "until `T` from now, 24h for one", DefaultText: "for ever"},
			customFlag(),
		},
		Action: func(c *cli.Context) error { return t.setRule(c, true) },
	}
}

func (t *tool) denyCommand() *cli.Command {
	return &cli.Command{
		Name: "deny", Usage: "keep a peer from a protocol, whatever else lets it in", ArgsUsage: "PROTOCOL PEER",
		Description: "Its live connections are reset within a second.",
		Flags:       []cli.Flag{customFlag()},
		Action:      func(c *cli.Context) error { return t.setRule(c, false) },
	}
}

func customFlag() cli.Flag {
	return boolFlag("allow-custom-protocol", "take a protocol outside /x/")
}

// setRule goes through the running node, where it holds when this returns;
// without one it edits the file.
func (t *tool) setRule(c *cli.Context, allow bool) error {
	if err := wantArgs(c, 2, 2); err != nil {
		return err
	}
	protocol, err := t.parseProtocol(c, c.Args().First())
	if err != nil {
		return err
	}
	ids, err := t.peerIDs(c.Args().Slice()[1:])
	if err != nil {
		return err
	}
	rule := access.Rule{Allow: allow, Protocol: protocol}
	if c.IsSet("for") {
		if c.Duration("for") <= 0 {
			return usagef("--for must be more than 0")
		}
		rule.Until = time.Now().Add(c.Duration("for")).UTC().Truncate(time.Second)
	}
	for _, id := range ids {
		rule.Peer = id
		if err := t.applyRule(c, rule); err != nil {
			return err
		}
		if t.json {
			if err := t.printJSON(rule); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tool) applyRule(c *cli.Context, rule access.Rule) error {
	dir, err := t.dir()
	if err != nil {
		return err
	}
	client, err := daemon.Find(c.Context, dir)
	if errors.Is(err, daemon.ErrNoOwner) {
		return access.Set(c.Context, dir.Access(), rule)
	}
	if errors.As(err, new(*daemon.SilentError)) {
		return unconfirmed(access.Set(c.Context, dir.Access(), rule), err)
	}
	if err != nil {
		return err
	}
	return client.SetRule(c.Context, rule)
}

// unconfirmed: the node reads the file by itself when it can again.
func unconfirmed(written, silent error) error {
	if written != nil {
		return errors.Join(written, silent)
	}
	return fmt.Errorf("the rule is written, but nobody has confirmed it: %w", silent)
}

func (t *tool) accessCommand() *cli.Command {
	return &cli.Command{
		Name: "access", Usage: "who may use what",
		Subcommands: []*cli.Command{{
			Name: "ls", Usage: "list the rules", Action: t.accessList,
			Flags: []cli.Flag{headerFlag()},
		}},
		Action: needSubcommand,
	}
}

func headerFlag() cli.Flag {
	return boolFlag("v", "print a header")
}

// accessRow is one right, as `access ls` shows it.
type accessRow struct {
	Verdict  string `json:"verdict"` // allow, deny
	Protocol string `json:"protocol"`
	Peer     string `json:"peer"` // any: everybody
	Until    string `json:"until,omitempty"`
	From     string `json:"from"` // file, tunnel N
	Comment  string `json:"comment,omitempty"`
}

func (t *tool) accessList(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	a, err := t.readAccess(c)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, r := range accessRows(a) {
		if t.json {
			if err := t.printJSON(r); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{r.Verdict, r.Protocol, r.Peer, r.Until, r.From, r.Comment})
	}
	if t.json {
		return nil
	}
	return t.table(c.Bool("v"), []string{"VERDICT", "PROTOCOL", "PEER", "UNTIL", "FROM", "COMMENT"}, rows)
}

func (t *tool) readAccess(c *cli.Context) (daemon.Access, error) {
	dir, err := t.dir()
	if err != nil {
		return daemon.Access{}, err
	}
	client, err := daemon.Find(c.Context, dir)
	if errors.Is(err, daemon.ErrNoOwner) {
		rules, err := access.List(dir.Access())
		return daemon.Access{Rules: rules}, err
	}
	if err != nil {
		return daemon.Access{}, err
	}
	return client.Access(c.Context)
}

func accessRows(a daemon.Access) []accessRow {
	var rows []accessRow
	for _, r := range a.Rules {
		row := accessRow{Verdict: "deny", Protocol: r.Protocol, Peer: r.Peer, From: "file", Comment: r.Comment}
		if r.Allow {
			row.Verdict = "allow"
		}
		if !r.Until.IsZero() {
			row.Until = r.Until.UTC().Format(time.RFC3339)
			if time.Now().After(r.Until) {
				row.Until += " (over)"
			}
		}
		rows = append(rows, row)
	}
	for _, f := range a.Flags {
		row := accessRow{Verdict: "allow", Protocol: f.Protocol, Peer: f.Peer, From: fmt.Sprintf("tunnel %s", f.Tunnel)}
		if f.Peer == "" {
			row.Peer = "any"
		}
		rows = append(rows, row)
	}
	return rows
}
