package proto

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/mr-tron/base58"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"
)

var (
	goldenID     = []byte{1, 2, 3, 4, 5}
	goldenSecret = []byte("\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab\xac\xad\xae\xaf")
)

func addrsOf(t testing.TB, texts ...string) (addrs []ma.Multiaddr) {
	t.Helper()
	for _, text := range texts {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, a)
	}
	return addrs
}

// inviteOf is an invite with fixed keys.
func inviteOf(t testing.TB, id, protocol string, addrs ...string) Invite {
	t.Helper()
	return Invite{Peer: decodeID(t, id), Addrs: addrsOf(t, addrs...), Protocol: protocol, ID: InviteID(goldenID), Secret: goldenSecret}
}

const (
	lanAddr   = "/ip4/192.168.1.7/tcp/4001"
	quicAddr  = "/ip6/2001:db8::1/udp/4001/quic-v1"
	relayAddr = "/dns4/relay.example.org/tcp/443/tls/ws/p2p/" + rsaID + "/p2p-circuit"
)

// goldenInvites are texts that people have: none may ever change.
func goldenInvites(t testing.TB) map[string]Invite {
	return map[string]Invite{
		"p2ptun15KvxubA5ScsG3wdCXPYmAPuJD5Xfec3zJbKRNVswEVv6Zsr6XGDBg35qF3g276YBn9VnUHjNxv7ZZM96AoCPkHd7mNfkE88qaX18we9vA":                                                                                                                                            inviteOf(t, ed25519ID, "/x/ssh"),
		"p2ptun1FTZzAQ1uqgpJ3AtCsfj6JAU54qqdAyXFA8hYa8GP23VmZ1hkknpPewcP6qvc12CkGz1qZivDy1v69HKW2afrVoq2dvSTAgAp4g677H4ofhpF5a7qWhTJywU6NWu9FFxzn12QboRTSCRtSF9t9bWe9ZvroX4KW6jUnQyX6ZYTEnU8ejbTCTy9eZicnaWUuDeVsr6GzdquQxMR7du22Sj5oVHmKFStibHBqB9JAbokRosUDeayHce4": inviteOf(t, ed25519ID, "/x/ssh", lanAddr, quicAddr, relayAddr),
		"p2ptun15aTEdodQEepqyMku3GmwMQ77YTkuz2dgraGFiXtRfyVTqSBaLCWNFb7T9d2vQ9Tdaug1C1PiRUodEiioVcct15DJQQJ4mQyYu8BxFX14gB3CPdTLERdpzyXfR95N77zqNyBoomtY2wJ8aDmgKpnSa6cDvHF9Zzi1JYvDdFPb14WvhT5d":                                                                     inviteOf(t, rsaID, "/my/größe/1.0.0", "/p2p/"+ed25519ID+"/p2p-circuit"),
	}
}

func sameInvite(a, b Invite) bool {
	same := slices.EqualFunc(a.Addrs, b.Addrs, func(x, y ma.Multiaddr) bool { return x.Equal(y) })
	return same && a.Peer == b.Peer && a.Protocol == b.Protocol && a.ID == b.ID && bytes.Equal(a.Secret, b.Secret)
}

func TestTextsOfInvitesNeverChange(t *testing.T) {
	for text, want := range goldenInvites(t) {
		if got := want.Text(); got != text {
			t.Errorf("%s is\n%s, want\n%s", want, got, text)
		}
		got, err := ParseInvite(text)
		if err != nil || !sameInvite(got, want) {
			t.Errorf("ParseInvite(%s) = %s, %v", text, wordsOfInvite(got), err)
		}
	}
}

// wordsOfInvite shows all of an invite, for a test that fails.
func wordsOfInvite(i Invite) string {
	return fmt.Sprint(i.Peers(), " ", i.Protocol, " ", i.ID, " ", i.Secret)
}

