package node

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"p2ptun/proto"
	"p2ptun/registry"
)

// newNodeOf makes a node of a configuration, with a home of its own.
func newNodeOf(t testing.TB, cfg Config) *Node {
	t.Helper()
	dir := t.TempDir()
	if cfg.KeyPath == "" {
		cfg.KeyPath = filepath.Join(dir, "key")
	}
	cfg.PortPath = filepath.Join(dir, "port")
	if len(cfg.ListenAddrs) == 0 {
		cfg.ListenAddrs = []string{onTCP}
	}
	n, err := New(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// infoOf is where a node can be dialled.
func infoOf(n *Node) (info peer.AddrInfo) {
	info.ID = n.host.ID()
	for _, a := range n.Listening() {
		info.Addrs = append(info.Addrs, ma.StringCast(a))
	}
	return info
}

func everybody(string) bool { return true }

// measured is a node that wants another, which lets it in by name as said.
func measured(t testing.TB, addr string, named func(string) bool) (dialler, responder *Node) {
	t.Helper()
	dialler = newNodeOf(t, Config{ListenAddrs: []string{addr}})
	responder = newNodeOf(t, Config{ListenAddrs: []string{addr}, Trusted: named, Named: named})
	connect(t, dialler, infoOf(responder))
	return dialler, responder
}

// connect makes n want a peer and reaches it.
func connect(t testing.TB, n *Node, to peer.AddrInfo) {
	t.Helper()
	_, err := n.Want(PeerAddrs{ID: to.ID.String(), Addrs: to.Addrs})
	must(t, err)
	must(t, n.Connect(within(t), to.ID.String(), patience))
}

// conn is the connection that new streams to a peer take.
func conn(t testing.TB, n *Node, id string) PeerConn {
	t.Helper()
	list := n.Conns(id)
	if len(list) == 0 {
		t.Fatal("not connected")
	}
	return list[0]
}

func wantReset(t testing.TB, err error, code proto.Code) {
	t.Helper()
	var reset *registry.ResetError
	if !errors.As(err, &reset) || reset.Code != code {
		t.Errorf("got %v, want a reset: %s", err, code)
	}
}

func TestThroughputIsWhatHasGoneEachWay(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		a, b := measured(t, addr, everybody)
		got, err := conn(t, a, b.ID()).Throughput(within(t))
		must(t, err)
		for _, n := range []int64{got.UpBytes, got.DownBytes} {
			if n <= 0 || n > proto.MaxPerf {
				t.Errorf("%+v", got)
			}
		}
		if got.Up() <= 0 || got.Down() <= 0 || got.UpTime > perfDial || got.DownTime > perfDial {
			t.Errorf("%+v", got)
		}
		eventually(t, "it serves nobody any more", func() bool { return !b.perf.busy.Load() })
	})
}

// A stranger's stream is reset before the request is read, let alone the bytes
// that follow.
func TestAStrangerIsNotMeasuredWith(t *testing.T) {
	everyTransport(t, func(t *testing.T, addr string) {
		a, b := measured(t, addr, func(string) bool { return false })
		_, err := conn(t, a, b.ID()).Throughput(within(t))
		wantReset(t, err, proto.CodeRefused)
		s, err := a.host.NewStream(within(t), b.host.ID(), proto.PerfProtocol)
		must(t, err)
		_, err = s.Read(make([]byte, 1)) // without a word of its own
		wantReset(t, openError(proto.PerfProtocol, err), proto.CodeRefused)
	})
}

func TestOneMeasurementIsServedAtATime(t *testing.T) {
	a, b := measured(t, onTCP, everybody)
	s, err := a.host.NewStream(within(t), b.host.ID(), proto.PerfProtocol)
	must(t, err)
	defer s.Reset()
	must(t, proto.WritePerf(s, proto.PerfRequest{Up: 1, Down: 1}))
	_, err = io.ReadFull(s, make([]byte, 1))
	must(t, err) // it is being served, and waits for a byte
	_, err = conn(t, a, b.ID()).Throughput(within(t))
	wantReset(t, err, proto.CodeTooMany)
}

func TestMeasurementsInARowAreBounded(t *testing.T) {
	a, b := measured(t, onTCP, everybody)
	for range perfBurst {
		b.perf.limit.Allow()
	}
	_, err := conn(t, a, b.ID()).Throughput(within(t))
	wantReset(t, err, proto.CodeTooMany)
	if b.perf.busy.Load() {
		t.Error("the next one would be refused for ever")
	}
}

// Whoever says nothing after its request is not waited for.
func TestASilentDiallerIsCutOff(t *testing.T) {
	a, b := measured(t, onTCP, everybody)
	s, err := a.host.NewStream(within(t), b.host.ID(), proto.PerfProtocol)
	must(t, err)
	defer s.Reset()
	must(t, proto.WritePerf(s, proto.PerfRequest{Up: proto.MaxPerf, Down: 10}))
	began := time.Now()
	got, err := io.ReadAll(s) // go, count, ten bytes; then a reset at the latest
	if len(got) != 1+4+10 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	eventually(t, "it is free again", func() bool { return !b.perf.busy.Load() })
	if took := time.Since(began); took > 5*proto.PerfTime {
		t.Errorf("that took %s", took)
	}
}

