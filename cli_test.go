//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the command line as testdata/script tells it. What the
// scripts have beside testscript's own commands:
//
//	exits CODE PROGRAM ARG...     the program ends with that code
//	until REGEXP PROGRAM ARG...   run it until it ends with 0 and its stdout matches
//	take NAME REGEXP FILE         $NAME is the first submatch in the file, or in stdout or stderr
//	service NAME                  $NAME is HOST:PORT of a service that echoes
//	nobody NAME                   $NAME is HOST:PORT where nobody listens
//	echoes HOST:PORT              a connection there answers as the service does
//	holds HOST:PORT               one that does is held until the script ends
//	events NAME...                stdout is JSON, an object a line, with these first values of the first key "event"
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("P2PTUN_HOME", e.WorkDir+"/h")
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			e.Setenv("ADDR", overTCP)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": scriptExits, "until": scriptUntil, "take": scriptTake, "service": scriptService,
			"nobody": scriptNobody, "echoes": scriptEchoes, "holds": scriptHolds, "events": scriptEvents,
		},
	})
}

// want ends the script unless a command was called as it is meant to be.
func want(ts *testscript.TestScript, neg bool, args []string, least int, usage string) {
	if neg || len(args) < least {
		ts.Fatalf("usage: %s", usage)
	}
}

func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "exits CODE PROGRAM ARG...")
	code := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func scriptUntil(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2, "until REGEXP PROGRAM ARG...")
	re := regexp.MustCompile("(?m)" + args[0])
	if !within(patience, func() bool {
		return ts.Exec(args[1], args[2:]...) == nil && re.MatchString(ts.ReadFile("stdout"))
	}) {
		ts.Fatalf("not within %s: %s", patience, args)
	}
}

func scriptTake(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 3, "take NAME REGEXP FILE")
	match := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile(args[2]))
	if len(match) < 2 {
		ts.Fatalf("no %q in %s", args[1], args[2])
	}
	ts.Setenv(args[0], match[1])
}

func scriptService(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "service NAME")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	s := &service{Listener: l, live: map[net.Conn]bool{}}
	s.handlers.Go(func() { s.acceptAll(echoBack) })
	ts.Defer(s.stop)
	ts.Setenv(args[0], s.addr())
}

func scriptNobody(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "nobody NAME")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], l.Addr().String())
	ts.Check(l.Close())
}

func scriptEchoes(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, false, args, 1, "echoes HOST:PORT")
	if got := echoesAt(args[0]); got == neg {
		ts.Fatalf("%s echoes: %v", args[0], got)
	}
}

func scriptHolds(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 1, "holds HOST:PORT")
	c, err := net.Dial("tcp", args[0])
	ts.Check(err)
	ts.Defer(func() { c.Close() })
	ts.Check(echoOn(c))
}

// echoesAt tries one connection.
func echoesAt(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return false
	}
	defer c.Close()
	return echoOn(c) == nil
}

// echoOn sends a byte and wants it back.
func echoOn(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "?"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func scriptEvents(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 0, "events NAME...")
	var names []string
	for text := range strings.Lines(ts.ReadFile("stdout")) {
		name, err := eventOfLine(text)
		ts.Check(err)
		names = append(names, name)
	}
	if fmt.Sprint(names) != fmt.Sprint(args) {
		ts.Fatalf("events %v, want %v", names, args)
	}
}

// eventOfLine wants "event" as the first key of one JSON object.
func eventOfLine(text string) (string, error) {
	var e struct{ Event string }
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return "", fmt.Errorf("%q: %w", text, err)
	}
	if !strings.HasPrefix(text, `{"event":"`+e.Event+`"`) {
		return "", fmt.Errorf(`%q: the first key is not "event"`, text)
	}
	return e.Event, nil
}

// takeHangups lets children have hangups, however this test was started.
func takeHangups(t testing.TB) {
	t.Helper()
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(ch) })
}

func TestCLITakesEachHangupOfAClosedTerminalForOneSignal(t *testing.T) {
	takeHangups(t)
	tun := startTunnel(t, overTCP, serve(t, echoBack).addr(), "--drain", "1m")
	c := tun.forward.dial(t)
	wantEcho(t, c, "before")
	sendSignal(t, tun.listen.process, syscall.SIGHUP)
	tun.listen.saysOnStderr(t, "live connections: 1")
	sendSignal(t, tun.listen.process, syscall.SIGHUP)
	for range 20 {
		wantEcho(t, c, "after")
	}
	c.Close()
	if code := tun.listen.exit(t); code != 0 {
		t.Errorf("exit code %d: %s", code, tun.listen.err.String())
	}
}

// A hangup that counted would make the interrupt the second signal, which
// resets the connection.
func TestCLIUnderNohupOutlivesAHangup(t *testing.T) {
	service, client := newNode(t), newNode(t)
	service.run("allow", testProtocol, client.id)
	l := startFrom(t, "/bin/sh", "sh", "-c", `trap '' HUP; exec p2ptun "$@"`, "sh", "--home", service.home, "listen",
		"--network", "none", "--listen-addr", overTCP, "--drain", "1m", testProtocol, serve(t, echoBack).addr())
	addr := l.waitFor(t, &l.out, `address    (\S+)`)[1]
	c := startForward(client, testProtocol, addr).dial(t)
	wantEcho(t, c, "before")
	sendSignal(t, l, syscall.SIGHUP)
	interrupt(t, l)
	l.saysOnStderr(t, "live connections: 1")
	for range 20 {
		wantEcho(t, c, "after")
	}
	c.Close()
	if code := l.exit(t); code != 0 {
		t.Errorf("exit code %d: %s", code, l.err.String())
	}
}
