// Package command is the command line: it turns arguments into one call and
// prints what comes back. It is the only room that prints, and where hints and
// exit codes live. It does nothing by itself: daemon does. Only main calls it.
package command
