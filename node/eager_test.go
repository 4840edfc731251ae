package node

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
)

// socketFate is what becomes of one socket: its first packet is answered after
// answer, never where that is 0, and the rest takes rest, or fails.
type socketFate struct {
	answer, rest time.Duration
	refused, bad error
}

// fatedDialer dials as it is told, the last fate again and again.
type fatedDialer struct {
	fates []socketFate

	mu    sync.Mutex
	dials int
	under int // way now
	most  int
	conns []*fatedConn
}

type fatedConn struct {
	transport.CapableConn
	of     int
	closed bool
}

func (c *fatedConn) Close() error {
	c.closed = true
	return nil
}

func (d *fatedDialer) begin() (socketFate, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dials++
	d.under++
	d.most = max(d.most, d.under)
	return d.fates[min(d.dials, len(d.fates))-1], d.dials
}

func (d *fatedDialer) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.under--
}

func (d *fatedDialer) DialWithUpdates(ctx context.Context, addr ma.Multiaddr, _ peer.ID, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	fate, of := d.begin()
	defer d.end()
	answered := time.After(fate.answer)
	if fate.answer == 0 {
		answered = nil
	}
	select {
	case <-answered:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if fate.refused != nil {
		return nil, fate.refused
	}
	updates <- transport.DialUpdate{Kind: transport.UpdateKindHandshakeProgressed, Addr: addr}
	time.Sleep(fate.rest)
	if fate.bad != nil {
		return nil, fate.bad
	}
	c := &fatedConn{of: of} // also when it is too late: libp2p may do so
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns = append(d.conns, c)
	return c, nil
}

func TestAFirstPacketThatIsLostIsSentAgainSoon(t *testing.T) {
	bad, taken := errors.New("bad"), errors.New("no port is left")
	refused := error(syscall.ECONNREFUSED)
	const pace, quick, slow, patience = synAgain, 10 * time.Millisecond, 5 * synAgain, 40*synAgain - 1
	for name, c := range map[string]struct {
		fates []socketFate
		of    int           // the socket whose connection it is, 0 for none, -1 for any
		after time.Duration // it is there; 0 for any time
		dials int           // 0 for any
		err   error
	}{
		"answered":             {[]socketFate{{answer: quick, rest: slow}}, 1, quick + slow, 1, nil},
		"one lost":             {[]socketFate{{}, {answer: quick, rest: quick}}, 2, pace + 2*quick, 2, nil},
		"all but the last":     {[]socketFate{{}, {}, {}, {}, {}, {}, {}, {answer: quick}}, 8, 7*pace + quick, 8, nil},
		"a long way":           {[]socketFate{{answer: slow + 1, rest: quick}}, 1, slow + 1 + quick, 6, nil},
		"refused":              {[]socketFate{{answer: quick, refused: refused}}, 0, quick, 1, refused},
		"refused in the end":   {[]socketFate{{}, {}, {}, {answer: quick, refused: refused}}, 0, 3*pace + quick, 4, refused},
		"only one is possible": {[]socketFate{{answer: slow + 1, rest: 1}, {answer: 1, refused: taken}}, 1, slow + 2, 6, nil},
		"none is possible":     {[]socketFate{{answer: quick, refused: taken}}, 0, quick, 1, taken},
		"fails later":          {[]socketFate{{answer: quick, rest: slow, bad: bad}}, 0, quick + slow, 1, bad},
		"nobody":               {[]socketFate{{}}, 0, patience, 40, context.DeadlineExceeded},
		"both answered":        {[]socketFate{{answer: 2*pace + quick}, {}, {answer: quick}}, -1, 2*pace + quick, 3, nil},
		"answered at the bell": {[]socketFate{{answer: pace, rest: quick}}, -1, 0, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				by := &fatedDialer{fates: c.fates}
				d := eagerDial{by: by, addr: ma.StringCast("/ip4/192.0.2.1/tcp/1"), pace: pace}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				updates := make(chan transport.DialUpdate, 8)
				began := time.Now()
				conn, err := d.run(ctx, updates)
				if !errors.Is(err, c.err) {
					t.Fatalf("%v, want %v", err, c.err)
				}
				if c.after > 0 && time.Since(began) != c.after {
					t.Errorf("after %s, want %s", time.Since(began), c.after)
				}
				if c.dials > 0 && by.dials != c.dials {
					t.Errorf("%d sockets, want %d", by.dials, c.dials)
				}
				if by.most > 2 || by.under > 0 {
					t.Errorf("%d sockets at a time, want 2; %d are left", by.most, by.under)
				}
				wantOnly(t, by.conns, conn, c.of)
				if len(updates) > 1 || c.of > 0 && len(updates) != 1 {
					t.Errorf("%d updates, want 1", len(updates))
				}
			})
		})
	}
}

