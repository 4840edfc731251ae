package access

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/proto"
)

// keysOf is an invite with an id and a secret of its own.
func keysOf(protocol string) proto.Invite {
	return proto.Invite{Protocol: protocol, ID: proto.InviteID([]byte(rand.Text()[:5])), Secret: []byte(rand.Text()[:16])}
}

// invite writes one into the file at path, for an hour.
func invite(t testing.TB, path, protocol string, uses int) proto.Invite {
	t.Helper()
	made := keysOf(protocol)
	if _, err := AddInvite(context.Background(), path, made, uses, time.Now().Add(time.Hour), ""); err != nil {
		t.Fatal(err)
	}
	return made
}

func redeem(t *Table, peer string, i proto.Invite) (Invite, bool, error) {
	id, err := proto.InviteIDBytes(i.ID)
	if err != nil {
		return Invite{}, false, err
	}
	return t.Redeem(context.Background(), peer, i.Protocol, id, i.Secret)
}

// wantRedeemed is for an invite that lets the peer in.
func wantRedeemed(t testing.TB, table *Table, peer string, i proto.Invite, fresh bool) Invite {
	t.Helper()
	got, isFresh, err := redeem(table, peer, i)
	if err != nil || isFresh != fresh || !slices.Contains(got.Used, peer) {
		t.Errorf("Redeem = %v, used by %d, fresh %v, %v", got, len(got.Used), isFresh, err)
	}
	if !table.Allowed(peer, i.Protocol) || !table.Known(peer) {
		t.Error("the peer is not let in")
	}
	return got
}

func wantRefused(t testing.TB, table *Table, peer string, i proto.Invite, want error) {
	t.Helper()
	if got, fresh, err := redeem(table, peer, i); !errors.Is(err, want) || fresh {
		t.Errorf("Redeem = %v, fresh %v, %v; want %v", got, fresh, err, want)
	}
}

func TestAnInviteLetsInWhoRedeemsItAndNobodyElse(t *testing.T) {
	r := newRig(t, "# mine\n")
	i := invite(t, r.path, "/x/ssh", 1)
	r.Reload()
	r.want(t, alice, "/x/ssh", false)
	if r.Known(alice) {
		t.Error("known without a right")
	}
	told := r.changes.Load()
	got := wantRedeemed(t, r.Table, alice, i, true)
	if got.Left() != 0 || r.changes.Load() == told {
		t.Errorf("%d uses left, told %d times", got.Left(), r.changes.Load()-told)
	}
	r.want(t, alice, "/x/web", false)
	r.want(t, bob, "/x/ssh", false)
	if n, open := r.Peers("/x/ssh"); n != 1 || open || !r.Named(alice) || r.Known(bob) {
		t.Errorf("Peers = %d, %v", n, open)
	}
	wantRefused(t, r.Table, bob, i, ErrInviteUsed)
	if !strings.Contains(contentOf(t, r.path), "\nused "+i.ID+" "+alice+"\n") {
		t.Errorf("the file is:\n%s", contentOf(t, r.path))
	}
}

func TestTheFileHoldsNoSecret(t *testing.T) {
	path := file(t, "")
	i := invite(t, path, "/x/ssh", 1)
	if text := contentOf(t, path); strings.Contains(text, string(i.Secret)) || !strings.Contains(text, hashOf(i.Secret)) {
		t.Errorf("the file is:\n%s", text)
	}
}

func TestAnInviteHasAsManyUsesAsItSays(t *testing.T) {
	r := newRig(t, "")
	i := invite(t, r.path, "/x/ssh", 3)
	r.Reload()
	for n := range 3 {
		if got := wantRedeemed(t, r.Table, peerN(n), i, true); got.Left() != 2-n {
			t.Errorf("%d left after %d", got.Left(), n+1)
		}
	}
	wantRefused(t, r.Table, peerN(3), i, ErrInviteUsed)
	for n := range 3 { // a retry is a success, also when it is used up
		wantRedeemed(t, r.Table, peerN(n), i, false)
	}
}

func TestARetryCostsNothingAndUsesOutliveARestart(t *testing.T) {
	r := newRig(t, "")
	i := invite(t, r.path, "/x/ssh", 1)
	r.Reload()
	wantRedeemed(t, r.Table, alice, i, true)
	before := stampOf(r.path)
	for range 3 {
		wantRedeemed(t, r.Table, alice, i, false)
	}
	again := New(r.path, func() {})
	wantRedeemed(t, again, alice, i, false)
	wantRefused(t, again, bob, i, ErrInviteUsed)
	if !stampOf(r.path).same(before) {
		t.Error("the file was written")
	}
}

