package command

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"p2ptun/daemon"
)

func (t *tool) relayCommand() *cli.Command {
	return &cli.Command{
		Name: "relay", Usage: "be the relay and meeting point of a network of one's own, on a box that others can dial",
		Description: "Relays, knows the network's nodes (DHT), and prints what the others have to type. Only peers that you allow\n" +
			"may be reached through it: --allow, or `p2ptun allow " + daemon.RelayRight + " PEER`. Runs until Ctrl-C.",
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "allow", Usage: "let `PEER` be reached through this relay, repeatable"},
			boolFlag("open", "let every peer be reached through it"),
			&cli.DurationFlag{Name: "limit-time", Usage: "end a relayed connection after `T`", DefaultText: "no limit; with --open 2m"},
			&cli.StringFlag{Name: "limit-bytes", Usage: "end a relayed connection after `BYTES` each way", DefaultText: "no limit; with --open 128KiB"},
			&cli.IntFlag{Name: "slots", Usage: "at most `N` peers reachable through it", DefaultText: "256"},
			&cli.IntFlag{Name: "circuits", Usage: "at most `N` relayed connections of each peer", DefaultText: "1024"},
		}, hostingFlags()...),
		Action: t.relay,
	}
}

func (t *tool) relay(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	opts, err := t.hosting(c)
	if err != nil {
		return err
	}
	if opts.Relay, err = t.relayOptions(c); err != nil {
		return err
	}
	return t.own(c, opts, t.showRelay)
}

// The limits of a relay that is open to all, which are those that libp2p has by
// default: long enough to find a direct way.
const (
	openTime  = 2 * time.Minute
	openBytes = 128 << 10
)

func (t *tool) relayOptions(c *cli.Context) (*daemon.RelayOptions, error) {
	allow, err := t.peerIDs(c.StringSlice("allow"))
	if err != nil {
		return nil, err
	}
	r := &daemon.RelayOptions{Allow: allow, Open: c.Bool("open"), Duration: c.Duration("limit-time"), Slots: c.Int("slots"), Circuits: c.Int("circuits")}
	if r.Open && len(allow) > 0 {
		return nil, usagef("--open lets every peer in: --allow says nothing beside it")
	}
	if r.Duration < 0 || r.Duration > 0 && r.Duration < time.Second || r.Slots < 0 || r.Circuits < 0 {
		return nil, usagef("a limit can't be negative, and a time is a second at least")
	}
	if c.IsSet("limit-bytes") {
		if r.Bytes, err = parseRate(c.String("limit-bytes")); err != nil {
			return nil, err
		}
	}
	if r.Open && !c.IsSet("limit-time") && !c.IsSet("limit-bytes") {
		r.Duration, r.Bytes = openTime, openBytes
	}
	return r, nil
}

func (t *tool) showRelay(c *cli.Context, opts daemon.Options) error {
	client, err := daemon.Find(c.Context, opts.Home)
	if err != nil {
		return err
	}
	st, err := client.Status(c.Context)
	if err != nil {
		return err
	}
	use := daemon.BestAddrs(st.Addrs, st.Peer)
	if t.json {
		return t.printJSON(daemon.Event{Event: "ready", Kind: "relay", Peer: st.Peer, Addrs: st.Addrs})
	}
	fmt.Fprintf(t.Out, "relay      %s\n", st.Peer)
	for _, a := range st.Addrs {
		fmt.Fprintf(t.Out, "address    %s\n", a)
	}
	fmt.Fprintf(t.Out, "limit      %s\n", relayLimit(opts.Relay))
	if opts.Relay.Open {
		fmt.Fprintln(t.Out, "access     open: every peer may be reached through it")
	} else {
		fmt.Fprintf(t.Out, "access     closed: %d peers may be reached through it\n", len(opts.Relay.Allow))
		fmt.Fprintf(t.Out, "allow      %s allow %s PEER\n", t.self(), daemon.RelayRight)
	}
	if len(use) > 0 {
		fmt.Fprintf(t.Out, "use it     p2ptun listen ssh --relay %s\n", use[0])
		fmt.Fprintf(t.Out, "network    printf 'bootstrap = %s\\nrelays = %s\\n' > net.toml; p2ptun listen ssh --network net.toml\n", tomlList(use), tomlList(use))
	}
	return nil
}

// relayLimit says what ends one relayed connection.
func relayLimit(r *daemon.RelayOptions) string {
	var parts []string
	if r.Duration > 0 {
		parts = append(parts, r.Duration.String())
	}
	if r.Bytes > 0 {
		parts = append(parts, size(r.Bytes)+" each way")
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, " and ") + " for one relayed connection, with all that goes through it"
}

func tomlList(texts []string) string {
	quoted := make([]string, len(texts))
	for i, s := range texts {
		quoted[i] = `"` + s + `"`
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
