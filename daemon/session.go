package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"p2ptun/registry"
)

// Event is one line of a response that carries events. Which fields are set
// depends on Event: ready, state, stream, refused, redeemed, access, path, trunk,
// lost, end.
type Event struct {
	Event     string    `json:"event"`
	Kind      string    `json:"kind,omitempty"`
	ID        string    `json:"id,omitempty"`
	Protocol  string    `json:"protocol,omitempty"`
	Target    string    `json:"target,omitempty"`
	Bind      string    `json:"bind,omitempty"`
	Peer      string    `json:"peer,omitempty"`
	Addrs     []string  `json:"addrs,omitempty"`
	Access    string    `json:"access,omitempty"`  // open, closed
	Allowed   int       `json:"allowed,omitempty"` // peers
	Invite    string    `json:"invite,omitempty"`  // ready: its text, where asked for; redeemed: its id
	Left      int       `json:"left,omitempty"`    // uses
	Until     time.Time `json:"until,omitzero"`
	Path      string    `json:"path,omitempty"` // direct, relayed
	Transport string    `json:"transport,omitempty"`
	Addr      string    `json:"addr,omitempty"`
	RTTms     float64   `json:"rtt_ms,omitempty"`
	Relay     string    `json:"relay,omitempty"` // by whom it is relayed
	// What is left of the relay's limit.
	LimitBytes   int64                  `json:"limit_bytes,omitempty"`
	LimitSeconds int64                  `json:"limit_seconds,omitempty"`
	State        registry.State         `json:"state,omitempty"`
	Reason       string                 `json:"reason,omitempty"`
	Warning      string                 `json:"warning,omitempty"`
	Op           string                 `json:"op,omitempty"`
	Stream       *registry.StreamStatus `json:"stream,omitempty"`
	Trunk        *registry.TrunkEvent   `json:"trunk,omitempty"`
	Unsaid       int64                  `json:"unsaid,omitempty"`
	Lost         uint64                 `json:"lost,omitempty"`
}

// eventQueue bounds the events that wait for a slow reader.
const eventQueue = 1024

// postTunnel opens a tunnel. A kept one is on disk when the answer goes out,
// one line. The response of any other stays open, carries the tunnel's events
// (those of its streams where the query says streams=true) and, when the
// client goes, takes the tunnel with it.
func (s *Server) postTunnel(w http.ResponseWriter, r *http.Request) error {
	var t registry.Tunnel
	if err := decode(w, r, &t); err != nil {
		return err
	}
	if err := Normalize(&t); err != nil {
		return err
	}
	if t.Keep {
		return s.postKept(w, r, t)
	}
	feed, err := s.feed("command", r.URL.Query().Get("streams") == "true")
	if err != nil {
		return err
	}
	defer feed.close()
	leave := s.enter()
	defer leave()
	run, err := s.open(r.Context(), t, false)
	if err != nil {
		return err
	}
	if err := s.awaitReady(r.Context(), run); err != nil {
		return err
	}
	return s.tell(w, run, feed, leave)
}

func (s *Server) postKept(w http.ResponseWriter, r *http.Request, t registry.Tunnel) error {
	run, err := s.open(s.ctx, t, false)
	if err != nil {
		return err
	}
	if err := s.awaitReady(r.Context(), run); err != nil {
		return err
	}
	return s.keep(w, run)
}

// feed is a subscription to the events of the node.
type feed struct {
	next  func(context.Context) (e registry.Event, lost uint64, err error)
	close func()
}

// feed subscribes; without streams, the events that each stream makes are not
// even made.
func (s *Server) feed(name string, streams bool) (feed, error) {
	if streams {
		return newFeed[registry.Event](s.registry.Events, name)
	}
	return newFeed[registry.QuietEvent](s.registry.Events, name)
}

func newFeed[T registry.Event](d *registry.Dispatcher, name string) (feed, error) {
	sub, err := registry.Subscribe[T](d, name, eventQueue)
	if err != nil {
		return feed{}, err
	}
	next := func(ctx context.Context) (registry.Event, uint64, error) { return sub.Next(ctx) }
	return feed{next: next, close: sub.Close}, nil
}

