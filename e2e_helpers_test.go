//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The transports that tests are run over: where a listening node listens.
const (
	overTCP  = "/ip4/127.0.0.1/tcp/0"
	overQUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
)

// eachTransport runs a test over TCP and over QUIC.
func eachTransport(t *testing.T, test func(t *testing.T, transport string)) {
	t.Run("tcp", func(t *testing.T) { test(t, overTCP) })
	t.Run("quic", func(t *testing.T) { test(t, overQUIC) })
}

// patience bounds every wait for something that is to happen. Only a failing
// test takes that long.
const patience = 60 * time.Second

// await polls until cond holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !within(patience, cond) {
		t.Fatalf("%s: not within %s", what, patience)
	}
}

// within polls until cond holds, and says whether it did in time.
func within(limit time.Duration, cond func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); !cond(); <-tick.C {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// settled returns once a figure has stayed the same for calm, and gives it.
func settled(t testing.TB, what string, calm time.Duration, figure func() int64) int64 {
	t.Helper()
	last, since := figure(), time.Now()
	await(t, what+" comes to rest", func() bool {
		if now := figure(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > calm
	})
	return last
}

// output collects what a process prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// process is a program that runs, and is killed at the end of its test.
type process struct {
	cmd      *exec.Cmd
	in       io.WriteCloser
	out, err output
	ended    chan struct{} // closed when it has ended and all it printed is there
}

// startFrom runs one of the programs of a build of this test binary.
func startFrom(t testing.TB, binary, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary, args...), ended: make(chan struct{})}
	p.cmd.Args[0] = name
	p.cmd.Env = cleanEnv()
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = in
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // its state is in p.cmd
	}()
	t.Cleanup(func() { p.finish(t, strings.Join(p.cmd.Args, " ")) })
	return p
}

// cleanEnv is the environment without variables that p2ptun looks at. The race
// detector, where it is in, sleeps for a second at each exit, unless told
// otherwise.
func cleanEnv() []string {
	env := []string{"GORACE=atexit_sleep_ms=0"}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "P2PTUN_") && !strings.HasPrefix(v, "GORACE=") {
			env = append(env, v)
		}
	}
	return env
}

// finish ends the process and looks at its last words: a data race, or a
// panic, fails the test whatever the test itself looked at.
func (p *process) finish(t testing.TB, line string) {
	p.kill()
	said := p.err.String()
	for _, bad := range []string{"DATA RACE", "panic:", "fatal error:"} {
		if strings.Contains(said, bad) {
			t.Errorf("%s said %q", line, bad)
		}
	}
	if t.Failed() {
		t.Logf("%s\nstdout:\n%s\nstderr:\n%s", line, p.out.String(), said)
	}
}

// kill ends the process as kill -9 does, and returns when it has ended.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// exit waits for the process to end by itself, and gives its exit code.
func (p *process) exit(t testing.TB) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("%s: has not ended", p.cmd.Args)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// waitFor returns the submatches of the first match in one of the process's
// outputs, of a whole line.
func (p *process) waitFor(t testing.TB, o *output, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile("(?m)^" + pattern + "$")
	var match []string
	found := func() bool {
		match = re.FindStringSubmatch(o.String())
		return match != nil
	}
	within(patience, func() bool { return found() || !p.alive() })
	if !found() {
		t.Fatalf("%s: no line %q\nstdout:\n%s\nstderr:\n%s", p.cmd.Args, pattern, p.out.String(), p.err.String())
	}
	return match
}

// saysOnStderr waits for a line that contains that text.
func (p *process) saysOnStderr(t testing.TB, text string) {
	t.Helper()
	p.waitFor(t, &p.err, ".*"+regexp.QuoteMeta(text)+".*")
}

// rss is the memory that a process holds, in bytes.
func (p *process) rss(t testing.TB) int64 {
	t.Helper()
	pid := fmt.Sprint(p.cmd.Process.Pid)
	out, err := exec.Command("ps", "-o", "rss=", "-p", pid).Output()
	if status, perr := os.ReadFile("/proc/" + pid + "/status"); perr == nil {
		_, after, _ := strings.Cut(string(status), "VmRSS:") // Linux, where ps may be missing
		out, err = []byte(after), nil
	}
	var kib int64
	if err == nil {
		_, err = fmt.Sscan(string(out), &kib)
	}
	if err != nil {
		t.Fatalf("memory of process %s: %v", pid, err)
	}
	return kib << 10
}

// node is a home directory with its identity.
type node struct {
	t      testing.TB
	binary string
	home   string
	id     string
}

