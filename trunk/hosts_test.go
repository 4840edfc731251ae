package trunk

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"

	"p2ptun/proto"
	"p2ptun/registry"
)

const (
	onTCP     = "/ip4/127.0.0.1/tcp/0"
	onQUIC    = "/ip4/127.0.0.1/udp/0/quic-v1"
	nowhere   = "" // to be reached over a relay alone
	hostProto = "/test/trunk"
)

// hostLink is a stream of libp2p that counts what is written and read.
type hostLink struct {
	network.Stream
	path  registry.Path
	bytes *atomic.Int64
	out   *atomic.Int64 // of those, what was written
}

func (l hostLink) Reset()              { _ = l.Stream.Reset() }
func (l hostLink) Path() registry.Path { return l.path }

func (l hostLink) Read(b []byte) (int, error) {
	n, err := l.Stream.Read(b)
	l.bytes.Add(int64(n))
	return n, err
}

func (l hostLink) Write(b []byte) (int, error) {
	n, err := l.Stream.Write(b)
	l.bytes.Add(int64(n))
	l.out.Add(int64(n))
	return n, err
}

// hostWorld is a client and a server on hosts of libp2p.
type hostWorld struct {
	*Client
	server   *Server
	from, to host.Host
	dials    atomic.Int64
	direct   atomic.Int64 // bytes over links that are not relayed
	relayed  atomic.Int64 // and over those that are
	sent     atomic.Int64 // of those, what the client has written
	moved    atomic.Int64
	serving  sync.WaitGroup
}

