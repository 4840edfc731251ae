package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"p2ptun/access"
	"p2ptun/home"
	"p2ptun/node"
	"p2ptun/proto"
	"p2ptun/registry"
)

// examined are the steps on a home, by name.
func examined(t testing.TB, path string) (steps map[string]Step, usable bool) {
	t.Helper()
	steps = map[string]Step{}
	usable, failures := CheckHome(t.Context(), path, func(st Step) { steps[st.Name] = st })
	count := 0
	for _, st := range steps {
		if st.Event != "step" || st.Detail == "" {
			t.Errorf("%+v", st)
		}
		if st.Result == ResultFail {
			count++
		}
	}
	if count != failures {
		t.Errorf("%d failed, and %d are said to", count, failures)
	}
	return steps, usable
}

func TestASoundHomeFailsNoStep(t *testing.T) {
	dir := newHome(t)
	steps, usable := examined(t, string(dir))
	if !usable || steps["identity"].Result != ResultSkipped || steps["clock"].Result != ResultSkipped {
		t.Errorf("before the first node, %v: %+v", usable, steps)
	}
	_, s := own(t, dir)
	must(t, s.Stop(0, false))
	steps, usable = examined(t, string(dir))
	if !usable || len(steps) != 7 {
		t.Errorf("%v, %d steps", usable, len(steps))
	}
	for name, st := range steps {
		if st.Result != ResultOK {
			t.Errorf("%s: %+v", name, st)
		}
	}
	if steps["identity"].Detail != s.node.ID() {
		t.Errorf("%+v", steps["identity"])
	}
	if left, _ := filepath.Glob(string(dir) + "/.doctor*"); len(left) > 0 {
		t.Errorf("left behind: %s", left)
	}
}

// Each step on the home's files fails when that is wrong which it is about, and
// says what to do.
func TestEachStepOnAHomeCanFail(t *testing.T) {
	future := time.Now().Add(48 * time.Hour)
	for name, c := range map[string]struct {
		spoil func(home.Dir) error
		hint  string
	}{
		"home":     {func(d home.Dir) error { return os.Chmod(string(d), 0o777) }, "chmod go-w "},
		"identity": {func(d home.Dir) error { return os.Chmod(d.Key(), 0o644) }, "chmod 600 "},
		"rules":    {func(d home.Dir) error { return os.WriteFile(d.Access(), []byte("allow nonsense\n"), 0o600) }, "edit line 1 of "},
		"tunnels":  {func(d home.Dir) error { return os.WriteFile(d.Tunnels(), []byte("{"), 0o600) }, "mend the file"},
		"names":    {func(d home.Dir) error { return os.WriteFile(d.Peers(), []byte("\x00"), 0o600) }, "edit "},
		"clock": {func(d home.Dir) error {
			return os.WriteFile(d.Access()+".seen", []byte(future.Format(time.RFC3339)), 0o600)
		}, "set the clock"},
	} {
		dir := newHome(t)
		_, err := node.PeerID(t.Context(), dir.Key())
		must(t, err)
		must(t, c.spoil(dir))
		steps, usable := examined(t, string(dir))
		if usable != (name != "home") {
			t.Errorf("%s: usable %v", name, usable)
		}
		for other, st := range steps {
			if failed := st.Result == ResultFail; failed != (other == name) {
				t.Errorf("%s is spoilt, and %s: %+v", name, other, st)
			}
		}
		if st := steps[name]; !strings.HasPrefix(st.Hint, c.hint) {
			t.Errorf("%s: hint %q", name, st.Hint)
		}
	}
}

func TestAKeyThatIsNoKeyFails(t *testing.T) {
	dir := newHome(t)
	must(t, os.WriteFile(dir.Key(), []byte("my own secret"), 0o600))
	steps, _ := examined(t, string(dir))
	st := steps["identity"]
	if st.Result != ResultFail || st.Hint == "" || strings.Contains(st.Detail+st.Hint, "my own") {
		t.Errorf("%+v", st)
	}
}