// awaitReady returns when the tunnel works, or why it does not; then it is
// gone.
func (s *Server) awaitReady(ctx context.Context, r *run) error {
	select {
	case <-r.ready:
		return nil
	case <-r.done:
	case <-ctx.Done():
		r.entry.Close(ctx.Err())
		<-r.done
	}
	var end *endCause
	switch {
	case errors.As(context.Cause(r.entry.Context()), &end) && end.reason == EndHandover:
		return &Error{Code: CodeStopping, Message: "the node is stopping"}
	case end != nil:
		return fmt.Errorf("the tunnel was %s before it was ready", end.reason)
	case r.err != nil:
		return r.err
	}
	return fmt.Errorf("tunnel %s: %w", r.entry.Tunnel.ID, registry.ErrClosed)
}

// keep writes the tunnel into the book before it says that it is kept.
func (s *Server) keep(w http.ResponseWriter, r *run) error {
	if err := s.addToBook(r); err != nil {
		r.entry.Close(err)
		<-r.done
		return err
	}
	return reply(w, s.readyEvent(r), nil)
}

// addToBook keeps a tunnel, unless it was closed in the meantime.
func (s *Server) addToBook(r *run) error {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if r.entry.Context().Err() != nil && r.endReason() == EndClosed {
		return fmt.Errorf("tunnel %s: %w", r.entry.Tunnel.ID, registry.ErrClosed)
	}
	t := r.entry.Tunnel
	if a := r.asks.Load(); a != nil && a.redeemed.Load() {
		t.Invite = "" // it has done its work; others may still use it
	}
	return s.book.add(t)
}

// inviteDone forgets a kept tunnel's invite, which has done its work.
func (s *Server) inviteDone(r *run) {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if err := s.book.dropInvite(r.entry.Tunnel.ID); err != nil {
		s.log.Warn("forget the invite of a kept tunnel", "id", r.entry.Tunnel.ID, "err", err)
	}
}

// tell writes the tunnel's events until it ends. The command no longer counts
// as attached when it is told the end.
func (s *Server) tell(w http.ResponseWriter, r *run, feed feed, leave func()) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := lineWriter{w: w}
	since := time.Now()
	out.write(s.readyEvent(r))
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	defer cancel()
	go func() {
		<-r.done
		cancel()
	}()
	for out.err == nil {
		e, lost, err := feed.next(ctx)
		if err != nil {
			break
		}
		if lost > 0 {
			out.write(Event{Event: "lost", Lost: lost})
		}
		if line, ours := eventOf(e, r.entry); ours && !beforeReady(e, since) {
			out.write(line)
		}
	}
	if out.err != nil {
		r.entry.Close(out.err)
	}
	<-r.done
	leave()
	out.write(Event{Event: "end", ID: r.entry.Tunnel.ID, Reason: r.endReason()})
	return nil
}

// beforeReady says that the ready line has told a state, a path, or who is let in,
// already.
func beforeReady(e registry.Event, ready time.Time) bool {
	switch e := e.(type) {
	case registry.TunnelEvent:
		return e.Time.Before(ready)
	case registry.PathEvent:
		return e.Time.Before(ready)
	case registry.AccessEvent:
		return e.Time.Before(ready)
	}
	return false
}

// lineWriter writes an event a line and sends it at once.
type lineWriter struct {
	w   http.ResponseWriter
	err error
}

func (l *lineWriter) write(e any) {
	if l.err != nil {
		return
	}
	if l.err = json.NewEncoder(l.w).Encode(e); l.err == nil {
		l.err = http.NewResponseController(l.w).Flush()
	}
}

// readyEvent is the first line: what works now.
func (s *Server) readyEvent(r *run) Event {
	st := r.entry.Status()
	e := Event{
		Event: "ready", Kind: string(st.Kind), ID: st.ID, Protocol: st.Protocol, Bind: st.Bind, Target: st.Target,
		Peer: st.Peer, State: st.State, Reason: st.Reason, Warning: r.warn,
	}
	if st.Kind == registry.KindListen {
		var open bool
		e.Peer, e.Addrs, e.Access = s.node.ID(), s.node.Addrs(), "closed"
		if e.Allowed, open = s.access.Peers(st.Protocol); open {
			e.Access = "open"
		}
		if err := s.access.Err(); err != nil {
			e.Warning = "nobody is let in: " + withHint(err)
		} else if err := s.access.ClockBehind(); err != nil && e.Warning == "" {
			e.Warning = err.Error()
		}
		return e
	}
	s.describePath(&e)
	return e
}

