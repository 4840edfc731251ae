package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"p2ptun/access"
	"p2ptun/home"
	"p2ptun/node"
	"p2ptun/proto"
	"p2ptun/registry"
)

// The steps of `p2ptun doctor`: those of the home's files, which need no node,
// those of the running node, and those of one peer (in doctor_peer.go). A step
// that did not try something does not say ok.

// Result is what came of a step.
type Result string

const (
	ResultOK      Result = "ok"
	ResultFail    Result = "fail"
	ResultSkipped Result = "skipped"
)

// Step is one line of a diagnosis.
type Step struct {
	Event  string `json:"event"` // step
	Name   string `json:"name"`
	Result Result `json:"result"`
	Detail string `json:"detail"` // what was found, or why it failed or was skipped
	Hint   string `json:"hint"`   // what to do next; may be empty
	// Code tells failures of a peer apart; empty for others.
	Code Code `json:"code,omitempty"`
}

// check is one step: it may find several things of one name.
type check struct {
	name string
	run  func(context.Context) []Step
}

// perform does the checks in their order and hands over what each finds; it
// counts failures.
func perform(ctx context.Context, checks []check, say func(Step)) (failures int) {
	for _, c := range checks {
		if ctx.Err() != nil {
			break
		}
		for _, st := range c.run(ctx) {
			st.Event, st.Name = "step", c.name
			st.Detail, st.Hint = proto.Redact(st.Detail), proto.Redact(st.Hint)
			if st.Result == ResultFail {
				failures++
			}
			say(st)
		}
	}
	return failures
}

func found(format string, args ...any) []Step {
	return []Step{{Result: ResultOK, Detail: fmt.Sprintf(format, args...)}}
}

func skipped(hint, format string, args ...any) []Step {
	return []Step{{Result: ResultSkipped, Detail: fmt.Sprintf(format, args...), Hint: hint}}
}

func failed(hint, format string, args ...any) []Step {
	return []Step{{Result: ResultFail, Detail: fmt.Sprintf(format, args...), Hint: hint}}
}

// failedBy takes hint and text from an error.
func failedBy(err error) []Step {
	return failed(hintOf(err), "%v", err)
}

// coded marks the failures of a peer.
func coded(code Code, steps []Step) []Step {
	for i := range steps {
		if steps[i].Result == ResultFail {
			steps[i].Code = code
		}
	}
	return steps
}

// CheckHome does the steps on the files of the home at path. It says whether
// the home can be used at all.
func CheckHome(ctx context.Context, path string, say func(Step)) (usable bool, failures int) {
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	dir := home.Dir(abs)
	failures = perform(ctx, []check{
		{"home", func(context.Context) (s []Step) { s, usable = checkDir(path); return s }},
		{"identity", func(ctx context.Context) []Step { return checkIdentity(ctx, dir) }},
		{"rules", func(context.Context) []Step { return checkRules(dir) }},
		{"tunnels", func(context.Context) []Step { return checkKept(dir) }},
		{"names", func(context.Context) []Step { return checkNames(dir) }},
		{"space", func(context.Context) []Step { return checkSpace(dir) }},
		{"clock", func(context.Context) []Step { return checkClock(dir) }},
	}, say)
	return usable, failures
}

func checkDir(path string) (steps []Step, usable bool) {
	dir, err := home.Open(path)
	if err != nil {
		return failedBy(err), false
	}
	return found("%s, and nobody else may write to it", dir), true
}

func checkIdentity(ctx context.Context, dir home.Dir) []Step {
	switch _, err := os.Stat(dir.Key()); {
	case errors.Is(err, fs.ErrNotExist):
		return skipped("", "no key yet: the first node of this home makes one")
	case err != nil:
		return failed("mend the rights of "+dir.Key(), "%v", err)
	}
	id, err := node.PeerID(ctx, dir.Key())
	if err != nil {
		return failedBy(err)
	}
	return found("%s", id)
}

