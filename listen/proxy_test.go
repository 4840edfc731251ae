package listen

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"

	"p2ptun/proto"
	"p2ptun/registry"
)

var proxied = registry.Tunnel{ProxyProtocol: true}

// caller is a peer with a stream that carries bytes.
type caller struct {
	net.Conn // the peer's side
	pair     target
}

func newCaller(t testing.TB) (*caller, registry.End) {
	t.Helper()
	c := new(caller)
	here, err := c.pair.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end, err := registry.NewConnEnd(here)
	if err != nil {
		t.Fatal(err)
	}
	c.Conn = c.pair.last()
	t.Cleanup(c.pair.close)
	return c, end
}

// reached is a tunnel whose target a friend has reached over a path.
type reached struct {
	peer   *caller
	target *bufio.Reader // what the target reads
	conn   net.Conn      // the target's side
}

func reach(t testing.TB, tunnel registry.Tunnel, path registry.Path) reached {
	t.Helper()
	r, service := newRig(), new(target)
	r.answerDialsBy(service.dial)
	_, stop := r.run(t, tunnel)
	t.Cleanup(func() { service.close(); stop() })
	peer, end := newCaller(t)
	r.Serve(registry.Incoming{Peer: friend, Protocol: "/x/t", Path: path, End: end})
	return reached{peer: peer, target: bufio.NewReader(service.last()), conn: service.last()}
}

// wantFriend reads a header and wants one field in it: the friend's ID.
func wantFriend(t testing.TB, in *bufio.Reader) *proxyproto.Header {
	t.Helper()
	h, err := proxyproto.Read(in)
	if err != nil {
		t.Fatalf("header: %v", err)
	}
	fields, err := h.TLVs()
	if err != nil || len(fields) != 1 || fields[0].Type != 0xE0 || string(fields[0].Value) != friend {
		t.Errorf("fields %v, %v", fields, err)
	}
	return h
}

// wantFlow wants that bytes pass both ways and nothing stands before them.
func (r reached) wantFlow(t testing.TB) {
	t.Helper()
	for _, way := range []struct {
		from io.Writer
		to   io.Reader
	}{{r.peer, r.target}, {r.conn, r.peer}} {
		got := make([]byte, len("word"))
		if _, err := io.WriteString(way.from, "word"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way.to, got); err != nil || string(got) != "word" {
			t.Fatalf("read %q, %v", got, err)
		}
	}
}

var directPaths = map[string]struct {
	path                registry.Path
	family              proxyproto.AddressFamilyAndProtocol
	source, destination string
}{
	"IPv4": {
		registry.Path{Addr: "/ip4/203.0.113.7/tcp/40001", Local: "/ip4/192.168.1.2/tcp/4001"},
		proxyproto.TCPv4, "203.0.113.7:40001", "192.168.1.2:4001"},
	"IPv6": {
		registry.Path{Addr: "/ip6/2001:db8::7/tcp/40001", Local: "/ip6/2001:db8::2/tcp/4001"},
		proxyproto.TCPv6, "[2001:db8::7]:40001", "[2001:db8::2]:4001"},
	"IPv6 with a zone": {
		registry.Path{Addr: "/ip6zone/eth0/ip6/fe80::7/tcp/40001", Local: "/ip6zone/eth0/ip6/fe80::2/tcp/4001"},
		proxyproto.TCPv6, "[fe80::7]:40001", "[fe80::2]:4001"},
	"v4-mapped": {
		registry.Path{Addr: "/ip6/::ffff:203.0.113.7/tcp/40001", Local: "/ip6/::ffff:192.168.1.2/tcp/4001"},
		proxyproto.TCPv4, "203.0.113.7:40001", "192.168.1.2:4001"},
	"v4-mapped to IPv4": {
		registry.Path{Addr: "/ip6/::ffff:203.0.113.7/tcp/40001", Local: "/ip4/192.168.1.2/tcp/4001"},
		proxyproto.TCPv4, "203.0.113.7:40001", "192.168.1.2:4001"},
	"QUIC": {
		registry.Path{Transport: "quic", Addr: "/ip4/203.0.113.7/udp/40001/quic-v1", Local: "/ip4/192.168.1.2/udp/4001/quic-v1"},
		proxyproto.TCPv4, "203.0.113.7:40001", "192.168.1.2:4001"},
	"QUIC from a socket of any address": {
		registry.Path{Transport: "quic", Addr: "/ip6/2001:db8::7/udp/40001/quic-v1", Local: "/ip6/::/udp/4001/quic-v1"},
		proxyproto.TCPv6, "[2001:db8::7]:40001", "[::]:4001"},
	"WebSocket": {
		registry.Path{Addr: "/ip4/203.0.113.7/tcp/65535/ws", Local: "/ip4/192.168.1.2/tcp/1/tls/sni/example.org/ws"},
		proxyproto.TCPv4, "203.0.113.7:65535", "192.168.1.2:1"},
}