// A clock that is behind shows by the files, too, where no time was noted.
func TestAFileFromTheFutureFailsTheClock(t *testing.T) {
	dir := newHome(t)
	must(t, access.Set(t.Context(), dir.Access(), access.Rule{Allow: true, Protocol: "/x/a", Peer: somebody}))
	future := time.Now().Add(time.Hour)
	must(t, os.Chtimes(dir.Access(), future, future))
	if steps, _ := examined(t, string(dir)); steps["clock"].Result != ResultFail || steps["clock"].Hint == "" {
		t.Errorf("%+v", steps["clock"])
	}
}

func TestADirectoryThatCanNotBeWrittenFailsTheSpace(t *testing.T) {
	path := filepath.Join(string(newHome(t)), "file")
	must(t, os.WriteFile(path, nil, 0o600))
	steps, usable := examined(t, path)
	if usable || steps["space"].Result != ResultFail || steps["home"].Result != ResultFail {
		t.Errorf("%v, %+v", usable, steps)
	}
}

// A home holds secrets: none of them is in what is found, whatever is wrong.
func TestNoSecretIsInADiagnosis(t *testing.T) {
	dir := newHome(t)
	made, err := NewInvite(t.Context(), dir, somebody, nil, InviteRequest{Protocol: "/x/a"})
	must(t, err)
	secret := made.Text[20:]
	for _, text := range []string{
		`{"version":1,"tunnels":[{"id":"1","kind":"forward","protocol":"/x/a","bind":"0","peers":["` + nobodyElse + `"],"invite":"` + made.Text + `"}]}`,
		`{"version":1,"tunnels":[{"` + made.Text + `":1}]}`,
		`{"version":1,"tunnels":[{"id":"` + made.Text + `","kind":"?"}]}`,
	} {
		must(t, os.WriteFile(dir.Tunnels(), []byte(text), 0o600))
		must(t, os.WriteFile(dir.Access(), []byte("allow "+made.Text+"\n"), 0o600))
		must(t, os.WriteFile(dir.Peers(), []byte(made.Text), 0o600))
		steps, _ := examined(t, string(dir))
		said, err := json.Marshal(steps)
		must(t, err)
		if strings.Contains(string(said), secret) {
			t.Errorf("%s: a secret: %s", text, said)
		}
		if steps["tunnels"].Result != ResultFail || steps["rules"].Result != ResultFail {
			t.Errorf("%+v", steps)
		}
	}
}

const nobodyElse = "12D3KooWHbpDXpuSs6JwTPgXoBaHnZ41B5YK8aCJmXfbRTd4hXgL"

// finding is what one judgement is to come to.
type finding struct {
	name  string
	steps []Step
	want  Result
	code  Code   // of a failure of a peer
	says  string // in the detail
}

func checkFindings(t *testing.T, list []finding) {
	t.Helper()
	for _, f := range list {
		st := f.steps[len(f.steps)-1]
		if st.Result != f.want || st.Code != f.code || !strings.Contains(st.Detail, f.says) {
			t.Errorf("%s: %+v", f.name, st)
		}
		if st.Result == ResultFail && st.Hint == "" {
			t.Errorf("%s: it fails without a word on what to do: %s", f.name, st.Detail)
		}
	}
}

var errTest = errors.New("it broke")