// A directory in the file's place makes every read and every write fail, and an
// edit would make the file of the lock.
func noDisk(t testing.TB, path string) (check func()) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(path+".lock"), os.RemoveAll(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	before := stampOf(filepath.Dir(path))
	return func() {
		t.Helper()
		if !stampOf(filepath.Dir(path)).same(before) {
			t.Error("something was written")
		}
	}
}

func TestAStrangerLearnsNothingAndCausesNoDiskWork(t *testing.T) {
	r := newRig(t, "deny ssh "+bob+"\ndeny ssh @bad\ngroup bad "+peerN(9)+"\n")
	i, other := invite(t, r.path, "/x/ssh", 2), invite(t, r.path, "/x/ssh", 2)
	used := invite(t, r.path, "/x/ssh", 1)
	r.Reload()
	wantRedeemed(t, r.Table, peerN(0), used, true)
	if err := r.Bar(peerN(8), "/x/ssh"); err != nil {
		t.Fatal(err)
	}
	check, told := noDisk(t, r.path), r.changes.Load()
	with := func(change func(*proto.Invite)) proto.Invite { c := i; change(&c); return c }
	for name, c := range map[string]struct {
		peer string
		i    proto.Invite
		want error
	}{
		"another id":           {alice, with(func(i *proto.Invite) { i.ID = keysOf("/x/ssh").ID }), ErrInviteUnknown},
		"another secret":       {alice, with(func(i *proto.Invite) { i.Secret = keysOf("/x/ssh").Secret }), ErrInviteUnknown},
		"of another invite":    {alice, with(func(i *proto.Invite) { i.Secret = other.Secret }), ErrInviteUnknown},
		"half a secret":        {alice, with(func(i *proto.Invite) { i.Secret = i.Secret[:8] }), ErrInviteUnknown},
		"no secret":            {alice, with(func(i *proto.Invite) { i.Secret = nil }), ErrInviteUnknown},
		"its hash":             {alice, with(func(i *proto.Invite) { i.Secret = []byte(hashOf(i.Secret)) }), ErrInviteUnknown},
		"another protocol":     {alice, with(func(i *proto.Invite) { i.Protocol = "/x/web" }), ErrInviteUnknown},
		"no protocol":          {alice, with(func(i *proto.Invite) { i.Protocol = "" }), ErrInviteUnknown},
		"a denied peer":        {bob, i, ErrInviteUnknown},
		"one of a bad group":   {peerN(9), i, ErrInviteUnknown},
		"a peer that is out":   {peerN(8), i, ErrInviteUnknown},
		"used, wrong secret":   {alice, with(func(i *proto.Invite) { i.ID = used.ID }), ErrInviteUnknown},
		"used up":              {alice, used, ErrInviteUsed},
		"redeemed by the peer": {peerN(0), used, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, fresh, err := redeem(r.Table, c.peer, c.i)
			if !errors.Is(err, c.want) || fresh || errors.Is(err, ErrInviteUnknown) && got.ID != "" {
				t.Errorf("Redeem = %v, fresh %v, %v; want %v", got, fresh, err, c.want)
			}
		})
	}
	check()
	if r.changes.Load() != told {
		t.Error("a change was told")
	}
}

// Whoever knows the secret reads that the file is to blame, and nobody else
// anything; nothing is opened, written or used up.
func TestABrokenFileTakesNoInviteAwayAndTellsNoStranger(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, path string)
		fresh bool // the table has read no other file
	}{
		"a broken line":                {func(t *testing.T, path string) { write(t, path, "alow\n"+contentOf(t, path)) }, false},
		"a broken line from the start": {func(t *testing.T, path string) { write(t, path, contentOf(t, path)+"alow\n") }, true},
		"a group that is not there":    {func(t *testing.T, path string) { write(t, path, contentOf(t, path)+"allow ssh @x\n") }, true},
		"others may write":             {func(t *testing.T, path string) { chmod(t, path, 0o620) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, "")
			i, used := invite(t, path, "/x/ssh", 1), invite(t, path, "/x/ssh", 1)
			wantRedeemed(t, New(path, func() {}), bob, used, true)
			good := contentOf(t, path)
			table := New(path, func() {})
			c.spoil(t, path)
			if c.fresh {
				table = New(path, func() {})
			}
			table.Reload()
			wantNotNow(t, table, i)
			wantNotNow(t, table, used)
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			write(t, path, good)
			table.Reload()
			wantRedeemed(t, table, alice, i, true)
			wantRefused(t, table, alice, used, ErrInviteUsed)
		})
	}
}

