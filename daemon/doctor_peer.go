package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"p2ptun/forward"
	"p2ptun/node"
	"p2ptun/proto"
	"p2ptun/registry"
)

// The steps of `p2ptun doctor PEER [PROTOCOL]`.

const (
	// findLimit bounds the search for a peer and the dials to it.
	findLimit = 30 * time.Second
	// punchWait is how long a relayed peer is given to become direct.
	punchWait = 15 * time.Second
	// rttTimes is how many round trips are measured on each path, and maxPaths
	// how many paths are looked at.
	rttTimes = 5
	maxPaths = 4
)

// ifReached leaves out what needs the peer.
func (d *doctor) ifReached(run func(context.Context) []Step) func(context.Context) []Step {
	return func(ctx context.Context) []Step {
		if d.lost != nil {
			return skipped("", "the peer is not reached")
		}
		return run(ctx)
	}
}

// conns are the connections to the peer, the one for new streams first.
func (d *doctor) conns() []node.PeerConn {
	list := d.s.node.Conns(d.peer)
	return list[:min(len(list), maxPaths)]
}

// find reaches the first peer that can be, and says who knew where it is.
func (d *doctor) find(ctx context.Context) []Step {
	var ids []string
	if ids, d.release, d.lost = d.s.want(ctx, registry.Tunnel{Peers: d.req.Peers}); d.lost != nil {
		code := asError(d.lost).Code
		return coded(code, failed(notFoundHint, "%v", d.lost))
	}
	var errs []error
	for _, id := range ids {
		if d.lost = d.connect(ctx, id); d.lost == nil {
			break
		}
		errs = append(errs, d.lost)
	}
	if d.lost != nil {
		d.lost = errors.Join(errs...)
	}
	return judgeFound(d.peer, d.s.node.Sources(d.peer), d.conns(), d.lookedIn())
}

func (d *doctor) connect(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, findLimit)
	defer cancel()
	d.peer, d.before = id, len(d.s.node.Conns(id)) > 0
	began := time.Now()
	err := d.s.node.Connect(ctx, id, pingPatience)
	d.took = time.Since(began)
	return err
}

// lookedIn names what can be asked for a peer in this network.
func (d *doctor) lookedIn() string {
	where := []string{"no address was given or remembered"}
	if d.network() != NetworkNone && d.network() != NetworkOwn {
		where = append(where, "the LAN does not have it")
	}
	if d.s.node.DHTSize() >= 0 {
		where = append(where, "the DHT does not have it")
	}
	return strings.Join(where, ", ")
}

const notFoundHint = "is the peer's p2ptun running? outside one LAN give an address that ends in /p2p/PEER"

// bySource are sources that say where a peer is, with how many addresses; our
// own relays are tried in any case, and say nothing.
func bySource(sources []node.Source) string {
	var parts []string
	for _, s := range sources {
		if s.By != "relay" {
			parts = append(parts, fmt.Sprintf("%s: %d addresses", s.By, len(s.Addrs)))
		}
	}
	return strings.Join(parts, ", ")
}

func judgeFound(peer string, sources []node.Source, conns []node.PeerConn, looked string) []Step {
	by := bySource(sources)
	switch {
	case by != "":
		return found("%s; %s", peer, by)
	case len(conns) == 0:
		return coded(CodeNotReached, failed(notFoundHint, "%s: nobody knows where it is: %s", peer, looked))
	case conns[0].Relayed:
		return found("%s; at relay %s", peer, conns[0].Relay)
	case conns[0].Inbound:
		return found("%s; it has connected to this node", peer)
	}
	return found("%s; connected before", peer)
}

