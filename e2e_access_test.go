//go:build unix

package main

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// withdrawn bounds how long a connection lives on after its right has gone; a
// second is promised.
const withdrawn = 3 * time.Second

// transfer is a download that runs.
type transfer struct {
	c     net.Conn
	ended chan error // how reading ended
}

// startTransfer returns when bytes flow.
func startTransfer(t testing.TB, f *forwarding) *transfer {
	t.Helper()
	tr := &transfer{c: f.dial(t), ended: make(chan error, 1)}
	begin(tr.c)
	if _, err := io.ReadFull(tr.c, make([]byte, 1<<20)); err != nil {
		t.Fatalf("the transfer does not run: %v", err)
	}
	go func() {
		_, err := io.Copy(io.Discard, tr.c)
		tr.ended <- err
	}()
	return tr
}

// wantReset fails unless the transfer is reset soon.
func (tr *transfer) wantReset(t testing.TB) {
	t.Helper()
	select {
	case err := <-tr.ended:
		if !isReset(err) {
			t.Fatalf("the transfer ended with %v, want a reset", err)
		}
	case <-time.After(withdrawn):
		t.Fatalf("the transfer still runs %s after the right has gone", withdrawn)
	}
}

func TestDenyEndsATransferThatRuns(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s, _ := pushing(t)
		tun := startTunnel(t, transport, s.addr())
		tr := startTransfer(t, tun.forward)
		tun.service.run("deny", testProtocol, tun.client.id)
		tr.wantReset(t)
		wantResetAtOnce(t, tun.forward)
		tun.forward.saysOnStderr(t, "access revoked")
		tun.forward.saysOnStderr(t, "refused")
	})
}

func TestDenyWinsOverTheAllowFlag(t *testing.T) {
	s, _ := pushing(t)
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, s.addr(), "--allow", client.id)
	f := startForward(client, testProtocol, l.addr)
	tr := startTransfer(t, f)
	service.run("deny", testProtocol, client.id)
	tr.wantReset(t)
}

func TestDenyOfOnePeerLeavesTheOthers(t *testing.T) {
	s, _ := pushing(t)
	tun := startTunnel(t, overTCP, s.addr())
	other := newNode(t)
	tun.service.run("allow", testProtocol, other.id)
	stays := startTransfer(t, startForward(other, testProtocol, tun.listen.addr))
	goes := startTransfer(t, tun.forward)
	tun.service.run("deny", testProtocol, tun.client.id)
	goes.wantReset(t)
	select {
	case err := <-stays.ended:
		t.Fatalf("the transfer of the peer that is still allowed ended: %v", err)
	default:
		stays.c.Close()
		<-stays.ended
	}
}

func TestEditingTheAccessFileEndsATransferThatRuns(t *testing.T) {
	s, _ := pushing(t)
	tun := startTunnel(t, overTCP, s.addr())
	tr := startTransfer(t, tun.forward)
	edit(t, tun.service.access(), "allow "+testProtocol, "deny "+testProtocol)
	tr.wantReset(t)
	edit(t, tun.service.access(), "deny "+testProtocol, "allow "+testProtocol)
	await(t, "the peer is let in again", func() bool { return pushes(tun.forward) })
}

func TestRemovingTheAccessFileEndsATransferThatRuns(t *testing.T) {
	s, _ := pushing(t)
	tun := startTunnel(t, overTCP, s.addr())
	tr := startTransfer(t, tun.forward)
	if err := os.Remove(tun.service.access()); err != nil {
		t.Fatal(err)
	}
	tr.wantReset(t)
}

func TestBrokenAccessFileRefusesEverybodyAndSaysSo(t *testing.T) {
	s, _ := pushing(t)
	tun := startTunnel(t, overTCP, s.addr())
	tr := startTransfer(t, tun.forward)
	edit(t, tun.service.access(), "allow "+testProtocol, "alow "+testProtocol)
	tr.wantReset(t)
	wantResetAtOnce(t, tun.forward)
	tun.listen.waitFor(t, &tun.listen.err, `.*nobody is let in: .*access: line \d+: alow is none of allow, deny, group, invite, used; hint: edit line \d+ of .*`)
	if p := tun.service.start("access", "ls"); p.exit(t) != 1 || !strings.Contains(p.err.String(), "alow is none of allow, deny, group, invite, used") {
		t.Errorf("access ls: exit code %d: %s", p.exit(t), p.err.String())
	}
	edit(t, tun.service.access(), "alow "+testProtocol, "allow "+testProtocol)
	tun.listen.waitFor(t, &tun.listen.err, "p2ptun: "+testProtocol+": ready")
	await(t, "the mended file lets the peer in again", func() bool { return pushes(tun.forward) })
}

// edit replaces a piece of a file's text, as a person does.
func edit(t testing.TB, path, was, is string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.ReplaceAll(string(text), was, is)
	if edited == string(text) {
		t.Fatalf("%s holds no %q: %s", path, was, text)
	}
	writeFile(t, path, edited)
}

// pushes says whether a new connection carries the service's bytes.
func pushes(f *forwarding) bool {
	c, err := net.Dial("tcp", f.hostPort())
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	begin(c)
	_, err = io.ReadFull(c, make([]byte, 1000))
	return err == nil
}

// A mistyped name in a deny would leave the door open, and say nothing.
func TestChangeForAServiceThatIsNotOfferedSaysSo(t *testing.T) {
	s, _ := pushing(t)
	tun := startTunnel(t, overTCP, s.addr())
	for _, args := range [][]string{{"deny", "mistyped", tun.client.id}, {"allow", "mistyped", tun.client.id}, {"invite", "mistyped"}} {
		if p := tun.service.start(args...); p.exit(t) != 0 || !strings.Contains(p.err.String(), "nobody listens on /x/mistyped here now") {
			t.Errorf("%s: %s", args[0], p.err.String())
		}
	}
	for _, args := range [][]string{{"deny", testProtocol, tun.client.id}, {"allow", testProtocol, tun.client.id}, {"invite", testProtocol}, {"allow", "/relay/reserve", tun.client.id}} {
		if p := tun.service.start(args...); p.exit(t) != 0 || strings.Contains(p.err.String(), "nobody listens") {
			t.Errorf("%s: %s", args[0], p.err.String())
		}
	}
}
