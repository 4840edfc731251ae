// Package daemon owns one of each room and wires them: it starts and stops
// them in order, runs tunnels, keeps those that outlive their command, and
// serves the control socket. Its Client is the only way in, for the process
// that owns the home too: Attach finds the owner or becomes it. It prints
// nothing and exits nothing: command does.
package daemon
