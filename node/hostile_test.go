package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	manet "github.com/multiformats/go-multiaddr/net"

	"p2ptun/proto"
	"p2ptun/registry"
)

// newVictim makes a node that echoes what tunnel streams bring, with a clock that
// stands: nothing is forgiven by itself.
func newVictim(t testing.TB, addr string) (n *testNode, at peer.AddrInfo, c *clock) {
	t.Helper()
	n, c = newTestNode(t, addr), newClock()
	n.guard.setClock(c.now)
	n.Handle(func(in registry.Incoming) {
		_, _ = io.Copy(in.End, in.End)
		_ = in.End.Reset(proto.CodeNone)
	})
	return n, peer.AddrInfo{ID: n.host.ID(), Addrs: n.host.Addrs()}, c
}

// newHostile is a plain libp2p host that is connected.
func newHostile(t testing.TB, to peer.AddrInfo) host.Host {
	t.Helper()
	h := newIdler(t)
	must(t, h.Connect(within(t), to))
	return h
}

// served says whether a peer gets a connection, if it has none, and an answer.
func served(t testing.TB, h host.Host, to peer.AddrInfo) bool {
	t.Helper()
	if err := h.Connect(within(t), to); err != nil {
		return false
	}
	s, err := h.NewStream(within(t), to.ID, ping.ID)
	if err != nil {
		return false
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(patience))
	return exchangePing(s) == nil
}

func exchangePing(s io.ReadWriter) error {
	if _, err := s.Write(make([]byte, ping.PingSize)); err != nil {
		return err
	}
	_, err := io.ReadFull(s, make([]byte, ping.PingSize))
	return err
}

func wantEcho(t testing.TB, end registry.End) {
	t.Helper()
	if err := exchangePing(end); err != nil {
		t.Errorf("a trusted peer's stream: %v", err)
	}
}

// openStreams opens and resets streams, up to most, until the connection has
// gone.
func openStreams(t testing.TB, h host.Host, to peer.ID, most int) (opened int) {
	t.Helper()
	ctx := network.WithNoDial(within(t), "one connection")
	for range most {
		s, err := h.Network().NewStream(ctx, to)
		if err != nil {
			return opened
		}
		_, _ = s.Write([]byte{0})
		_ = s.Reset()
		opened++
	}
	return opened
}

func gone(t testing.TB, n *testNode, h host.Host) {
	t.Helper()
	eventually(t, "the connection has been closed", func() bool {
		return !n.isConnected(h.ID()) && h.Network().Connectedness(n.host.ID()) != network.Connected
	})
}

func TestAFloodOfStreamsEndsTheConnectionAndKeepsThePeerOut(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		victim, at, c := newVictim(t, addr)
		friend, bystander := newTestNode(t, addr), newHostile(t, at)
		victim.trust(friend.ID(), true)
		reach(t, friend, victim.host)
		end := open(t, friend, victim.ID(), "/x/t")
		wantEcho(t, end)

		bad := newHostile(t, at)
		if n := openStreams(t, bad, at.ID, 50_000); n == 50_000 {
			t.Error("50000 streams were opened")
		}
		gone(t, victim, bad)
		if served(t, bad, at) {
			t.Error("served at once after the flood")
		}
		gone(t, victim, bad)
		if !served(t, bystander, at) {
			t.Error("another stranger is not served")
		}
		wantEcho(t, end)
		wantEcho(t, open(t, friend, victim.ID(), "/x/u"))

		c.pass(banFirst + time.Second)
		if !served(t, bad, at) {
			t.Error("not served when the ban has ended")
		}
		openStreams(t, bad, at.ID, 50_000)
		gone(t, victim, bad)
		victim.trust(bad.ID().String(), true)
		if !served(t, bad, at) {
			t.Error("not served when it is trusted")
		}
		if n := openStreams(t, bad, at.ID, 10*strangerBurst); n != 10*strangerBurst {
			t.Errorf("%d streams of a trusted peer", n)
		}
	})
}

// The victim may dial a peer that it keeps out.
func TestOneThatIsKeptOutMayBeDialled(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	a.guard.setClock(newClock().now)
	flood(a.guard, plain.ID())
	must(t, a.host.Connect(within(t), peer.AddrInfo{ID: plain.ID(), Addrs: plain.Addrs()}))
	if r := <-ping.Ping(within(t), a.host, plain.ID()); r.Error != nil {
		t.Error(r.Error)
	}
}

