package access

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestAFileThatIsBeingWrittenTakesNothingAway(t *testing.T) {
	const rule = "allow /x/ssh " + alice + "\n"
	r := newRig(t, rule)
	var w watcher
	for range 3 {
		truncate(t, r.path, 0)
		w.look(r.Table)
		w.look(r.Table)
		r.want(t, alice, "/x/ssh", true)
		write(t, r.path, rule)
		w.look(r.Table)
		w.look(r.Table)
		r.want(t, alice, "/x/ssh", true)
	}
}

func TestADenyOutlivesAnEditorsTruncation(t *testing.T) {
	r := newRig(t, "deny /x/ssh "+alice+"\n")
	defer r.Lend("/x/ssh", nil, true)()
	var w watcher
	truncate(t, r.path, 0)
	for range patience - 1 {
		w.look(r.Table)
		r.want(t, alice, "/x/ssh", false)
	}
	w.look(r.Table)
	r.want(t, alice, "/x/ssh", true) // somebody has meant it
}

func TestAFileThatStaysEmptyOrGoneTakesAllAway(t *testing.T) {
	for name, spoil := range map[string]func(*rig){
		"empty": func(r *rig) { truncate(t, r.path, 0) },
		"gone":  func(r *rig) { os.Remove(r.path) },
	} {
		r := newRig(t, "allow /x/ssh "+alice+"\n")
		spoil(r)
		var w watcher
		for range patience {
			w.look(r.Table)
		}
		if r.Allowed(alice, "/x/ssh") {
			t.Errorf("%s: still allowed after %d looks", name, patience)
		}
	}
}

func TestAFileThatNeverComesToRestIsReadAllTheSame(t *testing.T) {
	r := newRig(t, "allow /x/ssh "+alice+"\n")
	var w watcher
	for i := range patience {
		write(t, r.path, "deny /x/ssh "+alice+strings.Repeat(" ", i)+"\n")
		w.look(r.Table)
	}
	r.want(t, alice, "/x/ssh", false)
}

// A directory in the file's place stands for any error of reading that is not
// one of what is read: root reads whatever the mode says.
func TestAReadThatFailsIsTriedAgain(t *testing.T) {
	r := newRig(t, "allow /x/ssh "+alice+"\n")
	aside := r.path + ".aside"
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(r.path, aside)
	if err := os.Mkdir(r.path, 0o700); err != nil {
		t.Fatal(err)
	}
	var w watcher
	for range patience - 1 {
		w.look(r.Table)
		r.want(t, alice, "/x/ssh", true)
	}
	w.look(r.Table)
	r.want(t, alice, "/x/ssh", false)
	if r.Err() == nil {
		t.Error("nothing is said")
	}
	told := r.changes.Load()
	for range 2 * patience {
		w.look(r.Table)
	}
	if r.changes.Load() != told {
		t.Error("the same error is told again and again")
	}
	if err := os.Remove(r.path); err != nil {
		t.Fatal(err)
	}
	move(aside, r.path)
	for range patience {
		w.look(r.Table)
	}
	r.want(t, alice, "/x/ssh", true)
}

func TestAChangeThatHidesItsTimeIsSeen(t *testing.T) {
	allow, deny := "allow /x/ssh "+alice+"\n", "deny  /x/ssh "+alice+"\n"
	r := newRig(t, allow)
	old := time.Now().Add(-time.Hour)
	hide := func() {
		if err := os.Chtimes(r.path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	hide()
	r.Reload()
	write(t, r.path, deny)
	hide()
	var w watcher
	w.look(r.Table)
	w.look(r.Table)
	r.want(t, alice, "/x/ssh", false)
}

func TestADenialThatCannotBeWrittenHoldsUntilTheFileSaysMore(t *testing.T) {
	allow := "allow /x/ssh " + alice + "\n"
	r := newRig(t, allow)
	if err := r.Bar(alice, "/x/ssh"); err != nil {
		t.Fatal(err)
	}
	r.want(t, alice, "/x/ssh", false)
	r.Reload() // the same file says nothing new
	r.want(t, alice, "/x/ssh", false)
	write(t, r.path, "deny /x/ssh "+alice+"\n")
	r.Reload()
	write(t, r.path, allow)
	r.Reload()
	r.want(t, alice, "/x/ssh", true)
}

func TestADenialOfAGroupThatCannotBeWrittenHoldsForItsPeers(t *testing.T) {
	const allow = "allow ssh @family\nallow ssh " + bob + "\nallow web @family\n"
	r := newRig(t, allow+"group family "+alice+"\n")
	defer r.Lend("/x/ssh", []string{alice}, false)()
	i := invite(t, r.path, "/x/ssh", 1)
	r.Reload()
	told := r.changes.Load()
	if err := r.Bar("@family", "/x/ssh"); err != nil || r.changes.Load() == told {
		t.Fatalf("%v, a change was told: %v", err, r.changes.Load() > told)
	}
	r.want(t, alice, "/x/ssh", false)
	r.want(t, alice, "/x/web", true)
	r.want(t, bob, "/x/ssh", true)
	wantRefused(t, r.Table, alice, i, ErrInviteUnknown)
	write(t, r.path, "# once more\n"+allow+"group family "+alice+" "+bob+"\n") // nothing new of the group's rule
	r.Reload()
	r.want(t, alice, "/x/ssh", false)
	r.want(t, bob, "/x/ssh", false)
	write(t, r.path, "deny ssh @family\ngroup family "+alice+"\n")
	r.Reload()
	write(t, r.path, allow+"group family "+alice+"\n")
	r.Reload()
	r.want(t, alice, "/x/ssh", true)
}

// What the file says is not known while it is broken: that it said so before is
// no news once it is mended.
func TestADenialWhileTheFileIsBrokenHoldsOnceItIsMended(t *testing.T) {
	for who, rule := range map[string]string{alice: "allow ssh " + alice, "@family": "allow ssh @family"} {
		mended := "group family " + alice + "\n" + rule + "\n"
		r := newRig(t, mended+"alow\n")
		if err := r.Bar(who, "/x/ssh"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			write(t, r.path, mended)
			r.Reload()
			r.want(t, alice, "/x/ssh", false)
		}
		write(t, r.path, mended+rule+" max-streams=1\n")
		r.Reload()
		r.want(t, alice, "/x/ssh", true)
	}
}

func TestARuleThatIsWrittenLiftsADenialInMemory(t *testing.T) {
	for who, other := range map[string]string{alice: "@family", "@family": alice} {
		r := newRig(t, "group family "+alice+"\nallow ssh "+alice+"\nallow ssh @family\n")
		if err := r.Bar(who, "/x/ssh"); err != nil {
			t.Fatal(err)
		}
		r.Lift(other, "/x/ssh")
		r.Lift(who, "/x/web")
		r.want(t, alice, "/x/ssh", false)
		r.Lift(who, "/x/ssh")
		r.want(t, alice, "/x/ssh", true)
	}
}
