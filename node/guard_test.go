package node

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// clock is a time that a test sets.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Unix(1_700_000_000, 0)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func (g *guard) setClock(now func() time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now = now
}

// newTestGuard trusts who is in friends.
func newTestGuard(friends map[peer.ID]bool) (*guard, *clock) {
	c := newClock()
	g := newGuard(func(p peer.ID) bool { return friends[p] }, slog.New(slog.DiscardHandler))
	g.setClock(c.now)
	return g, c
}

// visit opens a stream and ends it.
func visit(g *guard, p peer.ID) bool {
	leave, err := g.enter(p)
	if leave != nil {
		leave()
	}
	return err == nil
}

// flood opens streams until one is not let in.
func flood(g *guard, p peer.ID) (opened int) {
	for visit(g, p) {
		opened++
	}
	return opened
}

const office = "192.0.2.1/32"

func TestARefusedForwarderThatAsksAgainIsNeverKeptOut(t *testing.T) {
	const tunnels = 10
	g, c := newTestGuard(nil)
	for range int(2 * time.Hour / (5 * time.Second)) {
		for range tunnels { // each asks; libp2p pings and identifies now and then
			for range 2 {
				if !visit(g, "forwarder") {
					t.Fatal("a stream was not let in")
				}
			}
			g.refused("forwarder")
		}
		c.pass(5 * time.Second)
	}
	if g.keepsOut("forwarder") || len(g.offenders) != 0 {
		t.Error("it is kept out")
	}
}

func TestAFloodOfStreamsOrOfRefusalsEmptiesTheBucket(t *testing.T) {
	g, _ := newTestGuard(nil)
	if n := flood(g, "streams"); n != strangerBurst {
		t.Errorf("%d streams at once, want %d", n, strangerBurst)
	}
	refusals := 0
	for visit(g, "questions") {
		g.refused("questions")
		refusals++
	}
	if most := strangerBurst/(1+refusalCost) + 1; refusals > most {
		t.Errorf("%d refused questions at once, want at most %d", refusals, most)
	}
	for _, p := range []peer.ID{"streams", "questions"} {
		if !g.keepsOut(p) {
			t.Errorf("%s is not kept out", p)
		}
	}
	if g.keepsOut("somebody else") || !visit(g, "somebody else") {
		t.Error("somebody else is kept out")
	}
}

func TestWhoFloodsAgainIsKeptOutTwiceAsLong(t *testing.T) {
	g, c := newTestGuard(nil)
	want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60}
	for i, minutes := range want {
		flood(g, "p")
		wantKeptOutFor(t, g, c, minutes*time.Minute)
		if i == 0 {
			c.pass(banMemory) // not forgotten yet
		}
	}
	c.pass(banMemory + time.Second)
	flood(g, "p")
	wantKeptOutFor(t, g, c, time.Minute)
}

func wantKeptOutFor(t testing.TB, g *guard, c *clock, d time.Duration) {
	t.Helper()
	c.pass(d - time.Second)
	if !g.keepsOut("p") {
		t.Fatalf("not kept out %v", d)
	}
	c.pass(time.Second)
	if g.keepsOut("p") {
		t.Fatalf("kept out longer than %v", d)
	}
}

func TestOneFloodIsOneOffence(t *testing.T) {
	g, c := newTestGuard(nil)
	for range 5000 {
		visit(g, "p")
		c.pass(time.Millisecond) // the connections are being closed
	}
	c.pass(banFirst)
	if g.keepsOut("p") {
		t.Error("punished more than once")
	}
	if len(g.offenders) < 2 {
		t.Error("where closing was missed, it is not tried again")
	}
}

