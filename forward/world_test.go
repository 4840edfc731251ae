package forward

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

var (
	errAway   = errors.New("nobody there")
	errNoAsk  = errors.New("can't be asked")
	errBroken = errors.New("broken")
)

// world stands in for node: peers that come and go, and what they say.
type world struct {
	mu      sync.Mutex
	peers   map[string]*fakePeer
	started time.Time
	dials   []time.Duration // since started
	asks    []time.Duration
	failed  []string
	holds   int
}

type fakePeer struct {
	reachable bool // the next dial succeeds
	up        bool
	hangs     bool // a dial, an open or a question takes as long as it may
	changed   chan struct{}
	verdict   proto.Verdict
	askErr    error
	open      func(ctx context.Context) (registry.End, error)
}

func newWorld() *world { return &world{peers: map[string]*fakePeer{}, started: time.Now()} }

// peer gives one to read or write with the lock held, by do.
func (w *world) do(id string, f func(p *fakePeer)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.peers[id]
	if p == nil {
		p = &fakePeer{changed: make(chan struct{})}
		w.peers[id] = p
	}
	was := p.up
	f(p)
	if p.up != was {
		p.wake()
	}
}

func (p *fakePeer) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (w *world) since() time.Duration { return time.Since(w.started) }

func (w *world) connect(ctx context.Context, id string, _ time.Duration) (err error) {
	hangs := false
	w.do(id, func(p *fakePeer) {
		w.dials = append(w.dials, w.since())
		hangs = p.hangs
		if p.up = p.up || p.reachable; !p.up {
			err = errAway
		}
	})
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (w *world) watch(id string) (up bool, changed <-chan struct{}) {
	w.do(id, func(p *fakePeer) { up, changed = p.up, p.changed })
	return up, changed
}

func (w *world) ask(ctx context.Context, id, _ string) (v proto.Verdict, err error) {
	hangs := false
	w.do(id, func(p *fakePeer) {
		w.asks = append(w.asks, w.since())
		v, err, hangs = p.verdict, p.askErr, p.hangs
	})
	if hangs {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return v, err
}

func (w *world) open(ctx context.Context, id, _ string) (registry.End, registry.Path, error) {
	var open func(context.Context) (registry.End, error)
	hangs := false
	w.do(id, func(p *fakePeer) { open, hangs = p.open, p.hangs })
	if hangs {
		<-ctx.Done()
		return nil, registry.Path{}, ctx.Err()
	}
	if open == nil {
		return nil, registry.Path{}, errBroken
	}
	end, err := open(ctx)
	return end, registry.Path{Transport: "tcp", Addr: "/fake/" + id}, err
}

func (w *world) hold(string) func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holds++
	return func() { w.mu.Lock(); defer w.mu.Unlock(); w.holds-- }
}

func (w *world) fail(_, peer, reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = append(w.failed, peer+": "+reason)
}

// look reads a list of the world's.
func look[T any](w *world, list *[]T) []T {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]T(nil), *list...)
}

// rig is a Forward in a world.
type rig struct {
	*Forward
	*world
	cancel context.CancelFunc
}

func newRig(t testing.TB, tunnel registry.Tunnel, peers ...string) *rig {
	t.Helper()
	tunnel.Kind, tunnel.Protocol = registry.KindForward, "/x/t"
	if tunnel.Bind == "" {
		tunnel.Bind = "/ip4/127.0.0.1/tcp/0"
	}
	ctx, cancel := context.WithCancel(context.Background())
	reg := registry.New()
	e, err := reg.Register(ctx, tunnel)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld()
	return &rig{world: w, cancel: cancel, Forward: &Forward{
		Registry: reg, Entry: e, Peers: peers,
		Open: w.open, Ask: w.ask, Connect: w.connect, Watch: w.watch, Hold: w.hold, Failed: w.fail,
		CannotAsk: func(err error) bool { return errors.Is(err, errNoAsk) },
	}}
}

// bindFake makes the rig's local address one of no system.
func (r *rig) bindFake() *fakeListener {
	l := &fakeListener{next: make(chan accepted), closed: make(chan struct{})}
	r.listener = l
	for _, p := range r.Peers {
		r.remotes = append(r.remotes, &remote{f: r.Forward, id: p, poke: make(chan struct{}, 1)})
	}
	return l
}

// serve runs Serve until the returned func is called, which returns with it.
func (r *rig) serve() (stop func()) {
	done := make(chan struct{})
	go func() { defer close(done); r.Serve() }()
	return func() {
		r.cancel()
		<-done
		r.Registry.Deregister(r.Entry, proto.CodeClosed)
		r.Registry.Wait()
	}
}

func (r *rig) state() (registry.State, string) {
	s := r.Entry.Status()
	return s.State, s.Reason
}

func (r *rig) wantState(t testing.TB, state registry.State, reason string) {
	t.Helper()
	if s, why := r.state(); s != state || why != reason {
		t.Errorf("state %s (%s), want %s (%s)", s, why, state, reason)
	}
}

type accepted struct {
	conn net.Conn
	err  error
}

// fakeListener gives what a test sends.
type fakeListener struct {
	mu      sync.Mutex
	accepts int
	always  error // what Accept returns; nil: what next gives
	next    chan accepted
	once    sync.Once
	closed  chan struct{}
}

func (l *fakeListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	l.accepts++
	always := l.always
	l.mu.Unlock()
	if always != nil {
		return nil, always
	}
	select {
	case a := <-l.next:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *fakeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *fakeListener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepts
}

func (l *fakeListener) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.always = err
}
