package access

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"p2ptun/home"
	"p2ptun/proto"
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
		want Rule // zero: nothing in the line
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

		"group":           {line: "allow /x/ssh @family", want: Rule{Allow: true, Protocol: "/x/ssh", Peer: "@family"}},
		"deny of a group": {line: "deny /x/ssh @a-b_1 until=2030-01-02T03:04:05Z # x", want: Rule{Protocol: "/x/ssh", Peer: "@a-b_1", Until: until, Comment: "x"}},
		"max-streams":     {line: "allow /x/ssh " + alice + " max-streams=1", want: Rule{Allow: true, Protocol: "/x/ssh", Peer: alice, MaxStreams: 1}},
		"max-rate":        {line: "allow /x/ssh " + alice + " max-rate=9223372036854775807", want: Rule{Allow: true, Protocol: "/x/ssh", Peer: alice, MaxRate: math.MaxInt64}},
		"all options": {
			line: "allow /x/ssh @family max-rate=10 until=2030-01-02T03:04:05Z max-streams=2147483647 #slow",
			want: Rule{Allow: true, Protocol: "/x/ssh", Peer: "@family", Until: until, MaxStreams: math.MaxInt32, MaxRate: 10, Comment: "slow"},
		},

		"unknown word":         {line: "permit /x/ssh " + alice, bad: "none of allow, deny, group, invite, used"},
		"capitals":             {line: "Allow /x/ssh " + alice, bad: "none of allow, deny, group, invite, used"},
		"an escape for a word": {line: "\x1b[2J", bad: `\x1b[2J is none of`},
		"nameless group":       {line: "allow /x/ssh @", bad: "not the name of a group"},
		"group in a group":     {line: "allow /x/ssh @@family", bad: "not the name of a group"},
		"group with an escape": {line: "allow /x/ssh @a\x1b[2J", bad: `\x1b`},
		"no limit":             {line: "allow /x/ssh " + alice + " max-streams=", bad: "max-streams:  is not a number"},
		"a limit of nothing":   {line: "allow /x/ssh " + alice + " max-streams=0", bad: "not a number from 1"},
		"a negative limit":     {line: "allow /x/ssh " + alice + " max-rate=-1", bad: "not a number from 1"},
		"too many streams":     {line: "allow /x/ssh " + alice + " max-streams=2147483648", bad: "not a number from 1"},
		"a rate with a unit":   {line: "allow /x/ssh " + alice + " max-rate=1M", bad: "not a number from 1"},
		"a rate over 64 bits":  {line: "allow /x/ssh " + alice + " max-rate=9223372036854775808", bad: "not a number from 1"},
		"escape in a limit":    {line: "allow /x/ssh " + alice + " max-rate=\x1b[2J", bad: `\x1b`},
		"a limit on a deny":    {line: "deny /x/ssh " + alice + " max-streams=1", bad: "for an allow"},
		"an option twice":      {line: "allow /x/ssh " + alice + " until=2030-01-02T03:04:05Z until=2031-01-02T03:04:05Z", bad: "until is there twice"},
		"a limit twice":        {line: "allow /x/ssh " + alice + " max-rate=1 max-rate=2", bad: "max-rate is there twice"},
		"the first of times":   {line: "allow /x/ssh " + alice + " until=0001-01-01T00:00:00Z", bad: "not a time"},
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
	if lines[1].isEmpty() != (want == Rule{}) {
		t.Errorf("empty: %v", lines[1].isEmpty())
	}
	got.Until = got.Until.UTC()
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

const (
	someID   = "abcdefgh" // of an invite
	someHash = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	invite1  = "invite " + someID + " /x/ssh uses=2 until=2030-01-02T03:04:05Z secret=" + someHash
)