func TestOnADirectPathTheHeaderHasBothEndsAndThePeersID(t *testing.T) {
	for name, c := range directPaths {
		t.Run(name, func(t *testing.T) {
			r := reach(t, proxied, c.path)
			h := wantFriend(t, r.target)
			if h.Version != 2 || h.Command != proxyproto.PROXY || h.TransportProtocol != c.family {
				t.Errorf("version %d, command %#x, family %#x", h.Version, h.Command, h.TransportProtocol)
			}
			if h.SourceAddr.String() != c.source || h.DestinationAddr.String() != c.destination {
				t.Errorf("%v → %v, want %s → %s", h.SourceAddr, h.DestinationAddr, c.source, c.destination)
			}
			r.wantFlow(t)
		})
	}
}

func TestAPathWithoutAnAddressOfThePeersHasAHeaderOfThePeersIDAlone(t *testing.T) {
	const here, there = "/ip4/192.168.1.2/tcp/4001", "/ip4/203.0.113.7/tcp/40001"
	for name, path := range map[string]registry.Path{
		"relayed":                  {Relayed: true, Addr: there, Local: here},
		"through a relay":          {Addr: there + "/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X/p2p-circuit", Local: here},
		"none":                     {},
		"root":                     {Addr: "/", Local: "/"},
		"garbage":                  {Addr: "\x00\xff/ip4/", Local: here},
		"garbage here":             {Addr: there, Local: "garbage"},
		"unknown here":             {Addr: there},
		"a name":                   {Addr: "/dns4/example.org/tcp/40001", Local: here},
		"a number that is a name":  {Addr: "/dns/203.0.113.7/tcp/40001", Local: here},
		"no port":                  {Addr: "/ip4/203.0.113.7", Local: here},
		"a zone alone":             {Addr: "/ip6zone/eth0", Local: here},
		"neither TCP nor UDP":      {Addr: "/ip4/203.0.113.7/sctp/40001", Local: here},
		"a unix socket":            {Addr: "/unix/run/app.sock", Local: here},
		"ends of two families":     {Addr: "/ip6/2001:db8::7/tcp/40001", Local: here},
		"the other two":            {Addr: there, Local: "/ip6/2001:db8::2/tcp/4001"},
		"garbage that is long":     {Addr: "/ip4/" + strings.Repeat("1", 1<<16) + "/tcp/1", Local: here},
		"an address within a name": {Addr: "/dns4/x/ip4/203.0.113.7/tcp/1", Local: here},
	} {
		t.Run(name, func(t *testing.T) {
			r := reach(t, proxied, path)
			h := wantFriend(t, r.target)
			if h.Version != 2 || h.TransportProtocol != proxyproto.UNSPEC || h.SourceAddr != nil || h.DestinationAddr != nil {
				t.Errorf("version %d, family %#x, %v → %v", h.Version, h.TransportProtocol, h.SourceAddr, h.DestinationAddr)
			}
			r.wantFlow(t)
		})
	}
}

