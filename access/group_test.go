package access

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/mr-tron/base58"
)

// peerN is a peer ID; each n has its own.
func peerN(n int) string {
	key := fmt.Sprintf("%032d", n)
	return base58.Encode([]byte("\x00\x24\x08\x01\x12\x20" + key)) // an Ed25519 key itself
}

const family = "group family " + alice + " " + bob + "\n"

func TestARuleOnAGroupHoldsForAllItsMembers(t *testing.T) {
	r := newRig(t, "allow ssh @family max-streams=3\n"+family+"group family "+peerN(1)+"\ngroup other "+peerN(2)+"\n")
	for _, peer := range []string{alice, bob, peerN(1)} {
		r.want(t, peer, "/x/ssh", true)
		r.want(t, peer, "/x/web", false)
		if streams, _ := r.Limits(peer, "/x/ssh"); streams != 3 || !r.Known(peer) || !r.Named(peer) {
			t.Errorf("%s: %d streams, known %v", peer, streams, r.Known(peer))
		}
	}
	r.want(t, peerN(2), "/x/ssh", false)
	r.want(t, "@family", "/x/ssh", false)
	if n, open := r.Peers("/x/ssh"); n != 3 || open {
		t.Errorf("Peers = %d, %v", n, open)
	}
}

func TestAChangeOfAGroupTakesEffect(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, "allow ssh @family\ngroup family "+alice+"\n")
	step := func(err error, aliceIn, bobIn bool) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		r.Reload()
		r.want(t, alice, "/x/ssh", aliceIn)
		r.want(t, bob, "/x/ssh", bobIn)
	}
	step(AddToGroup(ctx, r.path, "family", []string{bob}), true, true)
	step(RemoveFromGroup(ctx, r.path, "family", []string{alice}), false, true)
	step(RemoveFromGroup(ctx, r.path, "family", []string{bob}), false, false)
	step(AddToGroup(ctx, r.path, "family", []string{"/p2p/" + alice}), true, false)
}

func TestADenyWinsAcrossGroupsAndPeers(t *testing.T) {
	for name, content := range map[string]string{
		"of the group over its member":   "allow ssh " + alice + "\ndeny ssh @family\nallow ssh " + bob + "\n",
		"of the member over its group":   "deny ssh " + alice + "\nallow ssh @family\ndeny ssh " + bob + "\n",
		"of one group over another":      "allow ssh @family\ndeny ssh @both\ngroup both " + alice + " " + bob + "\n",
		"that ends over a lasting allow": "allow ssh @family\ndeny ssh @family until=2999-01-01T00:00:00Z\n",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, content+family)
			defer r.Lend("/x/ssh", []string{alice}, true)()
			r.want(t, alice, "/x/ssh", false)
			r.want(t, bob, "/x/ssh", false)
			r.want(t, peerN(1), "/x/ssh", true)
		})
	}
}