// The steps of a node: ok only for what was tried and was so.
func TestEachStepOfANodeIsJudgedByWhatWasFound(t *testing.T) {
	have := []string{"/ip4/0.0.0.0/tcp/4001", "/ip6/::/udp/4001/quic-v1"}
	alive, dead := node.BootstrapReply{Peer: "a"}, node.BootstrapReply{Peer: "b", Err: errTest}
	mapped := []string{"/ip4/8.8.8.8/tcp/1"}
	checkFindings(t, []finding{
		{"listen: as asked", judgeListen(have, []string{"/ip4/0.0.0.0/tcp/0"}), ResultOK, "", "/ip6/::"},
		{"listen: by default, on one IP", judgeListen(have[:1], nil), ResultOK, "", "not on IPv6"},
		{"listen: nowhere", judgeListen(nil, nil), ResultFail, "", "nowhere"},
		{"listen: not on all", judgeListen(have, []string{have[0], "/ip4/0.0.0.0/tcp/4002"}), ResultFail, "", "tcp/4002"},
		{"dns: no name", judgeNames(nil), ResultSkipped, "", "not needed"},
		{"dns: known", judgeNames([]node.NameReply{{Name: "/dns4/a", Addrs: 2}}), ResultOK, "", "/dns4/a: 2"},
		{"dns: unknown", judgeNames([]node.NameReply{{Name: "/dns4/a", Addrs: 2}, {Name: "/dns4/b", Err: errTest}}), ResultFail, "", "/dns4/b: it broke"},
		{"dns: empty", judgeNames([]node.NameReply{{Name: "/dns4/a"}}), ResultFail, "", "no address"},
		{"bootstrap: none", judgeBootstrap(nil, "lan"), ResultSkipped, "", "lan"},
		{"bootstrap: all", judgeBootstrap([]node.BootstrapReply{alive}, ""), ResultOK, "", "all 1"},
		{"bootstrap: some", judgeBootstrap([]node.BootstrapReply{alive, dead}, ""), ResultOK, "", "1 of 2"},
		{"bootstrap: dead", judgeBootstrap([]node.BootstrapReply{dead}, NetworkPublic), ResultFail, "", "it broke"},
		{"lan: no multicast", judgeLAN(node.LANReport{}), ResultFail, "", "no interface"},
		{"lan: error", judgeLAN(node.LANReport{Joined: []string{"eth0"}, Err: errTest}), ResultFail, "", "it broke"},
		{"lan: silence", judgeLAN(node.LANReport{Joined: []string{"eth0"}}), ResultFail, "", "not even our own"},
		{"lan: another", judgeLAN(node.LANReport{Joined: []string{"eth0"}, Others: 1}), ResultOK, "", "1 other"},
		{"lan: ours", judgeLAN(node.LANReport{Joined: []string{"eth0"}, Own: true}), ResultOK, "", "our own"},
		{"nat: unknown", judgeNAT("", "", 1), ResultSkipped, "", "unknown"},
		{"nat: good", judgeNAT(node.NATIndependent, "", 2), ResultOK, "", "UDP: unknown"},
		{"nat: one of both", judgeNAT(node.NATDependent, node.NATIndependent, 2), ResultOK, "", "symmetric"},
		{"nat: symmetric", judgeNAT(node.NATDependent, node.NATDependent, 2), ResultFail, "", "symmetric"},
		{"nat: as far as known symmetric", judgeNAT("", node.NATDependent, 2), ResultFail, "", "symmetric"},
		{"relay: none", judgeRelays(nil, nil, "me"), ResultSkipped, "", "none"},
		{"relay: chosen", judgeRelays(nil, mapped, "me"), ResultOK, "", mapped[0]},
		{"relay: reserved", judgeRelays([]node.RelayStatus{{Relay: "r", Reserved: true, LimitBytes: 131072}}, nil, "me"), ResultOK, "", "128 KiB"},
		{"relay: refused", judgeRelays([]node.RelayStatus{{Relay: "r", Error: "status: PERMISSION_DENIED"}}, nil, "me"), ResultFail, "", "does not let"},
		{"relay: dead", judgeRelays([]node.RelayStatus{{Relay: "r", Reserved: true}, {Relay: "s", Error: "refused"}}, nil, "me"), ResultFail, "", "s: not reserved"},
		{"reachable: not asked", judgeReach(node.Reach{}, "lan"), ResultSkipped, "", "lan"},
		{"reachable: nobody to ask", judgeReach(node.Reach{Asked: true}, ""), ResultSkipped, "", "unknown"},
		{"reachable: no answer", judgeReach(node.Reach{Asked: true, Helpers: 3}, ""), ResultSkipped, "", "unknown"},
		{"reachable: public", judgeReach(node.Reach{Asked: true, Reachable: mapped}, ""), ResultOK, "", mapped[0]},
		{"reachable: by relay", judgeReach(node.Reach{Asked: true, Private: true, Relayed: []string{"r"}}, ""), ResultOK, "", "private"},
		{"reachable: not", judgeReach(node.Reach{Asked: true, Private: true, Not: mapped}, ""), ResultFail, "", "could not dial"},
		{"reachable: nothing to dial", judgeReach(node.Reach{Asked: true, Private: true}, ""), ResultFail, "", "no public address"},
	})
}

