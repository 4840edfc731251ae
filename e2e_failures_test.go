//go:build unix

package main

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// atOnce bounds what must not hang, generously: what a hang would take is 30 s
// and more.
const atOnce = 5 * time.Second

// wantResetAtOnce opens a connection, which must be reset at once: so soon, at
// times, that connect(2) hears of it already.
func wantResetAtOnce(t testing.TB, f *forwarding) {
	t.Helper()
	c, err := net.Dial("tcp", f.hostPort())
	if isReset(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(atOnce))
	wantReset(t, c)
}

// closedAddr is an address where nobody listens.
func closedAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestServiceThatGoesDownResetsClientsAndIsNamed(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, echoBack)
		tun := startTunnel(t, transport, s.addr())
		wantEcho(t, tun.forward.dial(t), "it is up")
		s.stop()
		wantResetAtOnce(t, tun.forward)
		tun.forward.saysOnStderr(t, "service down")
		tun.forward.saysOnStderr(t, "connection not carried to "+testProtocol+" on "+tun.service.id)
	})
}

func TestServiceThatComesBackIsCarriedAgain(t *testing.T) {
	s := serve(t, echoBack)
	tun := startTunnel(t, overTCP, s.addr())
	s.stop()
	wantResetAtOnce(t, tun.forward)
	l, err := net.Listen("tcp", s.addr())
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, echoBack)
	wantEcho(t, tun.forward.dial(t), "it is up again")
}

// wantExit checks the exit code and what is said on stderr.
func wantExit(t testing.TB, p *process, code int, says ...string) {
	t.Helper()
	if got := p.exit(t); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	for _, text := range append(says, "p2ptun: error: ", "p2ptun: hint: ") {
		if !strings.Contains(p.err.String(), text) {
			t.Errorf("stderr lacks %q", text)
		}
	}
	if out := p.out.String(); out != "" {
		t.Errorf("stdout is %q, want nothing before proof", out)
	}
}

func TestServiceDownAtStartExitsWith5(t *testing.T) {
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, closedAddr(t), "--allow", client.id)
	l.saysOnStderr(t, "connection refused")
	p := beginForward(client, testProtocol, l.addr)
	wantExit(t, p, 5, "service not answering", "--wait")
}

func TestServiceThatIsNotThereExitsWith5(t *testing.T) {
	service, client := newNode(t), newNode(t)
	service.run("allow", "/x/other", client.id)
	s := serve(t, echoBack)
	l := startListen(service, overTCP, testProtocol, s.addr())
	p := beginForward(client, "/x/other", l.addr)
	wantExit(t, p, 5, "no such service", "p2ptun listen /x/other")
}

func TestPeerThatIsNotAllowedExitsWith3AndReadsWhoItIs(t *testing.T) {
	service, client := newNode(t), newNode(t)
	s := serve(t, echoBack)
	l := startListen(service, overTCP, testProtocol, s.addr())
	p := beginForward(client, testProtocol, l.addr)
	wantExit(t, p, 3, "this machine is peer "+client.id, "asked for "+testProtocol, "p2ptun allow "+testProtocol+" "+client.id)
	l.saysOnStderr(t, "refused "+client.id+", which asked for "+testProtocol)
	l.saysOnStderr(t, "allow "+testProtocol+" "+client.id)
}

func TestStrangerReadsTheSameWhetherTheServiceExistsOrNot(t *testing.T) {
	service, client := newNode(t), newNode(t)
	s := serve(t, echoBack)
	l := startListen(service, overTCP, testProtocol, s.addr())
	there := beginForward(client, testProtocol, l.addr)
	wantExit(t, there, 3)
	not := beginForward(client, "/x/nothing", l.addr)
	wantExit(t, not, 3)
	if got := strings.ReplaceAll(not.err.String(), "/x/nothing", testProtocol); got != there.err.String() {
		t.Fatalf("a stranger reads %q for a service that is not there, %q for one that is", got, there.err.String())
	}
}

