package access

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/home"
)

// rig is a Table and the number of times it told of a change.
type rig struct {
	*Table
	path    string
	changes atomic.Int64
}

func newRig(t testing.TB, content string) *rig {
	t.Helper()
	r := &rig{path: file(t, content)}
	r.Table = New(r.path, func() { r.changes.Add(1) })
	return r
}

// serve runs Serve until the returned func is called.
func (r *rig) serve(t testing.TB) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

func (r *rig) want(t testing.TB, peer, protocol string, allowed bool) {
	t.Helper()
	if got := r.Allowed(peer, protocol); got != allowed {
		t.Errorf("Allowed(…%s, %s) = %v (Err: %v)", peer[len(peer)-4:], protocol, got, r.Err())
	}
}

func TestClosedByDefault(t *testing.T) {
	missing := New(filepath.Join(t.TempDir(), "nowhere", "access"), func() {})
	for _, table := range []*Table{newRig(t, "").Table, missing} {
		n, open := table.Peers("/x/ssh")
		if table.Allowed(alice, "/x/ssh") || table.Known(alice) || n != 0 || open {
			t.Errorf("somebody gets in: %d peers, open %v", n, open)
		}
		if table.Err() != nil {
			t.Errorf("Err = %v", table.Err())
		}
	}
}

func TestARuleHoldsForItsPeerAndProtocolOnly(t *testing.T) {
	r := newRig(t, "allow /x/ssh "+alice+"\n")
	r.want(t, alice, "/x/ssh", true)
	r.want(t, bob, "/x/ssh", false)
	r.want(t, alice, "/x/web", false)
	r.want(t, alice, "/x/ssh2", false)
	r.want(t, alice, "/x/", false)
	if !r.Known(alice) || r.Known(bob) {
		t.Error("Known is wrong")
	}
}

func TestADenyWins(t *testing.T) {
	for name, content := range map[string]string{
		"after the allow":           "allow ssh " + alice + "\ndeny ssh " + alice + "\n",
		"before the allow":          "deny ssh " + alice + "\nallow ssh " + alice + "\n",
		"under its other name":      "allow ssh " + alice + "\ndeny /x/ssh " + alice + "\n",
		"with an end still to come": "deny ssh " + alice + " until=2999-01-01T00:00:00Z\nallow ssh " + alice + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, content+"allow ssh "+bob+"\n")
			defer r.Lend("/x/ssh", []string{alice}, true)()
			r.want(t, alice, "/x/ssh", false)
			r.want(t, bob, "/x/ssh", true)
			if n, open := r.Peers("/x/ssh"); n != 1 || !open {
				t.Errorf("Peers = %d, %v", n, open)
			}
		})
	}
}

func TestALentRightEndsWithItsTunnel(t *testing.T) {
	r := newRig(t, "")
	before := r.changes.Load()
	one := r.Lend("/x/ssh", []string{alice}, false)
	two := r.Lend("/x/ssh", []string{alice, bob}, false)
	if n, open := r.Peers("/x/ssh"); n != 2 || open || r.changes.Load() != before+2 {
		t.Errorf("Peers = %d, %v after %d changes", n, open, r.changes.Load()-before)
	}
	two()
	two() // a second call does nothing
	r.want(t, alice, "/x/ssh", true)
	r.want(t, bob, "/x/ssh", false)
	r.Reload() // keeps what is lent
	r.want(t, alice, "/x/ssh", true)
	one()
	r.want(t, alice, "/x/ssh", false)
	if r.Known(alice) || r.Known(bob) {
		t.Error("still known")
	}
	if len(r.lent) != 0 || len(r.open) != 0 {
		t.Error("something is left of the tunnels")
	}
}

func TestOpenLetsEverybodyInToThatProtocol(t *testing.T) {
	r := newRig(t, "")
	end := r.Lend("/x/web", nil, true)
	r.want(t, bob, "/x/web", true)
	r.want(t, bob, "/x/ssh", false)
	if !r.Known(bob) {
		t.Error("a peer that may come in is not known")
	}
	end()
	r.want(t, bob, "/x/web", false)
}

func TestADeniedPeerIsAStranger(t *testing.T) {
	r := newRig(t, "deny ssh "+alice+"\nallow web @family\ndeny web @both\ngroup family "+alice+"\ngroup both "+alice+" "+bob+"\n")
	defer r.Lend("/x/ssh", []string{alice}, false)()
	defer r.Lend("/x/ssh", nil, true)()
	if r.Known(alice) || r.Named(alice) {
		t.Error("a peer that is denied all that is offered has the room of a friend")
	}
	if err := r.Bar(bob, "/x/ssh"); err != nil {
		t.Fatal(err)
	}
	if r.Known(bob) {
		t.Error("so has one that is denied in memory")
	}
	if !r.Known(peerN(1)) {
		t.Error("one that may come in is not known")
	}
	end := r.Lend("/x/db", []string{alice}, false)
	if !r.Known(alice) || !r.Named(alice) {
		t.Error("a denial of one service takes another away")
	}
	end()
	if r.Known(alice) {
		t.Error("still known")
	}
}

func TestAPeerIsKnownAgainWhenItsDenialIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "deny ssh "+alice+" until="+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+"\n")
		defer r.Lend("/x/ssh", []string{alice}, false)()
		stop := r.serve(t)
		defer stop()
		if r.Known(alice) {
			t.Error("known while it is denied")
		}
		time.Sleep(time.Hour + look)
		synctest.Wait()
		if !r.Known(alice) || !r.Allowed(alice, "/x/ssh") {
			t.Error("the flag lets it in, and it is not known")
		}
	})
}

func TestARuleExpiresWhileTheTableServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		until := time.Now().Add(time.Hour)
		r := newRig(t, "allow ssh "+alice+" until="+until.UTC().Format(time.RFC3339)+"\n")
		stop := r.serve(t)
		defer stop()
		time.Sleep(time.Hour - time.Millisecond)
		synctest.Wait()
		before := r.changes.Load()
		r.want(t, alice, "/x/ssh", true)
		time.Sleep(time.Millisecond)
		r.want(t, alice, "/x/ssh", false) // at once, before anybody looked
		time.Sleep(time.Second)
		synctest.Wait()
		if n := r.changes.Load() - before; n != 1 {
			t.Errorf("told of %d changes, want 1", n)
		}
		if r.Known(alice) {
			t.Error("still known")
		}
	})
}

// Between the end of a rule and the next look at the file, no later one may be
// skipped.
func TestTheLongerOfTwoDeniesHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		short := "deny ssh " + alice + " until=" + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + "\n"
		long := "deny ssh " + alice + "\n"
		for _, content := range []string{short + long, long + short} {
			r := newRig(t, content)
			end := r.Lend("/x/ssh", nil, true)
			r.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
			r.want(t, alice, "/x/ssh", false)
			end()
		}
	})
}

func TestAQuietTableTellsOfNoChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "allow ssh "+alice+"\nallow web "+alice+" until=2000-01-01T00:00:00Z\n")
		stop := r.serve(t)
		time.Sleep(time.Hour)
		stop()
		if n := r.changes.Load(); n != 1 { // New's
			t.Errorf("told of %d changes", n)
		}
	})
}

func TestAFileThatCannotBeTrustedRefusesEverybody(t *testing.T) {
	good := "allow ssh " + alice + "\n"
	for name, c := range map[string]struct {
		spoil func(t *testing.T, path string)
		err   func(error) bool
	}{
		"broken line": {
			spoil: func(t *testing.T, path string) { write(t, path, good+"allow web\n") },
			err:   func(err error) bool { var e *LineError; return errors.As(err, &e) && e.Line == 2 },
		},
		"writable by the group": {
			spoil: func(t *testing.T, path string) { chmod(t, path, 0o620) },
			err:   func(err error) bool { var e *home.UnsafeError; return errors.As(err, &e) && e.Hint() != "" },
		},
		"writable by all": {
			spoil: func(t *testing.T, path string) { chmod(t, path, 0o602) },
			err:   func(err error) bool { var e *home.UnsafeError; return errors.As(err, &e) },
		},
		"huge": {
			spoil: func(t *testing.T, path string) { truncate(t, path, 1<<40) },
			err:   func(err error) bool { return strings.Contains(err.Error(), "larger than") },
		},
		"a directory": {
			spoil: func(t *testing.T, path string) {
				if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
					t.Fatal(err)
				}
			},
			err: func(error) bool { return true },
		},
		"a link to itself": {
			spoil: func(t *testing.T, path string) {
				if err := errors.Join(os.Remove(path), os.Symlink(path, path)); err != nil {
					t.Fatal(err)
				}
			},
			err: func(error) bool { return true },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { checkSpoilt(t, good, c.spoil, c.err) })
		})
	}
}

func chmod(t testing.TB, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// truncate makes a sparse file.
func truncate(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func checkSpoilt(t *testing.T, good string, spoil func(*testing.T, string), isErr func(error) bool) {
	r := newRig(t, good)
	defer r.Lend("/x/open", []string{bob}, true)()
	stop := r.serve(t)
	defer stop()
	spoil(t, r.path)
	eventually(t, func() bool { return r.Err() != nil })
	if !isErr(r.Err()) {
		t.Errorf("Err = %v", r.Err())
	}
	r.want(t, alice, "/x/ssh", false)
	r.want(t, bob, "/x/open", false)
	if r.Known(alice) || r.Known(bob) {
		t.Error("somebody is known")
	}
	_ = os.RemoveAll(r.path)
	eventually(t, func() bool { return r.Err() == nil && r.Allowed(bob, "/x/open") })
	r.want(t, alice, "/x/ssh", false) // no file, no rule
	write(t, r.path, good)
	eventually(t, func() bool { return r.Allowed(alice, "/x/ssh") })
}

// eventually polls until it is so; within a second is promised, and a busy
// machine gets more.
func eventually(t testing.TB, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if is() {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Fatal("not so in 10 s")
}

// The promise is a second: in virtual time, where the machine's noise does not
// count, a real file that changes is seen within it.
func TestAChangeOfTheFileIsSeenWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "allow ssh "+alice+"\n")
		stop := r.serve(t)
		defer stop()
		time.Sleep(time.Hour)
		for _, step := range []struct {
			change  func()
			allowed bool
		}{
			{func() { set(t, r.path, Rule{Protocol: "/x/ssh", Peer: alice}) }, false},
			{func() { set(t, r.path, Rule{Allow: true, Protocol: "/x/ssh", Peer: alice}) }, true},
			{func() { write(t, r.path, "# nobody\n") }, false},
			{func() { write(t, r.path, "allow ssh "+alice+"\n") }, true},
			{func() { _ = os.Remove(r.path) }, false},
		} {
			before := r.changes.Load()
			step.change()
			time.Sleep(time.Second - time.Nanosecond)
			synctest.Wait()
			r.want(t, alice, "/x/ssh", step.allowed)
			if n := r.changes.Load() - before; n != 1 {
				t.Errorf("told of %d changes, want 1", n)
			}
		}
	})
}

func TestServeSeesAnEditorsChange(t *testing.T) {
	r := newRig(t, "")
	stop := r.serve(t)
	defer stop()
	write(t, r.path, "allow ssh "+alice+"\n")
	eventually(t, func() bool { return r.Allowed(alice, "/x/ssh") })
	if r.changes.Load() < 2 {
		t.Error("nobody was told")
	}
}
