//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"p2ptun/daemon"
	"p2ptun/home"
	"p2ptun/registry"
)

// One home is one identity is one process: who owns a home, and what happens
// to the others when the owner ends. All of it with real processes.

// alone are the flags of a node that nobody finds.
var alone = []string{"--network", "none", "--listen-addr", overTCP}

// hosting starts a command with those flags.
func (n *node) hosting(args ...string) *process {
	n.t.Helper()
	return n.start(append(args, alone...)...)
}

// startDaemon returns when it is ready.
func startDaemon(n *node, flags ...string) *process {
	n.t.Helper()
	p := n.hosting(append([]string{"daemon"}, flags...)...)
	p.waitFor(n.t, &p.out, `tunnels    \d+ kept`)
	return p
}

// offer starts a `listen` and returns when it is ready, in this process or in
// the owner's.
func offer(n *node, protocol, target string, flags ...string) *process {
	n.t.Helper()
	p := n.start(append([]string{"listen", protocol, target}, flags...)...)
	p.waitFor(n.t, &p.out, `forward    .*`)
	return p
}

// socket is the path of the node's control socket.
func (n *node) socket() string {
	n.t.Helper()
	path, err := home.Dir(n.home).Socket()
	if err != nil {
		n.t.Fatal(err)
	}
	return path
}

func (n *node) client() *daemon.Client { return daemon.NewClient(n.socket()) }

// status asks the owner; ok is false where none answers.
func (n *node) status() (st daemon.Status, ok bool) {
	st, err := n.client().Status(context.Background())
	return st, err == nil
}

// tunnels lists the protocols of the owner's tunnels; nothing where none
// answers.
func (n *node) tunnels() string {
	list, err := n.client().Tunnels(context.Background())
	if err != nil {
		return ""
	}
	var names []string
	for _, t := range list {
		names = append(names, t.Protocol)
	}
	return strings.Join(names, " ")
}

