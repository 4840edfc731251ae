//go:build unix

package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mr-tron/base58"

	"p2ptun/daemon"
	"p2ptun/home"
	"p2ptun/proto"
	"p2ptun/registry"
)

// Invites as people use them: real processes on both sides.

// startInviting runs `listen --invite` and returns when it is ready, with the
// text of the invite.
func startInviting(n *node, transport, target string, flags ...string) (*listening, string) {
	n.t.Helper()
	args := []string{"listen", "--network", "none", "--listen-addr", transport, "--invite", testProtocol, target}
	l := &listening{process: n.start(append(args, flags...)...)}
	l.addr = l.waitFor(n.t, &l.out, `address    (\S+)`)[1]
	return l, l.waitFor(n.t, &l.out, `invite     p2ptun forward (p2ptun1\S+)( \d+)?`)[1]
}

// invite makes one with `p2ptun invite`.
func (n *node) invite(protocol string, flags ...string) daemon.InviteReply {
	n.t.Helper()
	var made daemon.InviteReply
	out := n.run(append([]string{"--json", "invite", protocol}, flags...)...)
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		n.t.Fatalf("%q: %v", out, err)
	}
	return made
}

// grants lists what `access ls` says: a row a word list.
func (n *node) grants(verdict string) (rows []string) {
	n.t.Helper()
	for row := range strings.Lines(n.run("access", "ls")) {
		if strings.HasPrefix(row, verdict+" ") {
			rows = append(rows, row)
		}
	}
	return rows
}

// isReady says whether the node runs, and all its tunnels are ready.
func (n *node) isReady() bool {
	list, err := n.client().Tunnels(n.t.Context())
	return err == nil && len(list) > 0 && !slices.ContainsFunc(list, func(t registry.TunnelStatus) bool {
		return t.State != registry.StateReady
	})
}

func TestInviteIsInTheReadyEventWhereItIsAskedFor(t *testing.T) {
	n, echo := newNode(t), serve(t, echoBack)
	p := n.hosting("--json", "listen", "--invite", testProtocol, echo.addr())
	ready := p.waitFor(t, &p.out, `\{"event":"ready".*`)[0]
	var e daemon.Event
	if err := json.Unmarshal([]byte(ready), &e); err != nil {
		t.Fatal(err)
	}
	i, err := proto.ParseInvite(e.Invite)
	if err != nil || i.Peer.String() != n.id || i.Protocol != testProtocol || len(i.Addrs) != 1 {
		t.Fatalf("invite %v in %s: %v", i, ready, err)
	}
	if left := time.Until(e.Until); left > daemon.DefaultInvite+time.Second || left < daemon.DefaultInvite-patience {
		t.Errorf("it is over in %s", left)
	}
	if rows := n.grants("invite"); len(rows) != 1 || !strings.Contains(rows[0], i.ID) || !strings.Contains(rows[0], "1 of 1 uses left") {
		t.Errorf("access ls says %q", rows)
	}
}

func TestNoInviteIsMadeUnasked(t *testing.T) {
	echo := serve(t, echoBack)
	for name, flags := range map[string][]string{"text": nil, "json": {"--json"}, "quiet": {"-q"}, "open": {"--open"}} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := n.hosting(append([]string{"listen", testProtocol, echo.addr()}, flags...)...)
			p.waitFor(t, &p.out, `(forward    |\{"event":"ready").*`)
			if text, err := os.ReadFile(n.access()); !os.IsNotExist(err) {
				t.Errorf("the access file is there: %q, %v", text, err)
			}
			if said := p.out.String() + p.err.String(); strings.Contains(said, "p2ptun1") || strings.Contains(said, "invite") {
				t.Errorf("it said %q", said)
			}
		})
	}
}

func TestInviteLetsInTheFirstAndNobodyElse(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		service, first, second := newNode(t), newNode(t), newNode(t)
		l, invite := startInviting(service, transport, serve(t, echoBack).addr())
		wantOneEcho(t, startForward(first, invite))
		l.saysOnStderr(t, first.id+" has redeemed invite")
		wantExit(t, beginForward(second, invite), 3, "no uses left", "p2ptun invite "+testProtocol, "p2ptun allow "+testProtocol+" "+second.id)
		wantExit(t, beginForward(second, testProtocol, l.addr), 3, "not allowed", second.id)
		if rows := service.grants("allow"); len(rows) != 1 || !strings.Contains(rows[0], first.id) {
			t.Errorf("access ls says %q", rows)
		}
	})
}

