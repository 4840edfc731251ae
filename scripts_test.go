//go:build unix

package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The scripts for users, with this test binary as p2ptun.

// scriptPath is where a script is.
func scriptPath(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("scripts", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// useThisP2ptun sets $P2PTUN to this test binary.
func useThisP2ptun(t *testing.T) {
	t.Helper()
	program, err := exec.LookPath("p2ptun") // TestMain put it into $PATH
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("P2PTUN", program)
}

// startScript runs a script that takes this test binary for p2ptun.
func startScript(t *testing.T, name string, args ...string) *process {
	t.Helper()
	useThisP2ptun(t)
	path := scriptPath(t, name)
	return startFrom(t, path, path, args...)
}

// offeredWeb is a web page behind a `listen` that lets one client in.
type offeredWeb struct {
	client *node
	addr   string // the listener's
}

const pageText = "a page of the other machine\n"

func offerWeb(t testing.TB) *offeredWeb {
	t.Helper()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, pageText) }))
	t.Cleanup(web.Close)
	o := &offeredWeb{client: newNode(t)}
	service := newNode(t)
	service.run("allow", testProtocol, o.client.id)
	o.addr = startListen(service, overTCP, testProtocol, strings.TrimPrefix(web.URL, "http://")).addr
	return o
}

// with runs with-forward for the client.
func (o *offeredWeb) with(t *testing.T, command ...string) *process {
	t.Helper()
	return withForward(t, o.client, testProtocol, o.addr, command...)
}

func withForward(t *testing.T, n *node, protocol, peer string, command ...string) *process {
	t.Helper()
	args := []string{"--home", n.home, "--network", "none", "--listen-addr", overTCP, protocol, peer, "--"}
	return startScript(t, "with-forward", append(args, command...)...)
}

func TestEachScriptExplainsItself(t *testing.T) {
	entries, err := os.ReadDir("scripts")
	if err != nil {
		t.Fatal(err)
	}
	explained := 0
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if !info.Mode().IsRegular() || info.Mode().Perm()&0o100 == 0 {
			continue
		}
		explained++
		p := startScript(t, e.Name(), "--help")
		if code := p.exit(t); code != 0 || !strings.HasPrefix(p.out.String(), "usage: "+e.Name()) {
			t.Errorf("%s --help: exit code %d, said %q", e.Name(), code, p.out.String())
		}
	}
	if explained < 6 {
		t.Errorf("%d scripts, want those that README names at least", explained)
	}
}

func TestWithForwardGivesTheServiceToItsCommandAndPassesItsExitStatus(t *testing.T) {
	p := offerWeb(t).with(t, "sh", "-c", `curl -sS --noproxy '*' "http://{addr}/" && curl -sS --noproxy '*' "http://$P2PTUN_ADDR/"; exit 42`)
	if code := p.exit(t); code != 42 || p.out.String() != pageText+pageText {
		t.Errorf("exit code %d, want 42; said %q, want the page twice", code, p.out.String())
	}
}

func TestWithForwardNamesOneAddressInEachWay(t *testing.T) {
	p := offerWeb(t).with(t, "sh", "-c", `printf '%s|' "$P2PTUN_HOST:$P2PTUN_PORT" "$P2PTUN_ADDR" "$@"`, "sh", "127.0.0.1:{port}", "{addr}", "x{addr}y{addr}z", "two  words *", "")
	if code := p.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	got := strings.Split(p.out.String(), "|")
	a := got[0]
	want := []string{a, a, a, a, "x" + a + "y" + a + "z", "two  words *", "", ""}
	if _, _, err := net.SplitHostPort(a); err != nil || strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q (%v)", got, want, err)
	}
}

func TestWithForwardLeavesNothingBehind(t *testing.T) {
	o := offerWeb(t)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	p := o.with(t, "sh", "-c", `echo "$P2PTUN_ADDR"`)
	if code := p.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	addr := strings.TrimSpace(p.out.String())
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Errorf("%s is still open", addr)
	}
	wantExit(t, o.client.start("ls"), exitNoNode)
	wantEmpty(t, temp)
}

// Exit codes of p2ptun, and of the scripts.
const (
	exitWrongUse = 2
	exitNoNode   = 7
)

func wantEmpty(t testing.TB, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in %s: %v %v", dir, left, err)
	}
}

func TestWithForwardPassesOnWhyThereIsNoServiceAndRunsNothing(t *testing.T) {
	o := offerWeb(t)
	stranger := newNode(t)
	away := "/ip4/127.0.0.1/tcp/1/p2p/" + stranger.id
	for _, c := range []struct {
		about    string
		node     *node
		protocol string
		peer     string
		code     int
	}{
		{"not allowed", stranger, testProtocol, o.addr, 3},
		{"peer away", o.client, testProtocol, away, 4},
		{"wrong use", o.client, "/not/x", o.addr, 2},
	} {
		t.Run(c.about, func(t *testing.T) {
			p := withForward(t, c.node, c.protocol, c.peer, "echo", "was run")
			if code := p.exit(t); code != c.code || p.out.String() != "" {
				t.Errorf("exit code %d, want %d; said %q", code, c.code, p.out.String())
			}
			p.saysOnStderr(t, "p2ptun: error: ")
		})
	}
}

