package access

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// sayTime writes what an earlier run would have seen.
func sayTime(t testing.TB, path string, at time.Time) {
	t.Helper()
	write(t, clockPath(path), at.UTC().Format(time.RFC3339Nano)+"\n")
}

func inText(at time.Time) string { return at.UTC().Format(time.RFC3339) }

func wantBehind(t testing.TB, err error, path string) {
	t.Helper()
	var behind *ClockError
	if !errors.As(err, &behind) || !strings.HasSuffix(behind.Hint(), "rm "+clockPath(path)) || !behind.Seen.After(behind.Now) {
		t.Errorf("err = %v, want a *ClockError with a hint", err)
	}
}

const year = 365 * 24 * time.Hour

func TestWhatIsOverStaysOverWhenTheClockGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newRig(t, "allow ssh "+alice+" until="+inText(start.Add(year/2))+"\nallow ssh "+bob+" until="+inText(start.Add(year+time.Hour))+"\n")
		r.want(t, alice, "/x/ssh", true)
		if err := r.ClockBehind(); err != nil {
			t.Error(err)
		}
		sayTime(t, r.path, start.Add(year))
		again := &rig{path: r.path}
		again.Table = New(r.path, func() { again.changes.Add(1) })
		again.want(t, alice, "/x/ssh", false)
		again.want(t, bob, "/x/ssh", true)
		wantBehind(t, again.ClockBehind(), r.path)
		stop := again.serve(t)
		defer stop()
		time.Sleep(time.Hour - time.Millisecond) // time goes on from there
		again.want(t, bob, "/x/ssh", true)
		told := again.changes.Load()
		time.Sleep(time.Millisecond)
		again.want(t, bob, "/x/ssh", false)
		time.Sleep(look)
		synctest.Wait()
		if again.changes.Load() == told || again.Known(bob) {
			t.Errorf("told %d times, known %v", again.changes.Load()-told, again.Known(bob))
		}
		third := New(r.path, func() {}) // and the next run knows it
		if third.Known(bob) || third.Allowed(bob, "/x/ssh") {
			t.Error("let in once more")
		}
	})
}

func TestAnInviteThatIsOverStaysOverWhenTheClockGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		i := invite(t, r.path, "/x/ssh", 2)
		sayTime(t, r.path, time.Now().Add(year))
		r.Reload()
		wantRefused(t, r.Table, alice, i, ErrInviteOver)
	})
}

func TestNothingThatExpiresIsMadeByAClockThatIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, until := context.Background(), time.Now().Add(2*year)
		path := file(t, "# mine\n")
		sayTime(t, path, time.Now().Add(year))
		_, err := AddInvite(ctx, path, keysOf("/x/ssh"), 1, until, "")
		wantBehind(t, err, path)
		wantBehind(t, Set(ctx, path, Rule{Allow: true, Protocol: "/x/ssh", Peer: alice, Until: until}), path)
		if got := contentOf(t, path); got != "# mine\n" {
			t.Errorf("the file became:\n%s", got)
		}
		set(t, path, Rule{Allow: true, Protocol: "/x/ssh", Peer: alice})
		if !New(path, func() {}).Allowed(alice, "/x/ssh") {
			t.Error("a rule without a time is of no use")
		}
	})
}

func TestAClockThatIsALittleBehindIsNotSpokenOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := time.Now().Add(clockSlack)
		r := newRig(t, "allow ssh "+alice+" until="+inText(seen)+"\n")
		sayTime(t, r.path, seen)
		r.Reload()
		if err := r.ClockBehind(); err != nil {
			t.Error(err)
		}
		r.want(t, alice, "/x/ssh", false) // it holds all the same
		invite(t, r.path, "/x/ssh", 1)
		sayTime(t, r.path, seen.Add(time.Second))
		r.Reload()
		wantBehind(t, r.ClockBehind(), r.path)
	})
}

