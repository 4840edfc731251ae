package report

import (
	"fmt"
	"strings"
)

// Target is what p2ptun is to reach in a measure: a figure, or a ratio to the
// best of some peers.
type Target struct {
	Measure string
	Peers   []string // none: Want is the figure itself
	Want    float64  // where less is better at most, else at least
}

var (
	kubos    = []string{"kubo-tls", "kubo-noise", "kubo-quic"}
	kubosTCP = kubos[:2]
)

// Targets are those of p2ptun.
func Targets() (all []Target) {
	for _, way := range []string{"up-1", "down-1", "up-8", "down-8"} {
		cpu, goodput := "cpu-"+way, "goodput-"+way
		all = append(all,
			Target{cpu, []string{"ssh"}, 1}, Target{cpu, kubosTCP, 0.6}, Target{cpu, []string{"tls-pair"}, 1.3},
			Target{goodput, []string{"ssh"}, 1}, Target{goodput, kubos, 1.5},
			Target{goodput, []string{"stunnel"}, 1}, Target{goodput, []string{"chisel"}, 1}, Target{goodput, []string{"frp"}, 1},
		)
	}
	return append(all,
		Target{"conns-8", []string{"ssh"}, 1}, Target{"conns-8", kubos, 2}, Target{"requests-8", kubos, 1.5},
		Target{"ping-p50", kubos, 0.8}, Target{"ping-bulk-p50", kubos, 1},
		Target{"ping-four-p50", nil, 5}, Target{"ping-four-p99", nil, 30},
		Target{"memory-9000", nil, 24}, Target{"ready-offer", nil, 60}, Target{"ready-forward", nil, 60},
		Target{"rss", nil, 30}, Target{"binary", nil, 30},
		Target{"lab-100-down", []string{"tcp"}, 0.95}, Target{"lab-100-up", []string{"tcp"}, 0.95},
		Target{"lab-100-loss-down", []string{"tcp"}, 3}, Target{"lab-100-loss-up", []string{"tcp"}, 3},
	)
}

// Verdict is what became of a target.
type Verdict struct {
	Target
	Known bool // whether it was measured
	Met   bool
	Got   float64
	Best  string // the peer that it was held against
}

// Judge holds the results against a target.
func (rs Results) Judge(t Target) Verdict {
	m, _ := Lookup(t.Measure)
	v := Verdict{Target: t}
	if len(t.Peers) == 0 {
		f, ok := rs.Figure(t.Measure, Own)
		v.Got, v.Known = f.Median, ok
	} else if v.Best = rs.best(m, t.Peers); v.Best != "" {
		v.Got, v.Known = rs.Ratio(t.Measure, Own, v.Best)
	}
	v.Met = v.Known && (m.Lower && v.Got <= t.Want || !m.Lower && v.Got >= t.Want)
	return v
}

// best is the peer with the best median.
func (rs Results) best(m Measure, peers []string) (name string) {
	var best float64
	for _, p := range peers {
		f, ok := rs.Figure(m.Name, p)
		if ok && (name == "" || (f.Median < best) == m.Lower) {
			name, best = p, f.Median
		}
	}
	return name
}

// Verdicts writes all targets as a Markdown table.
func (rs Results) Verdicts() string {
	var b strings.Builder
	b.WriteString("| p2ptun | wanted | got | |\n|---|---|---|---|\n")
	for _, t := range Targets() {
		v := rs.Judge(t)
		word := map[bool]string{true: "met", false: "**not met**"}[v.Met]
		if !v.Known {
			fmt.Fprintf(&b, "| %s | %s | | not measured |\n", t.title(), t.wanted())
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", t.title(), t.wanted(), v.got(), word)
	}
	return b.String()
}

// title names the measure by its table and its column.
func (t Target) title() string {
	for _, g := range Groups() {
		for _, m := range g.Measures {
			if m.Name == t.Measure {
				name, _, _ := strings.Cut(g.Title, ",")
				name, _, _ = strings.Cut(name, ":")
				return name + ": " + m.Title
			}
		}
	}
	return t.Measure
}

func (t Target) wanted() string {
	m, _ := Lookup(t.Measure)
	sign := map[bool]string{true: "≤", false: "≥"}[m.Lower]
	if len(t.Peers) == 0 {
		return fmt.Sprintf("%s %g %s", sign, t.Want, m.Unit)
	}
	of := strings.Join(t.Peers, ", ")
	if len(t.Peers) > 1 {
		of = "best of " + of
	}
	return fmt.Sprintf("%s %g × %s", sign, t.Want, of)
}

func (v Verdict) got() string {
	m, _ := Lookup(v.Measure)
	if len(v.Peers) == 0 {
		return number(v.Got) + " " + m.Unit
	}
	return fmt.Sprintf("%.2f × %s", v.Got, v.Best)
}
