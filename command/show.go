package command

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/time/rate"

	"p2ptun/daemon"
	"p2ptun/registry"
)

// show prints one event of a foreground tunnel.
func (t *tool) show(e daemon.Event) {
	if t.json {
		_ = t.printJSON(e)
	}
	switch e.Event {
	case "ready":
		t.showReady(e)
	case "state":
		t.showState(e)
	case "refused":
		t.showRefused(e)
	case "path":
		t.showPath(e)
	case "trunk":
		t.showTrunk(e)
	case "redeemed":
		t.showRedeemed(e)
	case "lost":
		t.note("%d events were lost: too many at once", e.Lost)
	}
}

func (t *tool) showReady(e daemon.Event) {
	if !t.json {
		if e.Kind == string(registry.KindListen) {
			t.showListening(e)
		} else {
			t.showForwarding(e)
		}
	}
	if t.made != nil {
		t.note("%s", inviteText(t, *t.made))
		t.made = nil
	}
	if e.Warning != "" {
		t.note("warning: %s", e.Warning)
	}
}

func (t *tool) showState(e daemon.Event) {
	switch {
	case e.State == registry.StateClosed || e.State == registry.StateStarting:
	case e.Reason == "":
		t.note("%s: %s", e.Protocol, e.State)
	default:
		t.note("%s: %s: %s", e.Protocol, e.State, e.Reason)
	}
}

// showRefused tells the owner who was not let in and how to let it in, or a
// forwarder which connection was not carried.
func (t *tool) showRefused(e daemon.Event) {
	if e.ID != "" {
		t.showFailure(e)
		return
	}
	more := ""
	if e.Unsaid > 0 {
		more = fmt.Sprintf(" (and %d more refusals that were not shown)", e.Unsaid)
	}
	if e.Reason != daemon.NotAllowed {
		t.note("refused %s, which asked for %s%s: %s", e.Peer, e.Protocol, more, e.Reason)
		return
	}
	t.note("refused %s, which asked for %s%s; to let it in: %s allow %s %s", e.Peer, e.Protocol, more, t.self(), named(e.Protocol), e.Peer)
}

// showRedeemed tells the owner who has come in by an invite.
func (t *tool) showRedeemed(e daemon.Event) {
	t.note("%s has redeemed invite %s to %s (%d uses left) and is let in until %s; for longer: %s allow %s %s",
		e.Peer, e.Invite, e.Protocol, e.Left, e.Until.Local().Format("2006-01-02 15:04:05"), t.self(), named(e.Protocol), e.Peer)
}

// A client that tries again and again does not fill the screen; a log has a
// line for each connection.
const (
	failureBurst = 20
	failureEvery = time.Second
)

// told limits lines, and counts those that were not said. The zero value
// works.
type told struct {
	limit  *rate.Limiter
	unsaid int
}

// say says whether a line may be said now, and how many were not since the
// last.
func (t *told) say() (unsaid int, ok bool) {
	if t.limit == nil {
		t.limit = rate.NewLimiter(rate.Every(failureEvery), failureBurst)
	}
	if !t.limit.Allow() {
		t.unsaid++
		return 0, false
	}
	unsaid, t.unsaid = t.unsaid, 0
	return unsaid, true
}

// showFailure tells a forwarder which connection was not carried.
func (t *tool) showFailure(e daemon.Event) {
	unsaid, ok := t.failures.say()
	if !ok && t.screen {
		return
	}
	more := ""
	if unsaid > 0 && t.screen {
		more = fmt.Sprintf(" (and %d more that were not shown)", unsaid)
	}
	t.note("connection not carried to %s on %s%s: %s", e.Protocol, e.Peer, more, e.Reason)
}

