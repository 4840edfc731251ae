//go:build unix

package main

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"p2ptun/proto"
)

// What a person sees of `listen` on a terminal, and answers there.

// startOnTerminal runs a program of this test binary, or a shell, with a
// terminal of its own. What the terminal shows is in err.
func startOnTerminal(t testing.TB, binary string, argv []string, env ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary), ended: make(chan struct{})}
	p.cmd.Args = argv
	p.cmd.Env = append(cleanEnv(), env...)
	tty, err := pty.Start(p.cmd)
	if err != nil {
		t.Fatal(err)
	}
	p.in = tty
	go func() {
		defer close(p.ended)
		_, _ = io.Copy(unixLines{&p.err}, tty) // ends when nobody has the terminal
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.finish(t, strings.Join(argv, " "))
		tty.Close()
	})
	return p
}

// unixLines takes out what a terminal puts before each end of a line.
type unixLines struct{ io.Writer }

func (u unixLines) Write(b []byte) (int, error) {
	_, err := io.WriteString(u.Writer, strings.ReplaceAll(string(b), "\r", ""))
	return len(b), err
}

// listenOnTerminal runs `listen` there and returns when it is ready.
func listenOnTerminal(n *node, flags ...string) *listening {
	n.t.Helper()
	args := append([]string{"p2ptun", "--home", n.home, "listen", testProtocol}, flags...)
	return readyOnTerminal(n.t, startOnTerminal(n.t, n.binary, args))
}

func readyOnTerminal(t testing.TB, p *process) *listening {
	t.Helper()
	l := &listening{process: p}
	l.addr = p.waitFor(t, &p.err, `address    (\S+)`)[1]
	p.waitFor(t, &p.err, `invite     p2ptun forward .*`)
	return l
}

// types is what a person types.
func (p *process) types(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(p.in, text); err != nil {
		t.Fatal(err)
	}
}

// question is the line that asks the owner about a peer.
func question(peer string) string {
	return "p2ptun: " + peer + " asks for " + testProtocol + "; let it in\\?.*"
}

// reads is how long a person takes at least to read a question: what comes
// earlier is not taken for an answer.
const reads = 300 * time.Millisecond

// answers waits for the question about a peer and answers it.
func (p *process) answers(t testing.TB, peer, word string) {
	t.Helper()
	p.waitFor(t, &p.err, question(peer))
	<-time.After(reads)
	p.types(t, word+"\n")
}

// isRefused has a node ask, and be refused.
func isRefused(n *node, addr string) {
	n.t.Helper()
	wantExit(n.t, beginForward(n, testProtocol, addr), 3, "not allowed", n.id)
}

// listenOn6Alone listens on the IPv6 loopback, on a port that nobody has on the
// IPv4 one.
func listenOn6Alone(t testing.TB) net.Listener {
	t.Helper()
	for {
		six, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		four, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", six.Addr().(*net.TCPAddr).Port))
		if err == nil {
			four.Close()
			return six
		}
		six.Close()
	}
}

