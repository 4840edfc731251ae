package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"p2ptun/access"
	"p2ptun/node"
	"p2ptun/proto"
	"p2ptun/registry"
)

// The control API: HTTP and JSON over the home's unix socket, for this user
// alone. docs/api.md is its description.

// maxRequest bounds a request's body, in bytes.
const maxRequest = 64 << 10

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	routes := map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /status":     s.getStatus,
		"GET /tunnels":    s.getTunnels,
		"POST /tunnels":   s.postTunnel,
		"DELETE /tunnels": s.deleteTunnels,
		"GET /streams":    s.getStreams,
		"DELETE /streams": s.deleteStreams,
		"GET /access":     s.getAccess,
		"POST /access":    s.postAccess,
		"GET /rights":     s.getRights,
		"POST /invites":   s.postInvite,
		"DELETE /invites": s.deleteInvite,
		"POST /groups":    s.postGroup,
		"GET /events":     s.getEvents,
		"POST /ping":      s.postPing,
		"POST /doctor":    s.postDoctor,
		"POST /reload":    func(w http.ResponseWriter, _ *http.Request) error { return reply(w, struct{}{}, s.reload()) },
		"POST /stop":      s.postStop,
	}
	for pattern, handle := range routes {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := handle(w, r); err != nil {
				writeError(w, err)
			}
		})
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics, promhttp.HandlerOpts{}))
	return mux
}

var httpStatus = map[Code]int{
	CodeUsage: http.StatusBadRequest, CodeRefused: http.StatusForbidden, CodeNotFound: http.StatusNotFound,
	CodeInvite: http.StatusForbidden, CodeInviteLater: http.StatusForbidden, CodeNoInvite: http.StatusNotFound, CodeNoGroup: http.StatusNotFound,
	CodeAddrTaken: http.StatusConflict, CodeDuplicate: http.StatusConflict, CodeHosting: http.StatusConflict,
	CodeNotReached: http.StatusBadGateway, CodeServiceDown: http.StatusBadGateway, CodeNoService: http.StatusBadGateway,
	CodeStopping: http.StatusServiceUnavailable,
}

func writeError(w http.ResponseWriter, err error) {
	e := asError(err)
	status := httpStatus[e.Code]
	if status == 0 {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e)
}

// reply writes a result, unless err says otherwise.
func reply(w http.ResponseWriter, v any, err error) error {
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

// decode reads a bounded request of one JSON value.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		err = noMore(d)
	}
	if err != nil {
		return usage("request: " + err.Error())
	}
	return nil
}