// TestInterruptIsForTheCommandOfWithForward: a command may take Ctrl-C as it
// likes, psql for one, and still has its service.
func TestInterruptIsForTheCommandOfWithForward(t *testing.T) {
	setsid, err := exec.LookPath("setsid")
	if err != nil {
		t.Skip("no setsid on this machine, so Ctrl-C is for the forward as well")
	}
	o := offerWeb(t)
	useThisP2ptun(t)
	p := startFrom(t, setsid, setsid, scriptPath(t, "with-forward"), "--home", o.client.home,
		"--network", "none", "--listen-addr", overTCP, testProtocol, o.addr, "--", "sh", "-c",
		`trap 'echo caught' INT; echo waiting; read -r line; curl -sS --noproxy '*' "http://$P2PTUN_ADDR/"; exit 9`)
	p.waitFor(t, &p.out, "waiting")
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT); err != nil { // as a terminal does
		t.Fatal(err)
	}
	p.waitFor(t, &p.out, "caught")
	p.in.Close()
	if code := p.exit(t); code != 9 || !strings.HasSuffix(p.out.String(), pageText) {
		t.Errorf("exit code %d, want 9; said %q, want the page at the end", code, p.out.String())
	}
}

func TestTerminatedWithForwardTakesTheForwardDown(t *testing.T) {
	o := offerWeb(t)
	p := o.with(t, "sh", "-c", `echo waiting; read -r line`)
	p.waitFor(t, &p.out, "waiting")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.in.Close() // a shell acts on a signal when what it waits for has ended
	p.exit(t)
	wantExit(t, o.client.start("ls"), exitNoNode)
}

func TestDemoPassesAndLeavesNothingBehind(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	p := startScript(t, "demo")
	if code := p.exit(t); code != 0 || !strings.HasSuffix(p.out.String(), "\nPASS\n") {
		t.Errorf("exit code %d; said %q, want PASS at the end", code, p.out.String())
	}
	if said := p.err.String(); said != "" {
		t.Errorf("stderr is %q", said)
	}
	wantEmpty(t, temp)
	running, err := exec.Command("ps", "-eo", "args").Output()
	if err != nil {
		t.Fatalf("ps: %v", err)
	}
	if strings.Contains(string(running), temp) {
		t.Errorf("still running: %s", running)
	}
}

func TestDemoFailsWhereTheTunnelDoes(t *testing.T) {
	useThisP2ptun(t)
	fake := filepath.Join(t.TempDir(), "p2ptun")
	writeFile(t, fake, "#!/bin/sh\ncase $* in *forward*) exit 5 ;; esac\nexec '"+os.Getenv("P2PTUN")+"' \"$@\"\n")
	if err := os.Chmod(fake, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("P2PTUN", fake)
	p := startFrom(t, scriptPath(t, "demo"), "demo")
	if code := p.exit(t); code != 1 || strings.Contains(p.out.String(), "PASS") {
		t.Errorf("exit code %d, want 1; said %q", code, p.out.String())
	}
	wantHint(t, p, "demo")
}

func TestExposeWebOffersWhatListensOnAPort(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, pageText) }))
	t.Cleanup(web.Close)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(web.URL, "http://"))
	wantPageThrough(t, newNode(t), "web", "expose-web", port)
}

func TestExposeWebServesADirectoryForAsLongAsItRuns(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("no python3 on this machine, which expose-web serves a directory with")
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "index.html"), pageText)
	p := wantPageThrough(t, newNode(t), "pages", "expose-web", dir, "--name", "pages")
	port := p.waitFor(t, &p.out, `listening  /x/pages → /ip4/127\.0\.0\.1/tcp/(\d+)`)[1]
	p.kill()
	await(t, "the end of the web server", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}

// wantPageThrough exposes a web server and fetches its page.
func wantPageThrough(t *testing.T, owner *node, protocol, script string, args ...string) *process {
	t.Helper()
	client := newNode(t)
	args = append(args, "--home", owner.home, "--allow", client.id, "--network", "none", "--listen-addr", overTCP)
	p := startScript(t, script, args...)
	p.saysOnStderr(t, "p2ptun forward "+protocol+" 8080 "+owner.id)
	addr := p.waitFor(t, &p.out, `address    (\S+)`)[1]
	got := withForward(t, client, protocol, addr, "curl", "-sS", "--noproxy", "*", "http://{addr}/")
	if code := got.exit(t); code != 0 || got.out.String() != pageText {
		t.Fatalf("exit code %d; said %q, want the page", code, got.out.String())
	}
	return p
}