func TestABrokenClockFileLetsNobodyIn(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"a word":             func(path string) error { return os.WriteFile(path, []byte("yesterday \x1b[2J\n"), 0o600) },
		"nothing":            func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"a day":              func(path string) error { return os.WriteFile(path, []byte("2026-01-02\n"), 0o600) },
		"writable by others": func(path string) error { return os.Chmod(path, 0o606) },
		"a directory":        func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"huge":               func(path string) error { return os.Truncate(path, 1<<40) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { checkBrokenClock(t, spoil) })
		})
	}
}

func checkBrokenClock(t *testing.T, spoil func(path string) error) {
	ctx, until := context.Background(), time.Now().Add(time.Hour)
	path := file(t, "allow ssh "+alice+"\nallow ssh "+bob+" until="+inText(until)+"\n")
	sayTime(t, path, time.Now())
	if err := spoil(clockPath(path)); err != nil {
		t.Fatal(err)
	}
	before := stampOf(clockPath(path))
	r := &rig{path: path}
	r.Table = New(path, func() { r.changes.Add(1) })
	defer r.Lend("/x/web", []string{alice}, true)()
	stop := r.serve(t)
	defer stop()
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	r.want(t, alice, "/x/ssh", false)
	r.want(t, alice, "/x/web", false)
	if err := r.Err(); err == nil || r.Known(alice) || strings.ContainsRune(err.Error(), '\x1b') || !strings.Contains(err.Error(), clockPath(path)) {
		t.Errorf("Err = %v", err)
	}
	if !stampOf(clockPath(path)).same(before) {
		t.Error("the file was written")
	}
	_, err := AddInvite(ctx, path, keysOf("/x/ssh"), 1, until, "")
	if timed := Set(ctx, path, Rule{Allow: true, Protocol: "/x/db", Peer: bob, Until: until}); err == nil || timed == nil {
		t.Errorf("AddInvite says %v, Set with a time %v", err, timed)
	}
	set(t, path, Rule{Allow: true, Protocol: "/x/db", Peer: bob})
	if err := os.Remove(clockPath(path)); err != nil { // as the hint says
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	synctest.Wait()
	r.want(t, alice, "/x/ssh", true)
	r.want(t, bob, "/x/db", true)
}

func TestABrokenClockFileSaysWhatMendsIt(t *testing.T) {
	path := file(t, "")
	write(t, clockPath(path), "yesterday\n")
	var hint interface{ Hint() string }
	if err := New(path, func() {}).Err(); !errors.As(err, &hint) || hint.Hint() != "rm "+clockPath(path) {
		t.Errorf("Err = %v", err)
	}
}

// The wall clock was wrong and is right now: a person says so.
func TestRemovingTheClockFileTakesTheClockAnew(t *testing.T) {
	for name, see := range map[string]func(*rig){
		"by a Reload":         func(r *rig) { r.Reload() },
		"while it is serving": func(*rig) {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { checkAnew(t, see) })
		})
	}
}

func checkAnew(t *testing.T, see func(*rig)) {
	until := time.Now().Add(time.Hour)
	r := newRig(t, "")
	write(t, r.path, "allow ssh "+alice+" until="+inText(until)+"\nallow ssh "+bob+" until="+inText(until.Add(2*year))+"\n")
	sayTime(t, r.path, time.Now().Add(year))
	r.Reload()
	stop := r.serve(t)
	defer stop()
	time.Sleep(10 * time.Minute)
	r.Reload() // which changes nothing
	r.want(t, alice, "/x/ssh", false)
	wantBehind(t, r.ClockBehind(), r.path)
	if err := os.Remove(clockPath(r.path)); err != nil {
		t.Fatal(err)
	}
	see(r)
	time.Sleep(time.Second)
	synctest.Wait()
	r.want(t, alice, "/x/ssh", true)
	if err := r.ClockBehind(); err != nil {
		t.Error(err)
	}
	time.Sleep(time.Minute)
	synctest.Wait()
	if seen, err := readClock(clockPath(r.path)); err != nil || seen.After(time.Now()) || time.Since(seen) > noteEvery+time.Second {
		t.Errorf("%v is written down at %v, %v", seen, time.Now(), err)
	}
}

