package report

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// Peer is a row of the tables.
type Peer struct{ Name, Title string }

// Own is the peer that the others are compared with.
const Own = "p2ptun"

// Tables writes all tables in Markdown. A cell has the median, the lowest and
// the highest, and the ratio p2ptun ÷ peer.
func (rs Results) Tables(peers []Peer) string {
	var b strings.Builder
	var order []string
	titles := map[string]string{}
	for _, p := range peers {
		order = append(order, p.Name)
		titles[p.Name] = p.Title
	}
	for _, g := range Groups() {
		measures := rs.measured(g.Measures)
		rows := rs.peers(order, measures)
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "### %s\n\n|", g.Title)
		for _, m := range measures {
			fmt.Fprintf(&b, " | %s", m.Title)
		}
		fmt.Fprintf(&b, " |\n|---|%s\n", strings.Repeat("---|", len(measures)))
		for _, p := range rows {
			fmt.Fprintf(&b, "| %s |", titles[p])
			for _, m := range measures {
				fmt.Fprintf(&b, " %s |", rs.cell(m.Name, p))
			}
			b.WriteByte('\n')
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// measured leaves out the measures that nobody has.
func (rs Results) measured(all []Measure) (some []Measure) {
	there := map[string]bool{}
	for _, r := range rs {
		there[r.Measure] = true
	}
	for _, m := range all {
		if there[m.Name] {
			some = append(some, m)
		}
	}
	return some
}

func (rs Results) cell(measure, peer string) string {
	f, ok := rs.Figure(measure, peer)
	failure := short(rs.Failure(measure, peer))
	if !ok {
		return failure
	}
	text := number(f.Median)
	if f.Min != f.Max {
		text += fmt.Sprintf(" (%s–%s)", number(f.Min), number(f.Max))
	}
	if ratio, ok := rs.Ratio(measure, Own, peer); ok && peer != Own {
		text += " **" + ratioText(ratio) + "**"
	}
	if failure != "" {
		text += "; once " + failure
	}
	return text
}

// stopped is how a peer's error begins that did not hold all connections.
var stopped = regexp.MustCompile(`(refused|too slow) at (\d+)`)

// short is an error for a cell.
func short(text string) string {
	if m := stopped.FindStringSubmatch(text); m != nil {
		n, _ := strconv.Atoi(m[2])
		return m[1] + " at " + thousands(n)
	}
	if text != "" {
		return "failed"
	}
	return ""
}

// thousands writes a whole number with commas.
func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// number has three digits that count, and whole numbers from 100 on.
func number(v float64) string {
	switch abs := math.Abs(v); {
	case abs >= 100:
		return thousands(int(math.Round(v)))
	case abs >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case abs >= 1 || v == 0:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

func ratioText(v float64) string { return "×" + strconv.FormatFloat(v, 'f', 2, 64) }
