package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"p2ptun/access"
	"p2ptun/daemon"
	"p2ptun/home"
	"p2ptun/registry"
)

func (t *tool) allowCommand() *cli.Command {
	return &cli.Command{
		Name: "allow", Usage: "let a peer, or a group, use a protocol", ArgsUsage: "PROTOCOL PEER|@GROUP",
		Description: "Kept in the file `access` of the home, which you may edit as well. Takes effect at once.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "for", Usage: "until `T` from now, 24h for one", DefaultText: "for ever"},
			&cli.StringFlag{Name: "max-streams", Usage: "at most `N` live connections of that peer", DefaultText: "as listen says"},
			&cli.StringFlag{Name: "max-rate", Usage: "at most `BYTES/s` each way for that peer, 5M for one", DefaultText: "as listen says"},
			customFlag(),
		},
		Action: func(c *cli.Context) error { return t.setRule(c, true) },
	}
}

func (t *tool) denyCommand() *cli.Command {
	return &cli.Command{
		Name: "deny", Usage: "keep a peer, or a group, from a protocol, whatever else lets it in", ArgsUsage: "PROTOCOL PEER|@GROUP",
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
	ids, err := t.ruleSubjects(c.Args().Get(1))
	if err != nil {
		return err
	}
	rule := access.Rule{Allow: allow, Protocol: protocol}
	if err := ruleLimits(c, &rule); err != nil {
		return err
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

// ruleSubjects gives the peers that a rule is about, or a group.
func (t *tool) ruleSubjects(arg string) ([]string, error) {
	name, isGroup := strings.CutPrefix(arg, "@")
	if !isGroup {
		return t.peerIDs([]string{arg})
	}
	if err := access.CheckGroupName(name); err != nil {
		return nil, usageHint(err.Error(), t.self()+" access group add NAME PEER")
	}
	return []string{arg}, nil
}

// ruleLimits reads the flags that bound an allow.
func ruleLimits(c *cli.Context, rule *access.Rule) (err error) {
	if c.IsSet("for") {
		if c.Duration("for") <= 0 {
			return usagef("--for must be more than 0")
		}
		rule.Until = time.Now().Add(c.Duration("for") + time.Second - 1).UTC().Truncate(time.Second) // the file has whole seconds, not less than asked for
	}
	if rule.MaxStreams, err = countFlag(c, "max-streams"); err != nil {
		return err
	}
	rule.MaxRate, err = rateFlag(c, "max-rate")
	return err
}

func (t *tool) applyRule(c *cli.Context, rule access.Rule) error {
	return t.change(c,
		func(client *daemon.Client) error {
			if err := client.SetRule(c.Context, rule); err != nil {
				return err
			}
			t.noteNotOffered(c.Context, client, rule.Protocol)
			return nil
		},
		func(dir home.Dir) error { return access.Set(c.Context, dir.Access(), rule) })
}

// noteNotOffered says where nobody listens on a protocol: its name may be
// mistyped, and a denial of that would change nothing.
func (t *tool) noteNotOffered(ctx context.Context, client *daemon.Client, protocol string) {
	tunnels, err := client.Tunnels(ctx)
	listens := func(s registry.TunnelStatus) bool { return s.Kind == registry.KindListen && s.Protocol == protocol }
	if err == nil && protocol != daemon.RelayRight && !slices.ContainsFunc(tunnels, listens) {
		t.note("nobody listens on %s here now: %s ls", protocol, t.self())
	}
}

// change changes who may what: through the running node, where it holds when
// this returns; without one in the file.
func (t *tool) change(c *cli.Context, ask func(*daemon.Client) error, write func(home.Dir) error) error {
	dir, err := t.dir()
	if err != nil {
		return err
	}
	client, err := daemon.Find(c.Context, dir)
	if errors.Is(err, daemon.ErrNoOwner) {
		return write(dir)
	}
	if errors.As(err, new(*daemon.SilentError)) {
		return unconfirmed(write(dir), err)
	}
	if err != nil {
		return err
	}
	return ask(client)
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
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list rules, invites and groups", Action: t.accessList, Flags: []cli.Flag{headerFlag()}},
			t.groupCommand(),
		},
		Action: needSubcommand,
	}
}

func headerFlag() cli.Flag {
	return boolFlag("v", "print a header")
}

// accessRow is one line of `access ls`.
type accessRow struct {
	Verdict    string `json:"verdict"`            // allow, deny, invite, group
	Protocol   string `json:"protocol,omitempty"` // of a group none
	Peer       string `json:"peer,omitempty"`     // any: everybody; of an invite none
	Until      string `json:"until,omitempty"`
	MaxStreams int    `json:"max_streams,omitempty"`
	MaxRate    int64  `json:"max_rate,omitempty"`
	From       string `json:"from"` // file, tunnel N, invite ID
	Group      string `json:"group,omitempty"`
	ID         string `json:"id,omitempty"`
	Uses       *int   `json:"uses,omitempty"` // of an invite: in all, and left
	Left       *int   `json:"left,omitempty"`
	Comment    string `json:"comment,omitempty"`
}

// note is what the last column says.
func (r accessRow) note() string {
	var parts []string
	if r.Left != nil {
		parts = append(parts, fmt.Sprintf("%d of %d uses left", *r.Left, *r.Uses))
	}
	if r.MaxStreams > 0 {
		parts = append(parts, fmt.Sprintf("at most %d connections", r.MaxStreams))
	}
	if r.MaxRate > 0 {
		parts = append(parts, fmt.Sprintf("at most %s/s", size(r.MaxRate)))
	}
	if r.Comment != "" {
		parts = append(parts, r.Comment)
	}
	return strings.Join(parts, "; ")
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
		rows = append(rows, []string{r.Verdict, r.Protocol + r.Group, r.Peer, r.Until, r.From, r.note()})
	}
	if t.json {
		return nil
	}
	return t.table(c.Bool("v"), []string{"VERDICT", "PROTOCOL", "PEER", "UNTIL", "FROM", "NOTE"}, rows)
}

