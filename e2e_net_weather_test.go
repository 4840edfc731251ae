//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"p2ptun/daemon"
)

// Bounds after the weather has changed.
const (
	backWithin   = 5 * time.Second  // a slot, once the relay is back
	againWithin  = 10 * time.Second // new connections, once there is a way
	noticeWithin = 10 * time.Second // that there is none
	punchedAgain = 15 * time.Second // a direct path, after a change of network
)

// wantAgain waits until new connections work, through the same forward, and
// says how long that took.
func (r *reached) wantAgain() time.Duration {
	r.t.Helper()
	return inTime(r.t, "new connections work again", againWithin, func() bool { return r.works(2 * time.Second) })
}

func TestNetUDPBlockedLeavesTCP(t *testing.T) {
	wantNet(t)
	for _, c := range []struct {
		blocked, nat, transport string
	}{
		{"udp", "cone,cone", "tcp"},
		{"udp", "port-restricted,port-restricted", "tcp"},
		{"udp", "cone,symmetric", "tcp"},
	} {
		t.Run(c.nat+" without "+c.blocked, func(t *testing.T) {
			alice, bob, _ := strings.Cut(c.nat, ",")
			l := newNATLab(t, alice, bob)
			l.do("block", "bob", c.blocked)
			r := l.reach()
			figure(t, c.nat+", "+c.blocked+" blocked", "first byte", r.took)
			figure(t, c.nat+", "+c.blocked+" blocked", "direct", r.wantDirect(fastPunch))
			if p := r.path(); p.Transport != c.transport {
				t.Errorf("the path is %+v, want %s", p, c.transport)
			}
		})
	}
}

func TestNetUDPBlockedBetweenSymmetricNATsIsRelayed(t *testing.T) {
	l := newNATLab(t, "symmetric", "symmetric")
	l.do("block", "alice", "udp")
	l.reach().wantRelayed(l.relay.id)
}

func TestNetRelayThatWasKilledComesBack(t *testing.T) {
	l := newNATLab(t, "symmetric", "symmetric")
	r := l.reach()
	l.relay.kill()
	inTime(t, "alice sees that her relay has gone", noticeWithin, func() bool { return !l.alice.hasSlot(l.relay.id) })
	l.relay.box.help(forever...)
	figure(t, "relay killed and started again", "slot", l.alice.wantSlot(l.relay.id, backWithin))
	figure(t, "relay killed and started again", "new connection", r.wantAgain())
	r.wantRelayed(l.relay.id)
	other := l.box("bob").reach(l.alice.id, "--network", l.network)
	other.wantRelayed(l.relay.id)
}

// TestNetDeadRelayDelaysNobody: the first of two relays is silent from the
// start.
func TestNetDeadRelayDelaysNobody(t *testing.T) {
	l := newLab(t, "nat", "--nat", "symmetric,symmetric")
	alice, bob := l.pair()
	dead, relay := l.box("boot").help(forever...), l.box("relay").help(forever...)
	l.do("cut", "boot")
	network := networkFile(t, []*helper{dead, relay}, []*helper{dead, relay})
	began := time.Now()
	alice.listen("--network", network)
	alice.wantSlot(relay.id, atOnceReserved)
	figure(t, "first of two relays dead", "listener's slot", time.Since(began))
	r := bob.reach(alice.id, "--network", network)
	r.figure("first of two relays dead")
	if most := 2 * time.Second; r.took > most {
		t.Errorf("the first byte took %s, want %s at most", r.took, most)
	}
	r.wantRelayed(relay.id)
}

// carriedBy is how many bytes a relay has had from and to all its peers.
func (h *helper) carriedBy() (n int64) {
	for _, p := range runJSON[daemon.Status](h.box, "status")[0].Carried {
		n += p.In + p.Out
	}
	return n
}

// carriedNow waits for the counters, which lag by a second, to move: its peers
// ping a relay.
func (h *helper) carriedNow() (n int64) {
	h.t.Helper()
	last := h.carriedBy()
	inTime(h.t, "the relay's counters move", patience, func() bool { n = h.carriedBy(); return n != last })
	return n
}

func TestNetRelayCarriesNothingOfADirectPath(t *testing.T) {
	l := newNATLab(t, "cone", "cone")
	r := l.reach()
	r.wantDirect(fastPunch)
	before := l.relay.carriedNow()
	const rounds = 8
	for range rounds {
		r.carry(some)
	}
	// what nodes say to a relay itself goes on
	if n := l.relay.carriedNow() - before; n > some/100 {
		t.Errorf("the relay has carried %d bytes while %d went there and back directly", n, rounds*some)
	}
}

