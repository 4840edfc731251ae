package trunk

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// What counts libp2p's bytes never stops.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run"))
}

// netLink is a link over a loopback connection.
type netLink struct{ net.Conn }

func (l netLink) Reset() { _ = l.Close() }

func (l netLink) CloseWrite() error { return l.Conn.(*net.TCPConn).CloseWrite() }

// world is a client and a server with links between them that can be cut.
type world struct {
	*Client
	server *Server

	mu       sync.Mutex
	denied   bool
	changed  chan struct{}
	links    []net.Conn
	made     int
	listener net.Listener
	events   []Event
}

const (
	testPeer     = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
	testProtocol = "/x/test"
)

func newWorld(t testing.TB, accept func(*Stream)) *world {
	t.Helper()
	w := &world{changed: make(chan struct{})}
	var err error
	w.listener, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.server = &Server{
		Allowed: func(string, string) bool { return !w.isDenied() },
		Accept:  func(_, _ string, st *Stream) { accept(st) },
		Survive: func(string) time.Duration { return time.Hour },
		Budget:  NewBudget(DefaultBudget),
	}
	w.Client = &Client{
		Peer: testPeer, Protocol: testProtocol, Dial: w.dial, Survive: time.Hour, Budget: NewBudget(DefaultBudget),
		Watch: w.watch, Told: w.told,
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := w.listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { _ = w.server.Serve(netLink{c}, testPeer, testProtocol) })
		}
	})
	t.Cleanup(func() {
		w.Client.Close(0)
		_ = w.listener.Close()
		w.server.Close(0)
		w.cut()
		serving.Wait()
	})
	return w
}

func (w *world) dial(ctx context.Context) (Link, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", w.listener.Addr().String())
	if err != nil {
		return nil, err
	}
	w.links = append(w.links, c)
	w.made++
	return netLink{c}, nil
}

// count is how many links were made.
func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.made
}

func (w *world) watch() (bool, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return true, w.changed
}

func (w *world) told(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

func (w *world) isDenied() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.denied
}

// revoke takes the client's right away.
func (w *world) revoke() {
	w.mu.Lock()
	w.denied = true
	w.mu.Unlock()
	w.server.Revoke()
}

// cut resets all links.
func (w *world) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.links {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	w.links = nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
