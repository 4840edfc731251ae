// Package report makes tables, a picture and a verdict of what was measured.
package report

import (
	"math"
	"slices"
)

// Result is one figure of one round, or why there is none: a line of JSON.
type Result struct {
	Measure string  `json:"measure"`
	Unit    string  `json:"unit"`
	Peer    string  `json:"peer"`
	Round   int     `json:"round"`
	Value   float64 `json:"value"`
	Error   string  `json:"error,omitempty"`
}

// Results are those of a run.
type Results []Result

// Figure is what several rounds gave.
type Figure struct{ Median, Min, Max float64 }

// Median is the middle of the values, 0 of none.
func Median(values []float64) float64 { return Quantile(values, 0.5) }

// Quantile is the value below which that part of all is; between two values it
// is interpolated.
func Quantile(values []float64, part float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	at := part * float64(len(sorted)-1)
	low := int(math.Floor(at))
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// rounds gives a peer's values of a measure by round.
func (rs Results) rounds(measure, peer string) map[int]float64 {
	values := map[int]float64{}
	for _, r := range rs {
		if r.Measure == measure && r.Peer == peer && r.Error == "" {
			values[r.Round] = r.Value
		}
	}
	return values
}

// Figure is what a peer had in a measure; ok is false where it had none.
func (rs Results) Figure(measure, peer string) (f Figure, ok bool) {
	var values []float64
	for _, v := range rs.rounds(measure, peer) {
		values = append(values, v)
	}
	if len(values) == 0 {
		return Figure{}, false
	}
	return Figure{Median(values), slices.Min(values), slices.Max(values)}, true
}

// Ratio is one peer's figure divided by another's: the median of the ratios of
// each round.
func (rs Results) Ratio(measure, peer, other string) (ratio float64, ok bool) {
	others := rs.rounds(measure, other)
	var ratios []float64
	for round, v := range rs.rounds(measure, peer) {
		if o := others[round]; o > 0 {
			ratios = append(ratios, v/o)
		}
	}
	return Median(ratios), len(ratios) > 0
}

// Failure is why a peer has no figure in a measure, if it was tried.
func (rs Results) Failure(measure, peer string) string {
	for _, r := range rs {
		if r.Measure == measure && r.Peer == peer && r.Error != "" {
			return r.Error
		}
	}
	return ""
}

// peers lists those that have a result of these measures, in that order.
func (rs Results) peers(order []string, measures []Measure) (there []string) {
	for _, p := range order {
		if slices.ContainsFunc(rs, func(r Result) bool {
			return r.Peer == p && slices.ContainsFunc(measures, func(m Measure) bool { return m.Name == r.Measure })
		}) {
			there = append(there, p)
		}
	}
	return there
}