func TestFileGrammarOfGroupsAndInvites(t *testing.T) {
	for name, c := range map[string]struct{ line, want, bad string }{
		"group":                  {line: "group family " + alice + " " + bob, want: "group family [" + alice + " " + bob + "]"},
		"group with a comment":   {line: "group\tfamily /p2p/" + alice + " # all", want: "group family [" + alice + "]"},
		"empty group":            {line: "group family", want: "group family []"},
		"invite":                 {line: invite1, want: invite1},
		"invite with a comment":  {line: invite1 + " # for Bob", want: invite1 + " # for Bob"},
		"invite in other order":  {line: "invite " + someID + " ssh secret=" + someHash + " until=2030-01-02T05:04:05+02:00 uses=2", want: invite1},
		"an invite's most uses":  {line: strings.Replace(invite1, "uses=2", "uses=1000", 1), want: strings.Replace(invite1, "uses=2", "uses=1000", 1)},
		"used":                   {line: "used " + someID + " " + alice + " # once", want: "used " + someID + " " + alice},
		"nameless group":         {line: "group", bad: "want: group"},
		"group named by an ID":   {line: "group 12D3 " + alice, bad: "not the name of a group"},
		"group with an at":       {line: "group @family " + alice, bad: "not the name of a group"},
		"group with an escape":   {line: "group a\x1b[2J " + alice, bad: `\x1b`},
		"group of a name":        {line: "group family laptop", bad: "laptop is not a peer ID"},
		"group of a group":       {line: "group family @friends", bad: "not a peer ID"},
		"group of everybody":     {line: "group family *", bad: "not a peer ID"},
		"invite without an ID":   {line: "invite", bad: "want: invite"},
		"invite with an option":  {line: invite1 + " max-streams=1", bad: "want: invite"},
		"invite's ID in capital": {line: strings.Replace(invite1, someID, "ABCDEFGH", 1), bad: "not the id of an invite"},
		"invite's ID too short":  {line: strings.Replace(invite1, someID, "abcdefg", 1), bad: "not the id of an invite"},
		"invite's ID an escape":  {line: strings.Replace(invite1, someID, "\x1b[2J", 1), bad: `\x1b`},
		"invite to nothing":      {line: strings.Replace(invite1, "/x/ssh", "/x/", 1), bad: "empty"},
		"invite to p2ptun":       {line: strings.Replace(invite1, "/x/ssh", "/p2ptun/ask/1.0.0", 1), bad: "reserved"},
		"invite without uses":    {line: strings.Replace(invite1, "uses=2", "secret="+someHash, 1), bad: "needs uses"},
		"invite without an end":  {line: strings.Replace(invite1, "until=2030-01-02T03:04:05Z", "uses=2", 1), bad: "needs uses"},
		"invite of no use":       {line: strings.Replace(invite1, "uses=2", "uses=0", 1), bad: "from 1 to 1000"},
		"invite of many uses":    {line: strings.Replace(invite1, "uses=2", "uses=1001", 1), bad: "from 1 to 1000"},
		"invite until a day":     {line: strings.Replace(invite1, "T03:04:05Z", "", 1), bad: "not a time"},
		"invite of a bare hash":  {line: strings.Replace(invite1, someHash, "AAAA", 1), bad: "SHA-256"},
		"invite with a padding":  {line: strings.Replace(invite1, someHash, someHash+"=", 1), bad: "SHA-256"},
		"invite with a word":     {line: strings.Replace(invite1, "uses=2", "often=2", 1), bad: "unknown option often=2"},
		"invite with an escape":  {line: strings.Replace(invite1, "uses=2", "\x1b[2J=2", 1), bad: `\x1b`},
		"used by nobody":         {line: "used " + someID, bad: "want: used"},
		"used by two":            {line: "used " + someID + " " + alice + " " + bob, bad: "want: used"},
		"used without an invite": {line: "used " + alice + " " + alice, bad: "not the id of an invite"},
		"used by a group":        {line: "used " + someID + " @family", bad: "not a peer ID"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.bad != "" {
				checkLine(t, c.line, Rule{}, c.bad)
			} else if lines, err := parse("FILE", []byte(c.line)); err != nil || textOf(lines[0]) != c.want {
				t.Errorf("%s, %v; want %s", textOf(lines[0]), err, c.want)
			}
		})
	}
}

// textOf says what a line says.
func textOf(l line) string {
	switch {
	case l.rule != nil:
		return l.rule.String()
	case l.group != nil:
		return fmt.Sprintf("group %s %v", l.group.Name, l.group.Peers)
	case l.invite != nil:
		return l.invite.String()
	case l.used != nil:
		return l.used.String()
	}
	return ""
}

func TestWhatLinesSayTogetherIsBounded(t *testing.T) {
	var ten strings.Builder
	for n := range 10 {
		fmt.Fprintf(&ten, " %s", peerN(n))
	}
	group := "group g" + ten.String() + "\n"
	invites := func(n int) (text string) {
		for i := range n {
			text += strings.Replace(invite1, someID, proto.InviteID(fmt.Appendf(nil, "%05d", i)), 1) + "\n"
		}
		return text
	}
	for name, c := range map[string]struct {
		text string
		line int // 0: it is taken
	}{
		"1,000 invites":                {invites(maxInvites), 0},
		"1,001 invites":                {invites(maxInvites + 1), maxInvites + 1},
		"an invite twice":              {invite1 + "\n" + invite1 + "\n", 2},
		"an unknown group":             {"allow ssh " + alice + "\nallow web @nobody\n", 2},
		"a group that comes later":     {"allow web @g\n" + group, 0},
		"100,000 rules through groups": {strings.Repeat(group, 20) + strings.Repeat("deny ssh @g\n", 500), 0},
		"and one more":                 {strings.Repeat(group, 20) + strings.Repeat("deny ssh @g\n", 500) + "deny ssh " + alice + "\n", 521},
		"a use of no invite":           {"used " + someID + " " + alice + "\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, c.text)
			err := New(path, func() {}).Err()
			var at *LineError
			if c.line == 0 && err != nil || c.line > 0 && (!errors.As(err, &at) || at.Line != c.line) {
				t.Errorf("err = %v, want one of line %d", err, c.line)
			}
			if _, listErr := List(path); (listErr == nil) != (err == nil) {
				t.Errorf("List says %v", listErr)
			}
		})
	}
}

