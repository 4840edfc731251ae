package listen

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
	"p2ptun/registry"
)

var errDown = errors.New("connection refused")

func down(context.Context) (net.Conn, error) { return nil, errDown }

// hang takes as long as it may.
func hang(ctx context.Context) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAccessIsAskedBeforeAnythingIsDialled(t *testing.T) {
	r := newRig()
	_, stop := r.run(t, registry.Tunnel{})
	defer stop()
	before := r.dialCount()
	for range 10 {
		wantReset(t, r.serve(stranger, "/x/t"), proto.CodeRefused)
	}
	if n := r.dialCount() - before; n != 0 {
		t.Errorf("%d dials for a stranger", n)
	}
	if len(r.refused) != 10 || r.refused[0] != stranger+" /x/t" {
		t.Errorf("told of %v", r.refused)
	}
}

// A stranger is refused in the same way whether the service exists or not: no
// step after the question of access is taken, so none can differ. Without a
// Registry and with a Dial that fails the test, any such step would show.
func TestARefusalTakesTheSamePathWhetherTheServiceExistsOrNot(t *testing.T) {
	s := &Service{
		Allowed: func(string, string) bool { return false },
		Dial: func(context.Context, string, string) (net.Conn, error) {
			t.Error("dialled")
			return nil, errDown
		},
	}
	for _, protocol := range []string{"/x/t", "/x/none", "\x1b[2J", ""} {
		end := newPeerEnd()
		s.Serve(registry.Incoming{Peer: stranger, Protocol: protocol, End: end})
		wantReset(t, end, proto.CodeRefused)
		if v := s.Answer(stranger, protocol); v != proto.Verdict_VERDICT_REFUSED {
			t.Errorf("%q: the answer is %v", protocol, v)
		}
	}
}

func TestARefusalTakesTheSameTimeWhetherTheServiceExistsOrNot(t *testing.T) {
	r := newRig()
	r.Refused = nil
	_, stop := r.run(t, registry.Tunnel{})
	defer stop()
	const rounds = 401
	times := map[string][]time.Duration{}
	order := []string{"/x/t", "/x/n"}
	for range rounds { // in turn, so that noise hits both
		slices.Reverse(order)
		for _, protocol := range order {
			start := time.Now()
			for range 20 {
				r.serve(stranger, protocol)
				r.Answer(stranger, protocol)
			}
			times[protocol] = append(times[protocol], time.Since(start))
		}
	}
	median := func(p string) float64 { slices.Sort(times[p]); return float64(times[p][rounds/2]) }
	if ratio := median("/x/t") / median("/x/n"); ratio < 0.5 || ratio > 2 {
		t.Errorf("a service that exists takes %.2f times as long to refuse as one that does not", ratio)
	}
}

func TestAnAllowedPeerIsToldWhatIsMissing(t *testing.T) {
	r := newRig()
	e, stop := r.run(t, registry.Tunnel{})
	wantReset(t, r.serve(friend, "/x/none"), proto.CodeNoService)
	r.answerDialsBy(down)
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeTargetDown)
	if s := e.Status(); s.State != registry.StateReady || !strings.Contains(s.Reason, errDown.Error()) {
		t.Errorf("state %s (%s)", s.State, s.Reason)
	}
	r.answerDialsBy(new(target).dial)
	e.Close(registry.ErrClosed)
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeNoService)
	stop()
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeNoService)
}

func TestATargetThatIsBackIsSeenByTheNextConnection(t *testing.T) {
	r := newRig()
	service := new(target)
	defer service.close()
	r.answerDialsBy(down)
	e, stop := r.run(t, registry.Tunnel{})
	defer stop()
	r.answerDialsBy(service.dial)
	r.serve(friend, "/x/t")
	if s := e.Status(); s.Reason != "" || s.Streams != 1 {
		t.Errorf("%d streams, reason %q", s.Streams, s.Reason)
	}
}

func TestADialHasATimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		r.answerDialsBy(hang)
		start := time.Now()
		_, stop := r.run(t, registry.Tunnel{})
		defer stop()
		if d := time.Since(start); d != dialLimit {
			t.Errorf("the first try took %v", d)
		}
		start = time.Now()
		wantReset(t, r.serve(friend, "/x/t"), proto.CodeTargetDown)
		if d := time.Since(start); d != dialLimit {
			t.Errorf("a stream was reset after %v, want %v", d, dialLimit)
		}
	})
}

func TestTheEndOfATunnelEndsItsDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		r.answerDialsBy(hang)
		e, stop := r.run(t, registry.Tunnel{})
		done := make(chan *peerEnd)
		go func() { done <- r.serve(friend, "/x/t") }()
		synctest.Wait()
		start := time.Now()
		e.Close(registry.ErrClosed)
		if end := <-done; len(end.reset) != 1 || time.Since(start) != 0 {
			t.Errorf("after %v the stream is reset %d times", time.Since(start), len(end.reset))
		}
		stop()
	})
}

// The right is taken away while the target is dialled: not a byte flows.
func TestARevocationDuringTheDialIsSeen(t *testing.T) {
	r := newRig()
	service := new(target)
	defer service.close()
	e, stop := r.run(t, registry.Tunnel{})
	defer stop()
	r.answerDialsBy(func(ctx context.Context) (net.Conn, error) {
		r.allow(friend, false)
		return service.dial(ctx)
	})
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeRevoked)
	if b, err := io.ReadAll(service.last()); len(b) != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the target read %q, %v", b, err)
	}
	if s := e.Status(); s.Total != 0 {
		t.Errorf("%d streams were carried", s.Total)
	}
}

