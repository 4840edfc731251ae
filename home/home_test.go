package home

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOpenMakesAPrivateDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if m := mode(t, path); m != 0o700 || string(d) != path {
		t.Errorf("%s is %v", d, m)
	}
	if again, err := Open(path); err != nil || again != d {
		t.Errorf("a second time: %s, %v", again, err)
	}
}

func TestOpenGivesAnAbsolutePath(t *testing.T) {
	t.Chdir(t.TempDir())
	d, err := Open("here")
	if err != nil || !filepath.IsAbs(string(d)) {
		t.Errorf("%s, %v", d, err)
	}
}

func TestOpenRefusesADirectoryThatOthersMayWriteTo(t *testing.T) {
	for _, m := range []os.FileMode{0o770, 0o707, 0o777 | os.ModeSticky} {
		path := t.TempDir()
		if err := os.Chmod(path, m); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path)
		var unsafe *UnsafeError
		if !errors.As(err, &unsafe) || unsafe.Hint() != "chmod go-w "+path {
			t.Errorf("%v: %v", m, err)
		}
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); err == nil {
		t.Error("a file was taken for a home")
	}
}

// The default home of macOS has a blank in its path.
func TestCommandThatMendsAPathWithABlankCanBePasted(t *testing.T) {
	const want = "chmod go-w '/Library/Application Support/p2ptun'"
	if got := (&UnsafeError{Path: "/Library/Application Support/p2ptun"}).Hint(); got != want {
		t.Errorf("hint %q, want %q", got, want)
	}
}

func TestDefaultIsTheVariableOrTheDataDirectory(t *testing.T) {
	t.Setenv("P2PTUN_HOME", "/some/home")
	if got := Default(); got != "/some/home" {
		t.Error(got)
	}
	t.Setenv("P2PTUN_HOME", "")
	if got := Default(); filepath.Base(got) != "p2ptun" || !filepath.IsAbs(got) {
		t.Error(got)
	}
}

func TestAShortHomeHasItsSocketInside(t *testing.T) {
	d := Dir("/h")
	if got, err := d.Socket(); err != nil || got != "/h/control.sock" {
		t.Errorf("%s, %v", got, err)
	}
}

func TestALongHomeHasAShortSocketOfItsOwn(t *testing.T) {
	runtime, err := os.MkdirTemp("", "r") // short, whatever the test's name
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(runtime)
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	long := t.TempDir() + strings.Repeat("/long-directory-name", 8)
	seen := map[string]bool{}
	for _, d := range []Dir{Dir(long + "/a"), Dir(long + "/b"), Dir(long + "/a")} {
		path, err := d.Socket()
		if err != nil || len(path) > maxSocketPath || !strings.HasPrefix(path, runtime+"/p2ptun/") {
			t.Fatalf("%s, %v", path, err)
		}
		seen[path] = true
		listenOn(t, path)
	}
	if len(seen) != 2 {
		t.Errorf("two homes have %d sockets: %v", len(seen), seen)
	}
	if m := mode(t, filepath.Join(runtime, "p2ptun")); m != 0o700 {
		t.Errorf("the directory is %v", m)
	}
}

// listenOn shows that the system takes the path.
func listenOn(t testing.TB, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Error(err)
		return
	}
	l.Close()
}

func TestASocketIsNotPutWhereOthersMayWrite(t *testing.T) {
	runtime := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	ours := filepath.Join(runtime, "p2ptun")
	if err := errors.Join(os.Mkdir(ours, 0o700), os.Chmod(ours, 0o770)); err != nil {
		t.Fatal(err)
	}
	d := Dir("/" + strings.Repeat("x", maxSocketPath))
	if path, err := d.Socket(); err == nil {
		t.Errorf("took %s", path)
	}
	elsewhere := t.TempDir()
	if err := errors.Join(os.Remove(ours), os.Symlink(elsewhere, ours)); err != nil {
		t.Fatal(err)
	}
	if path, err := d.Socket(); err == nil {
		t.Errorf("followed a link to %s", path)
	}
}

func TestOneOwnerAtATime(t *testing.T) {
	d := Dir(t.TempDir())
	first, ok, err := d.TryLock()
	if err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	if _, ok, err := d.TryLock(); ok || err != nil {
		t.Errorf("a second owner: %v, %v", ok, err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	second, ok, err := d.TryLock()
	if err != nil || !ok {
		t.Fatalf("after the release: %v, %v", ok, err)
	}
	if err := second.Release(); err != nil {
		t.Error(err)
	}
	if m := mode(t, d.join(lockFile)); m != 0o600 {
		t.Errorf("the lock's mode is %v", m)
	}
}

func TestTheOwnerOfALockIsKnownByItsPID(t *testing.T) {
	d := Dir(t.TempDir())
	wantOwner(t, d, 0, false)
	if got := names(t, string(d)); len(got) > 0 {
		t.Errorf("looking made %v", got)
	}
	lock, ok, err := d.TryLock()
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	wantOwner(t, d, os.Getpid(), true)
	if m := mode(t, d.join(lockFile)); m != 0o600 {
		t.Errorf("the lock's mode is %v", m)
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	wantOwner(t, d, 0, false)
	owner := startHolder(t, d)
	wantOwner(t, d, owner.Process.Pid, true)
	_ = owner.Process.Kill()
	_ = owner.Wait()
	wantOwner(t, d, 0, false)
}

func wantOwner(t testing.TB, d Dir, pid int, owned bool) {
	t.Helper()
	if gotPID, got := d.Owner(); gotPID != pid || got != owned {
		t.Errorf("owner %d, %v; want %d, %v", gotPID, got, pid, owned)
	}
}

func TestALockWhoseFileSaysNothingStillHolds(t *testing.T) {
	d := Dir(t.TempDir())
	lock, ok, err := d.TryLock()
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	defer lock.Release()
	if err := os.Truncate(d.join(lockFile), 0); err != nil {
		t.Fatal(err)
	}
	wantOwner(t, d, 0, true)
}

func TestALockEndsWithItsProcess(t *testing.T) {
	d := Dir(t.TempDir())
	owner := startHolder(t, d)
	if _, ok, err := d.TryLock(); ok || err != nil {
		t.Fatalf("taken from a living process: %v, %v", ok, err)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	lock, ok, err := d.TryLock()
	if err != nil || !ok {
		t.Fatalf("after kill -9: %v, %v", ok, err)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
}

// startHolder runs a process that owns the home.
func startHolder(t testing.TB, d Dir) *exec.Cmd {
	t.Helper()
	cmd := childCommand("hold", string(d))
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "locked: true <nil>\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	return cmd
}

// Racing processes: exactly one becomes the owner.
func TestOneOfManyProcessesGetsTheLock(t *testing.T) {
	d := Dir(t.TempDir())
	const processes = 4
	lines := make(chan string, processes)
	for range processes {
		cmd := childCommand("hold", string(d))
		_, inErr := cmd.StdinPipe() // open until killed
		out, outErr := cmd.StdoutPipe()
		if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		go func() {
			line, _ := bufio.NewReader(out).ReadString('\n')
			lines <- line
		}()
	}
	owners := 0
	for range processes {
		select {
		case line := <-lines:
			owners += strings.Count(line, "true")
		case <-time.After(30 * time.Second):
			t.Fatal("a process says nothing")
		}
	}
	if owners != 1 {
		t.Errorf("%d owners", owners)
	}
}
