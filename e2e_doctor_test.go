//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// step is one line of `doctor --json`.
type step struct {
	Event, Name, Result, Detail, Hint string
	Failed                            int
}

// diagnosis is a `doctor` that has ended.
type diagnosis struct {
	code  int
	steps []step
	text  string // all that it said
}

// isolated are the flags of a node on loopback that nobody else knows.
var isolated = []string{"--network", "none", "--listen-addr", overTCP}

// doctor runs `doctor` of a node, checks the form of what it prints, and gives
// it.
func doctor(n *node, args ...string) (d diagnosis) {
	n.t.Helper()
	p := n.start(append([]string{"--json", "doctor"}, args...)...)
	d.code = p.exit(n.t)
	d.text = p.out.String() + p.err.String()
	failed := 0
	for line := range strings.Lines(p.out.String()) {
		var st step
		if err := json.Unmarshal([]byte(line), &st); err != nil {
			n.t.Fatalf("%s: %v", line, err)
		}
		if !strings.HasPrefix(line, `{"event":"`) {
			n.t.Errorf("the first key is another: %s", line)
		}
		if st.Result == "fail" {
			failed++
		}
		d.steps = append(d.steps, st)
	}
	last := d.steps[len(d.steps)-1]
	if last.Event != "doctor" || last.Failed != failed || (failed == 0) != (d.code == 0) {
		n.t.Errorf("exit code %d, %d failed: %s", d.code, failed, d.text)
	}
	return d
}

// of gives the first step of that name.
func (d diagnosis) of(t testing.TB, name string) step {
	t.Helper()
	for _, st := range d.steps {
		if st.Name == name {
			return st
		}
	}
	t.Fatalf("no step %s: %s", name, d.text)
	return step{}
}

func TestDoctorTellsByItsExitCodeWhatIsWrong(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		s := serve(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
		there, here := newNode(t), newNode(t)
		there.run("allow", "none", here.id)
		there.run("allow", "down", here.id)
		up := startListen(there, transport, "/x/up", s.addr(), "--allow", here.id)
		down := there.start("listen", "/x/down", closedAddr(t))
		down.waitFor(t, &down.out, `forward    .*`)
		for _, c := range []struct {
			protocol, fails string
			code            int
		}{{"up", "", 0}, {"down", "service", 5}, {"none", "service", 5}, {"other", "allowed", 3}} {
			d := doctor(here, "--network", "none", "--listen-addr", transport, up.addr, c.protocol)
			if d.code != c.code {
				t.Errorf("%s: exit code %d, want %d: %s", c.protocol, d.code, c.code, d.text)
			}
			for _, st := range d.steps {
				if failed := st.Result == "fail"; failed != (st.Name == c.fails && c.fails != "") || failed && st.Hint == "" {
					t.Errorf("%s: %+v", c.protocol, st)
				}
			}
			if st := d.of(t, "dialled"); !strings.Contains(st.Detail, "dialled in") || !strings.HasSuffix(st.Detail, "found by: given") {
				t.Errorf("%s: %+v", c.protocol, st)
			}
			for _, name := range []string{"dialled", "rtt"} {
				if st := d.of(t, name); st.Result != "ok" || !strings.Contains(st.Detail, "direct") {
					t.Errorf("%s: %+v", c.protocol, st)
				}
			}
		}
	})
}

func TestDoctorOfAPeerThatIsAwayEndsWithFour(t *testing.T) {
	n, away := newNode(t), newNode(t)
	d := doctor(n, append(isolated, "/ip4/127.0.0.1/tcp/1/p2p/"+away.id, "up")...)
	if d.code != 4 || d.of(t, "dialled").Result != "fail" || d.of(t, "service").Result != "skipped" {
		t.Errorf("exit code %d: %s", d.code, d.text)
	}
}

func TestDoctorNeedsNoNodeAndAsksOneThatRuns(t *testing.T) {
	n := newNode(t)
	if d := doctor(n, isolated...); d.code != 0 || !strings.Contains(d.of(t, "node").Detail, "runs for this") {
		t.Errorf("exit code %d: %s", d.code, d.text)
	}
	daemon := n.start(append([]string{"daemon"}, isolated...)...)
	addr := daemon.waitFor(t, &daemon.out, `address    (\S+)/p2p/.*`)[1]
	d := doctor(n)
	if d.code != 0 || !strings.Contains(d.of(t, "node").Detail, "is running") || d.of(t, "listen").Detail != addr+"; not on IPv6" {
		t.Errorf("exit code %d: %s", d.code, d.text)
	}
	n.run("ls") // it runs on
	if d := doctor(n, "--network", "lan"); d.code != 1 || d.of(t, "node").Result != "fail" || d.of(t, "listen").Result != "skipped" {
		t.Errorf("other flags than those of the node that runs: exit code %d: %s", d.code, d.text)
	}
}

// Where no node can start, the doctor says so, and what is wrong with the home.
func TestDoctorWorksWhereNoNodeCanStart(t *testing.T) {
	n := newNode(t)
	if err := os.WriteFile(filepath.Join(n.home, "tunnels.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := doctor(n, isolated...)
	if d.code != 1 || d.of(t, "tunnels").Result != "fail" || d.of(t, "node").Result != "fail" || d.of(t, "listen").Result != "skipped" {
		t.Errorf("exit code %d: %s", d.code, d.text)
	}
	if err := os.Chmod(n.home, 0o777); err != nil {
		t.Fatal(err)
	}
	d = doctor(n, isolated...)
	if st := d.of(t, "home"); d.code != 1 || st.Result != "fail" || st.Hint != "chmod go-w "+n.home {
		t.Errorf("exit code %d: %s", d.code, d.text)
	}
}

func TestDoctorFailsWhereAnAddressIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port)
	d := doctor(newNode(t), append(isolated, "--listen-addr", taken)...)
	if st := d.of(t, "listen"); d.code != 1 || st.Result != "fail" || !strings.Contains(st.Detail, taken) {
		t.Errorf("exit code %d: %s", d.code, d.text)
	}
}