func TestTrustEndsABanAndFreesOfTheBucket(t *testing.T) {
	friends := map[peer.ID]bool{}
	g, _ := newTestGuard(friends)
	flood(g, "p")
	friends["p"] = true
	if g.keepsOut("p") {
		t.Error("kept out in spite of trust")
	}
	for range 100 * strangerBurst {
		if leave, err := g.enter("p"); leave != nil || err != nil {
			t.Fatalf("a trusted peer's stream is counted: %v, %v", leave != nil, err)
		}
		g.refused("p")
	}
	delete(friends, "p")
	if g.keepsOut("p") {
		t.Error("the ban came back")
	}
}

func TestTablesAreBoundedUnderManyPeerIDs(t *testing.T) {
	g, c := newTestGuard(nil)
	for i := range 10_000 {
		p := peer.ID(fmt.Sprint(i))
		g.came(p, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32), false)
		flood(g, p)
		c.pass(time.Millisecond)
	}
	sizes := []int{len(g.strangers.items), g.strangers.order.Len(), len(g.bans.items), len(g.watched.items), cap(g.offenders)}
	for i, n := range sizes {
		if n > maxGuarded {
			t.Errorf("table %d holds %d, want at most %d", i, n, maxGuarded)
		}
	}
	if len(g.streams.held) != 0 || g.streams.used != 0 {
		t.Errorf("%d streams are counted that have ended", g.streams.used)
	}
}

func TestATableDropsWhatIsSpareThenWhatIsOldest(t *testing.T) {
	tab := newTable[int, bool](4)
	spare := func(b bool) bool { return b }
	for i := range 4 {
		tab.put(i, i == 2, spare)
	}
	tab.put(4, false, spare) // instead of 2
	tab.get(0)
	tab.put(5, false, spare) // instead of 1: 0 was used
	for key, want := range map[int]bool{0: true, 1: false, 2: false, 3: true, 4: true, 5: true} {
		if _, ok := tab.get(key); ok != want {
			t.Errorf("%d is there: %v", key, ok)
		}
	}
}

func TestAnAddressOfAnOffenceConnectsSlowly(t *testing.T) {
	g, c := newTestGuard(nil)
	from := netip.MustParsePrefix(office)
	connect := func() (n int) {
		for range 100 {
			if g.admits(from) {
				n++
			}
		}
		return n
	}
	if connect() != 100 {
		t.Error("slowed before any offence")
	}
	g.came("p", from, false)
	flood(g, "p")
	if !g.suspects(from) || connect() != watchBurst {
		t.Error("not slowed")
	}
	c.pass(time.Second)
	if n := connect(); n != watchRate {
		t.Errorf("%d connections in the next second, want %d", n, watchRate)
	}
	c.pass(watchFor / 2)
	g.insist(from)
	c.pass(watchFor/2 + time.Second)
	if connect() == 100 {
		t.Error("forgotten although it insisted")
	}
	c.pass(watchFor + time.Second)
	if g.suspects(from) || connect() != 100 || len(g.watched.items) != 0 {
		t.Error("slowed for ever")
	}
}

// A handshake costs, also where libp2p counts none: from loopback.
func TestAnAddressWhoseStrangersComeTooOftenIsSlowed(t *testing.T) {
	friends := map[peer.ID]bool{"friend": true}
	g, c := newTestGuard(friends)
	from := netip.MustParsePrefix("127.0.0.1/32")
	come := func(n int) {
		for i := range n {
			g.came(peer.ID(fmt.Sprint(i)), from, false)
		}
	}
	for range 10 * comeBurst {
		g.came("friend", from, false)
	}
	come(comeBurst)
	if g.suspects(from) {
		t.Error("slowed too soon")
	}
	c.pass(time.Second)
	come(comeRate)
	if g.suspects(from) {
		t.Error("slowed although it comes slowly")
	}
	come(1)
	if !g.suspects(from) || g.suspects(netip.MustParsePrefix("127.0.0.2/32")) {
		t.Error("that address alone is to be slowed")
	}
	if len(g.offenders) != 0 {
		t.Error("somebody is punished for it")
	}
	g.came("relayed", netip.Prefix{}, false)
	if len(g.comers.items) != 1 {
		t.Error("a relay's address is counted")
	}
}

