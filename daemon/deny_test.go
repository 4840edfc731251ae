package daemon

import (
	"os"
	"strings"
	"testing"

	"p2ptun/access"
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
