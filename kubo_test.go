//go:build unix

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// These tests run an unmodified Kubo against p2ptun, each as both sides. What
// Kubo itself does wrong is not tested: it takes any end of a connection for
// the end of both ways.

// kuboBytes go each way in the tests of exactness.
const kuboBytes = 50 << 20

func TestForwardToKuboCarries50MBEachWayExactly(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		k := startKubo(t, transport)
		k.listen(testProtocol, serve(t, echoBack).addr())
		f := startForward(newNode(t), testProtocol, k.addr)
		if err := exchange(f.dial(t), randomBytes(1, kuboBytes)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestKuboForwardCarries50MBEachWayExactly(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		k, n := startKubo(t, overTCP), newNode(t)
		l := startListen(n, transport, testProtocol, serve(t, echoBack).addr(), "--allow", k.id)
		c := dialTCP(t, k.forward(testProtocol, l.addr))
		if err := exchange(c, randomBytes(2, kuboBytes)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestForwardToKuboSaysThatTheServiceIsNotVerifiable(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		k := startKubo(t, transport)
		f := startForward(newNode(t), testProtocol, k.addr)
		name := "tcp"
		if transport == overQUIC {
			name = "quic"
		}
		f.waitFor(t, &f.out, "forwarding /ip4/127.0.0.1/tcp/[1-9][0-9]* → "+testProtocol+" on "+k.id)
		f.waitFor(t, &f.out, "path       direct "+name+" 127.0.0.1:[0-9]+(, [0-9.]+ ms)?")
		f.waitFor(t, &f.err, "p2ptun: "+testProtocol+": service not verifiable before first use")
	})
}

func TestKuboPeerGetsNothingUntilItIsAllowed(t *testing.T) {
	k, n := startKubo(t, overTCP), newNode(t)
	var accepted atomic.Int64
	target := serve(t, func(c net.Conn) {
		accepted.Add(1)
		echoBack(c)
	})
	l := startListen(n, overTCP, testProtocol, target.addr())
	before := settled(t, "the listener's look at its target", 100*time.Millisecond, accepted.Load)
	bind := k.forward(testProtocol, l.addr)
	wantNothingAt(t, bind)
	l.saysOnStderr(t, "allow "+testProtocol+" "+k.id)
	if accepted.Load() != before {
		t.Error("the target was dialled for a peer that is not allowed")
	}
	n.run("allow", testProtocol, k.id)
	wantEcho(t, dialTCP(t, bind), "now allowed")
	n.run("deny", testProtocol, k.id)
	wantNothingAt(t, bind)
}

// wantNothing fails unless a connection ends without a byte. Kubo shows every
// failure as an end.
func wantNothing(t testing.TB, c net.Conn) {
	t.Helper()
	_, _ = io.WriteString(c, "anybody there?")
	n, err := io.Copy(io.Discard, c)
	if n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes, then %v, want no byte and an end", n, err)
	}
}

// wantNothingAt connects for that. The end may come before Dial returns.
func wantNothingAt(t testing.TB, hostPort string) {
	t.Helper()
	if c := dialHasty(t, hostPort); c != nil {
		wantNothing(t, c)
	}
}

// wantResetAt connects and wants a reset, which may come before Dial returns.
func wantResetAt(t testing.TB, hostPort string) {
	t.Helper()
	if c := dialHasty(t, hostPort); c != nil {
		wantReset(t, c)
	}
}

// soon is less than either program's limit for a dial: what takes longer hangs.
const soon = 20 * time.Second

// dialHasty connects where the other side resets at once; nil where it has
// done so already.
func dialHasty(t testing.TB, hostPort string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", hostPort, soon)
	if isReset(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(soon))
	return c
}

// readID serves connections by passing on the line that each begins with.
func readID(t testing.TB) (*service, <-chan string) {
	lines := make(chan string, 1)
	s := serve(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		line, err := r.ReadString('\n')
		if err != nil {
			return // the listener's look at its target
		}
		lines <- line
		_, _ = io.Copy(c, r)
	})
	return s, lines
}

func TestKuboReportsThePeerIDOfAForward(t *testing.T) {
	k, n := startKubo(t, overTCP), newNode(t)
	target, lines := readID(t)
	k.listen(testProtocol, target.addr(), "--report-peer-id")
	wantEcho(t, startForward(n, testProtocol, k.addr).dial(t), "payload")
	if got := <-lines; got != n.id+"\n" {
		t.Errorf("the service read %q, want %q", got, n.id+"\n")
	}
}