func TestWhoHasRedeemedAnInviteComesInAgain(t *testing.T) {
	service, client, echo := newNode(t), newNode(t), serve(t, echoBack)
	at := multiaddr(closedAddr(t))
	l, invite := startInviting(service, at, echo.addr())
	f := startForward(client, invite)
	wantOneEcho(t, f)
	f.kill()
	f = startForward(client, invite)
	wantOneEcho(t, f)
	l.kill() // right after an answer: the use must be on disk
	l = startListen(service, at, testProtocol, echo.addr())
	await(t, "the same forward works with the listener's next run", func() bool { return echoes(f) })
	f.kill()
	wantOneEcho(t, startForward(client, invite))
	wantOneEcho(t, startForward(newNodeAllowed(t, service), testProtocol, l.addr)) // others come in as ever
	wantExit(t, beginForward(newNode(t), invite), 3, "no uses left")
}

// newNodeAllowed is a node with a rule of its own at the service.
func newNodeAllowed(t testing.TB, service *node) *node {
	t.Helper()
	n := newNode(t)
	service.run("allow", testProtocol, n.id)
	return n
}

func TestListenerKilledRightAfterItsAnswerHasTheUseOnDisk(t *testing.T) {
	echo := serve(t, echoBack)
	for range 3 {
		service, client := newNode(t), newNode(t)
		at := multiaddr(closedAddr(t))
		l, invite := startInviting(service, at, echo.addr())
		f := beginForward(client, invite, "--wait")
		f.waitFor(t, &f.out, `forwarding .*`)
		await(t, "the use is answered", func() bool { return client.isReady() })
		l.kill()
		startListen(service, at, testProtocol, echo.addr())
		wantExit(t, beginForward(newNode(t), invite), 3, "no uses left")
		f.kill()
		wantOneEcho(t, startForward(client, invite))
	}
}

// invited is a transfer over an invite.
type invited struct {
	service, client *node
	listen          *listening
	forward         *forwarding
	made            daemon.InviteReply
	transfer        *transfer
}

// startInvited returns when bytes flow to a peer that an invite has let in.
func startInvited(t testing.TB, flags ...string) *invited {
	t.Helper()
	s, _ := pushing(t)
	v := &invited{service: newNode(t), client: newNode(t)}
	v.listen = startListen(v.service, overTCP, testProtocol, s.addr())
	v.made = v.service.invite(testProtocol, flags...)
	v.forward = startForward(v.client, v.made.Text)
	v.transfer = startTransfer(t, v.forward)
	return v
}

// wantOut fails unless the transfer is reset soon and nothing is let in after it.
func (v *invited) wantOut(t testing.TB, says string) {
	t.Helper()
	v.transfer.wantReset(t)
	wantResetAtOnce(t, v.forward)
	v.forward.kill()
	wantExit(t, beginForward(v.client, v.made.Text), 3, says)
}

func TestInviteThatIsOverEndsALiveTransfer(t *testing.T) {
	v := startInvited(t, "--for", "3s")
	select {
	case err := <-v.transfer.ended:
		if !isReset(err) {
			t.Errorf("it ended with %v, want a reset", err)
		}
	case <-time.After(time.Until(v.made.Until) + 5*time.Second):
		t.Fatal("it still runs 5 s after the invite was over")
	}
	if early := time.Until(v.made.Until); early > 0 {
		t.Errorf("it was reset %s before the invite was over", early)
	}
	v.forward.saysOnStderr(t, "access revoked")
	wantResetAtOnce(t, v.forward)
	v.forward.kill()
	wantExit(t, beginForward(v.client, v.made.Text), 3, "it is over", "p2ptun invite "+testProtocol)
	if rows := v.service.grants("invite"); len(rows) != 1 || !strings.Contains(rows[0], "(over)") {
		t.Errorf("access ls says %q", rows)
	}
}

func TestRevokedInviteEndsALiveTransfer(t *testing.T) {
	v := startInvited(t)
	v.service.run("invite", "revoke", v.made.ID)
	v.wantOut(t, "not known there")
	if left := v.service.run("access", "ls"); left != "" {
		t.Errorf("access ls says %q", left)
	}
}

func TestDenyWinsOverAnInvite(t *testing.T) {
	v := startInvited(t)
	v.service.run("deny", testProtocol, v.client.id)
	v.wantOut(t, "not allowed")
}