// describePath adds the way to the peer, and measures it.
func (s *Server) describePath(e *Event) {
	path, ok := s.node.Path(e.Peer)
	if !ok {
		return
	}
	e.SetPath(path)
	ctx, cancel := context.WithTimeout(s.ctx, lastWords)
	defer cancel()
	if rtt, _, err := s.node.Ping(ctx, e.Peer); err == nil {
		e.RTTms = float64(rtt.Microseconds()) / 1000
	}
}

// SetPath says which way it is.
func (e *Event) SetPath(p registry.Path) {
	e.Path, e.Transport, e.Addr, e.RTTms = "direct", p.Transport, p.Addr, p.RTTms
	if p.Relayed {
		e.Path, e.Relay = "relayed", p.Relay
	}
	e.LimitBytes, e.LimitSeconds = p.LimitBytes, p.LimitSeconds
}

// eventOf turns an event of the registry into a line; ours says whether it
// concerns that tunnel. A nil entry takes all.
func eventOf(e registry.Event, entry *registry.Entry) (line Event, ours bool) {
	switch e := e.(type) {
	case registry.TunnelEvent:
		t := e.Tunnel
		line = Event{
			Event: "state", Kind: string(t.Kind), ID: t.ID, Protocol: t.Protocol, Target: t.Target, Bind: t.Bind,
			Peer: t.Peer, State: t.State, Reason: t.Reason,
		}
		return line, entry == nil || t.ID == entry.Tunnel.ID
	case registry.StreamEvent:
		line = Event{Event: "stream", ID: e.Stream.Tunnel, Op: string(e.Op), Stream: &e.Stream}
		return line, entry == nil || e.Stream.Tunnel == entry.Tunnel.ID
	case registry.PathEvent:
		line = Event{Event: "path", Peer: e.Peer}
		if e.Up {
			line.SetPath(e.Path)
		}
		return line, entry == nil || entry.Tunnel.Kind == registry.KindForward && entry.Status().Peer == e.Peer
	case registry.TrunkEvent:
		line = Event{Event: "trunk", Op: e.Op, Kind: string(e.Kind), Protocol: e.Protocol, Peer: e.Peer, Reason: e.Reason, Trunk: &e}
		return line, entry == nil || entry.Tunnel.Kind == e.Kind && entry.Tunnel.Protocol == e.Protocol && goesTo(entry, e.Peer)
	case registry.RedeemedEvent:
		line = Event{Event: "redeemed", Protocol: e.Protocol, Peer: e.Peer, Invite: e.Invite, Left: e.Left, Until: e.Until}
		return line, entry == nil || entry.Tunnel.Kind == registry.KindListen && entry.Tunnel.Protocol == e.Protocol
	case registry.AccessEvent:
		return Event{Event: "access"}, entry == nil || entry.Tunnel.Kind == registry.KindListen
	case registry.RefusedEvent:
		line = Event{Event: "refused", ID: e.Tunnel, Protocol: e.Protocol, Peer: e.Peer, Reason: e.Reason, Unsaid: e.Unsaid}
		listens := entry != nil && e.Tunnel == "" && entry.Tunnel.Kind == registry.KindListen && entry.Tunnel.Protocol == e.Protocol
		return line, entry == nil || listens || e.Tunnel != "" && e.Tunnel == entry.Tunnel.ID
	}
	return Event{}, false
}

// goesTo says that a forward goes to that peer now; a listen takes all.
func goesTo(entry *registry.Entry, peer string) bool {
	return entry.Tunnel.Kind == registry.KindListen || entry.Status().Peer == peer
}

// untilClosing gives a context that also ends when the control socket is about
// to close.
func (s *Server) untilClosing(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// getEvents carries all events of the node until the client or the node ends.
func (s *Server) getEvents(w http.ResponseWriter, r *http.Request) error {
	feed, err := s.feed("events", true)
	if err != nil {
		return err
	}
	defer feed.close()
	ctx, cancel := s.untilClosing(r.Context())
	defer cancel()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := lineWriter{w: w}
	_ = http.NewResponseController(w).Flush()
	for out.err == nil {
		e, lost, err := feed.next(ctx)
		if err != nil {
			return nil
		}
		if lost > 0 {
			out.write(Event{Event: "lost", Lost: lost})
		}
		line, _ := eventOf(e, nil)
		out.write(line)
	}
	return nil
}

func parseIDs(texts []string) (map[uint64]bool, error) {
	ids := map[uint64]bool{}
	for _, text := range texts {
		id, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, usage(fmt.Sprintf("stream id %q is not a number", text))
		}
		ids[id] = true
	}
	return ids, nil
}
