//go:build unix

package command

import (
	"os/signal"
	"syscall"
)

// ignoreTTIN makes reading a terminal from the background of its shell fail,
// where it would stop the process.
func ignoreTTIN() { signal.Ignore(syscall.SIGTTIN) }
