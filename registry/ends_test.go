package registry

import (
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"p2ptun/proto"
)

// patience bounds what a test waits for on a real socket.
const patience = 30 * time.Second

// tcpPair is a connection over loopback: the client's side and the accepted.
func tcpPair(tb testing.TB) (client, accepted *net.TCPConn) {
	tb.Helper()
	c, a := socketPair(tb, "tcp", "127.0.0.1:0")
	return c.(*net.TCPConn), a.(*net.TCPConn)
}

func unixPair(tb testing.TB) (client, accepted *net.UnixConn) {
	tb.Helper()
	c, a := socketPair(tb, "unix", filepath.Join(tb.TempDir(), "s"))
	return c.(*net.UnixConn), a.(*net.UnixConn)
}

func socketPair(tb testing.TB, network, addr string) (client, accepted net.Conn) {
	tb.Helper()
	ln, err := net.Listen(network, addr)
	must(tb, err)
	defer ln.Close()
	client, err = net.Dial(network, ln.Addr().String())
	must(tb, err)
	accepted, err = ln.Accept()
	must(tb, err)
	tb.Cleanup(func() { client.Close(); accepted.Close() })
	must(tb, client.SetDeadline(time.Now().Add(patience)))
	return client, accepted
}

func connEndOf(tb testing.TB, c net.Conn) End {
	tb.Helper()
	e, err := NewConnEnd(c)
	must(tb, err)
	return e
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// memWay is one way between two memEnds: a bounded buffer.
type memWay struct {
	mu     sync.Mutex
	change *sync.Cond
	buf    []byte
	bound  int
	eof    bool
	rerr   error // for the reader, ahead of what is buffered
	werr   error // for the writer
	taken  int64 // bytes that the writer got rid of
	asked  int   // how long the slice is that a reader waits with; 0 if none
}

func newMemWay(bound int) *memWay {
	w := &memWay{bound: bound}
	w.change = sync.NewCond(&w.mu)
	return w
}

func (w *memWay) Read(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.asked = len(b); len(w.buf) == 0 && !w.eof && w.rerr == nil; {
		w.change.Wait()
	}
	w.asked = 0
	switch {
	case w.rerr != nil:
		return 0, w.rerr
	case len(w.buf) == 0:
		return 0, io.EOF
	}
	n := copy(b, w.buf)
	w.buf = slices.Delete(w.buf, 0, n)
	w.change.Broadcast()
	return n, nil
}

func (w *memWay) Write(b []byte) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n < len(b) {
		for len(w.buf) == w.bound && w.werr == nil {
			w.change.Wait()
		}
		if w.werr != nil {
			return n, w.werr
		}
		k := min(len(b)-n, w.bound-len(w.buf))
		w.buf = append(w.buf, b[n:n+k]...)
		n, w.taken = n+k, w.taken+int64(k)
		w.change.Broadcast()
	}
	return n, nil
}

func (w *memWay) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	w.change.Broadcast()
}

func (w *memWay) fail(rerr, werr error) {
	w.set(func() { w.rerr, w.werr = rerr, werr })
}

// ended says that nothing comes out of it any more.
func (w *memWay) ended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rerr != nil || w.eof && len(w.buf) == 0
}

// closed says that nothing goes into it any more.
func (w *memWay) closed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.werr != nil
}

// memEnd is an End in memory. It notes what was done to it.
type memEnd struct {
	in, out *memWay
	onReset func() // if not nil, runs in Reset, last
	onClose func() // if not nil, runs in Close, first

	mu         sync.Mutex
	resets     []proto.Code
	closes     int
	closedSoon bool // Close while a way might still flow
	halfCloses int
}

// memPair gives two ends that are joined; each way buffers bound bytes.
func memPair(bound int) (a, b *memEnd) {
	x, y := newMemWay(bound), newMemWay(bound)
	return &memEnd{in: x, out: y}, &memEnd{in: y, out: x}
}

func (e *memEnd) Read(b []byte) (int, error)  { return e.in.Read(b) }
func (e *memEnd) Write(b []byte) (int, error) { return e.out.Write(b) }

func (e *memEnd) CloseWrite() error {
	e.note(func() { e.halfCloses++ })
	e.out.set(func() { e.out.eof, e.out.werr = true, errors.New("write after CloseWrite") })
	return nil
}