func (t *tool) showForwarding(e daemon.Event) {
	fmt.Fprintf(t.Out, "forwarding %s → %s on %s\n", e.Bind, e.Protocol, e.Peer)
	switch {
	case e.Path != "":
		fmt.Fprintf(t.Out, "path       %s\n", pathText(e))
	case e.Reason != "":
		fmt.Fprintf(t.Out, "path       none yet: %s\n", e.Reason)
	default:
		fmt.Fprintf(t.Out, "path       none yet: %s\n", e.State)
	}
	if e.Path != "" && e.Reason != "" {
		t.note("%s: %s", e.Protocol, e.Reason)
	}
}

// showPath tells a forwarder which way new connections go.
func (t *tool) showPath(e daemon.Event) {
	if e.Path == "" {
		return // the state says it
	}
	t.note("path to %s: %s", e.Peer, pathText(e))
}

// showTrunk tells what has become of connections whose way was lost.
func (t *tool) showTrunk(e daemon.Event) {
	k := e.Trunk
	if k == nil || k.Streams == 0 {
		return
	}
	away := time.Duration(k.AwayMs) * time.Millisecond
	what := fmt.Sprintf("%s, %s on %s", connections(k.Streams), e.Protocol, e.Peer)
	switch k.Op {
	case "parked":
		t.note("%s: the way is lost; kept for up to %s", what, time.Duration(k.SurviveS)*time.Second)
	case "resumed":
		t.note("%s: go on after %s over %s; %s sent again", what, away, wayText(k.To), size(int64(k.Replayed)))
	case "moved":
		t.note("%s: moved from %s to %s; %s sent again", what, wayText(k.From), wayText(k.To), size(int64(k.Replayed)))
	case "ended":
		t.note("%s: ended after %s without a way: %s", what, away, k.Reason)
	}
}

func connections(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// wayText is `direct tcp 192.168.1.7:4001` or `a relay, 12D3…`.
func wayText(p *registry.Path) string {
	switch {
	case p == nil:
		return "?"
	case p.Relayed:
		return "the relay " + p.Relay
	}
	return "direct " + p.Transport + " " + hostPortOf(p.Addr)
}

// pathText is `direct tcp 192.168.1.7:4001, 0.4 ms`, or `relayed by 12D3…, 2 min
// / 128 KiB limit, 31 ms`.
func pathText(e daemon.Event) string {
	s := fmt.Sprintf("%s %s %s", e.Path, e.Transport, hostPortOf(e.Addr))
	if e.Relay != "" {
		s = "relayed by " + e.Relay + limitText(e.LimitSeconds, e.LimitBytes)
	}
	if e.RTTms > 0 {
		s += fmt.Sprintf(", %.1f ms", e.RTTms)
	}
	return s
}

// limitText is what is left of a relay's limit.
func limitText(seconds, bytes int64) string {
	var parts []string
	if seconds > 0 {
		parts = append(parts, (time.Duration(seconds) * time.Second).String())
	}
	if bytes > 0 {
		parts = append(parts, size(bytes))
	}
	if len(parts) == 0 {
		return ""
	}
	return ", " + strings.Join(parts, " / ") + " left of its limit"
}

// keep hands a tunnel to the running node.
func (t *tool) keep(c *cli.Context, tunnel registry.Tunnel) error {
	if len(c.StringSlice("listen-addr")) > 0 || len(c.StringSlice("relay")) > 0 || c.IsSet("network") || c.IsSet("drain") {
		return usagef("--bg hands the tunnel to the running node: --listen-addr, --network, --relay and --drain are for that")
	}
	client, err := t.owner(c.Context)
	if err != nil {
		return err
	}
	e, err := client.Keep(c.Context, tunnel)
	if err != nil {
		self := ""
		if st, serr := client.Status(c.Context); serr == nil {
			self = st.Peer
		}
		return t.explainTunnel(err, tunnel, self)
	}
	t.addInvite(c.Context, client, &e)
	t.show(e)
	t.note("kept across restarts as tunnel %s; to end it: %s close %s", e.ID, t.self(), e.ID)
	return nil
}
