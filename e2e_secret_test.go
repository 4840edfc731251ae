//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"p2ptun/daemon"
	"p2ptun/proto"
)

// secret is an invite of which nothing but its beginning may be seen.
type secret struct {
	text   string
	pieces []string
}

// secretOf knows an invite's text in pieces of that many characters, and its
// secret in any form that a program might print.
func secretOf(t testing.TB, invite string) *secret {
	t.Helper()
	const shown, piece = len("p2ptun1") + 4, 12
	i, err := proto.ParseInvite(invite)
	if err != nil {
		t.Fatal(err)
	}
	s := &secret{text: invite, pieces: []string{
		string(i.Secret), hex.EncodeToString(i.Secret), strings.ToUpper(hex.EncodeToString(i.Secret)),
		base64.RawStdEncoding.EncodeToString(i.Secret), base64.RawURLEncoding.EncodeToString(i.Secret),
		base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(i.Secret),
	}}
	for at := shown; at+piece <= len(invite); at++ {
		s.pieces = append(s.pieces, invite[at:at+piece])
	}
	return s
}

// wantNot fails where a text holds any of it.
func (s *secret) wantNot(t testing.TB, where, text string) {
	t.Helper()
	for _, piece := range s.pieces {
		if strings.Contains(text, piece) {
			t.Errorf("%s holds the secret, in %q: %s", where, piece, text)
			return
		}
	}
}

// wantNotUnder fails where a file below dir holds any of it.
func (s *secret) wantNotUnder(t testing.TB, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		files++
		text, err := os.ReadFile(path)
		s.wantNot(t, path, string(text))
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("%d files under %s, %v", files, dir, err)
	}
}

// wantQuiet looks at all that a process has printed, but for the line that is to
// hold the invite.
func (s *secret) wantQuiet(t testing.TB, p *process) {
	t.Helper()
	name := strings.ReplaceAll(strings.Join(p.cmd.Args, " "), s.text, "INVITE")
	s.wantNot(t, "stderr of "+name, p.err.String())
	for line := range strings.Lines(p.out.String()) {
		if !strings.HasPrefix(line, "invite     p2ptun forward "+s.text) {
			s.wantNot(t, "stdout of "+name, line)
		}
	}
}

// wantQuietAPI looks at all that the control API tells.
func (s *secret) wantQuietAPI(t testing.TB, n *node) {
	t.Helper()
	for _, path := range []string{"/status", "/tunnels", "/streams", "/access", "/metrics"} {
		code, body := request(t, overSocket(n), "GET", path, "")
		if code != 200 {
			t.Errorf("%s: %d", path, code)
		}
		s.wantNot(t, path, body)
	}
}

// collectEvents keeps all that /events tells until the node ends.
func collectEvents(t testing.TB, n *node) *output {
	t.Helper()
	resp, err := overSocket(n).Get("http://p2ptun/events")
	if err != nil {
		t.Fatal(err)
	}
	events := new(output)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			_, _ = events.Write(append(bytes.Clone(lines.Bytes()), '\n'))
		}
	}()
	t.Cleanup(func() { resp.Body.Close(); <-read })
	return events
}

func TestSecretOfAnInviteIsSeenNowhereElse(t *testing.T) {
	service, client, late := newNode(t), newNode(t), newNode(t)
	l, invite := startInviting(service, overTCP, serve(t, echoBack).addr(), "--log-level", "debug")
	s := secretOf(t, invite)
	events := collectEvents(t, service)
	f := startForward(client, invite, "--log-level", "debug")
	wantOneEcho(t, f)
	refused := beginForward(late, invite, "--log-level", "debug")
	wantExit(t, refused, 3, "no uses left")
	l.saysOnStderr(t, late.id)
	await(t, "the events are told", func() bool {
		return strings.Contains(events.String(), `"redeemed"`) && strings.Contains(events.String(), late.id)
	})
	for _, args := range [][]string{{"ls", "--json"}, {"ls", "-v"}, {"stream", "ls", "--json"}, {"access", "ls", "--json"}, {"access", "ls", "-v"}} {
		for _, n := range []*node{service, client} {
			s.wantNot(t, strings.Join(args, " "), n.run(args...))
		}
	}
	s.wantNot(t, "/events", events.String())
	for _, n := range []*node{service, client} {
		s.wantQuietAPI(t, n)
	}
	for _, p := range []*process{l.process, f.process, refused} {
		s.wantQuiet(t, p)
	}
	for _, n := range []*node{service, client, late} {
		s.wantNotUnder(t, n.home)
	}
}

