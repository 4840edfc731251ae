package peers

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"strconv"
)

// ssh is OpenSSH's local forwarding, with the cheapest of its ciphers here.
func ssh() *Peer {
	return &Peer{
		Name: "ssh", Note: "`ssh -L`, aes128-gcm", Needs: []string{"ssh", "sshd", "ssh-keygen"},
		Prepare: prepareSSH, Offer: startSSHD, Forward: startSSH,
	}
}

func prepareSSH(ctx context.Context, t *Tunnel) error {
	if os.Getuid() == 0 {
		_ = os.MkdirAll("/run/sshd", 0o755) // sshd, as root, does not start without it
	}
	for _, key := range []string{"host_key", "user_key"} {
		if _, err := t.run(ctx, Side{}, []string{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", t.path(key)}); err != nil {
			return err
		}
	}
	if err := t.pickPort(); err != nil {
		return err
	}
	return t.write("sshd_config", fmt.Sprintf(`ListenAddress %s
HostKey %s
AuthorizedKeysFile %s
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
PidFile none
`, t.contact(), t.path("host_key"), t.path("user_key.pub")))
}

func startSSHD(ctx context.Context, t *Tunnel) error {
	_, err := t.startUntil(ctx, t.Offer, "Server listening on", []string{t.Programs["sshd"], "-D", "-e", "-f", t.path("sshd_config")})
	return err
}

// startSSH returns with the first byte: ssh does not say when it is ready.
func startSSH(ctx context.Context, t *Tunnel) error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	if _, err := t.bindHere(); err != nil {
		return err
	}
	_, err = t.start(t.Forward, []string{
		t.Programs["ssh"], "-F", "none", "-N", "-L", t.Addr + ":" + t.Service, "-p", strconv.Itoa(t.port), "-l", me.Username,
		"-i", t.path("user_key"), "-c", "aes128-gcm@openssh.com",
		"-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes",
		"-o", "UserKnownHostsFile=" + t.path("known_hosts"), "-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=no",
		t.Offer.IP,
	})
	if err != nil {
		return err
	}
	return t.await(ctx)
}