// A home, and the network that it is in, hold secrets: the doctor prints none.
func TestDoctorPrintsNoSecret(t *testing.T) {
	there, n := newNode(t), newNode(t)
	invite := strings.TrimSpace(there.run("invite", "web", "--json"))
	var made struct{ Invite string }
	if err := json.Unmarshal([]byte(invite), &made); err != nil || len(made.Invite) < 40 {
		t.Fatalf("%s: %v", invite, err)
	}
	psk := strings.Repeat("5ecade", 11)[:64]
	dir := shortDir(t)
	file := filepath.Join(dir, "net.toml")
	for path, text := range map[string]string{
		file:                            "relays = [\"/ip4/127.0.0.1/tcp/1/p2p/" + there.id + "\"]\npsk = \"swarm.key\"\n",
		filepath.Join(dir, "swarm.key"): "/key/swarm/psk/1.0.0/\n/base16/\n" + psk + "\n",
		filepath.Join(n.home, "tunnels.json"): `{"version":1,"tunnels":[{"id":"1","kind":"forward","protocol":"/x/web","bind":"/ip4/127.0.0.1/tcp/0","peers":["/p2p/` + there.id +
			`"],"invite":"` + made.Invite + `","keep":true}]}`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(args ...string) diagnosis {
		d := doctor(n, args...)
		for _, secret := range []string{made.Invite[20:], psk} {
			if strings.Contains(d.text, secret) {
				t.Errorf("a secret: %s", d.text)
			}
		}
		return d
	}
	if d := check("--network", file, "--listen-addr", overTCP, made.Invite, "web"); d.of(t, "tunnels").Detail != "1 kept" || d.of(t, "relay").Result != "fail" {
		t.Errorf("%s", d.text)
	}
	broken := "/key/swarm/psk/1.0.0/\n/base16/\nx" + psk + "\n"
	if err := os.WriteFile(filepath.Join(dir, "swarm.key"), []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	if d := check("--network", file, "--listen-addr", overTCP); d.of(t, "node").Result != "fail" {
		t.Errorf("%s", d.text)
	}
}

// By way of a relay: its slot is seen, the path is told as what it is, and the
// relay's bytes are not spent on a measurement where it has a limit.
func TestDoctorSeesTheRelay(t *testing.T) {
	box, there, here := newNode(t), newNode(t), newNode(t)
	relay := box.start("relay", "--allow", there.id, "--limit-bytes", "1MiB", "--listen-addr", overTCP)
	relay.waitFor(t, &relay.out, `relay      .*`)
	addr := relay.waitFor(t, &relay.out, `address    (/ip4/127\S+)`)[1]
	l := there.start("listen", "--network", "none", "--listen-addr", overTCP, "--relay", addr, "/x/up", closedAddr(t), "--allow", here.id)
	l.waitFor(t, &l.out, `forward    .*`)
	if st := doctor(there).of(t, "relay"); st.Result != "ok" || !strings.Contains(st.Detail, box.id) {
		t.Errorf("%+v", st)
	}
	if d := doctor(here, append(isolated, "--relay", addr)...); d.code != 1 || !strings.Contains(d.of(t, "relay").Hint, "allow /relay/reserve "+here.id) {
		t.Errorf("one that the relay does not allow: exit code %d: %s", d.code, d.text)
	}
	d := doctor(here, append(isolated, addr+"/p2p-circuit/p2p/"+there.id)...)
	if st := d.of(t, "dialled"); st.Result != "ok" || !strings.Contains(st.Detail, "relayed by "+box.id) {
		t.Errorf("%+v", st)
	}
	if st := d.of(t, "punch"); st.Result == "skipped" {
		t.Errorf("%+v", st)
	}
	for _, st := range d.steps {
		if st.Name == "throughput" && strings.Contains(st.Detail, "relayed") && st.Result != "skipped" {
			t.Errorf("%+v", st)
		}
	}
}

func TestDoctorForPeopleIsALineAStep(t *testing.T) {
	n := newNode(t)
	if err := os.WriteFile(n.access(), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := n.start(append([]string{"doctor"}, isolated...)...)
	if code := p.exit(t); code != 1 {
		t.Errorf("exit code %d", code)
	}
	p.waitFor(t, &p.out, `ok    identity    `+n.id)
	p.waitFor(t, &p.out, `fail  rules       nobody is let in: .*`)
	p.waitFor(t, &p.out, ` +next: edit line 1 of .*/access`)
	p.waitFor(t, &p.out, `skip  bootstrap   .*`)
	p.saysOnStderr(t, "steps failed")
}

func TestDoctorThatCanNotBeMeantIsWrongUse(t *testing.T) {
	n := newNode(t)
	for _, args := range [][]string{{"a", "b", "c"}, {"ssh", n.id}, {n.id, "/nope"}, {"nobody-by-that-name"}, {"--network", "wan"}, append(isolated, n.id)} {
		p := n.start(append([]string{"doctor"}, args...)...)
		if code := p.exit(t); code != 2 {
			t.Errorf("%s: exit code %d: %s", args, code, p.err.String())
		}
	}
}
