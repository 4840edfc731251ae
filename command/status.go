package command

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"p2ptun/daemon"
)

func (t *tool) statusCommand() *cli.Command {
	return &cli.Command{Name: "status", Usage: "how the running node is: addresses, relays, peers and the ways to them", Action: t.status}
}

func (t *tool) status(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	client, err := t.owner(c.Context)
	if err != nil {
		return err
	}
	st, err := client.Status(c.Context)
	if err != nil {
		return err
	}
	if t.json {
		return t.printJSON(st)
	}
	t.showStatus(st)
	return nil
}

func (t *tool) showStatus(st daemon.Status) {
	fmt.Fprintf(t.Out, "peer       %s\n", st.Peer)
	for _, a := range st.Addrs {
		fmt.Fprintf(t.Out, "address    %s\n", a)
	}
	fmt.Fprintf(t.Out, "network    %s%s\n", st.Hosting.Network, dhtText(st.DHT))
	fmt.Fprintf(t.Out, "reachable  %s\n", st.Reachability)
	for _, r := range st.Relays {
		fmt.Fprintf(t.Out, "relay      %s %s\n", r.Relay, relayText(r.Reserved, r.Error, limitText(r.LimitSeconds, int64(r.LimitBytes))))
	}
	for _, p := range st.Peers {
		e := daemon.Event{Path: p.Path, Relay: p.Relay, Transport: p.Transport, Addr: p.Addr, RTTms: p.RTTms, LimitBytes: p.LimitBytes, LimitSeconds: p.LimitSeconds}
		fmt.Fprintf(t.Out, "connected  %s %s\n", p.Peer, pathText(e))
	}
	for _, c := range st.Carried {
		fmt.Fprintf(t.Out, "carried    %s %s from it, %s to it\n", c.Peer, size(c.In), size(c.Out))
	}
	fmt.Fprintf(t.Out, "tunnels    %d, with %d connections\n", st.Tunnels, st.Streams)
	if st.AccessError != "" {
		fmt.Fprintf(t.Out, "warning    %s\n", shown(st.AccessError))
	}
}

func dhtText(nodes int) string {
	if nodes < 0 {
		return ""
	}
	return fmt.Sprintf(" (DHT: %d nodes known)", nodes)
}

func relayText(reserved bool, why, limit string) string {
	if !reserved {
		return "not reserved: " + shown(why)
	}
	return "reserved" + limit
}