// The octets of proxy-protocol.txt, 2.2, written by hand.
func TestTheHeaderIsThatOfTheSpecificationByteForByte(t *testing.T) {
	const signature = "0d0a0d0a000d0a515549540a"
	id := "e00006" + hex.EncodeToString([]byte(friend))
	for want, path := range map[string]registry.Path{
		signature + "21110015" + "cb007107" + "c0a80102" + "9c41" + "0fa1" + id: directPaths["IPv4"].path,
		signature + "2121002d" + "20010db8000000000000000000000007" +
			"20010db8000000000000000000000002" + "9c41" + "0fa1" + id: directPaths["IPv6"].path,
		signature + "20000009" + id: {Relayed: true},
	} {
		r := reach(t, proxied, path)
		got := make([]byte, len(want)/2)
		if _, err := io.ReadFull(r.target, got); err != nil || hex.EncodeToString(got) != want {
			t.Errorf("read  %x, %v\nwant %s", got, err, want)
		}
		r.wantFlow(t)
	}
}

// The server may speak first, and both may end their way while the other's
// goes on: the header changes nothing of what follows it.
func TestAfterTheHeaderEveryByteAndHalfCloseIsAsWithout(t *testing.T) {
	r := reach(t, proxied, directPaths["IPv4"].path)
	var up, down [3 << 20]byte
	_, _ = rand.NewChaCha8([32]byte{1}).Read(up[:])
	_, _ = rand.NewChaCha8([32]byte{2}).Read(down[:])
	sent := make(chan error, 1)
	go func() {
		_, err := r.peer.Write(up[:])
		sent <- errors.Join(err, r.peer.Conn.(*net.TCPConn).CloseWrite())
	}()
	wantFriend(t, r.target)
	if got, err := io.ReadAll(r.target); err != nil || !bytes.Equal(got, up[:]) {
		t.Fatalf("the target read %d bytes, %v, want the peer's %d", len(got), err, len(up))
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := r.conn.Write(down[:])
		sent <- errors.Join(err, r.conn.(*net.TCPConn).CloseWrite())
	}()
	if got, err := io.ReadAll(r.peer); err != nil || !bytes.Equal(got, down[:]) {
		t.Fatalf("the peer read %d bytes, %v, want the target's %d", len(got), err, len(down))
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestAUnixTargetGetsTheHeaderToo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := newRig()
	r.Dial = nil
	_, stop := r.run(t, registry.Tunnel{Target: "/unix" + path, ProxyProtocol: true})
	defer stop()
	end := newPeerEnd()
	r.Serve(registry.Incoming{Peer: friend, Protocol: "/x/t", Path: directPaths["IPv6"].path, End: end})
	defer func() { _ = end.Reset(proto.CodeNone) }()
	probe, stream := accept(t, l), accept(t, l)
	if h, err := proxyproto.Read(bufio.NewReader(probe)); err != nil || h.Command != proxyproto.LOCAL {
		t.Errorf("the probe's header is %+v, %v", h, err)
	}
	if h := wantFriend(t, bufio.NewReader(stream)); h.SourceAddr.String() != directPaths["IPv6"].source {
		t.Errorf("source %v", h.SourceAddr)
	}
}

func accept(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// A probe is no peer: no ID, no address, and the command says so.
func TestAProbeHasAHeaderOfItsOwn(t *testing.T) {
	r := newRig()
	service := new(target)
	defer service.close()
	r.answerDialsBy(service.dial)
	e, stop := r.run(t, proxied)
	defer stop()
	got, err := io.ReadAll(service.last())
	if want := "0d0a0d0a000d0a515549540a20000000"; err != nil || hex.EncodeToString(got) != want {
		t.Errorf("the probe wrote %x, %v, want %s", got, err, want)
	}
	if s := e.Status(); s.Reason != "" {
		t.Errorf("reason %q", s.Reason)
	}
}

func TestATargetThatDoesNotTakeTheHeaderIsDown(t *testing.T) {
	r := newRig()
	service, closed := new(target), make(chan struct{}, 2)
	defer service.close()
	r.answerDialsBy(func(ctx context.Context) (net.Conn, error) {
		c, err := service.dial(ctx)
		return refusingConn{c, closed}, err
	})
	e, stop := r.run(t, proxied)
	defer stop()
	wantReason := func(when string) {
		t.Helper()
		<-closed
		if s := e.Status(); !strings.Contains(s.Reason, "send proxy protocol header to /ip4/127.0.0.1/tcp/22") || s.Total != 0 {
			t.Errorf("%s: %d streams, reason %q", when, s.Total, s.Reason)
		}
	}
	wantReason("after the probe")
	e.SetState(registry.StateReady, "")
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeTargetDown)
	wantReason("after a stream")
}

// refusingConn fails every write, as a target that has gone again.
type refusingConn struct {
	net.Conn
	closed chan<- struct{}
}

func (c refusingConn) Write([]byte) (int, error) { return 0, net.ErrClosed }
func (c refusingConn) Close() error              { c.closed <- struct{}{}; return c.Conn.Close() }

func TestAHeaderThatNobodyReadsHasATimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		var unread []net.Conn
		r.answerDialsBy(func(context.Context) (net.Conn, error) {
			here, there := net.Pipe()
			unread = append(unread, there)
			return here, nil
		})
		start := time.Now()
		_, stop := r.run(t, proxied)
		defer stop()
		probed := time.Now()
		wantReset(t, r.serve(friend, "/x/t"), proto.CodeTargetDown)
		if a, b := probed.Sub(start), time.Since(probed); a != dialLimit || b != dialLimit {
			t.Errorf("the probe took %v, the stream %v, want %v", a, b, dialLimit)
		}
		for _, there := range unread {
			if _, err := there.Write([]byte("x")); err == nil {
				t.Error("the connection is open")
			}
		}
	})
}

