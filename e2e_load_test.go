//go:build unix

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// dialsAtOnce is how many of many connections are opened at once: what waits
// to be accepted is bounded by the system.
const dialsAtOnce = 64

// dialMany opens n connections, proves each by a round trip, and gives them
// all open.
func dialMany(addr string, n int) ([]net.Conn, error) {
	conns := make([]net.Conn, n)
	errs := make([]error, n)
	forMany(n, func(i int) { conns[i], errs[i] = dialProved(addr) })
	return conns, errors.Join(errs...)
}

// forMany calls f with 0 to n-1, dialsAtOnce at once.
func forMany(n int, f func(i int)) {
	var workers sync.WaitGroup
	next := make(chan int)
	for range dialsAtOnce {
		workers.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	workers.Wait()
}

func dialProved(addr string) (net.Conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(3 * patience))
	return c, exchange(c, []byte("open?"))
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
}

func TestThousandConnectionsAtOnceAreExact(t *testing.T) {
	const many = 1000
	s := serve(t, echoBack)
	tun := startTunnel(t, overTCP, s.addr())
	conns, err := dialMany(tun.forward.hostPort(), many)
	defer closeAll(conns)
	if err != nil {
		t.Fatal(err)
	}
	errs := make([]error, many)
	var all sync.WaitGroup
	for i, c := range conns {
		all.Go(func() { errs[i] = exchange(c, randomBytes(uint64(i), 50_000+i)) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	wantStreams(t, tun.client, many)
	wantStreams(t, tun.service, many)
}

// wantStreams counts the live streams of a node.
func wantStreams(t testing.TB, n *node, want int) {
	t.Helper()
	if got := strings.Count(n.run("stream", "ls"), "\n"); got != want {
		t.Fatalf("%d live streams, want %d", got, want)
	}
}

func TestStreamsAreGoneWhenTheirConnectionsAre(t *testing.T) {
	s := serve(t, echoBack)
	tun := startTunnel(t, overTCP, s.addr())
	conns, err := dialMany(tun.forward.hostPort(), 20)
	closeAll(conns)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{tun.client, tun.service} {
		await(t, "no stream is left", func() bool { return n.run("stream", "ls") == "" })
	}
}

// The largest number of connections that is tested; fewer, but not fewer than
// leastLargest, where the system allows this user no more files.
const (
	largest      = 20_000
	leastLargest = 15_000
	filesBeside  = 1000
)

// The programs on both sides of the largest test: one process may not have
// the files of both.
func init() {
	programs["e2e-echo"] = echoMain
	programs["e2e-many"] = manyMain
}

// echoMain serves echoes and prints its address.
func echoMain() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("echo", l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			defer c.Close()
			_, _ = io.CopyBuffer(onlyWriter{c}, onlyReader{c}, make([]byte, 4096))
		}()
	}
}

// manyMain, called with an address and a number, opens that many connections,
// says so, waits for a line, exchanges bytes on all of them while all are open,
// and says so.
func manyMain() {
	n, _ := strconv.Atoi(os.Args[2])
	conns, err := dialMany(os.Args[1], n)
	if err == nil {
		fmt.Println("open", len(conns))
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		err = exchangeAll(conns)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("exact", len(conns))
}

func exchangeAll(conns []net.Conn) error {
	errs := make([]error, len(conns))
	forMany(len(conns), func(i int) { errs[i] = exchange(conns[i], randomBytes(uint64(i), 4000+i%1000)) })
	return errors.Join(errs...)
}

func TestOnePeerHolds20000ConnectionsAtOnce(t *testing.T) {
	limit := raiseFileLimit(t, largest+filesBeside)
	many := min(largest, int(limit)-filesBeside)
	if many < leastLargest {
		t.Skipf("the hard limit of open files is %d, %d are needed: ulimit -Hn", limit, leastLargest+filesBeside)
	}
	if many < largest {
		t.Logf("the hard limit of open files is %d: %d connections", limit, many)
	}
	binary := plainBinary(t)
	server := startFrom(t, binary, "e2e-echo")
	target := server.waitFor(t, &server.out, `echo (\S+)`)[1]
	tun := startTunnelOf(newNodeOf(t, binary), newNodeOf(t, binary), overTCP, target)
	clients := startFrom(t, binary, "e2e-many", tun.forward.hostPort(), fmt.Sprint(many))
	clients.waitFor(t, &clients.out, fmt.Sprint("open ", many))
	wantStreams(t, tun.client, many)
	wantStreams(t, tun.service, many)
	fmt.Fprintln(clients.in)
	clients.waitFor(t, &clients.out, fmt.Sprint("exact ", many))
}

// plainBinary is this test binary without the race detector, which carries no
// more than 8,128 goroutines in one process.
func plainBinary(t testing.TB) string {
	t.Helper()
	if !raceDetector() {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		return self
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the race detector carries no 20,000 connections, and there is no go command here to build without it")
	}
	binary := filepath.Join(t.TempDir(), "plain.test")
	mustRun(t, "go", "test", "-c", "-race=false", "-o", binary, ".")
	return binary
}

// raceDetector says whether this binary was built with it.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}