func TestInviteTakenOutOfTheFileEndsALiveTransfer(t *testing.T) {
	v := startInvited(t)
	renameEdit(t, v.service.access(), func(line string) bool { return !strings.Contains(line, v.made.ID) })
	v.wantOut(t, "not known there")
}

func TestUseTakenOutOfTheFileEndsALiveTransfer(t *testing.T) {
	v := startInvited(t)
	renameEdit(t, v.service.access(), func(line string) bool { return !strings.HasPrefix(line, "used ") })
	v.transfer.wantReset(t)
	if rows := v.service.grants("invite"); len(rows) != 1 || !strings.Contains(rows[0], "1 of 1 uses left") {
		t.Errorf("access ls says %q", rows)
	}
}

// renameEdit keeps some of a file's lines, as editors do: a new file takes the
// old one's name.
func renameEdit(t testing.TB, path string, keep func(line string) bool) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	kept := ""
	for line := range strings.Lines(string(text)) {
		if keep(line) {
			kept += line
		}
	}
	if kept == string(text) {
		t.Fatalf("%s has no such line: %s", path, text)
	}
	writeFile(t, path+".new", kept)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestAllowGivenMeanwhileOutlivesTheInvite(t *testing.T) {
	v := startInvited(t)
	v.service.run("allow", testProtocol, v.client.id)
	v.service.run("invite", "revoke", v.made.ID)
	if !pushes(v.forward) {
		t.Fatal("a new connection is not carried")
	}
	select {
	case err := <-v.transfer.ended:
		t.Fatalf("the transfer ended: %v", err)
	default:
		v.transfer.c.Close()
		<-v.transfer.ended
	}
}

func TestInviteOfAHomeThatHasLostItsRulesIsNotKnownThere(t *testing.T) {
	service, client, echo := newNode(t), newNode(t), serve(t, echoBack)
	l, invite := startInviting(service, multiaddr(closedAddr(t)), echo.addr())
	l.kill()
	if err := os.Remove(service.access()); err != nil {
		t.Fatal(err)
	}
	startListen(service, l.where(), testProtocol, echo.addr())
	wantExit(t, beginForward(client, invite), 3, "the invite is not known there", client.id)
}

func TestInviteComesFromStdinOrTheEnvironmentToo(t *testing.T) {
	service, client := newNode(t), newNode(t)
	_, invite := startInviting(service, overTCP, serve(t, echoBack).addr())
	bind := closedAddr(t)
	for name, c := range map[string]struct {
		stdin, env string
		args       []string
	}{
		"stdin":                     {stdin: invite + "\n", args: []string{"-"}},
		"stdin without an end":      {stdin: invite, args: []string{"-"}},
		"stdin with BIND":           {stdin: invite + "\n", args: []string{"-", bind}},
		"stdin, broken into lines":  {stdin: "> " + invite[:40] + "\r\n " + invite[40:90] + "\n" + invite[90:] + "\n\nBye\n", args: []string{"-"}},
		"stdin, the printed lines":  {stdin: "listening  /x/test\ninvite     p2ptun forward " + invite + " 2222\n", args: []string{"-"}},
		"environment":               {env: invite},
		"environment with BIND":     {env: invite, args: []string{bind}},
		"environment, broken":       {env: " " + invite[:60] + "\n" + invite[60:] + "\n"},
		"argument over environment": {env: "p2ptun1nonsense", args: []string{invite}},
		"as a PEER":                 {args: []string{testProtocol, bind, invite}},
		"as a PEER, environment":    {env: "p2ptun1nonsense", args: []string{testProtocol, invite}},
	} {
		t.Run(name, func(t *testing.T) {
			f := forwardWithEnv(t, client, c.env, c.args...)
			fmt.Fprint(f.in, c.stdin)
			if !strings.HasSuffix(c.stdin, "\n") {
				f.in.Close()
			}
			f.bind = f.waitFor(t, &f.out, `forwarding (\S+) → /x/test on `+service.id)[1]
			wantOneEcho(t, f)
			if slices.Contains(c.args, bind) && f.hostPort() != bind {
				t.Errorf("bound to %s", f.bind)
			}
			f.kill()
		})
	}
}

// forwardWithEnv begins a forward with that $P2PTUN_INVITE.
func forwardWithEnv(t testing.TB, n *node, invite string, args ...string) *forwarding {
	t.Helper()
	const script = `export P2PTUN_INVITE="$1"; shift; exec p2ptun "$@"`
	all := []string{"-c", script, "sh", invite, "--home", n.home, "forward", "--network", "none", "--listen-addr", overTCP}
	return &forwarding{process: startFrom(t, "/bin/sh", "sh", append(all, args...)...)}
}

