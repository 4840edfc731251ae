package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"benchmark/measure"
	"benchmark/peers"
	"benchmark/proc"
	"benchmark/report"
)

// run measures, or reads what was measured, and shows it.
func (f *flags) run(ctx context.Context) error {
	run, results, err := f.figures(ctx)
	if err != nil {
		return err
	}
	return f.show(run, results)
}

func (f *flags) figures(ctx context.Context) (report.Run, report.Results, error) {
	if f.from != "" {
		return report.Read(strings.Split(f.from, ","))
	}
	programs, err := f.findPrograms()
	if err != nil {
		return report.Run{}, nil, err
	}
	run := f.describe(programs)
	log, err := f.openLog(run)
	if err != nil {
		return run, nil, err
	}
	defer log.Close()
	var results report.Results
	record := func(r report.Result) {
		results = append(results, r)
		_ = json.NewEncoder(log).Encode(r)
	}
	if err := f.loopback(ctx, programs, record); err != nil {
		return run, results, err
	}
	err = f.inLab(ctx, programs, record)
	return run, results, err
}

// openLog opens the file of results, with its first line.
func (f *flags) openLog(run report.Run) (*os.File, error) {
	name := f.json
	if name == "" {
		name = os.DevNull
	}
	log, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	return log, json.NewEncoder(log).Encode(run)
}

// findPrograms finds those that scripts/bench has built, and the system's.
func (f *flags) findPrograms() (map[string]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	programs := map[string]string{"self": self}
	for _, name := range []string{"p2ptun", "ipfs", "chisel", "frpc", "frps"} {
		if path, err := filepath.Abs(filepath.Join(f.programs, name)); err == nil && isFile(path) {
			programs[name] = path
		}
	}
	peers.Installed(programs)
	return programs, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// loopback takes all measures that are taken on this machine alone.
func (f *flags) loopback(ctx context.Context, programs map[string]string, record func(report.Result)) error {
	if len(f.works) == 0 {
		return nil
	}
	here := peers.Side{IP: "127.0.0.1"}
	service, port, err := startService(ctx, here, programs["self"], "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer service.Stop()
	there := f.present(programs)
	if info, err := os.Stat(programs["p2ptun"]); err == nil && slices.ContainsFunc(there, func(p *peers.Peer) bool { return p.Name == report.Own }) {
		record(report.Result{Measure: "binary", Unit: "MB", Peer: report.Own, Round: 1, Value: float64(info.Size()) / 1e6})
	}
	r := &measure.Runner{
		Options: f.options(), Rounds: f.rounds, Works: f.works, Peers: there,
		Place: peers.Place{Offer: here, Forward: here, Service: "127.0.0.1:" + port, Programs: programs},
		Log:   os.Stderr, Record: record,
	}
	return r.Run(ctx)
}

// startService starts the service on a side and gives its port.
func startService(ctx context.Context, s peers.Side, self, addr string) (*proc.Process, string, error) {
	p, err := proc.Start(append(append([]string{}, s.Exec...), self, "serve", addr))
	if err != nil {
		return nil, "", err
	}
	m, err := p.WaitFor(ctx, `^port (\d+)$`)
	if err != nil {
		p.Stop()
		return nil, "", err
	}
	return p, m[1], nil
}

func (f *flags) options() measure.Options {
	o := measure.Options{Size: f.size << 20, Time: f.time, Counts: []int{1000, 9000, 10000}}
	if f.quick {
		o.Counts = o.Counts[:1]
	}
	return o
}

// present leaves out the peers whose programs are not here, and says so.
func (f *flags) present(programs map[string]string) (there []*peers.Peer) {
	for _, p := range f.peers {
		if missing := p.Missing(programs); missing != "" {
			fmt.Fprintf(os.Stderr, "bench: SKIP: %s: there is no %s\n", p.Name, missing)
			continue
		}
		there = append(there, p)
	}
	return there
}
