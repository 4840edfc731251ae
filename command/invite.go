package command

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	ma "github.com/multiformats/go-multiaddr"
	"github.com/urfave/cli/v2"

	"p2ptun/access"
	"p2ptun/daemon"
	"p2ptun/home"
	"p2ptun/node"
	"p2ptun/proto"
	"p2ptun/registry"
)

// inviteVariable holds an invite for `forward`.
const inviteVariable = "P2PTUN_INVITE"

func (t *tool) inviteCommand() *cli.Command {
	return &cli.Command{
		Name: "invite", Usage: "make an invite: one text that lets in whoever uses it first", ArgsUsage: "PROTOCOL",
		Description: "Prints the command for the other side. Who redeems the invite is let in until it is over;\n" +
			"`allow` lets a peer in for longer. Give it on a way that others can't read.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "for", Value: daemon.DefaultInvite, Usage: "over `T` from now, 24h for one"},
			&cli.IntFlag{Name: "uses", Value: 1, Usage: "how many peers may redeem it"},
			&cli.StringFlag{Name: "comment", Usage: "for `access ls`"},
			customFlag(),
		},
		Subcommands: []*cli.Command{{
			Name: "revoke", Usage: "end an invite, and what those may who have redeemed it", ArgsUsage: "ID", Action: t.revokeInvite,
		}},
		Action: t.invite,
	}
}

func (t *tool) invite(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	protocol, err := t.parseProtocol(c, c.Args().First())
	if err != nil {
		return err
	}
	if c.Duration("for") < time.Second {
		return usageHint("an invite lasts for a second at least", "--for 24h")
	}
	if n := c.Int("uses"); n < 1 || n > access.MaxUses {
		return usageHint(fmt.Sprintf("an invite has 1 to %d uses", access.MaxUses), "--uses 5")
	}
	req := daemon.InviteRequest{Protocol: protocol, For: registry.Duration(c.Duration("for")), Uses: c.Int("uses"), Comment: c.String("comment")}
	var made daemon.InviteReply
	err = t.change(c,
		func(client *daemon.Client) (err error) {
			if made, err = client.Invite(c.Context, req); err == nil {
				t.noteNotOffered(c.Context, client, protocol)
			}
			return err
		},
		func(dir home.Dir) (err error) { made, err = t.inviteAlone(c, dir, req); return err })
	if err != nil {
		return err
	}
	return t.showInvite(made)
}

// inviteAlone makes an invite while no node runs, with the addresses that it
// will most likely have.
func (t *tool) inviteAlone(c *cli.Context, dir home.Dir, req daemon.InviteRequest) (daemon.InviteReply, error) {
	id, err := node.PeerID(c.Context, dir.Key())
	if err != nil {
		return daemon.InviteReply{}, err
	}
	made, err := daemon.NewInvite(c.Context, dir, id, node.LikelyAddrs(dir.Port(), id), req)
	if err == nil {
		t.note("no node runs here: the invite works once there is one: %s listen %s", t.self(), named(req.Protocol))
	}
	return made, err
}

func (t *tool) showInvite(made daemon.InviteReply) error {
	if t.json {
		return t.printJSON(made)
	}
	fmt.Fprintf(t.Out, "invite     p2ptun forward %s%s\n", made.Text, customFor(made.Protocol))
	t.note("%s", inviteText(t, made))
	if made.Addrs == 0 {
		t.note("it holds no address: it works in one LAN")
	}
	return nil
}

// inviteText says what an invite is good for.
func inviteText(t *tool, made daemon.InviteReply) string {
	who := "one peer"
	if made.Uses > 1 {
		who = fmt.Sprintf("%d peers", made.Uses)
	}
	return fmt.Sprintf("the invite lets %s in until %s; to take it back: %s invite revoke %s", who, made.Until.Local().Format("2006-01-02 15:04:05"), t.self(), made.ID)
}

func (t *tool) revokeInvite(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	id := c.Args().First()
	if i, err := proto.ParseInvite(id); err == nil {
		id = i.ID // the whole invite says it too
	}
	if _, err := proto.InviteIDBytes(id); err != nil {
		return usageHint(err.Error(), t.self()+" access ls")
	}
	err := t.change(c,
		func(client *daemon.Client) error { return client.RevokeInvite(c.Context, id) },
		func(dir home.Dir) error { return access.RevokeInvite(c.Context, dir.Access(), id) })
	if errors.Is(err, access.ErrNoInvite) {
		return &exitError{exitFailure, err, t.self() + " access ls"}
	}
	return err
}