func TestNetRelayCountsWhatItCarries(t *testing.T) {
	l := newNATLab(t, "symmetric", "symmetric")
	r := l.reach()
	before := l.relay.carriedNow()
	r.wantRelayed(l.relay.id)
	if n := l.relay.carriedNow() - before; n < 4*some {
		t.Errorf("the relay says that it has carried %d bytes, want %d: each comes in and goes out, there and back", n, 4*some)
	}
}

func TestNetIPv6(t *testing.T) {
	l := newLab(t, "wan", "--ipv6")
	alice, bob := l.pair()
	p := alice.listen("--network", "none")
	where := l.do("addr", "alice", "-6")
	addr := p.waitFor(t, &p.out, "address    (/ip6/"+where+`/tcp/\S+)`)[1]
	r := bob.reach(addr, "--network", "none")
	r.figure("WAN, IPv6 address")
	r.wantDirect(0)
	if p := r.path(); !strings.Contains(p.Addr, where) {
		t.Errorf("the path is %+v, want one to %s", p, where)
	}
}

// TestNetIPv6WhereNATsAllowNothing: global addresses behind firewalls are
// punched where two symmetric NATs can't be.
func TestNetIPv6WhereNATsAllowNothing(t *testing.T) {
	l := &natLab{lab: newLab(t, "nat", "--nat", "symmetric,symmetric", "--ipv6")}
	l.alice, l.bob = l.pair()
	l.relay = l.box("relay").help(forever...)
	l.network = networkFile(t, []*helper{l.relay}, []*helper{l.relay})
	r := l.reach()
	r.figure("NAT, symmetric dials symmetric, with IPv6")
	figure(t, "NAT, symmetric dials symmetric, with IPv6", "direct", r.wantDirect(slowPunch))
	if p := r.path(); !strings.HasPrefix(p.Addr, "/ip6/") {
		t.Errorf("the path is %+v, want IPv6", p)
	}
}

func TestNetForwardFollowsAChangeOfNetwork(t *testing.T) {
	wantNet(t)
	for _, nat := range []string{"cone", "port-restricted"} {
		for who, role := range map[string]string{"alice": "listener", "bob": "forwarder"} {
			scenario := fmt.Sprintf("%s moves, %s dials %s", role, nat, nat)
			t.Run(scenario, func(t *testing.T) { newNATLab(t, nat, nat).move(who, scenario) })
			t.Run(scenario+", one relay", func(t *testing.T) { newOneRelayLab(t, nat).move(who, scenario+", one relay") })
		}
	}
}

// move has one of two that reach each other directly change its network, and
// wants new connections, soon direct ones.
func (l *natLab) move(who, scenario string) {
	l.t.Helper()
	r := l.reach()
	r.wantDirect(fastPunch)
	l.do("rehome", who)
	began := time.Now()
	figure(l.t, scenario, "new connection", r.wantAgain())
	r.first = r.open() // the one from before may be gone
	r.wantDirect(punchedAgain - time.Since(began))
	figure(l.t, scenario, "new connection is direct", time.Since(began))
}

func TestNetForwardFollowsAListenerThatTheDHTAloneKnows(t *testing.T) {
	l := newLab(t, "wan", "--hosts", "alice,bob,boot")
	alice, bob := l.pair()
	network := networkFile(t, []*helper{l.box("boot").help()}, nil)
	alice.listen("--network", network)
	r := bob.reach(alice.id, "--network", network)
	l.do("rehome", "alice")
	figure(t, t.Name(), "new connection", r.wantAgain())
	r.wantSaid("", r.carry(some))
}

// wanPair is a forward by address over one transport.
func wanPair(t *testing.T, transport string, s func(*box) *service, flags ...string) (*lab, *reached) {
	t.Helper()
	l := newLab(t, "wan")
	alice, bob := l.pair()
	p := alice.offer(s(alice), "--network", "none")
	addr := p.waitFor(t, &p.out, "address    (/ip4/"+l.do("addr", "alice")+"/"+transport+`/\S+)`)[1]
	return l, bob.reach(addr, append([]string{"--network", "none"}, flags...)...)
}

func echoService(b *box) *service { return b.service(echoBack) }

// idle reads from a connection until it ends, and says how.
func idle(c net.Conn) (ended <-chan error) {
	ch := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		ch <- err
	}()
	return ch
}

// busy also writes all the while. A reset is told to one of the two alone.
func busy(c net.Conn) (ended <-chan error) {
	ch, read := make(chan error, 1), idle(c)
	go func() {
		var err error
		for err == nil {
			_, err = c.Write(make([]byte, 64<<10))
		}
		ch <- errors.Join(err, <-read)
	}()
	return ch
}

