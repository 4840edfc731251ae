package report

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// Run says how the figures were made: the first line of a file of results.
type Run struct {
	Machine  string            `json:"machine"`
	Rounds   int               `json:"rounds"`
	SizeMiB  int64             `json:"size_mib"`
	Seconds  float64           `json:"seconds"`
	Versions map[string]string `json:"versions"`
	Skipped  []string          `json:"skipped,omitempty"`
}

// Read reads files of results, the rounds of one after those of the other; what one
// says of its run is taken from the first.
func Read(names []string) (run Run, rs Results, err error) {
	before := 0
	for i, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return run, nil, err
		}
		one, more, err := read(f)
		f.Close()
		if err != nil {
			return run, nil, fmt.Errorf("%s: %w", name, err)
		}
		if i == 0 {
			run = one
		}
		last := before
		for _, r := range more {
			r.Round += before
			last = max(last, r.Round)
			rs = append(rs, r)
		}
		before = last
	}
	return run, rs, nil
}

func read(in io.Reader) (run Run, rs Results, err error) {
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return run, nil, fmt.Errorf("no line: %w", io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(lines.Bytes(), &run); err != nil {
		return run, nil, err
	}
	for lines.Scan() {
		var r Result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return run, nil, err
		}
		rs = append(rs, r)
	}
	return run, rs, lines.Err()
}

// The markers between which the tables are in the document.
const (
	begin = "<!-- scripts/bench: begin -->"
	end   = "<!-- scripts/bench: end -->"
)

// Replace puts text between the markers of a document.
func Replace(document, text string) (string, error) {
	before, rest, found := strings.Cut(document, begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		return "", fmt.Errorf("no lines %s and %s", begin, end)
	}
	return before + begin + "\n\n" + strings.TrimSpace(text) + "\n\n" + end + after, nil
}

// String is the first line of what is shown.
func (r Run) String() string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		names = append(names, name+" "+r.Versions[name])
	}
	text := fmt.Sprintf("%s; %d rounds, %d MiB a transfer, %g s for what goes by time. %s.\n",
		r.Machine, r.Rounds, r.SizeMiB, r.Seconds, strings.Join(names, ", "))
	if len(r.Skipped) > 0 {
		text += "Skipped, not here: " + strings.Join(r.Skipped, ", ") + ".\n"
	}
	return text + "Median (lowest–highest); in bold p2ptun ÷ that row, the median of the rounds' ratios.\n"
}