// inviteArgs finds the invite that stands for PROTOCOL and PEER in the
// arguments of forward; rest are the others. text is empty where there is
// none.
func (t *tool) inviteArgs(args []string) (text string, rest []string, err error) {
	switch {
	case len(args) > 0 && args[0] == "-":
		text, err = readInvite(t.In)
		return text, args[1:], err
	case len(args) > 0 && proto.LooksLikeInvite(args[0]):
		return args[0], args[1:], nil
	case slices.ContainsFunc(args, looksHeadless):
		return "", nil, usageHint(proto.ErrInviteTypo.Error()+": an argument is like one, but does not start with p2ptun1", wholeInvite)
	case len(args) < 2 && os.Getenv(inviteVariable) != "":
		return os.Getenv(inviteVariable), args, nil
	}
	return "", args, nil
}

// looksHeadless says whether an argument is an invite that has lost its head, or
// has a chat's quotes around it: nothing else that is typed is as long without a
// `/`, and errors must not hold it.
func looksHeadless(arg string) bool {
	const longer = 80 // than any peer ID
	plain := strings.IndexFunc(strings.Trim(arg, "\"'`<>“”‘’„«»"), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }) < 0
	return len(arg) > longer && plain && !proto.LooksLikeInvite(arg)
}

// maxInput bounds what is read of stdin for an invite.
const maxInput = 16 << 10

// readInvite reads lines until there is a whole invite among them, broken into
// several or with words around it, as what `listen` and `invite` print. A person
// types one line.
func readInvite(in io.Reader) (string, error) {
	text := ""
	for lines := bufio.NewScanner(io.LimitReader(in, maxInput)); lines.Scan(); {
		text += lines.Text() + "\n"
		if found, done := findInvite(text); done {
			return found, nil
		}
		if strings.TrimSpace(text) != "" && isTerminalIn(in) {
			break
		}
	}
	if strings.TrimSpace(text) == "" {
		return "", usageHint("no invite on stdin", "p2ptun forward - < FILE")
	}
	found, _ := findInvite(text)
	return cmp.Or(found, text), nil
}

// maxPieces is into how many an invite may be broken.
const maxPieces = 64

// findInvite gives the first word that is meant as an invite, with what follows
// where it is not whole without. done says that more text would change nothing.
func findInvite(text string) (found string, done bool) {
	words := strings.Fields(text)
	at := slices.IndexFunc(words, proto.LooksLikeInvite)
	if at < 0 {
		return "", false
	}
	for end := at + 1; end <= min(len(words), at+maxPieces); end++ {
		found = strings.Join(words[at:end], "")
		if _, err := proto.ParseInvite(found); !errors.Is(err, proto.ErrInviteTypo) {
			return found, true
		}
	}
	return found, len(words) >= at+maxPieces
}

// wholeInvite is the hint for an invite that is not.
const wholeInvite = "copy it once more, from p2ptun1 to its end"

// unsureInvite is the hint for one that may be of a later version.
const unsureInvite = "copy it once more, from p2ptun to its end; if it was whole, ask its owner what p2ptun version says there, and install that one here"

// parseInvite says what to do where an invite is none.
func parseInvite(text string) (proto.Invite, error) {
	i, err := proto.ParseInvite(text)
	if errors.Is(err, proto.ErrInviteUnsure) {
		return i, usageHint(err.Error(), unsureInvite)
	}
	if errors.Is(err, proto.ErrInviteTypo) {
		return i, usageHint(err.Error(), wholeInvite)
	}
	if errors.Is(err, proto.ErrInviteNewer) {
		return i, usageHint(err.Error(), "install the newest p2ptun here, or have the owner type: p2ptun allow PROTOCOL PEER")
	}
	if err != nil {
		return i, usagef("%w", err)
	}
	return i, nil
}

// bindFor is a port that the reader of an invite most likely has free.
func bindFor(target string) string {
	port := targetPort(target)
	switch {
	case port == 0:
		return ""
	case port == 22 || port == 80 || port == 443:
		return map[int]string{22: " 2222", 80: " 8080", 443: " 8443"}[port]
	case port < 1024:
		return fmt.Sprintf(" %d", 10000+port)
	}
	return fmt.Sprintf(" %d", port)
}

// targetPort is 0 where the target has none.
func targetPort(target string) int {
	a, err := ma.NewMultiaddr(target)
	if err != nil {
		return 0
	}
	text, err := a.ValueForProtocol(ma.P_TCP)
	if err != nil {
		return 0
	}
	port, _ := strconv.Atoi(text)
	return port
}