// noMore refuses what follows a JSON value.
func noMore(d *json.Decoder) error {
	switch _, err := d.Token(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return errors.New("more than one JSON value")
}

// Status is what `GET /status` answers.
type Status struct {
	Peer  string            `json:"peer"`
	Addrs []string          `json:"addrs"`
	Peers []node.PeerStatus `json:"peers"`
	// Reachability: public, private or unknown, as others have tried.
	Reachability string             `json:"reachability"`
	Relays       []node.RelayStatus `json:"relays"`
	// DHT is how many nodes of the DHT are known; -1 without one.
	DHT int `json:"dht"`
	// Carried is what this node has carried for each peer, as a relay.
	Carried  []node.PeerTraffic `json:"carried,omitempty"`
	Hosting  Hosting            `json:"hosting"`
	Version  string             `json:"version"`
	Home     string             `json:"home"`
	Tunnels  int                `json:"tunnels"`
	Streams  int                `json:"streams"`
	Sessions int                `json:"sessions"`
	Started  time.Time          `json:"started"`
	// Stopping: it takes no tunnel any more, and ends when those that live
	// have.
	Stopping bool `json:"stopping"`
	// AccessError is why nobody is let in; empty when all is well.
	AccessError string `json:"access_error,omitempty"`
	Goroutines  int    `json:"goroutines"`
}

func (s *Server) getStatus(w http.ResponseWriter, _ *http.Request) error {
	sessions, _ := s.Sessions()
	s.mu.Lock()
	stopping := s.stopping
	s.mu.Unlock()
	st := Status{
		Peer: s.node.ID(), Addrs: s.node.Addrs(), Peers: s.node.Peers(),
		Reachability: s.node.Reachability(), Relays: s.node.Relays(), DHT: s.node.DHTSize(), Carried: s.node.Accounts(),
		Hosting: s.opts.Hosting, Version: s.opts.Version, Home: string(s.opts.Home),
		Tunnels: len(s.registry.Tunnels()), Streams: len(s.registry.Streams()), Sessions: sessions,
		Started: s.started, Stopping: stopping,
		Goroutines: runtime.NumGoroutine(),
	}
	if err := cmp.Or(s.access.Err(), s.access.ClockBehind()); err != nil {
		st.AccessError = err.Error()
	}
	return reply(w, st, nil)
}

func (s *Server) getTunnels(w http.ResponseWriter, _ *http.Request) error {
	list := []registry.TunnelStatus{}
	for _, e := range s.registry.Tunnels() {
		st := e.Status()
		if path, up := s.node.Path(st.Peer); up && st.Kind == registry.KindForward {
			st.Path = &path
		}
		list = append(list, st)
	}
	return reply(w, list, nil)
}

// deleteTunnels closes what the query selects: id (repeatable), protocol,
// bind, target, all; drain is how long live streams may finish.
func (s *Server) deleteTunnels(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	sel := registry.Selector{
		IDs: q["id"], Protocol: q.Get("protocol"), Bind: q.Get("bind"), Target: q.Get("target"), All: q.Get("all") == "true",
	}
	var drain registry.Duration
	if text := q.Get("drain"); text != "" {
		if err := drain.UnmarshalText([]byte(text)); err != nil {
			return usage("drain: " + err.Error())
		}
	}
	closed := []registry.TunnelStatus{}
	for _, e := range s.registry.Select(sel) {
		run := s.runOf(e.Tunnel.ID)
		if run == nil {
			continue
		}
		if err := s.closeRun(run, time.Duration(drain)); err != nil {
			return err
		}
		closed = append(closed, e.Status())
		if drain == 0 {
			<-run.done
		}
	}
	return reply(w, closed, nil)
}

func (s *Server) runOf(id string) *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs[id]
}

func (s *Server) getStreams(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, s.registry.Streams(), nil)
}

// deleteStreams resets the streams that the query selects: id (repeatable),
// all.
func (s *Server) deleteStreams(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	ids, err := parseIDs(q["id"])
	if err != nil {
		return err
	}
	all := q.Get("all") == "true"
	n := s.registry.ResetStreams(func(st *registry.Stream) bool { return all || ids[st.ID()] }, proto.CodeClosed)
	return reply(w, map[string]int{"closed": n}, nil)
}

// Access is what `GET /access` answers: what the file says, and the rights that
// live as long as a tunnel.
type Access struct {
	access.Listing
	Flags []Flag    `json:"flags"`
	Now   time.Time `json:"now"` // what is over by then does not hold
}

// Flag is a right that a running `listen` gives.
type Flag struct {
	Protocol string `json:"protocol"`
	Peer     string `json:"peer"` // empty: any
	Tunnel   string `json:"tunnel"`
}

func (s *Server) getAccess(w http.ResponseWriter, _ *http.Request) error {
	listing, err := access.List(s.opts.Home.Access())
	if err != nil {
		return err
	}
	a := Access{Listing: listing, Flags: []Flag{}, Now: s.access.Now()}
	for _, e := range s.registry.Tunnels() {
		if e.Tunnel.Open {
			a.Flags = append(a.Flags, Flag{Protocol: e.Tunnel.Protocol, Tunnel: e.Tunnel.ID})
		}
		for _, p := range s.lentBy(e) {
			a.Flags = append(a.Flags, Flag{Protocol: e.Tunnel.Protocol, Peer: p, Tunnel: e.Tunnel.ID})
		}
	}
	return reply(w, a, nil)
}