func newHost(t testing.TB, opts ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append(opts, libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))...)
	must(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// newHostWorld makes both hosts; dial gives a connected client a stream.
func newHostWorld(t testing.TB, addr string, accept func(*Stream), dial func(context.Context, *hostWorld) (network.Stream, error)) *hostWorld {
	t.Helper()
	listen := libp2p.ListenAddrStrings(addr)
	if addr == nowhere {
		listen = libp2p.NoListenAddrs
	}
	w := &hostWorld{from: newHost(t, libp2p.NoListenAddrs, libp2p.EnableRelay()), to: newHost(t, listen, libp2p.EnableRelay())}
	w.server = &Server{
		Allowed: func(string, string) bool { return true },
		Accept:  func(_, _ string, st *Stream) { accept(st) },
		Survive: func(string) time.Duration { return time.Hour },
		Budget:  NewBudget(DefaultBudget),
	}
	w.Client = &Client{
		Peer: w.to.ID().String(), Protocol: testProtocol, Survive: time.Hour, Budget: NewBudget(DefaultBudget),
		Watch: func() (bool, <-chan struct{}) { return true, nil },
		Told: func(e Event) {
			if e.Op == Moved {
				w.moved.Add(1)
			}
		},
		Dial: func(ctx context.Context) (Link, error) {
			w.dials.Add(1)
			s, err := dial(ctx, w)
			if err != nil {
				return nil, err
			}
			l := w.link(s)
			if l.path.Relayed {
				l.out = &w.sent
			}
			return l, nil
		},
	}
	w.to.SetStreamHandler(hostProto, func(s network.Stream) {
		w.serving.Go(func() { _ = w.server.Serve(w.link(s), s.Conn().RemotePeer().String(), testProtocol) })
	})
	t.Cleanup(func() {
		w.Client.Close(proto.CodeClosed)
		w.server.Close(proto.CodeClosed)
		w.to.RemoveStreamHandler(hostProto)
		w.serving.Wait()
	})
	return w
}

func (w *hostWorld) link(s network.Stream) hostLink {
	l := hostLink{Stream: s, bytes: &w.direct, out: new(atomic.Int64)}
	if _, err := s.Conn().RemoteMultiaddr().ValueForProtocol(ma.P_CIRCUIT); err == nil {
		l.path.Relayed, l.bytes = true, &w.relayed
	}
	return l
}

// directly is a dial that knows where the server listens.
func directly(ctx context.Context, w *hostWorld) (network.Stream, error) {
	w.from.Peerstore().AddAddrs(w.to.ID(), w.to.Addrs(), peerstore.PermanentAddrTTL)
	if _, err := w.from.Network().DialPeer(network.WithForceDirectDial(ctx, "test"), w.to.ID()); err != nil {
		return nil, err
	}
	return w.from.NewStream(ctx, w.to.ID(), hostProto)
}

// hangUp closes the connections between the two.
func (w *hostWorld) hangUp() { _ = w.from.Network().ClosePeer(w.to.ID()) }

// download is a stream's bytes at the server as they come, with their sum.
type download struct {
	got  atomic.Int64
	sum  hash.Hash
	done chan error
}

func newDownload() *download { return &download{sum: sha256.New(), done: make(chan error, 1)} }

func (d *download) take(st *Stream) {
	buf := make([]byte, 64<<10)
	for {
		n, err := st.Read(buf)
		d.sum.Write(buf[:n])
		d.got.Add(int64(n))
		if err == nil {
			continue
		}
		if err == io.EOF {
			_ = st.CloseWrite()
			_ = st.Close()
			err = nil
		}
		d.done <- err
		return
	}
}

// upload sends so many bytes over one stream, and compares the sums.
func (w *hostWorld) upload(t *testing.T, d *download, size int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	st, err := w.Open(ctx)
	for err != nil && ctx.Err() == nil { // the first link may be cut before there is a session
		st, err = w.Open(ctx)
	}
	must(t, err)
	stop := context.AfterFunc(ctx, func() { _ = st.Reset(proto.CodeSilence) }) // else it would hang
	defer stop()
	sum := sha256.New()
	r := rand.NewChaCha8([32]byte{2})
	buf := make([]byte, 64<<10)
	for left := size; left > 0; left -= min(left, len(buf)) {
		b := buf[:min(left, len(buf))]
		_, _ = r.Read(b)
		sum.Write(b)
		_, err := st.Write(b)
		must(t, err)
	}
	must(t, st.CloseWrite())
	must(t, <-d.done)
	_, err = io.ReadAll(st)
	must(t, err)
	must(t, st.Close())
	if got := d.got.Load(); got != int64(size) || string(d.sum.Sum(nil)) != string(sum.Sum(nil)) {
		t.Errorf("%d bytes of %d arrived, or other ones", got, size)
	}
}

// during does something every 50 ms, and counts how often bytes had flowed
// since the last time, and go on to; stop ends it.
func (d *download) during(size int, f func()) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	flowing := 0
	var doing sync.WaitGroup
	doing.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for before := int64(0); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			got := d.got.Load()
			if got > before && got < int64(size) {
				flowing++
			}
			f()
			before = d.got.Load()
		}
	})
	return func() int { cancel(); doing.Wait(); return flowing }
}

// much is 1 GiB; a quarter of it where the race detector runs, or time is short.
func much() int {
	if raceEnabled || testing.Short() {
		return 256 << 20
	}
	return 1 << 30
}

// The connection is closed every 50 ms while 1 GiB goes over TCP (256 MiB with
// -race or -short), and an eighth of that over QUIC.
func TestBytesAreExactOverConnectionsThatAreClosedAllTheTime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		addr string
		size int
		cuts int // at least
	}{"TCP": {onTCP, much(), 10}, "QUIC": {onQUIC, much() / 8, 5}} {
		t.Run(name, func(t *testing.T) {
			d := newDownload()
			w := newHostWorld(t, c.addr, d.take, directly)
			stop := d.during(c.size, w.hangUp)
			w.upload(t, d, c.size)
			cuts := stop()
			if cuts < c.cuts {
				t.Errorf("only %d cuts while bytes flowed", cuts)
			}
			t.Logf("%d MiB, %d cuts while bytes flowed, %d dials", c.size>>20, cuts, w.dials.Load())
		})
	}
}

// relayNode is a relay that can be killed, and comes back as the same.
type relayNode struct {
	host.Host
	service *relay.Relay
}

