package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"benchmark/ceiling"
	"benchmark/load"
	"benchmark/proc"
)

// helpers are what this program runs as processes of their own.
var helpers = map[string]func(ctx context.Context, args []string) error{
	"serve":      helpServe,
	"await":      helpAwait,
	"timed":      helpTimed,
	"relay":      relay(ceiling.Splice),
	"tls-server": relay(ceiling.TLSServer),
	"tls-client": relay(ceiling.TLSClient),
}

var errHelper = fmt.Errorf("a helper of the benchmark was called wrongly")

// listen takes an address to listen on, until ctx is over.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		context.AfterFunc(ctx, func() { l.Close() })
	}
	return l, err
}

// helpServe is the service: serve ADDR.
func helpServe(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errHelper
	}
	l, err := listen(ctx, args[0])
	if err != nil {
		return err
	}
	fmt.Println("port", l.Addr().(*net.TCPAddr).Port)
	return load.Serve(l)
}

// helpAwait waits for a byte: await ADDR.
func helpAwait(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errHelper
	}
	return load.Await(ctx, args[0], proc.Patience)
}

// helpTimed prints how many bytes a second arrive: timed ADDR WAY TIME.
func helpTimed(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errHelper
	}
	d, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	got, err := load.Timed(ctx, args[0], args[1], d)
	if err == nil {
		fmt.Println(got)
	}
	return err
}

// relay runs a ceiling, NAME LISTEN TARGET, and prints where it listens.
func relay(serve func(net.Listener, string) error) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		if len(args) != 2 {
			return errHelper
		}
		l, err := listen(ctx, args[0])
		if err != nil {
			return err
		}
		fmt.Println("ready", l.Addr())
		return serve(l, args[1])
	}
}