// The text is what invite.proto says, made here by hand.
func TestTextOfAnInviteIsWhatItsSpecificationSays(t *testing.T) {
	i := inviteOf(t, ed25519ID, "/x/ssh", lanAddr)
	var body []byte
	for n, field := range [][]byte{[]byte(i.Peer), i.Addrs[0].Bytes(), []byte("/x/ssh"), goldenID, goldenSecret} {
		body = protowire.AppendTag(body, protowire.Number(n+1), protowire.BytesType)
		body = protowire.AppendBytes(body, field)
	}
	if got, want := i.Text(), textOf("p2ptun1", body); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// textOf frames the body of an invite of any version.
func textOf(prefix string, body []byte) string {
	sum := sha256.Sum256(append([]byte(prefix), body...))
	return prefix + base58.Encode(append(slices.Clone(body), sum[:4]...))
}

func TestANewInviteIsReadAgainAndHasKeysOfItsOwn(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		made, err := NewInvite(decodeID(t, ed25519ID), addrsOf(t, lanAddr, relayAddr), "/x/ssh")
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseInvite(made.Text())
		if err != nil || !sameInvite(got, made) {
			t.Fatalf("%s reads as %s, %v", wordsOfInvite(made), wordsOfInvite(got), err)
		}
		if len(made.Secret)*8 < 128 || seen[made.ID] || seen[string(made.Secret)] {
			t.Fatalf("keys of %s", wordsOfInvite(made))
		}
		seen[made.ID], seen[string(made.Secret)] = true, true
	}
}

// wantTypo is for an invite of which a person has changed something.
func wantTypo(t testing.TB, what, text string) {
	t.Helper()
	i, err := ParseInvite(text)
	if !errors.Is(err, ErrInviteTypo) || errors.Is(err, ErrInviteNewer) || i.Secret != nil {
		t.Errorf("%s: %q: %s, %v; want ErrInviteTypo", what, text, i, err)
	}
}

func TestEverySlipOfAPenInAnInviteIsATypo(t *testing.T) {
	const alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz" + "0OIl" + "-_=+/…\x00\x1b\xff"
	for text := range goldenInvites(t) {
		for at := range len(text) {
			for _, c := range []byte(alphabet) {
				if c != text[at] {
					wantTypo(t, "substitution", text[:at]+string(c)+text[at+1:])
				}
				wantTypo(t, "insertion", text[:at]+string(c)+text[at:])
			}
			wantTypo(t, "truncation", text[:at])
			wantTypo(t, "lost head", text[at+1:])
			wantTypo(t, "deletion", text[:at]+text[at+1:])
			if at > 0 && text[at] != text[at-1] {
				wantTypo(t, "transposition", text[:at-1]+text[at:at+1]+text[at-1:at]+text[at+1:])
			}
			wantTypo(t, "doubled", text[:at]+text[at:at+1]+text[at:])
		}
		wantTypo(t, "twice", text+text)
		wantTypo(t, "capitals", strings.ToUpper(text))
	}
}

func TestALaterInviteSaysToUpdate(t *testing.T) {
	for digit := '0'; digit <= '9'; digit++ {
		text := textOf("p2ptun"+string(digit), []byte("what a later version says"))
		_, err := ParseInvite(text)
		if newer := errors.Is(err, ErrInviteNewer) && !errors.Is(err, ErrInviteTypo); newer != (digit != '1') {
			t.Errorf("version %c: %v", digit, err)
		}
		if err != nil && strings.Contains(err.Error(), text[8:]) {
			t.Errorf("the error holds the text: %v", err)
		}
	}
	wantTypo(t, "one in a later invite", textOf("p2ptun2", []byte("what a later version says"))+"x")
}

// A later version may have a checksum, or an alphabet, that this one does not know.
func TestAHigherDigitOverWhatCannotBeReadMayBeALaterInvite(t *testing.T) {
	later := textOf("p2ptun2", []byte("what a later version says"))
	for _, text := range []string{later + "x", later[:20] + "0" + later[20:], later[:20] + "-_" + later[20:], "p2ptun2"} {
		wantTypo(t, "a later one", text) // and so it may go on in the next line
		if _, err := ParseInvite(text); !errors.Is(err, ErrInviteUnsure) || strings.Contains(err.Error(), later[8:20]) {
			t.Errorf("%q: %v, want ErrInviteUnsure", text, err)
		}
	}
	for text := range goldenInvites(t) {
		for _, typo := range []string{text + "x", "p2ptun0" + text[7:], text[:20] + "0" + text[20:]} {
			if _, err := ParseInvite(typo); errors.Is(err, ErrInviteUnsure) {
				t.Errorf("%q: %v, which this version would have made", typo, err)
			}
		}
	}
}

