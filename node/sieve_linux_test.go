package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/net/bpf"
)

const (
	sievedIP = "127.9.9.9"
	otherIP  = "127.9.9.8"
	// unanswered is how long a dial waits that nobody is to answer.
	unanswered = 200 * time.Millisecond
)

// forLong has what is sieved from now on stay so for the test, and let out what
// is sieved.
func (s *sieve) forLong() (letOut func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = func() time.Duration { return time.Hour }
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for from := range s.nets {
			s.nets[from] = sieved{until: time.Now()}
		}
		s.change()
	}
}

// applied waits until the kernel has the filters.
func applied(t testing.TB, s *sieve) {
	t.Helper()
	eventually(t, "the filters are set", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return !s.stale
	})
}

func servedSieve(t testing.TB) *sieve {
	t.Helper()
	s := newSieve(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { s.serve(ctx) })
	t.Cleanup(func() { cancel(); serving.Wait() })
	return s
}

// echoing accepts connections and echoes until the test ends.
func echoing(t testing.TB, network, at string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, at)
	if err != nil {
		t.Skipf("%s: %v", at, err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return l
}

// dialFrom connects from an address, until the test ends.
func dialFrom(t testing.TB, from, to string, limit time.Duration) (net.Conn, error) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: limit}
	c, err := d.Dial("tcp", to)
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

func wantDialled(t testing.TB, from, to string) net.Conn {
	t.Helper()
	c, err := dialFrom(t, from, to, patience)
	must(t, err)
	must(t, exchangePing(c))
	return c
}

func TestASievedAddressBeginsNoConnectionOverTCP(t *testing.T) {
	for _, c := range []struct{ name, network, listen, dial, sieved, other string }{
		{"IPv4", "tcp4", "127.0.0.1:0", "127.0.0.1", sievedIP, otherIP},
		{"IPv6", "tcp6", "[::1]:0", "::1", "::1", ""},
		{"IPv4 on a socket for both", "tcp", "[::]:0", "127.0.0.1", sievedIP, otherIP},
		{"IPv6 on a socket for both", "tcp", "[::]:0", "::1", "::1", sievedIP},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, l := servedSieve(t), echoing(t, c.network, c.listen)
			letOut := s.forLong()
			s.watch(l.(syscall.Conn), true)
			_, port, _ := net.SplitHostPort(l.Addr().String())
			at := net.JoinHostPort(c.dial, port)
			before := wantDialled(t, c.sieved, at)
			s.keepOut(netOfIP(netip.MustParseAddr(c.sieved)))
			applied(t, s)
			if _, err := dialFrom(t, c.sieved, at, unanswered); err == nil {
				t.Error("it has connected")
			}
			must(t, exchangePing(before))
			if c.other != "" {
				wantDialled(t, c.other, net.JoinHostPort(loopbackOf(c.other), port))
			}
			letOut()
			must(t, exchangePing(wantDialled(t, c.sieved, at)))
			must(t, exchangePing(before))
		})
	}
}

func loopbackOf(ip string) string {
	if strings.Contains(ip, ":") {
		return "::1"
	}
	return "127.0.0.1"
}

// initial is the head of a first packet over QUIC.
func initial(kind byte, version uint32, ourID, token int) []byte {
	p := binary.BigEndian.AppendUint32([]byte{kind}, version)
	p = append(append(p, byte(ourID)), make([]byte, ourID)...)
	p = append(p, 4, 1, 2, 3, 4, byte(token))
	return append(append(p, make([]byte, token)...), 'x')
}

// quicPackets are what a sieve may drop of QUIC's, and what it may not.
var quicPackets = []struct {
	name   string
	packet []byte
	drop   bool
}{
	{"an Initial", initial(0xc3, 1, 8, 0), true},
	{"an Initial with the longest ID", initial(0xc0, 1, 20, 0), true},
	{"an Initial after a Retry", initial(0xcf, 1, 4, 64), true},
	{"an Initial that answers ours", initial(0xc1, 1, 4, 0), false},
	{"an Initial of another version", initial(0xc3, 0x6b3343cf, 8, 0), false},
	{"0-RTT", initial(0xd3, 1, 8, 0), false},
	{"a Handshake packet", initial(0xe3, 1, 8, 0), false},
	{"a Retry", initial(0xf3, 1, 8, 0), false},
	{"a short header", initial(0x43, 1, 8, 0), false},
	{"one byte that is no QUIC", []byte{0}, false},
}

