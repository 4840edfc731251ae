package measure

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"benchmark/peers"
	"benchmark/report"
)

// Runner takes each measure in rounds; within a round all peers have their
// turn, in an order that rotates.
type Runner struct {
	Options
	Place  peers.Place
	Peers  []*peers.Peer
	Works  []Work
	Rounds int
	Log    io.Writer
	Record func(report.Result) // is called with each figure

	running map[string]*peers.Tunnel // by peer
}

// limit is the longest that one work may take on one tunnel.
const limit = 5 * time.Minute

// Run runs all of it; what a peer can't do is a result, no error.
func (r *Runner) Run(ctx context.Context) error {
	r.running = map[string]*peers.Tunnel{}
	defer func() {
		for _, t := range r.running {
			t.Stop()
		}
	}()
	for round := range r.Rounds {
		for i, w := range r.Works {
			for k := range r.Peers {
				p := r.Peers[(k+round+i)%len(r.Peers)]
				values, err := r.turn(ctx, w, p)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				r.record(round+1, w, p, values, err)
			}
		}
	}
	return nil
}

// turn does one work over one peer's tunnel.
func (r *Runner) turn(ctx context.Context, w Work, p *peers.Peer) (Values, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	values := Values{}
	t, err := r.tunnel(ctx, w, p)
	if err == nil {
		err = w.Run(ctx, r.Options, t, values)
		if w.Fresh || err != nil { // who failed begins anew
			t.Stop()
			delete(r.running, p.Name)
		}
	}
	return values, err
}

// tunnel gives the one that runs, or a new one.
func (r *Runner) tunnel(ctx context.Context, w Work, p *peers.Peer) (*peers.Tunnel, error) {
	if t := r.running[p.Name]; t != nil {
		if !w.Fresh {
			return t, nil
		}
		t.Stop()
		delete(r.running, p.Name)
	}
	t, err := p.Start(ctx, r.Place)
	if err == nil && !w.Fresh {
		r.running[p.Name] = t
	}
	return t, err
}

// record hands on what a work gave, and an error for what it did not give. What
// it gave before it failed counts for nothing, but in memory: there a peer
// refuses at some count.
func (r *Runner) record(round int, w Work, p *peers.Peer, values Values, err error) {
	if err != nil && w.Name != "memory" {
		values = nil
	}
	said := []string{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		m, ok := report.Lookup(name)
		if !ok {
			m.Unit = "MB/s" // what there was beside
		}
		said = append(said, fmt.Sprintf("%s %.3g %s", name, values[name], m.Unit))
		r.Record(report.Result{Measure: name, Unit: m.Unit, Peer: p.Name, Round: round, Value: values[name]})
	}
	for _, name := range w.Gives {
		if _, ok := values[name]; !ok && err != nil {
			r.Record(report.Result{Measure: name, Peer: p.Name, Round: round, Error: err.Error()})
		}
	}
	if err != nil {
		said = append(said, err.Error())
	}
	fmt.Fprintf(r.Log, "round %d, %s, %s: %s\n", round, w.Name, p.Name, strings.Join(said, ", "))
}
