package command

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"p2ptun/daemon"
	"p2ptun/proto"
	"p2ptun/registry"
)

const somePeer = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"

// inviteTo makes an invite of somePeer.
func inviteTo(t testing.TB, protocol string) string {
	t.Helper()
	id, err := peer.Decode(somePeer)
	if err != nil {
		t.Fatal(err)
	}
	i, err := proto.NewInvite(id, nil, protocol)
	if err != nil {
		t.Fatal(err)
	}
	return i.Text()
}

// noInput fails a test that reads it.
type noInput struct{ testing.TB }

func (n noInput) Read([]byte) (int, error) {
	n.Error("stdin is read")
	return 0, io.EOF
}

func TestInviteIsFoundInTheArgumentsStdinOrTheEnvironment(t *testing.T) {
	invite, other := inviteTo(t, "/x/ssh"), inviteTo(t, "/x/web")
	for name, c := range map[string]struct {
		args            []string
		env, stdin      string
		text, rest, err string
	}{
		"argument":                {args: []string{invite, "2222"}, text: invite, rest: "2222"},
		"argument wins":           {args: []string{invite}, env: other, text: invite},
		"stdin":                   {args: []string{"-", "2222"}, stdin: invite + "\nmore", text: invite, rest: "2222"},
		"stdin wins":              {args: []string{"-"}, stdin: invite, env: other, text: invite},
		"environment":             {env: invite, text: invite},
		"environment with BIND":   {args: []string{"2222"}, env: invite, text: invite, rest: "2222"},
		"named, with environment": {args: []string{"ssh", "bob"}, env: invite, rest: "ssh bob"},
		"named with one as PEER":  {args: []string{"ssh", invite}, rest: "ssh " + invite},
		"nothing":                 {},
		"nothing on stdin":        {args: []string{"-"}, stdin: " \n\n", err: "no invite on stdin"},
		"headless":                {args: []string{invite[1:]}, err: "mistyped"},
		"headless as PEER":        {args: []string{"ssh", invite[7:]}, err: "mistyped"},
		"a long name with slash":  {args: []string{"/x/" + strings.Repeat("a", 100), "bob"}, rest: "/x/" + strings.Repeat("a", 100) + " bob"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(inviteVariable, c.env)
			tl := &tool{Env: Env{In: noInput{t}}}
			if c.stdin != "" {
				tl.In = strings.NewReader(c.stdin)
			}
			text, rest, err := tl.inviteArgs(c.args)
			if text != c.text || c.err == "" && strings.Join(rest, " ") != c.rest {
				t.Errorf("%q and %q", text, rest)
			}
			if (err != nil) != (c.err != "") || err != nil && (!strings.Contains(err.Error(), c.err) || tl.explain(err).code != exitUsage) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
}

// untilRead gives its text, and then fails a test that wants more.
type untilRead struct {
	*strings.Reader
	testing.TB
}

func (u untilRead) Read(b []byte) (int, error) {
	if u.Len() == 0 {
		u.Error("it waits for more than it needs")
		return 0, io.EOF
	}
	return u.Reader.Read(b)
}

func TestInviteOnStdinIsTakenAsSoonAsItIsWhole(t *testing.T) {
	invite := inviteTo(t, "/x/ssh")
	for name, text := range map[string]string{
		"a line":             invite + "\n",
		"with words around":  "invite     p2ptun forward " + invite + " 2222\n",
		"in pieces":          invite[:20] + "\n  " + invite[20:70] + " \r\n\t" + invite[70:] + "\n",
		"behind other lines": "listening  /x/ssh → /ip4/127.0.0.1/tcp/22\n\ninvite p2ptun forward " + invite + "\n",
	} {
		got, err := readInvite(untilRead{strings.NewReader(text), t})
		if err != nil || got != invite {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	endless := io.MultiReader(strings.NewReader("p2ptun1 "), endlessReader{})
	if got, err := readInvite(endless); err != nil || len(got) > 2*maxInput {
		t.Errorf("of an endless input: %d bytes, %v", len(got), err)
	}
}

type endlessReader struct{}

func (endlessReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = "a\n"[i%2]
	}
	return len(b), nil
}

func TestWhatIsNoInviteIsExplained(t *testing.T) {
	invite := inviteTo(t, "/x/ssh")
	for text, hint := range map[string]string{
		invite[:len(invite)-2]: "copy it once more",
		"p2ptun1":              "copy it once more",
		"hello":                "copy it once more",
		"":                     "copy it once more",
	} {
		_, err := parseInvite(text)
		e := new(tool).explain(err)
		if e.code != exitUsage || !strings.Contains(e.err.Error(), "mistyped") || !strings.Contains(e.hint, hint) {
			t.Errorf("%.20q: %v, hint %q", text, err, e.hint)
		}
	}
}

func TestInviteThatMayBeOfALaterVersionSaysHowToFindOut(t *testing.T) {
	later := "p2ptun2" + inviteTo(t, "/x/ssh")[7:]
	for _, args := range [][]string{{"forward", later}, {"forward", "ssh", later}, {"ping", later}} {
		code, _, stderr := run(t, args...)
		for _, says := range []string{"mistyped or not whole, or was made by a newer p2ptun", "it starts with p2ptun2", "from p2ptun to its end", "p2ptun version"} {
			if code != exitUsage || !strings.Contains(stderr, says) || strings.Contains(stderr, later[12:40]) {
				t.Errorf("%s: exit code %d, want %q: %s", args[0], code, says, stderr)
			}
		}
	}
}

func TestInviteInAChatsQuotesIsNamedAsSuch(t *testing.T) {
	invite := inviteTo(t, "/x/ssh")
	for _, quoted := range []string{`"` + invite + `"`, "“" + invite + "”", "'" + invite, "<" + invite + ">", "`" + invite + "`"} {
		code, _, stderr := run(t, "forward", quoted, "2222")
		if code != exitUsage || !strings.Contains(stderr, "does not start with p2ptun1") || strings.Contains(stderr, invite[12:40]) {
			t.Errorf("%.12s: exit code %d: %s", quoted, code, stderr)
		}
	}
}

func TestPortThatIsProposedToAForwarderIsLikelyFree(t *testing.T) {
	for target, want := range map[string]string{
		"/ip4/127.0.0.1/tcp/22":      " 2222",
		"/ip4/127.0.0.1/tcp/80":      " 8080",
		"/ip4/127.0.0.1/tcp/443":     " 8443",
		"/ip4/127.0.0.1/tcp/25":      " 10025",
		"/dns4/localhost/tcp/5432":   " 5432",
		"/ip6/::1/tcp/65535":         " 65535",
		"/unix/run/app.sock":         "",
		"what is no address at all ": "",
	} {
		if got := bindFor(target); got != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
}

func TestInviteIsNoPeerToLetIn(t *testing.T) {
	for _, args := range [][]string{
		{"allow", "ssh", inviteTo(t, "/x/ssh")}, {"deny", "ssh", inviteTo(t, "/x/ssh")},
		{"listen", "ssh", "22", "--allow", inviteTo(t, "/x/ssh")}, {"access", "group", "add", "family", inviteTo(t, "/x/ssh")},
	} {
		code, _, stderr := run(t, args...)
		if code != exitUsage || !strings.Contains(stderr, "an invite is no peer to let in") || strings.Contains(stderr, somePeer) {
			t.Errorf("%s: exit code %d: %s", args[0], code, stderr)
		}
	}
}

func TestInvitesAreMadeWithinBounds(t *testing.T) {
	for args, says := range map[string]string{
		"--for 0s":                   "a second at least",
		"--for -1h":                  "a second at least",
		"--for 500ms":                "a second at least",
		"--for tomorrow":             "not a time with its unit",
		"--uses 0":                   "1 to 1000 uses",
		"--uses 1001":                "1 to 1000 uses",
		"--uses many":                "invalid value",
		"--comment " + longLine(300): "a comment is one line",
	} {
		code, out, stderr := run(t, append([]string{"invite", "ssh"}, strings.Fields(args)...)...)
		if code != exitUsage || out != "" || !strings.Contains(stderr, says) {
			t.Errorf("%.30s: exit code %d: %s%s", args, code, out, stderr)
		}
	}
}

func longLine(n int) string { return strings.Repeat("x", n) }

func TestCommandsToPasteTakeAProtocolOutsideX(t *testing.T) {
	tl := new(tool)
	tunnel := registry.Tunnel{Kind: registry.KindForward, Protocol: "/y/ssh"}
	for _, code := range []daemon.Code{daemon.CodeRefused, daemon.CodeInvite, daemon.CodeNoService} {
		e := tl.explain(tl.explainTunnel(&daemon.Error{Code: code, Message: "m"}, tunnel, somePeer))
		if !strings.Contains(e.hint, "/y/ssh --allow-custom-protocol") {
			t.Errorf("%s: hint %q", code, e.hint)
		}
	}
	for protocol, want := range map[string]string{"/x/ssh": "/x/ssh", "/x/a b": "'/x/a b'", "/y/ssh": "/y/ssh --allow-custom-protocol"} {
		if got := named(protocol); got != want {
			t.Errorf("%s: %s, want %s", protocol, got, want)
		}
	}
}

func TestRefusedInviteSaysWhatTheOwnerCanDo(t *testing.T) {
	tl, tunnel := new(tool), registry.Tunnel{Kind: registry.KindForward, Protocol: "/x/ssh", Invite: inviteTo(t, "/x/ssh")}
	explain := func(code daemon.Code) *exitError {
		var e *exitError
		if err := tl.explainTunnel(&daemon.Error{Code: code, Message: "m"}, tunnel, "SELF"); !errors.As(err, &e) {
			t.Fatal(err)
		}
		return e
	}
	used, unknown := explain(daemon.CodeInvite), explain(daemon.CodeRefused)
	if used.code != exitNotAllowed || !strings.Contains(used.hint, "p2ptun invite /x/ssh") || !strings.Contains(used.hint, "p2ptun allow /x/ssh SELF") {
		t.Errorf("%d, hint %q", used.code, used.hint)
	}
	if later := explain(daemon.CodeInviteLater); later.code != exitNotAllowed || !strings.HasPrefix(later.hint, "try again") || strings.Contains(later.hint, "p2ptun invite") {
		t.Errorf("%d, hint %q", later.code, later.hint)
	}
	if unknown.code != exitNotAllowed || !strings.Contains(unknown.Error(), "the invite is not known there") || unknown.hint != "the owner has to type: p2ptun allow /x/ssh SELF" {
		t.Errorf("%d %v, hint %q", unknown.code, unknown, unknown.hint)
	}
}

func TestNotesHoldNoSecret(t *testing.T) {
	invite := inviteTo(t, "/x/ssh")
	var stderr strings.Builder
	tl := &tool{Env: Env{Err: &stderr, Out: io.Discard, Soft: context.Background()}}
	tl.note("got %s from %q", invite, []string{invite})
	_ = tl.fail(errors.New("peer " + invite + ": not reached"))
	if _, err := (redacting{&stderr}).Write([]byte("level=DEBUG invite=" + invite + "\n")); err != nil {
		t.Fatal(err)
	}
	if said := stderr.String(); strings.Contains(said, invite[12:40]) || strings.Count(said, "p2ptun1") != 4 {
		t.Errorf("it said %s", said)
	}
}
