package command

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"p2ptun/access"
	"p2ptun/daemon"
	"p2ptun/home"
)

func TestAllowLastsAsLongAsItSays(t *testing.T) {
	for range 3 { // the file has whole seconds
		before := time.Now()
		var rule access.Rule
		code, out, stderr := run(t, "--json", "allow", "ssh", somePeer, "--for", "1s")
		if err := json.Unmarshal([]byte(out), &rule); code != exitOK || err != nil {
			t.Fatalf("exit code %d, %v: %s%s", code, err, out, stderr)
		}
		if lasts := rule.Until.Sub(before); lasts < time.Second || time.Until(rule.Until) > 2*time.Second {
			t.Errorf("asked for 1s, it lasts %s", lasts)
		}
	}
}

// Time does not go back for the listener, so neither does it for who asks.
func TestWhatIsOverIsMarkedByTheListenersTime(t *testing.T) {
	dir := t.TempDir()
	list := func() string {
		var out strings.Builder
		env := Env{In: strings.NewReader(""), Out: &out, Err: io.Discard, Soft: t.Context(), Hard: t.Context()}
		if code := Run(env, []string{"p2ptun", "--home", dir, "access", "ls"}); code != exitOK {
			t.Fatalf("exit code %d", code)
		}
		return out.String()
	}
	path := filepath.Join(dir, "access")
	in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	must(t, os.WriteFile(path, []byte("allow ssh "+somePeer+" until="+in(time.Hour)+"\n"), 0o600))
	if got := list(); strings.Contains(got, "(over)") {
		t.Errorf("not over yet: %s", got)
	}
	must(t, os.WriteFile(path+".seen", []byte(in(2*time.Hour)+"\n"), 0o600))
	if got := list(); !strings.Contains(got, "(over)") {
		t.Errorf("the clock was set back: %s", got)
	}
	d, err := home.Open(dir)
	must(t, err)
	s, err := daemon.Become(t.Context(), daemon.Options{Home: d, Hosting: daemon.Hosting{Network: daemon.NetworkNone, ListenAddrs: []string{"/ip4/127.0.0.1/tcp/0"}}})
	must(t, err)
	defer func() { must(t, s.Stop(0, false)) }()
	if got := list(); !strings.Contains(got, "(over)") {
		t.Errorf("a node runs: %s", got)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