// What a request asks for over the bound is not begun, and no more is sent than
// was asked for.
func TestARequestBoundsWhatIsSent(t *testing.T) {
	a, b := measured(t, onTCP, everybody)
	for name, c := range map[string]struct {
		wire string
		want int
	}{
		"too much":  {"\x00\x00\x00\x00\xff\xff\xff\xff", 0},
		"a little":  {"\x00\x00\x00\x00\x00\x00\x00\x07", 1 + 4 + 7},
		"cut short": {"\x00\x00", 0},
	} {
		s, err := a.host.NewStream(within(t), b.host.ID(), proto.PerfProtocol)
		must(t, err)
		_, err = s.Write([]byte(c.wire))
		must(t, err)
		must(t, s.CloseWrite())
		got, err := io.ReadAll(s)
		if len(got) != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		eventually(t, "it is free again", func() bool { return !b.perf.busy.Load() })
	}
}

// A responder that claims more than was sent is not believed.
func TestThroughputIsNoMoreThanWasSent(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	plain.SetStreamHandler(proto.PerfProtocol, func(s network.Stream) {
		defer s.Close()
		if _, err := proto.ReadPerf(s); err != nil {
			return
		}
		_, _ = s.Write([]byte{proto.PerfGo})
		_, _ = io.Copy(io.Discard, s)
		_ = proto.WritePerfCount(s, 1<<31)
		_, _ = s.Write(make([]byte, 100))
	})
	reach(t, a, plain)
	got, err := conn(t, a.Node, plain.ID().String()).Throughput(within(t))
	if err != nil || got.UpBytes > proto.MaxPerf || got.DownBytes != 100 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestKuboCanNotMeasure(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	reach(t, a, plain)
	_, err := conn(t, a.Node, plain.ID().String()).Throughput(within(t))
	wantReset(t, err, proto.CodeNoService)
}

func TestAMeasurementEndsWithItsContext(t *testing.T) {
	a, plain := newTestNode(t, onTCP), newPlain(t)
	asked := make(chan network.Stream, 1)
	plain.SetStreamHandler(proto.PerfProtocol, func(s network.Stream) { asked <- s })
	reach(t, a, plain)
	ctx, cancel := context.WithCancel(within(t))
	go func() { <-asked; cancel() }()
	if got, err := conn(t, a.Node, plain.ID().String()).Throughput(ctx); err == nil {
		t.Errorf("%+v out of nothing", got)
	}
}

// relayed is a pair whose only way goes through a relay with that limit.
func relayed(t testing.TB, limit int64) (dialler, listener, relay *Node) {
	t.Helper()
	relay = newNodeOf(t, Config{Relay: &RelayService{Allowed: everybody, Bytes: limit}})
	listener = newRelayed(t, relay, "")
	dialler = newNodeOf(t, Config{})
	circuit := circuitAddr(infoOf(relay).Addrs[0], relay.host.ID())
	connect(t, dialler, peer.AddrInfo{ID: listener.host.ID(), Addrs: multiaddrs(t, circuit.String())})
	return dialler, listener, relay
}

// newRelayed has a slot at a relay, and its key in a file, of its own where that
// has no name.
func newRelayed(t testing.TB, relay *Node, keyPath string) *Node {
	t.Helper()
	n := newNodeOf(t, Config{KeyPath: keyPath, Relays: []peer.AddrInfo{infoOf(relay)}, Trusted: everybody, Named: everybody})
	for _, r := range n.AwaitRelays(within(t)) {
		if !r.Reserved {
			t.Fatalf("%+v", r)
		}
	}
	return n
}

func TestARelaysLimitIsNotSpentOnAMeasurement(t *testing.T) {
	a, b, relay := relayed(t, 128<<10)
	c := conn(t, a, b.ID())
	if !c.Relayed || c.Relay != relay.ID() {
		t.Fatalf("%+v", c)
	}
	if _, err := c.Throughput(within(t)); !errors.Is(err, ErrLimited) {
		t.Errorf("%v", err)
	}
	// nor does a node serve one who does not care
	s, err := a.host.NewStream(network.WithAllowLimitedConn(within(t), "test"), b.host.ID(), proto.PerfProtocol)
	must(t, err)
	_, err = s.Read(make([]byte, 1))
	wantReset(t, openError(proto.PerfProtocol, err), proto.CodeRefused)
}

// Over a relay without a limit it is measured as any other way.
func TestARelayedWayIsMeasured(t *testing.T) {
	a, b, _ := relayed(t, 0)
	got, err := conn(t, a, b.ID()).Throughput(within(t))
	if err != nil || got.UpBytes == 0 || got.DownBytes == 0 {
		t.Errorf("%+v, %v", got, err)
	}
}