// lentBy lists the peers that a tunnel lets in.
func (s *Server) lentBy(e *registry.Entry) []string {
	peers := e.Tunnel.Allow
	if r := s.runOf(e.Tunnel.ID); r != nil {
		peers = append(slices.Clone(peers), r.lentPeers()...)
	}
	return peers
}

// Right says whether a peer may use a protocol now, by whatever lets it in.
type Right string

const (
	RightAllowed Right = "allowed"
	RightDenied  Right = "denied" // by a rule, whatever else may let it in
	RightNone    Right = "none"
)

// maxAsked bounds the peers of one question about rights.
const maxAsked = 100

// getRights answers what the peers that the query names may: peer (repeatable),
// protocol.
func (s *Server) getRights(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if len(q["peer"]) == 0 || len(q["peer"]) > maxAsked || q.Get("protocol") == "" {
		return usage(fmt.Sprintf("rights: want a protocol, and 1 to %d peers", maxAsked))
	}
	rights := map[string]Right{}
	for _, peer := range q["peer"] {
		rights[peer] = s.right(peer, q.Get("protocol"))
	}
	return reply(w, rights, nil)
}

func (s *Server) right(peer, protocol string) Right {
	switch {
	case s.access.Allowed(peer, protocol):
		return RightAllowed
	case s.access.Denied(peer, protocol):
		return RightDenied
	}
	return RightNone
}

// AccessRequest is the body of `POST /access`: a rule for the file, or, with
// Tunnel, a right that lives as long as that listening tunnel.
type AccessRequest struct {
	access.Rule
	Tunnel string `json:"tunnel,omitempty"`
}

// postAccess puts a rule into the file; it holds when the answer goes out.
func (s *Server) postAccess(w http.ResponseWriter, r *http.Request) error {
	var req AccessRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	rule := req.Rule
	if err := checkRule(&rule); err != nil {
		return err
	}
	if req.Tunnel != "" {
		return reply(w, rule, s.lend(req.Tunnel, rule))
	}
	if err := access.Set(r.Context(), s.opts.Home.Access(), rule); err != nil {
		return s.notWritten(rule, err)
	}
	s.access.Reload()
	s.access.Lift(rule.Peer, rule.Protocol)
	return reply(w, rule, cmp.Or(s.access.Err(), s.stillDenied(rule)))
}

// stillDenied: a group's denial that could not be written is not in the file,
// where access.Set looks for what beats a rule.
func (s *Server) stillDenied(rule access.Rule) error {
	if !rule.Allow || !s.access.Denied(rule.Peer, rule.Protocol) {
		return nil
	}
	return &Error{
		Code:    CodeState,
		Message: "the rule is written, but a group that the peer is in is denied until this node ends, and a denial wins",
		Hint:    fmt.Sprintf("p2ptun deny %[1]s @GROUP writes that down; p2ptun allow %[1]s @GROUP ends it", proto.ShellQuote(rule.Protocol)),
	}
}

// lend lets a peer in for as long as a tunnel lives.
func (s *Server) lend(tunnel string, rule access.Rule) error {
	r := s.runOf(tunnel)
	switch {
	case r == nil || r.entry.Tunnel.Kind != registry.KindListen || r.entry.Tunnel.Protocol != rule.Protocol:
		return &Error{Code: CodeNotFound, Message: fmt.Sprintf("no listening tunnel %s of %s", tunnel, rule.Protocol)}
	case !rule.Allow || strings.HasPrefix(rule.Peer, "@") || !rule.Until.IsZero() || rule.MaxStreams != 0 || rule.MaxRate != 0:
		return usage("for as long as a tunnel lives, one peer may be let in, without more")
	case s.access.Denied(rule.Peer, rule.Protocol):
		return &Error{Code: CodeState, Message: "a rule denies " + rule.Protocol + " to that peer, and a denial wins", Hint: "p2ptun access ls"}
	case !r.lend(s.access, rule.Peer):
		return usage(fmt.Sprintf("a tunnel lets in at most %d peers that way", maxLent))
	}
	return nil
}