func TestWrongUseShowsNoSecret(t *testing.T) {
	service, client := newNode(t), newNode(t)
	invite := service.invite(testProtocol).Text
	s := secretOf(t, invite)
	last := invite[len(invite)-1:]
	typo := invite[:len(invite)-1] + map[bool]string{true: "2", false: "1"}[last == "1"]
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"words behind":        {[]string{"forward", "ssh", invite, "extra", "words"}, 2, "extra"},
		"two BINDs":           {[]string{"forward", invite, "22", "33"}, 2, "at most an address to bind"},
		"a word for BIND":     {[]string{"forward", invite, "ssh"}, 2, "at most an address to bind"},
		"other protocol":      {[]string{"forward", "web", invite}, 2, "the invite is to /x/test, not to /x/web"},
		"two of them":         {[]string{"forward", "test", invite, invite}, 2, "one invite"},
		"other peer":          {[]string{"forward", "test", invite, "--dial-timeout", "0s"}, 2, "dial-timeout"},
		"unknown flag before": {[]string{"forward", "--invte", invite}, 2, "unknown flag --invte"},
		"unknown flag behind": {[]string{"forward", invite, "--wiat"}, 2, "unknown flag --wiat"},
		"flag that takes it":  {[]string{"forward", "test", "--dial-timeout", invite}, 2, "dial-timeout"},
		"typo":                {[]string{"forward", typo}, 2, "mistyped or not whole: its checksum is wrong"},
		"typo in ping":        {[]string{"ping", typo}, 2, "mistyped or not whole"},
		"cut off":             {[]string{"forward", invite[:90]}, 2, "mistyped or not whole"},
		"without its head":    {[]string{"forward", invite[1:], "2222"}, 2, "mistyped or not whole"},
		"headless PEER":       {[]string{"forward", "ssh", invite[3:]}, 2, "mistyped or not whole"},
		"an O for a 0":        {[]string{"forward", invite[:30] + "O" + invite[31:]}, 2, "a character that no invite has"},
		"with a port":         {[]string{"forward", "ssh", invite + ":22"}, 2, "neither an IP address"},
		"listen":              {[]string{"listen", invite}, 2, "no protocol name"},
		"listen with TARGET":  {[]string{"listen", "ssh", invite}, 2, ""},
		"listen --allow":      {[]string{"listen", "ssh", "22", "--allow", invite}, 2, "an invite is no peer to let in"},
		"allow":               {[]string{"allow", "ssh", invite}, 2, "an invite is no peer to let in"},
		"deny":                {[]string{"deny", "ssh", invite}, 2, "an invite is no peer to let in"},
		"group":               {[]string{"access", "group", "add", "family", invite}, 2, "an invite is no peer to let in"},
		"peer add":            {[]string{"peer", "add", "x", invite}, 2, "an invite stands for a peer"},
		"peer name":           {[]string{"peer", "add", invite, client.id}, 2, ""},
		"peer rm":             {[]string{"peer", "rm", invite}, 2, ""},
		"command":             {[]string{invite}, 2, "unknown command"},
		"invite of it":        {[]string{"invite", invite}, 2, "no protocol name"},
		"revoke elsewhere":    {[]string{"invite", "revoke", invite}, 1, "no such invite"},
		"close":               {[]string{"close", invite}, 7, ""},
		"log level":           {[]string{"--log-level", invite, "id"}, 2, "log level"},
		"network":             {[]string{"forward", invite, "--network", invite}, 2, "network"},
	} {
		for _, flags := range [][]string{{"--log-level", "debug"}, {"--json"}} {
			if name == "log level" {
				flags = nil
			}
			p := client.start(append(flags, c.args...)...)
			if code := p.exit(t); code != c.code {
				t.Errorf("%s: exit code %d, want %d", name, code, c.code)
			}
			s.wantQuiet(t, p)
			if said := p.err.String(); !strings.Contains(said, c.says) {
				t.Errorf("%s: stderr lacks %q: %s", name, c.says, said)
			}
		}
	}
	s.wantNotUnder(t, client.home)
	s.wantNotUnder(t, service.home)
}

func TestKeptForwardShowsNoSecret(t *testing.T) {
	service, client := newNode(t), newNode(t)
	d := startDaemon(client, "--log-level", "debug")
	at := multiaddr(closedAddr(t))
	made := service.invite(testProtocol)
	s := secretOf(t, made.Text)
	client.run("forward", "--bg", "--wait", testProtocol, at+"/p2p/"+service.id, made.Text) // kept with it
	s.wantQuietAPI(t, client)
	s.wantNot(t, "ls", client.run("ls", "--json"))
	d.kill()
	d = startDaemon(client, "--log-level", "debug")
	events := collectEvents(t, client)
	startListen(service, at, testProtocol, serve(t, echoBack).addr())
	await(t, "it is redeemed after the restart", func() bool { return client.isReady() })
	await(t, "it is forgotten", func() bool { return !strings.Contains(client.kept(), "invite") })
	s.wantNot(t, "/events", events.String())
	s.wantQuietAPI(t, client)
	s.wantQuiet(t, d)
	s.wantNotUnder(t, client.home)
	s.wantNotUnder(t, service.home)
}

func TestEventsTellWhoHasRedeemedAnInvite(t *testing.T) {
	service, client := newNode(t), newNode(t)
	startListen(service, overTCP, testProtocol, serve(t, echoBack).addr())
	made := service.invite(testProtocol, "--uses", "2")
	resp, err := overSocket(service).Get("http://p2ptun/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	startForward(client, made.Text)
	e := line(t, bufio.NewScanner(resp.Body), func(e daemon.Event) bool { return e.Event == "redeemed" })
	if e.Peer != client.id || e.Protocol != testProtocol || e.Invite != made.ID || e.Left != 1 || !e.Until.Equal(made.Until) {
		t.Errorf("%+v, want peer %s and invite %+v", e, client.id, made)
	}
}

func TestForwardThatWaitsComesInSoonAfterItIsAllowed(t *testing.T) {
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, serve(t, echoBack).addr())
	f := startForward(client, testProtocol, l.addr, "--wait")
	l.saysOnStderr(t, "refused "+client.id)
	service.run("allow", testProtocol, client.id)
	if !within(soonAsked, func() bool { return client.isReady() }) {
		t.Fatalf("not ready %s after the allow: %s", soonAsked, client.run("ls"))
	}
	wantOneEcho(t, f)
}

// soonAsked is how long a forward that was refused may take to find that it is
// let in: it asks every 5 s.
const soonAsked = 15 * time.Second
