// Command benchmark measures p2ptun beside what a user would pick instead.
// scripts/bench builds it and what it measures, and runs it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	raiseFileLimit()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil:
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

// run is a helper that the benchmark starts itself, or the benchmark.
func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if f := helpers[args[0]]; f != nil {
			return f(ctx, args[1:])
		}
	}
	f, err := parse(args)
	if err != nil {
		return err
	}
	return f.run(ctx)
}

// raiseFileLimit takes all that may be had; what is started inherits it.
func raiseFileLimit() {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil {
		l.Cur = l.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
	}
}
