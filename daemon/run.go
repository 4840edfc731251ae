package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"p2ptun/forward"
	"p2ptun/node"
	"p2ptun/proto"
	"p2ptun/registry"
)

// endCause ends a tunnel: its live streams may finish for as long as drain.
type endCause struct {
	drain  time.Duration
	reason string
}

func (c *endCause) Error() string { return c.reason }

// Why a tunnel ended, as its command is told.
const (
	EndClosed   = "closed"   // by `p2ptun close`, or its own command
	EndStopped  = "stopped"  // the node was told to stop
	EndHandover = "handover" // the node ends; the command may take over
)

// retryMin and retryMax are the pauses between attempts to open a kept tunnel
// that can't be opened: its address is taken, for one.
const (
	retryMin = time.Second
	retryMax = 30 * time.Second
)

// run is a tunnel that is being served.
type run struct {
	entry *registry.Entry
	ready chan struct{} // closed when it works
	done  chan struct{} // closed when it has ended; err is set then
	err   error         // why it could not be opened
	warn  string        // what is missing although it works
	// endLoan takes back what its flags allow; its live streams may finish
	// first. Nil for a forward.
	endLoan func()
	loans   loans                      // on top of its flags
	asks    atomic.Pointer[questioner] // nil for a listen
	opens   *opener                    // nil for a listen, and before it is served

	// life ends with the command that opened it, whose going ends a drain; or
	// by hurry.
	life  context.Context
	hurry context.CancelFunc
	// persists: a kept tunnel is opened again and again where it can't be.
	persists bool
}

// open registers a tunnel and serves it until ctx ends or it is closed. The
// outcome is in the run's channels.
func (s *Server) open(ctx context.Context, t registry.Tunnel, persists bool) (*run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, &Error{Code: CodeStopping, Message: "the node is stopping"}
	}
	e, err := s.registry.Register(ctx, t)
	if err != nil {
		return nil, err
	}
	r := &run{entry: e, ready: make(chan struct{}), done: make(chan struct{}), persists: persists}
	r.life, r.hurry = context.WithCancel(ctx)
	s.runs[e.Tunnel.ID] = r
	s.tasks.Go(func() { s.serve(r) })
	return r, nil
}

// serve is the life of one tunnel.
func (s *Server) serve(r *run) {
	defer close(r.done)
	defer r.hurry()
	r.err = s.serveOnce(r)
	for backoff := retryMin; r.err != nil && r.persists && r.entry.Context().Err() == nil; backoff = min(2*backoff, retryMax) {
		r.entry.SetState(registry.StateRetrying, r.err.Error())
		select {
		case <-time.After(backoff):
		case <-r.entry.Context().Done():
		}
		r.err = s.serveOnce(r)
	}
	s.finish(r)
}

func (s *Server) serveOnce(r *run) error {
	if r.entry.Tunnel.Kind == registry.KindListen {
		return s.serveListen(r)
	}
	return s.serveForward(r)
}

// drain lets live streams end, for as long as the tunnel's end gives them, and
// does besides what f does until its context ends.
func (s *Server) drain(r *run, f func(context.Context)) {
	var end *endCause
	if !errors.As(context.Cause(r.entry.Context()), &end) || end.drain <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(r.life, end.drain)
	var beside sync.WaitGroup
	beside.Go(func() { f(ctx) })
	_ = s.registry.Drain(ctx, func(st *registry.Stream) bool { return st.Entry() == r.entry })
	cancel()
	beside.Wait()
}

// finish takes the tunnel out.
func (s *Server) finish(r *run) {
	code := proto.CodeClosed
	var end *endCause
	if errors.As(context.Cause(r.entry.Context()), &end) && end.reason != EndClosed {
		code = proto.CodeStopped
	}
	s.registry.Deregister(r.entry, code)
	if r.endLoan != nil {
		r.endLoan()
	}
	r.loans.end()
	if r.opens != nil {
		r.opens.close()
	}
	s.mu.Lock()
	delete(s.runs, r.entry.Tunnel.ID)
	s.mu.Unlock()
}

// endReason says why a run has ended, for its command.
func (r *run) endReason() string {
	var end *endCause
	if errors.As(context.Cause(r.entry.Context()), &end) {
		return end.reason
	}
	return EndClosed
}

func (r *run) markReady(warn string) {
	select {
	case <-r.ready:
	default:
		r.warn = warn
		close(r.ready)
	}
}

func (s *Server) serveListen(r *run) error {
	t := r.entry.Tunnel
	r.endLoan = s.access.Lend(t.Protocol, t.Allow, t.Open)
	if !strings.HasPrefix(t.Protocol, proto.Namespace) {
		defer s.node.Offer(t.Protocol)()
	}
	s.listens.Run(r.entry, func(target error) {
		warn := ""
		if target != nil {
			warn = target.Error()
		}
		r.markReady(warn)
	})
	s.drain(r, func(context.Context) {})
	return nil
}

