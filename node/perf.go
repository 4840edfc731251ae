package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multistream"
	"golang.org/x/time/rate"

	"p2ptun/proto"
)

// How fast a way is: the protocol is in proto/perf.go.

const (
	perfChunk = 64 << 10
	// perfEvery is how often this node serves a measurement, after the first
	// perfBurst: it must not be a way around a limit on what a peer may use.
	perfEvery = 10 * time.Second
	perfBurst = 4
	// perfDial bounds the dialler's part.
	perfDial = 3 * proto.PerfTime
)

// ErrLimited is returned by Throughput over a relay with a limit.
var ErrLimited = errors.New("a relay's limit is not spent on a measurement")

// perfServer serves measurements, one at a time.
type perfServer struct {
	busy  atomic.Bool
	limit *rate.Limiter
}

func newPerfServer() *perfServer {
	return &perfServer{limit: rate.NewLimiter(rate.Every(perfEvery), perfBurst)}
}

// handlePerf resets the stream of who is not let in by name before it reads or
// allocates anything for it.
func (n *Node) handlePerf(s network.Stream) {
	code, ok := n.admitPerf(s)
	if !ok {
		_ = s.ResetWithError(network.StreamErrorCode(code))
		return
	}
	defer n.handlers.Done()
	defer n.perf.busy.Store(false)
	_ = s.SetDeadline(time.Now().Add(proto.PerfTime))
	if err := servePerf(s); err != nil {
		n.log.Debug("serve a measurement", "peer", s.Conn().RemotePeer(), "err", err)
		_ = s.Reset()
		return
	}
	_ = s.Close()
}

// admitPerf says ok where the measurement is to be served; then it is counted
// as the one that is.
func (n *Node) admitPerf(s network.Stream) (code proto.Code, ok bool) {
	switch {
	case !n.isNamed(s.Conn().RemotePeer()), s.Conn().Stat().Limited:
		return proto.CodeRefused, false
	case !n.perf.busy.CompareAndSwap(false, true):
		return proto.CodeTooMany, false
	}
	if !n.perf.limit.Allow() || !n.begin() {
		n.perf.busy.Store(false)
		return proto.CodeTooMany, false
	}
	return 0, true
}

// isNamed says that this node's owner has named that peer: in a rule, as a
// relay, or as the peer of a tunnel.
func (n *Node) isNamed(p peer.ID) bool {
	return n.isWanted(p) || n.isRelay(p) || n.named != nil && n.named(p.String())
}

// servePerf is the responder's part.
func servePerf(s network.Stream) error {
	req, err := proto.ReadPerf(s)
	if err != nil {
		return err
	}
	if _, err := s.Write([]byte{proto.PerfGo}); err != nil {
		return err
	}
	end := time.Now().Add(proto.PerfTime)
	_ = s.SetReadDeadline(time.Now().Add(proto.PerfPhase))
	buf := make([]byte, perfChunk)
	came, _ := io.CopyBuffer(sink{}, io.LimitReader(s, int64(req.Up)), buf)
	if err := proto.WritePerfCount(s, uint32(came)); err != nil {
		return err
	}
	clear(buf)
	_ = s.SetWriteDeadline(end)
	if _, err := send(s, buf, req.Down); err != nil {
		return err
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	_ = s.SetReadDeadline(end)
	// The end must not overtake what the dialler has not read yet.
	_, err = io.CopyBuffer(sink{}, io.LimitReader(s, proto.MaxPerf), buf)
	return err
}

// sink is io.Discard without a buffer of its own, which would be a small one.
type sink struct{}

func (sink) Write(b []byte) (int, error) { return len(b), nil }

// send writes size bytes, or as many as go in PerfPhase.
func send(w io.Writer, chunk []byte, size uint32) (sent uint32, err error) {
	for end := time.Now().Add(proto.PerfPhase); sent < size && time.Now().Before(end); {
		n, err := w.Write(chunk[:min(uint32(len(chunk)), size-sent)])
		sent += uint32(n)
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// Throughput is what one measurement found.
type Throughput struct {
	UpBytes, DownBytes int64
	UpTime, DownTime   time.Duration
}

// Up and Down are in bytes a second; 0 where nothing came.
func (t Throughput) Up() float64   { return perSecond(t.UpBytes, t.UpTime) }
func (t Throughput) Down() float64 { return perSecond(t.DownBytes, t.DownTime) }

func perSecond(n int64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

// perfStream is the dialler's end: negotiation goes with the first bytes.
type perfStream struct {
	network.Stream
	io.ReadWriter
}

func (s perfStream) Read(b []byte) (int, error)  { return s.ReadWriter.Read(b) }
func (s perfStream) Write(b []byte) (int, error) { return s.ReadWriter.Write(b) }

// Throughput sends up to 8 MiB each way over that connection, for little more
// than a second each, and times them. Errors: ErrLimited; a
// *registry.ResetError of CodeNoService (no p2ptun), CodeRefused (not let in by
// name) or CodeTooMany.
func (c PeerConn) Throughput(ctx context.Context) (t Throughput, err error) {
	if c.conn.Stat().Limited {
		return t, ErrLimited
	}
	ctx, cancel := context.WithTimeout(ctx, perfDial)
	defer cancel()
	raw, err := c.conn.NewStream(ctx)
	if err != nil {
		return t, openError(proto.PerfProtocol, err)
	}
	defer raw.Reset() // nothing is left to be read by then, or to be wanted
	defer context.AfterFunc(ctx, func() { _ = raw.Reset() })()
	if err := raw.SetProtocol(proto.PerfProtocol); err != nil {
		return t, fmt.Errorf("measure: %w", err)
	}
	s := perfStream{raw, multistream.NewMSSelect(raw, raw.Protocol())}
	if t, err = measure(s, proto.PerfRequest{Up: proto.MaxPerf, Down: proto.MaxPerf}); err != nil {
		return Throughput{}, openError(proto.PerfProtocol, err)
	}
	return t, nil
}

// measure is the dialler's part.
func measure(s perfStream, req proto.PerfRequest) (t Throughput, err error) {
	buf := make([]byte, perfChunk)
	if err := proto.WritePerf(s, req); err != nil {
		return t, err
	}
	if _, err := io.ReadFull(s, buf[:1]); err != nil {
		return t, err
	}
	if buf[0] != proto.PerfGo {
		return t, errors.New("the peer does not follow the protocol")
	}
	clear(buf)
	began := time.Now()
	_ = s.SetWriteDeadline(began.Add(proto.PerfPhase))
	sent, _ := send(s, buf, req.Up) // what did not go in time is not counted
	_ = s.SetWriteDeadline(began.Add(perfDial))
	if err := s.CloseWrite(); err != nil {
		return t, err
	}
	count, err := proto.ReadPerfCount(s)
	if err != nil {
		return t, err
	}
	t.UpBytes, t.UpTime = int64(min(count, sent)), time.Since(began)
	began = time.Now()
	t.DownBytes, err = io.CopyBuffer(sink{}, io.LimitReader(s, int64(req.Down)), buf)
	t.DownTime = time.Since(began)
	if t.DownBytes > 0 {
		err = nil // cut by a deadline: what came, came
	}
	return t, err
}