// notWritten: a denial holds all the same, for as long as this process lives; of a
// group that is not there it is a mistake.
func (s *Server) notWritten(rule access.Rule, err error) error {
	if rule.Allow || errors.Is(err, access.ErrNoGroup) {
		return err
	}
	if barErr := s.access.Bar(rule.Peer, rule.Protocol); barErr != nil {
		return errors.Join(err, barErr)
	}
	return &Error{
		Code:    CodeState,
		Message: fmt.Sprintf("the denial holds, but only until this node ends, since it can't be written: %v", err),
		Hint:    cmp.Or(hintOf(err), "make room or mend "+s.opts.Home.Access()) + ", then type the same again",
	}
}

func checkRule(rule *access.Rule) error {
	name, err := proto.ParseProtocol(rule.Protocol, true)
	if err != nil {
		return usage(err.Error())
	}
	rule.Protocol = name
	if limited := rule.MaxStreams != 0 || rule.MaxRate != 0; rule.MaxStreams < 0 || rule.MaxRate < 0 || limited && !rule.Allow {
		return usage("max_streams and max_rate are for an allow, and more than 0")
	}
	if group, ok := strings.CutPrefix(rule.Peer, "@"); ok {
		if err := access.CheckGroupName(group); err != nil {
			return usage(err.Error())
		}
		return nil
	}
	p, err := proto.ParsePeer(rule.Peer)
	if err != nil || p.ID == "" {
		return usage("a rule needs a peer ID, or @GROUP")
	}
	rule.Peer = p.ID.String()
	return nil
}

// PingRequest is the body of `POST /ping`.
type PingRequest struct {
	// Peers are as proto.ParsePeer reads them, without names; the first that
	// is reached is measured.
	Peers []string `json:"peers"`
}

// PingReply is one measured round trip.
type PingReply struct {
	Peer  string        `json:"peer"`
	RTTms float64       `json:"rtt_ms"`
	Path  registry.Path `json:"path"`
}

// pingPatience is how long a peer that is not found at once is waited for.
const pingPatience = 8 * time.Second

func (s *Server) postPing(w http.ResponseWriter, r *http.Request) error {
	var req PingRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if len(req.Peers) == 0 || len(req.Peers) > maxPeers {
		return usage("ping: want 1 to 32 peers")
	}
	var errs []error
	for _, typed := range req.Peers {
		got, err := s.ping(r.Context(), typed)
		if err == nil {
			return reply(w, got, nil)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *Server) ping(ctx context.Context, typed string) (PingReply, error) {
	ids, release, err := s.want(ctx, registry.Tunnel{Peers: []string{typed}})
	if err != nil {
		return PingReply{}, err
	}
	defer release()
	var last error
	for _, id := range ids {
		if last = s.node.Connect(ctx, id, pingPatience); last != nil {
			continue
		}
		rtt, path, err := s.node.Ping(ctx, id)
		if err == nil {
			return PingReply{Peer: id, RTTms: float64(rtt.Microseconds()) / 1000, Path: path}, nil
		}
		last = err
	}
	return PingReply{}, &Error{Code: CodeNotReached, Message: last.Error()}
}

// postStop has the server stopped by whoever runs it.
func (s *Server) postStop(w http.ResponseWriter, _ *http.Request) error {
	s.mu.Lock()
	stop := s.stopAll
	s.stopAsked = true
	s.mu.Unlock()
	err := reply(w, struct{}{}, nil)
	_ = http.NewResponseController(w).Flush()
	stop(StopAsked)
	return err
}
