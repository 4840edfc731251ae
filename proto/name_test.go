package proto

import (
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestParseProtocolTakesNamesAndBareNames(t *testing.T) {
	for _, c := range []struct {
		typed  string
		custom bool
		want   string
	}{
		{"ssh", false, "/x/ssh"},
		{"/x/ssh", false, "/x/ssh"},
		{"/x/ssh", true, "/x/ssh"},
		{"ssh", true, "/x/ssh"},
		{"db/main", false, "/x/db/main"},
		{"x", false, "/x/x"},
		{"x/ssh", false, "/x/x/ssh"},
		{"-p", false, "/x/-p"},
		{"/x/größe", false, "/x/größe"},
		{"/x/ssh:2222@v1.0", false, "/x/ssh:2222@v1.0"},
		{"/x//", false, "/x//"},
		{"/y/ssh", true, "/y/ssh"},
		{"/p2ptun", true, "/p2ptun"},
		{"/" + strings.Repeat("a", MaxName-1), true, "/" + strings.Repeat("a", MaxName-1)},
		{strings.Repeat("a", MaxName-len(Namespace)), false, "/x/" + strings.Repeat("a", MaxName-len(Namespace))},
	} {
		got, err := ParseProtocol(c.typed, c.custom)
		if err != nil || got != c.want {
			t.Errorf("ParseProtocol(%q, %v) = %q, %v; want %q", c.typed, c.custom, got, err, c.want)
		}
	}
}

func TestParseProtocolOutsideNamespaceSpeaksKubosWords(t *testing.T) {
	for _, typed := range []string{
		"/y/ssh", "/ssh", "/x", "/", "//", "/X/ssh", "/libp2p/circuit/relay/0.2.0/hop",
		"/y/\x1b[31m", "/y/ a", "/" + strings.Repeat("y", MaxName+1),
	} {
		_, err := ParseProtocol(typed, false)
		if !errors.Is(err, ErrNamespace) {
			t.Errorf("ParseProtocol(%q) = %v; want ErrNamespace", typed, err)
			continue
		}
		if !strings.HasPrefix(err.Error(), "protocol name must be within '/x/' namespace") {
			t.Errorf("ParseProtocol(%q) says %q", typed, err)
		}
		checkShowable(t, err.Error())
	}
}

func TestParseProtocolRefusesWhatIsNoName(t *testing.T) {
	for _, c := range []struct {
		typed  string
		custom bool
		want   string
	}{
		{"", false, "protocol name is empty"},
		{"", true, "protocol name is empty"},
		{"/x/", false, "protocol name is empty"},
		{"/x/", true, "protocol name is empty"},
		{"/x", true, "protocol name is empty"},
		{"/", true, "protocol name is empty"},
		{strings.Repeat("a", MaxName-len(Namespace)+1), false, "longer than 255 bytes"},
		{"/" + strings.Repeat("a", MaxName), true, "longer than 255 bytes"},
		{"/x/\xff", false, "not UTF-8"},
		{"my ssh", false, `/x/my ssh holds a blank`},
		{"ssh\n", false, `/x/ssh\x0a holds`},
		{"ssh\x00", false, `/x/ssh\x00 holds`},
		{"ssh\u00a0", false, "holds a blank"},
		{"ssh\u0085", false, `ssh\u0085 holds`},
		{"\u202essh", false, `\u202essh holds`},
		{"ssh\u200b", false, `ssh\u200b holds`},
		{"ssh\ufe0f", false, `ssh\ufe0f holds`},
		{"\u3164", false, `\u3164 holds`},
		{"\u2800", false, `\u2800 holds`},
	} {
		got, err := ParseProtocol(c.typed, c.custom)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("ParseProtocol(%q, %v) = %q, %v; want an error with %q", c.typed, c.custom, got, err, c.want)
		}
	}
}

func TestParseProtocolKeepsTheNodesOwnProtocols(t *testing.T) {
	for _, name := range []string{
		AskProtocol, "/p2ptun/trunk/1.0.0/x/ssh", "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/dcutr",
		"/libp2p/autonat/2/dial-request", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0",
		"/ipfs/kad/1.0.0", "/ipfs/lan/kad/1.0.0", "/multistream/1.0.0", "/yamux/1.0.0", "/noise", "/tls/1.0.0",
	} {
		if got, err := ParseProtocol(name, true); err == nil || !strings.Contains(err.Error(), "reserved") {
			t.Errorf("ParseProtocol(%q, true) = %q, %v; want it reserved", name, got, err)
		}
	}
}

func TestCheckWireProtocolTakesAnyNamespaceButNoBareName(t *testing.T) {
	for name, ok := range map[string]bool{
		"/x/ssh": true, "/y/ssh": true, AskProtocol: true,
		"ssh": false, "": false, "/": false, "/x": false, "/x/": false, "/x/a b": false, "/x/\x1b": false, "/x/\xc3": false,
		"/" + strings.Repeat("a", MaxName-1): true,
		"/" + strings.Repeat("a", MaxName):   false,
	} {
		if err := CheckWireProtocol(name); (err == nil) != ok {
			t.Errorf("CheckWireProtocol(%q) = %v; want it taken: %v", name, err, ok)
		}
	}
}

func TestServiceNameIsTheLastWord(t *testing.T) {
	for protocol, want := range map[string]string{
		"/x/ssh": "ssh", "/x/db/main": "main", "/x/ssh/": "", "ssh": "ssh", "": "",
	} {
		if got := ServiceName(protocol); got != want {
			t.Errorf("ServiceName(%q) = %q, want %q", protocol, got, want)
		}
	}
}

