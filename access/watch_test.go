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
