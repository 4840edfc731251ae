//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The benchmarks of two nodes: two real processes on loopback, one listening,
// one forwarding; client and server are this process. CPU-seconds and memory
// are those of the two nodes alone. docs/benchmarks.md has the figures.

const (
	benchTCP  = "/ip4/127.0.0.1/tcp/0"
	benchQUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
)

// benchTunnel is a running tunnel to a server of this process.
type benchTunnel struct {
	addr  string // where the forward is bound
	homes []string
	nodes []*exec.Cmd
}

func startBenchTunnel(b *testing.B, listenAddr string, serve func(net.Conn), forwardFlags ...string) *benchTunnel {
	b.Helper()
	service := serveHere(b, serve)
	homes := []string{b.TempDir(), b.TempDir()}
	t := &benchTunnel{homes: homes}
	id, err := exec.Command("p2ptun", "--home", homes[1], "id").Output()
	if err != nil {
		b.Fatal(err)
	}
	node := []string{"-q", "--network", "none", "--drain", "0s", "--listen-addr", listenAddr}
	peer := t.start(b, "address", append([]string{
		"--home", homes[0], "listen", "bench", service, "--allow", strings.TrimSpace(string(id)),
	}, node...))
	bound := t.start(b, "forwarding", append(append([]string{"--home", homes[1], "forward", "bench", peer}, forwardFlags...), node...))
	t.addr = "127.0.0.1:" + bound[strings.LastIndexByte(bound, '/')+1:]
	return t
}

// serveHere serves in this process, and gives the address.
func serveHere(b *testing.B, serve func(net.Conn)) string {
	b.Helper()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Close() })
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return server.Addr().String()
}

// start starts a node and gives the second word of the line that begins with
// word.
func (t *benchTunnel) start(b *testing.B, word string, args []string) string {
	b.Helper()
	return t.startCommand(b, word, exec.Command("p2ptun", args...))
}

// startCommand is start for any program.
func (t *benchTunnel) startCommand(b *testing.B, word string, cmd *exec.Cmd) string {
	b.Helper()
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
	})
	t.nodes = append(t.nodes, cmd)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if words := strings.Fields(lines.Text()); len(words) > 1 && words[0] == word {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return words[1]
		}
	}
	b.Fatalf("%s: no line that begins with %s", strings.Join(cmd.Args, " "), word)
	return ""
}

// cpu is the CPU time that both nodes have used (proc(5), utime and stime in
// ticks of 10 ms).
func (t *benchTunnel) cpu(b *testing.B) time.Duration {
	b.Helper()
	const tick = 10 * time.Millisecond
	var sum time.Duration
	for _, n := range t.nodes {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		text := string(data)
		words := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		for _, w := range words[11:13] {
			n, err := strconv.ParseInt(w, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			sum += time.Duration(n) * tick
		}
	}
	return sum
}

// metric is a figure of both nodes' control sockets, added up.
func (t *benchTunnel) metric(b *testing.B, name string) (sum float64) {
	b.Helper()
	for _, dir := range t.homes {
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "control.sock"))
		}}}
		resp, err := c.Get("http://p2ptun/metrics")
		if err != nil {
			b.Fatal(err)
		}
		found := false
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if words := strings.Fields(lines.Text()); len(words) == 2 && words[0] == name {
				v, err := strconv.ParseFloat(words[1], 64)
				if err != nil {
					b.Fatal(err)
				}
				sum, found = sum+v, true
			}
		}
		resp.Body.Close()
		if !found {
			b.Fatalf("no metric %s", name)
		}
	}
	return sum
}

// allocs counts the allocations of both nodes since their start.
func (t *benchTunnel) allocs(b *testing.B) float64 {
	return t.metric(b, "go_memstats_mallocs_total")
}

// rss is the resident memory of both nodes, in bytes.
func (t *benchTunnel) rss(b *testing.B) int64 {
	b.Helper()
	var sum int64
	for _, n := range t.nodes {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", n.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		pages, err := strconv.ParseInt(strings.Fields(string(data))[1], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += pages * int64(os.Getpagesize())
	}
	return sum
}

func (t *benchTunnel) dial(b *testing.B) *net.TCPConn {
	b.Helper()
	c, err := net.Dial("tcp", t.addr)
	if err != nil {
		b.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// discardAndCount takes bytes to the end and answers with one.
func discardAndCount(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(io.Discard, c)
	_, _ = c.Write([]byte{1})
}

// BenchmarkBulkUp sends b.N MiB over one connection, up to the server's word
// that all is there.
func BenchmarkBulkUp(b *testing.B) {
	for name, addr := range map[string]string{"tcp": benchTCP, "quic": benchQUIC} {
		b.Run(name, func(b *testing.B) {
			t := startBenchTunnel(b, addr, discardAndCount)
			block := make([]byte, 1<<20)
			b.SetBytes(1 << 20)
			c := t.dial(b)
			defer c.Close()
			before, allocs := t.cpu(b), t.allocs(b)
			b.ResetTimer()
			for range b.N {
				if _, err := c.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			_ = c.CloseWrite()
			if _, err := io.ReadFull(c, block[:1]); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric((t.cpu(b)-before).Seconds()*1024/float64(b.N), "cpu-s/GiB")
			b.ReportMetric((t.allocs(b)-allocs)/float64(b.N), "allocs/MiB")
		})
	}
}

func echo(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(c, c)
}

// BenchmarkConnections opens a connection, sends a byte, gets it back, closes;
// eight at a time.
func BenchmarkConnections(b *testing.B) {
	t := startBenchTunnel(b, benchTCP, echo)
	if err := ping(t.addr); err != nil {
		b.Fatal(err)
	}
	allocs := t.allocs(b)
	b.ResetTimer()
	t.pings(b, b.N)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
	b.ReportMetric((t.allocs(b)-allocs)/float64(b.N), "allocs/conn")
}

// pings opens so many connections, eight at a time, each with a byte there and back.
func (t *benchTunnel) pings(b *testing.B, count int) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(count))
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for left.Add(-1) >= 0 {
				if err := ping(t.addr); err != nil {
					b.Error(err)
				}
			}
		})
	}
	workers.Wait()
}

func ping(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	one := []byte{1}
	if _, err := c.Write(one); err != nil {
		return err
	}
	_, err = io.ReadFull(c, one)
	return err
}

// BenchmarkRoundTrip bounces 64 bytes on an open connection.
func BenchmarkRoundTrip(b *testing.B) {
	t := startBenchTunnel(b, benchTCP, echo)
	c := t.dial(b)
	defer c.Close()
	block := make([]byte, 64)
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(block); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, block); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdleConnections opens b.N connections, bounces a byte on each and
// leaves them open: the memory that both nodes hold for one. Run it with a
// count of its own: -benchtime 4000x.
func BenchmarkIdleConnections(b *testing.B) {
	t := startBenchTunnel(b, benchTCP, echo)
	if err := ping(t.addr); err != nil {
		b.Fatal(err)
	}
	before, heap := t.rss(b), t.metric(b, heapInUse)
	conns := make([]net.Conn, 0, b.N)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	one := []byte{1}
	for range b.N {
		c := t.dial(b)
		conns = append(conns, c)
		if _, err := c.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(t.rss(b)-before)/float64(b.N)/1024, "RSS-KiB/conn")
	b.ReportMetric((t.metric(b, heapInUse)-heap)/float64(b.N)/1024, "heap-KiB/conn")
}

const heapInUse = "go_memstats_heap_inuse_bytes"
