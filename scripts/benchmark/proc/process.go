// Package proc runs the programs that are measured, and reads what they used.
package proc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Patience bounds every wait for something that is to happen.
const Patience = 30 * time.Second

// Process is a program that runs until it is stopped.
type Process struct {
	cmd   *exec.Cmd
	out   output
	ended chan struct{} // closed when it has ended and all it printed is there
}

// output collects what a process prints, and tells who waits that there is
// more. It keeps the last 256 KiB.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.text.Len() > 256<<10 {
		o.text.Reset()
	}
	if o.more != nil {
		close(o.more)
		o.more = nil
	}
	return o.text.Write(b)
}

// look gives what has been printed, and a channel that is closed at more.
func (o *output) look() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more == nil {
		o.more = make(chan struct{})
	}
	return o.text.String(), o.more
}

// Start runs a program with those arguments; env is added to the environment.
// It dies with the benchmark, whatever ends that.
func Start(args []string, env ...string) (*Process, error) {
	p := &Process{cmd: exec.Command(args[0], args[1:]...), ended: make(chan struct{})}
	p.cmd.Env = append(cleanEnv(), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // its state is in p.cmd
	}()
	return p, nil
}

// Run runs a program to its end and gives what it printed.
func Run(ctx context.Context, args []string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(cleanEnv(), env...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, last(said.String()+string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// cleanEnv is the environment without what would change the programs.
func cleanEnv() (env []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "P2PTUN_") && !strings.HasPrefix(v, "IPFS_") {
			env = append(env, v)
		}
	}
	return env
}

// PID is its process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// WaitFor returns the submatches of the first line that matches.
func (p *Process) WaitFor(ctx context.Context, pattern string) ([]string, error) {
	re := regexp.MustCompile("(?m)" + pattern)
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	for {
		text, more := p.out.look()
		if m := re.FindStringSubmatch(text); m != nil {
			return m, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.ended:
			if text, _ = p.out.look(); re.MatchString(text) {
				return re.FindStringSubmatch(text), nil
			}
			return nil, fmt.Errorf("%s ended, and said: %s", p.cmd.Args[0], last(text))
		case <-timeout.C:
			return nil, fmt.Errorf("%s: no line %q; it said: %s", p.cmd.Args[0], pattern, last(text))
		}
	}
}

// last is the end of a text, for an error.
func last(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 400 {
		text = "…" + text[len(text)-400:]
	}
	return text
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// grace is how long a process may take to end when it is asked to.
const grace = 3 * time.Second

// Stop ends the process and all that it started, first with a word, then
// without.
func (p *Process) Stop() {
	pids := descendants(p.PID())
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(grace):
	}
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
	for _, pid := range pids[1:] {
		_ = syscall.Kill(pid, syscall.SIGKILL) // sshd's are in sessions of their own
	}
	_ = p.cmd.Process.Kill()
	<-p.ended
}
