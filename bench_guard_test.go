//go:build linux

package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"testing"
	"time"
)

// Guards: benchmarks that fail. Each compares what was measured in turns in one
// run, never with a figure of another machine, and its bound is far enough from
// what is usual (docs/benchmarks.md) for a busy machine.

const (
	// guardTLS is how much more CPU time a tunnel may take than one TLS connection
	// each between two programs that do nothing else.
	guardTLS = 2.2
	// guardSurvive is how much more it may take that connections survive.
	guardSurvive = 1.5
	// guardConnections is the least part of the connections a second that plain
	// streams open.
	guardConnections = 0.6
	// guardRounds are measured at least, and the medians compared.
	guardRounds = 7
	// guardIdle is how many KiB an idle connection may take, in both nodes.
	guardIdle = 24
)

func init() {
	programs["bench-tls-listen"] = tlsListenMain
	programs["bench-tls-forward"] = tlsForwardMain
}

// gathering has the records of one Write of TLS go out in one system call, once
// the handshake is over.
type gathering struct {
	*net.TCPConn
	begun bool
	held  []byte
}

func (g *gathering) Write(b []byte) (int, error) {
	if !g.begun {
		return g.TCPConn.Write(b)
	}
	g.held = append(g.held, b...)
	return len(b), nil
}

func (g *gathering) flush() error {
	_, err := g.TCPConn.Write(g.held)
	g.held = g.held[:0]
	return err
}

const tlsBlock = 128 << 10

// joinTLS carries bytes between a connection and TLS over another, both ways.
func joinTLS(plain, raw *net.TCPConn, over func(net.Conn) *tls.Conn) {
	g := &gathering{TCPConn: raw}
	secure := over(g)
	orExit(secure.Handshake())
	g.begun = true
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.CopyBuffer(onlyWriter{plain}, onlyReader{secure}, make([]byte, tlsBlock))
		_ = plain.CloseWrite()
	}()
	for b := make([]byte, tlsBlock); ; {
		n, err := plain.Read(b)
		if n > 0 {
			_, _ = secure.Write(b[:n])
			_ = g.flush()
		}
		if err != nil {
			break
		}
	}
	g.begun = false // CloseWrite lets nothing be written after it
	_ = secure.CloseWrite()
	<-done
	_, _ = plain.Close(), raw.Close()
}

// serveTLS joins each connection to one that it dials, and prints where.
func serveTLS(word string, target string, join func(accepted, dialled *net.TCPConn)) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	orExit(err)
	fmt.Println(word, l.Addr())
	for {
		c, err := l.Accept()
		orExit(err)
		go func() {
			to, err := net.Dial("tcp", target)
			orExit(err)
			join(c.(*net.TCPConn), to.(*net.TCPConn))
		}()
	}
}

// tlsListenMain is the side of a pair that has the service.
func tlsListenMain() {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	orExit(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	orExit(err)
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}
	serveTLS("address", os.Args[1], func(accepted, dialled *net.TCPConn) {
		joinTLS(dialled, accepted, func(c net.Conn) *tls.Conn { return tls.Server(c, config) })
	})
}

// tlsForwardMain is the other.
func tlsForwardMain() {
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // only as fast as the other, not as safe
	serveTLS("forwarding", os.Args[1], func(accepted, dialled *net.TCPConn) {
		joinTLS(accepted, dialled, func(c net.Conn) *tls.Conn { return tls.Client(c, config) })
	})
}

// startTLSPair starts a pair in front of a server of this process.
func startTLSPair(b *testing.B, serve func(net.Conn)) *benchTunnel {
	b.Helper()
	t := &benchTunnel{}
	address := t.startProgram(b, "address", "bench-tls-listen", serveHere(b, serve))
	t.addr = t.startProgram(b, "forwarding", "bench-tls-forward", address)
	return t
}

// atMost fails where what was measured is not at most that.
func atMost(b *testing.B, what string, ratio, most float64) {
	b.Helper()
	b.ReportMetric(ratio, what)
	if ratio > most {
		b.Errorf("%s: %.2f, more than %.2f", what, ratio, most)
	}
}

func BenchmarkGuardBulk(b *testing.B) {
	for name, work := range map[string]func(b *testing.B, t *benchTunnel, size int){"up": pourUp, "down": pourDown} {
		b.Run(name, func(b *testing.B) {
			w := startBothWays(b, giveOrTake)
			pair := startTLSPair(b, giveOrTake)
			var trunk, plain, reference []float64
			for range max(b.N, guardRounds) {
				for _, one := range []struct {
					of *benchTunnel
					to *[]float64
				}{{w.trunk, &trunk}, {pair, &reference}, {w.plain, &plain}} {
					*one.to = append(*one.to, cpuOfPour(b, one.of, work))
				}
			}
			b.ReportMetric(0, "ns/op")
			atMost(b, "cpu/tls-pair", median(trunk)/median(reference), guardTLS)
			atMost(b, "cpu/plain", median(trunk)/median(plain), guardSurvive)
		})
	}
}

// cpuOfPour is how many CPU-seconds a GiB takes.
func cpuOfPour(b *testing.B, t *benchTunnel, work func(b *testing.B, t *benchTunnel, size int)) float64 {
	b.Helper()
	const size = 128 << 20
	before := t.cpu(b)
	work(b, t, size)
	return (t.cpu(b) - before).Seconds() * (1 << 30) / size
}

func BenchmarkGuardConnections(b *testing.B) {
	w := startBothWays(b, echo)
	trunk, plain := w.turns(b, max(b.N, guardRounds), func(t *benchTunnel) float64 { return connectionsASecond(b, t) })
	b.ReportMetric(0, "ns/op")
	atMost(b, "plain/conns", median(plain)/median(trunk), 1/guardConnections)
}

func BenchmarkGuardIdle(b *testing.B) {
	t := startBenchTunnel(b, benchTCP, echo)
	held := idleMemory(b, t)
	b.ReportMetric(0, "ns/op")
	atMost(b, "KiB/idle-conn", held, guardIdle)
}