func checkRules(dir home.Dir) []Step {
	t := access.New(dir.Access(), func() {})
	if err := t.Err(); err != nil {
		return failedBy(fmt.Errorf("nobody is let in: %w", err))
	}
	listing, err := access.List(dir.Access())
	if err != nil {
		return failedBy(err)
	}
	return found("%d rules, %d invites, %d groups", len(listing.Rules), len(listing.Invites), len(listing.Groups))
}

func checkKept(dir home.Dir) []Step {
	data, err := readBook(dir.Tunnels())
	if err != nil {
		return failedBy(fmt.Errorf("no node can start: %w", err))
	}
	kept, err := parseBook(dir.Tunnels(), data)
	if err != nil {
		return failedBy(fmt.Errorf("no node can start: %w", err))
	}
	return found("%d kept", len(kept))
}

func checkNames(dir home.Dir) []Step {
	names, err := dir.Names()
	if err != nil {
		return failed("edit "+dir.Peers(), "%v", err)
	}
	return found("%d names of peers", len(names))
}

// spaceTried is how much is written, in bytes, and taken away again.
const spaceTried = 256 << 10

func checkSpace(dir home.Dir) []Step {
	f, err := os.CreateTemp(string(dir), ".doctor.*")
	if err == nil {
		_, err = f.Write(make([]byte, spaceTried))
		err = errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return failed("make room on the disk of "+string(dir)+", or mend its rights", "can't write there: %v", err)
	}
	return found("%d KiB were written and removed again", spaceTried>>10)
}

// checkClock compares the clock with what this home has seen of it; nobody
// outside is asked.
func checkClock(dir home.Dir) []Step {
	seen, err := access.LastSeen(dir.Access())
	if err != nil {
		return failedBy(err)
	}
	what := "the time that was noted last"
	for _, path := range []string{dir.Key(), dir.Access(), dir.Tunnels(), dir.Addrs()} {
		if info, err := os.Stat(path); err == nil && info.ModTime().After(seen) {
			seen, what = info.ModTime(), "the last change of "+path
		}
	}
	switch now := time.Now(); {
	case seen.IsZero():
		return skipped("", "it says %s; this home has seen no other time yet", stampText(now))
	case seen.Sub(now) > 2*time.Minute:
		return failed("set the clock; if it is right, and was wrong before: touch "+dir.Key(), "it says %s, which is before %s, %s", stampText(now), what, stampText(seen))
	default:
		return found("%s, not before %s, %s", stampText(now), what, stampText(seen))
	}
}

