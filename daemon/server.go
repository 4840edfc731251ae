package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"p2ptun/access"
	"p2ptun/home"
	"p2ptun/listen"
	"p2ptun/node"
	"p2ptun/proto"
	"p2ptun/registry"
)

// Server owns a home: its node, its tunnels, its control socket.
type Server struct {
	opts     Options
	log      *slog.Logger
	registry *registry.Registry
	access   *access.Table
	node     *node.Node
	listens  *listen.Service
	trunks   *trunks
	refusals *refusals
	book     book
	metrics  *prometheus.Registry
	sequence registry.Sequence
	api      *http.Server
	closing  chan struct{} // closed when the control socket is about to close
	started  time.Time

	// keeping is held while a tunnel goes into the book or out of it, together
	// with what that means for its run.
	keeping sync.Mutex

	ctx    context.Context // ends when everything is to end at once
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu       sync.Mutex
	stopping bool
	handover bool             // attached commands take over after the end
	runs     map[string]*run  // by tunnel id
	broken   string           // why nobody is let in, as the tunnels' states say
	sessions int              // commands with a tunnel that lives as long as they
	changed  chan struct{}    // closed when sessions changes
	stopAll  func(StopReason) // asks whoever runs the server to stop it
	// stopAsked: somebody has asked, maybe before stopAll was known.
	stopAsked bool
}

// StopReason says who asked the server to stop.
type StopReason string

const StopAsked StopReason = "p2ptun stop"

// start makes the server, whose lock is held, and starts everything in order.
func start(ctx context.Context, opts Options, lock *home.Lock) (*Server, error) {
	s := &Server{opts: opts, log: opts.Log, registry: registry.New(), runs: map[string]*run{}, changed: make(chan struct{}), closing: make(chan struct{})}
	s.opts.Hosting = opts.hosting()
	s.started = time.Now()
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	s.ctx, s.cancel = life, func() { end(&endCause{reason: EndStopped}) }
	s.stopAll = func(StopReason) {}
	err := s.sequence.Start(s.ctx,
		registry.Part{Name: "lock", Start: nothing, Stop: func(context.Context) error { return lock.Release() }},
		registry.Part{Name: "book", Start: s.startBook},
		registry.Part{Name: "access", Start: s.startAccess},
		registry.Part{Name: "pumps", Start: nothing, Stop: func(context.Context) error { s.registry.Wait(); return nil }},
		registry.Part{Name: "node", Start: s.startNode, Stop: s.stopNode},
		registry.Part{Name: "tasks", Start: s.startTasks, Stop: s.stopTasks},
		registry.Part{Name: "tunnels", Start: s.startKept, Stop: s.stopRuns},
		registry.Part{Name: "control socket", Start: s.startSocket, Stop: s.stopSocket},
	)
	if err != nil {
		s.cancel()
		return nil, err
	}
	return s, nil
}

func nothing(context.Context) error { return nil }

func (s *Server) startBook(context.Context) error {
	s.opts.Home.Sweep()
	s.book.path = s.opts.Home.Tunnels()
	return s.book.reload()
}

func (s *Server) startAccess(context.Context) error {
	s.access = access.New(s.opts.Home.Access(), s.accessChanged)
	return nil
}

func (s *Server) startNode(ctx context.Context) error {
	cfg := node.Config{
		KeyPath:     s.opts.Home.Key(),
		PortPath:    s.opts.Home.Port(),
		KnownPath:   s.opts.Home.Addrs(),
		ListenAddrs: s.opts.Hosting.ListenAddrs,
		Trusted:     s.access.Known,
		Named:       s.access.Named,
		Relay:       s.relayService(),
		PathChanged: s.pathChanged,
		Log:         s.log,
	}
	if err := s.opts.Hosting.network(&cfg); err != nil {
		return err
	}
	n, err := node.New(ctx, cfg)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.node = n
	s.mu.Unlock()
	s.refusals = newRefusals(s.registry.Events)
	s.listens = &listen.Service{
		Registry: s.registry,
		Allowed:  s.access.Allowed,
		Refused:  s.peerRefused,
		Limits:   s.access.Limits,
		TooMany:  func(peer, protocol string) { s.refused(peer, protocol, proto.CodeTooMany.String()) },
		Hold:     n.Hold,
	}
	n.Handle(s.listens.Serve)
	n.HandleAsk(s.answer)
	s.startTrunks()
	return nil
}

func (s *Server) stopNode(context.Context) error {
	s.trunks.server.Close(proto.CodeStopped)
	return s.node.Close()
}

func (s *Server) startTasks(context.Context) error {
	s.metrics = prometheus.NewRegistry()
	s.tasks.Go(func() { _ = s.access.Serve(s.ctx) })
	return errors.Join(
		s.metrics.Register(s.registry),
		s.metrics.Register(s.trunks),
		s.metrics.Register(collectors.NewGoCollector()),
		s.metrics.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
	)
}

