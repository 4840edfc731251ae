package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"benchmark/lab"
	"benchmark/load"
	"benchmark/measure"
	"benchmark/peers"
	"benchmark/proc"
	"benchmark/report"
)

// inTheLab are the peers that go there, unless others are named.
var inTheLab = []string{"p2ptun", "p2ptun-plain", "p2ptun-quic", "ssh", "kubo-tls", "kubo-quic", "tcp"}

// throughRelay are those that can use a relay.
var throughRelay = []string{"p2ptun", "p2ptun-plain"}

// inLab takes the measures of the network lab.
func (f *flags) inLab(ctx context.Context, programs map[string]string, record func(report.Result)) error {
	if len(f.labs) == 0 {
		return nil
	}
	if why := lab.Why(); why != "" {
		fmt.Fprintln(os.Stderr, "bench: SKIP: the network lab:", why)
		return nil
	}
	there := f.present(programs)
	if f.only == "" {
		there = named(inTheLab, there, func(p *peers.Peer) string { return p.Name })
	}
	for _, w := range f.labs {
		if err := f.weather(ctx, w, there, programs, record); err != nil {
			return fmt.Errorf("%s: %w", w.Name, err)
		}
	}
	return nil
}

// weather builds one network and has all peers carry bytes in it.
func (f *flags) weather(ctx context.Context, w measure.Weather, there []*peers.Peer, programs map[string]string, record func(report.Result)) error {
	script, err := filepath.Abs(filepath.Join(f.root, "scripts", "netlab"))
	if err != nil {
		return err
	}
	l, err := lab.Up(ctx, script, w.Topology()...)
	if err != nil {
		return err
	}
	defer l.Down()
	if _, err := l.Do(ctx, "link", "alice", "--rate", "40mbit", "--loss", w.Loss); err != nil {
		return err
	}
	place := peers.Place{Programs: programs}
	if place.Offer, err = l.Side(ctx, "alice"); err != nil {
		return err
	}
	if place.Forward, err = l.Side(ctx, "bob"); err != nil {
		return err
	}
	service, port, err := startService(ctx, place.Offer, programs["self"], "0.0.0.0:0")
	if err != nil {
		return err
	}
	defer service.Stop()
	place.Service = "127.0.0.1:" + port
	if w.Relay {
		there = slices.DeleteFunc(slices.Clone(there), func(p *peers.Peer) bool { return !slices.Contains(throughRelay, p.Name) })
		relay, err := startRelay(ctx, l, &place)
		if err != nil {
			return err
		}
		defer relay.Stop()
	}
	return f.labRuns(ctx, w, there, place, record)
}

// startRelay starts a relay on a public machine and tells the peers' place.
func startRelay(ctx context.Context, l *lab.Lab, place *peers.Place) (*peers.Relay, error) {
	s, err := l.Side(ctx, "relay")
	if err != nil {
		return nil, err
	}
	place.Relay, err = peers.StartRelay(ctx, s, place.Programs["p2ptun"])
	return place.Relay, err
}

// labRuns runs the rounds within one network.
func (f *flags) labRuns(ctx context.Context, w measure.Weather, there []*peers.Peer, place peers.Place, record func(report.Result)) error {
	r := &measure.Runner{
		Rounds: f.labRounds, Peers: there, Place: place, Log: os.Stderr, Record: record,
		Works: []measure.Work{{Name: w.Name, Fresh: true, Gives: []string{w.Name + "-down", w.Name + "-up"}, Run: f.timedBothWays(w.Name)}},
	}
	return r.Run(ctx)
}

// timedBothWays carries bytes for a while one way, then the other.
func (f *flags) timedBothWays(name string) func(context.Context, measure.Options, *peers.Tunnel, measure.Values) error {
	return func(ctx context.Context, _ measure.Options, t *peers.Tunnel, v measure.Values) error {
		for _, way := range []string{load.Down, load.Up} {
			args := append(slices.Clone(t.Forward.Exec), t.Programs["self"], "timed", t.Addr, way, f.labTime.String())
			said, err := proc.Run(ctx, args)
			if err != nil {
				return err
			}
			got, err := strconv.ParseFloat(said, 64)
			if err != nil {
				return err
			}
			v[name+"-"+way] = got * 8 / 1e6
		}
		return nil
	}
}