func TestOneAddressHasHalfOfTheHandshakesAndOthersTheRest(t *testing.T) {
	g, _ := newTestGuard(nil)
	net := func(i int) netip.Prefix { return netOfIP(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})) }
	take := func(i int) (ends []func()) {
		for {
			end, err := g.begin(net(i), false)
			if err != nil {
				return ends
			}
			ends = append(ends, end)
		}
	}
	var all []func()
	for i, want := range []int{halfOpen / 2, halfOpen / 4, halfOpen / 8} {
		ends := take(i)
		if len(ends) != want {
			t.Errorf("%d handshakes of the next address, want %d", len(ends), want)
		}
		all = append(all, ends...)
	}
	for _, end := range all {
		end()
		end()
	}
	if g.handshakes.used != 0 || len(g.handshakes.held) != 0 {
		t.Errorf("%d stay counted", g.handshakes.used)
	}
}

// Over UDP whoever forges its address must not take the handshakes of others.
func TestManyHandshakesHaveToShowTheirAddress(t *testing.T) {
	g, _ := newTestGuard(nil)
	net := func(i int) netip.Prefix {
		return netOfIP(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}))
	}
	begin := func(i int) (end func()) {
		end, err := g.begin(net(i), false)
		must(t, err)
		return end
	}
	for range unproved {
		if g.suspects(net(0)) {
			t.Error("suspected too soon")
		}
		defer begin(0)()
	}
	if !g.suspects(net(0)) || g.suspects(net(1)) {
		t.Error("that address alone is to be suspected")
	}
	for i := range halfOpen/2 - unproved {
		defer begin(i + 1)()
	}
	if !g.suspects(net(halfOpen)) {
		t.Error("half of all are taken, and nobody has to show its address")
	}
}

// Whoever is known, or has gone, is in no handshake any more.
func TestAHandshakeEndsWithItsPeerOrItsConnection(t *testing.T) {
	g, _ := newTestGuard(nil)
	rm, err := newResourceManager(newLimiter(g.trusted), g)
	must(t, err)
	defer rm.Close()
	open := func(addr string) network.ConnManagementScope {
		c, err := rm.OpenConnection(network.DirInbound, true, multiaddrs(t, addr)[0])
		must(t, err)
		return c
	}
	known, gone := open("/ip4/192.0.2.1/tcp/1"), open("/ip4/192.0.2.1/udp/1/quic-v1")
	if g.handshakes.used != 2 {
		t.Errorf("%d handshakes", g.handshakes.used)
	}
	must(t, known.SetPeer("p"))
	gone.Done()
	gone.Done() // as over QUIC
	if g.handshakes.used != 0 {
		t.Errorf("%d handshakes stay", g.handshakes.used)
	}
	known.Done()
	for range 2 * perAddress { // what libp2p refuses
		_, _ = rm.OpenConnection(network.DirInbound, true, multiaddrs(t, "/ip4/192.0.2.2/tcp/1")[0])
	}
	if g.handshakes.used != perAddress {
		t.Errorf("%d handshakes, libp2p has let in %d", g.handshakes.used, perAddress)
	}
}

