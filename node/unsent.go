package node

import (
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"p2ptun/registry"

	manet "github.com/multiformats/go-multiaddr/net"
)

// What waits in a socket to be sent keeps all that comes after it waiting, whatever
// stream it is of, and a slow link has megabytes of room for it. It is bounded by
// what goes out in unsentTime at the pace that the kernel has found for the path,
// looked at every unsentLook while bytes are written: on a quick one that is no
// bound.
const (
	unsentTime = 10 * time.Millisecond
	unsentLook = 50 * time.Millisecond
	unsentMin  = 16 << 10 // bytes: a record of TLS
	unsentMax  = 512 << 10
)

// pacedConn is a TCP connection whose unsent bytes are bounded.
type pacedConn struct {
	manet.Conn
	raw   syscall.RawConn
	turn  sync.Mutex // held by Write
	out   *registry.ReadyWriter
	next  atomic.Int64 // when to look, in ns of the process's time
	limit atomic.Int64 // that is set
}

// newPaced gives a connection back as it is where the system does not know how.
func newPaced(c manet.Conn) manet.Conn {
	sys, ok := c.(syscall.Conn)
	if !ok || !canPace {
		return c
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return c
	}
	out, err := registry.NewReadyWriter(raw)
	if err != nil {
		return c
	}
	return &pacedConn{Conn: c, raw: raw, out: out}
}

// SyscallConn is for who waits for bytes.
func (c *pacedConn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

func (c *pacedConn) Write(b []byte) (int, error) {
	now, next := int64(time.Since(processStart)), c.next.Load()
	if now >= next && c.next.CompareAndSwap(next, now+int64(unsentLook)) {
		_ = c.raw.Control(c.follow)
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	return c.out.Write(b)
}

var processStart = time.Now()

// follow sets the limit anew where the pace has changed by more than a quarter.
func (c *pacedConn) follow(fd uintptr) {
	pace, ok := pacingRate(fd)
	if !ok {
		return
	}
	limit, was := unsentLimit(pace), int(c.limit.Load())
	if limit*4 < was*3 || limit*4 > was*5 {
		setUnsentLimit(fd, limit)
		c.limit.Store(int64(limit))
	}
}

// unsentLimit is what goes out in unsentTime at so many bytes a second.
func unsentLimit(pace uint64) int {
	perTime := pace / uint64(time.Second/unsentTime)
	return int(min(max(perTime, unsentMin), unsentMax))
}
