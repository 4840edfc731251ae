package daemon

import (
	"os"
	"strings"
	"testing"

	"p2ptun/access"
	"p2ptun/registry"
)

const somebody = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"

// A directory where the file's lock belongs stands for a full disk: nothing
// can be written.
func TestDenialThatCanNotBeWrittenHoldsAndIsSaid(t *testing.T) {
	dir := newHome(t)
	must(t, access.Set(t.Context(), dir.Access(), access.Rule{Allow: true, Protocol: "/x/ssh", Peer: somebody}))
	must(t, os.Remove(dir.Access()+".lock"))
	must(t, os.Mkdir(dir.Access()+".lock", 0o700))
	client, server := own(t, dir)
	if !server.access.Allowed(somebody, "/x/ssh") {
		t.Fatal("not allowed to begin with")
	}
	err := client.SetRule(t.Context(), access.Rule{Protocol: "/x/ssh", Peer: somebody})
	if err == nil || !strings.Contains(err.Error(), "until this node ends") {
		t.Errorf("the answer is %v", err)
	}
	if server.access.Allowed(somebody, "/x/ssh") {
		t.Error("still allowed")
	}
	err = client.SetRule(t.Context(), access.Rule{Allow: true, Protocol: "/x/web", Peer: somebody})
	if err == nil || server.access.Allowed(somebody, "/x/web") {
		t.Errorf("an allowance that is not written holds, %v", err)
	}
}

func TestDenialThatCanNotBeWrittenNamesTheCommandThatMendsTheFile(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(path string) error
		hint  string
	}{
		"others may write": {func(path string) error { return os.Chmod(path, 0o620) }, "chmod go-w "},
		"a broken line":    {func(path string) error { return os.WriteFile(path, []byte("# mine\nalow\n"), 0o600) }, "edit line 2 of "},
	} {
		dir := newHome(t)
		must(t, access.Set(t.Context(), dir.Access(), access.Rule{Allow: true, Protocol: "/x/ssh", Peer: somebody}))
		client, _ := own(t, dir)
		must(t, c.spoil(dir.Access()))
		err := client.SetRule(t.Context(), access.Rule{Protocol: "/x/ssh", Peer: somebody})
		if want := c.hint + dir.Access() + ", then type the same again"; err == nil || asError(err).Hint != want {
			t.Errorf("%s: %v, hint %q, want %q", name, err, asError(err).Hint, want)
		}
	}
}

func TestDeniedPeerIsNoQuestionToTheOwner(t *testing.T) {
	dir := newHome(t)
	must(t, access.Set(t.Context(), dir.Access(), access.Rule{Protocol: "/x/a", Peer: somebody}))
	_, server := own(t, dir)
	sub, err := registry.Subscribe[registry.RefusedEvent](server.registry.Events, "test", 10)
	must(t, err)
	defer sub.Close()
	for protocol, want := range map[string]string{"/x/a": Denied, "/x/b": NotAllowed} {
		server.peerRefused(somebody, protocol)
		if e, _, err := sub.Next(t.Context()); err != nil || e.Reason != want {
			t.Errorf("%s: refused since %q, %v", protocol, e.Reason, err)
		}
	}
}

func TestDeniedPeerIsLetInForATunnelsLifeByNobody(t *testing.T) {
	dir := newHome(t)
	must(t, access.Set(t.Context(), dir.Access(), access.Rule{Protocol: "/x/a", Peer: somebody}))
	client, server := own(t, dir)
	e, err := client.Keep(t.Context(), keeps("", "/x/a"))
	must(t, err)
	if err := client.Lend(t.Context(), e.ID, "/x/a", somebody); err == nil || !strings.Contains(err.Error(), "a denial wins") {
		t.Errorf("the answer is %v", err)
	}
	if len(server.runOf(e.ID).lentPeers()) != 0 {
		t.Error("it is lent to all the same")
	}
}
