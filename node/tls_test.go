package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// countedConn counts its system calls, as far as they are calls of it.
type countedConn struct {
	*net.TCPConn
	writes atomic.Int64
}

func (c *countedConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.TCPConn.Write(b)
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
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			theirs, err = server.SecureInbound(context.Background(), c, "")
		}
		accepted <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	raw = &countedConn{TCPConn: c.(*net.TCPConn)}
	ours, err = client.SecureOutbound(context.Background(), raw, id)
	must(t, err)
	must(t, <-accepted)
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs, raw
}

// sizesOfWrites are around those of records and of what is gathered.
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

func TestAConnectionThatWaitsHoldsNoBuffer(t *testing.T) {
	ours, theirs, _ := securePair(t, false)
	block := make([]byte, 1<<20)
	go func() { _, _ = theirs.Write(block) }()
	_, err := io.ReadFull(ours, block)
	must(t, err)
	g := ours.(*gatheredConn).raw
	if g.ready == nil {
		t.Skip("this system knows no such reads")
	}
	if g.ahead != nil || g.out != nil {
		t.Error("a buffer is held")
	}
}

// A write that hangs ends with the connection, at once.
func TestCloseEndsAWriteThatHangs(t *testing.T) {
	ours, _, raw := securePair(t, false)
	wrote := make(chan error, 1)
	go func() {
		for message := make([]byte, 64<<10); ; {
			if _, err := ours.Write(message); err != nil {
				wrote <- err
				return
			}
		}
	}()
	for before := int64(-1); before != raw.writes.Load(); { // until nobody takes more
		before = raw.writes.Load()
		<-time.After(200 * time.Millisecond)
	}
	began := time.Now()
	_ = ours.Close()
	<-wrote
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("after %s", took)
	}
}
