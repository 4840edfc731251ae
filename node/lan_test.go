package node

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Two machines in one LAN find each other by bare peer ID, with no
// configuration: two network namespaces stand for them.
func TestTwoMachinesOfALANFindEachOther(t *testing.T) {
	here, there := newLAN2(t)
	for _, dir := range [][2]string{{here, there}, {there, here}} {
		listener, dialler := startOnLAN(t, dir[0]), startOnLAN(t, dir[1])
		if _, err := fmt.Fprintln(dialler.in, listener.id); err != nil {
			t.Fatal(err)
		}
		if line := dialler.line(t); !strings.HasPrefix(line, "reached true tcp /ip4/10.77.") {
			t.Errorf("from %s: %s", dir[1], line)
		}
		listener.stop(t)
		dialler.stop(t)
	}
}

// newLAN2 makes two network namespaces joined by one cable.
func newLAN2(t *testing.T) (a, b string) {
	if _, err := exec.LookPath("ip"); err != nil || os.Getuid() != 0 {
		t.Skip("network namespaces need root and iproute2: LAN discovery is not tested here")
	}
	a, b = fmt.Sprintf("p2ptun-%d-a", os.Getpid()), fmt.Sprintf("p2ptun-%d-b", os.Getpid())
	net := fmt.Sprintf("10.77.%d.", os.Getpid()%256)
	for _, ns := range []string{a, b} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces here: LAN discovery is not tested: %s", out)
		}
		t.Cleanup(func() { ip(t, "netns del "+ns) })
	}
	ip(t, fmt.Sprintf("-n %s link add eth0 type veth peer name eth0 netns %s", a, b))
	for i, ns := range []string{a, b} {
		ip(t, fmt.Sprintf("-n %s addr add %s%d/24 dev eth0", ns, net, i+1))
		ip(t, fmt.Sprintf("-n %s link set lo up", ns))
		ip(t, fmt.Sprintf("-n %s link set eth0 up", ns))
	}
	return a, b
}

func ip(t testing.TB, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Errorf("ip %s: %v\n%s", args, err, out)
	}
}

// lanChild is a node in a namespace.
type lanChild struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	id    string
}

func startOnLAN(t testing.TB, ns string) *lanChild {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	c := &lanChild{cmd: exec.Command("ip", "netns", "exec", ns, exe), lines: make(chan string, 16)}
	c.cmd.Env = append(os.Environ(), childVar+"=lan "+t.TempDir())
	c.in, err = c.cmd.StdinPipe()
	must(t, err)
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	must(t, c.cmd.Start())
	t.Cleanup(func() { _ = c.cmd.Process.Kill() })
	go func() {
		defer close(c.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- s.Text()
		}
	}()
	c.id = c.line(t)
	return c
}

func (c *lanChild) line(t testing.TB) string {
	t.Helper()
	select {
	case line := <-c.lines:
		return line
	case <-time.After(patience):
		t.Fatal("a node says nothing")
		panic("not reached")
	}
}

// stop ends the node by the end of its stdin, and shows that it ends cleanly.
func (c *lanChild) stop(t testing.TB) {
	t.Helper()
	_ = c.in.Close()
	for range c.lines {
	}
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("a node ended with %v", err)
	}
}

// Anybody on a LAN can announce any number of peers.
func TestThePeersOfALANAreBounded(t *testing.T) {
	l := newLAN(nil, nil, func(peer.ID) {})
	for i := range 3 * maxFound {
		l.HandlePeerFound(peer.AddrInfo{ID: peer.ID(fmt.Sprint(i))})
		l.HandlePeerFound(peer.AddrInfo{ID: peer.ID(fmt.Sprint(i))}) // again
	}
	if len(l.addrs) != maxFound || len(l.order) != maxFound {
		t.Errorf("%d peers in a list of %d", len(l.addrs), len(l.order))
	}
	if _, ok := l.lookup(peer.ID(fmt.Sprint(3*maxFound - 1))); !ok {
		t.Error("the newest is not there")
	}
}
