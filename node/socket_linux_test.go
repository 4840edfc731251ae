package node

import (
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sys/unix"
)

// congestionOf is the algorithm of a socket, after setOptions with that name.
func congestionOf(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	must(t, err)
	ask := func() (name string) {
		must(t, raw.Control(func(fd uintptr) { name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) }))
		must(t, err)
		return strings.TrimRight(name, "\x00")
	}
	must(t, raw.Control(func(fd uintptr) { setCongestionControl(fd, "reno") })) // so that there is something to change
	if name == congestionControl {
		wrapped, err := manet.WrapNetConn(c)
		must(t, err)
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