func TestTheNetOfAnAddressIsItsCustomers(t *testing.T) {
	for addr, want := range map[string]string{
		"/ip4/192.0.2.1/tcp/4001":                             office,
		"/ip4/192.0.2.1/udp/4001/quic-v1":                     office,
		"/ip6/::ffff:192.0.2.1/tcp/1":                         office,
		"/ip6/2001:db8:0:1ff::1/tcp/1":                        "2001:db8:0:100::/56",
		"/ip4/127.0.0.1/tcp/1":                                "127.0.0.1/32",
		"/dns4/example.com/tcp/1":                             "invalid Prefix",
		"/ip4/192.0.2.1/tcp/1/p2p/" + nobody + "/p2p-circuit": "invalid Prefix", // the relay's
		"/ip4/192.0.2.1/udp/1/quic-v1/p2p/" + nobody + "/p2p-circuit/ip4/192.0.2.9/tcp/1": "invalid Prefix",
	} {
		if got := netOf(multiaddrs(t, addr)[0]).String(); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	if netOf(nil).IsValid() {
		t.Error("no address has a net")
	}
	g, _ := newTestGuard(nil)
	flood(g, "relayed") // it never came from an address
	if len(g.watched.items) != 0 {
		t.Error("some address is watched")
	}
}

func TestManyThatTakeAllLeaveRoomForTheNext(t *testing.T) {
	for _, greedy := range []int{1, 4, 16, strangersConns - 1} {
		s := newShare[peer.ID](strangersStreams)
		for took := true; took; { // all at once, each as often as it can
			took = false
			for i := range greedy {
				took = s.take(peer.ID(fmt.Sprint(i)), 1, fairPart) || took
			}
		}
		if !s.take("the next", 1, fairPart) {
			t.Errorf("%d peers leave none of %d", greedy, strangersStreams)
		}
		if s.used > strangersStreams {
			t.Errorf("%d of %d are taken", s.used, strangersStreams)
		}
	}
}

func TestAllStreamsOfStrangersAreBounded(t *testing.T) {
	g, c := newTestGuard(nil)
	total := 0
	for i := range 1000 {
		p := peer.ID(fmt.Sprint(i))
		for range strangerInbound {
			if _, err := g.enter(p); err == nil {
				total++
			}
		}
		c.pass(time.Second)
	}
	if total > strangersStreams || total < strangersStreams/2 {
		t.Errorf("%d streams are open, want up to %d", total, strangersStreams)
	}
	if len(g.offenders) != 0 {
		t.Error("who found no room is punished")
	}
}

// A scope may be ended more than once, and a peer may become trusted, or a
// stranger, in the meantime.
func TestWhatAStreamTookComesBackOnce(t *testing.T) {
	friends := map[peer.ID]bool{}
	g, _ := newTestGuard(friends)
	rm, err := newResourceManager(newLimiter(g.trusted), g)
	must(t, err)
	defer rm.Close()
	was := func(trusted bool) network.StreamManagementScope {
		friends["p"] = trusted
		s, err := rm.OpenStream("p", network.DirInbound)
		must(t, err)
		return s
	}
	asStranger, asFriend := was(false), was(true)
	for want, s := range []network.StreamManagementScope{0: asStranger, 1: asFriend} {
		if g.streams.used != 1-want {
			t.Errorf("%d streams are counted, want %d", g.streams.used, 1-want)
		}
		must(t, s.SetProtocol("/x/t"))
		s.Done()
		s.Done()
	}
	if g.streams.used != 0 || len(g.streams.held) != 0 {
		t.Errorf("%d streams stay counted", g.streams.used)
	}
}

func TestProtocolNamesTakeNoMemory(t *testing.T) {
	g, _ := newTestGuard(map[peer.ID]bool{"p": true})
	rm, err := newResourceManager(newLimiter(g.trusted), g)
	must(t, err)
	defer rm.Close()
	for i := range 1000 {
		s, err := rm.OpenStream("p", network.DirInbound)
		must(t, err)
		must(t, s.SetProtocol(protocolN(i)))
		if got := s.ProtocolScope().Protocol(); got != "/x/" {
			t.Fatalf("%s has a scope", got)
		}
		s.Done()
	}
}

// yamux drops a span without ending it when it gets no memory for a stream.
func TestAStreamWithoutMemoryLeavesNoScope(t *testing.T) {
	g, _ := newTestGuard(nil)
	rm, err := newResourceManager(newLimiter(g.trusted), g)
	must(t, err)
	defer rm.Close()
	conn, err := rm.OpenConnection(network.DirInbound, true, multiaddrs(t, "/ip4/192.0.2.1/tcp/1")[0])
	must(t, err)
	must(t, conn.SetPeer("p"))
	for i := 0; ; i++ {
		span, err := conn.PeerScope().BeginSpan()
		must(t, err)
		if g.suspects(netip.MustParsePrefix(office)) {
			t.Fatal("its address is slowed while there is memory")
		}
		if span.ReserveMemory(streamMemory, network.ReservationPriorityAlways) != nil {
			if err := span.ReserveMemory(1, network.ReservationPriorityAlways); err == nil {
				t.Error("the span was not ended")
			}
			break
		}
		defer span.Done()
		if i*streamMemory > strangersMemory {
			t.Fatal("no bound")
		}
	}
	// Its connection ends, before its streams are counted: it may come again,
	// but not as often as it can.
	if !g.suspects(netip.MustParsePrefix(office)) || len(g.offenders) != 0 {
		t.Error("its address is not slowed, or it is punished")
	}
}

func TestMemoryOfStrangersIsBoundedAndComesBack(t *testing.T) {
	friends := map[peer.ID]bool{"friend": true}
	g, _ := newTestGuard(friends)
	rm, err := newResourceManager(newLimiter(g.trusted), g)
	must(t, err)
	defer rm.Close()
	var conns []network.ConnManagementScope
	var streams []network.StreamManagementScope
	for i := range strangersConns {
		addr := multiaddrs(t, fmt.Sprintf("/ip4/192.0.2.%d/udp/1/quic-v1", i))[0]
		conn, err := rm.OpenConnection(network.DirInbound, false, addr)
		must(t, err)
		conns = append(conns, conn)
		p := peer.ID(fmt.Sprint(i))
		must(t, conn.SetPeer(p))
		for range strangerInbound {
			if s, err := rm.OpenStream(p, network.DirInbound); err == nil {
				streams = append(streams, s)
			}
		}
		for conn.ReserveMemory(1<<20, network.ReservationPriorityMedium) == nil { // its windows grow
		}
	}
	if used := g.memory.used; used > strangersMemory || used < strangersMemory/2 {
		t.Errorf("%d bytes are taken, want up to %d", used, strangersMemory)
	}
	friend, err := rm.OpenConnection(network.DirInbound, true, multiaddrs(t, "/ip4/198.51.100.1/tcp/1")[0])
	must(t, err)
	must(t, friend.SetPeer("friend"))
	span, err := friend.PeerScope().BeginSpan()
	must(t, err)
	must(t, span.ReserveMemory(16<<20, 128))
	span.ReleaseMemory(16 << 20)
	for _, s := range streams {
		s.Done()
	}
	for _, s := range append(conns, friend) {
		s.Done()
		s.Done()
	}
	if g.memory.used != 0 || len(g.memory.held) != 0 {
		t.Errorf("%d bytes stay taken", g.memory.used)
	}
}

// The log has a line for a ban, and few for many.
func TestBansMakeFewLines(t *testing.T) {
	var log bytes.Buffer
	g, c := newTestGuard(nil)
	g.log = slog.New(slog.NewTextHandler(&log, nil))
	serveOne := func() {
		select {
		case o := <-g.offenders:
			g.punish(o, func(peer.ID) {})
		default:
		}
	}
	for i := range 1000 {
		flood(g, peer.ID(fmt.Sprint(i)))
		serveOne()
	}
	if n := strings.Count(log.String(), "\n"); n != banLogAtOnce {
		t.Errorf("%d lines for 1000 bans, want %d", n, banLogAtOnce)
	}
	c.pass(banLogEvery)
	flood(g, "one more")
	serveOne()
	if !strings.Contains(log.String(), fmt.Sprint("others_since_last_line=", 1000-banLogAtOnce)) {
		t.Errorf("the next line does not tell of the others:\n%s", log.String())
	}
}

func protocolN(i int) protocol.ID { return protocol.ID(fmt.Sprintf("/x/%d", i)) }