func TestAnAllowThatAGroupsDenialBeatsIsNotWritten(t *testing.T) {
	path := file(t, "deny ssh @family\ndeny db @family until=2001-01-01T00:00:00Z\n"+family)
	before := contentOf(t, path)
	err := Set(t.Context(), path, Rule{Allow: true, Protocol: "/x/ssh", Peer: alice})
	var denied *DeniedError
	if !errors.As(err, &denied) || !strings.Contains(err.Error(), "deny /x/ssh @family") || !strings.Contains(denied.Hint(), "access group rm family "+alice) {
		t.Errorf("error %v", err)
	}
	if after := contentOf(t, path); after != before {
		t.Errorf("the file became\n%s", after)
	}
	for name, rule := range map[string]Rule{
		"another protocol":      {Allow: true, Protocol: "/x/web", Peer: alice},
		"a denial that is over": {Allow: true, Protocol: "/x/db", Peer: alice},
		"a peer not in it":      {Allow: true, Protocol: "/x/ssh", Peer: peerN(7)},
		"a denial":              {Protocol: "/x/ssh", Peer: alice},
		"the group itself":      {Allow: true, Protocol: "/x/ssh", Peer: "@family"},
	} {
		if err := Set(t.Context(), path, rule); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnUnknownGroupRefusesTheWholeFile(t *testing.T) {
	r := newRig(t, "allow ssh "+alice+"\n# one\ndeny web @nobody\n")
	var at *LineError
	if !errors.As(r.Err(), &at) || at.Line != 3 || !strings.Contains(r.Err().Error(), "no group nobody") {
		t.Errorf("Err = %v", r.Err())
	}
	r.want(t, alice, "/x/ssh", false)
}

func TestLimitsAreThoseOfTheRuleThatCounts(t *testing.T) {
	r := newRig(t, "allow ssh "+alice+" max-streams=2 max-rate=1000\nallow ssh "+bob+"\nallow web "+alice+" max-rate=5 until=2001-01-01T00:00:00Z\n"+
		"deny db "+alice+"\nallow db @family max-streams=9\n"+family)
	defer r.Lend("/x/web", []string{alice}, false)()
	for _, c := range []struct {
		peer, protocol string
		streams        int
		rate           int64
	}{
		{alice, "/x/ssh", 2, 1000},
		{bob, "/x/ssh", 0, 0},
		{alice, "/x/web", 0, 0}, // over; what is lent has none
		{alice, "/x/db", 0, 0},  // denied
		{bob, "/x/db", 9, 0},
		{peerN(1), "/x/ssh", 0, 0},
	} {
		if streams, rate := r.Limits(c.peer, c.protocol); streams != c.streams || rate != c.rate {
			t.Errorf("Limits(…%s, %s) = %d, %d", c.peer[len(c.peer)-4:], c.protocol, streams, rate)
		}
	}
}

func TestSetOfLimitsIsReadBack(t *testing.T) {
	path := file(t, family)
	rule := Rule{Allow: true, Protocol: "/x/ssh", Peer: "@family", MaxStreams: 7, MaxRate: 1 << 40, Comment: "all of us"}
	set(t, path, rule)
	if said, err := List(path); err != nil || len(said.Rules) != 1 || said.Rules[0] != rule {
		t.Errorf("List = %+v, %v", said.Rules, err)
	}
	for _, bad := range []Rule{
		{Allow: true, Protocol: "/x/ssh", Peer: alice, MaxStreams: -1}, {Allow: true, Protocol: "/x/ssh", Peer: alice, MaxRate: -1},
		{Protocol: "/x/ssh", Peer: alice, MaxRate: 1}, {Allow: true, Protocol: "/x/ssh", Peer: alice, MaxStreams: math.MaxInt},
		{Allow: true, Protocol: "/x/ssh", Peer: "@"}, {Allow: true, Protocol: "/x/ssh", Peer: "@a b"},
	} {
		if err := Set(context.Background(), path, bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

// messy is a file as a person keeps it.
const messy = "# mine\r\n\n\tgroup  family /p2p/" + alice + "  # us \n  #  indented\nallow\tssh   @family # in\ngroup family " + bob + "\n\n# end"

func TestAddToGroupKeepsAllOtherBytes(t *testing.T) {
	path := file(t, messy)
	if err := AddToGroup(context.Background(), path, "family", []string{peerN(1), alice, peerN(1), peerN(2)}); err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(messy, "group family "+bob+"\n", "group family "+bob+"\ngroup family "+peerN(1)+"\ngroup family "+peerN(2)+"\n", 1) + "\n"
	if got := contentOf(t, path); got != want {
		t.Errorf("got:\n%q\nwant:\n%q", got, want)
	}
	if err := AddToGroup(context.Background(), path, "family", []string{alice}); err != nil || contentOf(t, path) != want {
		t.Errorf("a member once more: %v\n%s", err, contentOf(t, path))
	}
	if err := AddToGroup(context.Background(), path, "new", []string{alice}); err != nil || contentOf(t, path) != want+"group new "+alice+"\n" {
		t.Errorf("a new one: %v\n%s", err, contentOf(t, path))
	}
}

func TestRemoveFromGroupKeepsAllOtherBytes(t *testing.T) {
	ctx := context.Background()
	path := file(t, messy)
	if err := RemoveFromGroup(ctx, path, "family", []string{alice}); err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(messy, "\tgroup  family /p2p/"+alice+"  # us ", "group family # us", 1) + "\n"
	if got := contentOf(t, path); got != want {
		t.Errorf("got:\n%q\nwant:\n%q", got, want)
	}
	if err := RemoveFromGroup(ctx, path, "family", nil); err == nil || !strings.Contains(err.Error(), "a rule is about the group") || contentOf(t, path) != want {
		t.Errorf("a group that a rule is about: %v", err)
	}
	bare := file(t, "# mine\n"+family+"group other "+alice+"\ngroup family\n# end\n")
	if err := RemoveFromGroup(ctx, bare, "family", nil); err != nil || contentOf(t, bare) != "# mine\ngroup other "+alice+"\n# end\n" {
		t.Errorf("a whole group: %v\n%s", err, contentOf(t, bare))
	}
}

func TestRemovingWhatIsNotInAGroupIsAnError(t *testing.T) {
	path := file(t, family)
	for _, c := range []struct {
		name  string
		peers []string
	}{{"friends", nil}, {"friends", []string{alice}}, {"family", []string{alice, peerN(1)}}, {"", nil}, {"\x1b[2J", nil}, {"family", []string{"\x1b[2J"}}} {
		err := RemoveFromGroup(context.Background(), path, c.name, c.peers)
		if !errors.Is(err, ErrNoGroup) || strings.ContainsRune(err.Error(), '\x1b') || contentOf(t, path) != family {
			t.Errorf("%q %q: %v", c.name, c.peers, err)
		}
	}
}

func TestAGroupTakesPeerIDsAndNoLines(t *testing.T) {
	path := file(t, "# mine\n")
	for name, peers := range map[string][]string{
		"g":      {alice + "\nallow ssh " + bob},
		"h":      {"laptop"},
		"i":      {""},
		"j":      {"@g"},
		"a b":    {alice},
		"":       {alice},
		"a\nb":   {alice},
		"\x1b[H": {alice},
	} {
		if err := AddToGroup(context.Background(), path, name, peers); err == nil || strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("%q %q: %v", name, peers, err)
		}
	}
	if got := contentOf(t, path); got != "# mine\n" {
		t.Errorf("the file became:\n%s", got)
	}
}

func TestListShowsGroupsByName(t *testing.T) {
	said, err := List(file(t, "group b "+alice+"\ngroup a\ngroup b "+bob+"\n"))
	want := []Group{{Name: "a"}, {Name: "b", Peers: []string{alice, bob}}}
	same := slices.EqualFunc(said.Groups, want, func(a, b Group) bool { return a.Name == b.Name && slices.Equal(a.Peers, b.Peers) })
	if err != nil || !same {
		t.Errorf("List = %+v, %v", said.Groups, err)
	}
}
