//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"p2ptun/daemon"
	"p2ptun/home"
	"p2ptun/registry"
)

// The lab: p2ptun's own processes on machines that are network namespaces, with
// routers, NATs and a slow internet between them, see scripts/netlab.

// lab is one such internet, which is taken down at the end of its test.
type lab struct {
	t       *testing.T
	name    string
	program string // p2ptun, built
}

// labs numbers those of this process.
var labs atomic.Int64

// newLab builds one beside those of other tests.
func newLab(t *testing.T, topology string, flags ...string) *lab {
	t.Helper()
	wantNet(t)
	t.Parallel()
	return buildLab(t, topology, flags...)
}

// wantNet skips a test that is not asked for: it needs root, and minutes.
func wantNet(t *testing.T) {
	t.Helper()
	if os.Getenv("P2PTUN_NET") != "1" {
		t.Skip("SKIP: a test over networks that it makes itself; scripts/e2e-net runs it")
	}
}

func buildLab(t *testing.T, topology string, flags ...string) *lab {
	t.Helper()
	l := &lab{t: t, name: fmt.Sprintf("e2e-%d-%d", os.Getpid(), labs.Add(1)), program: os.Getenv("P2PTUN_BIN")}
	if l.program == "" {
		t.Fatal("P2PTUN_BIN does not say where the program is")
	}
	t.Cleanup(func() { l.do("down") })
	l.do("up", append([]string{topology}, flags...)...)
	return l
}

// do runs a netlab command that must succeed, and gives what it prints.
func (l *lab) do(command string, args ...string) string {
	l.t.Helper()
	cmd := exec.Command(scriptPath(l.t, "netlab"), append([]string{command}, args...)...)
	cmd.Env = append(cleanEnv(), "NETLAB_NAME="+l.name)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("netlab %s %v: %v\n%s%s", command, args, err, out, &said)
	}
	return strings.TrimSpace(string(out))
}

// box is a machine of a lab, with a home of p2ptun's.
type box struct {
	*node
	lab  *lab
	name string
}

func (l *lab) box(name string) *box {
	l.t.Helper()
	return &box{node: newNodeOf(l.t, l.program), lab: l, name: name}
}

// pair is the machines that most labs have.
func (l *lab) pair() (alice, bob *box) { return l.box("alice"), l.box("bob") }

// start runs p2ptun there.
func (b *box) start(args ...string) *process {
	b.t.Helper()
	return b.exec(b.binary, append([]string{"--home", b.home}, args...)...)
}

// exec runs a program there.
func (b *box) exec(program string, args ...string) *process {
	b.t.Helper()
	env, err := exec.LookPath("env") // which becomes the program, and so does netlab
	if err != nil {
		b.t.Fatal(err)
	}
	args = append([]string{"NETLAB_NAME=" + b.lab.name, scriptPath(b.t, "netlab"), "exec", b.name, program}, args...)
	return startFrom(b.t, env, "env", args...)
}

// inside runs f on a thread in the machine's network: the sockets that it makes
// are of that network, wherever they are used. The thread ends with f. It must
// not be the main thread, whose network is taken for that of the process.
func (b *box) inside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- b.inside(f) // on another thread
			runtime.UnlockOSThread()
			return
		}
		ns, err := os.Open("/run/netns/nl." + b.lab.name + "." + b.name)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// service runs a service on the machine's loopback.