// dialled says which way it is reached, once an answer has come that way.
func (d *doctor) dialled(ctx context.Context) []Step {
	sources := d.s.node.Sources(d.peer)
	if d.lost != nil {
		if len(sources) == 0 {
			return skipped("", "there is no address to dial")
		}
		return coded(CodeNotReached, failed("does its address still hold, and does its firewall let it in? a relay may help: --relay ADDR", "%v", d.lost))
	}
	conns := d.conns()
	if len(conns) == 0 {
		d.lost = errors.New("the connection was lost")
		return coded(CodeNotReached, failed("try again", "%v", d.lost))
	}
	rtts, err := conns[0].Pings(ctx, 1)
	if err != nil {
		d.lost = err
		return coded(CodeNotReached, failed("try again: a dead connection is noticed within 10 s", "%s: no answer that way: %v", way(conns[0].Path), err))
	}
	return found("%s, %s; %s", way(conns[0].Path), msText(rtts[0]), d.how(conns[0], sources))
}

// how a connection came to be.
func (d *doctor) how(c node.PeerConn, sources []node.Source) string {
	switch {
	case c.Inbound:
		return "the peer has dialled"
	case d.before:
		return "connected before"
	}
	text := "dialled in " + msText(d.took)
	for _, s := range sources {
		if slices.ContainsFunc(s.Addrs, func(a string) bool { return strings.HasPrefix(c.Addr, a) }) {
			return text + ", by the address that was found by: " + s.By
		}
	}
	return text
}

func msText(d time.Duration) string {
	if d >= time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000)
}

// punch waits until a relayed peer becomes direct.
func (d *doctor) punch(ctx context.Context) []Step {
	conns := d.conns()
	relayed := len(conns) > 0 && conns[0].Relayed
	began := time.Now()
	if relayed {
		ctx, cancel := context.WithTimeout(ctx, punchWait)
		defer cancel()
		d.s.node.AwaitDirect(ctx, d.peer)
		conns = d.conns()
	}
	return judgePunch(relayed, time.Since(began), conns, d.s.node.LastPunch(d.peer))
}

func judgePunch(wasRelayed bool, took time.Duration, conns []node.PeerConn, p node.Punch) []Step {
	switch {
	case len(conns) == 0:
		return failed("try again", "the connection was lost")
	case !conns[0].Relayed && p.Success:
		return found("a hole was punched: %s", way(conns[0].Path))
	case !conns[0].Relayed && wasRelayed && p.Dialled:
		return found("direct after %s, without a hole: one side could dial the other: %s", msText(took), way(conns[0].Path))
	case !conns[0].Relayed && wasRelayed:
		return found("direct after %s, by a dial; no hole punch was seen: %s", msText(took), way(conns[0].Path))
	case !conns[0].Relayed:
		return skipped("", "not tried: the way is direct already: %s", way(conns[0].Path))
	}
	why := "no hole punch was seen: the peer begins it, where it knows a public address of its own"
	if p.Tried {
		why = "hole punching failed: " + p.Error
	}
	return failed("it goes on over the relay; for a direct way forward a port on either router, or let UDP out",
		"still relayed after %s: %s", msText(took), why)
}

// allowed asks the peer, as a forward does before it is ready.
func (d *doctor) allowed(ctx context.Context) []Step {
	if d.req.Protocol == "" {
		return skipped("", "no protocol was named")
	}
	d.verdict, d.asked = d.s.node.Ask(ctx, d.peer, &proto.Question{Protocol: d.req.Protocol})
	return judgeAllowed(d.verdict, d.asked, d.req.Protocol, d.s.node.ID())
}

func judgeAllowed(v proto.Verdict, err error, protocol, self string) []Step {
	switch {
	case errors.Is(err, node.ErrCannotAsk):
		return skipped("a forward tells: p2ptun forward "+protocol+" PEER", "the peer can't be asked: it is no p2ptun (Kubo?)")
	case err != nil:
		return coded(CodeNotReached, failed("try again", "no answer: %v", err))
	}
	switch v {
	case proto.Verdict_VERDICT_REFUSED:
		return coded(CodeRefused, failed("the owner has to type: p2ptun allow "+protocol+" "+self, "%s, which this node is, may not use %s", self, protocol))
	case proto.Verdict_VERDICT_OK, proto.Verdict_VERDICT_SERVICE_DOWN, proto.Verdict_VERDICT_NO_SERVICE:
		return found("%s, which this node is, may use %s", self, protocol)
	}
	return skipped("", "the peer's answer is of a later version: %s", v)
}

