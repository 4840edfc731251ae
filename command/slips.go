package command

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/urfave/cli/v2"

	"p2ptun/proto"
)

// typed is a command as a person typed it. It knows the slips of those who
// have the arguments, but not their order or form, and gives the command that
// they meant.
type typed struct {
	self, command string
	args, flags   []string
}

func (t *tool) typed(c *cli.Context) typed {
	y := typed{self: t.self(), command: c.Command.Name, args: c.Args().Slice()}
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		if !c.IsSet(name) {
			continue
		}
		switch f.(type) {
		case *cli.BoolFlag:
			y.flags = append(y.flags, "--"+name)
		case *cli.StringSliceFlag:
			for _, v := range c.StringSlice(name) {
				y.flags = append(y.flags, "--"+name, v)
			}
		default:
			y.flags = append(y.flags, "--"+name, fmt.Sprint(c.Value(name)))
		}
	}
	return y
}

// line is the command with other arguments and the same flags, to paste.
func (y typed) line(args ...string) string {
	line := y.self + " " + y.command
	for _, word := range append(args, y.flags...) {
		line += " " + proto.ShellQuote(word)
	}
	return line
}

// checkFirst says what is wrong with a first argument that can't be meant as a
// PROTOCOL.
func (y typed) checkFirst() error {
	first := y.args[0]
	switch {
	case y.command == "doctor": // whose first is a peer
	case isPeer(first):
		return usageHint(first+" is a peer: PROTOCOL comes first", y.ordered(y.args))
	case strings.Contains(first, "://"):
		if y.command == "listen" {
			return notURL(first, "TARGET is HOST:PORT, after a name", y.line("web", urlHost(first)))
		}
		return notURL(first, "PROTOCOL is a name", "names look like ssh or /x/ssh")
	case y.command == "forward" && isMisplacedBind(y.args):
		return usageHint(first+" is an address to bind: PROTOCOL comes first", y.ordered(y.args))
	}
	return nil
}

// isMisplacedBind says whether the first argument of forward is meant as BIND.
// A port may also be the name of a protocol, where the rest has no other.
func isMisplacedBind(args []string) bool {
	if strings.HasPrefix(args[0], "/") || !proto.LooksLikeEndpoint(args[0]) {
		return false
	}
	isWord := !isPeer(args[1]) && !proto.LooksLikeEndpoint(args[1])
	return !isDigits(args[0]) || len(args) > 2 && isWord
}

// checkOrder says what is wrong where an address to bind stands among the
// peers, or can't be one. bind is what was taken for BIND, if anything.
func (y typed) checkOrder(bind string, peers []string) error {
	for _, p := range peers {
		if _, err := proto.ParsePeer(p); err == nil || strings.HasPrefix(p, "/") {
			continue
		}
		if _, err := proto.ParseBind(p); err == nil {
			return usageHint(p+" is an address to bind: one, before the peers", y.ordered(y.args))
		} else if strings.HasPrefix(p, "udp:") {
			return usagef("%w", err)
		} else if bind == "" {
			if err := y.explainBind(p, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// explainBind says what is wrong with an argument that is no peer, if it is
// meant as BIND; cause is why it can't be bound.
func (y typed) explainBind(p string, cause error) error {
	ip, err := netip.ParseAddr(strings.Trim(p, "[]"))
	switch {
	case err == nil:
		host := ip.String()
		if ip.Is6() {
			host = "[" + host + "]"
		}
		return usageHint("bind address "+p+": the port is missing", y.withBind(p, host+":2222"))
	case strings.Contains(p, "://"):
		return notURL(p, "BIND is HOST:PORT", y.withBind(p, urlHost(p)))
	case isPortTooHigh(p):
		return usageHint("bind address "+p+": port out of range: at most 65535", y.withBind(p, strings.TrimRight(p, "0123456789")+"2222"))
	case strings.Contains(p, ":"):
		return usagef("%w", cause)
	}
	return nil
}

// ordered is the command with these arguments in their order.
func (y typed) ordered(args []string) string {
	var binds, peers, words []string
	for _, arg := range args {
		switch {
		case isPeer(arg):
			peers = append(peers, arg)
		case proto.LooksLikeEndpoint(arg):
			binds = append(binds, arg)
		default:
			words = append(words, arg)
		}
	}
	if len(words) == 0 {
		words = []string{"PROTOCOL"}
	}
	line := append(words[:1:1], binds[:min(len(binds), 1)]...)
	peers = append(peers, words[1:]...)
	switch {
	case y.command == "listen" && len(peers) > 0:
		line = append(line, "--allow")
		peers = peers[:1]
	case len(peers) == 0:
		peers = []string{"PEER"}
	}
	return y.line(append(line, peers...)...)
}

// withBind is the command with another BIND in place of the wrong one.
func (y typed) withBind(wrong, bind string) string {
	var fixed []string
	for _, arg := range y.args {
		if arg == wrong {
			arg = bind
		}
		fixed = append(fixed, arg)
	}
	return y.ordered(fixed)
}

// isPeer says whether an argument can't be but a peer.
func isPeer(s string) bool {
	p, err := proto.ParsePeer(s)
	return err == nil && p.Name == ""
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// isPortTooHigh is for 22222222 and host:22222222.
func isPortTooHigh(s string) bool {
	host, port := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
	}
	if !isDigits(port) {
		return false
	}
	_, hostErr := proto.ParseBind(host + ":1")
	_, portErr := proto.ParseBind(port)
	return hostErr == nil && portErr != nil
}

func notURL(arg, wanted, hint string) error {
	return usageHint(arg+" is a URL: "+wanted, hint)
}

// urlHost is HOST:PORT of a URL.
func urlHost(s string) string {
	u, err := url.Parse(strings.TrimPrefix(s, proto.Namespace))
	if err != nil || u.Hostname() == "" {
		return "localhost:8080"
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "ssh": "22"}[u.Scheme]
	}
	if port == "" {
		port = "8080"
	}
	host := u.Hostname()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port
}
