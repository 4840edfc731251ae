//go:build unix

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReportPeerIDSendsTheIDBeforeAnyByteOfThePeers(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, func(c net.Conn) {
			in := bufio.NewReader(c)
			id, err := in.ReadString('\n')
			if err != nil {
				return
			}
			said, _ := io.ReadAll(in)
			fmt.Fprintf(c, "%s said %s", strings.TrimSuffix(id, "\n"), said)
		})
		tun := startTunnel(t, transport, s.addr(), "--report-peer-id")
		c := tun.forward.dial(t)
		fmt.Fprint(c, "my own words")
		_ = c.CloseWrite()
		want := tun.client.id + " said my own words"
		if got, err := io.ReadAll(c); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	})
}

// shortDir is a directory whose path is short enough for a unix socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startForwardOn is startForward on a bind address that is no port.
func startForwardOn(n *node, bind string, l *listening) *forwarding {
	n.t.Helper()
	return startForward(n, testProtocol, bind, l.addr)
}

func TestUnixSocketsServeAsTargetAndAsBind(t *testing.T) {
	dir := shortDir(t)
	target, bind := filepath.Join(dir, "target.sock"), filepath.Join(dir, "bind.sock")
	l, err := net.Listen("unix", target)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, echoBack)
	service, client := newNode(t), newNode(t)
	li := startListen(service, overTCP, testProtocol, "unix:"+target, "--allow", client.id)
	startForwardOn(client, "unix:"+bind, li)
	info, err := os.Stat(bind)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("the bound socket: %v, %v; want mode 0600", info.Mode(), err)
	}
	c, err := net.Dial("unix", bind)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	wantEcho(t, c, "over two unix sockets")
	wantHalfClose(t, c.(*net.UnixConn))
}

// wantHalfClose ends the way out and wants the echo to end cleanly.
func wantHalfClose(t testing.TB, c *net.UnixConn) {
	t.Helper()
	_, _ = c.Write([]byte("last words"))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "last words" {
		t.Fatalf("after the half-close: %q, %v", got, err)
	}
}

func TestBoundUnixSocketGoesWithItsForwardAndAStaleOneIsReplaced(t *testing.T) {
	bind := filepath.Join(shortDir(t), "bind.sock")
	s := serve(t, echoBack)
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, s.addr(), "--allow", client.id)
	startForwardOn(client, "unix:"+bind, l).kill()
	if _, err := os.Lstat(bind); err != nil {
		t.Fatalf("kill -9 leaves the socket behind: %v", err)
	}
	f := startForwardOn(client, "unix:"+bind, l)
	interrupt(t, f.process)
	if code := f.exit(t); code != 0 {
		t.Fatalf("exit code %d, want 0", code)
	}
	if _, err := os.Lstat(bind); !os.IsNotExist(err) {
		t.Fatalf("the socket is still there: %v", err)
	}
}

func TestTargetGivenByNameIsResolved(t *testing.T) {
	s := serve(t, echoBack)
	_, port, _ := net.SplitHostPort(s.addr())
	for _, target := range []string{"localhost:" + port, "/dns4/localhost/tcp/" + port, port, ":" + port} {
		tun := startTunnel(t, overTCP, target)
		wantEcho(t, tun.forward.dial(t), "hello "+target)
	}
}

func TestPortZeroPrintsTheRealPort(t *testing.T) {
	s := serve(t, echoBack)
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, s.addr(), "--allow", client.id)
	for _, bind := range []string{"0", "127.0.0.1:0", "/ip4/127.0.0.1/tcp/0"} {
		f := startForward(client, testProtocol, bind, l.addr)
		if f.port() == "0" {
			t.Fatalf("forward %s printed %q", bind, f.bind)
		}
		wantEcho(t, f.dial(t), "hello "+f.port())
	}
}

func TestIPv6LoopbackIsBoundAndPrinted(t *testing.T) {
	probe, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 loopback on this machine: %v", err)
	}
	probe.Close()
	s := serve(t, echoBack)
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, s.addr(), "--allow", client.id)
	f := startForward(client, testProtocol, "[::1]:0", l.addr)
	wantEcho(t, f.dial(t), "over IPv6")
}

func TestSilenceEndsAQuietConnectionAndNoOther(t *testing.T) {
	s := serve(t, echoBack)
	tun := startTunnel(t, overTCP, s.addr(), "--silence", "1s")
	quiet, busy := tun.forward.dial(t), tun.forward.dial(t)
	wantEcho(t, quiet, "my last word")
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, quiet)
		ended <- err
	}()
	words := 0
	await(t, "the quiet connection ends", func() bool {
		wantEcho(t, busy, "still talking")
		words++
		return len(ended) == 1
	})
	if err := <-ended; !isReset(err) || words < 2 {
		t.Fatalf("the quiet connection ended with %v after %d words on the other, want a reset", err, words)
	}
	wantEcho(t, busy, "and still")
}

func TestPeersAreUsedInOrderOfPreferenceWithFailOver(t *testing.T) {
	client := newNode(t)
	first, firstNode := startNamed(t, "first", client)
	second, _ := startNamed(t, "second", client)
	f := startForward(client, testProtocol, first.addr, second.addr)
	for range 5 {
		if got := nameOf(f); got != "first" {
			t.Fatalf("%q answers, want the first", got)
		}
	}
	first.kill()
	await(t, "the second answers", func() bool { return nameOf(f) == "second" })
	s := named(t, "first")
	startListen(firstNode, first.where(), testProtocol, s.addr(), "--allow", client.id)
	await(t, "the first answers again", func() bool { return nameOf(f) == "first" })
}

func TestForwardStartsWithTheSecondPeerWhileTheFirstIsAway(t *testing.T) {
	client := newNode(t)
	first, _ := startNamed(t, "first", client)
	second, _ := startNamed(t, "second", client)
	first.kill()
	f := startForward(client, testProtocol, first.addr, second.addr)
	if got := nameOf(f); got != "second" {
		t.Fatalf("%q answers, want the second", got)
	}
}

// startNamed offers a service that says a name.
func startNamed(t testing.TB, name string, client *node) (*listening, *node) {
	t.Helper()
	n := newNode(t)
	return startListen(n, overTCP, testProtocol, named(t, name).addr(), "--allow", client.id), n
}

func named(t testing.TB, name string) *service {
	t.Helper()
	return serve(t, func(c net.Conn) { fmt.Fprint(c, name) })
}

// nameOf is what a new connection says, or "" where it is reset.
func nameOf(f *forwarding) string {
	c, err := net.Dial("tcp", f.hostPort())
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	name, err := io.ReadAll(c)
	if err != nil {
		return ""
	}
	return string(name)
}
