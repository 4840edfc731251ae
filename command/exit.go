package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"p2ptun/access"
	"p2ptun/daemon"
	"p2ptun/home"
	"p2ptun/proto"
	"p2ptun/registry"
)

// The exit codes.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNotAllowed  = 3
	exitNotReached  = 4
	exitNoService   = 5
	exitAddrTaken   = 6
	exitNoNode      = 7
	exitInterrupted = exitFailure // by a signal, before it was ready
)

// exitError is an error with its exit code and what to type next.
type exitError struct {
	code int
	err  error
	hint string
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// toldExit is an exit code whose reason has been told.
type toldExit int

func (e toldExit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func usagef(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

func usageHint(message, hint string) error {
	return &exitError{code: exitUsage, err: errors.New(message), hint: hint}
}

func onUsageError(_ *cli.Context, err error, _ bool) error {
	return usagef("%w", err)
}

// fail prints an error with its hint and gives the exit code.
func (t *tool) fail(err error) int {
	if err == nil {
		return exitOK
	}
	var told toldExit
	if errors.As(err, &told) {
		return int(told)
	}
	e := t.explain(err)
	if e.code == exitUsage && e.hint == "" {
		e = &exitError{e.code, e.err, helpFor(t.path)}
	}
	if t.json {
		line, _ := json.Marshal(map[string]any{"event": "error", "message": proto.Redact(e.err.Error()), "hint": proto.Redact(e.hint), "exit": e.code})
		fmt.Fprintln(t.Out, string(withEventFirst(line, "error")))
	}
	fmt.Fprintf(t.Err, "p2ptun: error: %s\n", shown(e.err.Error()))
	if e.hint != "" {
		fmt.Fprintf(t.Err, "p2ptun: hint: %s\n", shown(e.hint))
	}
	return e.code
}

// maxShown bounds what is shown of an error, in bytes.
const maxShown = 4096

// explain gives any error its exit code and hint.
func (t *tool) explain(err error) *exitError {
	var e *exitError
	if errors.As(err, &e) {
		return e
	}
	var api *daemon.Error
	if errors.As(err, &api) {
		return t.explainAPI(api)
	}
	var hinted interface{ Hint() string }
	switch {
	case errors.Is(err, context.Canceled):
		return &exitError{exitInterrupted, errors.New("interrupted before it was ready"), ""}
	case errors.Is(err, daemon.ErrNoOwner):
		return &exitError{exitNoNode, err, t.self() + " daemon"}
	case errors.Is(err, daemon.ErrOwned):
		return &exitError{exitFailure, err, t.self() + " stop"}
	case errors.Is(err, home.ErrNoPeer):
		return &exitError{exitUsage, err, t.self() + " peer ls"}
	case errors.Is(err, access.ErrNoGroup):
		return &exitError{exitFailure, err, t.self() + " access group add NAME PEER"}
	case errors.As(err, &hinted):
		return &exitError{exitFailure, err, hinted.Hint()}
	}
	return &exitError{exitFailure, err, ""}
}

var apiExits = map[daemon.Code]int{
	daemon.CodeUsage: exitUsage, daemon.CodeRefused: exitNotAllowed, daemon.CodeNotReached: exitNotReached,
	daemon.CodeServiceDown: exitNoService, daemon.CodeNoService: exitNoService, daemon.CodeAddrTaken: exitAddrTaken,
	daemon.CodeInvite: exitNotAllowed, daemon.CodeInviteLater: exitNotAllowed,
}

func (t *tool) explainAPI(api *daemon.Error) *exitError {
	e := &exitError{code: exitFailure, err: errors.New(api.Message), hint: api.Hint}
	if code, ok := apiExits[api.Code]; ok {
		e.code = code
	}
	switch {
	case e.hint != "":
	case api.Code == daemon.CodeHosting:
		e.hint = t.self() + " stop, or leave these flags out"
	case api.Code == daemon.CodeNoGroup:
		e.hint = t.self() + " access group add NAME PEER"
	case api.Code == daemon.CodeNoInvite:
		e.hint = t.self() + " access ls"
	case api.Code == daemon.CodeDuplicate || api.Code == daemon.CodeNotFound:
		e.hint = t.self() + " ls"
	case api.Code == daemon.CodeNotReached:
		e.hint = "is the peer's p2ptun running? outside one LAN give an address that ends in /p2p/PEER"
	}
	return e
}

// explainTunnel adds what only the command knows: which tunnel it was.
func (t *tool) explainTunnel(err error, tun registry.Tunnel, self string) error {
	var api *daemon.Error
	if !errors.As(err, &api) {
		return err
	}
	e := t.explainAPI(api)
	name := named(tun.Protocol)
	switch api.Code {
	case daemon.CodeRefused:
		e.err = fmt.Errorf("not allowed: this machine is peer %s and asked for %s", self, tun.Protocol)
		e.hint = fmt.Sprintf("the owner has to type: p2ptun allow %s %s", name, self)
		if tun.Invite != "" {
			e.err = fmt.Errorf("%w; the invite is not known there: it was taken back, or is of another home", e.err)
		}
	case daemon.CodeInvite:
		e.hint = fmt.Sprintf("the owner can make another: p2ptun invite %s, or let this peer in: p2ptun allow %s %s", name, name, self)
	case daemon.CodeInviteLater:
		e.hint = "try again in a while; the owner reads what to mend where p2ptun listen runs, or types: p2ptun doctor"
	case daemon.CodeServiceDown:
		e.hint = "start the service on the peer's machine, or use --wait to bind anyway"
	case daemon.CodeNoService:
		e.hint = fmt.Sprintf("on the peer's machine: p2ptun listen %s TARGET", name)
	case daemon.CodeNotReached:
		e.hint += "; to bind anyway: --wait"
	case daemon.CodeAddrTaken:
		e.hint = fmt.Sprintf("%s forward %s PEER (without a port a free one is taken)", t.self(), name)
	case daemon.CodeDuplicate:
		if tun.Kind == registry.KindForward {
			e.code = exitAddrTaken
		}
	}
	return e
}
