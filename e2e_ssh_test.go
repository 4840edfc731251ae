//go:build unix

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

// sshLab is an OpenSSH server with keys of its own, behind a tunnel.
type sshLab struct {
	dir  string
	user string
	port string // of the forward
}

// findSSHD says where the server is; it is often not in a user's $PATH.
func findSSHD(t testing.TB) string {
	t.Helper()
	for _, path := range []string{"sshd", "/usr/sbin/sshd", "/usr/local/sbin/sshd"} {
		if found, err := exec.LookPath(path); err == nil {
			if abs, err := filepath.Abs(found); err == nil {
				return abs // sshd wants to be called by its whole path
			}
		}
	}
	t.Skip("no sshd on this machine: apt-get install openssh-server openssh-client")
	return ""
}

// startSSH runs a server and a tunnel to it.
func startSSH(t testing.TB) *sshLab {
	t.Helper()
	sshd := findSSHD(t)
	lab := newSSHLab(t)
	s := serve(t, func(c net.Conn) { lab.serve(t, sshd, c) })
	lab.port = startTunnel(t, overTCP, s.addr()).forward.port()
	lab.writeClientConfig(t)
	return lab
}

// newSSHLab makes the keys, and what the server is to know.
func newSSHLab(t testing.TB) *sshLab {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	lab := &sshLab{dir: t.TempDir(), user: me.Username}
	if me.Uid == "0" {
		_ = os.MkdirAll("/run/sshd", 0o755) // where sshd, as root, puts those who have not logged in yet
	}
	mustRun(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", lab.path("host_key"))
	mustRun(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", lab.path("user_key"))
	lab.writeServerConfig(t)
	return lab
}

func (lab *sshLab) path(name string) string { return filepath.Join(lab.dir, name) }

func (lab *sshLab) writeServerConfig(t testing.TB) {
	t.Helper()
	writeFile(t, lab.path("sshd_config"), fmt.Sprintf(`HostKey %s
AuthorizedKeysFile %s
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
PidFile none
Subsystem sftp internal-sftp
`, lab.path("host_key"), lab.path("user_key.pub")))
}

// writeClientConfig pins the host's key: what answers is that server and no
// other.
func (lab *sshLab) writeClientConfig(t testing.TB) {
	t.Helper()
	key, err := os.ReadFile(lab.path("host_key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, lab.path("known_hosts"), fmt.Sprintf("[127.0.0.1]:%s %s", lab.port, key))
	writeFile(t, lab.path("ssh_config"), fmt.Sprintf(`User %s
IdentityFile %s
IdentitiesOnly yes
UserKnownHostsFile %s
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
BatchMode yes
`, lab.user, lab.path("user_key"), lab.path("known_hosts")))
}

// serve has sshd serve one connection, as inetd does: so the port is the
// system's choice.
func (lab *sshLab) serve(t testing.TB, sshd string, c net.Conn) {
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		return
	}
	defer f.Close()
	cmd := exec.Command(sshd, "-i", "-e", "-f", lab.path("sshd_config"))
	var said output
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, &said
	if err := cmd.Run(); err != nil && t.Failed() {
		t.Logf("sshd: %v: %s", err, said.String())
	}
}

// command is ssh or scp through the tunnel.
func (lab *sshLab) command(name string, args ...string) *exec.Cmd {
	return exec.Command(name, lab.args(name, args...)...)
}

func (lab *sshLab) args(name string, args ...string) []string {
	port := "-p"
	if name == "scp" {
		port = "-P"
	}
	return append([]string{"-F", lab.path("ssh_config"), port, lab.port}, args...)
}

func mustRun(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSSHLoginRunsACommandAndPassesItsExitStatus(t *testing.T) {
	lab := startSSH(t)
	cmd := lab.command("ssh", "127.0.0.1", "cat; echo said on stderr >&2; exit 42")
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("typed here\n"), &out, &errs
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 42 {
		t.Fatalf("exit status: %v, want 42; stderr: %s", err, errs.String())
	}
	if out.String() != "typed here\n" || errs.String() != "said on stderr\n" {
		t.Fatalf("stdout %q, stderr %q", out.String(), errs.String())
	}
}

func TestSCPOf200MBIsExactBothWays(t *testing.T) {
	lab := startSSH(t)
	sum := writeRandomFile(t, lab.path("original"), 200_000_000)
	copies := [][]string{
		{lab.path("original"), "127.0.0.1:" + lab.path("uploaded")},
		{"127.0.0.1:" + lab.path("uploaded"), lab.path("downloaded")},
	}
	for i, name := range []string{"uploaded", "downloaded"} {
		if out, err := lab.command("scp", append([]string{"-q"}, copies[i]...)...).CombinedOutput(); err != nil {
			t.Fatalf("scp: %v: %s", err, out)
		}
		if got := hashFile(t, lab.path(name)); got != sum {
			t.Fatalf("the %s file differs", name)
		}
	}
}

// writeRandomFile gives the content's hash.
func writeRandomFile(t testing.TB, path string, size int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum, _, err := hashAll(io.TeeReader(io.LimitReader(newRandom(uint64(size)), size), f))
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func hashFile(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum, _, err := hashAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
