package mux

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	goyamux "github.com/libp2p/go-yamux/v5"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// leadable is a connection whose readers may lead.
type leadable struct{ net.Conn }

func (leadable) Ahead() bool { return false }

// leading is a Transport over such connections.
type leading struct{ Transport }

func (l leading) NewConn(c net.Conn, isServer bool, scope network.PeerScope) (network.MuxedConn, error) {
	return l.Transport.NewConn(leadable{c}, isServer, scope)
}

// muxers are all that must understand each other.
var muxers = map[string]network.Multiplexer{"loop": Transport{}, "leader": leading{}, "libp2p": yamux.DefaultTransport}

// tcpPair is both ends of a connection, which end with the test.
func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	a, err = net.Dial("tcp", l.Addr().String())
	must(t, err)
	b, err = l.Accept()
	must(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// pairOf is a session of one muxer with one of another.
func pairOf(t testing.TB, client, server network.Multiplexer) (a, b network.MuxedConn) {
	t.Helper()
	x, y := tcpPair(t)
	a, err := client.NewConn(x, false, nil)
	must(t, err)
	b, err = server.NewConn(y, true, nil)
	must(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func roundTrip(c network.MuxedConn) time.Duration {
	var theirs *goyamux.Session
	if c.As(&theirs) {
		return theirs.RTT()
	}
	return c.(*session).roundTrip()
}

// streamPair is both ends of a new stream, of which the peer knows.
func streamPair(t testing.TB, a, b network.MuxedConn) (x, y network.MuxedStream) {
	t.Helper()
	x, err := a.OpenStream(t.Context())
	must(t, err)
	_, err = x.Write([]byte{1})
	must(t, err)
	y, err = b.AcceptStream()
	must(t, err)
	_, err = io.ReadFull(y, make([]byte, 1))
	must(t, err)
	return x, y
}

// eachPair runs a test for all muxers with all, but libp2p's with itself.
func eachPair(t *testing.T, f func(t *testing.T, a, b network.MuxedConn)) {
	t.Helper()
	for name, client := range muxers {
		for other, server := range muxers {
			if name == "libp2p" && other == "libp2p" {
				continue
			}
			t.Run(name+" to "+other, func(t *testing.T) {
				a, b := pairOf(t, client, server)
				f(t, a, b)
			})
		}
	}
}

// echoes takes so many streams, and gives back what comes on each.
func echoes(t testing.TB, c network.MuxedConn, streams int) {
	var all sync.WaitGroup
	defer all.Wait()
	for range streams {
		s, err := c.AcceptStream()
		if err != nil {
			t.Error(err)
			return
		}
		all.Go(func() {
			_, _ = io.Copy(s, s)
			_ = s.Close()
		})
	}
}

// wantBytes reads to the end and fails unless that is what comes.
func wantBytes(t testing.TB, from io.Reader, want []byte) {
	t.Helper()
	h := sha256.New()
	n, err := io.Copy(h, from)
	if sum := sha256.Sum256(want); err != nil || !bytes.Equal(h.Sum(nil), sum[:]) {
		t.Errorf("read %d bytes of %d, or others: %v", n, len(want), err)
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>9)
	}
	return b
}

// boundScope gives so much memory.
type boundScope struct {
	network.PeerScope
	mu         sync.Mutex
	left, used int
	spans      int
}

var errNoMemory = errors.New("no memory")

type boundSpan struct {
	network.ResourceScopeSpan
	of   *boundScope
	held int
}

func newScope(size int) *boundScope { return &boundScope{left: size} }

func (s *boundScope) Peer() peer.ID { return "" }
func (s *boundScope) BeginSpan() (network.ResourceScopeSpan, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spans++
	return &boundSpan{of: s}, nil
}

func (s *boundSpan) ReserveMemory(n int, _ uint8) error {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	if n > s.of.left {
		return errNoMemory
	}
	s.of.left, s.of.used, s.held = s.of.left-n, s.of.used+n, s.held+n
	return nil
}

func (s *boundSpan) Done() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.of.left, s.of.used, s.held = s.of.left+s.held, s.of.used-s.held, 0
	s.of.spans--
}

func (s *boundScope) holds() (spans, used int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spans, s.used
}

// await fails unless that becomes true within a time that is far beyond.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 20 s: ", what)
		}
	}
}