// wantOnly wants every connection but that one to be closed; of is its socket,
// -1 for any.
func wantOnly(t *testing.T, conns []*fatedConn, got transport.CapableConn, of int) {
	t.Helper()
	for _, c := range conns {
		if c.closed == (got == transport.CapableConn(c)) {
			t.Errorf("the connection of socket %d: closed %t", c.of, c.closed)
		}
	}
	switch c, ok := got.(*fatedConn); {
	case !ok && of != 0:
		t.Error("there is no connection")
	case ok && of >= 0 && c.of != of:
		t.Errorf("the connection is that of socket %d, want %d", c.of, of)
	}
}

func TestOnlyWhatDependsOnAPeerIsDialledEagerly(t *testing.T) {
	a, b, relay := relayed(t, 0)
	stranger, err := peer.Decode("12D3KooWQ1R9B2rXM5Suh2qzon46fiA3V3rZ1fen8yp3ncQCX944")
	must(t, err)
	if a.pace(stranger) != 0 {
		t.Error("a stranger is")
	}
	if b.pace(relay.host.ID()) < synAgain {
		t.Error("a relay is not")
	}
	direct := newNodeOf(t, Config{})
	connect(t, a, infoOf(direct))
	if a.pace(direct.host.ID()) < synAgain {
		t.Error("a wanted peer is not")
	}
	if p := b.host.ID(); a.lastRelay(p) != "" && a.pace(p) != 0 {
		t.Error("the old addresses of a relayed peer are")
	}
	a.host.Peerstore().RecordLatency(direct.host.ID(), time.Second)
	if got := a.pace(direct.host.ID()); got != synTrips*time.Second {
		t.Errorf("after %s where a round trip takes a second", got)
	}
}

// TestAPunchIsDialledOnce: both sides' packets meet, from the ports that they
// know of each other.
func TestAPunchIsDialledOnce(t *testing.T) {
	n := newNodeOf(t, Config{})
	tcp := n.host.Network().(interface {
		TransportForDialing(ma.Multiaddr) transport.Transport
	}).TransportForDialing(ma.StringCast("/ip4/127.0.0.1/tcp/1"))
	eager, ok := tcp.(*eagerTCP)
	if !ok {
		t.Fatalf("TCP is dialled by %T", tcp)
	}
	eager.pace = func(peer.ID) time.Duration { return time.Nanosecond }
	ctx := network.WithSimultaneousConnect(within(t), true, "test")
	if _, err := eager.Dial(ctx, ma.StringCast("/ip4/127.0.0.1/tcp/1"), ""); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want a refusal", err)
	}
}

// TestTheSocketsOfADialAreOneConnection, for limits and for rates.
func TestTheSocketsOfADialAreOneConnection(t *testing.T) {
	counted := &countedManager{ResourceManager: &network.NullResourceManager{}}
	shares := &dialShares{ResourceManager: counted}
	addr := ma.StringCast("/ip4/192.0.2.1/tcp/1")
	open := func(p peer.ID) network.ConnManagementScope {
		scope, err := shares.OpenConnection(network.DirOutbound, true, addr)
		must(t, err)
		must(t, scope.SetPeer(p))
		return scope
	}
	end := shares.begin(addr, "a")
	one, other, stranger := open("a"), open("a"), open("b")
	if counted.opened != 2 {
		t.Errorf("%d opened for the dial and another", counted.opened)
	}
	one.Done()
	one.Done()
	stranger.Done()
	end()
	if counted.done != 1 {
		t.Errorf("%d are done, want the other", counted.done)
	}
	other.Done() // the connection's end
	if counted.done != 2 || len(shares.now) != 0 {
		t.Errorf("%d are done, %d dials are kept", counted.done, len(shares.now))
	}
	end = shares.begin(addr, "a")
	counted.refuse = errors.New("refused")
	scope, err := shares.OpenConnection(network.DirOutbound, true, addr)
	must(t, err)
	if err := scope.SetPeer("a"); !errors.Is(err, counted.refuse) {
		t.Errorf("%v", err)
	}
	scope.Done()
	end()
	if counted.done != 2 {
		t.Error("what was refused is done")
	}
}

// countedManager counts connections.
type countedManager struct {
	network.ResourceManager
	opened, done int
	refuse       error
}

type countedScope struct {
	network.ConnManagementScope
	of *countedManager
}

func (m *countedManager) OpenConnection(network.Direction, bool, ma.Multiaddr) (network.ConnManagementScope, error) {
	if m.refuse != nil {
		return nil, m.refuse
	}
	m.opened++
	return &countedScope{&network.NullScope{}, m}, nil
}

func (s *countedScope) Done() { s.of.done++ }
