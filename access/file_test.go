package access

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"p2ptun/home"
)

const (
	alice = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
	bob   = "12D3KooWEChVMMMzV8acJ53mJHrw1pQ27UAGkCxWXLJutbeUMvVu"
)

// write puts content where rules are read from.
func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func file(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "access")
	write(t, path, content)
	return path
}

func contentOf(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestFileGrammar(t *testing.T) {
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		line string
		want Rule // zero: no rule in the line
		bad  string
	}{
		"blank":                {line: " \t "},
		"comment":              {line: "  # allow /x/ssh " + alice},
		"allow":                {line: "allow /x/ssh " + alice, want: Rule{Allow: true, Protocol: "/x/ssh", Peer: alice}},
		"deny":                 {line: "deny /x/ssh " + alice, want: Rule{Protocol: "/x/ssh", Peer: alice}},
		"bare name":            {line: "allow ssh " + alice, want: Rule{Allow: true, Protocol: "/x/ssh", Peer: alice}},
		"p2p form":             {line: "allow /x/ssh /p2p/" + alice, want: Rule{Allow: true, Protocol: "/x/ssh", Peer: alice}},
		"tabs and blanks":      {line: "\tallow \t/x/ssh   " + alice + "  ", want: Rule{Allow: true, Protocol: "/x/ssh", Peer: alice}},
		"carriage return":      {line: "allow /x/ssh " + alice + "\r", want: Rule{Allow: true, Protocol: "/x/ssh", Peer: alice}},
		"custom protocol":      {line: "allow /my/own/1.0.0 " + alice, want: Rule{Allow: true, Protocol: "/my/own/1.0.0", Peer: alice}},
		"until":                {line: "allow /x/ssh " + alice + " until=2030-01-02T03:04:05Z", want: Rule{Allow: true, Protocol: "/x/ssh", Peer: alice, Until: until}},
		"until with an offset": {line: "allow /x/ssh " + alice + " until=2030-01-02T05:04:05+02:00", want: Rule{Allow: true, Protocol: "/x/ssh", Peer: alice, Until: until}},
		"trailing comment":     {line: "allow /x/ssh " + alice + " # Alice's laptop", want: Rule{Allow: true, Protocol: "/x/ssh", Peer: alice, Comment: "Alice's laptop"}},
		"hash in a name":       {line: "allow /x/c#1 " + alice + " #c", want: Rule{Allow: true, Protocol: "/x/c#1", Peer: alice, Comment: "c"}},

		"unknown word":         {line: "permit /x/ssh " + alice, bad: "neither allow nor deny"},
		"capitals":             {line: "Allow /x/ssh " + alice, bad: "neither allow nor deny"},
		"no peer":              {line: "allow /x/ssh", bad: "want: allow|deny"},
		"commented-out peer":   {line: "allow /x/ssh # " + alice, bad: "want: allow|deny"},
		"a name is no peer ID": {line: "allow /x/ssh laptop", bad: "not a peer ID"},
		"dnsaddr":              {line: "allow /x/ssh /dnsaddr/example.org", bad: "not a peer ID"},
		"everybody":            {line: "allow /x/ssh *", bad: "not a peer ID"},
		"empty protocol":       {line: "allow /x/ " + alice, bad: "empty"},
		"reserved protocol":    {line: "allow /p2ptun/ask/1.0.0 " + alice, bad: "reserved"},
		"unknown option":       {line: "allow /x/ssh " + alice + " since=2030-01-02T03:04:05Z", bad: "unknown option"},
		"until without a zone": {line: "allow /x/ssh " + alice + " until=2030-01-02T03:04:05", bad: "not a time"},
		"until a day":          {line: "allow /x/ssh " + alice + " until=2030-01-02", bad: "not a time"},
		"too long":             {line: "# " + strings.Repeat("x", maxLine), bad: "longer than"},
		"control characters":   {line: "allow /x/a\x1b[2Jb " + alice, bad: `\x1b`},
	} {
		t.Run(name, func(t *testing.T) { checkLine(t, c.line, c.want, c.bad) })
	}
}