func stampText(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// DoctorRequest is the body of `POST /doctor`.
type DoctorRequest struct {
	// Peers are as proto.ParsePeer reads them, without names; the first that
	// is reached is examined. If empty, only the node is.
	Peers []string `json:"peers,omitempty"`
	// Protocol is what the peer is asked about. If empty, it is not asked.
	Protocol string `json:"protocol,omitempty"`
}

func (r *DoctorRequest) normalize() error {
	if len(r.Peers) > maxPeers {
		return usage(fmt.Sprintf("doctor: at most %d peers", maxPeers))
	}
	if r.Protocol == "" {
		return nil
	}
	if len(r.Peers) == 0 {
		return usage("doctor: a protocol needs a peer")
	}
	name, err := proto.ParseProtocol(r.Protocol, true)
	if err != nil {
		return usage(err.Error())
	}
	r.Protocol = name
	return nil
}

// DoctorEnd is the last line of a diagnosis.
type DoctorEnd struct {
	Event  string `json:"event"` // doctor
	Failed int    `json:"failed"`
}

// postDoctor carries the steps, a line each, as they are done.
func (s *Server) postDoctor(w http.ResponseWriter, r *http.Request) error {
	var req DoctorRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if err := req.normalize(); err != nil {
		return err
	}
	ctx, cancel := s.untilClosing(r.Context())
	defer cancel()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := lineWriter{w: w}
	d := &doctor{s: s, req: req}
	defer d.close()
	failures := perform(ctx, d.checks(), func(st Step) { out.write(st) })
	if ctx.Err() == nil {
		out.write(DoctorEnd{"doctor", failures})
	}
	return nil
}

// Doctor has the node examine itself and a peer, and hands each step to on.
func (c *Client) Doctor(ctx context.Context, req DoctorRequest, on func(Step)) error {
	resp, err := c.do(ctx, "POST", "/doctor", req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var st Step
		if err := d.Decode(&st); err != nil {
			return cmp.Or(ctx.Err(), fmt.Errorf("%w: %w", ErrOwnerGone, err))
		}
		if st.Event != "step" {
			return nil
		}
		on(st)
	}
}

// NodeSteps are the names of the steps that need a node.
func NodeSteps(peer bool) (names []string) {
	d := &doctor{}
	if peer {
		d.req.Peers = []string{""}
	}
	for _, c := range d.checks() {
		names = append(names, c.name)
	}
	return names
}

// doctor is one diagnosis by a running node.
type doctor struct {
	s   *Server
	req DoctorRequest

	// What the steps on the peer have found so far.
	release func()
	peer    string // the one that was reached, or was tried last
	lost    error  // why it is not reached
	before  bool   // it was connected already
	took    time.Duration
	verdict proto.Verdict
	asked   error // why the peer could not be asked
}

func (d *doctor) close() {
	if d.release != nil {
		d.release()
	}
}

func (d *doctor) checks() []check {
	list := []check{
		{"listen", d.listen}, {"dns", d.dns}, {"bootstrap", d.bootstrap}, {"lan", d.lan},
		{"nat", d.nat}, {"relay", d.relay}, {"reachable", d.reachable},
	}
	if len(d.req.Peers) == 0 {
		return list
	}
	return append(list,
		check{"found", d.find}, check{"dialled", d.dialled}, check{"punch", d.ifReached(d.punch)},
		check{"allowed", d.ifReached(d.allowed)}, check{"service", d.ifReached(d.service)},
		check{"rtt", d.ifReached(d.rtt)}, check{"throughput", d.ifReached(d.throughput)})
}

func (d *doctor) network() string { return d.s.opts.Hosting.Network }

func (d *doctor) listen(context.Context) []Step {
	return judgeListen(d.s.node.Listening(), d.s.opts.Hosting.ListenAddrs)
}

func judgeListen(have, asked []string) []Step {
	if len(have) == 0 {
		return failed("name other addresses with --listen-addr", "this node listens nowhere")
	}
	var missing []string
	for _, a := range asked {
		if !slices.ContainsFunc(have, func(h string) bool { return fits(a, h) }) {
			missing = append(missing, a)
		}
	}
	if len(missing) > 0 {
		return failed("end what has the port, or name other addresses with --listen-addr",
			"not on %s: taken, or not an address of this machine", strings.Join(missing, ", "))
	}
	detail := strings.Join(have, ", ")
	for _, ip := range []string{"4", "6"} {
		if !slices.ContainsFunc(have, func(h string) bool { return strings.HasPrefix(h, "/ip"+ip) }) {
			detail += "; not on IPv" + ip
		}
	}
	return found("%s", detail)
}

// fits says that a node asked to listen on one address may have the other; port
// 0 is any.
func fits(asked, have string) bool {
	if a, err := ma.NewMultiaddr(asked); err == nil {
		asked = a.String()
	}
	want, got := strings.Split(asked, "/"), strings.Split(have, "/")
	return slices.EqualFunc(want, got, func(w, g string) bool { return w == g || w == "0" })
}

func (d *doctor) dns(ctx context.Context) []Step { return judgeNames(d.s.node.ResolveNames(ctx)) }

func judgeNames(replies []node.NameReply) []Step {
	if len(replies) == 0 {
		return skipped("", "not needed: no bootstrap node or relay is given by a name")
	}
	var good, bad []string
	for _, r := range replies {
		switch {
		case r.Err != nil:
			bad = append(bad, fmt.Sprintf("%s: %v", r.Name, r.Err))
		case r.Addrs == 0:
			bad = append(bad, r.Name+": no address")
		default:
			good = append(good, fmt.Sprintf("%s: %d addresses", r.Name, r.Addrs))
		}
	}
	if len(bad) > 0 {
		return failed("is there a network, and is its DNS server the right one? --network lan needs none", "%s", strings.Join(bad, "; "))
	}
	return found("%s", strings.Join(good, "; "))
}

func (d *doctor) bootstrap(ctx context.Context) []Step {
	return judgeBootstrap(d.s.node.Bootstrap(ctx), d.network())
}

func judgeBootstrap(replies []node.BootstrapReply, network string) []Step {
	if len(replies) == 0 {
		return skipped("", "network %s has no bootstrap nodes", network)
	}
	var bad []string
	for _, r := range replies {
		if r.Err != nil {
			bad = append(bad, r.Peer+": "+r.Err.Error())
		}
	}
	hint := "is `p2ptun relay` running there, and can its port be reached from here?"
	if network == NetworkPublic {
		hint = "is there internet, and does the firewall let TCP and UDP out? without: --network lan"
	}
	switch len(bad) {
	case len(replies):
		return failed(hint, "none of %d answers: %s", len(replies), strings.Join(bad, "; "))
	case 0:
		return found("all %d answer", len(replies))
	}
	return found("%d of %d answer; not: %s", len(replies)-len(bad), len(replies), strings.Join(bad, "; "))
}

// lanLimit bounds the wait for our own announcement.
const lanLimit = 5 * time.Second

func (d *doctor) lan(ctx context.Context) []Step {
	ctx, cancel := context.WithTimeout(ctx, lanLimit)
	defer cancel()
	report, asked := d.s.node.LAN(ctx)
	if !asked {
		return skipped("", "network %s does not look at the LAN", d.network())
	}
	return judgeLAN(report)
}

func judgeLAN(r node.LANReport) []Step {
	on := strings.Join(r.Joined, ", ")
	switch {
	case len(r.Joined) == 0:
		return failed("give an address that ends in /p2p/PEER; in a container: --network host", "no interface carries multicast, so no peer is found by mDNS")
	case r.Err != nil:
		return failed("see that IPv6 is on, and that nothing else keeps UDP port 5353 for itself", "mDNS can't be heard on %s: %v", on, r.Err)
	case !r.Own && r.Others == 0:
		return failed("let UDP port 5353 through the firewall, both ways", "on %s, but not even our own announcement is heard", on)
	case !r.Own:
		return found("on %s: %d other nodes heard; our own announcement was not", on, r.Others)
	}
	return found("on %s: our own announcement is heard, and %d other nodes", on, r.Others)
}

// natLimit bounds the wait for what peers see of us, once they are connected.
const natLimit = 2 * time.Second

func (d *doctor) nat(ctx context.Context) []Step {
	if d.network() == NetworkNone || d.network() == NetworkLAN {
		return skipped("", "unknown: network %s asks nobody out there", d.network())
	}
	await(ctx, natLimit, func() bool { tcp, udp, _ := d.s.node.NAT(); return tcp != "" && udp != "" })
	return judgeNAT(d.s.node.NAT())
}

// await polls until cond holds, for limit at most.
func await(ctx context.Context, limit time.Duration, cond func() bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

var natText = map[node.NATKind]string{
	node.NATUnknown: "unknown", node.NATNone: "no NAT",
	node.NATIndependent: "the same address for all peers", node.NATDependent: "another address for each peer (symmetric)",
}

func judgeNAT(tcp, udp node.NATKind, observers int) []Step {
	detail := "TCP: " + natText[tcp] + "; UDP: " + natText[udp]
	switch {
	case tcp == "" && udp == "":
		return skipped("", "unknown: %d peers with a public address see this node at a port that it listens on, and two are needed to compare", observers)
	case (tcp == node.NATDependent || tcp == "") && (udp == node.NATDependent || udp == ""):
		return failed("forward a port on the router to this machine, or use a relay: --relay ADDR", "%s; hole punching works only towards peers with a better one", detail)
	}
	return found("%s; compared by %d peers", detail, observers)
}

// relayLimit bounds the wait for relays.
const relayLimit = 8 * time.Second

func (d *doctor) relay(ctx context.Context) []Step {
	ctx, cancel := context.WithTimeout(ctx, relayLimit)
	defer cancel()
	return judgeRelays(d.s.node.AwaitRelays(ctx), d.s.node.ReachedFrom().Relayed, d.s.node.ID())
}

func judgeRelays(relays []node.RelayStatus, chosen []string, self string) (steps []Step) {
	if len(relays) == 0 {
		if len(chosen) > 0 {
			return found("chosen from the DHT: %s", strings.Join(chosen, ", "))
		}
		return skipped("", "none is named")
	}
	for _, r := range relays {
		switch {
		case r.Reserved:
			steps = append(steps, found("%s: reserved until %s%s", r.Relay, stampText(r.Until), relayLimitText(r))...)
		case strings.Contains(r.Error, "PERMISSION_DENIED"):
			steps = append(steps, failed("the relay's owner has to type: p2ptun allow "+RelayRight+" "+self, "%s does not let this node reserve", r.Relay)...)
		default:
			steps = append(steps, failed("is `p2ptun relay` running there, and is that its address?", "%s: not reserved: %s", r.Relay, r.Error)...)
		}
	}
	return steps
}

func relayLimitText(r node.RelayStatus) string {
	if text := limitText(r.LimitSeconds, int64(r.LimitBytes)); text != "" {
		return ", limit of one connection: " + text
	}
	return ", without a limit"
}

// limitText is empty where there is no limit.
func limitText(seconds, bytes int64) string {
	var parts []string
	if seconds > 0 {
		parts = append(parts, (time.Duration(seconds) * time.Second).String())
	}
	if bytes > 0 {
		parts = append(parts, fmt.Sprintf("%d KiB", bytes>>10))
	}
	return strings.Join(parts, " / ")
}

// reachLimit bounds the wait for others that try to dial us.
const reachLimit = 12 * time.Second

func (d *doctor) reachable(ctx context.Context) []Step {
	var r node.Reach
	await(ctx, reachLimit, func() bool {
		r = d.s.node.ReachedFrom()
		return !r.Asked || r.Helpers == 0 || len(r.Reachable)+len(r.Not) > 0
	})
	return judgeReach(r, d.network())
}

const wayIn = "to be reached from outside use a relay, --relay ADDR, or forward a port on the router to this machine"

func judgeReach(r node.Reach, network string) []Step {
	switch {
	case !r.Asked:
		return skipped("", "network %s asks nobody to try", network)
	case len(r.Reachable) > 0:
		return found("public: others have dialled %s", strings.Join(r.Reachable, ", "))
	case r.Private && len(r.Relayed) > 0:
		return found("private, and reached through relays: %s", strings.Join(r.Relayed, ", "))
	case len(r.Not) > 0:
		return failed(wayIn,
			"others could not dial %s, and no relay carries for this node", strings.Join(r.Not, ", "))
	case r.Private:
		return failed(wayIn, "this node has no public address, and no relay carries for it")
	case r.Helpers == 0:
		return skipped("", "unknown: no connected peer can be asked to try (AutoNAT v2)")
	}
	return skipped("", "unknown: none of %d peers that can be asked has told yet", r.Helpers)
}

// way says which way a path goes.
func way(p registry.Path) string {
	if !p.Relayed {
		return fmt.Sprintf("direct %s %s", p.Transport, p.Addr)
	}
	text := "relayed by " + p.Relay
	if left := limitText(p.LimitSeconds, p.LimitBytes); left != "" {
		text += " (left of its limit: " + left + ")"
	}
	return text
}