func (e *memEnd) Reset(code proto.Code) error {
	e.note(func() { e.resets = append(e.resets, code) })
	err := &ResetError{Code: code}
	e.in.fail(err, err)
	e.out.fail(err, err)
	if e.onReset != nil {
		e.onReset()
	}
	return nil
}

func (e *memEnd) Close() error {
	if e.onClose != nil {
		e.onClose()
	}
	done := e.out.closed() && e.in.ended()
	e.note(func() { e.closes++; e.closedSoon = e.closedSoon || !done })
	return nil
}

func (e *memEnd) note(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// codes are those that the end was reset with.
func (e *memEnd) codes() []proto.Code {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.resets)
}

// leave is a program that has closed its socket: what it sent is still read,
// and then the end; what is written to it fails.
func (e *memEnd) leave() {
	_ = e.CloseWrite()
	e.in.fail(io.ErrClosedPipe, syscall.EPIPE)
}

// rig is a registry with one tunnel, and streams that end with the test.
type rig struct {
	testing.TB
	*Registry
	entry *Entry
}

func newRig(tb testing.TB) *rig { return newRigOf(tb, Tunnel{}) }

func newRigOf(tb testing.TB, tunnel Tunnel) *rig {
	tb.Helper()
	r := New()
	tunnel.Kind, tunnel.Protocol = KindListen, "/x/test"
	e, err := r.Register(tb.Context(), tunnel)
	must(tb, err)
	tb.Cleanup(func() { r.Deregister(e, proto.CodeStopped); r.Wait() })
	return &rig{tb, r, e}
}

func (g *rig) pipe(local, remote End) *Stream {
	g.Helper()
	s := &Stream{Peer: "peer"}
	must(g, g.Pipe(g.entry, s, local, remote))
	return s
}

// tcpBoth pipes two TCP connections and gives their outer sides.
func (g *rig) tcpBoth() (client, peer *net.TCPConn, s *Stream) {
	g.Helper()
	client, local := tcpPair(g)
	peer, remote := tcpPair(g)
	return client, peer, g.pipe(connEndOf(g, local), connEndOf(g, remote))
}

// sockets pipes two connections of that network and gives their outer sides.
func (g *rig) sockets(network string) (client, peer net.Conn) {
	g.Helper()
	addr := func() string {
		if network == "unix" {
			return filepath.Join(g.TempDir(), "s")
		}
		return "127.0.0.1:0"
	}
	client, local := socketPair(g, network, addr())
	peer, remote := socketPair(g, network, addr())
	g.pipe(connEndOf(g, local), connEndOf(g, remote))
	return client, peer
}

// tcpAndMem pipes a TCP connection to an end in memory.
func (g *rig) tcpAndMem(bound int) (client *net.TCPConn, peer, remote *memEnd) {
	g.Helper()
	client, local := tcpPair(g)
	peer, remote = memPair(bound)
	g.pipe(connEndOf(g, local), remote)
	return client, peer, remote
}

// memBoth pipes ends in memory: the outer two, and the inner.
func (g *rig) memBoth(bound int) (client, peer, local, remote *memEnd) {
	g.Helper()
	client, local = memPair(bound)
	peer, remote = memPair(bound)
	g.pipe(local, remote)
	return client, peer, local, remote
}

// drained returns when no stream is live.
func (g *rig) drained() {
	g.Helper()
	must(g, g.Drain(g.Context(), all))
}

func all(*Stream) bool { return true }

// pattern is a stream of n bytes that repeats late.
func pattern(n int) []byte {
	b := make([]byte, n)
	sum := sha256.Sum256(nil)
	for i := 0; i < n; i += copy(b[i:], sum[:]) {
		sum = sha256.Sum256(sum[:])
	}
	return b
}

// background runs f and gives what it returns.
func background(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func writeOf(w io.Writer, b []byte) func() error {
	return func() error { _, err := w.Write(b); return err }
}

// eventually returns once f holds, which another goroutine is about to bring
// about.
func eventually(tb testing.TB, f func() bool) {
	tb.Helper()
	for start := time.Now(); !f(); runtime.Gosched() {
		if time.Since(start) > patience {
			tb.Fatal("never came about")
		}
	}
}

// finishedEnd is an end whose other side has sent nothing and half-closed.
func finishedEnd() *memEnd {
	outer, inner := memPair(1)
	_ = outer.CloseWrite()
	return inner
}