func checkLine(t *testing.T, text string, want Rule, bad string) {
	lines, err := parse("FILE", []byte("# first\n"+text+"\n"))
	if bad != "" {
		var at *LineError
		if !errors.As(err, &at) || at.Line != 2 || !strings.Contains(err.Error(), bad) {
			t.Fatalf("err = %v, want line 2 and %q", err, bad)
		}
		if strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("the error holds a raw escape: %q", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	var got Rule
	if rule := lines[1].rule; rule != nil {
		got = *rule
	}
	got.Until = got.Until.UTC()
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestTooManyRulesAreRefused(t *testing.T) {
	one := "allow /x/ssh " + alice + "\n"
	if _, err := parse("FILE", []byte(strings.Repeat(one, maxRules))); err != nil {
		t.Errorf("%d rules: %v", maxRules, err)
	}
	_, err := parse("FILE", []byte(strings.Repeat(one, maxRules+1)))
	var at *LineError
	if !errors.As(err, &at) || at.Line != maxRules+1 {
		t.Errorf("%d rules: err = %v, want the last line named", maxRules+1, err)
	}
}

// FuzzParse: what is parsed and written is parsed to the same again; nothing
// in an error can reach a terminal raw.
func FuzzParse(f *testing.F) {
	f.Add("allow /x/ssh " + alice + "\n# c\n\ndeny ssh " + bob + " until=2030-01-02T03:04:05+02:00 # b\r\n")
	f.Add("allow /x/c#1 " + alice + "#\n")
	f.Add("permit \x1b[2J x\x00\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := parse("FILE", []byte(text))
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
				t.Fatalf("raw control character in %q", err)
			}
			return
		}
		again, err := parse("FILE", render(lines))
		if err != nil || len(again) != len(lines) {
			t.Fatalf("%d lines became %d: %v", len(lines), len(again), err)
		}
		for i := range lines {
			checkRoundTrip(t, lines[i].rule, again[i].rule)
		}
	})
}

func checkRoundTrip(t *testing.T, a, b *Rule) {
	if (a == nil) != (b == nil) || a != nil && *a != *b && a.String() != b.String() {
		t.Fatalf("%v became %v", a, b)
	}
	if a == nil || a.check() != nil {
		return
	}
	back, err := parseLine(a.String())
	if err != nil || back.String() != a.String() {
		t.Fatalf("%q passed check and reads as %v, %v", a.String(), back, err)
	}
}

func set(t testing.TB, path string, rule Rule) {
	t.Helper()
	if err := Set(context.Background(), path, rule); err != nil {
		t.Fatal(err)
	}
}

