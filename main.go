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
	soft, hard := signals(context.Background())
	os.Exit(command.Run(command.Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Soft: soft, Hard: hard}, os.Args))
}

// signals gives a context that ends with the first interrupt and one that ends
// with the second.
func signals(ctx context.Context) (soft, hard context.Context) {
	soft, first := context.WithCancel(ctx)
	hard, second := context.WithCancel(ctx)
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ch
		first()
		<-ch
		second()
	}()
	return soft, hard
}