func TestRefusedQuestionsAndStreamsEndTheConnectionSooner(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		for name, protocol := range map[string]string{"questions": proto.AskProtocol, "streams": "/x/t"} {
			t.Run(name, func(t *testing.T) {
				victim, at, _ := newVictim(t, addr)
				var refused atomic.Int64
				victim.HandleAsk(func(_ context.Context, p string, _ *proto.Question) proto.Verdict {
					refused.Add(1)
					victim.Refused(p)
					return proto.Verdict_VERDICT_REFUSED
				})
				victim.Handle(func(in registry.Incoming) {
					refused.Add(1)
					victim.Refused(in.Peer)
					_ = in.End.Reset(proto.CodeRefused)
				})
				bad := newHostile(t, at)
				for victim.isConnected(bad.ID()) {
					_ = askOnce(within(t), bad, at.ID, protocol)
				}
				gone(t, victim, bad)
				// Several are under way when the bucket gets empty.
				if n, most := refused.Load(), int64(strangerBurst/refusalCost); n > most {
					t.Errorf("%d were refused, want at most %d", n, most)
				}
			})
		}
	})
}

// askOnce asks for /x/t, and waits for the answer or the reset.
func askOnce(ctx context.Context, h host.Host, to peer.ID, protocol string) error {
	s, err := h.Network().NewStream(network.WithNoDial(ctx, "one connection"), to)
	if err != nil {
		return err
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(patience))
	if _, err := s.Write([]byte(hello + token(protocol) + "\x06\x0a\x04/x/t")); err != nil {
		return err
	}
	_ = s.CloseWrite()
	_, err = io.Copy(io.Discard, s)
	return err
}

// hello begins every negotiation (multistream-select).
const hello = "\x13/multistream/1.0.0\n"

// token is a line of multistream-select.
func token(line string) string {
	return string(binary.AppendUvarint(nil, uint64(len(line)+1))) + line + "\n"
}

func TestNewPeerIDsFromAnOffendersAddressAreSlowed(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		victim, at, c := newVictim(t, addr)
		friend := newTestNode(t, addr)
		victim.trust(friend.ID(), true)
		reach(t, friend, victim.host)
		end := open(t, friend, victim.ID(), "/x/t")
		bad := newHostile(t, at)
		openStreams(t, bad, at.ID, 50_000)
		gone(t, victim, bad)

		let := func(tries int) (in int) {
			for range tries {
				if served(t, newIdler(t), at) {
					in++
				}
			}
			return in
		}
		// A packet that QUIC sends again may count as one more try.
		if n := let(2 * watchBurst); n > watchBurst || n < watchBurst/2 {
			t.Errorf("%d new peers at once, want %d", n, watchBurst)
		}
		c.pass(time.Second)
		if n := let(2 * watchRate); n > watchRate || n < watchRate/2 {
			t.Errorf("%d new peers in the next second, want %d", n, watchRate)
		}
		wantEcho(t, end)
		c.pass(watchFor + time.Second)
		if n := let(2 * watchBurst); n != 2*watchBurst {
			t.Errorf("%d of %d new peers after a while", n, 2*watchBurst)
		}
	})
}

// Streams that send a byte, or nothing where the transport shows that, end by
// libp2p's negotiation timeout.
func TestSilentStreamsAreFewAndEnd(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		victim, at, _ := newVictim(t, addr)
		bad := newHostile(t, at)
		eventually(t, "identified", func() bool { return inboundOf(victim, bad) == 0 })
		before := runtime.NumGoroutine()
		for range strangerInbound + 8 {
			s, err := bad.Network().NewStream(within(t), at.ID)
			must(t, err)
			_, _ = s.Write([]byte(hello[:1]))
		}
		eventually(t, "they came", func() bool { return inboundOf(victim, bad) > strangerInbound/2 })
		if n := inboundOf(victim, bad); n > strangerInbound {
			t.Errorf("%d streams that say nothing", n)
		}
		other := newIdler(t)
		if !served(t, other, at) {
			t.Error("another stranger is not served beside them")
		}
		must(t, other.Close())
		eventually(t, "they have ended", func() bool { return inboundOf(victim, bad) == 0 && victim.guard.streamsInUse() == 0 })
		settle(t, before)
	})
}