func TestInviteWaitsForABrokenRulesFileToBeMended(t *testing.T) {
	service, client := newNode(t), newNode(t)
	l, invite := startInviting(service, overTCP, serve(t, echoBack).addr())
	edit(t, service.access(), "invite ", "allow oops\ninvite ")
	l.saysOnStderr(t, "nobody is let in")
	wantExit(t, beginForward(client, invite), 3, "the invite can't be redeemed just now", "it is not lost", "try again")
	l.waitFor(t, &l.err, `p2ptun: refused `+client.id+`.*invite.*hint: edit line \d+ of `+service.access())
	edit(t, service.access(), "allow oops\n", "")
	l.waitFor(t, &l.err, "p2ptun: "+testProtocol+": ready")
	wantOneEcho(t, startForward(client, invite))
}

func TestPingTakesAnInviteForItsPeer(t *testing.T) {
	service, client := newNode(t), newNode(t)
	_, invite := startInviting(service, overTCP, serve(t, echoBack).addr())
	p := client.hosting("daemon")
	p.waitFor(t, &p.out, `tunnels    .*`)
	if out := client.run("ping", invite, "-c", "1"); !strings.HasPrefix(out, service.id+" ") {
		t.Errorf("ping says %q", out)
	}
	if rows := service.grants("invite"); len(rows) != 1 || !strings.Contains(rows[0], "1 of 1 uses left") {
		t.Errorf("a ping has used it: %q", rows)
	}
}

func TestInviteToAProtocolOutsideXIsACompleteCommand(t *testing.T) {
	service, client := newNode(t), newNode(t)
	p := service.hosting("listen", "--invite", "--allow-custom-protocol", "/y/test", serve(t, echoBack).addr())
	line := p.waitFor(t, &p.out, `invite     p2ptun forward (p2ptun1\S+)(?: \d+)?( --allow-custom-protocol)`)
	wantExit(t, beginForward(client, line[1]), 2, "protocol name must be within '/x/' namespace", "--allow-custom-protocol")
	wantOneEcho(t, startForward(client, line[1], "--allow-custom-protocol"))
	made := service.run("invite", "--allow-custom-protocol", "/y/test")
	if !strings.HasSuffix(made, " --allow-custom-protocol\n") {
		t.Errorf("invite prints %q", made)
	}
}

func TestNewerInviteAsksForAnUpdate(t *testing.T) {
	n := newNode(t)
	wantExit(t, beginForward(n, newer(t, n.invite(testProtocol).Text)), 2, "made by a newer p2ptun: update this one", "allow PROTOCOL PEER")
}

// newer makes an invite one of a later version, with a checksum that holds.
func newer(t testing.TB, invite string) string {
	t.Helper()
	data, err := base58.Decode(strings.TrimPrefix(invite, "p2ptun1"))
	if err != nil {
		t.Fatal(err)
	}
	body := data[:len(data)-4]
	sum := sha256.Sum256(append([]byte("p2ptun9"), body...))
	return "p2ptun9" + base58.Encode(append(body, sum[:4]...))
}

func TestKeptForwardForgetsItsInviteOnceItIsRedeemed(t *testing.T) {
	service, client, echo := newNode(t), newNode(t), serve(t, echoBack)
	startDaemon(client)
	at := multiaddr(closedAddr(t))
	l, invite := startInviting(service, at, echo.addr())
	client.run("forward", "--bg", invite)
	if text := client.kept(); strings.Contains(text, "invite") {
		t.Errorf("redeemed before it was kept: %s", text)
	}
	l.kill()
	made := service.invite("/x/later")
	client.run("forward", "--bg", "--wait", "/x/later", at+"/p2p/"+service.id, made.Text)
	if text := client.kept(); !strings.Contains(text, made.Text) {
		t.Errorf("it is not kept until it is redeemed: %s", text)
	}
	startListen(service, at, "/x/later", echo.addr())
	await(t, "it is forgotten once it is redeemed", func() bool { return !strings.Contains(client.kept(), "invite") })
	if rows := service.grants("allow"); len(rows) != 2 {
		t.Errorf("access ls says %q", rows)
	}
}

// kept is what the file of the node's kept tunnels says.
func (n *node) kept() string {
	n.t.Helper()
	return readFile(n.t, home.Dir(n.home).Tunnels())
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
