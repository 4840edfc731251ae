//go:build unix

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func init() { programs["e2e-other-user"] = otherUserMain }

// otherUserMain, called with paths, tries to connect to each as to a unix socket
// and to read each as a file or directory, and says a line of each try.
func otherUserMain() {
	fmt.Println("user", os.Getuid(), os.Getgid())
	for _, path := range os.Args[1:] {
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
		}
		fmt.Println("connect", outcomeOf(err), path)
		_, err = os.ReadFile(path)
		if errors.Is(err, syscall.EISDIR) {
			_, err = os.ReadDir(path)
		}
		fmt.Println("read", outcomeOf(err), path)
	}
	fmt.Println("done")
}

func outcomeOf(err error) string {
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, fs.ErrPermission):
		return "denied"
	}
	return "failed: " + err.Error() + ":"
}

// otherUser is nobody on most systems, and not us.
const otherUser = 65534

// reachable makes a directory that every user may pass, and a copy of this
// binary in it that every user may run.
func reachable(t testing.TB) (dir, binary string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary = filepath.Join(dir, "all.test")
	mustRun(t, "cp", self, binary)
	for _, path := range []string{dir, binary} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir, binary
}

// asOtherUser has another user try those paths.
func asOtherUser(t testing.TB, binary string, paths []string) string {
	t.Helper()
	cmd := exec.Command(binary, paths...)
	cmd.Args[0] = "e2e-other-user"
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherUser, Gid: otherUser}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), fmt.Sprintf("user %d %d\n", otherUser, otherUser)) {
		t.Fatalf("as another user: %v: %s", err, out)
	}
	return string(out)
}

// under lists a directory and all that is in it.
func under(t testing.TB, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// hostedIn starts an owner there, with some state, and gives where its socket
// is and all paths of it.
func hostedIn(t testing.TB, dir, name string) (socket string, paths []string) {
	t.Helper()
	run := filepath.Join(dir, "run")
	if err := os.MkdirAll(run, 0o755); err != nil { // weaker than systems make it
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", run)
	n := newNode(t)
	n.home = filepath.Join(dir, name)
	startDaemon(n)
	n.run("listen", "/x/kept", "1", "--bg")
	n.run("invite", "/x/kept")
	n.run("peer", "add", "office", n.id)
	return n.socket(), append(under(t, n.home), under(t, run)...)
}

func TestControlSocketRefusesOtherUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: only root can start a process as another user")
	}
	defer syscall.Umask(syscall.Umask(0)) // nothing is to rely on it
	for where, name := range map[string]string{
		"in the home":               "home",
		"in the run-time directory": strings.Repeat("long", 40),
	} {
		t.Run(where, func(t *testing.T) {
			dir, binary := reachable(t)
			socket, paths := hostedIn(t, dir, name)
			if (name == "home") != (filepath.Dir(socket) == filepath.Join(dir, name)) || !slices.Contains(paths, socket) {
				t.Fatalf("the socket is %s, of %q", socket, paths)
			}
			said := asOtherUser(t, binary, paths)
			if !strings.Contains(said, "connect denied "+socket+"\n") {
				t.Errorf("another user reaches the control socket:\n%s", said)
			}
			open := filepath.Join(dir, "run") // which is ours to make, and not p2ptun's
			for _, path := range paths {
				if path != open && !strings.Contains(said, "read denied "+path+"\n") {
					t.Errorf("another user reads %s:\n%s", path, said)
				}
			}
		})
	}
}

// What a look from outside would be denied anyway is also private itself: the
// test above can't tell, since nobody passes the directory.
func TestSocketAndFilesArePrivateBehindAnOpenHome(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: only root can start a process as another user")
	}
	dir, binary := reachable(t)
	socket, paths := hostedIn(t, dir, "home")
	home := filepath.Join(dir, "home")
	if err := os.Chmod(home, 0o755); err != nil {
		t.Fatal(err)
	}
	said := asOtherUser(t, binary, paths)
	if !strings.Contains(said, "read done "+home+"\n") {
		t.Fatalf("the home is not open:\n%s", said)
	}
	if !strings.Contains(said, "connect denied "+socket+"\n") {
		t.Errorf("another user reaches the control socket:\n%s", said)
	}
	for _, path := range paths {
		if strings.HasPrefix(path, home+"/") && !strings.Contains(said, "read denied "+path+"\n") {
			t.Errorf("another user reads %s:\n%s", path, said)
		}
	}
}
