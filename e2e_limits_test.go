//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"p2ptun/registry"
)

// listed is the only tunnel of a node, as `ls --json` shows it.
func listed(t testing.TB, n *node) (s registry.TunnelStatus) {
	t.Helper()
	line := n.run("ls", "--json")
	if err := json.Unmarshal([]byte(line), &s); err != nil {
		t.Fatalf("ls --json: %q: %v", line, err)
	}
	return s
}

func wantReason(t testing.TB, n *node, want string) {
	t.Helper()
	if s := listed(t, n); s.Reason != want {
		t.Errorf("ls says %q, want %q", s.Reason, want)
	}
	if table := n.run("ls"); !strings.Contains(table, want) {
		t.Errorf("ls says %q, want %q in it", table, want)
	}
}

func TestOneConnectionTooManyIsResetAndNamedAndAFreedSlotIsUsable(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, echoBack)
		tun := startTunnel(t, transport, s.addr(), "--max-streams", "2")
		first, second := tun.forward.dial(t), tun.forward.dial(t)
		wantEcho(t, first, "one")
		wantEcho(t, second, "two")
		wantResetAtOnce(t, tun.forward)
		tun.forward.waitFor(t, &tun.forward.err, `p2ptun: connection not carried to /x/test on `+tun.service.id+`: .*too many connections`)
		tun.listen.saysOnStderr(t, "refused "+tun.client.id+", which asked for "+testProtocol+": too many connections")
		wantReason(t, tun.service, "max-streams 2: 1 connection refused")
		if st := listed(t, tun.client); st.State != registry.StateReady || st.Reason != "" {
			t.Errorf("the forward is %s: %q", st.State, st.Reason)
		}
		wantEcho(t, first, "and still one")
		second.Close()
		await(t, "the freed slot is usable", func() bool { return echoes(tun.forward) })
		wantEcho(t, first, "and still one")
	})
}

func TestEachPeerHasALimitOfItsOwn(t *testing.T) {
	s := serve(t, echoBack)
	tun := startTunnel(t, overTCP, s.addr(), "--peer-max-streams", "1")
	other := newNode(t)
	tun.service.run("allow", testProtocol, other.id)
	otherForward := startForward(other, testProtocol, tun.listen.addr)
	c := tun.forward.dial(t)
	wantEcho(t, c, "my only one")
	wantResetAtOnce(t, tun.forward)
	wantResetAtOnce(t, tun.forward)
	wantEcho(t, otherForward.dial(t), "mine")
	wantReason(t, tun.service, "peer-max-streams 1: 2 connections refused")
	wantEcho(t, c, "my only one")
}

// A kept tunnel has its limits after a restart too.
func TestLimitsOfAKeptTunnelOutliveItsNode(t *testing.T) {
	s := serve(t, echoBack)
	n, client := newNode(t), newNode(t)
	n.run("allow", testProtocol, client.id)
	d := startDaemon(n)
	n.run("listen", testProtocol, s.addr(), "--bg", "--max-streams", "1")
	d.kill()
	startDaemon(n)
	await(t, "the tunnel is there again", func() bool { return strings.Contains(n.run("ls", "--json"), testProtocol) })
	var self struct{ Addrs []string }
	if err := json.Unmarshal([]byte(n.run("id", "--json")), &self); err != nil || len(self.Addrs) == 0 {
		t.Fatalf("addresses %v, %v", self.Addrs, err)
	}
	f := startForward(client, testProtocol, self.Addrs[0])
	c := f.dial(t)
	wantEcho(t, c, "one")
	wantResetAtOnce(t, f)
	wantReason(t, n, "max-streams 1: 1 connection refused")
}

// Bytes take at least the time that the rate gives them, less what a bucket
// holds, an eighth of a second; and not one is lost.
func TestARateHoldsBothWaysByteExact(t *testing.T) {
	for _, flag := range []string{"--max-rate", "--peer-max-rate"} {
		t.Run(flag, func(t *testing.T) {
			eachTransport(t, func(t *testing.T, transport string) { bothWaysAtRate(t, transport, flag) })
		})
	}
}

func bothWaysAtRate(t *testing.T, transport, flag string) {
	const rate, n = 1_000_000, 2_500_000
	least := time.Duration(n-rate/8) * time.Second / rate
	upload, reply := randomBytes(1, n), randomBytes(2, n)
	s, got := swapping(t, reply)
	tun := startTunnel(t, transport, s.addr(), flag, "1MB/s")
	start := time.Now()
	c := tun.forward.dial(t)
	begin(c)
	go func() {
		_, _ = c.Write(upload)
		_ = c.CloseWrite()
	}()
	down, _, err := hashAll(c)
	downTook := time.Since(start)
	up := <-got
	upTook := time.Since(start)
	if err != nil || down != hashOf(reply) {
		t.Errorf("the reply was changed on its way: %v", err)
	}
	if up.err != nil || up.sum != hashOf(upload) {
		t.Errorf("%d bytes of the upload came through, or others: %v", up.n, up.err)
	}
	if downTook < least || upTook < least {
		t.Errorf("up took %v, down %v, want at least %v", upTook, downTook, least)
	}
}

// swapping is a service that sends its reply while it reads to the end.
func swapping(t testing.TB, reply []byte) (*service, <-chan outcome) {
	t.Helper()
	got := make(chan outcome, 1)
	return serve(t, func(c net.Conn) {
		if !begun(c) {
			return
		}
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(reply)
			sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
		}()
		sum, n, err := hashAll(c)
		got <- outcome{sum, n, errors.Join(err, <-sent)}
	}), got
}

func TestDenyResetsAConnectionThatARateHoldsBack(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s, _ := pushing(t)
		tun := startTunnel(t, transport, s.addr(), "--max-rate", "100k")
		c := tun.forward.dial(t)
		begin(c)
		if _, err := io.ReadFull(c, make([]byte, 50_000)); err != nil {
			t.Fatal(err)
		}
		tr := &transfer{c: c, ended: make(chan error, 1)}
		go func() {
			_, err := io.Copy(io.Discard, c)
			tr.ended <- err
		}()
		wantReason(t, tun.service, "max-rate 100 kB/s: slowed")
		tun.service.run("deny", testProtocol, tun.client.id)
		tr.wantReset(t)
	})
}

func TestLsSaysThatAPeersRateHoldsItBack(t *testing.T) {
	s, _ := pushing(t)
	tun := startTunnel(t, overTCP, s.addr(), "--max-rate", "1GB/s", "--peer-max-rate", "100KiB/s")
	c := tun.forward.dial(t)
	begin(c)
	if _, err := io.ReadFull(c, make([]byte, 50_000)); err != nil {
		t.Fatal(err)
	}
	wantReason(t, tun.service, "peer-max-rate 102 kB/s: slowed")
}

func TestALimitThatCannotBeMeantExitsWith2AndShowsAnExample(t *testing.T) {
	n := newNode(t)
	for flag, says := range map[string]string{
		"--max-streams=0":        "--max-streams 100",
		"--peer-max-streams=-1":  "--peer-max-streams 100",
		"--max-rate=fast":        "--max-rate 5MB/s",
		"--peer-max-rate=5Mbit":  "--peer-max-rate 5MB/s",
		"--max-rate=0":           "--max-rate 5MB/s",
		"--peer-max-rate=-5MB/s": "--peer-max-rate 5MB/s",
	} {
		name, _, _ := strings.Cut(flag, "=")
		wantExit(t, n.start("listen", "ssh", "22", flag), 2, "flag "+name, "p2ptun: hint: "+says)
	}
}