// stopTasks ends what still runs: streams that outlived the drain, and the
// server's own goroutines.
func (s *Server) stopTasks(context.Context) error {
	s.cancel()
	s.registry.ResetStreams(func(*registry.Stream) bool { return true }, proto.CodeStopped)
	s.tasks.Wait()
	return nil
}

// NotAllowed is the reason of a refusal that a rule would lift.
const NotAllowed = "not allowed"

// Denied is the reason of a refusal that the owner has decided on already.
const Denied = "denied by a rule"

func (s *Server) peerRefused(peer, protocol string) {
	reason := NotAllowed
	if s.access.Denied(peer, protocol) {
		reason = Denied
	}
	if err := s.access.Err(); err != nil {
		reason = "nobody is let in: " + withHint(err)
	}
	s.refused(peer, protocol, reason)
}

// pathChanged tells of the way to a peer.
func (s *Server) pathChanged(peer string, path registry.Path, up bool) {
	s.registry.Events.Publish(registry.PathEvent{Time: time.Now(), Peer: peer, Path: path, Up: up})
	if up && !path.Relayed {
		s.moveTrunks(peer)
	}
}

// refused tells of a peer that was not let in.
func (s *Server) refused(peer, protocol, reason string) {
	s.node.Refused(peer)
	_, offered := s.registry.Listener(protocol)
	s.refusals.add(peer, protocol, reason, offered)
}

// accessChanged takes back what is no longer allowed: at once, on streams that
// live.
func (s *Server) accessChanged() {
	s.mu.Lock()
	n := s.node
	s.mu.Unlock()
	if n == nil {
		return // not started yet
	}
	s.registry.ResetStreams(func(st *registry.Stream) bool {
		t := st.Entry().Tunnel
		return t.Kind == registry.KindListen && !s.access.Allowed(st.Peer, t.Protocol)
	}, proto.CodeRevoked)
	n.RefreshLimits()
	s.listens.RefreshLimits()
	s.trunks.server.Revoke()
	s.tellBroken()
	s.registry.Events.Publish(registry.AccessEvent{Time: time.Now()})
}

// tellBroken shows in the state of each listening tunnel that the access file
// can't be read, so that nobody is let in, and when it can be again.
func (s *Server) tellBroken() {
	reason := ""
	if err := s.access.Err(); err != nil {
		reason = "nobody is let in: " + withHint(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == reason {
		return
	}
	s.broken = reason
	for _, r := range s.runs {
		if st := r.entry.Status(); st.Kind == registry.KindListen && st.State == registry.StateReady {
			r.entry.SetState(registry.StateReady, reason)
		}
	}
}

func (s *Server) startSocket(context.Context) error {
	path, err := s.opts.Home.Socket()
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("old control socket: %w", err) // we have the lock: nobody answers there
	}
	l, err := home.ListenUnix(path)
	if err != nil {
		return err
	}
	if err := s.opts.Home.RecordSocket(path); err != nil {
		s.log.Warn("where the control socket is", "err", err)
	}
	s.api = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.tasks.Go(func() { _ = s.api.Serve(l) })
	return nil
}

// lastWords bounds how long commands are given to read how things ended.
const lastWords = 2 * time.Second

func (s *Server) stopSocket(ctx context.Context) error {
	close(s.closing)
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	_ = s.api.Shutdown(ctx)
	_ = s.opts.Home.ForgetSocket()
	return s.api.Close()
}

// OnStop says what to call when somebody asks for the server's end over the
// control socket. It must not block.
func (s *Server) OnStop(f func(StopReason)) {
	s.mu.Lock()
	s.stopAll = f
	asked := s.stopAsked
	s.mu.Unlock()
	if asked {
		f(StopAsked)
	}
}

// Stop ends the server: no new connection is taken, live streams may finish
// for as long as drain, then all ends, in the opposite order of the start.
// With handover, attached commands take the home over; without, they end. A
// Kill meanwhile ends the drain.
func (s *Server) Stop(drain time.Duration, handover bool) error {
	s.mu.Lock()
	s.stopping, s.handover = true, handover
	runs := make([]*run, 0, len(s.runs))
	for _, r := range s.runs {
		runs = append(runs, r)
	}
	s.mu.Unlock()
	cause := &endCause{drain: drain, reason: EndStopped}
	if handover {
		cause.reason = EndHandover
	}
	for _, r := range runs {
		r.entry.Close(cause)
	}
	for _, r := range runs {
		<-r.done
	}
	return s.sequence.Stop(context.WithoutCancel(s.ctx))
}

// Kill makes a Stop that is under way end at once.
func (s *Server) Kill() { s.cancel() }

// Sessions counts the commands whose tunnels live here, and gives a channel
// that is closed when that changes.
func (s *Server) Sessions() (n int, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions, s.changed
}

// enter counts a command as attached until leave is called.
func (s *Server) enter() (leave func()) {
	s.addSession(1)
	return sync.OnceFunc(func() { s.addSession(-1) })
}

func (s *Server) addSession(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions += by
	close(s.changed)
	s.changed = make(chan struct{})
}