// wantNotNow is for an invite in a file that can't be used.
func wantNotNow(t *testing.T, table *Table, i proto.Invite) {
	t.Helper()
	check := noDisk(t, table.path)
	wantRefused(t, table, alice, i, table.Err())
	if table.Err() == nil || table.Allowed(alice, i.Protocol) || table.Known(alice) {
		t.Errorf("let in, Err = %v", table.Err())
	}
	wrong, other, over := i, i, i
	wrong.Secret, other.Protocol, over.ID = keysOf("").Secret, "/x/web", keysOf("").ID
	for _, stranger := range []proto.Invite{wrong, other, over} {
		wantRefused(t, table, alice, stranger, ErrInviteUnknown)
	}
	check()
}

func TestAnInviteEndsWithItsRights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		i, late := invite(t, r.path, "/x/ssh", 2), invite(t, r.path, "/x/ssh", 2)
		r.Reload()
		wantRedeemed(t, r.Table, alice, i, true)
		stop := r.serve(t)
		defer stop()
		time.Sleep(time.Hour - time.Millisecond)
		synctest.Wait()
		r.want(t, alice, "/x/ssh", true)
		told := r.changes.Load()
		time.Sleep(time.Millisecond)
		r.want(t, alice, "/x/ssh", false) // at once
		for _, peer := range []string{alice, bob} {
			wantRefused(t, r.Table, peer, i, ErrInviteOver)
			wantRefused(t, r.Table, peer, late, ErrInviteOver)
		}
		time.Sleep(look)
		synctest.Wait()
		if r.changes.Load() == told || r.Known(alice) {
			t.Errorf("told %d times, known %v", r.changes.Load()-told, r.Known(alice))
		}
		before := contentOf(t, r.path)
		wantRefused(t, New(r.path, func() {}), bob, late, ErrInviteOver)
		if contentOf(t, r.path) != before {
			t.Error("the file was written")
		}
	})
}

// What is over is so although the file can't be read just then.
func TestAnExpiryNeedsNoDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		r := newRig(t, "allow ssh "+alice+" until="+until+"\nallow ssh "+bob+"\n")
		stop := r.serve(t)
		defer stop()
		time.Sleep(time.Hour - look/2)
		synctest.Wait()
		told := r.changes.Load()
		if err := errors.Join(os.Rename(r.path, r.path+".aside"), os.Mkdir(r.path, 0o700)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(look)
		synctest.Wait()
		if err := errors.Join(os.Remove(r.path), os.Rename(r.path+".aside", r.path)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		r.want(t, bob, "/x/ssh", true)
		if r.Known(alice) || r.Allowed(alice, "/x/ssh") || r.changes.Load() == told {
			t.Errorf("alice is known: %v; told %d times", r.Known(alice), r.changes.Load()-told)
		}
	})
}

func TestRevokingTakesTheRightsOfAnInviteAndNoOthers(t *testing.T) {
	before := "# mine\r\n\nallow ssh " + bob + "   # my own\n# end\n"
	r := newRig(t, before)
	kept := invite(t, r.path, "/x/web", 1)
	withKept := contentOf(t, r.path)
	gone := invite(t, r.path, "/x/ssh", 3)
	r.Reload()
	for _, peer := range []string{alice, bob, peerN(1)} {
		wantRedeemed(t, r.Table, peer, gone, true)
	}
	if err := RevokeInvite(context.Background(), r.path, gone.ID); err != nil {
		t.Fatal(err)
	}
	r.Reload()
	r.want(t, alice, "/x/ssh", false)
	r.want(t, bob, "/x/ssh", true) // by a rule of its own
	wantRefused(t, r.Table, alice, gone, ErrInviteUnknown)
	wantRedeemed(t, r.Table, alice, kept, true)
	if got := contentOf(t, r.path); got != withKept+"used "+kept.ID+" "+alice+"\n" || !strings.HasPrefix(got, before) {
		t.Errorf("the file is:\n%s", got)
	}
	for _, id := range []string{gone.ID, "", "\x1b[2J"} {
		if err := RevokeInvite(context.Background(), r.path, id); !errors.Is(err, ErrNoInvite) || strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("RevokeInvite(%q) = %v", id, err)
		}
	}
}