// The right is taken away after the last look before the pump: whoever takes
// it looks at the registry's streams, so the stream must look once more.
func TestARevocationAsTheStreamStartsIsSeen(t *testing.T) {
	r := newRig()
	service := new(target)
	defer service.close()
	r.answerDialsBy(service.dial)
	r.Hold = func(string) func() { r.allow(friend, false); return func() {} }
	_, stop := r.run(t, registry.Tunnel{})
	defer stop()
	end := r.serve(friend, "/x/t")
	select {
	case code := <-end.reset:
		if code != proto.CodeRevoked {
			t.Errorf("reset with %q", code)
		}
	case <-time.After(patience):
		t.Error("not reset")
	}
}

func TestHoldLastsAsLongAsTheStream(t *testing.T) {
	r := newRig()
	service := new(target)
	defer service.close()
	r.answerDialsBy(service.dial)
	held, released := 0, make(chan struct{})
	r.Hold = func(peer string) func() {
		held++
		return func() { close(released) } // a second time would panic
	}
	_, stop := r.run(t, registry.Tunnel{})
	end := r.serve(friend, "/x/t")
	select {
	case <-released:
		t.Error("released while the stream lives")
	default:
	}
	_ = end.Reset(proto.CodeNone)
	service.close()
	select {
	case <-released:
	case <-time.After(patience):
		t.Error("not released")
	}
	stop()
	if held != 1 {
		t.Errorf("held %d times", held)
	}
}

func TestThePeersIDIsReportedBeforeAnyByte(t *testing.T) {
	r := newRig()
	service := new(target)
	defer service.close()
	r.answerDialsBy(service.dial)
	_, stop := r.run(t, registry.Tunnel{ReportPeerID: true})
	defer stop()
	if b, err := io.ReadAll(service.last()); len(b) != 0 || err != nil {
		t.Errorf("the probe wrote %q, %v", b, err)
	}
	end := r.serve(friend, "/x/t")
	if line, err := bufio.NewReader(service.last()).ReadString('\n'); line != friend+"\n" {
		t.Errorf("the target read %q, %v", line, err)
	}
	_ = end.Reset(proto.CodeNone)
}

// closedConn fails every write, as a target that has gone again.
type closedConn struct {
	net.Conn
	closed chan struct{}
}

func (c closedConn) Write([]byte) (int, error) { return 0, syscall.EPIPE }
func (c closedConn) Close() error              { close(c.closed); return c.Conn.Close() }

func TestATargetThatDoesNotTakeThePeersIDIsDown(t *testing.T) {
	r := newRig()
	service, closed := new(target), make(chan struct{})
	defer service.close()
	e, stop := r.run(t, registry.Tunnel{ReportPeerID: true})
	defer stop()
	r.answerDialsBy(func(ctx context.Context) (net.Conn, error) {
		c, err := service.dial(ctx)
		return closedConn{c, closed}, err
	})
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeTargetDown)
	<-closed
	if s := e.Status(); !strings.Contains(s.Reason, "report peer id") || s.Total != 0 {
		t.Errorf("%d streams, reason %q", s.Total, s.Reason)
	}
}

func TestATargetThatIsNoStreamIsDownAndClosed(t *testing.T) {
	r := newRig()
	_, stop := r.run(t, registry.Tunnel{})
	defer stop()
	here, there := net.Pipe()
	r.answerDialsBy(func(context.Context) (net.Conn, error) { return there, nil })
	wantReset(t, r.serve(friend, "/x/t"), proto.CodeTargetDown)
	if _, err := here.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection is open: %v", err)
	}
}

// The resolver is the dialler's: the name is given to it each time.
func TestANameIsResolvedAtEachDial(t *testing.T) {
	for target, want := range map[string]string{
		"/dns/db.example/tcp/5432":  "tcp db.example:5432",
		"/dns4/db.example/tcp/5432": "tcp4 db.example:5432",
		"/dns6/db.example/tcp/5432": "tcp6 db.example:5432",
		"/ip6/::1/tcp/80":           "tcp6 [::1]:80",
		"/unix/run/app.sock":        "unix /run/app.sock",
	} {
		r := newRig()
		r.answerDialsBy(down)
		_, stop := r.run(t, registry.Tunnel{Target: target})
		r.serve(friend, "/x/t")
		r.serve(friend, "/x/t")
		stop()
		if !slices.Equal(r.dials, []string{want, want, want}) {
			t.Errorf("%s: dialled %q", target, r.dials)
		}
	}
}

func TestARealUnixTarget(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := newRig()
	r.Dial = nil
	e, stop := r.run(t, registry.Tunnel{Target: "/unix" + path, ReportPeerID: true})
	defer stop()
	end := r.serve(friend, "/x/t")
	probe, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	probe.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if line, err := bufio.NewReader(c).ReadString('\n'); line != friend+"\n" {
		t.Errorf("read %q, %v", line, err)
	}
	if s := e.Status(); s.Streams != 1 {
		t.Errorf("%d streams", s.Streams)
	}
	_ = end.Reset(proto.CodeNone)
}
