package listen

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"p2ptun/proto"
	"p2ptun/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	friend   = "friend"
	stranger = "stranger"
	// patience bounds what a test waits for on a real socket.
	patience = 30 * time.Second
)

// peerEnd is the stream of a peer: it sends nothing, and notes its reset.
type peerEnd struct {
	reset chan proto.Code // holds one
	gone  chan struct{}
	once  sync.Once
}

func newPeerEnd() *peerEnd {
	return &peerEnd{reset: make(chan proto.Code, 1), gone: make(chan struct{})}
}

func (e *peerEnd) Read([]byte) (int, error) {
	<-e.gone
	return 0, net.ErrClosed
}
func (e *peerEnd) Write(b []byte) (int, error) { return len(b), nil }
func (e *peerEnd) CloseWrite() error           { return nil }
func (e *peerEnd) Close() error                { return nil }
func (e *peerEnd) Reset(code proto.Code) error {
	e.once.Do(func() { e.reset <- code; close(e.gone) })
	return nil
}

// rig is a Service whose every outside effect is counted.
type rig struct {
	*Service
	mu      sync.Mutex
	allowed map[string]bool
	dials   []string // network and address
	at      []time.Time
	refused []string
	dial    func(ctx context.Context) (net.Conn, error)
}

func newRig() *rig {
	r := &rig{allowed: map[string]bool{friend: true}, dial: new(target).dial}
	r.Service = &Service{
		Registry: registry.New(),
		Allowed:  func(peer, _ string) bool { r.mu.Lock(); defer r.mu.Unlock(); return r.allowed[peer] },
		Refused: func(peer, protocol string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.refused = append(r.refused, peer+" "+protocol)
		},
		Dial: r.dialled,
	}
	return r
}

func (r *rig) dialled(ctx context.Context, network, address string) (net.Conn, error) {
	r.mu.Lock()
	r.dials = append(r.dials, network+" "+address)
	r.at = append(r.at, time.Now())
	dial := r.dial
	r.mu.Unlock()
	return dial(ctx)
}

func (r *rig) allow(peer string, allowed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.allowed[peer] = allowed
}

func (r *rig) answerDialsBy(dial func(context.Context) (net.Conn, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dial = dial
}

func (r *rig) dialCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.dials)
}

// run offers a tunnel until the returned func is called, and returns when its
// target has been tried.
func (r *rig) run(t testing.TB, tunnel registry.Tunnel) (e *registry.Entry, stop func()) {
	t.Helper()
	tunnel.Kind = registry.KindListen
	if tunnel.Protocol == "" {
		tunnel.Protocol = "/x/t"
	}
	if tunnel.Target == "" {
		tunnel.Target = "/ip4/127.0.0.1/tcp/22"
	}
	ctx, cancel := context.WithCancel(context.Background())
	e, err := r.Registry.Register(ctx, tunnel)
	if err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); r.Run(e, func(error) { close(ready) }) }()
	<-ready
	return e, func() {
		cancel()
		<-done
		r.Registry.Deregister(e, proto.CodeClosed)
		r.Registry.Wait()
	}
}

// serve gives the service a stream of a peer's.
func (r *rig) serve(peer, protocol string) *peerEnd {
	end := newPeerEnd()
	r.Serve(registry.Incoming{Peer: peer, Protocol: protocol, End: end})
	return end
}

func wantReset(t testing.TB, end *peerEnd, want proto.Code) {
	t.Helper()
	select {
	case code := <-end.reset:
		if code != want {
			t.Errorf("reset with %q, want %q", code, want)
		}
	default:
		t.Errorf("not reset, want %q", want)
	}
}

// target is a service that takes connections and keeps them.
type target struct {
	mu    sync.Mutex
	conns []net.Conn // the service's sides
}

// dial makes a real pair of sockets, without a listener of its own.
func (s *target) dial(context.Context) (net.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	a, err := l.Accept()
	if err != nil {
		return nil, err
	}
	_ = a.SetDeadline(time.Now().Add(patience))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, a)
	return c, nil
}

func (s *target) last() net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[len(s.conns)-1]
}

func (s *target) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
}
