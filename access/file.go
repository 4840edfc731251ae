package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"p2ptun/home"
	"p2ptun/proto"
)

// The file: one rule a line, `allow|deny PROTOCOL PEER [until=TIME]`, with TIME
// as in RFC 3339; a word that starts with `#` starts a comment.

// Bounds of the file.
const (
	maxRules = 10_000
	maxLine  = 4096
)

// Rule is one line of the file.
type Rule struct {
	Allow    bool      `json:"allow"`
	Protocol string    `json:"protocol"`
	Peer     string    `json:"peer"`
	Until    time.Time `json:"until,omitzero"` // zero: for ever
	Comment  string    `json:"comment,omitempty"`
}

func (r Rule) expired(now time.Time) bool { return !r.Until.IsZero() && !now.Before(r.Until) }

// check refuses a rule that would not be read back from its line as it is: it
// would lock everybody out, or let others in.
func (r Rule) check() error {
	back, err := parseLine(r.String())
	switch {
	case err != nil:
		return fmt.Errorf("rule: %w", err)
	case back == nil || back.String() != r.String() || strings.ContainsAny(r.Comment, "\r\n"):
		return fmt.Errorf("rule %s does not fit a line of the file", proto.Printable(r.String(), maxLine))
	}
	return nil
}

func (r Rule) String() string {
	word := "deny"
	if r.Allow {
		word = "allow"
	}
	s := word + " " + r.Protocol + " " + r.Peer
	if !r.Until.IsZero() {
		s += " until=" + r.Until.UTC().Format(time.RFC3339)
	}
	if r.Comment != "" {
		s += " # " + r.Comment
	}
	return s
}

// LineError says which line of the file can't be read.
type LineError struct {
	Path string
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("%s: line %d: %v", e.Path, e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// line is a line of the file as it stands, with its rule if it holds one.
type line struct {
	text string
	rule *Rule
}

func parse(path string, data []byte) ([]line, error) {
	var lines []line
	rules := 0
	for i, text := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		rule, err := parseLine(strings.TrimSuffix(text, "\r"))
		if rule != nil {
			rules++
		}
		if err == nil && rules > maxRules {
			err = fmt.Errorf("more than %d rules", maxRules)
		}
		if err != nil {
			return nil, &LineError{Path: path, Line: i + 1, Err: err}
		}
		lines = append(lines, line{text: text, rule: rule})
	}
	return lines, nil
}

func parseLine(text string) (*Rule, error) {
	if len(text) > maxLine {
		return nil, fmt.Errorf("longer than %d bytes", maxLine)
	}
	text, comment := cutComment(text)
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil, nil
	}
	if len(words) < 3 {
		return nil, errors.New("want: allow|deny PROTOCOL PEER [until=TIME]")
	}
	rule := &Rule{Comment: strings.TrimSpace(comment)}
	switch words[0] {
	case "allow":
		rule.Allow = true
	case "deny":
	default:
		return nil, fmt.Errorf("%s is neither allow nor deny", proto.Printable(words[0], 64))
	}
	if err := rule.subject(words[1], words[2]); err != nil {
		return nil, err
	}
	return rule, rule.options(words[3:])
}

// cutComment: a protocol name may hold a #, but not start with one.
func cutComment(text string) (rule, comment string) {
	for i, c := range text {
		if c == '#' && (i == 0 || text[i-1] == ' ' || text[i-1] == '\t') {
			return text[:i], text[i+1:]
		}
	}
	return text, ""
}

func (r *Rule) subject(protocol, id string) (err error) {
	if r.Protocol, err = proto.ParseProtocol(protocol, true); err != nil {
		return err
	}
	p, err := proto.ParsePeer(id)
	if err != nil || p.ID == "" {
		return fmt.Errorf("%s is not a peer ID", proto.Printable(id, 128))
	}
	r.Peer = p.ID.String()
	return nil
}

func (r *Rule) options(words []string) error {
	for _, word := range words {
		value, ok := strings.CutPrefix(word, "until=")
		if !ok {
			return fmt.Errorf("unknown option %s", proto.Printable(word, 64))
		}
		until, err := time.Parse(time.RFC3339, value)
		if err != nil {
			return fmt.Errorf("until: %s is not a time like 2006-01-02T15:04:05Z", proto.Printable(value, 64))
		}
		r.Until = until
	}
	return nil
}

const preamble = `# Who may use what here: one rule a line.
#   allow|deny PROTOCOL PEER [until=2006-01-02T15:04:05Z]  # comment
# A deny wins. Changes take effect at once, on live connections too.
`

// Set puts a rule into the file at path in place of all others for the same
// peer and protocol. Other lines, and comments, stay as they are. A file that
// can't be read, or that others may write to, is not touched.
func Set(ctx context.Context, path string, rule Rule) error {
	rule.Comment = strings.TrimSpace(rule.Comment)
	if err := rule.check(); err != nil {
		return err
	}
	return home.Edit(ctx, path, func(old []byte) ([]byte, error) {
		if info, err := os.Stat(path); err == nil && home.OthersMayWrite(info) {
			return nil, &home.UnsafeError{Path: path}
		}
		if len(old) == 0 {
			old = []byte(preamble)
		}
		lines, err := parse(path, old)
		if err != nil {
			return nil, err
		}
		return render(place(lines, rule)), nil
	})
}

// place replaces the first rule about the same thing, and drops the others.
func place(lines []line, rule Rule) []line {
	placed := false
	lines = slices.DeleteFunc(lines, func(l line) bool {
		if l.rule == nil || l.rule.Protocol != rule.Protocol || l.rule.Peer != rule.Peer {
			return false
		}
		if rule.Comment == "" {
			rule.Comment = l.rule.Comment
		}
		first := !placed
		placed = true
		return !first
	})
	for i, l := range lines {
		if l.rule != nil && l.rule.Protocol == rule.Protocol && l.rule.Peer == rule.Peer {
			lines[i] = line{text: rule.String(), rule: &rule}
			return lines
		}
	}
	return append(lines, line{text: rule.String(), rule: &rule})
}

func render(lines []line) []byte {
	var out bytes.Buffer
	for _, l := range lines {
		out.WriteString(l.text)
		out.WriteByte('\n')
	}
	return out.Bytes()
}

// List reads the rules of the file at path, in its order; an expired one is
// listed too.
func List(path string) ([]Rule, error) {
	data, err := home.ReadFile(path)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	lines, err := parse(path, data)
	if err != nil {
		return nil, err
	}
	var rules []Rule
	for _, l := range lines {
		if l.rule != nil {
			rules = append(rules, *l.rule)
		}
	}
	return rules, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