// The steps of a peer, with the codes that decide the exit code.
func TestEachStepOfAPeerIsJudgedByWhatWasFound(t *testing.T) {
	direct := []node.PeerConn{{Path: registry.Path{Transport: "tcp", Addr: "/ip4/1.1.1.1/tcp/1"}}}
	inbound := []node.PeerConn{{Path: direct[0].Path, Inbound: true}}
	relayed := []node.PeerConn{{Path: registry.Path{Relayed: true, Relay: "r"}}}
	ours := []node.Source{{By: "relay", Addrs: []string{"x"}}}
	lan := []node.Source{{By: "LAN", Addrs: []string{"x"}}}
	good := node.Throughput{UpBytes: 2e6, UpTime: time.Second, DownBytes: 1e6, DownTime: time.Second}
	reset := func(c proto.Code) error { return &registry.ResetError{Code: c} }
	const ok, down, none = proto.Verdict_VERDICT_OK, proto.Verdict_VERDICT_SERVICE_DOWN, proto.Verdict_VERDICT_NO_SERVICE
	const refused, unknown = proto.Verdict_VERDICT_REFUSED, proto.Verdict_VERDICT_UNKNOWN
	checkFindings(t, []finding{
		{"found: LAN", judgeFound("p", lan, nil, ""), ResultOK, "", "LAN: 1"},
		{"found: at our relay", judgeFound("p", ours, relayed, ""), ResultOK, "", "relay r"},
		{"found: it came", judgeFound("p", nil, inbound, ""), ResultOK, "", "has connected"},
		{"found: here already", judgeFound("p", nil, direct, ""), ResultOK, "", "before"},
		{"found: by nobody", judgeFound("p", nil, nil, "looked"), ResultFail, CodeNotReached, "looked"},
		{"found: our relay is no source", judgeFound("p", ours, nil, "looked"), ResultFail, CodeNotReached, "looked"},
		{"punch: direct", judgePunch(false, 0, direct, node.Punch{}), ResultSkipped, "", "not tried"},
		{"punch: punched", judgePunch(true, 0, direct, node.Punch{Tried: true, Success: true}), ResultOK, "", "was punched"},
		{"punch: dialled back", judgePunch(true, 0, direct, node.Punch{Dialled: true}), ResultOK, "", "without a hole"},
		{"punch: dialled", judgePunch(true, 0, direct, node.Punch{}), ResultOK, "", "no hole punch was seen"},
		{"punch: not tried", judgePunch(true, 0, relayed, node.Punch{}), ResultFail, "", "no hole punch was seen"},
		{"punch: failed", judgePunch(true, 0, relayed, node.Punch{Tried: true, Error: "it broke"}), ResultFail, "", "it broke"},
		{"punch: lost", judgePunch(true, 0, nil, node.Punch{}), ResultFail, "", "lost"},
		{"allowed: yes", judgeAllowed(ok, nil, "/x/a", "me"), ResultOK, "", "me"},
		{"allowed: but down", judgeAllowed(down, nil, "/x/a", "me"), ResultOK, "", "me"},
		{"allowed: no", judgeAllowed(refused, nil, "/x/a", "me"), ResultFail, CodeRefused, "/x/a"},
		{"allowed: Kubo", judgeAllowed(unknown, fmt.Errorf("%w: x", node.ErrCannotAsk), "/x/a", "me"), ResultSkipped, "", "can't be asked"},
		{"allowed: silence", judgeAllowed(unknown, errTest, "/x/a", "me"), ResultFail, CodeNotReached, "it broke"},
		{"allowed: later version", judgeAllowed(unknown, nil, "/x/a", "me"), ResultSkipped, "", "later version"},
		{"service: yes", judgeService(ok, nil, "/x/a"), ResultOK, "", "/x/a"},
		{"service: down", judgeService(down, nil, "/x/a"), ResultFail, CodeServiceDown, ""},
		{"service: none", judgeService(none, nil, "/x/a"), ResultFail, CodeNoService, ""},
		{"service: refused", judgeService(refused, nil, "/x/a"), ResultSkipped, "", ""},
		{"service: Kubo", judgeService(unknown, node.ErrCannotAsk, "/x/a"), ResultSkipped, "", "can't be asked"},
		{"service: silence", judgeService(unknown, errTest, "/x/a"), ResultSkipped, "", ""},
		{"service: later version", judgeService(unknown, nil, "/x/a"), ResultSkipped, "", ""},
		{"service: not named", judgeService(unknown, nil, ""), ResultSkipped, "", "no protocol"},
		{"rtt: measured", judgeRTT("w", []time.Duration{1e6, 3e6}, nil), ResultOK, "", "1.00 ms to 3.00 ms, 2.00 ms"},
		{"rtt: dead", judgeRTT("w", nil, errTest), ResultFail, "", "0 of 5"},
		{"throughput: measured", judgeThroughput("w", good, nil), ResultOK, "", "2.0 MB/s there, 1.0 MB/s back"},
		{"throughput: one way", judgeThroughput("w", node.Throughput{UpBytes: 1, UpTime: 1}, nil), ResultFail, "", "0 came back"},
		{"throughput: broken", judgeThroughput("w", node.Throughput{}, errTest), ResultFail, "", "it broke"},
		{"throughput: limited", judgeThroughput("w", node.Throughput{}, node.ErrLimited), ResultSkipped, "", "limit"},
		{"throughput: Kubo", judgeThroughput("w", node.Throughput{}, reset(proto.CodeNoService)), ResultSkipped, "", "Kubo"},
		{"throughput: not named", judgeThroughput("w", node.Throughput{}, reset(proto.CodeRefused)), ResultSkipped, "", "by name"},
		{"throughput: busy", judgeThroughput("w", node.Throughput{}, reset(proto.CodeTooMany)), ResultSkipped, "", "enough"},
		{"throughput: reset", judgeThroughput("w", node.Throughput{}, reset(proto.CodeStopped)), ResultFail, "", ""},
	})
}

