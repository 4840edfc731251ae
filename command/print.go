package command

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"p2ptun/proto"
)

// printJSON prints one object on a line.
func (t *tool) printJSON(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(t.Out, string(line))
	return err
}

// withEventFirst makes "event" the first key of a JSON object, as the contract
// has it; encoding/json sorts the keys of a map.
func withEventFirst(line []byte, event string) []byte {
	var fields map[string]any
	if json.Unmarshal(line, &fields) != nil {
		return line
	}
	delete(fields, "event")
	rest, err := json.Marshal(fields)
	if err != nil {
		return line
	}
	return []byte(fmt.Sprintf(`{"event":%q,%s`, event, rest[1:]))
}

// note tells a person something that is neither result nor error.
func (t *tool) note(format string, args ...any) {
	if !t.quiet {
		fmt.Fprintf(t.Err, "p2ptun: %s\n", shown(fmt.Sprintf(format, args...)))
	}
}

// shown makes a text safe for a terminal and a log: no control character, no
// secret of an invite.
func shown(text string) string { return proto.Printable(proto.Redact(text), maxShown) }

// redacting takes the secrets of invites out of what is written, line by line.
type redacting struct{ io.Writer }

func (r redacting) Write(b []byte) (int, error) {
	if _, err := io.WriteString(r.Writer, proto.Redact(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// table prints rows in columns, with a header for a person or when asked.
func (t *tool) table(header bool, columns []string, rows [][]string) error {
	w := tabwriter.NewWriter(t.Out, 0, 8, 2, ' ', 0)
	if header || isTerminal(t.Out) {
		fmt.Fprintln(w, strings.Join(columns, "\t"))
	}
	for _, row := range rows {
		for i, cell := range row {
			if row[i] = proto.Printable(cell, maxShown); cell == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// size shows bytes as a person reads them.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n)/unit, 0
	for ; value >= unit && i < 4; i++ {
		value /= unit
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[i])
}

// customFor is what a command to paste has on top for a protocol outside /x/.
func customFor(protocol string) string {
	if strings.HasPrefix(protocol, proto.Namespace) {
		return ""
	}
	return " --allow-custom-protocol"
}

// named is a protocol as a command to paste has it.
func named(protocol string) string { return proto.ShellQuote(protocol) + customFor(protocol) }