func TestInviteLineOfATerminalIsACompleteCommand(t *testing.T) {
	six := listenOn6Alone(t) // the port that is proposed is free on 127.0.0.1
	service, client := newNode(t), newNode(t)
	l := listenOnTerminal(service, append(alone, serveOn(t, six, echoBack).addr())...)
	line := l.waitFor(t, &l.err, `invite     (p2ptun forward p2ptun1\S+ (\d+))`)
	l.saysOnStderr(t, "the invite lets one peer in until ")
	sh := startFrom(t, "/bin/sh", "sh", "-c", `P2PTUN_HOME="$1"; export P2PTUN_HOME; `+line[1]+` --network none --listen-addr `+overTCP, "sh", client.home)
	f := &forwarding{process: sh}
	f.bind = f.waitFor(t, &f.out, `forwarding (\S+) → .*`)[1]
	if f.hostPort() != "127.0.0.1:"+line[2] {
		t.Errorf("bound to %s, the line said %s", f.bind, line[2])
	}
	wantOneEcho(t, f)
	client.run("stop") // the shell's child
	if code := sh.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestOnceLetsAPeerInUntilTheListenEnds(t *testing.T) {
	service, client, echo := newNode(t), newNode(t), serve(t, echoBack)
	l := listenOnTerminal(service, append(alone, echo.addr())...)
	isRefused(client, l.addr)
	l.answers(t, client.id, "o")
	l.saysOnStderr(t, client.id+" is let in until this listen ends")
	f := startForward(client, testProtocol, l.addr)
	wantOneEcho(t, f)
	if rows := service.grants("allow"); len(rows) != 1 || !strings.Contains(rows[0], client.id) || !strings.Contains(rows[0], "tunnel 1") {
		t.Errorf("access ls says %q", rows)
	}
	f.kill()
	l.types(t, "\x03")
	if code := l.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	l = startListen(service, overTCP, testProtocol, echo.addr())
	isRefused(client, l.addr)
	if text := readFile(t, service.access()); strings.Contains(text, client.id) {
		t.Errorf("it is in the file: %s", text)
	}
}

func TestAlwaysLetsAPeerInForEver(t *testing.T) {
	service, client, echo := newNode(t), newNode(t), serve(t, echoBack)
	l := listenOnTerminal(service, append(alone, echo.addr())...)
	isRefused(client, l.addr)
	l.answers(t, client.id, "a")
	l.saysOnStderr(t, client.id+" is let in; to end that: p2ptun --home "+service.home+" deny "+testProtocol+" "+client.id)
	wantOneEcho(t, startForward(client, testProtocol, l.addr))
	if text := readFile(t, service.access()); !strings.Contains(text, "\nallow "+testProtocol+" "+client.id+"\n") {
		t.Errorf("the access file says %s", text)
	}
}

func TestQuestionThatIsAnsweredElsewhereIsWithdrawn(t *testing.T) {
	service, first, second, third, fourth := newNode(t), newNode(t), newNode(t), newNode(t), newNode(t)
	l := listenOnTerminal(service, append(alone, serve(t, echoBack).addr())...)
	for _, n := range []*node{first, second, third, fourth} {
		isRefused(n, l.addr)
	}
	l.waitFor(t, &l.err, question(first.id))
	service.run("allow", testProtocol, first.id)
	l.saysOnStderr(t, first.id+" is let in meanwhile: the question is withdrawn")
	l.waitFor(t, &l.err, question(second.id))
	writeFile(t, service.access(), readFile(t, service.access())+"allow "+testProtocol+" "+second.id+"\n")
	l.saysOnStderr(t, second.id+" is let in meanwhile: the question is withdrawn")
	l.waitFor(t, &l.err, question(third.id))
	service.run("deny", testProtocol, third.id)
	l.saysOnStderr(t, third.id+" is denied meanwhile: the question is withdrawn")
	l.waitFor(t, &l.err, question(fourth.id))
	wantOneEcho(t, startForward(fourth, service.invite(testProtocol).Text))
	l.saysOnStderr(t, fourth.id+" is let in meanwhile: the question is withdrawn")
	l.types(t, "a\n") // is no answer to anything
	wantOneEcho(t, startForward(first, testProtocol, l.addr))
	wantOneEcho(t, startForward(second, testProtocol, l.addr))
	isRefused(third, l.addr)
	if asked := l.asked(".*"); asked != 4 {
		t.Errorf("%d questions", asked)
	}
}

func TestNoAndGarbageLetNobodyIn(t *testing.T) {
	service, client, next := newNode(t), newNode(t), newNode(t)
	l := listenOnTerminal(service, append(alone, serve(t, echoBack).addr())...)
	isRefused(client, l.addr)
	isRefused(next, l.addr)
	l.answers(t, client.id, "yes")
	l.saysOnStderr(t, "none of o, a and n")
	l.answers(t, client.id, "")
	await(t, "the question is put again", func() bool { return l.asked(client.id) == 3 })
	l.answers(t, client.id, "n")
	l.saysOnStderr(t, client.id+" is not let in")
	isRefused(client, l.addr)
	l.answers(t, next.id, "o") // whose turn it is now
	l.saysOnStderr(t, next.id+" is let in")
	if n := l.asked(client.id); n != 3 {
		t.Errorf("the owner was asked %d times about who is not to be let in", n)
	}
	isRefused(client, l.addr)
	wantOneEcho(t, startForward(next, testProtocol, l.addr))
}

// asked counts the questions about a peer that the terminal has shown.
func (p *process) asked(peer string) int {
	return len(regexp.MustCompile("(?m)^"+question(peer)).FindAllString(p.err.String(), -1))
}

func TestWhatIsTypedBeforeTheQuestionIsNoAnswer(t *testing.T) {
	service, client, second := newNode(t), newNode(t), newNode(t)
	l := listenOnTerminal(service, append(alone, serve(t, echoBack).addr())...)
	l.types(t, "a\no\na\n")
	await(t, "the terminal has it", func() bool { return strings.Contains(l.err.String(), "a\no\na\n") })
	isRefused(client, l.addr)
	isRefused(second, l.addr)
	l.saysOnStderr(t, "refused "+second.id)
	l.answers(t, client.id, "n\na\no") // all at once: the next question does not stand yet
	l.saysOnStderr(t, client.id+" is not let in")
	l.saysOnStderr(t, "that was typed before the question")
	await(t, "the second question stands", func() bool { return l.asked(second.id) == 3 })
	for _, n := range []*node{client, second} {
		isRefused(n, l.addr)
	}
	if rows := service.grants("allow"); len(rows) != 0 {
		t.Errorf("access ls says %q", rows)
	}
}

func TestStrangersDoNotMakeTheScreenScroll(t *testing.T) {
	service := newNode(t)
	l := listenOnTerminal(service, append(alone, serve(t, echoBack).addr())...)
	begun, before := time.Now(), strings.Count(l.err.String(), "\n")
	for _, n := range newPeers(t, 50) {
		if v, ok := askUntil(patiently(t), n, l.addr, &proto.Question{Protocol: testProtocol}); !ok || v != proto.Verdict_VERDICT_REFUSED {
			t.Fatalf("answered %s", v)
		}
		_ = n.Close()
	}
	l.waitFor(t, &l.err, question(".*"))
	known := newNodeAllowed(t, service)
	wantOneEcho(t, startForward(known, testProtocol, l.addr)) // serves on
	const atOnce, question, notes = 5, 1, 3
	most := atOnce + question + notes + int(time.Since(begun)/(10*time.Second))
	if lines := strings.Count(l.err.String(), "\n") - before; lines > most {
		t.Errorf("50 strangers have made %d lines, want at most %d", lines, most)
	}
}

func TestInterruptEndsAListenWhoseQuestionStands(t *testing.T) {
	service, client := newNode(t), newNode(t)
	l := listenOnTerminal(service, append(alone, serve(t, echoBack).addr())...)
	isRefused(client, l.addr)
	l.waitFor(t, &l.err, question(client.id))
	l.types(t, "\x03")
	if code := l.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestEndOfInputOnATerminalLeavesTheQuestionStanding(t *testing.T) {
	service, client := newNode(t), newNode(t)
	l := listenOnTerminal(service, append(alone, serve(t, echoBack).addr())...)
	l.types(t, "\x04")
	isRefused(client, l.addr)
	l.answers(t, client.id, "o")
	l.saysOnStderr(t, client.id+" is let in")
}

func TestListenInTheBackgroundOfItsShellServesOnAndAsksInTheForeground(t *testing.T) {
	service, client, echo := newNode(t), newNode(t), serve(t, echoBack)
	known := newNodeAllowed(t, service)
	const script = `set -m
p2ptun --home "$1" listen --network none --listen-addr "$2" "$3" "$4" &
read line
echo "read $line"
fg
`
	l := readyOnTerminal(t, startOnTerminal(t, "/bin/sh", []string{"sh", "-c", script, "sh", service.home, overTCP, testProtocol, echo.addr()}))
	isRefused(client, l.addr)
	l.waitFor(t, &l.err, question(client.id))
	wantOneEcho(t, startForward(known, testProtocol, l.addr))
	l.types(t, "mine\n")
	l.waitFor(t, &l.err, "read mine") // it was the shell's
	l.answers(t, client.id, "o")
	l.saysOnStderr(t, client.id+" is let in")
	wantOneEcho(t, startForward(client, testProtocol, l.addr))
	l.types(t, "\x03")
	l.exit(t)
}

func TestAttachedListenAsksToo(t *testing.T) {
	service, first, second, echo := newNode(t), newNode(t), newNode(t), serve(t, echoBack)
	d := startDaemon(service)
	l := listenOnTerminal(service, echo.addr())
	isRefused(first, l.addr)
	l.answers(t, first.id, "o")
	l.saysOnStderr(t, first.id+" is let in")
	isRefused(second, l.addr)
	l.answers(t, second.id, "a")
	l.saysOnStderr(t, second.id+" is let in")
	wantOneEcho(t, startForward(first, testProtocol, l.addr))
	wantOneEcho(t, startForward(second, testProtocol, l.addr))
	l.types(t, "\x03")
	l.exit(t)
	if !d.alive() || service.tunnels() != "" {
		t.Errorf("the owner runs: %v, tunnels %q", d.alive(), service.tunnels())
	}
	if rows := service.grants("allow"); len(rows) != 1 || !strings.Contains(rows[0], second.id) {
		t.Errorf("access ls says %q", rows)
	}
}

func TestOnceHoldsWhereTheListenTakesOver(t *testing.T) {
	service, client, echo := newNode(t), newNode(t), serve(t, echoBack)
	owner := startListen(service, multiaddr(closedAddr(t)), "/x/other", echo.addr())
	l := listenOnTerminal(service, echo.addr())
	isRefused(client, l.addr)
	l.answers(t, client.id, "o")
	l.saysOnStderr(t, client.id+" is let in")
	f := startForward(client, testProtocol, l.addr)
	wantOneEcho(t, f)
	owner.kill()
	l.saysOnStderr(t, "taking over")
	await(t, "the peer is still let in", func() bool { return echoes(f) })
}

func TestNoQuestionIsPutToAProgram(t *testing.T) {
	echo := serve(t, echoBack)
	for _, flags := range [][]string{{"--json"}, {"-q"}, {"--open"}} {
		service, client := newNode(t), newNode(t)
		args := append([]string{"p2ptun", "--home", service.home, "listen", testProtocol, echo.addr()}, append(flags, alone...)...)
		p := startOnTerminal(t, service.binary, args)
		await(t, "it is ready", service.isReady)
		st, _ := service.status()
		f := beginForward(client, testProtocol, st.Addrs[0])
		if flags[0] != "--open" {
			wantExit(t, f, 3, "not allowed")
		} else {
			f.waitFor(t, &f.out, `forwarding .*`)
		}
		f.kill()
		p.types(t, "\x03")
		p.exit(t)
		if said := p.err.String(); strings.Contains(said, "let it in?") || strings.Contains(said, "p2ptun1") {
			t.Errorf("%s: it said %q", flags, said)
		}
	}
}
