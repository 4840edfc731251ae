// Command p2ptun makes a TCP service on one machine appear on another, by peer
// ID, over libp2p. This file is the signal contexts, one call and the exit
// code; package command is the command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"p2ptun/command"
)

func main() {
	command.CalmTimers(os.Args)
	soft, hard := signals(context.Background())
	os.Exit(command.Run(command.Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Soft: soft, Hard: hard}, os.Args))
}

// signals gives a context that ends with the first signal to end and one that
// ends with the second. A hangup is never the second: the kernel and the shell
// each send one when a terminal closes. Under nohup it is none at all.
func signals(ctx context.Context) (soft, hard context.Context) {
	soft, first := context.WithCancel(ctx)
	hard, second := context.WithCancel(ctx)
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		ends = append(ends, syscall.SIGHUP)
	}
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, ends...)
	go func() {
		<-ch
		first()
		for <-ch == syscall.SIGHUP {
		}
		second()
	}()
	return soft, hard
}