func TestADenyOfARedeemerHolds(t *testing.T) {
	r := newRig(t, "")
	i := invite(t, r.path, "/x/ssh", 2)
	r.Reload()
	wantRedeemed(t, r.Table, alice, i, true)
	set(t, r.path, Rule{Protocol: "/x/ssh", Peer: alice})
	r.Reload()
	r.want(t, alice, "/x/ssh", false)
	wantRefused(t, r.Table, alice, i, ErrInviteUnknown)
	wantRedeemed(t, r.Table, bob, i, true)
}

// A person may have changed the invite since it was read.
func TestAUseIsOfTheInviteThatWasShown(t *testing.T) {
	for name, change := range map[string]func(text string, i proto.Invite) string{
		"taken out":        func(string, proto.Invite) string { return "# mine\n" },
		"another secret":   func(s string, i proto.Invite) string { return strings.Replace(s, hashOf(i.Secret), someHash, 1) },
		"another protocol": func(s string, _ proto.Invite) string { return strings.Replace(s, "/x/ssh", "/x/web", 1) },
	} {
		r := newRig(t, "")
		i := invite(t, r.path, "/x/ssh", 1)
		r.Reload()
		text := change(contentOf(t, r.path), i)
		write(t, r.path, text)
		wantRefused(t, r.Table, alice, i, ErrInviteUnknown)
		if contentOf(t, r.path) != text {
			t.Errorf("%s: the file became:\n%s", name, contentOf(t, r.path))
		}
	}
}

func TestAddInviteKeepsAllOtherBytes(t *testing.T) {
	path := file(t, messy)
	made := keysOf("/x/ssh")
	until := time.Now().Add(time.Hour)
	i, err := AddInvite(context.Background(), path, made, 5, until, "  for Bob ")
	if err != nil || i.ID != made.ID || i.Uses != 5 || i.Left() != 5 || !i.Until.Equal(until.Truncate(time.Second)) || i.Comment != "for Bob" {
		t.Fatalf("AddInvite = %v, %v", i, err)
	}
	line := "invite " + made.ID + " /x/ssh uses=5" + untilText(until) + " secret=" + hashOf(made.Secret) + " # for Bob\n"
	if got := contentOf(t, path); got != messy+"\n"+line {
		t.Errorf("the file is:\n%q", got)
	}
	said, err := List(path)
	if err != nil || len(said.Invites) != 1 || said.Invites[0].String() != i.String() {
		t.Errorf("List = %v, %v", said.Invites, err)
	}
}

func TestAddInviteRefusesWhatWouldNotBeReadBack(t *testing.T) {
	path := file(t, "# mine\n")
	hour := time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		made    proto.Invite
		uses    int
		until   time.Time
		comment string
	}{
		"no uses":               {keysOf("/x/ssh"), 0, hour, ""},
		"many uses":             {keysOf("/x/ssh"), MaxUses + 1, hour, ""},
		"no end":                {keysOf("/x/ssh"), 1, time.Time{}, ""},
		"a far year":            {keysOf("/x/ssh"), 1, time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC), ""},
		"a line in the comment": {keysOf("/x/ssh"), 1, hour, "x\nallow /x/ssh " + alice},
		"a return in it":        {keysOf("/x/ssh"), 1, hour, "x\rallow /x/ssh " + alice},
		"a long comment":        {keysOf("/x/ssh"), 1, hour, strings.Repeat("x", maxLine)},
		"a blank in the name":   {keysOf("/x/s sh"), 1, hour, ""},
		"no name":               {keysOf(""), 1, hour, ""},
		"no id":                 {proto.Invite{Protocol: "/x/ssh", Secret: make([]byte, 16)}, 1, hour, ""},
	} {
		i, err := AddInvite(context.Background(), path, c.made, c.uses, c.until, c.comment)
		if err == nil || i.ID != "" || strings.Contains(err.Error(), "%!") {
			t.Errorf("%s: %v, %v", name, i, err)
		}
	}
	if got := contentOf(t, path); got != "# mine\n" {
		t.Errorf("the file became:\n%s", got)
	}
}

