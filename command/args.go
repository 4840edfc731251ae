package command

import (
	"fmt"
	"slices"
	"strings"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"

	"p2ptun/proto"
)

// reorder puts flags before arguments, as urfave/cli needs them: it takes
// flags after the first argument silently for arguments, and so would lose an
// `--allow`. Flags of the program itself go to the front. What no command
// knows is an error. path is the command's name.
func reorder(app *cli.App, args []string) (ordered, path []string, err error) {
	if len(args) > 0 && args[len(args)-1] == "--generate-bash-completion" {
		return args, nil, nil
	}
	o := ordering{global: app.Flags, commands: app.Commands}
	if err := o.walk(args[1:]); err != nil {
		return nil, o.path, err
	}
	out := append([]string{args[0]}, o.globals...)
	out = append(out, o.path...)
	out = append(out, o.flags...)
	if len(o.words) > 0 {
		out = append(append(out, "--"), o.words...)
	}
	return out, o.path, nil
}

type ordering struct {
	global   []cli.Flag
	commands []*cli.Command // that the next word may name
	command  *cli.Command
	topics   []*cli.Command // that the word after `help` may name

	path, globals, flags, words []string
}

func (o *ordering) walk(args []string) error {
	ended := false // the flags, by `--`
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" && !ended {
			ended = true
			continue
		}
		if ended || len(arg) < 2 || arg[0] != '-' {
			if err := o.word(arg); err != nil {
				return err
			}
			continue
		}
		used, err := o.flag(arg, args)
		if err != nil {
			return err
		}
		args = args[used:]
	}
	return nil
}

// word takes a command's name or an argument.
func (o *ordering) word(arg string) error {
	if o.topics != nil && findCommand(o.topics, arg) == nil {
		return unknownCommand(o.path, arg, o.topics)
	}
	if len(o.commands) == 0 {
		o.words, o.topics = append(o.words, arg), nil
		return nil
	}
	if arg == "help" || arg == "h" {
		o.path, o.commands, o.topics = append(o.path, arg), nil, o.commands
		return nil
	}
	c := findCommand(o.commands, arg)
	if c == nil && o.command != nil && o.command.ArgsUsage != "" {
		o.words, o.commands = append(o.words, arg), nil // it takes arguments as well
		return nil
	}
	if c == nil {
		return unknownCommand(o.path, arg, o.commands)
	}
	o.path = append(o.path, arg)
	o.command, o.commands = c, c.Subcommands
	return nil
}

// flag takes a flag, and of rest its value; it says how many of rest it used.
func (o *ordering) flag(arg string, rest []string) (used int, err error) {
	name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	isHelp := name == "help" || name == "h"
	into := &o.flags
	f := findFlag(o.commandFlags(), name)
	if f == nil {
		f = findFlag(o.global, name)
		into = &o.globals
	}
	if f == nil && !isHelp {
		return 0, o.unknownFlag(arg, name)
	}
	if isHelp {
		o.flags = append(o.flags, arg)
		return 0, nil
	}
	*into = append(*into, arg)
	if _, isBool := f.(*cli.BoolFlag); isBool || hasValue {
		return 0, checkDuration(f, name, value)
	}
	if len(rest) == 0 || strings.HasPrefix(rest[0], "--") { // such a value needs --FLAG=VALUE
		return 0, usageHint("flag "+arg+" needs a value", helpFor(o.path))
	}
	*into = append(*into, rest[0])
	return 1, checkDuration(f, name, rest[0])
}

// checkDuration names the flag and gives an example: 5 and 1d are what people
// type.
func checkDuration(f cli.Flag, name, value string) error {
	if _, ok := f.(*cli.DurationFlag); !ok {
		return nil
	}
	if _, err := time.ParseDuration(value); err == nil {
		return nil
	}
	example := "30s"
	if name == "for" {
		example = "24h"
	}
	return usageHint(fmt.Sprintf("flag --%s: %q is not a time with its unit: s, m or h", name, value), "--"+name+" "+example)
}

// unknownFlag knows that some write --version for a command.
func (o *ordering) unknownFlag(arg, name string) error {
	hint := helpFor(o.path)
	if o.command == nil && findCommand(o.commands, name) != nil {
		hint = "p2ptun " + name
	}
	return usageHint("unknown flag "+arg, hint)
}

func (o *ordering) commandFlags() []cli.Flag {
	if o.command == nil {
		return nil
	}
	return o.command.Flags
}

func findCommand(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func findFlag(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func helpFor(path []string) string {
	return strings.Join(append(append([]string{"p2ptun"}, path...), "--help"), " ")
}

// unknownCommand suggests the nearest name, where one is near.
func unknownCommand(path []string, typed string, commands []*cli.Command) error {
	const near = 0.8
	best, score := "", near
	for _, c := range commands {
		if s := smetrics.JaroWinkler(typed, c.Name, 0.7, 4); s > score {
			best, score = c.Name, s
		}
	}
	if best == "" {
		return usageHint("unknown command "+proto.ShellQuote(typed), helpFor(path))
	}
	return usageHint("unknown command "+proto.ShellQuote(typed), strings.Join(append(append([]string{"p2ptun"}, path...), best), " "))
}

// wantArgs checks the number of arguments.
func wantArgs(c *cli.Context, least, most int) error {
	if n := c.NArg(); n < least || most >= 0 && n > most {
		what := "too few"
		if n > least {
			what = "too many"
		}
		return usageHint(what+" arguments", strings.TrimSpace(c.Command.HelpName+" "+c.Command.ArgsUsage))
	}
	return nil
}

func checkListenAddr(s string) error {
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return usageHint("listen address "+s+": not a multiaddr", "--listen-addr /ip4/0.0.0.0/tcp/4001")
	}
	_, tcp := a.ValueForProtocol(ma.P_TCP)
	_, quic := a.ValueForProtocol(ma.P_QUIC_V1)
	if tcp != nil && quic != nil {
		return usageHint("listen address "+s+": neither TCP nor QUIC", "--listen-addr /ip4/0.0.0.0/udp/4001/quic-v1")
	}
	return nil
}