func TestPeerThatIsAwayExitsWith4(t *testing.T) {
	away := newNode(t)
	addr := "/ip4/127.0.0.1/tcp/" + strings.Split(closedAddr(t), ":")[1] + "/p2p/" + away.id
	p := beginForward(newNode(t), testProtocol, addr)
	wantExit(t, p, 4, away.id, "--wait")
}

func TestLocalAddressThatIsTakenExitsWith6(t *testing.T) {
	s := serve(t, echoBack)
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, s.addr(), "--allow", client.id)
	p := beginForward(client, testProtocol, s.addr(), l.addr)
	wantExit(t, p, 6, "local address taken")
}

func TestForwardComesBackAfterItsPeerWasKilled(t *testing.T) {
	s := serve(t, echoBack)
	service, client := newNode(t), newNode(t)
	service.run("allow", testProtocol, client.id)
	l := startListen(service, overTCP, testProtocol, s.addr())
	f := startForward(client, testProtocol, l.addr, "--survive", "0")
	live := dialEchoing(t, f, 5)
	l.kill()
	for _, c := range live {
		_ = c.SetDeadline(time.Now().Add(atOnce))
		wantReset(t, c)
	}
	for range 3 {
		wantResetAtOnce(t, f)
	}
	f.saysOnStderr(t, "peer away")
	f.saysOnStderr(t, "connection not carried")

	startListen(service, l.where(), testProtocol, s.addr())
	await(t, "the forward carries bytes again", func() bool { return echoes(f) })
	if !f.alive() {
		t.Fatal("the forward has ended")
	}
}

// dialEchoing makes connections through a forward that have echoed something.
func dialEchoing(t testing.TB, f *forwarding, n int) (live []net.Conn) {
	t.Helper()
	for range n {
		c := f.dial(t)
		wantEcho(t, c, "before")
		live = append(live, c)
	}
	return live
}

// TestConnectionsOfAPeerThatHasRestartedAreReset: they wait while it is away, as
// nobody can know whether it comes back as it was. When it is back and knows
// nothing of them, they end at once.
func TestConnectionsOfAPeerThatHasRestartedAreReset(t *testing.T) {
	s := serve(t, echoBack)
	tun := startTunnel(t, overTCP, s.addr())
	live := dialEchoing(t, tun.forward, 5)
	tun.listen.kill()
	tun.forward.saysOnStderr(t, "5 connections, /x/test on "+tun.service.id+": the way is lost; kept for up to 1h0m0s")
	late := tun.forward.dial(t)
	startListen(tun.service, tun.listen.where(), testProtocol, s.addr())
	for _, c := range live {
		wantReset(t, c)
	}
	tun.forward.saysOnStderr(t, "the peer has started anew")
	wantEcho(t, late, "that waited")
	wantEcho(t, tun.forward.dial(t), "a new one")
}

// echoes tries one connection.
func echoes(f *forwarding) bool {
	c, err := net.Dial("tcp", f.hostPort())
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, "still there?")
	got := make([]byte, len("still there?"))
	_, err = io.ReadFull(c, got)
	return err == nil && string(got) == "still there?"
}

func TestWaitingForwardBindsBeforeItsPeerIsThere(t *testing.T) {
	s := serve(t, echoBack)
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, s.addr(), "--allow", client.id)
	l.kill()
	f := startForward(client, testProtocol, l.addr, "--wait")
	wantResetAtOnce(t, f)
	startListen(service, l.where(), testProtocol, s.addr(), "--allow", client.id)
	await(t, "the forward carries bytes", func() bool { return echoes(f) })
}

func TestInterruptLetsLiveConnectionsFinishAndExitsWith0(t *testing.T) {
	s := serve(t, echoBack)
	tun := startTunnel(t, overTCP, s.addr())
	c := tun.forward.dial(t)
	wantEcho(t, c, "before")
	interrupt(t, tun.forward.process)
	tun.forward.saysOnStderr(t, "may finish within")
	wantEcho(t, c, "after the signal")
	_ = c.CloseWrite()
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Fatalf("the drained connection ended with %v", err)
	}
	if code := tun.forward.exit(t); code != 0 {
		t.Fatalf("exit code %d, want 0", code)
	}
}