func TestThereAreAtMostAThousandInvites(t *testing.T) {
	var text strings.Builder
	for n := range maxInvites {
		fmt.Fprintln(&text, strings.Replace(strings.Replace(invite1, someID, proto.InviteID(fmt.Appendf(nil, "%05d", n)), 1), "2030", "2099", 1))
	}
	path := file(t, text.String())
	if _, err := AddInvite(context.Background(), path, keysOf("/x/ssh"), 1, time.Now().Add(time.Hour), ""); err == nil || contentOf(t, path) != text.String() {
		t.Errorf("one more: %v", err)
	}
}

func TestInvitesLongOverMakeRoomAndCommentsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "# mine\n")
		old := invite(t, r.path, "/x/ssh", 2)
		r.Reload()
		wantRedeemed(t, r.Table, alice, old, true)
		write(t, r.path, contentOf(t, r.path)+"# of old\nallow web "+bob+"\n")
		time.Sleep(time.Hour + stale)
		invite(t, r.path, "/x/web", 1)
		if !strings.Contains(contentOf(t, r.path), old.ID) {
			t.Error("dropped before its time")
		}
		time.Sleep(time.Second)
		last := invite(t, r.path, "/x/db", 1)
		got := contentOf(t, r.path)
		if strings.Contains(got, old.ID) || strings.Contains(got, alice) || !strings.HasPrefix(got, "# mine\n# of old\nallow web "+bob+"\ninvite ") || !strings.Contains(got, last.ID) {
			t.Errorf("the file is:\n%s", got)
		}
	})
}

func TestUsesThatAPersonWroteTwiceCountOnce(t *testing.T) {
	r := newRig(t, "")
	i := invite(t, r.path, "/x/ssh", 2)
	line := "used " + i.ID + " " + alice + "\n"
	write(t, r.path, line+contentOf(t, r.path)+line)
	r.Reload()
	wantRedeemed(t, r.Table, alice, i, false)
	if got := wantRedeemed(t, r.Table, bob, i, true); got.Left() != 0 {
		t.Errorf("%d left", got.Left())
	}
}

func TestRedeemGivesUpWithItsContext(t *testing.T) {
	r := newRig(t, "")
	i := invite(t, r.path, "/x/ssh", 1)
	r.Reload()
	r.redeeming <- struct{}{} // another is at it
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	id, err := proto.InviteIDBytes(i.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, fresh, err := r.Redeem(ctx, alice, "/x/ssh", id, i.Secret); !errors.Is(err, context.Canceled) || fresh {
		t.Errorf("fresh %v, %v", fresh, err)
	}
	r.want(t, alice, "/x/ssh", false)
	<-r.redeeming
	wantRedeemed(t, r.Table, alice, i, true)
}

// A directory in the place of the clock's file stands for a read that fails for
// a reason that may pass.
func TestAUseThatCannotBeReadAgainTakesNothingAway(t *testing.T) {
	r := newRig(t, "allow ssh "+alice+"\n")
	i := invite(t, r.path, "/x/ssh", 1)
	r.Reload()
	told := r.changes.Load()
	if err := os.Mkdir(clockPath(r.path), 0o700); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, r.Table, bob, i, errNotRead)
	r.want(t, bob, "/x/ssh", false)
	r.want(t, alice, "/x/ssh", true)
	if r.changes.Load() != told || r.Err() != nil {
		t.Errorf("told %d times, Err = %v", r.changes.Load()-told, r.Err())
	}
	if err := os.Remove(clockPath(r.path)); err != nil {
		t.Fatal(err)
	}
	wantRedeemed(t, r.Table, bob, i, false)
}

// A denial that could not be written outlives an expiry and a failing disk.
func TestADenialInMemoryHoldsWhileTheFileSaysNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		text := "deny ssh " + alice + " until=" + until + "\nallow ssh " + alice + "\n"
		r := newRig(t, text)
		if err := r.Bar(alice, "/x/ssh"); err != nil {
			t.Fatal(err)
		}
		stop := r.serve(t)
		defer stop()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		r.want(t, alice, "/x/ssh", false)
		if err := errors.Join(os.Remove(r.path), os.Mkdir(r.path, 0o700)); err != nil {
			t.Fatal(err)
		}
		r.Reload()
		if err := os.Remove(r.path); err != nil {
			t.Fatal(err)
		}
		write(t, r.path, text)
		r.Reload()
		r.want(t, alice, "/x/ssh", false)
		set(t, r.path, Rule{Allow: true, Protocol: "/x/ssh", Peer: alice, Comment: "again"})
		r.Reload()
		r.want(t, alice, "/x/ssh", true)
	})
}