// What could not be read again would lock everybody out.
func TestWhatWouldBeTooMuchIsNotWritten(t *testing.T) {
	full := strings.Repeat("allow ssh "+alice+"\n", maxRules)
	ctx := context.Background()
	for name, write := range map[string]func(path string) error{
		"Set":        func(path string) error { return Set(ctx, path, Rule{Allow: true, Protocol: "/x/web", Peer: bob}) },
		"AddToGroup": func(path string) error { return AddToGroup(ctx, path, "g", []string{bob}) },
		"AddInvite": func(path string) error {
			_, err := AddInvite(ctx, path, keysOf("/x/ssh"), 1, time.Now().Add(time.Hour), "")
			return err
		},
		"a rule on no group": func(path string) error { return Set(ctx, path, Rule{Allow: true, Protocol: "/x/web", Peer: "@g"}) },
	} {
		path := file(t, full)
		if err := write(path); err == nil || !strings.Contains(err.Error(), "not written") || contentOf(t, path) != full {
			t.Errorf("%s: %v", name, err)
		}
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
	f.Add("group g " + alice + "\nallow ssh @g max-rate=1\n" + invite1 + " # c\nused " + someID + " " + bob + "\n")
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
			checkRoundTrip(t, lines[i], again[i])
		}
		checkTogether(t, lines)
	})
}

func checkRoundTrip(t *testing.T, a, b line) {
	if textOf(a) != textOf(b) || a.isEmpty() != b.isEmpty() {
		t.Fatalf("%q became %q", textOf(a), textOf(b))
	}
	switch {
	case a.rule != nil && a.rule.check() != nil, a.invite != nil && a.invite.check() != nil, a.isEmpty(), a.group != nil:
		return
	}
	back, err := parseLine(textOf(a))
	if err != nil || textOf(back) != textOf(a) {
		t.Fatalf("%q passed check and reads as %q, %v", textOf(a), textOf(back), err)
	}
}

// checkTogether: nobody gets in but who a line names.
func checkTogether(t *testing.T, lines []line) {
	c, err := interpret("FILE", lines)
	if err != nil {
		if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
			t.Fatalf("raw control character in %q", err)
		}
		return
	}
	text := string(render(lines))
	for g, r := range c.table(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
		if _, err := parseID(g.peer); err != nil || r.Peer != g.peer || r.Protocol != g.protocol {
			t.Fatalf("%v for %v of %q", r, g, text)
		}
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
	said, err := List(path)
	if rules := said.Rules; err != nil || len(rules) != 1 || rules[0] != (Rule{Allow: true, Protocol: "/x/c#1", Peer: alice, Comment: "hi"}) {
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
	said, err := List(path)
	if rules := said.Rules; err != nil || len(rules) != 2 || rules[0].Peer != alice || rules[1].Peer != bob {
		t.Errorf("List = %v, %v", rules, err)
	}
	said, err = List(path + ".missing")
	if err != nil || said.Rules != nil || said.Invites != nil || said.Groups != nil {
		t.Errorf("List of no file = %v, %v", said, err)
	}
}

func TestListShowsNoRuleThatDoesNotHoldSinceOthersMayWrite(t *testing.T) {
	path := file(t, "allow /x/ssh "+alice+"\n")
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	var unsafe *home.UnsafeError
	if said, err := List(path); !errors.As(err, &unsafe) || said.Rules != nil {
		t.Errorf("List = %v, %v", said.Rules, err)
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
			if out, err := childCommand("set", path, fmt.Sprintf("child%d", i)).CombinedOutput(); err != nil {
				t.Errorf("child %d: %v\n%s", i, err, out)
			}
		})
	}
	all.Wait()
	checkCount(t, path, children*perChild)
}

func checkCount(t *testing.T, path string, want int) {
	t.Helper()
	said, err := List(path)
	if err != nil {
		t.Fatal(err)
	}
	rules, seen := said.Rules, map[string]bool{}
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
