//go:build unix

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// How an owner ends: by a signal, by `p2ptun stop`, with live connections.

func TestStopEndsTheNodeAndAllAttachedCommands(t *testing.T) {
	const tries = 5
	n, echo := newNode(t), serve(t, echoBack)
	for range tries {
		all := []*process{startDaemon(n), offer(n, "/x/a", echo.addr()), offer(n, "/x/b", echo.addr())}
		n.run("stop")
		for _, p := range all {
			if code := p.exit(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if said := p.err.String(); strings.Contains(said, "taking over") {
				t.Fatalf("an attached command took over what was to end: %s", said)
			}
		}
		wantExit(t, n.start("ls"), 7)
	}
}

func TestStopOfAForegroundOwnerEndsItAndTheOthers(t *testing.T) {
	n, echo := newNode(t), serve(t, echoBack)
	all := []*process{startListen(n, overTCP, "/x/a", echo.addr()).process, offer(n, "/x/b", echo.addr())}
	n.run("stop")
	for _, p := range all {
		if code := p.exit(t); code != 0 {
			t.Errorf("exit code %d: %s", code, p.err.String())
		}
	}
}

func TestTerminatedDaemonHandsOverToAllAttachedCommands(t *testing.T) {
	const attachedCount = 5
	n, echo := newNode(t), serve(t, echoBack)
	owner := startDaemon(n)
	var all []*process
	for i := range attachedCount {
		all = append(all, offer(n, fmt.Sprintf("/x/s%d", i), echo.addr()))
	}
	sendSignal(t, owner, syscall.SIGTERM)
	if code := owner.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	await(t, "all tunnels are open again", func() bool {
		st, ok := n.status()
		return ok && st.Tunnels == attachedCount
	})
	for _, p := range all {
		if !p.alive() {
			t.Errorf("a command ended: %s", p.err.String())
		}
	}
}

func TestHandOverWaitsForWhatAnotherTunnelStillCarries(t *testing.T) {
	tun := startTunnel(t, overTCP, serve(t, echoBack).addr())
	interrupt(t, tun.forward.process)
	if code := tun.forward.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	owner := startDaemon(tun.client, "--drain", "1m")
	busy := &forwarding{process: tun.client.start("forward", testProtocol, tun.listen.addr)}
	busy.bind = busy.waitFor(t, &busy.out, `forwarding (\S+) → .*`)[1]
	idle := offer(tun.client, "/x/idle", closedAddr(t))
	c := busy.dial(t)
	wantEcho(t, c, "before")
	sendSignal(t, owner, syscall.SIGTERM)
	idle.saysOnStderr(t, "taking over")
	wantEcho(t, c, "meanwhile")
	c.Close()
	await(t, "both tunnels are open again", func() bool {
		st, ok := tun.client.status()
		return ok && st.Tunnels == 2 && !owner.alive()
	})
	await(t, "the tunnel works again", func() bool { return echoes(busy) })
	if !idle.alive() {
		t.Fatal("the idle command has ended")
	}
}

func TestLiveConnectionMayFinishWithinTheDrain(t *testing.T) {
	tun := startTunnel(t, overTCP, serve(t, echoBack).addr(), "--drain", "1m")
	c := tun.forward.dial(t)
	wantEcho(t, c, "before")
	interrupt(t, tun.listen.process)
	tun.listen.saysOnStderr(t, "live connections: 1")
	wantEcho(t, c, "after")
	await(t, "no new connection is carried", func() bool { return !echoes(tun.forward) })
	wantEcho(t, c, "still")
	if !tun.listen.alive() {
		t.Fatal("the listener did not wait")
	}
	_ = c.CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Fatalf("at the end %q, %v", rest, err)
	}
	if code := tun.listen.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
}

func TestSecondSignalEndsTheDrainAtOnce(t *testing.T) {
	for _, who := range []string{"listen", "daemon"} {
		t.Run(who, func(t *testing.T) {
			service, client, echo := newNode(t), newNode(t), serve(t, echoBack)
			host := service.hosting("daemon", "--drain", "1h")
			host.waitFor(t, &host.out, `tunnels    .*`)
			st, _ := service.status()
			args := []string{"listen", testProtocol, echo.addr(), "--allow", client.id, "--drain", "1h"}
			stops := service.start(args...)
			stops.waitFor(t, &stops.out, `forward    .*`)
			f := startForward(client, testProtocol, st.Addrs[0])
			c := f.dial(t)
			wantEcho(t, c, "before")
			if who == "daemon" {
				stops = host
			}
			interrupt(t, stops)
			await(t, "it drains", func() bool { return !echoes(f) })
			wantEcho(t, c, "still there")
			interrupt(t, stops)
			wantCutOff(t, c)
			if code := stops.exit(t); code != 0 {
				t.Fatalf("exit code %d", code)
			}
		})
	}
}

const nobodyID = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"

func TestHungOwnerIsNamedAndNotTakenForNone(t *testing.T) {
	n := newNode(t)
	owner := startDaemon(n)
	sendSignal(t, owner, syscall.SIGSTOP)
	defer func() { _ = owner.cmd.Process.Signal(syscall.SIGCONT) }()
	kill := fmt.Sprintf("hint: kill %d", owner.cmd.Process.Pid)
	for _, args := range [][]string{{"ls"}, {"stop"}} {
		wantExit(t, n.start(args...), 1, "does not answer", kill)
	}
	wantExit(t, n.hosting("daemon"), 1, "another process")
	wantExit(t, n.start("deny", "ssh", nobodyID), 1, "the rule is written, but nobody has confirmed it", kill)
	sendSignal(t, owner, syscall.SIGCONT)
	if got := n.run("access", "ls"); !strings.Contains(got, nobodyID) {
		t.Errorf("the denial is not there: %q", got)
	}
	sendSignal(t, owner, syscall.SIGTERM) // as the hint says
	if code := owner.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	wantExit(t, n.start("ls"), 7)
}

func TestListWhileTheNodeStartsWaitsForIt(t *testing.T) {
	n := newNode(t)
	lock := filepath.Join(n.home, "lock")
	n.hosting("daemon")
	await(t, "the daemon has the home", func() bool {
		text, err := os.ReadFile(lock)
		return err == nil && len(text) > 0
	})
	n.run("ls")
}

func TestCloseCutsWhatDrains(t *testing.T) {
	tun := startTunnel(t, overTCP, serve(t, echoBack).addr(), "--drain", "1h")
	c := tun.forward.dial(t)
	wantEcho(t, c, "before")
	interrupt(t, tun.listen.process)
	tun.listen.saysOnStderr(t, "live connections: 1")
	tun.service.run("close", "-p", testProtocol)
	wantCutOff(t, c)
	if code := tun.listen.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
}

// wantCutOff waits for the end of a connection, of whatever kind.
func wantCutOff(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil && !isReset(err) {
		t.Fatalf("%v, want the connection's end", err)
	}
}