func newNode(t testing.TB) *node {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return newNodeOf(t, self)
}

func newNodeOf(t testing.TB, binary string) *node {
	t.Helper()
	n := &node{t: t, binary: binary, home: filepath.Join(t.TempDir(), "home")}
	n.id = strings.TrimSpace(n.run("id"))
	return n
}

// start runs p2ptun with this node's home.
func (n *node) start(args ...string) *process {
	n.t.Helper()
	return startFrom(n.t, n.binary, "p2ptun", append([]string{"--home", n.home}, args...)...)
}

// run runs a p2ptun command that must succeed, and gives its output.
func (n *node) run(args ...string) string {
	n.t.Helper()
	p := n.start(args...)
	if code := p.exit(n.t); code != 0 {
		n.t.Fatalf("p2ptun %s: exit code %d: %s", args, code, p.err.String())
	}
	return p.out.String()
}

// access is the file of the node's rules.
func (n *node) access() string { return filepath.Join(n.home, "access") }

// listening is a `p2ptun listen` that is ready.
type listening struct {
	*process
	addr string // ends in /p2p/ID
}

// startListen runs `listen` and returns when it is ready. transport is one of
// those above, or an address to listen on again.
func startListen(n *node, transport, protocol, target string, flags ...string) *listening {
	n.t.Helper()
	args := []string{"listen", "--network", "none", "--listen-addr", transport, protocol, target}
	l := &listening{process: n.start(append(args, flags...)...)}
	l.addr = l.waitFor(n.t, &l.out, `address    (\S+)`)[1]
	l.waitFor(n.t, &l.out, `forward    .*`)
	return l
}

// where is the listener's own address, without its peer ID.
func (l *listening) where() string {
	addr, _, _ := strings.Cut(l.addr, "/p2p/")
	return addr
}

// forwarding is a `p2ptun forward` that is ready.
type forwarding struct {
	*process
	bind string // as printed: a multiaddr
}

// beginForward runs `forward` with a free port.
func beginForward(n *node, protocol string, args ...string) *process {
	n.t.Helper()
	return n.start(append([]string{"forward", "--network", "none", "--listen-addr", overTCP, protocol}, args...)...)
}

// startForward does so and returns when it is ready.
func startForward(n *node, protocol string, args ...string) *forwarding {
	n.t.Helper()
	f := &forwarding{process: beginForward(n, protocol, args...)}
	f.bind = f.waitFor(n.t, &f.out, `forwarding (\S+) → .*`)[1]
	f.waitFor(n.t, &f.out, `path       .*`)
	return f
}

// hostPort is the bound address as net.Dial takes it.
func (f *forwarding) hostPort() string {
	words := strings.Split(f.bind, "/")
	return net.JoinHostPort(words[2], words[4])
}

// port is the bound port.
func (f *forwarding) port() string { return strings.Split(f.bind, "/")[4] }

func (f *forwarding) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	return dialTCP(t, f.hostPort())
}

// dialTCP connects, with a deadline on all that is done there: a connection
// that hangs fails its test.
func dialTCP(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// tunnel is both sides, ready, with the forwarding peer allowed by a rule.
type tunnel struct {
	service, client *node
	listen          *listening
	forward         *forwarding
}

const testProtocol = "/x/test"

// startTunnel connects a target through two new nodes over that transport.
func startTunnel(t testing.TB, transport, target string, listenFlags ...string) *tunnel {
	t.Helper()
	return startTunnelOf(newNode(t), newNode(t), transport, target, listenFlags...)
}

func startTunnelOf(service, client *node, transport, target string, listenFlags ...string) *tunnel {
	service.t.Helper()
	tun := &tunnel{service: service, client: client}
	service.run("allow", testProtocol, client.id)
	tun.listen = startListen(service, transport, testProtocol, target, listenFlags...)
	tun.forward = startForward(client, testProtocol, tun.listen.addr)
	want := "direct tcp "
	if strings.Contains(tun.listen.addr, "quic") {
		want = "direct quic "
	}
	if !strings.Contains(tun.forward.out.String(), want) {
		service.t.Fatalf("the path is not %q", want)
	}
	return tun
}

// isReset says that a connection ended with a TCP RST.
func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

// wantReset fails unless all that can be read of c ends in a reset.
func wantReset(t testing.TB, c io.Reader) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c); !isReset(err) {
		t.Fatalf("after %d bytes: %v, want a reset", n, err)
	}
}

// interrupt is Ctrl-C.
func interrupt(t testing.TB, p *process) {
	t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
}
