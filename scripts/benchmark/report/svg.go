package report

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// The picture: some panels, each a measure, with a bar for each peer.

// panel is one of them.
type panel struct{ measure, title string }

var panels = []panel{
	{"goodput-down-1", "goodput, one connection, MB/s (more is better)"},
	{"cpu-down-1", "CPU-seconds per GiB (less is better)"},
	{"conns-8", "new connections/s, 8 at once (more is better)"},
	{"memory-1000", "KiB for one idle connection, at 1,000 (less is better)"},
}

const (
	panelWidth, panelGap = 410, 20
	nameWidth, barHeight = 130, 16
	rowHeight, headRoom  = 21, 34
	valueWidth           = 62
)

// leftOut are peers beside whose bars all others would be stumps.
var leftOut = []string{"splice", "tcp"}

// SVG draws it, of those peers that have figures.
func (rs Results) SVG(peers []Peer) string {
	var order []string
	for _, p := range peers {
		if !slices.Contains(leftOut, p.Name) {
			order = append(order, p.Name)
		}
	}
	var drawn strings.Builder
	height := 0
	for row := 0; row < len(panels); row += 2 {
		tallest := 0
		for column := range 2 {
			text, tall := rs.panel(panels[row+column], order, column*(panelWidth+panelGap), height)
			drawn.WriteString(text)
			tallest = max(tallest, tall)
		}
		height += tallest
	}
	width := 2*panelWidth + panelGap
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="#ffffff"/>
%s</svg>
`, width, height, width, height, &drawn)
}

// panel draws one at a place and says how tall it is.
func (rs Results) panel(p panel, order []string, x, y int) (string, int) {
	m, _ := Lookup(p.measure)
	names := rs.peers(order, []Measure{m})
	most := 0.0
	for _, name := range names {
		f, _ := rs.Figure(p.measure, name)
		most = max(most, f.Median)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" font-weight=\"bold\" fill=\"#222222\">%s</text>\n", x+8, y+22, html.EscapeString(p.title))
	for i, name := range names {
		b.WriteString(rs.bar(p.measure, name, most, x, y+headRoom+i*rowHeight))
	}
	return b.String(), headRoom + len(names)*rowHeight + 10
}

// bar draws one peer's, with its figure behind it.
func (rs Results) bar(measure, name string, most float64, x, y int) string {
	f, ok := rs.Figure(measure, name)
	text, length, color := number(f.Median), 0.0, "#9aa5b1"
	if !ok {
		text = short(rs.Failure(measure, name))
	} else if most > 0 {
		length = f.Median / most * (panelWidth - nameWidth - valueWidth)
	}
	if name == Own {
		color = "#1f6feb"
	}
	left := x + nameWidth
	return fmt.Sprintf("<text x=\"%d\" y=\"%d\" text-anchor=\"end\" fill=\"#222222\">%s</text>\n", left-6, y+barHeight-4, html.EscapeString(name)) +
		fmt.Sprintf("<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", left, y, length, barHeight, color) +
		fmt.Sprintf("<text x=\"%.1f\" y=\"%d\" fill=\"#222222\">%s</text>\n", float64(left)+length+5, y+barHeight-4, html.EscapeString(text))
}
