package measure

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"benchmark/load"
	"benchmark/peers"
	"benchmark/report"
)

// newRunner runs works over no tunnel at all, and over one that does not start.
func newRunner(t *testing.T, works ...Work) (*Runner, *report.Results) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = load.Serve(l) }()
	t.Cleanup(func() { l.Close() })
	got := &report.Results{}
	direct := func(name string, err error) *peers.Peer {
		return &peers.Peer{Name: name, Forward: func(_ context.Context, t *peers.Tunnel) error {
			t.Addr = t.Service
			return err
		}}
	}
	return &Runner{
		Options: Options{Size: 1 << 20, Time: 10 * time.Millisecond},
		Place:   peers.Place{Service: l.Addr().String()},
		Peers:   []*peers.Peer{direct("one", nil), direct("two", nil), direct("broken", errors.New("does not start"))},
		Works:   works, Rounds: 2, Log: io.Discard,
		Record: func(r report.Result) { *got = append(*got, r) },
	}, got
}

func TestEachWorkGivesItsMeasures(t *testing.T) {
	works := slices.DeleteFunc(Works(), func(w Work) bool { return w.Fresh })
	r, got := newRunner(t, works...)
	if err := r.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, w := range works {
		for _, m := range w.Gives {
			if _, ok := report.Lookup(m); !ok {
				t.Errorf("no table has %s", m)
			}
			if got.Failure(m, "broken") != "broken: does not start" {
				t.Errorf("%s: %q", m, got.Failure(m, "broken"))
			}
		}
		if f, ok := got.Figure(w.Gives[0], "one"); !ok || f.Median <= 0 {
			t.Errorf("%s: %+v", w.Gives[0], f)
		}
	}
}

func TestPeersHaveTheirTurnInAnOrderThatRotates(t *testing.T) {
	r, got := newRunner(t, bulk(load.Up, 1))
	if err := r.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, v := range *got {
		if v.Measure == "goodput-up-1" {
			order = append(order, v.Peer)
		}
	}
	if want := []string{"one", "two", "broken", "two", "broken", "one"}; !slices.Equal(order, want) {
		t.Errorf("got %v, want %v", order, want)
	}
}

func TestWhatMemoryGaveBeforeARefusalStays(t *testing.T) {
	r, got := newRunner(t, Work{Name: "memory", Gives: []string{"memory-1000", "memory-9000"}, Run: func(_ context.Context, _ Options, _ *peers.Tunnel, v Values) error {
		v["memory-1000"] = 50
		return errors.New("refused at 1763: EOF")
	}})
	r.Rounds = 1
	if err := r.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if f, ok := got.Figure("memory-1000", "one"); !ok || f.Median != 50 || got.Failure("memory-1000", "one") != "" {
		t.Errorf("at 1,000: %+v, %v", f, ok)
	}
	if got.Failure("memory-9000", "one") == "" {
		t.Error("no failure at 9,000")
	}
}