func TestASievedAddressSendsNoFirstPacketOverUDP(t *testing.T) {
	s := servedSieve(t)
	letOut := s.forLong()
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	defer l.Close()
	s.watch(l, false)
	s.keepOut(netOfIP(netip.MustParseAddr(sievedIP)))
	applied(t, s)
	for _, c := range quicPackets {
		if got := arrives(t, l, sievedIP, c.packet); got == c.drop {
			t.Errorf("%s of the sieved address arrives: %v", c.name, got)
		}
		if !arrives(t, l, otherIP, c.packet) {
			t.Errorf("%s of another address does not arrive", c.name)
		}
	}
	letOut()
	applied(t, s)
	eventually(t, "it gets in again", func() bool { return arrives(t, l, sievedIP, initial(0xc3, 1, 8, 0)) })
}

// arrives says whether a packet comes before the one that is sent after it.
func arrives(t testing.TB, l *net.UDPConn, from string, packet []byte) bool {
	t.Helper()
	c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, l.LocalAddr().(*net.UDPAddr))
	must(t, err)
	defer c.Close()
	last := "the last of " + from
	for _, p := range [][]byte{packet, []byte(last)} {
		_, err := c.Write(p)
		must(t, err)
	}
	must(t, l.SetReadDeadline(time.Now().Add(patience)))
	for b, came := make([]byte, 2048), false; ; came = true {
		n, err := l.Read(b)
		must(t, err)
		if string(b[:n]) == last {
			return came
		}
	}
}

// newHostAt is a plain libp2p host that dials from an address.
func newHostAt(t testing.TB, ip string) host.Host {
	t.Helper()
	var quic *quicreuse.ConnManager
	newQUIC := func() (_ *quicreuse.ConnManager, err error) {
		quic, err = quicreuse.NewConnManager([32]byte{}, [32]byte{}, quicreuse.OverrideListenUDP(func(network string, _ *net.UDPAddr) (net.PacketConn, error) {
			return net.ListenUDP(network, &net.UDPAddr{IP: net.ParseIP(ip)})
		}))
		return quic, err
	}
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/"+ip+"/tcp/0"), libp2p.DisableMetrics(), libp2p.DisableRelay(),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.QUICReuse(newQUIC))
	must(t, err)
	t.Cleanup(func() { _ = h.Close(); _ = quic.Close() })
	return h
}

func TestANodesSocketsAreSieved(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		victim, at, _ := newVictim(t, addr)
		s := victim.sockets.sieve
		letOut := s.forLong()
		before, after := newHostAt(t, sievedIP), newHostAt(t, sievedIP)
		if !served(t, before, at) {
			t.Fatal("not served before")
		}
		s.keepOut(netOfIP(netip.MustParseAddr(sievedIP)))
		applied(t, s)
		ctx, cancel := context.WithTimeout(t.Context(), unanswered)
		defer cancel()
		if after.Connect(ctx, at) == nil {
			t.Error("it has connected")
		}
		if !served(t, before, at) || len(before.Network().ConnsToPeer(at.ID)) != 1 {
			t.Error("the connection that there was is not served")
		}
		if !served(t, newHostAt(t, otherIP), at) {
			t.Error("another address is not served")
		}
		letOut()
		eventually(t, "it gets in again", func() bool { return served(t, newHostAt(t, sievedIP), at) })
	})
}

func TestAFloodFromAWatchedAddressIsSievedAndLetInAgain(t *testing.T) {
	victim, at, _ := newVictim(t, onTCP)
	_, to, err := manet.DialArgs(at.Addrs[0])
	must(t, err)
	victim.guard.insist(netOfIP(netip.MustParseAddr(sievedIP)))
	eventually(t, "a SYN is not answered", func() bool {
		_, err := dialFrom(t, sievedIP, to, unanswered)
		return err != nil
	})
	_, err = dialFrom(t, sievedIP, to, patience)
	must(t, err)
}

func TestASieveForgetsSocketsThatAreClosedAndHasABound(t *testing.T) {
	s := newSieve(slog.New(slog.DiscardHandler))
	s.forLong()
	for range 10 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		must(t, err)
		s.watch(l.(syscall.Conn), true)
		must(t, l.Close())
	}
	if len(s.sockets) > 1 {
		t.Errorf("%d sockets are kept", len(s.sockets))
	}
	for i := range 4 * sieveRoom {
		s.keepOut(netOfIP(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})))
	}
	s.keepOut(netip.Prefix{})
	if len(s.nets) != sieveRoom {
		t.Errorf("%d nets, want %d", len(s.nets), sieveRoom)
	}
	if next, any := s.apply(time.Now().Add(2 * time.Hour)); any || len(s.nets) != 0 {
		t.Errorf("%d nets stay, until %v", len(s.nets), next)
	}
}

