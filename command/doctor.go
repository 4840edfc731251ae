package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"p2ptun/daemon"
	"p2ptun/home"
	"p2ptun/proto"
)

func (t *tool) doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "find what is wrong, step by step: here, and on the way to a peer's service", ArgsUsage: "[PEER [PROTOCOL]]",
		Description: "Each step is ok, fail or skip; under a failure is what to do next. A step says ok only for what it has tried.\n" +
			"The steps of a node are those of the running one; without one, it runs one for as long as it takes.\n" +
			"Exit codes: 0 nothing failed; 4 PEER not reached; 3 not allowed; 5 service not there or not answering; 1 anything else.",
		Flags:  append([]cli.Flag{customFlag()}, hostingFlags()...),
		Action: t.doctor,
	}
}

// examination is one run of the command.
type examination struct {
	t                   *tool
	opts                daemon.Options
	request             daemon.DoctorRequest
	steps, failed, exit int
}

func (t *tool) doctor(c *cli.Context) error {
	x := &examination{t: t}
	if err := x.parse(c); err != nil {
		return err
	}
	usable, _ := daemon.CheckHome(c.Context, cmp.Or(t.home, home.Default()), x.show)
	why := "the home can't be used"
	if usable {
		var err error
		if why, err = x.examine(c.Context); err != nil {
			return err
		}
	}
	if why != "" {
		for _, name := range daemon.NodeSteps(len(x.request.Peers) > 0) {
			x.show(daemon.Step{Event: "step", Name: name, Result: daemon.ResultSkipped, Detail: "no node: " + why})
		}
	}
	return x.end()
}

// parse reads the arguments. What can't be meant is said before any step.
func (x *examination) parse(c *cli.Context) (err error) {
	if err := wantArgs(c, 0, 2); err != nil {
		return err
	}
	if first, second := c.Args().Get(0), c.Args().Get(1); !isPeer(first) && isPeer(second) {
		return usageHint(second+" is a peer: PEER comes first", x.t.typed(c).line(second, first))
	}
	if c.NArg() > 0 {
		if x.request.Peers, err = x.t.lookupPeer(c.Args().First()); err != nil {
			return err
		}
	}
	if c.NArg() > 1 {
		if x.request.Protocol, err = x.t.parseProtocol(c, c.Args().Get(1)); err != nil {
			return err
		}
	}
	if _, broken := x.t.dir(); broken != nil {
		return nil // which is the first step
	}
	x.opts, err = x.t.hosting(c)
	return err
}

// examine has the running node do its steps, or one that it runs for that; why
// says that there is none.
func (x *examination) examine(ctx context.Context) (why string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, server, err := daemon.Attach(ctx, x.opts)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		e := x.t.explain(err)
		x.show(daemon.Step{Event: "step", Name: "node", Result: daemon.ResultFail, Detail: proto.Redact(e.Error()), Hint: proto.Redact(e.hint)})
		return "see above", nil
	}
	detail := "the one that is running"
	if server != nil {
		server.OnStop(func(daemon.StopReason) { cancel() })
		defer func() { _ = server.Stop(0, true) }()
		x.t.tellNetwork(x.opts)
		detail = "none was running; one runs for this"
	}
	x.show(daemon.Step{Event: "step", Name: "node", Result: daemon.ResultOK, Detail: detail})
	return "", x.interrupted(ctx, client.Doctor(ctx, x.request, x.show))
}

func (x *examination) interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return &exitError{exitInterrupted, errors.New("interrupted before the end"), ""}
	}
	return err
}

// show prints one step.
func (x *examination) show(st daemon.Step) {
	x.steps++
	if st.Result == daemon.ResultFail {
		x.failed++
		if code := apiExits[st.Code]; st.Code != "" && x.exit == 0 {
			x.exit = code
		}
	}
	if x.t.json {
		_ = x.t.printJSON(st)
		return
	}
	word := map[daemon.Result]string{daemon.ResultOK: "ok", daemon.ResultFail: "fail", daemon.ResultSkipped: "skip"}[st.Result]
	fmt.Fprintf(x.t.Out, "%-4s  %-10s  %s\n", word, st.Name, shown(st.Detail))
	if st.Hint != "" {
		fmt.Fprintf(x.t.Out, "%-4s  %-10s  next: %s\n", "", "", shown(st.Hint))
	}
}

// end says how many failed. The failure of a peer decides the exit code.
func (x *examination) end() error {
	if x.t.json {
		if err := x.t.printJSON(daemon.DoctorEnd{Event: "doctor", Failed: x.failed}); err != nil {
			return err
		}
	}
	if x.failed == 0 {
		return nil
	}
	x.t.note("%d of %d steps failed", x.failed, x.steps)
	return toldExit(cmp.Or(x.exit, exitFailure))
}
