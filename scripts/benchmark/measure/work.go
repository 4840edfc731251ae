// Package measure does the work over each tunnel and writes down what it gave.
package measure

import (
	"context"
	"time"

	"benchmark/load"
	"benchmark/peers"
	"benchmark/report"
)

// Options say how much work is done.
type Options struct {
	Size   int64         // bytes of a transfer
	Time   time.Duration // of a measure that goes by time
	Counts []int         // of idle connections
}

// Values are what a work gave, by measure.
type Values map[string]float64

// Work is one thing that is done over a tunnel.
type Work struct {
	Name  string
	Fresh bool     // over a tunnel of its own
	Gives []string // measures; a failure is one of all these
	Run   func(ctx context.Context, o Options, t *peers.Tunnel, v Values) error
}

// Works are those of loopback.
func Works() (works []Work) {
	for _, way := range []string{load.Up, load.Down, load.Both} {
		works = append(works, bulk(way, 1), bulk(way, 8))
	}
	return append(works,
		pings("ping", 0, 0), pings("ping-bulk", 1, 50e6), pings("ping-four", 4, 0),
		connections("conns-1", 1), connections("conns-8", 8), connections("conns-32", 32),
		requests("requests-1", 1), requests("requests-8", 8),
		Work{Name: "memory", Fresh: true, Gives: []string{"memory-1000", "memory-9000", "memory-10000"}, Run: memory},
		Work{Name: "start", Fresh: true, Gives: []string{"rss", "ready-offer", "ready-forward", "first-byte"}, Run: start},
	)
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// bulk moves bytes over that many connections.
func bulk(way string, conns int) Work {
	suffix := map[int]string{1: "-1", 8: "-8"}[conns]
	goodput, cpu := "goodput-"+way+suffix, "cpu-"+way+suffix
	return Work{Name: "bulk-" + way + suffix, Gives: []string{goodput, cpu}, Run: func(ctx context.Context, o Options, t *peers.Tunnel, v Values) error {
		before := t.CPU()
		took, err := load.Transfer(ctx, t.Addr, way, conns, o.Size)
		if err != nil {
			return err
		}
		v[goodput] = float64(o.Size) / 1e6 / took.Seconds()
		if len(t.Nodes) > 0 {
			v[cpu] = (t.CPU() - before).Seconds() * (1 << 30) / float64(o.Size)
		}
		return nil
	}}
}

// pingPause is the time from one ping to the next.
const pingPause = 2 * time.Millisecond

// pings bounces bytes beside that many downloads.
func pings(name string, beside int, perSecond int64) Work {
	return Work{Name: name, Gives: []string{name + "-p50", name + "-p99"}, Run: func(ctx context.Context, o Options, t *peers.Tunnel, v Values) (err error) {
		if beside > 0 {
			bulk, err := load.StartBulk(ctx, t.Addr, beside, perSecond)
			if err != nil {
				return err
			}
			defer func() {
				got, berr := bulk.Stop()
				if err == nil {
					err = berr
				}
				v[name+"-beside"] = got / 1e6
			}()
		}
		took, err := load.Pings(ctx, t.Addr, pingPause, o.Time)
		var ms []float64
		for _, d := range took {
			ms = append(ms, milliseconds(d))
		}
		v[name+"-p50"], v[name+"-p99"] = report.Median(ms), report.Quantile(ms, 0.99)
		return err
	}}
}

func connections(name string, workers int) Work {
	gives := []string{name}
	if workers == 8 {
		gives = append(gives, "cpu-"+name)
	}
	return Work{Name: name, Gives: gives, Run: func(ctx context.Context, o Options, t *peers.Tunnel, v Values) (err error) {
		before, began := t.CPU(), time.Now()
		if v[name], err = load.Connections(ctx, t.Addr, workers, o.Time); err != nil || workers != 8 || len(t.Nodes) == 0 {
			return err
		}
		v["cpu-"+name] = milliseconds(t.CPU()-before) / (v[name] * time.Since(began).Seconds())
		return nil
	}}
}

func requests(name string, conns int) Work {
	return Work{Name: name, Gives: []string{name}, Run: func(ctx context.Context, o Options, t *peers.Tunnel, v Values) (err error) {
		v[name], err = load.Requests(ctx, t.Addr, conns, 16<<10, o.Time)
		return err
	}}
}

// holdTime is how long a peer may take for all idle connections: ssh needs the
// longer for each the more there are.
const holdTime = time.Minute

// memory holds idle connections. What it gave before a peer refused stays.
func memory(ctx context.Context, o Options, t *peers.Tunnel, v Values) error {
	if len(t.Nodes) == 0 {
		return nil
	}
	before := t.RSS()
	names := map[int]string{1000: "memory-1000", 9000: "memory-9000", 10000: "memory-10000"}
	return load.Hold(ctx, t.Addr, o.Counts, holdTime, func(n int) {
		v[names[n]] = float64(t.RSS()-before) / 1024 / float64(n)
	})
}

// start writes down how the tunnel has started.
func start(_ context.Context, _ Options, t *peers.Tunnel, v Values) error {
	if len(t.Nodes) == 0 {
		return nil
	}
	v["ready-offer"], v["ready-forward"] = milliseconds(t.OfferReady), milliseconds(t.ForwardReady)
	v["first-byte"] = milliseconds(t.FirstByte)
	for _, n := range t.Nodes {
		v["rss"] = max(v["rss"], float64(n.RSS())/1e6)
	}
	return nil
}