func TestTheTimeIsWrittenDownOnceAMinuteWhileSomethingExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		until := time.Now().Add(time.Hour + 30*time.Second)
		r := newRig(t, "allow ssh "+alice+" until="+inText(until)+"\n")
		stop := r.serve(t)
		defer stop()
		writes := watchClock(t, r.path, time.Hour)
		if writes < 59 || writes > 61 {
			t.Errorf("written %d times in an hour", writes)
		}
		time.Sleep(30*time.Second + look)
		synctest.Wait()
		seen, err := readClock(clockPath(r.path))
		if err != nil || seen.Before(until) {
			t.Errorf("at the end %v is written down, %v; want %v", seen, err, until)
		}
		if writes := watchClock(t, r.path, time.Hour); writes != 0 { // nothing is left
			t.Errorf("written %d times", writes)
		}
	})
}

func TestTheTimeIsNotWrittenDownWhileNothingExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "allow ssh "+alice+"\nallow ssh "+bob+" until="+inText(time.Now().Add(-time.Hour))+"\n")
		stop := r.serve(t)
		defer stop()
		if writes := watchClock(t, r.path, time.Hour); writes != 0 || !stampOf(clockPath(r.path)).gone {
			t.Errorf("written %d times", writes)
		}
	})
}

// watchClock counts how often the file changes.
func watchClock(t testing.TB, path string, span time.Duration) (changes int) {
	t.Helper()
	last := stampOf(clockPath(path))
	for range span / time.Second {
		time.Sleep(time.Second)
		synctest.Wait()
		if now := stampOf(clockPath(path)); !now.same(last) {
			last = now
			changes++
		}
	}
	return changes
}

func TestAReloadNeverPutsTheClockBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		until := time.Now().Add(year)
		r := newRig(t, "allow ssh "+alice+" until="+inText(until)+"\n")
		sayTime(t, r.path, time.Now().Add(2*year))
		r.Reload()
		for name, say := range map[string]func(){
			"an earlier time": func() { sayTime(t, r.path, time.Now()) },
			"nonsense":        func() { write(t, clockPath(r.path), "x") },
			"the time":        func() { sayTime(t, r.path, until) },
		} {
			say()
			r.Reload()
			r.want(t, alice, "/x/ssh", false)
			if now := r.Now(); now.Before(until.Add(year)) {
				t.Errorf("%s: it is %v", name, now)
			}
		}
	})
}

// The wall clock is set back while the process runs: what passes counts.
func TestAClockThatIsSetBackMeanwhileGoesOn(t *testing.T) {
	c, err := newClock(clockPath(file(t, "")))
	if err != nil {
		t.Fatal(err)
	}
	if !c.seen.Equal(c.since) || c.seen != c.seen.Round(0) {
		t.Errorf("seen %v since %v", c.seen, c.since)
	}
	c.seen = c.seen.Add(time.Hour) // as if the wall clock were an hour less now
	for _, passed := range []time.Duration{0, time.Minute, 2 * time.Hour} {
		if got, want := c.at(c.since.Add(passed)), c.seen.Add(passed); !got.Equal(want) || got != got.Round(0) {
			t.Errorf("after %v it is %v, want %v", passed, got, want)
		}
	}
}

func TestAClockAheadOfItsFileIsTheWallClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := file(t, "")
		sayTime(t, path, time.Now().Add(-year))
		c, err := newClock(clockPath(path))
		if err != nil || !c.now().Equal(time.Now()) || c.behind() != nil {
			t.Errorf("it is %v, %v, behind: %v", c.now(), err, c.behind())
		}
	})
}