func (s *Server) serveForward(r *run) error {
	t := r.entry.Tunnel
	ctx := r.entry.Context()
	asks, err := newQuestioner(s.node, t)
	if err != nil {
		return err
	}
	asks.done = func() { s.tasks.Go(func() { s.inviteDone(r) }) } // which may wait for this run
	r.asks.Store(asks)
	peers, release, err := s.want(ctx, t)
	if err != nil {
		return err
	}
	defer release()
	r.entry.SetPeer(peers[0])
	r.opens = &opener{s: s, t: t}
	f := &forward.Forward{
		Registry:  s.registry,
		Entry:     r.entry,
		Peers:     peers,
		Open:      r.opens.open,
		Ask:       asks.ask,
		CannotAsk: func(err error) bool { return errors.Is(err, node.ErrCannotAsk) },
		Connect:   s.node.Connect,
		Watch:     s.node.Watch,
		Hold:      s.node.Hold,
		Parked:    r.opens.parked,
		Failed:    func(origin, peer, reason string) { s.forwardFailed(t, origin, peer, reason) },
	}
	if err := f.Bind(); err != nil {
		return err
	}
	if !t.Wait {
		if err := f.Prove(ctx); err != nil {
			f.Unbind()
			return err
		}
	}
	f.Report()
	r.markReady("")
	f.Serve()
	s.drain(r, f.Regain)
	return nil
}

// want resolves the peers of a forward and keeps their addresses for as long
// as the tunnel lives.
func (s *Server) want(ctx context.Context, t registry.Tunnel) (ids []string, release func(), err error) {
	var ends []func()
	release = func() {
		for _, end := range ends {
			end()
		}
	}
	for _, typed := range t.Peers {
		peers, err := node.Resolve(ctx, typed)
		if err != nil {
			release()
			return nil, nil, fmt.Errorf("%w: %w", forward.ErrNotReached, err)
		}
		for _, p := range peers {
			end, err := s.node.Want(p)
			if err != nil {
				release()
				return nil, nil, usage(err.Error())
			}
			ends = append(ends, end)
			ids = appendNew(ids, p.ID)
		}
	}
	return ids, release, nil
}

func appendNew(ids []string, id string) []string {
	for _, have := range ids {
		if have == id {
			return ids
		}
	}
	return append(ids, id)
}

func (s *Server) forwardFailed(t registry.Tunnel, origin, peer, reason string) {
	s.registry.Events.Publish(registry.RefusedEvent{
		Time: time.Now(), Tunnel: t.ID, Protocol: t.Protocol, Peer: peer, Reason: origin + ": " + reason,
	})
}

// startKept opens the tunnels of the book, each as with --wait.
func (s *Server) startKept(context.Context) error {
	kept := s.book.list()
	s.registry.ReserveIDs(lastID(kept))
	for _, t := range kept {
		if err := s.openKept(t); err != nil {
			s.log.Warn("kept tunnel", "id", t.ID, "err", err)
		}
	}
	return nil
}

func (s *Server) openKept(t registry.Tunnel) error {
	t.Keep = true
	t.Wait = true
	_, err := s.open(s.ctx, t, true)
	return err
}

// stopRuns ends tunnels that are still there, without a drain.
func (s *Server) stopRuns(context.Context) error {
	s.mu.Lock()
	s.stopping = true
	runs := make([]*run, 0, len(s.runs))
	for _, r := range s.runs {
		runs = append(runs, r)
	}
	s.mu.Unlock()
	for _, r := range runs {
		r.entry.Close(&endCause{reason: EndStopped})
	}
	for _, r := range runs {
		<-r.done
	}
	return nil
}

// closeRun ends a tunnel, and forgets it where it was kept: first on disk.
func (s *Server) closeRun(r *run, drain time.Duration) error {
	if r.entry.Tunnel.Keep {
		s.keeping.Lock()
		defer s.keeping.Unlock()
		if err := s.book.remove(r.entry.Tunnel.ID); err != nil {
			return err
		}
	}
	r.entry.Close(&endCause{drain: drain, reason: EndClosed})
	if drain == 0 {
		r.hurry() // it may be draining already
	}
	return nil
}

// reload rereads what a person may have edited: access rules and kept tunnels.
// A kept tunnel that is gone, or is another now, is closed.
func (s *Server) reload() error {
	s.access.Reload()
	s.keeping.Lock()
	defer s.keeping.Unlock()
	had := s.book.list()
	if err := s.book.reload(); err != nil {
		return err
	}
	want := s.book.list()
	for _, t := range had {
		if r := s.runOf(t.ID); r != nil && r.entry.Tunnel.Keep && !holds(want, t) {
			r.entry.Close(&endCause{reason: EndClosed})
			<-r.done
		}
	}
	s.registry.ReserveIDs(lastID(want))
	var errs []error
	for _, t := range want {
		errs = append(errs, s.reopen(t))
	}
	return errors.Join(append(errs, s.access.Err())...)
}

// reopen opens a kept tunnel that is not open.
func (s *Server) reopen(t registry.Tunnel) error {
	switch r := s.runOf(t.ID); {
	case r == nil:
		return s.openKept(t)
	case !r.entry.Tunnel.Keep:
		return usage(fmt.Sprintf("kept tunnel %s: that id is of a tunnel that is not kept: choose another", t.ID))
	}
	return nil
}

// holds says whether a tunnel is in the list as it is.
func holds(list []registry.Tunnel, t registry.Tunnel) bool {
	text, err := json.Marshal(t)
	return err == nil && slices.ContainsFunc(list, func(o registry.Tunnel) bool {
		other, err := json.Marshal(o)
		return err == nil && bytes.Equal(text, other)
	})
}