func TestBlanksAndLineBreaksInAnInviteAreIgnored(t *testing.T) {
	for text, want := range goldenInvites(t) {
		for what, typed := range map[string]string{
			"around":     " \t" + text + "\r\n",
			"wrapped":    strings.Join(chunks(text, 40), "\n"),
			"quoted":     strings.Join(chunks(text, 60), "\r\n \u00a0\u3000"),
			"everywhere": strings.Join(strings.Split(text, ""), " "),
		} {
			got, err := ParseInvite(typed)
			if err != nil || !sameInvite(got, want) {
				t.Errorf("%s: %s, %v", what, got, err)
			}
		}
	}
}

func chunks(text string, n int) (parts []string) {
	for part := range slices.Chunk([]byte(text), n) {
		parts = append(parts, string(part))
	}
	return parts
}

// bodyOf is an invite as somebody with other manners would encode it.
func bodyOf(fields ...func([]byte) []byte) []byte {
	var body []byte
	for _, field := range fields {
		body = field(body)
	}
	return body
}

func field(number int, content string) func([]byte) []byte {
	return func(b []byte) []byte {
		b = protowire.AppendTag(b, protowire.Number(number), protowire.BytesType)
		return protowire.AppendString(b, content)
	}
}

func times(n int, f func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		for range n {
			b = f(b)
		}
		return b
	}
}

func rawAddr(t testing.TB, text string) string { return string(addrsOf(t, text)[0].Bytes()) }

// dnsOf is the bytes of a name of that many bytes.
func dnsOf(n int) string { return string(append([]byte{54, byte(n)}, strings.Repeat("a", n)...)) }

func TestAnInviteIsBoundedAndWhole(t *testing.T) {
	who, what := field(1, string(decodeID(t, ed25519ID))), field(3, "/x/ssh")
	id, secret := field(4, "12345"), field(5, "0123456789abcdef")
	addr := field(2, rawAddr(t, "/ip4/1.2.3.4/tcp/1"))
	whole := bodyOf(who, what, id, secret)
	for name, c := range map[string]struct {
		body []byte
		bad  string // empty: it is read
	}{
		"the least":                {whole, ""},
		"fields of later versions": {append(slices.Clone(whole), bodyOf(field(9, "later"))...), ""},
		"16 addresses":             {append(slices.Clone(whole), bodyOf(times(16, addr))...), ""},
		"17 addresses":             {append(slices.Clone(whole), bodyOf(times(17, addr))...), "more than 16"},
		"an address of 128 bytes":  {append(slices.Clone(whole), bodyOf(field(2, dnsOf(120)+"\x06\x00\x01"))...), ""},
		"an address of 257 bytes":  {append(slices.Clone(whole), bodyOf(field(2, strings.Repeat(dnsOf(100), 2)+dnsOf(51)))...), "more than 256"},
		"a name of 255 bytes":      {bodyOf(who, field(3, longName(MaxName)), id, secret), ""},
		"a name of 256 bytes":      {bodyOf(who, field(3, longName(MaxName+1)), id, secret), "longer than"},
		"a name that is none":      {bodyOf(who, field(3, "ssh"), id, secret), "must start with /"},
		"a name with an escape":    {bodyOf(who, field(3, "/x/\x1b[2J"), id, secret), "control"},
		"a name that is no UTF-8":  {bodyOf(who, field(3, "/x/\xff"), id, secret), "decoded"},
		"no name":                  {bodyOf(who, id, secret), "empty"},
		"no peer":                  {bodyOf(what, id, secret), "no peer ID"},
		"a peer that is none":      {bodyOf(field(1, "\x00\x01\x02"), what, id, secret), "no peer ID"},
		"an id of 4 bytes":         {bodyOf(who, what, field(4, "1234"), secret), "id of an invite"},
		"an id of 16 bytes":        {bodyOf(who, what, field(4, "0123456789abcdef"), secret), ""},
		"an id of 17 bytes":        {bodyOf(who, what, field(4, "0123456789abcdefg"), secret), "id of an invite"},
		"no id":                    {bodyOf(who, what, secret), "id of an invite"},
		"a secret of 15 bytes":     {bodyOf(who, what, id, field(5, "0123456789abcde")), "16 to 64"},
		"a secret of 64 bytes":     {bodyOf(who, what, id, field(5, strings.Repeat("s", 64))), ""},
		"a secret of 65 bytes":     {bodyOf(who, what, id, field(5, strings.Repeat("s", 65))), "16 to 64"},
		"no secret":                {bodyOf(who, what, id), "16 to 64"},
		"an empty address":         {bodyOf(who, field(2, ""), what, id, secret), "address"},
		"half an address":          {bodyOf(who, field(2, "\x04\x01"), what, id, secret), "address"},
		"an unknown address":       {bodyOf(who, field(2, "\xff\x7f\x00"), what, id, secret), "address"},
		"an address with an ID":    {bodyOf(who, field(2, rawAddr(t, "/ip4/1.2.3.4/tcp/1/p2p/"+rsaID)), what, id, secret), "peer ID behind"},
		"a path":                   {bodyOf(who, field(2, rawAddr(t, "/unix/run/x")), what, id, secret), "peer ID behind"},
		"an escape in an address":  {bodyOf(who, field(2, "\x36\x05a\x1b[2J\x06\x00\x01"), what, id, secret), "peer ID behind"},
		"a slash in an address":    {bodyOf(who, field(2, "\x36\x05a/tcp\x06\x00\x01"), what, id, secret), "address"},
		"no message":               {[]byte("\xff\xff\xff"), "decoded"},
		"nothing":                  {nil, ""},
	} {
		t.Run(name, func(t *testing.T) { checkBody(t, c.body, c.bad) })
	}
}

