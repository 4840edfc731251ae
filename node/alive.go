package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multistream"
	"github.com/quic-go/quic-go"
)

// Liveness: libp2p notices that nobody is at the other end after 30 to 45 s.
// The connections that something depends on are asked every few seconds, each
// on its own: a dead one must not hide behind a live one.

const (
	// askAlive is the pause between pings, aliveLimit how long one may take,
	// and hurriedLimit how long where there is a reason to doubt.
	askAlive     = 2500 * time.Millisecond
	aliveLimit   = 5 * time.Second
	hurriedLimit = 1500 * time.Millisecond
	// maxPings bounds the connections that are asked at the same time.
	maxPings = 512
)

// traffic counts what went over one connection.
type traffic struct{ in, out atomic.Int64 }

// prober asks connections whether they live, and closes those that do not.
type prober struct {
	log   *slog.Logger
	conns func() []network.Conn // those that something depends on

	mu      sync.Mutex
	traffic map[network.Conn]*traffic
	lines   map[network.Conn]*line
	pings   sync.WaitGroup
}

// line is the ping stream of one connection. Whoever holds busy uses it.
type line struct {
	busy chan struct{}
	rw   io.ReadWriter // stream, with its negotiation

	last atomic.Int64 // round trip, in ns; 0 for none yet

	mu     sync.Mutex
	stream network.Stream // nil until it is opened
}

func (l *line) set(s network.Stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stream, l.rw = s, multistream.NewMSSelect(s, protocol.ID(ping.ID))
}

// hangUp ends a ping that is under way, and the stream with it.
func (l *line) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stream != nil {
		_ = l.stream.Reset()
	}
}

func newProber(log *slog.Logger, conns func() []network.Conn) *prober {
	return &prober{log: log, conns: conns, traffic: map[network.Conn]*traffic{}, lines: map[network.Conn]*line{}}
}

// of is where a stream of the connection counts its bytes.
func (p *prober) of(c network.Conn) *traffic {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.traffic[c]
	if t == nil {
		t = &traffic{}
		if !c.IsClosed() {
			p.traffic[c] = t
		}
	}
	return t
}

// rtt is the last round trip of a connection; 0 for none yet.
func (p *prober) rtt(c network.Conn) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.lines[c]; l != nil {
		return time.Duration(l.last.Load())
	}
	return 0
}

// forget drops what is known of a connection that has ended.
func (p *prober) forget(c network.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.traffic, c)
	delete(p.lines, c)
}

// serve asks until ctx ends.
func (p *prober) serve(ctx context.Context) {
	tick := time.NewTicker(askAlive)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			p.pings.Wait()
			return
		case <-tick.C:
			p.askAll(ctx, aliveLimit)
		}
	}
}

// askAll asks every connection that is not being asked already.
func (p *prober) askAll(ctx context.Context, limit time.Duration) {
	for _, c := range p.conns() {
		l := p.take(c)
		if l == nil {
			continue
		}
		p.pings.Go(func() {
			defer func() { <-l.busy }()
			p.ask(ctx, c, l, limit)
		})
	}
}

// doubt asks one connection, which there is a reason to doubt, unless it is
// being asked already.
func (p *prober) doubt(ctx context.Context, c network.Conn) {
	if l := p.take(c); l != nil {
		defer func() { <-l.busy }()
		p.ask(ctx, c, l, hurriedLimit)
	}
}

// take gives the line of a connection for one ping, or nil.
func (p *prober) take(c network.Conn) *line {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.lines[c]
	if l == nil {
		if c.IsClosed() || len(p.lines) >= maxPings {
			return nil
		}
		l = &line{busy: make(chan struct{}, 1)}
		p.lines[c] = l
	}
	select {
	case l.busy <- struct{}{}:
		return l
	default:
		return nil
	}
}

// ask pings once, and closes the connection where nothing says that it lives.
func (p *prober) ask(ctx context.Context, c network.Conn, l *line, limit time.Duration) {
	t := p.of(c)
	last := t.snapshot(c)
	answered := make(chan error, 1)
	go func() { answered <- l.ping(ctx, c) }()
	for {
		select {
		case err := <-answered:
			if errors.Is(err, errDeaf) {
				p.log.Debug("no ping", "peer", c.RemotePeer(), "err", err)
			}
			return
		case <-ctx.Done():
			l.hangUp()
			<-answered
			return
		case <-time.After(limit):
		}
		now := t.snapshot(c)
		if now.isDead(last) {
			p.log.Info("a dead connection", "peer", c.RemotePeer(), "addr", c.RemoteMultiaddr())
			closeDead(c)
			l.hangUp()
			<-answered
			return
		}
		last = now
	}
}

// counts is a connection's traffic at one moment: bytes of streams and, over
// QUIC, packets.
type counts struct {
	in, out       int64
	quic          bool
	sent, arrived uint64
}

func (t *traffic) snapshot(c network.Conn) counts {
	n := counts{in: t.in.Load(), out: t.out.Load()}
	var conn *quic.Conn
	if n.quic = c.As(&conn) && conn != nil; n.quic {
		stats := conn.ConnectionStats()
		n.sent, n.arrived = stats.PacketsSent, stats.PacketsReceived
	}
	return n
}

// isDead says that nothing shows life since an earlier moment, while a ping
// waited for its answer. Over QUIC the ping may not have left at all: where
// nobody reads the connection's streams its window is used up. So only packets
// that were sent and not acknowledged count. Over TCP the kernel judges as well
// where bytes go out: see unackedLimit.
func (n counts) isDead(last counts) bool {
	if n.quic {
		return n.sent > last.sent && n.arrived == last.arrived
	}
	return n.in == last.in && n.out == last.out
}

// closeDead closes a connection, without waiting for what it still tries to
// say.
func closeDead(c network.Conn) { go func() { _ = c.Close() }() }

// errDeaf is returned for a peer that does not answer pings at all.
var errDeaf = errors.New("peer has no ping")

// ping sends one ping and waits for its answer, or for the end of the stream.
// A stream lives for half a minute at the peer's, so one that fails is opened
// anew, once.
func (l *line) ping(ctx context.Context, c network.Conn) error {
	if l.rw != nil && l.exchange() == nil {
		return nil
	}
	if err := l.open(ctx, c); err != nil {
		return err
	}
	return l.exchange()
}

func (l *line) open(ctx context.Context, c network.Conn) error {
	l.hangUp()
	s, err := c.NewStream(network.WithAllowLimitedConn(ctx, "ping"))
	if err != nil {
		return err
	}
	if err := s.SetProtocol(ping.ID); err != nil {
		_ = s.Reset()
		return err
	}
	l.set(s)
	return nil
}

// exchange sends 32 random bytes, as the ping protocol has it, and reads them
// back.
func (l *line) exchange() error {
	began := time.Now()
	sent, got := make([]byte, ping.PingSize), make([]byte, ping.PingSize)
	_, _ = rand.Read(sent)
	if _, err := l.rw.Write(sent); err != nil {
		return err
	}
	if _, err := io.ReadFull(l.rw, got); err != nil {
		if errors.As(err, new(multistream.ErrNotSupported[protocol.ID])) {
			return errDeaf
		}
		return err
	}
	if !bytes.Equal(sent, got) {
		return errDeaf
	}
	l.last.Store(int64(time.Since(began)))
	return nil
}