// overSocket is an HTTP client of the control socket, as curl is one.
func overSocket(n *node) *http.Client {
	path := n.socket()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	n.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// sendSignal sends one.
func sendSignal(t testing.TB, p *process, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func TestCommandsOfTheSameInstantHaveOneOwner(t *testing.T) {
	for _, count := range []int{2, 20} {
		t.Run(strconv.Itoa(count), func(t *testing.T) {
			n, echo := newNode(t), serve(t, echoBack)
			var all []*process
			for i := range count {
				all = append(all, n.hosting("listen", fmt.Sprintf("/x/s%d", i), echo.addr()))
			}
			for _, p := range all {
				p.waitFor(t, &p.out, `forward    .*`)
			}
			st, ok := n.status()
			if !ok || st.Tunnels != count || st.Sessions != count {
				t.Fatalf("status %+v, want %d tunnels and sessions in one owner", st, count)
			}
			n.run("stop")
			for _, p := range all {
				if code := p.exit(t); code != 0 {
					t.Errorf("exit code %d: %s", code, p.err.String())
				}
			}
		})
	}
}

func TestAttachedForwardTakesOverFromAKilledOwnerOnItsOwnPort(t *testing.T) {
	tun := startTunnel(t, overTCP, serve(t, echoBack).addr())
	attached := &forwarding{process: tun.client.start("forward", testProtocol, tun.listen.addr)}
	attached.bind = attached.waitFor(t, &attached.out, `forwarding (\S+) → .*`)[1]
	await(t, "the attached tunnel works", func() bool { return echoes(attached) })
	tun.forward.kill()
	attached.saysOnStderr(t, "taking over")
	await(t, "the attached tunnel works again", func() bool { return echoes(attached) })
	st, ok := tun.client.status()
	if !ok || st.Hosting.Network != daemon.NetworkNone || len(st.Hosting.ListenAddrs) != 1 || st.Hosting.ListenAddrs[0] != overTCP {
		t.Fatalf("the node is hosted as %+v, want what the owner before had", st.Hosting)
	}
	interrupt(t, attached.process)
	if code := attached.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
}

func TestAttachedListenTakesOverFromAKilledOwner(t *testing.T) {
	service, client, echo := newNode(t), newNode(t), serve(t, echoBack)
	owner := startListen(service, multiaddr(closedAddr(t)), "/x/other", echo.addr())
	attached := offer(service, testProtocol, echo.addr(), "--allow", client.id)
	f := startForward(client, testProtocol, owner.addr)
	await(t, "the tunnel works", func() bool { return echoes(f) })
	owner.kill()
	attached.saysOnStderr(t, "taking over")
	await(t, "the tunnel works again", func() bool { return echoes(f) })
	if got := service.tunnels(); got != testProtocol {
		t.Fatalf("tunnels %q, want that of the command that lives", got)
	}
}

func TestManyAttachedCommandsAgreeOnOneHeir(t *testing.T) {
	const attachedCount = 8
	n, echo := newNode(t), serve(t, echoBack)
	owner := startDaemon(n)
	var want []string
	for i := range attachedCount {
		want = append(want, fmt.Sprintf("/x/s%d", i))
		offer(n, want[i], echo.addr())
	}
	owner.kill()
	await(t, "all tunnels are open again in one owner", func() bool {
		st, ok := n.status()
		return ok && st.Tunnels == attachedCount && st.Sessions == attachedCount
	})
}

func TestCommandThatStillProvesSurvivesItsOwnersDeath(t *testing.T) {
	n, away := newNode(t), newNode(t)
	owner := startDaemon(n)
	p := n.start("forward", testProtocol, silentPeer(t, away.id), "--dial-timeout", "5s")
	await(t, "the command is at it", func() bool { return n.tunnels() == testProtocol })
	owner.kill()
	wantExit(t, p, 4, "not reached")
}

func TestInterruptedOwnerHostsOnForOthersAndSaysSo(t *testing.T) {
	n, echo := newNode(t), serve(t, echoBack)
	owner := startListen(n, overTCP, "/x/mine", echo.addr())
	other := offer(n, "/x/other", echo.addr())
	interrupt(t, owner.process)
	owner.saysOnStderr(t, "still hosting those of 1 other")
	await(t, "only the other tunnel is left", func() bool { return n.tunnels() == "/x/other" })
	interrupt(t, other)
	for _, p := range []*process{other, owner.process} {
		if code := p.exit(t); code != 0 {
			t.Errorf("exit code %d: %s", code, p.err.String())
		}
	}
}

func TestSecondInterruptOfTheOwnerEndsAll(t *testing.T) {
	n, echo := newNode(t), serve(t, echoBack)
	owner := startListen(n, overTCP, "/x/mine", echo.addr())
	other := offer(n, "/x/other", echo.addr())
	interrupt(t, owner.process)
	owner.saysOnStderr(t, "still hosting")
	interrupt(t, owner.process)
	for _, p := range []*process{other, owner.process} {
		if code := p.exit(t); code != 0 {
			t.Errorf("exit code %d: %s", code, p.err.String())
		}
	}
	if strings.Contains(other.err.String(), "taking over") {
		t.Error("the other command took over what was to end")
	}
}

func TestLoneOwnerSaysNothingOfOthers(t *testing.T) {
	const tries = 5
	n, echo := newNode(t), serve(t, echoBack)
	for range tries {
		owner := startListen(n, overTCP, "/x/mine", echo.addr())
		interrupt(t, owner.process)
		if code := owner.exit(t); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		if said := owner.err.String(); said != "" {
			t.Fatalf("it said %q", said)
		}
	}
}

func TestFailingOwnerSaysAtOnceWhyThoughItHostsOthers(t *testing.T) {
	n, away, echo := newNode(t), newNode(t), serve(t, echoBack)
	owner := n.hosting("forward", testProtocol, silentPeer(t, away.id), "--dial-timeout", "5s")
	await(t, "the owner is at it", func() bool { return n.tunnels() == testProtocol })
	other := offer(n, "/x/other", echo.addr())
	owner.saysOnStderr(t, "not reached")
	if !owner.alive() || !strings.Contains(n.tunnels(), "/x/other") {
		t.Fatal("the owner does not host the other tunnel any more")
	}
	interrupt(t, other)
	wantExit(t, owner, 4, "not reached")
}

func TestKilledCommandTakesItsTunnelAlong(t *testing.T) {
	n, echo := newNode(t), serve(t, echoBack)
	owner := startDaemon(n)
	attached := offer(n, testProtocol, echo.addr())
	attached.kill()
	await(t, "its tunnel is gone", func() bool { st, ok := n.status(); return ok && st.Tunnels == 0 && st.Sessions == 0 })
	interrupt(t, owner)
	if code := owner.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
}

func TestAttachedCommandThatWantsOtherHostingIsRefused(t *testing.T) {
	n, echo := newNode(t), serve(t, echoBack)
	startDaemon(n)
	for flag, value := range map[string]string{"--network": "lan", "--listen-addr": "/ip4/127.0.0.1/tcp/1"} {
		p := n.start("listen", testProtocol, echo.addr(), flag, value)
		wantExit(t, p, 1, "the running node", "hint: p2ptun")
	}
	same := n.hosting("listen", testProtocol, echo.addr())
	same.waitFor(t, &same.out, `forward    .*`)
}

func TestCommandStartedWhileTheOwnerEndsIsServed(t *testing.T) {
	const tries = 8
	n, echo := newNode(t), serve(t, echoBack)
	for i := range tries {
		owner := startListen(n, overTCP, "/x/first", echo.addr())
		next := n.hosting("listen", "/x/next", echo.addr())
		<-time.After(time.Duration(i) * 40 * time.Millisecond) // any moment of the next one's start
		interrupt(t, owner.process)
		next.waitFor(t, &next.out, `forward    .*`)
		interrupt(t, next)
		for _, p := range []*process{next, owner.process} {
			if code := p.exit(t); code != 0 {
				t.Fatalf("exit code %d: %s", code, p.err.String())
			}
		}
	}
}

// silentPeer is the address of a peer that takes connections and never says a
// word.
func silentPeer(t testing.TB, id string) string {
	t.Helper()
	silent := serve(t, func(net.Conn) { <-t.Context().Done() })
	return multiaddr(silent.addr()) + "/p2p/" + id
}

func multiaddr(hostPort string) string {
	host, port, _ := net.SplitHostPort(hostPort)
	return "/ip4/" + host + "/tcp/" + port
}

// keptTunnel is what `listen --bg` hands over.
func keptTunnel(protocol, target string) registry.Tunnel {
	return registry.Tunnel{Kind: registry.KindListen, Protocol: protocol, Target: multiaddr(target)}
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
