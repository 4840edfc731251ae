package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"p2ptun/access"
	"p2ptun/daemon"
	"p2ptun/home"
	"p2ptun/registry"
)

// run runs one command line against a home of its own.
func run(t testing.TB, args ...string) (code int, out, err string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	env := Env{In: strings.NewReader(""), Out: &stdout, Err: &stderr, Soft: context.Background(), Hard: context.Background()}
	code = Run(env, append([]string{"p2ptun", "--home", t.TempDir()}, args...))
	return code, stdout.String(), stderr.String()
}

func TestEveryErrorHasItsExitCode(t *testing.T) {
	api := func(c daemon.Code) error { return fmt.Errorf("open: %w", &daemon.Error{Code: c, Message: "m"}) }
	for err, want := range map[error]int{
		errors.New("any"):               exitFailure,
		usagef("wrong"):                 exitUsage,
		api(daemon.CodeFailed):          exitFailure,
		api(daemon.CodeUsage):           exitUsage,
		api(daemon.CodeRefused):         exitNotAllowed,
		api(daemon.CodeInviteLater):     exitNotAllowed,
		api(daemon.CodeNotReached):      exitNotReached,
		api(daemon.CodeServiceDown):     exitNoService,
		api(daemon.CodeNoService):       exitNoService,
		api(daemon.CodeAddrTaken):       exitAddrTaken,
		api(daemon.CodeDuplicate):       exitFailure,
		api(daemon.CodeHosting):         exitFailure,
		api(daemon.CodeState):           exitFailure,
		api("of a later version"):       exitFailure,
		daemon.ErrNoOwner:               exitNoNode,
		daemon.ErrOwned:                 exitFailure,
		home.ErrNoPeer:                  exitUsage,
		&home.UnsafeError{Path: "/h"}:   exitFailure,
		context.Canceled:                exitInterrupted,
		&access.LineError{Err: io.EOF}:  exitFailure,
		&daemon.BookError{Err: io.EOF}:  exitFailure,
		fmt.Errorf("x: %w", usagef("")): exitUsage,
	} {
		if got := new(tool).explain(err).code; got != want {
			t.Errorf("%T %v: %d, want %d", err, err, got, want)
		}
	}
}

func TestErrorsSayWhatToTypeNext(t *testing.T) {
	tl := &tool{home: "my home"}
	forward := registry.Tunnel{Kind: registry.KindForward, Protocol: "/x/a b"}
	for code, want := range map[daemon.Code]string{
		daemon.CodeRefused:     "p2ptun allow '/x/a b' ME",
		daemon.CodeNoService:   "p2ptun listen '/x/a b' TARGET",
		daemon.CodeServiceDown: "--wait",
		daemon.CodeNotReached:  "--wait",
		daemon.CodeAddrTaken:   "p2ptun --home 'my home' forward '/x/a b' PEER",
		daemon.CodeDuplicate:   "p2ptun --home 'my home' ls",
		daemon.CodeHosting:     "p2ptun --home 'my home' stop",
	} {
		var e *exitError
		err := tl.explainTunnel(&daemon.Error{Code: code, Message: "m"}, forward, "ME")
		if !errors.As(err, &e) || !strings.Contains(e.hint, want) {
			t.Errorf("%s: hint %q lacks %q", code, e.hint, want)
		}
	}
}

func TestDuplicateForwardIsATakenAddress(t *testing.T) {
	for kind, want := range map[registry.Kind]int{registry.KindForward: exitAddrTaken, registry.KindListen: exitFailure} {
		var e *exitError
		err := new(tool).explainTunnel(&daemon.Error{Code: daemon.CodeDuplicate}, registry.Tunnel{Kind: kind}, "")
		if !errors.As(err, &e) || e.code != want {
			t.Errorf("%s: %v, want %d", kind, err, want)
		}
	}
}

func TestHintOfTheDaemonIsKept(t *testing.T) {
	e := new(tool).explain(&daemon.Error{Code: daemon.CodeHosting, Message: "m", Hint: "do this"})
	if e.hint != "do this" {
		t.Errorf("hint %q", e.hint)
	}
}

func TestWrongUseAlwaysHasAHint(t *testing.T) {
	for _, line := range []string{
		"listen ssh udp:53", "listen ssh 0", "--log-level loud ls", "listen ssh 22 --network wan", "listen ssh 22 --drain -1s",
		"listen ssh 22 --silence x", "ping bob -c 0", "peer add a b", "allow ssh bob --for 0s", "close -l nowhere", "access", "nonsense",
	} {
		code, out, err := run(t, strings.Fields(line)...)
		lines := strings.Split(strings.TrimSpace(err), "\n")
		good := len(lines) == 2 && strings.HasPrefix(lines[0], "p2ptun: error: ") && strings.HasPrefix(lines[1], "p2ptun: hint: ")
		if code != exitUsage || out != "" || !good {
			t.Errorf("%s: %d, stdout %q, stderr %q", line, code, out, err)
		}
	}
}

func TestErrorsAreSafeForATerminal(t *testing.T) {
	_, _, err := run(t, "no\x1b[2Jsense\n")
	if strings.ContainsAny(err, "\x1b") || strings.Count(err, "\n") != 2 {
		t.Errorf("stderr %q", err)
	}
}

func TestHintsAreSafeForATerminal(t *testing.T) {
	code, _, err := run(t, "listen", "/y/a\x1b[2J\u202eb", "22")
	if code != exitUsage || strings.ContainsAny(err, "\x1b\u202e") || strings.Count(err, `/y/a\x1b[2J\u202eb`) != 2 {
		t.Errorf("%d, stderr %q", code, err)
	}
}

func TestEventIsTheFirstKeyOfAnyObject(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":1,"z":2}`:         `{"event":"e","a":1,"z":2}`,
		`{"event":"old","a":1}`: `{"event":"e","a":1}`,
	} {
		if got := string(withEventFirst([]byte(in), "e")); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestSizesAreShownForPeople(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 1 << 60: "1024.0 PiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestForwardIsPrintedWithTheAddressMostCanDial(t *testing.T) {
	const peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
	list := func(addrs ...string) (out []string) {
		for _, a := range addrs {
			out = append(out, a+"/p2p/"+peer)
		}
		return out
	}
	for want, addrs := range map[string][]string{
		"/p2p/" + peer:                       nil,
		"/ip4/127.0.0.1/tcp/1/p2p/" + peer:   list("/ip6/::1/tcp/1", "/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/tcp/1"),
		"/ip4/192.168.1.7/tcp/1/p2p/" + peer: list("/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.7/udp/1/quic-v1", "/ip4/192.168.1.7/tcp/1"),
		"/ip4/8.8.8.8/tcp/1/p2p/" + peer:     list("/ip4/192.168.1.7/tcp/1", "/ip4/8.8.8.8/tcp/1"),
	} {
		if got := bestAddr(addrs, peer); got != want {
			t.Errorf("%v: %s, want %s", addrs, got, want)
		}
	}
}