func TestNetSilentCutIsNoticed(t *testing.T) {
	wantNet(t)
	for _, transport := range []string{"tcp", "udp"} {
		for name, use := range map[string]func(net.Conn) <-chan error{"idle": idle, "busy": busy} {
			t.Run(transport+" "+name, func(t *testing.T) {
				l, r := wanPair(t, transport, echoService, "--survive", "0")
				c := r.open()
				ended := use(c)
				inTime(t, "bytes flow", patience, func() bool { return name == "idle" || r.streamOf(c).BytesIn > some })
				l.do("cut", "bob")
				began := time.Now()
				wantResetWithin(t, ended, noticeWithin)
				figure(t, "silent cut, "+transport+", "+name, "noticed", time.Since(began))
				l.do("heal", "bob")
				figure(t, "silent cut, "+transport+", "+name, "new connection after it", r.wantAgain())
			})
		}
	}
}

func wantResetWithin(t testing.TB, ended <-chan error, limit time.Duration) {
	t.Helper()
	select {
	case err := <-ended:
		if !isReset(err) {
			t.Fatalf("the connection ended with %v, want a reset", err)
		}
	case <-time.After(limit):
		t.Fatalf("the connection still stands %s after the cut", limit)
	}
}

// TestNetSlowLinkIsNotTakenForADeadOne: pings wait behind three seconds of
// queue and as much in the kernel.
func TestNetSlowLinkIsNotTakenForADeadOne(t *testing.T) {
	wantNet(t)
	for _, transport := range []string{"tcp", "udp"} {
		t.Run(transport, func(t *testing.T) {
			got := make(chan []byte, 1)
			l, r := wanPair(t, transport, func(b *box) *service {
				return b.service(func(c net.Conn) {
					first := make([]byte, 1)
					if _, err := io.ReadFull(c, first); err == nil {
						_, _ = c.Write(first)
					}
					if rest, _ := io.ReadAll(c); len(rest) > 0 {
						got <- rest
					}
				})
			})
			l.do("link", "bob", "--rate", "1mbit", "--queue", "3s")
			c, data := r.open(), randomBytes(2, 2<<20)
			sent := make(chan error, 1)
			go func() {
				_, err := c.Write(data)
				sent <- errors.Join(err, c.CloseWrite())
			}()
			select {
			case rest := <-got:
				if !bytes.Equal(rest, data) {
					t.Errorf("%d of %d bytes came", len(rest), len(data))
				}
			case <-time.After(patience):
				t.Fatal("the upload does not end")
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			if said := r.process.err.String(); strings.Count(said, "path to ") > 1 {
				t.Errorf("the path has changed: %q", said)
			}
		})
	}
}

// echoOrPour echoes, and pours without an end after a 'd'.
func echoOrPour(c net.Conn) {
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b[:1])
		if err != nil {
			return
		}
		if n == 1 && b[0] == 'd' {
			break
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
	for err := error(nil); err == nil; {
		_, err = c.Write(b)
	}
}

// TestNetALittleDoesNotWaitBehindMuch: a path of 20 ms with 40 Mbit/s is full in
// 100 ms; what the sockets would take on top of it holds up as much again, and
// more.
func TestNetALittleDoesNotWaitBehindMuch(t *testing.T) {
	wantNet(t)
	for _, survive := range []string{"1h", "0"} {
		t.Run("survive "+survive, func(t *testing.T) {
			l := newLab(t, "wan", "--delay", "5ms")
			alice, bob := l.pair()
			l.do("link", "alice", "--rate", "40mbit")
			p := alice.offer(alice.service(echoOrPour), "--network", "none")
			addr := p.waitFor(t, &p.out, "address    (/ip4/"+l.do("addr", "alice")+`/tcp/\S+)`)[1]
			r := bob.reach(addr, "--network", "none", "--survive", survive)
			much := r.open()
			if _, err := much.Write([]byte{'d'}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, much, 10<<20); err != nil { // 2 s
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, much) }()
			var trips []float64
			for range 30 {
				began := time.Now()
				if err := echoOn(r.first); err != nil {
					t.Fatal(err)
				}
				trips = append(trips, time.Since(began).Seconds())
			}
			_ = much.Close()
			p50 := time.Duration(median(trips) * float64(time.Second))
			figure(t, "beside a download at 40 Mbit/s, 20 ms, --survive "+survive, "round trip", p50)
			if p50 > 110*time.Millisecond {
				t.Errorf("a byte takes %s", p50)
			}
		})
	}
}