func TestListenReportsKubosPeerID(t *testing.T) {
	k, n := startKubo(t, overTCP), newNode(t)
	target, lines := readID(t)
	l := startListen(n, overTCP, testProtocol, target.addr(), "--allow", k.id, "--report-peer-id")
	wantEcho(t, dialTCP(t, k.forward(testProtocol, l.addr)), "payload")
	if got := <-lines; got != k.id+"\n" {
		t.Errorf("the service read %q, want %q", got, k.id+"\n")
	}
}

const (
	customProtocol = "/custom/1.0.0"
	customFlag     = "--allow-custom-protocol"
)

func TestForwardToKuboUsesACustomProtocol(t *testing.T) {
	k := startKubo(t, overTCP)
	k.listen(customProtocol, serve(t, echoBack).addr(), customFlag)
	f := startForward(newNode(t), customProtocol, k.addr, customFlag)
	wantEcho(t, f.dial(t), "custom")
}

func TestKuboForwardUsesACustomProtocol(t *testing.T) {
	k, n := startKubo(t, overTCP), newNode(t)
	l := startListen(n, overTCP, customProtocol, serve(t, echoBack).addr(), customFlag, "--allow", k.id)
	wantEcho(t, dialTCP(t, k.forward(customProtocol, l.addr, customFlag)), "custom")
}

func TestServiceThatKuboDoesNotHaveIsAResetWithItsReason(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		f := startForward(newNode(t), testProtocol, startKubo(t, transport).addr)
		for range 3 {
			wantResetAt(t, f.hostPort())
		}
		await(t, "a line for each of 3 connections", func() bool {
			return strings.Count(f.err.String(), ": no such service") == 3
		})
	})
}

func TestKuboForwardToNoServiceEndsAtOnce(t *testing.T) {
	for _, protocol := range []string{"/x/absent", customProtocol} {
		t.Run(protocol[1:], func(t *testing.T) {
			k, n := startKubo(t, overTCP), newNode(t)
			n.run("allow", customFlag, protocol, k.id)
			l := startListen(n, overTCP, testProtocol, serve(t, echoBack).addr())
			wantNothingAt(t, k.forward(protocol, l.addr, customFlag))
		})
	}
}

// downService is the address of a service that is not there.
func downService(t testing.TB) string {
	t.Helper()
	s := serve(t, echoBack)
	s.stop()
	return s.addr()
}

// bringUp serves the echo there.
func bringUp(t testing.TB, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, echoBack)
}

func TestServiceDownBehindKuboIsAResetUntilItIsUp(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		k, target := startKubo(t, transport), downService(t)
		k.listen(testProtocol, target)
		f := startForward(newNode(t), testProtocol, k.addr)
		for range 3 {
			wantResetAt(t, f.hostPort())
		}
		bringUp(t, target)
		wantEcho(t, f.dial(t), "up")
	})
}

func TestServiceDownBehindListenEndsKubosConnectionUntilItIsUp(t *testing.T) {
	k, n, target := startKubo(t, overTCP), newNode(t), downService(t)
	l := startListen(n, overTCP, testProtocol, target, "--allow", k.id)
	l.saysOnStderr(t, "warning: dial target")
	bind := k.forward(testProtocol, l.addr)
	for range 3 {
		wantNothingAt(t, bind)
	}
	bringUp(t, target)
	wantEcho(t, dialTCP(t, bind), "up")
}

func TestForwardOutlivesACrashOfKubo(t *testing.T) {
	k, target := startKubo(t, overTCP), serve(t, echoBack)
	k.listen(testProtocol, target.addr())
	f := startForward(newNode(t), testProtocol, k.addr)
	live := f.dial(t)
	wantEcho(t, live, "before")
	k.crash()
	wantReset(t, live)
	f.saysOnStderr(t, testProtocol+": waiting: peer away")
	wantResetAt(t, f.hostPort())
	f.saysOnStderr(t, "connection not carried to "+testProtocol+" on "+k.id)
	k.start()
	k.listen(testProtocol, target.addr())
	f.saysOnStderr(t, testProtocol+": ready: service not verifiable before first use")
	wantEcho(t, f.dial(t), "after")
}

func TestKuboForwardWorksAgainAfterARestartOfListen(t *testing.T) {
	k, n, target := startKubo(t, overTCP), newNode(t), serve(t, echoBack)
	l := startListen(n, overTCP, testProtocol, target.addr(), "--allow", k.id)
	bind := k.forward(testProtocol, l.addr)
	live := dialTCP(t, bind)
	wantEcho(t, live, "before")
	l.kill()
	wantNothing(t, live)
	again := startListen(n, l.where(), testProtocol, target.addr(), "--allow", k.id)
	k.run("swarm", "connect", again.addr)
	wantEcho(t, dialTCP(t, bind), "after")
}