func (g *guard) streamsInUse() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.streams.used
}

func inboundOf(n *testNode, h host.Host) (count int) {
	_ = n.host.Network().ResourceManager().ViewPeer(h.ID(), func(s network.PeerScope) error {
		count = s.Stat().NumStreamsInbound
		return nil
	})
	return count
}

// settle waits until no more goroutines run than before. What libp2p starts
// now and then for a moment is let pass.
func settle(t testing.TB, before int) {
	t.Helper()
	eventually(t, "goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

func TestHalfOpenConnectionsKeepNobodyOut(t *testing.T) {
	const many = halfOpen - 64
	victim, at, _ := newVictim(t, onTCP)
	before := runtime.NumGoroutine()
	var conns []net.Conn
	for i := 1; len(conns) < many; i++ { // each may take half of what is left
		conns = append(conns, dialRaw(t, at, fmt.Sprint("127.0.1.", i), (halfOpen-len(conns))/2)...)
	}
	eventually(t, "their handshakes have begun", func() bool { return handshakes(victim) == many })
	friend := newIdler(t)
	victim.trust(friend.ID().String(), true)
	if !served(t, friend, at) {
		t.Error("a trusted peer is kept out")
	}
	must(t, friend.Close())
	conns = append(conns, dialRaw(t, at, "127.0.1.99", 2*(halfOpen-many))...)
	eventually(t, "what is too many was closed", func() bool { return countOpen(conns) <= halfOpen })
	for _, c := range conns {
		_ = c.Close()
	}
	eventually(t, "all handshakes have ended", func() bool { return handshakes(victim) == 0 })
	settle(t, before)
}

// An address that holds half of all handshakes keeps out nobody but itself.
func TestOneAddressDoesNotHoldAllHandshakes(t *testing.T) {
	victim, at, _ := newVictim(t, onTCP)
	conns := dialRaw(t, at, "127.0.1.1", halfOpen/2+comeBurst/halfOpenCost) // one more would be too many
	eventually(t, "the rest was closed", func() bool { return countOpen(conns) <= halfOpen/2 })
	if n := handshakes(victim); n != halfOpen/2 {
		t.Errorf("%d handshakes of one address", n)
	}
	if !served(t, newIdler(t), at) {
		t.Error("another address is kept out")
	}
	for _, c := range conns {
		_ = c.Close()
	}
	eventually(t, "all handshakes have ended", func() bool { return handshakes(victim) == 0 && victim.guard.handshakesInUse() == 0 })
	again := dialRaw(t, at, "127.0.1.1", 1)
	eventually(t, "the address may begin one again", func() bool { return handshakes(victim) == 1 })
	_ = again[0].Close()
}

func (g *guard) handshakesInUse() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.handshakes.used
}

func dialRaw(t testing.TB, to peer.AddrInfo, from string, n int) (conns []net.Conn) {
	t.Helper()
	_, addr, err := manet.DialArgs(to.Addrs[0])
	must(t, err)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	for range n {
		c, err := d.Dial("tcp", addr)
		must(t, err)
		t.Cleanup(func() { _ = c.Close() })
		conns = append(conns, c)
	}
	return conns
}

// handshakes counts the connections that have no peer yet.
func handshakes(n *testNode) (count int) {
	_ = n.host.Network().ResourceManager().ViewTransient(func(s network.ResourceScope) error {
		count = s.Stat().NumConnsInbound
		return nil
	})
	return count
}

// countOpen counts the connections that the other side has not closed.
func countOpen(conns []net.Conn) (n int) {
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(make([]byte, 64)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			n++
		}
	}
	return n
}

