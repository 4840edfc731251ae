package daemon

import (
	"os"
	"strings"
	"testing"

	"p2ptun/access"
	"p2ptun/home"
	"p2ptun/registry"
)

const somebody = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"

// fill puts a directory where the file's lock belongs, which stands for a full
// disk: nothing can be written. empty makes room again.
func fill(t testing.TB, dir home.Dir) {
	t.Helper()
	must(t, os.Remove(dir.Access()+".lock"))
	must(t, os.Mkdir(dir.Access()+".lock", 0o700))
}

func empty(t testing.TB, dir home.Dir) {
	t.Helper()
	must(t, os.Remove(dir.Access()+".lock"))
}

func TestDenialThatCanNotBeWrittenHoldsAndIsSaid(t *testing.T) {
	dir := newHome(t)
	must(t, access.Set(t.Context(), dir.Access(), access.Rule{Allow: true, Protocol: "/x/ssh", Peer: somebody}))
	fill(t, dir)
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

func TestDenialOfAGroupThatCanNotBeWrittenHoldsAndIsSaid(t *testing.T) {
	dir := newHome(t)
	must(t, access.AddToGroup(t.Context(), dir.Access(), "family", []string{somebody}))
	must(t, access.Set(t.Context(), dir.Access(), access.Rule{Allow: true, Protocol: "/x/ssh", Peer: "@family"}))
	client, server := own(t, dir)
	fill(t, dir)
	deny := access.Rule{Protocol: "/x/ssh", Peer: "@family"}
	if err := client.SetRule(t.Context(), deny); err == nil || !strings.Contains(err.Error(), "the denial holds, but only until this node ends") {
		t.Errorf("the answer is %v", err)
	}
	if server.access.Allowed(somebody, "/x/ssh") {
		t.Error("still allowed")
	}
	empty(t, dir)
	err := client.SetRule(t.Context(), access.Rule{Allow: true, Protocol: "/x/ssh", Peer: somebody})
	if err == nil || !strings.Contains(err.Error(), "a denial wins") || server.access.Allowed(somebody, "/x/ssh") {
		t.Errorf("one of the group: %v", err)
	}
	must(t, client.SetRule(t.Context(), access.Rule{Allow: true, Protocol: "/x/ssh", Peer: "@family"})) // as the file says
	if !server.access.Allowed(somebody, "/x/ssh") {
		t.Error("the group is not let in again")
	}
}

func TestDenialOfAGroupThatIsNotThereIsNone(t *testing.T) {
	client, _ := own(t, newHome(t))
	err := client.SetRule(t.Context(), access.Rule{Protocol: "/x/ssh", Peer: "@familly"})
	if err == nil || asError(err).Code != CodeNoGroup || strings.Contains(err.Error(), "holds") {
		t.Errorf("the answer is %v", err)
	}
}

func TestRuleThatIsWrittenEndsADenialThatWasNot(t *testing.T) {
	dir := newHome(t)
	allow := access.Rule{Allow: true, Protocol: "/x/ssh", Peer: somebody}
	must(t, access.Set(t.Context(), dir.Access(), allow))
	client, server := own(t, dir)
	fill(t, dir)
	if err := client.SetRule(t.Context(), access.Rule{Protocol: "/x/ssh", Peer: somebody}); err == nil {
		t.Fatal("it is written")
	}
	empty(t, dir)
	must(t, client.SetRule(t.Context(), allow)) // as the file says
	if !server.access.Allowed(somebody, "/x/ssh") {
		t.Error("the peer is not let in, and nothing says so")
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