func TestForwardNoticesThatKubosServiceGoesAndComesBack(t *testing.T) {
	for _, protocol := range []string{testProtocol, customProtocol} {
		t.Run(protocol[1:], func(t *testing.T) {
			k, target := startKubo(t, overTCP), serve(t, echoBack)
			k.listen(protocol, target.addr(), customFlag)
			f := startForward(newNode(t), protocol, k.addr, customFlag)
			wantEcho(t, f.dial(t), "libp2p knows the protocol from now on")
			k.run("p2p", "close", "-p", protocol)
			for range 3 {
				wantResetAt(t, f.hostPort())
			}
			f.saysOnStderr(t, "no such service")
			k.listen(protocol, target.addr(), customFlag)
			wantEcho(t, f.dial(t), "back")
		})
	}
}

func TestKuboForwardNoticesThatAServiceGoesAndComesBack(t *testing.T) {
	for _, protocol := range []string{testProtocol, customProtocol} {
		t.Run(protocol[1:], func(t *testing.T) {
			k, n, target := startKubo(t, overTCP), newNode(t), serve(t, echoBack)
			keeper := startListen(n, overTCP, "/x/keeper", target.addr())
			l := startListen(n, overTCP, protocol, target.addr(), customFlag, "--allow", k.id)
			bind := k.forward(protocol, keeper.addr, customFlag)
			wantEcho(t, dialTCP(t, bind), "libp2p knows the protocol from now on")
			l.kill()
			await(t, "the tunnel has gone", func() bool { return !strings.Contains(n.run("ls"), protocol) })
			wantNothingAt(t, bind)
			startListen(n, overTCP, protocol, target.addr(), customFlag, "--allow", k.id)
			wantEcho(t, dialTCP(t, bind), "back")
		})
	}
}

// kuboConns is more than libp2p's own limit lets one peer have at a time, and
// less than QUIC lets into one connection.
const kuboConns = 200

// exchangeAtOnce holds many connections open at a time, each with bytes of its
// own.
func exchangeAtOnce(t testing.TB, hostPort string) {
	t.Helper()
	var conns []net.Conn
	for i := range kuboConns {
		c := dialTCP(t, hostPort)
		wantEcho(t, c, fmt.Sprintf("connection %d", i))
		conns = append(conns, c)
	}
	done := make(chan error, kuboConns)
	for i, c := range conns {
		go func() { done <- exchange(c, randomBytes(uint64(i), 64<<10)) }()
	}
	for range conns {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestForwardToKuboCarriesManyConnectionsAtOnce(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		k := startKubo(t, transport)
		k.listen(testProtocol, serve(t, echoBack).addr())
		exchangeAtOnce(t, startForward(newNode(t), testProtocol, k.addr).hostPort())
	})
}

func TestKuboForwardCarriesManyConnectionsAtOnce(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		k, n := startKubo(t, overTCP), newNode(t)
		l := startListen(n, transport, testProtocol, serve(t, echoBack).addr(), "--allow", k.id)
		exchangeAtOnce(t, k.forward(testProtocol, l.addr))
	})
}

// kuboAtOnce is how often a side that closes as soon as it has sent 1 MiB is
// tried.
const kuboAtOnce = 20

func TestServerThatClosesAtOnceBehindKuboLosesNoByteOverTCP(t *testing.T) {
	k, sent := startKubo(t, overTCP), randomBytes(3, 1<<20)
	k.listen(testProtocol, serve(t, func(c net.Conn) { _, _ = c.Write(sent) }).addr())
	f := startForward(newNode(t), testProtocol, k.addr)
	for i := range kuboAtOnce {
		if sum, n, err := hashAll(f.dial(t)); sum != hashOf(sent) {
			t.Fatalf("connection %d: %d bytes, then %v", i, n, err)
		}
	}
}

// Over QUIC Kubo resets the stream right after it has closed it, and so loses
// what is not yet across.
func TestWhatKuboCutsShortOverQUICComesOutAsAReset(t *testing.T) {
	k, sent := startKubo(t, overQUIC), randomBytes(3, 1<<20)
	k.listen(testProtocol, serve(t, func(c net.Conn) { _, _ = c.Write(sent) }).addr())
	f := startForward(newNode(t), testProtocol, k.addr)
	for i := range kuboAtOnce {
		sum, n, err := hashAll(f.dial(t))
		if !wholeOrReset(sum == hashOf(sent), err) {
			t.Fatalf("connection %d: %d bytes, then %v", i, n, err)
		}
	}
}