// diagnosed has a running node examine itself.
func diagnosed(t testing.TB, c *Client, req DoctorRequest) (names []string, steps map[string]Step) {
	t.Helper()
	steps = map[string]Step{}
	must(t, c.Doctor(t.Context(), req, func(st Step) {
		names = append(names, st.Name)
		steps[st.Name] = st
	}))
	return names, steps
}

func TestARunningNodeExaminesItself(t *testing.T) {
	c, _ := own(t, newHome(t))
	names, steps := diagnosed(t, c, DoctorRequest{})
	if want := NodeSteps(false); !slices.Equal(names, want) {
		t.Fatalf("%v, want %v", names, want)
	}
	for name, st := range steps {
		want := ResultSkipped
		if name == "listen" {
			want = ResultOK
		}
		if st.Result != want {
			t.Errorf("%s: %+v", name, st)
		}
	}
}

// offers makes a server that listens on protocols: a service, one that is down.
func offers(t testing.TB, allow string) (addr string) {
	t.Helper()
	c, s := own(t, newHome(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	for name, target := range map[string]string{"/x/up": l.Addr().String(), "/x/down": "127.0.0.1:1"} {
		_, err = c.Keep(t.Context(), registry.Tunnel{Kind: registry.KindListen, Protocol: name, Target: target, Allow: []string{allow}})
		must(t, err)
	}
	must(t, c.SetRule(t.Context(), access.Rule{Allow: true, Protocol: "/x/none", Peer: allow}))
	return s.node.Addrs()[0]
}

func TestAPeerIsExaminedUpToItsService(t *testing.T) {
	c, s := own(t, newHome(t))
	addr := offers(t, s.node.ID())
	for protocol, want := range map[string]map[string]Code{
		"/x/up": {}, "": {}, "/x/down": {"service": CodeServiceDown}, "/x/none": {"service": CodeNoService}, "/x/other": {"allowed": CodeRefused},
	} {
		names, steps := diagnosed(t, c, DoctorRequest{Peers: []string{addr}, Protocol: protocol})
		if !slices.Equal(names, NodeSteps(true)) {
			t.Errorf("%s: %v", protocol, names)
		}
		for name, st := range steps {
			if code, fails := want[name]; st.Code != code || fails != (st.Result == ResultFail) {
				t.Errorf("%q: %+v", protocol, st)
			}
		}
		for _, name := range []string{"found", "dialled", "rtt"} {
			if steps[name].Result != ResultOK {
				t.Errorf("%q: %+v", protocol, steps[name])
			}
		}
	}
}

func TestAPeerThatIsNotThereIsNotReached(t *testing.T) {
	c, s := own(t, newHome(t))
	for peer, fails := range map[string]string{
		"/ip4/127.0.0.1/tcp/1/p2p/" + somebody: "dialled",
		somebody:                               "found",
	} {
		_, steps := diagnosed(t, c, DoctorRequest{Peers: []string{peer}, Protocol: "/x/up"})
		for name, st := range steps {
			if failed := st.Result == ResultFail; failed != (name == fails) || failed && st.Code != CodeNotReached {
				t.Errorf("%s: %+v", peer, st)
			}
		}
		if st := steps["service"]; st.Result != ResultSkipped {
			t.Errorf("%+v", st)
		}
	}
	if _, steps := diagnosed(t, c, DoctorRequest{Peers: []string{s.node.ID()}}); steps["found"].Code != CodeUsage {
		t.Errorf("the node itself: %+v", steps["found"])
	}
}

func TestADeadRelayFailsItsStep(t *testing.T) {
	opts := optionsOf(newHome(t))
	opts.Hosting.Relays = []string{"/ip4/127.0.0.1/tcp/1/p2p/" + somebody}
	c, s, err := Attach(t.Context(), opts)
	must(t, err)
	defer func() { must(t, s.Stop(0, false)) }()
	_, steps := diagnosed(t, c, DoctorRequest{})
	if st := steps["relay"]; st.Result != ResultFail || !strings.Contains(st.Detail, somebody) {
		t.Errorf("%+v", st)
	}
}

func TestDoctorRequestsThatCanNotBeMeantAreRefused(t *testing.T) {
	c, _ := own(t, newHome(t))
	for _, req := range []DoctorRequest{
		{Protocol: "/x/a"}, {Peers: []string{somebody}, Protocol: "/x/\x1b"}, {Peers: slices.Repeat([]string{somebody}, maxPeers+1)},
	} {
		var e *Error
		if err := c.Doctor(t.Context(), req, func(Step) {}); !errors.As(err, &e) || e.Code != CodeUsage {
			t.Errorf("%+v: %v", req, err)
		}
	}
}

func TestADiagnosisEndsWithItsNodeAndWithItsClient(t *testing.T) {
	c, s := own(t, newHome(t))
	long := DoctorRequest{Peers: []string{"/ip4/127.0.0.1/tcp/1/p2p/" + somebody}}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Doctor(ctx, long, func(Step) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	began := make(chan struct{}, 100)
	ended := make(chan error)
	go func() { ended <- c.Doctor(t.Context(), long, func(Step) { began <- struct{}{} }) }()
	<-began
	must(t, s.Stop(0, false))
	if err := <-ended; !errors.Is(err, ErrOwnerGone) {
		t.Errorf("%v", err)
	}
}

func TestTheStepsComeAsLinesOfJSON(t *testing.T) {
	dir := newHome(t)
	c, _ := own(t, dir)
	resp, err := c.do(t.Context(), "POST", "/doctor", DoctorRequest{})
	must(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	last := map[string]any{}
	for d := json.NewDecoder(resp.Body); d.More(); {
		clear(last)
		must(t, d.Decode(&last))
	}
	if last["event"] != "doctor" || last["failed"] != 0.0 || len(last) != 2 {
		t.Errorf("the last line is %v", last)
	}
}