func (b *box) service(handle func(net.Conn)) *service {
	b.t.Helper()
	var l net.Listener
	err := b.inside(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return serveOn(b.t, l, handle)
}

// dial connects to the machine's loopback, with a deadline on all that is done
// there.
func (b *box) dial(addr string) (*net.TCPConn, error) {
	var c net.Conn
	err := b.inside(func() (err error) {
		c, err = net.DialTimeout("tcp", addr, time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), nil
}

// owner is the control socket of the node that runs there.
func (b *box) owner() *daemon.Client {
	c, err := daemon.Find(context.Background(), home.Dir(b.home))
	if err != nil {
		return nil
	}
	return c
}

// status is that of the running node, zero where none answers.
func (b *box) status() (st daemon.Status) {
	if c := b.owner(); c != nil {
		st, _ = c.Status(context.Background())
	}
	return st
}

// runJSON runs a command that prints one object a line.
func runJSON[T any](b *box, args ...string) (list []T) {
	b.t.Helper()
	for line := range strings.Lines(b.run(append([]string{"--json"}, args...)...)) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			b.t.Fatalf("%v: %q: %v", args, line, err)
		}
		list = append(list, v)
	}
	return list
}

// awhile is the pause between two looks at a node.
const awhile = 20 * time.Millisecond

// inTime polls until cond holds, and says how long that took; not to hold
// within limit fails the test.
func inTime(t testing.TB, what string, limit time.Duration, cond func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(awhile)
	defer tick.Stop()
	for !cond() {
		if time.Since(began) > limit {
			t.Fatalf("%s: not within %s", what, limit)
		}
		<-tick.C
	}
	return time.Since(began)
}

// helper is a `p2ptun relay` on a public machine.
type helper struct {
	*box
	*process
	addrs []string // public, each ends in /p2p/ID
}

// helpPort is where helpers listen.
const helpPort = "4001"

// help makes the machine a relay and a bootstrap node.
func (b *box) help(flags ...string) *helper {
	b.t.Helper()
	return b.helpAt([]string{
		"/ip4/0.0.0.0/tcp/" + helpPort, "/ip4/0.0.0.0/udp/" + helpPort + "/quic-v1",
		"/ip6/::/tcp/" + helpPort, "/ip6/::/udp/" + helpPort + "/quic-v1",
	}, flags...)
}

// helpAt does so at those listening addresses.
func (b *box) helpAt(where []string, flags ...string) *helper {
	b.t.Helper()
	args := []string{"relay"}
	for _, addr := range where {
		args = append(args, "--listen-addr", addr)
	}
	h := &helper{box: b, process: b.start(append(args, flags...)...)}
	h.waitFor(b.t, &h.out, "limit      .*")
	public := b.lab.publicAddrs(b.name)
	for line := range strings.Lines(h.out.String()) {
		if words := strings.Fields(line); words[0] == "address" && public.MatchString(words[1]) {
			h.addrs = append(h.addrs, words[1])
		}
	}
	if len(h.addrs) == 0 {
		b.t.Fatalf("no address of %s in %q", public, h.out.String())
	}
	return h
}

// publicAddrs matches the multiaddrs that others see a host by.
func (l *lab) publicAddrs(host string) *regexp.Regexp {
	l.t.Helper()
	ips := regexp.QuoteMeta(l.do("addr", host, "--public"))
	if strings.Contains(l.do("ls"), "--ipv6") {
		ips += "|" + regexp.QuoteMeta(l.do("addr", host, "-6"))
	}
	return regexp.MustCompile("/(" + ips + ")/")
}

// forever are the flags of a relay that lets everybody in, for as much as they
// like.
var forever = []string{"--open", "--limit-time", "0s"}

// networkFile writes the file of a network of one's own.
func networkFile(t testing.TB, bootstrap, relays []*helper, more ...string) string {
	t.Helper()
	list := func(key string, boxes []*helper) (text string) {
		var quoted []string
		for _, h := range boxes {
			for _, a := range h.addrs {
				quoted = append(quoted, fmt.Sprintf("%q", a))
			}
		}
		return key + " = [" + strings.Join(quoted, ", ") + "]\n"
	}
	path := filepath.Join(t.TempDir(), "net.toml")
	writeFile(t, path, list("bootstrap", bootstrap)+list("relays", relays)+strings.Join(more, "\n"))
	return path
}

// listen offers a service that echoes to everybody and returns when `listen` is
// ready.
func (b *box) listen(flags ...string) *process {
	b.t.Helper()
	return b.offer(b.service(echoBack), flags...)
}

func (b *box) offer(s *service, flags ...string) *process {
	b.t.Helper()
	return b.offerAt(s.addr(), flags...)
}

// offerAt offers what listens at that address of the machine's loopback.
func (b *box) offerAt(addr string, flags ...string) *process {
	b.t.Helper()
	p := b.start(append([]string{"listen", "--open", testProtocol, addr}, flags...)...)
	p.waitFor(b.t, &p.out, `forward    .*`)
	return p
}

// wantSlot waits for a reservation and says how long that took.
func (b *box) wantSlot(relay string, limit time.Duration) time.Duration {
	b.t.Helper()
	return inTime(b.t, b.name+" has a slot at the relay", limit, func() bool { return b.hasSlot(relay) })
}

func (b *box) hasSlot(relay string) bool {
	for _, r := range b.status().Relays {
		if r.Relay == relay {
			return r.Reserved
		}
	}
	return false
}

// reached is a `forward` that carries bytes.
type reached struct {
	*box
	*process
	peer  string
	addr  string       // host:port on its machine
	first *net.TCPConn // the first connection, still open
	took  time.Duration
}

// reach runs `forward` and has the first byte come back.
func (b *box) reach(peer string, flags ...string) *reached {
	b.t.Helper()
	began := time.Now()
	r := &reached{box: b, process: b.start(append([]string{"forward", testProtocol, peer}, flags...)...), peer: peer}
	if i := strings.LastIndex(peer, "/p2p/"); i >= 0 {
		r.peer = peer[i+len("/p2p/"):]
	}
	bind := r.waitFor(b.t, &r.out, `forwarding (\S+) → .*`)[1]
	r.addr = (&forwarding{bind: bind}).hostPort()
	r.first = r.open()
	r.took = time.Since(began)
	return r
}

// open makes a connection that has echoed a byte.
func (r *reached) open() *net.TCPConn {
	r.t.Helper()
	c, err := r.box.dial(r.addr)
	if err == nil {
		err = echoOn(c)
	}
	if err != nil {
		r.t.Fatalf("a new connection through the forward: %v", err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// works tries a new connection, for as long as limit.
func (r *reached) works(limit time.Duration) bool {
	c, err := r.box.dial(r.addr)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	return echoOn(c) == nil
}

// path is the way of new connections, as `ls` has it; nil for none.
func (r *reached) path() *registry.Path {
	c := r.owner()
	if c == nil {
		return nil
	}
	list, err := c.Tunnels(context.Background())
	if err != nil || len(list) != 1 {
		return nil
	}
	return list[0].Path
}

// wantDirect waits for the direct path, and for the first connection to have
// moved there, and checks that a new one takes it, whole, and that all say so.
// It gives the time that the path took.
func (r *reached) wantDirect(limit time.Duration) time.Duration {
	r.t.Helper()
	took := inTime(r.t, "direct path", limit, func() bool { p := r.path(); return p != nil && !p.Relayed })
	if r.peerTakesTrunks() {
		inTime(r.t, "the first connection has moved", fastPunch, func() bool { return !r.streamOf(r.first).Path.Relayed })
	}
	r.wantSaid("", r.carry(some))
	if err := echoOn(r.first); err != nil {
		r.t.Errorf("the first connection, after the path has changed: %v", err)
	}
	return took
}

// wantRelayed checks that a new connection goes over that relay, whole, and
// that all say so.
func (r *reached) wantRelayed(relay string) {
	r.t.Helper()
	r.wantSaid(relay, r.carry(some))
}

// peerTakesTrunks says that connections outlive their path: not so with a Kubo.
func (r *reached) peerTakesTrunks() bool { return r.streamOf(r.first).Trunk != nil }

// some is how many bytes have to come through whole.
const some = 1 << 20

// carry sends n bytes through a new connection and wants them back. It gives
// the path of its stream.
func (r *reached) carry(n int) registry.Path {
	r.t.Helper()
	c := r.open()
	path := r.streamOf(c).Path
	mirror(r.t, c, n)
	return path
}

// streamOf finds the stream of a connection in `stream ls --json`.
func (r *reached) streamOf(c net.Conn) registry.StreamStatus {
	r.t.Helper()
	for _, s := range runJSON[registry.StreamStatus](r.box, "stream", "ls") {
		if s.Origin == c.LocalAddr().String() {
			return s
		}
	}
	r.t.Fatalf("no stream of %s in `stream ls`", c.LocalAddr())
	return registry.StreamStatus{}
}

// wantSaid checks what the stream, `ls` and `status` say of the path: by that
// relay, or directly where it is empty.
func (r *reached) wantSaid(relay string, stream registry.Path) {
	r.t.Helper()
	tunnel := runJSON[registry.TunnelStatus](r.box, "ls")[0].Path
	if tunnel == nil || stream.Relay != relay || tunnel.Relay != relay || stream.Relayed != (relay != "") || tunnel.Relayed != (relay != "") {
		r.t.Errorf("relay %q: `stream ls` says %+v, `ls` %+v", relay, stream, tunnel)
	}
	want := "direct"
	if relay != "" {
		want = "relayed"
	}
	for _, p := range runJSON[daemon.Status](r.box, "status")[0].Peers {
		if p.Peer == r.peer && (p.Path != want || p.Relay != relay) {
			r.t.Errorf("`status` says %+v, want %s %s", p, want, relay)
		}
	}
}

// mirror sends n bytes through a connection that echoes, and wants them back.
func mirror(t testing.TB, c net.Conn, n int) {
	t.Helper()
	data, got := randomBytes(1, n), make([]byte, n)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- err
	}()
	if m, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes came back: %v", m, n, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// figure is a time that a scenario took, for the table of docs/benchmarks.md.
// A line is: scenario, what, milliseconds.
func figure(t testing.TB, scenario, what string, took time.Duration) {
	t.Helper()
	t.Logf("%s: %s %d ms", scenario, what, took.Milliseconds())
	path := os.Getenv("P2PTUN_NET_FIGURES")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s\t%s\t%d\n", scenario, what, took.Milliseconds()); err != nil {
		t.Fatal(err)
	}
}

// TestNetWiresLearnNoAddress: what a wire learns while it is made can be wrong,
// and then it is deaf for minutes.
func TestNetWiresLearnNoAddress(t *testing.T) {
	l := newLab(t, "wan", "--ipv6")
	nobody := net.JoinHostPort(l.do("addr", "alice", "-6"), "9")
	err := l.box("bob").inside(func() error {
		_, err := net.DialTimeout("tcp", nobody, patience)
		return err
	})
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("alice answers %v, want a refusal", err)
	}
	for _, host := range []string{"alice", "bob"} {
		known, err := exec.Command("bridge", "-n", "nl."+l.name+"."+host+"-wire", "fdb", "show").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, known)
		}
		for line := range strings.Lines(string(known)) {
			if !strings.Contains(line, "permanent") {
				t.Errorf("%s's wire has learned %s", host, line)
			}
		}
	}
}
