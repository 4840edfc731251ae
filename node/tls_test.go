package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// countedConn counts its writes, and lets them hang until it is closed.
type countedConn struct {
	*net.TCPConn
	writes atomic.Int64
	held   atomic.Bool
	hangs  chan struct{} // closed by the first that does
	closed chan struct{}
	once   sync.Once
	far    *slowConn // its other end
}

func (c *countedConn) hang() { c.held.Store(true) }

func (c *countedConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	if c.held.CompareAndSwap(true, false) {
		close(c.hangs)
		<-c.closed
	}
	return c.TCPConn.Write(b)
}

// slowConn writes in pieces that are no records, each when it is told to; nil for
// as it comes.
type slowConn struct {
	*net.TCPConn
	next chan struct{}
}

const slowPiece = 7001

func (c *slowConn) Write(b []byte) (n int, err error) {
	for c.next != nil && len(b)-n > slowPiece && err == nil {
		<-c.next
		var took int
		took, err = c.TCPConn.Write(b[n : n+slowPiece])
		n += took
	}
	if err != nil {
		return n, err
	}
	took, err := c.TCPConn.Write(b[n:])
	return n + took, err
}

func (c *countedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.TCPConn.Close()
}

// tlsOf makes one side's TLS, ours or libp2p's.
func tlsOf(t *testing.T, ours bool) (sec.SecureTransport, peer.ID) {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	must(t, err)
	id, err := peer.IDFromPrivateKey(key)
	must(t, err)
	if ours {
		secure, err := newTLS(libp2ptls.ID, key, nil)
		must(t, err)
		return secure, id
	}
	secure, err := libp2ptls.New(libp2ptls.ID, key, nil)
	must(t, err)
	return secure, id
}

// securePair joins our TLS to another's, over sockets.
func securePair(t *testing.T, other bool) (ours, theirs sec.SecureConn, raw *countedConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	client, _ := tlsOf(t, true)
	server, id := tlsOf(t, other)
	far, accepted := new(slowConn), make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			far.TCPConn = c.(*net.TCPConn)
			theirs, err = server.SecureInbound(context.Background(), far, "")
		}
		accepted <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	raw = &countedConn{TCPConn: c.(*net.TCPConn), hangs: make(chan struct{}), closed: make(chan struct{}), far: far}
	ours, err = client.SecureOutbound(context.Background(), raw, id)
	must(t, err)
	must(t, <-accepted)
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs, raw
}

// sizesOfWrites are around those of records and of what is gathered.
const (
	recordSize = 16 << 10
	gathered   = 17 * (recordSize + 22)
)

var sizesOfWrites = []int{1, 100, recordSize - 1, recordSize, recordSize + 1, 64 << 10, 64<<10 + 12, gathered - 1, gathered, gathered + 1, 300_000, 0, 5}

func TestGatheredTLSIsTheSameOnTheWire(t *testing.T) {
	for name, other := range map[string]bool{"libp2p's": false, "ours": true} {
		t.Run(name, func(t *testing.T) {
			ours, theirs, _ := securePair(t, other)
			var want []byte
			for _, n := range sizesOfWrites {
				b := make([]byte, n)
				_, _ = rand.Read(b)
				want = append(want, b...)
			}
			for _, way := range [][2]sec.SecureConn{{ours, theirs}, {theirs, ours}} {
				wrote := make(chan error, 1)
				go func() {
					rest := want
					for _, n := range sizesOfWrites {
						if took, err := way[0].Write(rest[:n]); err != nil || took != n {
							wrote <- err
							return
						}
						rest = rest[n:]
					}
					wrote <- nil
				}()
				got := make([]byte, len(want))
				_, err := io.ReadFull(way[1], got)
				must(t, err)
				must(t, <-wrote)
				if !bytes.Equal(got, want) {
					t.Error("the bytes differ")
				}
			}
		})
	}
}

func TestTheRecordsOfAMessageGoOutTogether(t *testing.T) {
	ours, theirs, raw := securePair(t, false)
	go func() { _, _ = io.Copy(io.Discard, theirs) }()
	message := make([]byte, 64<<10)
	for range 100 { // TLS begins with small records
		_, err := ours.Write(message)
		must(t, err)
	}
	before := raw.writes.Load()
	for range 100 {
		_, err := ours.Write(message)
		must(t, err)
	}
	if n := raw.writes.Load() - before; n != 100 {
		t.Errorf("%d system calls for 100 messages", n)
	}
}

// A write that hangs ends with the connection, at once.
func TestCloseEndsAWriteThatHangs(t *testing.T) {
	ours, _, raw := securePair(t, false)
	raw.hang()
	wrote := make(chan error, 1)
	go func() {
		_, err := ours.Write(make([]byte, 64<<10))
		wrote <- err
	}()
	<-raw.hangs
	_ = ours.Close()
	if err := <-wrote; err == nil {
		t.Error("the write passes for done")
	}
}

// TestAReadThatIsCutIsGoneOnWith: a deadline takes nothing of what is under way,
// also in the middle of a record.
func TestAReadThatIsCutIsGoneOnWith(t *testing.T) {
	ours, theirs, raw := securePair(t, true)
	data := make([]byte, 4<<20)
	_, _ = rand.Read(data)
	next := make(chan struct{}, 1<<20)
	raw.far.next = next
	wrote := make(chan error, 1)
	go func() {
		_, err := theirs.Write(data)
		wrote <- err
	}()
	got, buf, cuts := []byte{}, make([]byte, 5000), 0
	for len(got) < len(data) {
		must(t, ours.SetReadDeadline(time.Now().Add(20*time.Microsecond)))
		n, err := ours.Read(buf)
		got = append(got, buf[:n]...)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			cuts++
			select {
			case next <- struct{}{}: // what is there ends in the middle of a record
			default:
			}
			continue
		}
		must(t, err)
	}
	must(t, <-wrote)
	if !bytes.Equal(got, data) {
		t.Error("the bytes differ")
	}
	if cuts < len(data)/slowPiece/2 {
		t.Errorf("%d cuts only", cuts)
	}
}
