package daemon

import (
	"errors"

	"p2ptun/access"
	"p2ptun/forward"
	"p2ptun/home"
	"p2ptun/registry"
)

// Code tells errors of the control API apart; command has an exit code and a
// hint for each.
type Code string

const (
	CodeFailed      Code = "failed"
	CodeUsage       Code = "usage"        // the request can't be meant
	CodeRefused     Code = "refused"      // the peer does not let us in
	CodeNotReached  Code = "not-reached"  // no way to the peer
	CodeServiceDown Code = "service-down" // the peer's service does not answer
	CodeNoService   Code = "no-service"   // the peer has no such service
	CodeAddrTaken   Code = "addr-taken"   // the local address is in use
	CodeDuplicate   Code = "duplicate"    // such a tunnel exists
	CodeNotFound    Code = "not-found"
	CodeHosting     Code = "hosting" // the owner hosts otherwise than asked
	CodeNoInvite    Code = "no-invite"
	CodeNoGroup     Code = "no-group"
	CodeInvite      Code = "invite"       // the peer does not take the invite
	CodeInviteLater Code = "invite-later" // not now
	CodeState       Code = "state"        // a file of the home can't be used
	CodeStopping    Code = "stopping"
)

// Error is an error as the control API tells it.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Hint is what to type or do next, where the daemon knows better than the
	// command.
	Hint string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Message }

var codes = []struct {
	err  error
	code Code
}{
	{forward.ErrAddrTaken, CodeAddrTaken},
	{forward.ErrRefused, CodeRefused},
	{forward.ErrServiceDown, CodeServiceDown},
	{forward.ErrNoService, CodeNoService},
	{forward.ErrNotReached, CodeNotReached},
	{registry.ErrDuplicate, CodeDuplicate},
	{home.ErrNoPeer, CodeNotFound},
	{forward.ErrInvite, CodeInvite},
	{forward.ErrInviteLater, CodeInviteLater},
	{errNoInvites, CodeInvite},
	{access.ErrNoInvite, CodeNoInvite},
	{access.ErrNoGroup, CodeNoGroup},
}

// asError gives any error its code.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	e = &Error{Code: CodeFailed, Message: err.Error()}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			e.Code = c.code
			break
		}
	}
	if hint := hintOf(err); hint != "" {
		e.Hint, e.Code = hint, CodeState
	}
	return e
}

// hintOf is what mends an error, where it says so; else empty.
func hintOf(err error) string {
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		return hinted.Hint()
	}
	return ""
}

// withHint is an error with what mends it, in one line.
func withHint(err error) string {
	if hint := hintOf(err); hint != "" {
		return err.Error() + "; hint: " + hint
	}
	return err.Error()
}

func usage(message string) *Error { return &Error{Code: CodeUsage, Message: message} }