func TestExposeSSHOffersTheServerThatAnswers(t *testing.T) {
	sshd := findSSHD(t)
	lab := &sshLab{dir: t.TempDir()}
	mustRun(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", lab.path("host_key"))
	lab.writeServerConfig(t)
	_, port, _ := net.SplitHostPort(serve(t, func(c net.Conn) { lab.serve(t, sshd, c) }).addr())
	owner, client := newNode(t), newNode(t)
	p := startScript(t, "expose-ssh", "--port", port, "--home", owner.home, "--allow", client.id, "--network", "none", "--listen-addr", overTCP)
	p.saysOnStderr(t, "p2ptun forward ssh 2222 "+owner.id)
	addr := p.waitFor(t, &p.out, `address    (\S+)`)[1]
	got := withForward(t, client, "ssh", addr, "ssh-keyscan", "-p", "{port}", "127.0.0.1")
	if code := got.exit(t); code != 0 || !strings.Contains(got.out.String(), "ssh-ed25519") {
		t.Errorf("exit code %d; said %q, want the server's key", code, got.out.String())
	}
}

func TestExposeDoesNotOfferWhatDoesNotAnswer(t *testing.T) {
	_, port, _ := net.SplitHostPort(closedAddr(t))
	home := filepath.Join(t.TempDir(), "home")
	for script, args := range map[string][]string{
		"expose-ssh": {"--port", port, "--home", home},
		"expose-web": {port, "--home", home},
	} {
		p := startScript(t, script, args...)
		if code := p.exit(t); code != 5 || p.out.String() != "" {
			t.Errorf("%s: exit code %d, want 5; said %q", script, code, p.out.String())
		}
		wantHint(t, p, script)
	}
}

func TestScriptsSayWhatIsWrongWithTheirArguments(t *testing.T) {
	for _, line := range [][]string{
		{"with-forward"},
		{"with-forward", "web", "--", "true"},
		{"with-forward", "web", "PEER"},
		{"with-forward", "web", "PEER", "--"},
		{"with-forward", "web", "PEER", "--bg", "--", "true"},
		{"with-forward", "web", "PEER", "--json", "--", "true"},
		{"expose-ssh", "--port"},
		{"expose-ssh", "--port", "ssh"},
		{"expose-web"},
		{"expose-web", "no such directory"},
		{"expose-web", ".", "--bg"},
		{"demo", "now"},
		{"check", "nothing"},
	} {
		p := startScript(t, line[0], line[1:]...)
		if code := p.exit(t); code != exitWrongUse {
			t.Errorf("%s: exit code %d, want %d", line, code, exitWrongUse)
		}
		wantHint(t, p, line[0])
	}
}

// wantHint: an error of a script comes with what to do next.
func wantHint(t testing.TB, p *process, script string) {
	t.Helper()
	for _, text := range []string{script + ": error: ", script + ": hint: "} {
		if !strings.Contains(p.err.String(), text) {
			t.Errorf("%s: stderr lacks %q: %q", p.cmd.Args, text, p.err.String())
		}
	}
}

// TestFuzzTellsGosOwnRaceFromAFailure: a go that lists one fuzzer, and then says
// of it what the lines of a file say, one run after the other.
func TestFuzzTellsGosOwnRaceFromAFailure(t *testing.T) {
	const (
		race   = `--- FAIL: FuzzIt (10.14s)\n    context deadline exceeded\nFAIL\n`
		crash  = `--- FAIL: FuzzIt (1s)\n    Failing input written to testdata\n    context deadline exceeded\nFAIL\n`
		broken = `--- FAIL: FuzzIt (1s)\n    fuzzing process hung\nFAIL\n`
	)
	for name, c := range map[string]struct {
		runs []string
		code int
	}{
		"race, then well":  {[]string{race, race, ""}, 0},
		"race each time":   {[]string{race, race, race}, 1},
		"an input":         {[]string{crash, ""}, 1},
		"something else":   {[]string{broken, ""}, 1},
		"well":             {[]string{""}, 0},
		"race, then input": {[]string{race, crash, ""}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for i, said := range c.runs {
				writeFile(t, filepath.Join(dir, fmt.Sprint("run", i)), said)
			}
			fake := filepath.Join(dir, "go")
			writeFile(t, fake, "#!/bin/sh\ncase $* in *-list*) [ \"$4\" != ./trunk ] || echo FuzzIt; exit ;; esac\n"+
				"n=$(cat "+dir+"/n 2>/dev/null || echo 0); echo $((n + 1)) >"+dir+"/n\nprintf %b \"$(cat "+dir+"/run$n)\"\n[ ! -s "+dir+"/run$n ]\n")
			if err := os.Chmod(fake, 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			path := scriptPath(t, "fuzz")
			if code := startFrom(t, path, path, "1s", "FuzzIt").exit(t); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
		})
	}
}