func TestServerThatClosesAtOnceBehindListenLosesNoByteToKubo(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		k, n, sent := startKubo(t, overTCP), newNode(t), randomBytes(4, 1<<20)
		target := serve(t, func(c net.Conn) { _, _ = c.Write(sent) })
		l := startListen(n, transport, testProtocol, target.addr(), "--allow", k.id)
		bind := k.forward(testProtocol, l.addr)
		for i := range kuboAtOnce {
			if sum, n, err := hashAll(dialTCP(t, bind)); sum != hashOf(sent) {
				t.Fatalf("connection %d: %d bytes, then %v", i, n, err)
			}
		}
	})
}

// uploadAtOnce sends 1 MiB and closes, again and again, and looks at how the
// service saw it.
func uploadAtOnce(t testing.TB, hostPort string, seen <-chan outcome, good func(whole bool, err error) bool) {
	t.Helper()
	sent := randomBytes(5, 1<<20)
	for i := range kuboAtOnce {
		c := dialTCP(t, hostPort)
		begin(c)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if o := <-seen; !good(o.sum == hashOf(sent), o.err) {
			t.Fatalf("connection %d: the service got %d bytes, then %v", i, o.n, o.err)
		}
	}
}

func wholeAndClean(whole bool, err error) bool { return whole && err == nil }

func wholeOrReset(whole bool, err error) bool { return wholeAndClean(whole, err) || isReset(err) }

func TestClientThatClosesAtOnceLosesNoByteToKubo(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		k := startKubo(t, transport)
		target, seen := hashing(t)
		k.listen(testProtocol, target.addr())
		f := startForward(newNode(t), testProtocol, k.addr)
		uploadAtOnce(t, f.hostPort(), seen, wholeAndClean)
	})
}

// At the end of its client Kubo closes the stream for reading before it closes
// it for writing; its own reader, woken by the first, resets the stream. Where
// that comes before the second, over TCP rarely and over QUIC often, bytes are
// lost on Kubo's side: the service must see that they are.
func TestWhatAClientOfKuboLosesComesOutAsAReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		k, n := startKubo(t, overTCP), newNode(t)
		target, seen := hashing(t)
		l := startListen(n, transport, testProtocol, target.addr(), "--allow", k.id)
		uploadAtOnce(t, k.forward(testProtocol, l.addr), seen, wholeOrReset)
	})
}

// Kubo takes any end for the end of both ways and reads no more; over yamux it
// does not say so, and whoever still writes would wait for ever.

func TestStreamThatAClientOfKuboHasEndedDoesNotHoldTheService(t *testing.T) {
	t.Parallel() // they wait
	k, n := startKubo(t, overTCP), newNode(t)
	cut := make(chan error, 1)
	target := serve(t, func(c net.Conn) {
		if begun(c) {
			_, err := io.Copy(onlyWriter{c}, newRandom(6))
			cut <- err
		}
	})
	l := startListen(n, overTCP, testProtocol, target.addr(), "--allow", k.id)
	c := dialTCP(t, k.forward(testProtocol, l.addr))
	begin(c)
	_, err := io.ReadFull(c, make([]byte, 1)) // else Kubo may reset the stream before the service has begun
	if err == nil {
		err = c.CloseWrite()
	}
	if err != nil {
		t.Fatal(err)
	}
	wantCut(t, n, cut)
}

func TestStreamThatAServiceBehindKuboHasEndedDoesNotHoldTheClient(t *testing.T) {
	t.Parallel() // they wait
	k, n := startKubo(t, overTCP), newNode(t)
	k.listen(testProtocol, serve(t, func(c net.Conn) {
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}).addr())
	c := startForward(n, testProtocol, k.addr).dial(t)
	cut := make(chan error, 1)
	go func() {
		_, err := io.Copy(onlyWriter{c}, newRandom(7))
		cut <- err
	}()
	wantCut(t, n, cut)
}

// wantCut fails unless who writes is told that nobody takes it, and the stream
// goes.
func wantCut(t testing.TB, n *node, cut <-chan error) {
	t.Helper()
	select {
	case err := <-cut:
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the writer was held until its own deadline")
		}
	case <-time.After(patience):
		t.Fatalf("the writer is held: %s", n.run("stream", "ls"))
	}
	await(t, "the stream has gone", func() bool { return n.run("stream", "ls") == "" })
}
