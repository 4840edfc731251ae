package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"p2ptun/home"
)

const (
	// attachWait bounds how long an owner that does not answer is waited for:
	// it is starting, or has drained and ends its parts.
	attachWait = 30 * time.Second
	attachLook = 20 * time.Millisecond
	// startWait is how long one that is starting is waited for where nothing
	// is started instead.
	startWait = 3 * time.Second
	// answerWait bounds how long an owner may take to say how it is.
	answerWait = 5 * time.Second
)

// ErrNoOwner is returned by Find where no process owns the home.
var ErrNoOwner = errors.New("no node is running for this home")

// SilentError says that a process owns the home but does not answer.
type SilentError struct {
	PID int // 0: not known
}

func (e *SilentError) Error() string {
	if e.PID == 0 {
		return "the node of this home does not answer"
	}
	return fmt.Sprintf("the node of this home, process %d, does not answer", e.PID)
}

// Hint is what ends that process.
func (e *SilentError) Hint() string {
	if e.PID == 0 {
		return "end the process that runs it, then try again"
	}
	return fmt.Sprintf("kill %d (kill -9 %d where that does not end it), then try again", e.PID, e.PID)
}

// Find gives a client of the home's owner. It waits a little for one that is
// starting. Errors: ErrNoOwner, *SilentError.
func Find(ctx context.Context, dir home.Dir) (*Client, error) {
	for last := time.Now().Add(startWait); ; {
		c, _, err := find(ctx, dir)
		var silent *SilentError
		if !errors.As(err, &silent) || time.Now().After(last) {
			return c, err
		}
		select {
		case <-time.After(attachLook):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// find looks once.
func find(ctx context.Context, dir home.Dir) (*Client, Status, error) {
	paths, err := dir.Sockets()
	if err != nil {
		return nil, Status{}, err
	}
	for _, path := range paths {
		c := NewClient(path)
		asking, cancel := context.WithTimeout(ctx, answerWait)
		st, err := c.Status(asking)
		cancel()
		if err == nil {
			return c, st, nil
		}
		if ctx.Err() != nil {
			return nil, st, ctx.Err()
		}
	}
	if pid, owned := dir.Owner(); owned {
		return nil, Status{}, &SilentError{PID: pid}
	}
	return nil, Status{}, ErrNoOwner
}

// Attach finds the home's owner, or becomes it: then it returns the Server as
// well, which the caller stops. Of several at the same moment one becomes the
// owner and the others find it. An owner that hosts otherwise than opts asks
// is an *Error of CodeHosting; one that does not answer for long, a *SilentError.
func Attach(ctx context.Context, opts Options) (*Client, *Server, error) {
	for last := time.Now().Add(attachWait); ; {
		c, st, err := find(ctx, opts.Home)
		switch {
		case err == nil && st.Stopping: // for as long as its drain takes
			last = time.Now().Add(attachWait)
		case err == nil:
			return c, nil, checkHosting(st.Hosting, opts.Hosting)
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		default:
			if c, s, err := becomeFound(ctx, opts); !errors.Is(err, ErrOwned) {
				return c, s, err
			}
		}
		if time.Now().After(last) {
			pid, _ := opts.Home.Owner()
			return nil, nil, &SilentError{PID: pid}
		}
		select {
		case <-time.After(attachLook):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// becomeFound is Become, with a client of the new owner.
func becomeFound(ctx context.Context, opts Options) (*Client, *Server, error) {
	s, err := Become(ctx, opts)
	if err != nil {
		return nil, nil, err
	}
	c, err := Find(ctx, opts.Home)
	if err != nil {
		return nil, nil, errors.Join(err, s.Stop(0, true))
	}
	return c, s, nil
}

// ErrOwned is returned by Become where another process owns the home.
var ErrOwned = errors.New("another process runs the node of this home")

// Become makes this process the owner of the home. Errors: ErrOwned.
func Become(ctx context.Context, opts Options) (*Server, error) {
	lock, ok, err := opts.Home.TryLock()
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrOwned
	}
	s, err := start(ctx, opts, lock)
	if err != nil {
		return nil, asError(err)
	}
	return s, nil
}

// checkHosting: what is not asked for is not compared.
func checkHosting(has, asked Hosting) error {
	if asked.Network != "" && asked.Network != has.Network {
		return &Error{Code: CodeHosting, Message: fmt.Sprintf("the running node has --network %s, not %s", has.Network, asked.Network)}
	}
	if len(asked.ListenAddrs) > 0 && !slices.Equal(asked.ListenAddrs, has.ListenAddrs) {
		return &Error{Code: CodeHosting, Message: fmt.Sprintf("the running node listens on %v, not %v", has.ListenAddrs, asked.ListenAddrs)}
	}
	if len(asked.Relays) > 0 && !slices.Equal(asked.Relays, has.Relays) {
		return &Error{Code: CodeHosting, Message: fmt.Sprintf("the running node has --relay %v, not %v", has.Relays, asked.Relays)}
	}
	return nil
}

// AwaitEnd returns when that owner, which said was, owns the home no more.
func AwaitEnd(ctx context.Context, dir home.Dir, was Status) error {
	for {
		lock, free, err := dir.TryLock()
		if err != nil {
			return err
		}
		if free {
			return lock.Release()
		}
		if _, st, err := find(ctx, dir); err == nil && !st.Started.Equal(was.Started) {
			return nil // another has it already
		}
		select {
		case <-time.After(attachLook):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