// The kernel takes a sieve of the most nets, of either kind.
func TestAFullSieveIsTaken(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		s := newSieve(slog.New(slog.DiscardHandler))
		s.forLong()
		l := echoing(t, "tcp4", "127.0.0.1:0")
		s.watch(l.(syscall.Conn), true)
		for i := range sieveRoom {
			ip := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			if v6 {
				ip = netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x00::", i))
			}
			s.keepOut(netOfIP(ip))
		}
		s.nets[netOfIP(netip.MustParseAddr(sievedIP))] = sieved{until: time.Now().Add(time.Hour)}
		s.apply(time.Now())
		if _, err := dialFrom(t, sievedIP, l.Addr().String(), unanswered); err == nil {
			t.Error("it has connected")
		}
	}
}

// ip4 and ip6 are packets from an address.
func ip4(from string, payload []byte) []byte {
	head := make([]byte, 20)
	head[0] = 0x45
	source := netip.MustParseAddr(from).As4()
	copy(head[12:], source[:])
	return append(head, payload...)
}

func ip6(from string, payload []byte) []byte {
	head := make([]byte, 40)
	head[0] = 0x60
	source := netip.MustParseAddr(from).As16()
	copy(head[8:], source[:])
	return append(head, payload...)
}

func segment(flags byte) []byte {
	s := make([]byte, 20)
	s[tcpFlags] = flags
	return s
}

// runs says whether a program lets a packet pass whose transport header is
// there.
func runs(t testing.TB, program func([]netip.Prefix, layout) []bpf.Instruction, transport int, packet []byte) bool {
	t.Helper()
	nets := []netip.Prefix{
		netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("198.51.100.1/32"),
		netip.MustParsePrefix("2001:db8:1:200::/56"), netip.MustParsePrefix("2001:db8:2:300::/56"),
	}
	vm, err := bpf.NewVM(program(nets, layout{transport: uint32(transport)}))
	must(t, err)
	kept, err := vm.Run(packet)
	must(t, err)
	return kept > 0
}

func TestASieveDropsSYNsOfItsNetsAlone(t *testing.T) {
	const syn, synACK, ack, rst = tcpSYN, tcpSYN | tcpACK, tcpACK, 0x04
	for _, c := range []struct {
		from  string
		flags byte
		pass  bool
	}{
		{"192.0.2.7", syn, false}, {"198.51.100.1", syn, false}, {"198.51.100.1", syn | 0xc0, false}, // ECN (RFC 3168)
		{"192.0.2.8", syn, true}, {"198.51.100.0", syn, true},
		{"192.0.2.7", synACK, true}, {"192.0.2.7", ack, true}, {"192.0.2.7", rst, true}, {"192.0.2.7", 0, true},
		{"2001:db8:1:2ff::9", syn, false}, {"2001:db8:2:300::1", syn, false},
		{"2001:db8:1:300::9", syn, true}, {"2001:db8:2:200::1", syn, true}, {"2001:db9:1:200::1", syn, true},
		{"2001:db8:1:2ff::9", ack, true},
	} {
		packet, transport := ip6, 40
		if netip.MustParseAddr(c.from).Is4() {
			packet, transport = ip4, 20
		}
		if pass := runs(t, sieveTCP, transport, packet(c.from, segment(c.flags))); pass != c.pass {
			t.Errorf("flags %#x of %s pass: %v", c.flags, c.from, pass)
		}
	}
}

func TestASieveDropsFirstPacketsOfItsNetsAlone(t *testing.T) {
	udp := func(p []byte) []byte { return append(make([]byte, udpData), p...) }
	for _, c := range quicPackets {
		for from, ours := range map[string]bool{"192.0.2.7": true, "192.0.2.8": false} {
			if pass := runs(t, sieveQUIC, 20, ip4(from, udp(c.packet))); pass == (ours && c.drop) {
				t.Errorf("%s of %s passes: %v", c.name, from, pass)
			}
		}
		if pass := runs(t, sieveQUIC, 40, ip6("2001:db8:1:201::1", udp(c.packet))); pass == c.drop {
			t.Errorf("%s over IPv6 passes: %v", c.name, pass)
		}
	}
}

func TestAThinnedNetHasAFilterOverUDPAlone(t *testing.T) {
	f, err := newFilters(nil, []netip.Prefix{netip.MustParsePrefix(office)})
	if must(t, err); len(f.tcp) != 0 || len(f.udp) == 0 {
		t.Errorf("%d and %d instructions", len(f.tcp), len(f.udp))
	}
}