// The deadline is the header's alone: a quiet connection may be written to
// much later.
func TestTheTimeLimitOfTheHeaderEndsWithIt(t *testing.T) {
	for _, tunnel := range []registry.Tunnel{proxied, {ReportPeerID: true}} {
		synctest.Test(t, func(t *testing.T) {
			here, there := net.Pipe()
			defer here.Close()
			var read bytes.Buffer
			done := make(chan struct{})
			go func() { defer close(done); _, _ = io.Copy(&read, there) }()
			if err := introduce(here, tunnel, registry.Incoming{Peer: friend}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * dialLimit)
			if _, err := io.WriteString(here, "late"); err != nil {
				t.Errorf("write: %v", err)
			}
			here.Close()
			<-done
			if !bytes.HasSuffix(read.Bytes(), []byte("late")) {
				t.Errorf("read %q", read.Bytes())
			}
		})
	}
}

func TestWithoutTheFlagThereIsNoHeader(t *testing.T) {
	r := reach(t, registry.Tunnel{}, directPaths["IPv4"].path)
	r.wantFlow(t) // the peer's word is the first that the target reads
}

// A header has no place for more than 64 KiB: the stream fails, and says why.
func TestAnIDThatFitsInNoHeaderIsAnError(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	err := introduce(here, proxied, registry.Incoming{Peer: strings.Repeat("x", 1<<16)})
	if err == nil {
		t.Error("no error")
	}
}

func TestTheHeaderIsOneWrite(t *testing.T) {
	var c countingConn
	if err := introduce(&c, proxied, registry.Incoming{Peer: friend, Path: directPaths["IPv6"].path}); err != nil {
		t.Fatal(err)
	}
	if len(c.writes) != 1 || !slices.Equal(c.writes[0][:12], proxyproto.SIGV2) {
		t.Errorf("%d writes: %x", len(c.writes), c.writes)
	}
}

// countingConn keeps what is written. HAProxy wants a whole header at once.
type countingConn struct {
	net.Conn
	writes [][]byte
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.writes = append(c.writes, slices.Clone(b))
	return len(b), nil
}
func (c *countingConn) SetWriteDeadline(time.Time) error { return nil }
