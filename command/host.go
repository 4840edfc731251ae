package command

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"p2ptun/daemon"
	"p2ptun/registry"
)

// hosted is a foreground tunnel: it lives as long as this command, in this
// process or in the one that owns the home.
type hosted struct {
	t      *tool
	opts   daemon.Options
	drain  time.Duration
	tunnel registry.Tunnel
	on     func(daemon.Event)

	prompts *prompter // nil where nobody can answer

	self  string // this node's peer ID
	ready bool   // it has worked once

	retries int
}

// serve hands a tunnel to the running node with --bg, else serves it in the
// foreground.
func (t *tool) serve(c *cli.Context, tunnel registry.Tunnel) error {
	if c.Bool("bg") {
		return t.keep(c, tunnel)
	}
	opts, err := t.hosting(c)
	if err != nil {
		return err
	}
	h := &hosted{t: t, opts: opts, drain: c.Duration("drain"), tunnel: tunnel, on: t.show}
	if p := t.newPrompter(tunnel); p != nil {
		h.prompts = p
		defer p.close()
	}
	return h.run()
}

// run serves the tunnel until a signal, its end, or an error. Where the owner
// ends, this command takes over.
func (h *hosted) run() error {
	for {
		client, server, err := daemon.Attach(h.t.Soft, h.opts)
		if err != nil {
			return err
		}
		if st, err := client.Status(h.t.Soft); err == nil {
			h.self, h.opts.Inherit = st.Peer, st.Hosting
		}
		if server != nil {
			h.t.tellNetwork(h.opts)
		}
		stop := h.stopper(server)
		err = h.session(client)
		if server != nil {
			err = h.outcome(err)
			alone := h.stayForOthers(server, stop, err)
			if err := stop.stop(h.drain, alone); err != nil { // who comes just now takes over
				h.t.log.Warn("stop", "err", err)
			}
			return err
		}
		if !h.takeOver(err) {
			return h.outcome(err)
		}
	}
}

// takeOver says whether to go on in another process, or as the owner.
func (h *hosted) takeOver(err error) bool {
	if !errors.Is(err, daemon.ErrOwnerGone) || h.t.Soft.Err() != nil {
		return false
	}
	if !h.ready { // it never had anything here: it starts anew
		h.retries++
		return h.retries <= maxRetries
	}
	h.t.note("the node's owner has ended; taking over")
	h.tunnel.Wait = h.tunnel.Kind == registry.KindForward
	return true
}

// maxRetries bounds how many owners may end, one after the other, before a
// tunnel was ready once.
const maxRetries = 10

// outcome: a signal after the tunnel was ready is how it is meant to end.
func (h *hosted) outcome(err error) error {
	if h.ready && h.t.Soft.Err() != nil {
		return nil
	}
	if err == nil {
		return nil
	}
	return h.t.explainTunnel(err, h.tunnel, h.self)
}

// session opens the tunnel and returns when it has ended. The first signal
// lets its live connections finish, the second does not.
func (h *hosted) session(client *daemon.Client) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.t.Soft))
	defer cancel()
	defer context.AfterFunc(h.t.Hard, cancel)()
	ready := make(chan string, 1)
	defer context.AfterFunc(h.t.Soft, func() {
		select {
		case id := <-ready:
			h.closeGently(client, id, cancel)
		default:
			cancel()
		}
	})()
	reason, err := client.Open(ctx, h.tunnel, h.t.json, func(e daemon.Event) {
		if e.Event == "ready" {
			h.tunnel.ID, h.tunnel.Bind, h.ready = e.ID, e.Bind, true // taken over, it has the same port
			ready <- e.ID
			h.t.addInvite(ctx, client, &e)
			h.prompts.start(ctx, client, e.ID)
		}
		if !h.prompts.asks(e) {
			h.on(e)
		}
	})
	if err == nil && h.t.Soft.Err() == nil {
		h.t.note("the tunnel has ended: %s", reason)
	}
	return err
}

func (h *hosted) closeGently(client *daemon.Client, id string, cancel func()) {
	if n := h.live(client, id); n > 0 && h.drain > 0 {
		h.t.note("live connections: %d; they may finish within %s, a second signal ends them", n, h.drain)
	}
	_, err := client.Close(h.t.Hard, registry.Selector{IDs: []string{id}}, max(h.drain, time.Millisecond))
	if err != nil {
		cancel()
	}
}

// live counts the tunnel's connections.
func (h *hosted) live(client *daemon.Client, id string) int64 {
	list, err := client.Tunnels(h.t.Hard)
	if err != nil {
		return 0
	}
	for _, t := range list {
		if t.ID == id {
			return t.Streams
		}
	}
	return 0
}

// stayForOthers keeps the node running while other commands have tunnels in
// it. The next signal, or `p2ptun stop`, ends that; alone says that neither
// was needed. failure is why this command's own tunnel has ended, if it failed.
func (h *hosted) stayForOthers(server *daemon.Server, stop *stopper, failure error) (alone bool) {
	signal := h.t.Soft
	if signal.Err() != nil {
		signal = h.t.Hard
	}
	said := false
	for signal.Err() == nil {
		n, changed := server.Sessions()
		if stop.asked() {
			return false
		}
		if n == 0 {
			return true
		}
		if !said {
			if failure != nil {
				h.t.note("%v", failure)
			}
			h.t.note("this command's tunnel has ended; still hosting those of %d other commands (another signal ends them)", n)
			said = true
		}
		select {
		case <-changed:
		case <-stop.wanted:
		case <-signal.Done():
		}
	}
	return false
}

// stopper stops a server once, whoever asks first: this command's end or
// `p2ptun stop`.
type stopper struct {
	server *daemon.Server
	wanted chan struct{} // closed when `p2ptun stop` asked
	ask    sync.Once
	once   sync.Once
	err    error
}

// stopper is nil where another process owns the server.
func (h *hosted) stopper(server *daemon.Server) *stopper {
	if server == nil {
		return nil
	}
	return newStopper(h.t, server, h.drain)
}

func newStopper(t *tool, server *daemon.Server, drain time.Duration) *stopper {
	s := &stopper{server: server, wanted: make(chan struct{})}
	server.OnStop(func(daemon.StopReason) {
		s.ask.Do(func() {
			close(s.wanted)
			go func() { _ = s.stop(drain, false) }()
		})
	})
	context.AfterFunc(t.Hard, server.Kill)
	return s
}

func (s *stopper) asked() bool {
	select {
	case <-s.wanted:
		return true
	default:
		return false
	}
}

// stop returns when the server has stopped.
func (s *stopper) stop(drain time.Duration, handover bool) error {
	s.once.Do(func() { s.err = s.server.Stop(drain, handover) })
	return s.err
}