func TestSetKeepsCommentsAndOtherLines(t *testing.T) {
	before := "# my friends\n\nallow /x/web " + bob + "   # Bob\nallow ssh " + alice + " # Alice's laptop\n  # the end\n"
	path := file(t, before)
	set(t, path, Rule{Protocol: "/x/ssh", Peer: alice})
	want := strings.Replace(before, "allow ssh "+alice, "deny /x/ssh "+alice, 1)
	if got := contentOf(t, path); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestSetReplacesAllRulesAboutTheSame(t *testing.T) {
	other := "deny /x/ssh " + bob + "\n"
	path := file(t, "deny /x/ssh "+alice+"\n"+other+"allow ssh "+alice+" until=2030-01-01T00:00:00Z\n")
	set(t, path, Rule{Allow: true, Protocol: "/x/ssh", Peer: alice})
	if got, want := contentOf(t, path), "allow /x/ssh "+alice+"\n"+other; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestSetMakesAPrivateFileThatExplainsItself(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access")
	set(t, path, Rule{Allow: true, Protocol: "/x/ssh", Peer: alice})
	if got := contentOf(t, path); got != preamble+"allow /x/ssh "+alice+"\n" {
		t.Errorf("got:\n%s", got)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
}

func TestSetRefusesARuleThatWouldNotBeReadBack(t *testing.T) {
	path := file(t, "# mine\n")
	for name, r := range map[string]Rule{
		"a second line in the comment": {Allow: true, Protocol: "/x/ssh", Peer: alice, Comment: "x\nallow /x/ssh " + bob},
		"a blank in the name":          {Allow: true, Protocol: "/x/s sh", Peer: alice},
		"no peer":                      {Allow: true, Protocol: "/x/ssh"},
		"a far year":                   {Allow: true, Protocol: "/x/ssh", Peer: alice, Until: time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)},
		"too long":                     {Allow: true, Protocol: "/x/ssh", Peer: alice, Comment: strings.Repeat("x", maxLine)},
	} {
		if err := Set(context.Background(), path, r); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if got := contentOf(t, path); got != "# mine\n" {
		t.Errorf("the file became:\n%s", got)
	}
}

func TestSetOfANameWithAHashIsReadBack(t *testing.T) {
	path := file(t, "")
	set(t, path, Rule{Allow: true, Protocol: "/x/c#1", Peer: alice, Comment: " hi "})
	rules, err := List(path)
	if err != nil || len(rules) != 1 || rules[0] != (Rule{Allow: true, Protocol: "/x/c#1", Peer: alice, Comment: "hi"}) {
		t.Errorf("List = %+v, %v", rules, err)
	}
}

func TestSetDoesNotTouchAFileThatCannotBeTrusted(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
	}{
		"broken line":        {"allow /x/ssh\n", 0o600},
		"writable by others": {"allow /x/ssh " + bob + "\n", 0o666},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, c.content)
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			if err := Set(context.Background(), path, Rule{Allow: true, Protocol: "/x/web", Peer: alice}); err == nil {
				t.Error("taken")
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != c.mode || contentOf(t, path) != c.content {
				t.Errorf("the file became %v:\n%s", info.Mode(), contentOf(t, path))
			}
		})
	}
}

func TestListShowsExpiredRulesToo(t *testing.T) {
	path := file(t, "allow /x/ssh "+alice+" until=2001-01-01T00:00:00Z\ndeny /x/web "+bob+"\n")
	rules, err := List(path)
	if err != nil || len(rules) != 2 || rules[0].Peer != alice || rules[1].Peer != bob {
		t.Errorf("List = %v, %v", rules, err)
	}
	rules, err = List(path + ".missing")
	if err != nil || rules != nil {
		t.Errorf("List of no file = %v, %v", rules, err)
	}
}

func TestConcurrentSetsLoseNothing(t *testing.T) {
	path := file(t, "# kept\n")
	var all sync.WaitGroup
	const setters = 40
	for i := range setters {
		all.Go(func() {
			if err := Set(context.Background(), path, Rule{Allow: true, Protocol: "/x/" + strconv.Itoa(i), Peer: alice}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	checkCount(t, path, setters)
}

const perChild = 25

func TestSetsOfSeveralProcessesLoseNothing(t *testing.T) {
	path := file(t, "# kept\n")
	const children = 4
	var all sync.WaitGroup
	for i := range children {
		all.Go(func() {
			cmd := exec.Command(os.Args[0], fmt.Sprintf("child%d", i))
			cmd.Env = append(os.Environ(), childVar+"="+path)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("child %d: %v\n%s", i, err, out)
			}
		})
	}
	all.Wait()
	checkCount(t, path, children*perChild)
}

func checkCount(t *testing.T, path string, want int) {
	t.Helper()
	rules, err := List(path)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range rules {
		seen[r.Protocol] = true
	}
	if len(rules) != want || len(seen) != want {
		t.Errorf("%d rules, %d different; want %d", len(rules), len(seen), want)
	}
	if !strings.HasPrefix(contentOf(t, path), "# kept\n") {
		t.Error("the comment was lost")
	}
}

func TestSetGivesUpWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	path := file(t, "# mine\n")
	err := Set(ctx, path, Rule{Allow: true, Protocol: "/x/ssh", Peer: alice})
	if !errors.Is(err, context.Canceled) || errors.Is(err, home.ErrBusy) {
		t.Errorf("err = %v", err)
	}
}