func TestShellQuoteIsReadBackByAShell(t *testing.T) {
	for word, want := range map[string]string{
		"":             "''",
		"/x/ssh":       "/x/ssh",
		"a b":          "'a b'",
		"it's":         `'it'\''s'`,
		"$HOME":        "'$HOME'",
		"a;b":          "'a;b'",
		"~":            "'~'",
		"a@b.c:1,2%3":  "a@b.c:1,2%3",
		"naïve":        "'naïve'",
		"/tmp/x\ny":    "'/tmp/x\ny'",
		"unix:/a/b=c+": "unix:/a/b=c+",
	} {
		if got := ShellQuote(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}

func TestPrintableEscapesWhatATerminalObeysOrHides(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"", 0, ""},
		{"/x/ssh", 255, "/x/ssh"},
		{"größe 東京 👍", 255, "größe 東京 👍"},
		{"\x1b[31mred\x07\r\n\x7f\x00", 255, `\x1b[31mred\x07\x0d\x0a\x7f\x00`},
		{"\u0085\u009b", 255, `\u0085\u009b`},
		{"a\u202eb\u2066c\ufeff\u200b\u00ad", 255, `a\u202eb\u2066c\ufeff\u200b\u00ad`},
		{"a\u2028b\u2029", 255, `a\u2028b\u2029`},
		{"\u115f\u1160\u3164\uffa0\u034f\u2800", 255, `\u115f\u1160\u3164\uffa0\u034f\u2800`},
		{"\ufe0f\U000e0100", 255, `\ufe0f\U000e0100`},
		{"\ue000\U000e0041\U0010ffff", 255, `\ue000\U000e0041\U0010ffff`},
		{"\xff\xc3(\xed\xa0\x80", 255, `\xff\xc3(\xed\xa0\x80`},
		{"\ufffd", 255, "\ufffd"},

		{"abcdef", 6, "abcdef"},
		{"abcdef", 5, "abcde…"},
		{"abcdef", 0, "…"},
		{"abcdef", -1, "…"},
		{"", -1, ""},
		{"größe", 3, "gr…"}, // not half an ö
		{"größe", 4, "grö…"},
		{"👍👍", 7, "👍…"},
		{"\x80\x80\x80", 2, `\x80\x80…`},
	} {
		if got := Printable(c.in, c.limit); got != c.want {
			t.Errorf("Printable(%q, %d) = %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}

// checkShowable fails a text that could steer a terminal, break a log line or
// hide part of itself. It asks the Unicode tables, not Printable.
func checkShowable(t testing.TB, text string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Errorf("%q is not UTF-8", text)
	}
	for _, r := range text {
		if unicode.In(r, unicode.C, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			t.Errorf("%q holds %U", text, r)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("/x/ssh", 255)
	f.Add("\x1b[2J\u202e\xff", 4)
	f.Add("größe", 3)
	f.Add("👍", -1)
	f.Add("", -1)
	f.Add(strings.Repeat("\xff", 300), 255)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		got := Printable(s, limit)
		checkShowable(t, got)
		if s != "" && limit < len(s) {
			if len(got) > 4*max(limit, 0)+len("…") {
				t.Errorf("Printable(%q, %d) has %d bytes", s, limit, len(got))
			}
			shown, cut := strings.CutSuffix(got, "…")
			if !cut || !strings.HasPrefix(Printable(s, len(s)), shown) {
				t.Errorf("Printable(%q, %d) = %q is not a cut of the whole", s, limit, got)
			}
			return
		}
		if len(got) > 4*len(s) {
			t.Errorf("Printable(%q, %d) has %d bytes", s, limit, len(got))
		}
		if again := Printable(got, len(got)); again != got {
			t.Errorf("Printable(%q) = %q, and of that %q", s, got, again)
		}
	})
}

func FuzzParseProtocol(f *testing.F) {
	f.Add("ssh", false)
	f.Add("/x/ssh", false)
	f.Add("/y/ssh", true)
	f.Add(AskProtocol, true)
	f.Add("/x/\u202e\xff", false)
	f.Add("/x", true)
	f.Fuzz(func(t *testing.T, s string, custom bool) {
		if ServiceName(s) != ServiceName("/"+s) || strings.Contains(ServiceName(s), "/") {
			t.Errorf("ServiceName(%q) = %q", s, ServiceName(s))
		}
		wire := CheckWireProtocol(s)
		if wire != nil {
			checkShowable(t, wire.Error())
		}
		name, err := ParseProtocol(s, custom)
		if err != nil {
			checkShowable(t, err.Error())
			if len(err.Error()) > 8*MaxName {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			outside := strings.HasPrefix(s, "/") && !strings.HasPrefix(s, Namespace)
			if !custom && outside != errors.Is(err, ErrNamespace) {
				t.Errorf("ParseProtocol(%q) = %v", s, err)
			}
			return
		}
		checkShowable(t, name)
		if len(name) > MaxName || strings.ContainsFunc(name, unicode.IsSpace) {
			t.Errorf("ParseProtocol(%q) = %q", s, name)
		}
		if name != s && name != Namespace+s {
			t.Errorf("ParseProtocol(%q) = %q, another name", s, name)
		}
		if !custom && !strings.HasPrefix(name, Namespace) {
			t.Errorf("ParseProtocol(%q) = %q, outside /x/", s, name)
		}
		if name == s && wire != nil {
			t.Errorf("ParseProtocol takes %q, CheckWireProtocol says %v", s, wire)
		}
		if again, err := ParseProtocol(name, custom); err != nil || again != name {
			t.Errorf("ParseProtocol(%q) = %q, and of that %q, %v", s, name, again, err)
		}
		if err := CheckWireProtocol(name); err != nil {
			t.Errorf("ParseProtocol takes %q, CheckWireProtocol says %v", name, err)
		}
	})
}
