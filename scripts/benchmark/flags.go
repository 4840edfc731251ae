package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"benchmark/measure"
	"benchmark/peers"
)

var errUsage = errors.New("wrong use")

// flags are those of the command line; scripts/bench --help explains them.
type flags struct {
	rounds, labRounds int
	size              int64
	only, measures    string
	lab, quick, write bool
	json, from        string
	programs, root    string
	time, labTime     time.Duration
	peers             []*peers.Peer
	works             []measure.Work
	labs              []measure.Weather
}

func parse(args []string) (*flags, error) {
	f := &flags{}
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.IntVar(&f.rounds, "rounds", 5, "")
	set.IntVar(&f.labRounds, "lab-rounds", 3, "")
	set.Int64Var(&f.size, "size", 512, "")
	set.DurationVar(&f.time, "time", 3*time.Second, "")
	set.DurationVar(&f.labTime, "lab-time", 15*time.Second, "")
	set.StringVar(&f.only, "only", "", "")
	set.StringVar(&f.measures, "measures", "", "")
	set.BoolVar(&f.lab, "lab", false, "")
	set.BoolVar(&f.quick, "quick", false, "")
	set.BoolVar(&f.write, "write", false, "")
	set.StringVar(&f.json, "json", "", "")
	set.StringVar(&f.from, "from", "", "")
	set.StringVar(&f.programs, "programs", "", "")
	set.StringVar(&f.root, "root", ".", "")
	err := set.Parse(args)
	if err == nil && set.NArg() > 0 {
		err = fmt.Errorf("unknown argument %s", set.Arg(0))
	}
	if err == nil {
		if f.quick {
			f.quickly(set)
		}
		err = f.choose()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: error: %v\nbench: hint: scripts/bench --help\n", err)
		return nil, errUsage
	}
	return f, nil
}

// quickly makes a run of seconds, but for what was asked for otherwise.
func (f *flags) quickly(set *flag.FlagSet) {
	short := map[string]string{"rounds": "1", "lab-rounds": "1", "size": "32", "time": "400ms", "lab-time": "5s"}
	set.Visit(func(given *flag.Flag) { delete(short, given.Name) })
	for name, value := range short {
		_ = set.Set(name, value) // a value that it takes
	}
}

// choose finds the peers and measures that are named.
func (f *flags) choose() (err error) {
	if f.rounds < 1 || f.labRounds < 1 || f.size < 1 {
		return fmt.Errorf("-rounds and -size are at least 1")
	}
	f.peers, err = pick("peer", f.only, peers.All(), func(p *peers.Peer) string { return p.Name })
	if err != nil {
		return err
	}
	works, labs := measure.Works(), measure.Weathers()
	if f.measures == "" {
		f.works = works
		if f.lab {
			f.labs = labs
		}
		return nil
	}
	names := strings.Split(f.measures, ",")
	f.works = named(names, works, func(w measure.Work) string { return w.Name })
	f.labs = named(names, labs, func(w measure.Weather) string { return w.Name })
	if f.lab && len(f.labs) == 0 {
		f.labs = labs
	}
	known := append(namesOf(works, func(w measure.Work) string { return w.Name }), namesOf(labs, func(w measure.Weather) string { return w.Name })...)
	for _, n := range names {
		if !slices.Contains(known, n) {
			return fmt.Errorf("unknown measure %s; there are: %s", n, strings.Join(known, ","))
		}
	}
	return nil
}

// pick gives those of a list that are named, all of them where none is.
func pick[T any](what, list string, all []T, name func(T) string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	names, known := strings.Split(list, ","), namesOf(all, name)
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("unknown %s %s; there are: %s", what, n, strings.Join(known, ","))
		}
	}
	return named(names, all, name), nil
}

func named[T any](names []string, all []T, name func(T) string) (some []T) {
	for _, v := range all {
		if slices.Contains(names, name(v)) {
			some = append(some, v)
		}
	}
	return some
}

func namesOf[T any](all []T, name func(T) string) (names []string) {
	for _, v := range all {
		names = append(names, name(v))
	}
	return names
}