func checkBody(t *testing.T, body []byte, bad string) {
	i, err := ParseInvite(textOf("p2ptun1", body))
	if body == nil {
		bad = "checksum" // four bytes alone are not whole
	}
	switch {
	case bad == "" && err != nil:
		t.Fatal(err)
	case bad == "":
		if again, err := ParseInvite(i.Text()); err != nil || !sameInvite(again, i) {
			t.Errorf("%s became %s, %v", wordsOfInvite(i), wordsOfInvite(again), err)
		}
	case err == nil || !strings.Contains(err.Error(), bad) || i.Secret != nil:
		t.Errorf("%s, %v; want an error with %q", i, err, bad)
	default:
		checkShowable(t, err.Error())
	}
}

func TestNewInviteRefusesWhatCouldNotBeReadAgain(t *testing.T) {
	id := decodeID(t, ed25519ID)
	wide := make([]ma.Multiaddr, MaxInviteAddrs)
	for n := range wide {
		wide[n] = addrsOf(t, "/dns4/"+strings.Repeat("a", 120)+"/tcp/1")[0]
	}
	for name, c := range map[string]struct {
		id       peer.ID
		addrs    []ma.Multiaddr
		protocol string
	}{
		"no peer":                 {"", nil, "/x/ssh"},
		"a bare name":             {id, nil, "ssh"},
		"17 addresses":            {id, addrsOf(t, slices.Repeat([]string{lanAddr}, 17)...), "/x/ssh"},
		"a long address":          {id, addrsOf(t, "/dns4/"+strings.Repeat("a", 253)+"/tcp/1"), "/x/ssh"},
		"a text that is too long": {id, wide, "/x/ssh"},
		"an ID at the end":        {id, addrsOf(t, lanAddr+"/p2p/"+rsaID), "/x/ssh"},
		"a path":                  {id, addrsOf(t, "/unix/a"), "/x/ssh"},
		"no address":              {id, []ma.Multiaddr{nil}, "/x/ssh"},
	} {
		if i, err := NewInvite(c.id, c.addrs, c.protocol); err == nil || i.Secret != nil {
			t.Errorf("%s: %s, %v", name, i, err)
		}
	}
	if i, err := NewInvite(id, addrsOf(t, slices.Repeat([]string{lanAddr}, 16)...), "/x/ssh"); err != nil || len(i.Text()) > MaxInvite {
		t.Errorf("16 addresses: %d characters, %v", len(i.Text()), err)
	}
}

