package node

import (
	"context"
	"net"
	"sync"
	"syscall"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"

	"p2ptun/registry"
)

const (
	// recordSize is what one TLS record carries at most (RFC 8446, 5.1), and
	// recordExtra what it adds: header, type of content, tag.
	recordSize  = 16 << 10
	recordExtra = 5 + 1 + 16
	// gathered bounds what goes out in one system call: a frame of yamux, in
	// records.
	gathered = 17 * (recordSize + recordExtra)
	// aheadSize is what one system call takes in at most.
	aheadSize = 256 << 10
)

// gatheredTLS is libp2p's TLS, with the same bytes on the wire, in fewer system
// calls: crypto/tls makes one for each record.
type gatheredTLS struct{ *libp2ptls.Transport }

func newTLS(id protocol.ID, key crypto.PrivKey, muxers []tptu.StreamMuxer) (*gatheredTLS, error) {
	t, err := libp2ptls.New(id, key, muxers)
	return &gatheredTLS{t}, err
}

func (t *gatheredTLS) SecureInbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	g := newGatherConn(c)
	return g.over(t.Transport.SecureInbound(ctx, g, p))
}

func (t *gatheredTLS) SecureOutbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	g := newGatherConn(c)
	return g.over(t.Transport.SecureOutbound(ctx, g, p))
}

// gatherConn is what TLS reads from and writes to.
type gatherConn struct {
	net.Conn

	mu   sync.Mutex
	left int        // bytes of the message that are to come in records
	out  *outBuffer // what is held back; nil for nothing

	ready *registry.ReadyReader // nil where the connection can't be read that way
	in    []byte                // read and not taken yet, part of ahead
	ahead *[aheadSize]byte      // nil while nothing is in it
}

type outBuffer struct {
	n int
	b [gathered]byte
}

var (
	outBuffers   = sync.Pool{New: func() any { return new(outBuffer) }}
	aheadBuffers = sync.Pool{New: func() any { return new([aheadSize]byte) }}
)

func newGatherConn(c net.Conn) *gatherConn { return &gatherConn{Conn: c} }

// readAhead has reads take more than they are asked for, where they can. A
// handshake, which anybody may begin, is to hold little.
func (g *gatherConn) readAhead() {
	sys, ok := g.Conn.(syscall.Conn)
	if !ok {
		return
	}
	if r, err := registry.NewReadyReader(sys); err == nil {
		g.ready = r
	}
}

// over is the connection that TLS made over this one.
func (g *gatherConn) over(c sec.SecureConn, err error) (sec.SecureConn, error) {
	if err != nil {
		return c, err
	}
	g.readAhead()
	return &gatheredConn{SecureConn: c, raw: g}, nil
}

// gatheredConn is the connection as its user sees it.
type gatheredConn struct {
	sec.SecureConn
	raw *gatherConn
}

// Write has the records of b go out together.
func (c *gatheredConn) Write(b []byte) (n int, err error) {
	if len(b) <= recordSize {
		return c.SecureConn.Write(b)
	}
	c.raw.expect(len(b))
	n, err = c.SecureConn.Write(b)
	if flushErr := c.raw.expect(0); err == nil && flushErr != nil {
		return 0, flushErr
	}
	return n, err
}

// WriteBoth has the records of both pieces go out together. Errors are those of
// Write.
func (c *gatheredConn) WriteBoth(head, body []byte) error {
	c.raw.expect(len(head) + len(body))
	_, err := c.SecureConn.Write(head)
	if err == nil {
		_, err = c.SecureConn.Write(body)
	}
	if flushErr := c.raw.expect(0); err == nil {
		err = flushErr
	}
	return err
}

// Ahead says that a whole record is there to be read. One goroutine may ask, and
// read.
func (c *gatheredConn) Ahead() bool { return len(c.raw.in) >= recordSize+recordExtra }

// expect says how many bytes are to come in records; what was held back of
// those before goes out.
func (g *gatherConn) expect(n int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = n
	return g.flush()
}

// Write holds a record back while others of its message are to come.
func (g *gatherConn) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left -= len(b) - recordExtra
	if g.left <= 0 && g.out == nil {
		return g.Conn.Write(b)
	}
	if err := g.hold(b); err != nil {
		return 0, err
	}
	if g.left > 0 {
		return len(b), nil
	}
	return len(b), g.flush()
}

// hold adds to what is held back. Call it with mu held.
func (g *gatherConn) hold(b []byte) error {
	if g.out != nil && g.out.n+len(b) > gathered {
		if err := g.flush(); err != nil {
			return err
		}
	}
	if len(b) > gathered { // no record is
		_, err := g.Conn.Write(b)
		return err
	}
	if g.out == nil {
		g.out = outBuffers.Get().(*outBuffer)
	}
	g.out.n += copy(g.out.b[g.out.n:], b)
	return nil
}

// flush writes what is held back. Call it with mu held.
func (g *gatherConn) flush() error {
	if g.out == nil {
		return nil
	}
	_, err := g.Conn.Write(g.out.b[:g.out.n])
	g.out.n = 0
	outBuffers.Put(g.out)
	g.out = nil
	return err
}

// Read takes more than it is asked for where more is there.
func (g *gatherConn) Read(b []byte) (n int, err error) {
	if g.ready == nil {
		return g.Conn.Read(b)
	}
	if len(g.in) == 0 {
		if n, err = g.ready.Read(g, aheadSize); err != nil {
			return 0, err
		}
		g.in = g.ahead[:n]
	}
	n = copy(b, g.in)
	if g.in = g.in[n:]; len(g.in) == 0 {
		g.Release()
	}
	return n, nil
}

// Take and Release make the connection the room for what it reads.
func (g *gatherConn) Take() []byte {
	g.ahead = aheadBuffers.Get().(*[aheadSize]byte)
	return g.ahead[:]
}

func (g *gatherConn) Release() {
	aheadBuffers.Put(g.ahead)
	g.ahead = nil
}