func (d *doctor) service(context.Context) []Step {
	return judgeService(d.verdict, d.asked, d.req.Protocol)
}

func judgeService(v proto.Verdict, err error, protocol string) []Step {
	switch {
	case protocol == "":
		return skipped("", "no protocol was named")
	case errors.Is(err, node.ErrCannotAsk):
		return skipped("", "the peer can't be asked")
	case err != nil:
		return skipped("", "the peer did not answer")
	}
	switch v {
	case proto.Verdict_VERDICT_OK:
		return found("the service behind %s answers", protocol)
	case proto.Verdict_VERDICT_SERVICE_DOWN:
		return coded(CodeServiceDown, failed("start the service on the peer's machine", "%v", forward.ErrServiceDown))
	case proto.Verdict_VERDICT_NO_SERVICE:
		return coded(CodeNoService, failed("on the peer's machine: p2ptun listen "+protocol+" TARGET", "%v", forward.ErrNoService))
	case proto.Verdict_VERDICT_REFUSED:
		return skipped("", "not told to who is not let in")
	}
	return skipped("", "the peer's answer is of a later version: %s", v)
}

// rtt measures round trips by path.
func (d *doctor) rtt(ctx context.Context) (steps []Step) {
	for i, c := range d.conns() {
		rtts, err := c.Pings(ctx, rttTimes)
		st := judgeRTT(way(c.Path), rtts, err)
		if i == 0 { // the way that tunnels go
			st = coded(CodeNotReached, st)
		}
		steps = append(steps, st...)
	}
	if len(steps) == 0 {
		return coded(CodeNotReached, failed("try again", "the connection was lost"))
	}
	return steps
}

func judgeRTT(way string, rtts []time.Duration, err error) []Step {
	if err != nil {
		return failed("try again: a dead connection is noticed within 10 s", "%s: %d of %d pings were answered: %v", way, len(rtts), rttTimes, err)
	}
	var sum time.Duration
	for _, d := range rtts {
		sum += d
	}
	return found("%s: %s to %s, %s on average of %d", way, msText(slices.Min(rtts)), msText(slices.Max(rtts)), msText(sum/time.Duration(len(rtts))), len(rtts))
}

// throughput measures by path, without a byte to any service.
func (d *doctor) throughput(ctx context.Context) (steps []Step) {
	for _, c := range d.conns() {
		t, err := c.Throughput(ctx)
		steps = append(steps, judgeThroughput(way(c.Path), t, err)...)
	}
	if len(steps) == 0 {
		return failed("try again", "the connection was lost")
	}
	return steps
}

func judgeThroughput(way string, t node.Throughput, err error) []Step {
	var reset *registry.ResetError
	errors.As(err, &reset)
	switch {
	case errors.Is(err, node.ErrLimited):
		return skipped("", "%s: not measured: %v", way, err)
	case reset != nil && reset.Code == proto.CodeNoService:
		return skipped("", "%s: the peer can't measure: it is no p2ptun (Kubo?)", way)
	case reset != nil && reset.Code == proto.CodeRefused:
		return skipped("", "%s: the peer measures only with peers that it lets in by name", way)
	case reset != nil && reset.Code == proto.CodeTooMany:
		return skipped("try again in a minute", "%s: the peer has measured enough for now", way)
	case err != nil:
		return failed("try again", "%s: %v", way, err)
	case t.UpBytes == 0 || t.DownBytes == 0:
		return failed("try again, and see whether a tunnel carries anything", "%s: %d bytes went there and %d came back in time", way, t.UpBytes, t.DownBytes)
	}
	return found("%s: %.1f MB/s there, %.1f MB/s back", way, t.Up()/1e6, t.Down()/1e6)
}
