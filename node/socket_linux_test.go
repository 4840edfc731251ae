package node

import (
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sys/unix"
)

// dialHere is a connection that nobody accepts, as libp2p has it and its socket.
func dialHere(t *testing.T) (manet.Conn, syscall.RawConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	wrapped, err := manet.WrapNetConn(c)
	must(t, err)
	raw, err := c.(*net.TCPConn).SyscallConn()
	must(t, err)
	return wrapped, raw
}

// congestionOf is the algorithm of a socket, after setOptions with that name.
func congestionOf(t *testing.T, name string) string {
	t.Helper()
	wrapped, raw := dialHere(t)
	ask := func() (name string) {
		var err error
		must(t, raw.Control(func(fd uintptr) { name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) }))
		must(t, err)
		return strings.TrimRight(name, "\x00")
	}
	must(t, raw.Control(func(fd uintptr) { setCongestionControl(fd, "reno") })) // so that there is something to change
	if name == congestionControl {
		setOptions(wrapped)
	} else {
		must(t, raw.Control(func(fd uintptr) { setCongestionControl(fd, name) }))
	}
	return ask()
}

func TestSocketsUseBBRWhereTheKernelOffersIt(t *testing.T) {
	offered, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	must(t, err)
	if !slices.Contains(strings.Fields(string(offered)), congestionControl) {
		t.Skipf("this kernel offers %s", offered)
	}
	if used := congestionOf(t, congestionControl); used != congestionControl {
		t.Errorf("a socket uses %s", used)
	}
}

func TestASocketWithoutBBRStaysAsItWas(t *testing.T) {
	if used := congestionOf(t, "unheard-of"); used != "reno" {
		t.Errorf("a socket uses %s", used)
	}
}

// unsent is how many bytes of a connection that nobody reads wait in its socket
// without being under way, when that takes no more.
func unsent(t *testing.T, wrap func(manet.Conn) manet.Conn) int {
	t.Helper()
	plain, raw := dialHere(t)
	c := wrap(plain)
	var err error
	block := make([]byte, 64<<10)
	for err == nil {
		must(t, c.SetWriteDeadline(time.Now().Add(100*time.Millisecond))) // the kernel has no room, or it has
		_, err = c.Write(block)
	}
	var n int
	must(t, raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), siocOutQNSD) }))
	must(t, err)
	return n
}

const siocOutQNSD = 0x894b // linux/sockios.h: SIOCOUTQNSD

func TestASocketTakesNoMoreThanThePathsPaceSays(t *testing.T) {
	if n := unsent(t, func(c manet.Conn) manet.Conn { return c }); n <= 2*unsentMax {
		t.Skipf("this kernel has room for %d bytes anyway", n)
	}
	if n := unsent(t, newPaced); n > unsentMax+128<<10 {
		t.Errorf("%d bytes wait", n)
	}
}

func TestAPacedConnectionIsStillASocket(t *testing.T) {
	plain, _ := dialHere(t)
	c := newPaced(plain)
	if _, ok := c.(*pacedConn); !ok {
		t.Fatalf("a %T", c)
	}
	if readReady(c) == nil {
		t.Error("nobody can wait for its bytes")
	}
	if c := newPaced(struct{ manet.Conn }{}); c == nil {
		t.Error("what is no socket is lost")
	} else if _, paced := c.(*pacedConn); paced {
		t.Error("what is no socket is paced")
	}
}