func TestTheTextOfAnInviteIsBoundedBeforeItIsDecoded(t *testing.T) {
	longest := longestInvite(t)
	if len(longest) < MaxInvite-2 {
		t.Fatalf("%d characters", len(longest))
	}
	if _, err := ParseInvite(strings.Join(chunks(longest, 70), "\n")); err != nil {
		t.Errorf("%d characters and line breaks: %v", len(longest), err)
	}
	for _, n := range []int{MaxInvite + 1, maxPasted, maxPasted + 1, 1 << 24} {
		text := invitePrefix + strings.Repeat("z", n-len(invitePrefix))
		if _, err := ParseInvite(text); !errors.Is(err, errInviteLong) {
			t.Errorf("%d characters: %v", n, err)
		}
	}
	if _, err := ParseInvite(longest + strings.Repeat(" ", 1<<20)); !errors.Is(err, ErrInviteTypo) {
		t.Errorf("a mebibyte of blanks: %v", err)
	}
}

// longestInvite has a field of a later version, which fills it to MaxInvite.
func longestInvite(t testing.TB) string {
	t.Helper()
	whole := bodyOf(field(1, string(decodeID(t, ed25519ID))), field(3, "/x/ssh"), field(4, "12345"), field(5, "0123456789abcdef"))
	var longest string
	for n := 1300; ; n++ {
		text := textOf(invitePrefix, append(slices.Clone(whole), bodyOf(field(9, strings.Repeat("l", n)))...))
		if len(text) > MaxInvite {
			return longest
		}
		longest = text
	}
}

func TestPeersOfAnInviteAreReadByParsePeer(t *testing.T) {
	for _, i := range goldenInvites(t) {
		peers := i.Peers()
		if len(peers) != max(1, len(i.Addrs)) {
			t.Errorf("%d addresses, %d peers", len(i.Addrs), len(peers))
		}
		for n, text := range peers {
			p, err := ParsePeer(text)
			if err != nil || p.ID != i.Peer {
				t.Errorf("ParsePeer(%s) = %v, %v", text, p, err)
			}
			if len(i.Addrs) > 0 && (len(p.Addrs) != 1 || !p.Addrs[0].Equal(i.Addrs[n])) {
				t.Errorf("%s has the addresses %v, want %s", text, p.Addrs, i.Addrs[n])
			}
		}
	}
}

// holder has an invite where fmt and json look by reflection.
type holder struct {
	Name   string
	Invite Invite
	Many   []Invite
	ByID   map[string]*Invite
}

func TestNothingThatIsPrintedHoldsASecret(t *testing.T) {
	i := inviteOf(t, ed25519ID, "/x/ssh", lanAddr)
	for _, v := range []any{i, &i, []Invite{i}, holder{"x", i, []Invite{i}, map[string]*Invite{"a": &i}}, fmt.Errorf("redeem %v", i)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%80v", "%-3.2s", "%z"} {
			checkNoSecret(t, verb, fmt.Sprintf(verb, v), i)
		}
		checkNoSecret(t, "Sprint", fmt.Sprint(v), i)
		if b, err := json.Marshal(v); err != nil {
			t.Error(err)
		} else {
			checkNoSecret(t, "json", string(b), i)
		}
		for name, logged := range logs(v) {
			checkNoSecret(t, name, logged, i)
		}
	}
	if got := fmt.Sprintf("%v", i); !strings.Contains(got, i.ID) {
		t.Errorf("%q does not say which invite", got)
	}
}

// logs is what the handlers of slog make of it.
func logs(v any) map[string]string {
	var text, asJSON strings.Builder
	for out, make := range map[io.Writer]func(io.Writer) slog.Handler{
		&text:   func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
		&asJSON: func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
	} {
		log := slog.New(make(out))
		log.Info("made", "invite", v, slog.Group("g", "invite", v))
		log.With("invite", v).Info("again")
	}
	return map[string]string{"slog text": text.String(), "slog JSON": asJSON.String()}
}