func newRelay(t testing.TB, limit *relay.RelayLimit, opts ...libp2p.Option) *relayNode {
	t.Helper()
	h := newHost(t, append(opts, libp2p.DisableRelay())...)
	res := relay.DefaultResources()
	res.Limit, res.MaxCircuits, res.MaxReservationsPerIP = limit, 1000, 1000
	service, err := relay.New(h, relay.WithResources(res))
	must(t, err)
	t.Cleanup(func() { _ = service.Close() })
	return &relayNode{h, service}
}

func (r *relayNode) kill() { _ = r.service.Close(); _ = r.Close() }

// info is where the relay is.
func (r *relayNode) info() peer.AddrInfo { return *host.InfoFromHost(r.Host) }

// reserve has the server be reached over the relay.
func (w *hostWorld) reserve(t testing.TB, at peer.AddrInfo) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := w.to.Connect(ctx, at)
	for ; ctx.Err() == nil; err = w.to.Connect(ctx, at) {
		if err == nil {
			_, err = client.Reserve(ctx, w.to, at)
		}
		if err == nil {
			return
		}
		t.Logf("reserve: %v", err) // over a connection of a relay that was killed just now
		_ = w.to.Network().ClosePeer(at.ID)
	}
	t.Errorf("reserve: %v", err)
}

// over is a dial over a fresh circuit.
func over(relay func() peer.AddrInfo) func(context.Context, *hostWorld) (network.Stream, error) {
	return func(ctx context.Context, w *hostWorld) (network.Stream, error) {
		w.hangUp() // else libp2p would take the circuit that is used up
		at := relay()
		if err := w.from.Connect(ctx, at); err != nil {
			return nil, err
		}
		circuit, err := ma.NewMultiaddr("/p2p/" + at.ID.String() + "/p2p-circuit")
		if err != nil {
			return nil, err
		}
		w.from.Peerstore().ClearAddrs(w.to.ID()) // identify has told the direct ones
		ctx = network.WithAllowLimitedConn(ctx, "test")
		if err := w.from.Connect(ctx, peer.AddrInfo{ID: w.to.ID(), Addrs: []ma.Multiaddr{circuit}}); err != nil {
			return nil, err
		}
		return w.from.NewStream(ctx, w.to.ID(), hostProto)
	}
}

// 4 MiB go over a relay whose circuits carry 128 KiB each.
func TestMoreThanACircuitCarriesGoesOverFreshOnes(t *testing.T) {
	t.Parallel()
	r := newRelay(t, &relay.RelayLimit{Duration: time.Minute, Data: 128 << 10}, libp2p.ListenAddrStrings(onTCP))
	d := newDownload()
	w := newHostWorld(t, nowhere, d.take, over(r.info))
	w.reserve(t, r.info())
	const size = 4 << 20
	w.upload(t, d, size)
	if n := w.dials.Load(); n < size/(128<<10) {
		t.Errorf("%d circuits", n)
	}
	if n := w.direct.Load(); n != 0 {
		t.Errorf("%d bytes went directly", n)
	}
	t.Logf("%d circuits", w.dials.Load())
}

// The only relay is killed in the middle of a transfer, and comes back.
func TestATransferOutlivesItsRelay(t *testing.T) {
	t.Parallel()
	r := newRelay(t, nil, libp2p.ListenAddrStrings(onTCP))
	at := r.info()
	d := newDownload()
	w := newHostWorld(t, nowhere, d.take, over(func() peer.AddrInfo { return at }))
	w.reserve(t, at)
	const size = 32 << 20
	var killing sync.WaitGroup
	killing.Go(func() {
		d.wait(t, size/4)
		r.kill()
		again := newRelay(t, nil, libp2p.ListenAddrs(at.Addrs...), libp2p.Identity(r.Peerstore().PrivKey(at.ID)))
		w.reserve(t, again.info())
	})
	w.upload(t, d, size)
	killing.Wait()
	if w.dials.Load() < 2 {
		t.Error("the relay was not missed")
	}
}