func (t *tool) readAccess(c *cli.Context) (daemon.Access, error) {
	dir, err := t.dir()
	if err != nil {
		return daemon.Access{}, err
	}
	client, err := daemon.Find(c.Context, dir)
	if errors.Is(err, daemon.ErrNoOwner) {
		listing, err := access.List(dir.Access())
		return daemon.Access{Listing: listing, Now: access.Now(dir.Access())}, err
	}
	if err != nil {
		return daemon.Access{}, err
	}
	return client.Access(c.Context)
}

func accessRows(a daemon.Access) []accessRow {
	var rows []accessRow
	for _, r := range a.Rules {
		row := accessRow{Verdict: "deny", Protocol: r.Protocol, Peer: r.Peer, Until: untilText(r.Until, a.Now), From: "file", Comment: r.Comment, MaxStreams: r.MaxStreams, MaxRate: r.MaxRate}
		if r.Allow {
			row.Verdict = "allow"
		}
		rows = append(rows, row)
	}
	for _, f := range a.Flags {
		row := accessRow{Verdict: "allow", Protocol: f.Protocol, Peer: f.Peer, From: "tunnel " + f.Tunnel}
		if f.Peer == "" {
			row.Peer = "any"
		}
		rows = append(rows, row)
	}
	for _, i := range a.Invites {
		rows = append(rows, inviteRows(i, a.Now)...)
	}
	for _, g := range a.Groups {
		for _, p := range g.Peers {
			rows = append(rows, accessRow{Verdict: "group", Group: "@" + g.Name, Peer: p, From: "file"})
		}
	}
	return rows
}

// inviteRows is an invite, and then those whom it let in.
func inviteRows(i access.Invite, now time.Time) []accessRow {
	left := i.Left()
	until := untilText(i.Until, now)
	rows := []accessRow{{Verdict: "invite", Protocol: i.Protocol, Until: until, From: "invite " + i.ID, ID: i.ID, Uses: &i.Uses, Left: &left, Comment: i.Comment}}
	for _, p := range i.Used {
		rows = append(rows, accessRow{Verdict: "allow", Protocol: i.Protocol, Peer: p, Until: until, From: "invite " + i.ID})
	}
	return rows
}

// untilText says what is over by the listener's time, which never goes back.
func untilText(at, now time.Time) string {
	if at.IsZero() {
		return ""
	}
	text := at.UTC().Format(time.RFC3339)
	if !now.Before(at) {
		text += " (over)"
	}
	return text
}

func (t *tool) groupCommand() *cli.Command {
	return &cli.Command{
		Name: "group", Usage: "peers under one name, for rules: allow ssh @NAME",
		Subcommands: []*cli.Command{
			{Name: "add", Usage: "put peers into a group", ArgsUsage: "NAME PEER...", Action: func(c *cli.Context) error { return t.setGroup(c, 2, false) }},
			{Name: "rm", Usage: "take peers out of a group, or the group away", ArgsUsage: "NAME [PEER...]", Action: func(c *cli.Context) error { return t.setGroup(c, 1, true) }},
		},
		Action: needSubcommand,
	}
}

func (t *tool) setGroup(c *cli.Context, least int, remove bool) error {
	if err := wantArgs(c, least, -1); err != nil {
		return err
	}
	req := daemon.GroupRequest{Name: strings.TrimPrefix(c.Args().First(), "@"), Remove: remove}
	if err := access.CheckGroupName(req.Name); err != nil {
		return usagef("%w", err)
	}
	var err error
	if req.Peers, err = t.peerIDs(c.Args().Tail()); err != nil {
		return err
	}
	return t.change(c,
		func(client *daemon.Client) error { return client.SetGroup(c.Context, req) },
		func(dir home.Dir) error { return daemon.SetGroup(c.Context, dir, req) })
}