func checkNoSecret(t testing.TB, how, printed string, i Invite) {
	t.Helper()
	secrets := []string{i.Text(), i.Text()[20:40], string(i.Secret), fmt.Sprintf("%x", i.Secret), fmt.Sprintf("%X", i.Secret)}
	for _, format := range []string{"%v", "%#v", "%+q", "%q", "%d", "%s"} {
		secrets = append(secrets, strings.Trim(fmt.Sprintf(format, i.Secret), `[]"`))
	}
	b, err := json.Marshal(i.Secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range append(secrets, strings.Trim(string(b), `"=`)) {
		if strings.Contains(printed, secret) {
			t.Errorf("%s holds the secret: %s", how, printed)
		}
	}
}

func TestErrorsOfAnInviteNeverHoldItsText(t *testing.T) {
	for text := range goldenInvites(t) {
		for _, broken := range []string{text[:len(text)-1], text + "0", text + strings.Repeat("z", MaxInvite), "\x1b" + text, text + "\n\u200b"} {
			_, parse := ParseInvite(broken)
			_, asPeer := ParsePeer(broken)
			_, asName := ParseProtocol(broken, true)
			for what, err := range map[string]error{"ParseInvite": parse, "ParsePeer": asPeer, "ParseProtocol": asName} {
				if err == nil || strings.HasPrefix(broken, inviteWord) && strings.Contains(err.Error(), text[len(invitePrefix)+4:len(invitePrefix)+24]) {
					t.Errorf("%s(%q): %v", what, broken, err)
				}
			}
		}
	}
}

func TestRedactTakesInvitesOutOfATextAndNothingElse(t *testing.T) {
	text := inviteOf(t, ed25519ID, "/x/ssh", lanAddr).Text()
	short := text[:len(invitePrefix)+4] + "…"
	later := textOf("p2ptun2", []byte("what a later version says"))
	wrap := strings.Join(chunks(text, 60), "\n")
	for in, want := range map[string]string{
		"":                                      "",
		"p2ptun":                                "p2ptun",
		"p2ptun: error: p2ptun1 is no command":  "p2ptun: error: p2ptun1 is no command",
		"p2ptun 1.0.0, p2ptun2026":              "p2ptun 1.0.0, p2ptun2026",
		"/x/ssh on " + ed25519ID:                "/x/ssh on " + ed25519ID,
		text:                                    short,
		"run p2ptun forward " + text + " 2222":  "run p2ptun forward " + short + " 2222",
		"invite=" + text + "," + text + ";":     "invite=" + short + "," + short + ";",
		text + " " + ed25519ID + " " + text:     short + " " + ed25519ID + " " + short,
		`{"invite":"` + text + `","id":"x"}`:    `{"invite":"` + short + `","id":"x"}`,
		text[:40] + " is broken, that is clear": short + " is broken, that is clear",
		text[:len(text)-1]:                      short,
		text + "0l":                             short,
		"x" + text:                              "x" + short,
		later:                                   later[:len(invitePrefix)+4] + "…",
		wrap:                                    short,
		wrap + " 2222 and on":                   short + " 2222 and on",
		strings.Join(chunks(text[:len(text)-1], 20), " ") + " is broken": short + " " + text[len(text)-1-(len(text)-1)%20:len(text)-1] + " is broken",
		fmt.Sprintf("%q", wrap):    `"` + short + `"`,
		Printable(wrap, MaxInvite): short,
		"a\n" + text + "\nb":       "a\n" + short + "\nb",
	} {
		if got := Redact(in); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
	long := strings.Repeat(text+" and ", 10_000)
	if got, want := Redact(long), strings.Repeat(short+" and ", 10_000); got != want {
		t.Errorf("a text of %d bytes became one of %d, want %d", len(long), len(got), len(want))
	}
	if got := Redact(invitePrefix + strings.Repeat("z", 1<<20)); got != "p2ptun1zzzz…" {
		t.Errorf("a long one became %d bytes", len(got))
	}
}

func TestWhatLooksLikeAnInviteIsNoPeerNoNameAndNoBind(t *testing.T) {
	for _, s := range []string{"p2ptun1", "p2ptun1abc", "p2ptun2", "p2ptun0x", "p2ptun9-_", "p2ptun12", inviteOf(t, ed25519ID, "/x/ssh").Text()} {
		if !LooksLikeInvite(s) || !LooksLikeInvite(" \n"+s+"\t") {
			t.Errorf("LooksLikeInvite(%q) is false", s)
		}
		if CheckPeerName(s) == nil {
			t.Errorf("CheckPeerName takes %q", s)
		}
		if p, err := ParsePeer(s); err == nil {
			t.Errorf("ParsePeer(%q) = %v", s, p)
		}
		if name, err := ParseProtocol(s, true); err == nil {
			t.Errorf("ParseProtocol(%q) = %s", s, name)
		}
		if LooksLikeEndpoint(s) {
			t.Errorf("LooksLikeEndpoint(%q)", s)
		}
	}
	for _, s := range []string{"", "p2ptun", "p2ptunx", "p2ptun-1", "p2ptu1", "P2PTUN1abc", "ap2ptun1abc", "/x/p2ptun1abc", ed25519ID} {
		if LooksLikeInvite(s) {
			t.Errorf("LooksLikeInvite(%q)", s)
		}
	}
}

func TestInviteIDsAreReadAsTheyAreWritten(t *testing.T) {
	for n := range 20 {
		raw := bytes.Repeat([]byte{0xa7}, n)
		back, err := InviteIDBytes(InviteID(raw))
		if ok := n >= 5 && n <= 16; (err == nil) != ok || ok && !bytes.Equal(back, raw) {
			t.Errorf("%d bytes: %x, %v", n, back, err)
		}
	}
	good := InviteID(goldenID)
	for _, text := range []string{"", strings.ToUpper(good), good + "=", good + "\n", " " + good, good[:7] + "ı", good[:7] + "1", "aaaaaaab" + "c", "\x1b[2J"} {
		_, err := InviteIDBytes(text)
		if err == nil {
			t.Errorf("InviteIDBytes takes %q", text)
			continue
		}
		checkShowable(t, err.Error())
	}
}

func FuzzParseInvite(f *testing.F) {
	for text := range goldenInvites(f) {
		f.Add(text, false)
		f.Add(text[:len(text)-1], false)
		f.Add(text[:20]+" \n"+text[20:], false)
	}
	f.Add("p2ptun2abc", false)
	f.Add("p2ptun1", false)
	f.Add("\x0a\x02\x00\x00", true)
	f.Add(string(bodyOf(field(1, string(decodeID(f, ed25519ID))), field(2, rawAddr(f, lanAddr)), field(3, "/x/ssh"), field(4, "12345"), field(5, "0123456789abcdef"))), true)
	f.Fuzz(func(t *testing.T, text string, body bool) {
		if body { // else the checksum would keep the fuzzer out
			text = textOf(invitePrefix, []byte(text))
		}
		checkParsed(t, text)
	})
}

func checkParsed(t *testing.T, text string) {
	i, err := ParseInvite(text)
	if err != nil {
		checkShowable(t, err.Error())
		if i.Secret != nil || i.ID != "" {
			t.Errorf("%s beside %v", wordsOfInvite(i), err)
		}
		return
	}
	if len(i.Addrs) > MaxInviteAddrs || len(i.Protocol) > MaxName || len(i.Secret) > 64 || len(i.Secret) < 16 || !LooksLikeInvite(text) {
		t.Errorf("out of bounds: %s", wordsOfInvite(i))
	}
	if again, err := ParseInvite(i.Text()); err != nil || !sameInvite(again, i) {
		t.Errorf("%s became %s, %v", wordsOfInvite(i), wordsOfInvite(again), err)
	}
	for _, text := range i.Peers() {
		checkShowable(t, text)
		if p, err := ParsePeer(text); err != nil || p.ID != i.Peer {
			t.Errorf("ParsePeer(%q) = %v, %v", text, p, err)
		}
	}
	checkShowable(t, i.Protocol)
}

// FuzzRedact: no invite is left, and a second time changes nothing.
func FuzzRedact(f *testing.F) {
	text := inviteOf(f, ed25519ID, "/x/ssh").Text()
	f.Add("run p2ptun forward ", " 2222")
	f.Add("p2ptun1", "p2ptun1")
	f.Add("", "\n"+text)
	f.Add("p2ptun1aaaaa \\n", "z")
	f.Fuzz(func(t *testing.T, before, after string) {
		got := Redact(before + text + after)
		if strings.Contains(got, text) || len(got) > len(before)+len(text)+len(after) {
			t.Errorf("Redact(%q) = %q", before+text+after, got)
		}
		if again := Redact(got); again != got {
			t.Errorf("%q, and of that %q", got, again)
		}
	})
}