// wait returns when so much has come.
func (d *download) wait(t testing.TB, n int64) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for d.got.Load() < n {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			return
		}
	}
}

// A trunk moves from a relay to a direct connection in the middle of a
// transfer: nothing goes to the relay afterwards.
func TestAMoveLeavesTheRelay(t *testing.T) {
	t.Parallel()
	r := newRelay(t, nil, libp2p.ListenAddrStrings(onTCP))
	d := newDownload()
	relayed := over(r.info)
	w := newHostWorld(t, onTCP, d.take, func(ctx context.Context, w *hostWorld) (network.Stream, error) {
		if d.got.Load() == 0 {
			return relayed(ctx, w)
		}
		return directly(ctx, w)
	})
	w.reserve(t, r.info())
	size := much() / 8
	var moving sync.WaitGroup
	var before int64
	moving.Go(func() {
		d.wait(t, int64(size)/8)
		if err := w.Move(t.Context()); err != nil {
			t.Errorf("move: %v", err)
		}
		before = w.sent.Load()
	})
	w.upload(t, d, size)
	moving.Wait()
	// a write that the move has cut short may be counted late
	if late := w.sent.Load() - before; late > maxData+2*headerSize || before == 0 {
		t.Errorf("%d bytes were written to the relay before the move, %d after it", before, late)
	}
	if path, ok := w.Path(); !ok || path.Relayed || w.moved.Load() != 1 {
		t.Errorf("moved %d times, to %+v", w.moved.Load(), path)
	}
	t.Logf("%d bytes over the relay", w.sent.Load())
}

// A connection of QUIC has 256 streams at most; a trunk has more in one.
func TestAThousandStreamsShareOneConnectionOfQUIC(t *testing.T) {
	t.Parallel()
	const streams = 1000
	var live, most atomic.Int64
	all := make(chan struct{})
	w := newHostWorld(t, onQUIC, func(st *Stream) {
		if most.Add(1) == streams {
			close(all)
		}
		live.Add(1)
		echo(st)
		live.Add(-1)
	}, directly)
	var using sync.WaitGroup
	for i := range streams {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		st, err := w.Open(ctx)
		cancel()
		must(t, err)
		using.Go(func() {
			<-all // they are there at once
			exchange(t, st, 20_000, uint64(i))
		})
	}
	<-all
	if n := live.Load(); n < streams-1 {
		t.Errorf("%d streams at once", n)
	}
	using.Wait()
	if n := w.dials.Load(); n != 1 {
		t.Errorf("%d links", n)
	}
}

// Without a socket for each, of which a process may not have as many: every one
// is there at once, and carries bytes of its own.
func TestTwentyThousandStreamsShareOneConnectionOfTCP(t *testing.T) {
	const streams = 20_000
	came := make(chan *Stream, streams)
	w := newHostWorld(t, onTCP, func(st *Stream) { came <- st }, directly)
	ours, theirs := make([]*Stream, streams), make([]*Stream, streams)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for i := range ours {
		st, err := w.Open(ctx)
		must(t, err)
		ours[i] = st
		_, err = st.Write(wordOf(i))
		must(t, err)
	}
	for i := range theirs {
		theirs[i] = <-came
	}
	for _, st := range theirs { // all are there
		word := make([]byte, len(wordOf(0)))
		_, err := io.ReadFull(st, word)
		must(t, err)
		_, err = st.Write(append(word, word...))
		must(t, err)
		must(t, st.CloseWrite())
	}
	for i, st := range ours {
		must(t, st.CloseWrite())
		if got, err := io.ReadAll(st); err != nil || string(got) != string(append(wordOf(i), wordOf(i)...)) {
			t.Fatalf("stream %d of %d gives %q: %v", i, streams, got, err)
		}
		_ = st.Close()
		_ = theirs[i].Close()
	}
	if n := w.dials.Load(); n != 1 {
		t.Errorf("%d links", n)
	}
}

// wordOf is what the i-th stream says.
func wordOf(i int) []byte { return fmt.Appendf(nil, "this is %5d", i) }