// What is no protocol's name, or a longer one than libp2p reads, gets to nobody
// who handles tunnel streams, and the stream ends when the peer has ended its
// side. See also TestAHostileNameReachesTheHandlerOnly.
func TestNamesAndHeadersThatAreNoneReachNobody(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		victim, at, _ := newVictim(t, addr)
		handled := make(chan string, 100)
		victim.Handle(func(in registry.Incoming) {
			handled <- in.Protocol
			_ = in.End.Reset(proto.CodeNone)
		})
		bad := newHostile(t, at)
		before := runtime.NumGoroutine()
		for name, bytes := range map[string]string{
			"nothing":            "",
			"truncated header":   hello[:7],
			"truncated name":     hello + token("/x/abcdef")[:5],
			"endless length":     strings.Repeat("\xff", 64),
			"oversized length":   hello + string(binary.AppendUvarint(nil, 1<<62)),
			"oversized header":   token(strings.Repeat("a", 2000)),
			"name of 64 KiB":     hello + token("/x/"+strings.Repeat("a", 64<<10)),
			"name over 1 KiB":    hello + token("/x/"+strings.Repeat("a", 1021)),
			"control characters": hello + token("/\x1b[2J\x07"),
			"no UTF-8":           hello + token("\xff\xfe"),
			"empty line":         hello + token(""),
			"no line feed":       hello + "\x04/x/t",
			"another header":     token("/multistream/2.0.0"),
			"many unknown names": hello + strings.Repeat(token("/y/z"), 1000),
		} {
			s, err := bad.Network().NewStream(within(t), at.ID)
			must(t, err)
			_ = s.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(s, bytes) // the reset may come before its end
			_ = s.CloseWrite()
			_, err = io.Copy(io.Discard, s)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the stream does not end", name)
			}
			_ = s.Reset()
		}
		if !served(t, bad, at) {
			t.Error("no more than that many streams, but not served")
		}
		eventually(t, "the streams have ended", func() bool { return victim.guard.streamsInUse() == 0 })
		settle(t, before)
		select {
		case name := <-handled:
			t.Errorf("%q was handled", name)
		default:
		}
	})
}

// Whoever brings an invite comes as a stranger. Where so many come at once that
// some find no room, they get their answers when they ask again, as forwarders
// do, and none is punished.
func TestManyStrangersMayAskAtOnce(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		victim, at, _ := newVictim(t, addr)
		victim.HandleAsk(func(context.Context, string, *proto.Question) proto.Verdict { return proto.Verdict_VERDICT_OK })
		victim.guard.setClock(time.Now)
		ctx := within(t)
		var all sync.WaitGroup
		for range strangersConns + 4 {
			h := newIdler(t)
			all.Go(func() {
				for h.Connect(ctx, at) != nil || askOnce(ctx, h, at.ID, proto.AskProtocol) != nil {
					if ctx.Err() != nil {
						t.Error("no answer")
						break
					}
					<-time.After(250 * time.Millisecond)
				}
				_ = h.Close()
				if victim.guard.keepsOut(h.ID()) {
					t.Error("one that asked is kept out")
				}
			})
		}
		all.Wait()
	})
}

// A stranger's question has to come soon, a trusted peer's may take longer.
func TestAStrangersQuestionHasToComeSoon(t *testing.T) {
	victim, at, _ := newVictim(t, onTCP)
	victim.HandleAsk(func(context.Context, string, *proto.Question) proto.Verdict { return proto.Verdict_VERDICT_OK })
	bad, friend := newHostile(t, at), newHostile(t, at)
	victim.trust(friend.ID().String(), true)
	slow := func(h host.Host) network.Stream {
		s, err := h.NewStream(within(t), at.ID, proto.AskProtocol)
		must(t, err)
		_, err = s.Write([]byte{6, 10})
		must(t, err)
		_ = s.SetReadDeadline(time.Now().Add(patience))
		return s
	}
	late, inTime := slow(bad), slow(friend)
	if _, err := late.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stranger's question may take for ever: %v", err)
	}
	_, err := inTime.Write([]byte("\x04/x/t"))
	must(t, err)
	if _, err := inTime.Read(make([]byte, 1)); err != nil {
		t.Errorf("a trusted peer's slow question: %v", err)
	}
}

func TestAClosedNodeHasNoGuardRunning(t *testing.T) {
	before := runtime.NumGoroutine()
	victim, at, _ := newVictim(t, onTCP)
	bad := newHostile(t, at)
	openStreams(t, bad, at.ID, 50_000)
	must(t, victim.Close())
	must(t, bad.Close())
	settle(t, before)
}
