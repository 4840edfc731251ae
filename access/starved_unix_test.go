//go:build unix

package access

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"p2ptun/proto"
)

func init() { children["starved"] = starved }

// starved redeems an invite where nothing can be written: PATH, ID, SECRET, HOW.
func starved(args []string) error {
	secret, err := base64.RawURLEncoding.DecodeString(args[2])
	if err != nil {
		return err
	}
	told := 0
	table := New(args[0], func() { told++ })
	if err := starve(args[3]); err != nil {
		return err
	}
	told = 0
	i, fresh, err := redeem(table, bob, proto.Invite{ID: args[1], Protocol: "/x/ssh", Secret: secret})
	if err == nil || fresh || errors.Is(err, ErrInviteUnknown) || errors.Is(err, ErrInviteUsed) || errors.Is(err, ErrInviteOver) {
		return fmt.Errorf("Redeem = %v, fresh %v, %v", i, fresh, err)
	}
	if table.Allowed(bob, "/x/ssh") || !table.Allowed(alice, "/x/ssh") || table.Err() != nil || told != 0 {
		return fmt.Errorf("bob in: %v, alice in: %v, told %d times, %w", table.Allowed(bob, "/x/ssh"), table.Allowed(alice, "/x/ssh"), told, table.Err())
	}
	_, err = AddInvite(context.Background(), args[0], keysOf("/x/ssh"), 1, time.Now().Add(time.Hour), "")
	if set := Set(context.Background(), args[0], Rule{Protocol: "/x/ssh", Peer: alice}); err == nil || set == nil {
		return fmt.Errorf("AddInvite: %w, Set: %w", err, set)
	}
	return nil
}

func starve(how string) error {
	if how == "open files" {
		return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: 0})
	}
	if how == "disk" { // as a full one: a write ends in the middle
		signal.Ignore(syscall.SIGXFSZ)
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 100, Max: 100})
	}
	if os.Getuid() == 0 { // whom no mode keeps out
		return errors.Join(syscall.Setgid(nobody), syscall.Setuid(nobody))
	}
	return nil
}

const nobody = 65534

func TestAUseThatCannotBeWrittenGivesNoRightAndTakesNone(t *testing.T) {
	for _, how := range []string{"disk", "open files", "directory"} {
		t.Run(how, func(t *testing.T) {
			path := file(t, "# "+strings.Repeat("long ", 100)+"\nallow ssh "+alice+"\n")
			i := invite(t, path, "/x/ssh", 1)
			before := contentOf(t, path)
			if how == "directory" {
				readOnly(t, path)
			}
			out, err := childCommand("starved", path, i.ID, base64.RawURLEncoding.EncodeToString(i.Secret), how).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); err != nil || len(left) > 0 || contentOf(t, path) != before {
				t.Errorf("left behind: %v, %v; the file is:\n%s", left, err, contentOf(t, path))
			}
			if how != "directory" { // as soon as there is room
				wantRedeemed(t, New(path, func() {}), bob, i, true)
			}
		})
	}
}

// readOnly makes the file readable to the child, and its directory not
// writable. The lock is there already.
func readOnly(t testing.TB, path string) {
	t.Helper()
	dir := filepath.Dir(path)
	if os.Getuid() == 0 {
		for _, p := range []string{path, path + ".lock", dir} {
			if err := os.Chown(p, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	chmod(t, dir, 0o500)
	t.Cleanup(func() { chmod(t, dir, 0o700) })
}
