package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"p2ptun/home"
	"p2ptun/proto"
)

// The file: one thing a line, and a word that starts with `#` starts a comment.
//
//	allow|deny PROTOCOL PEER|@GROUP [until=TIME] [max-streams=N] [max-rate=BYTES]
//	group NAME PEER...
//	invite ID PROTOCOL uses=N until=TIME secret=HASH
//	used ID PEER
//
// TIME is as in RFC 3339, HASH as hashOf gives it, a rate is a second's.

// Bounds of the file.
const (
	maxRules    = 10_000  // lines that are not blank or a comment
	maxExpanded = 100_000 // rules, with those on groups counted for each peer
	maxInvites  = 1000
	maxLine     = 4096
)

// MaxUses bounds the uses of one invite.
const MaxUses = 1000

// Rule says that a peer, or a group, may use a protocol, or may not.
type Rule struct {
	Allow    bool      `json:"allow"`
	Protocol string    `json:"protocol"`
	Peer     string    `json:"peer"`           // @NAME for a group
	Until    time.Time `json:"until,omitzero"` // zero: for ever
	// MaxStreams and MaxRate (bytes a second each way) are what an allowed
	// peer may use of that protocol, instead of what the tunnel says for each
	// peer. Zero: as the tunnel says.
	MaxStreams int    `json:"max_streams,omitempty"`
	MaxRate    int64  `json:"max_rate,omitempty"`
	Comment    string `json:"comment,omitempty"`
}

func (r Rule) expired(now time.Time) bool { return !r.Until.IsZero() && !now.Before(r.Until) }

// isGroup says whether the rule is about a group, and which.
func (r Rule) isGroup() (name string, ok bool) { return strings.CutPrefix(r.Peer, "@") }

// check refuses a rule that would not be read back from its line as it is: it
// would lock everybody out, or let others in.
func (r Rule) check() error {
	back, err := parseLine(r.String())
	switch {
	case err != nil:
		return fmt.Errorf("rule: %w", err)
	case back.rule == nil || back.rule.String() != r.String() || strings.ContainsAny(r.Comment, "\r\n"):
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
		s += untilText(r.Until)
	}
	if r.MaxStreams != 0 {
		s += fmt.Sprintf(" max-streams=%d", r.MaxStreams)
	}
	if r.MaxRate != 0 {
		s += fmt.Sprintf(" max-rate=%d", r.MaxRate)
	}
	return s + commentText(r.Comment)
}

func untilText(t time.Time) string { return " until=" + t.UTC().Format(time.RFC3339) }

func commentText(comment string) string {
	if comment == "" {
		return ""
	}
	return " # " + comment
}

// LineError says which line of the file can't be read.
type LineError struct {
	Path string
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("%s: line %d: %v", e.Path, e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// Hint is what mends it.
func (e *LineError) Hint() string { return fmt.Sprintf("edit line %d of %s", e.Line, e.Path) }

// line is a line of the file as it stands, with what it says: one of these at
// most.
type line struct {
	text   string
	rule   *Rule
	group  *Group
	invite *Invite
	used   *use
}

func (l line) isEmpty() bool {
	return l.rule == nil && l.group == nil && l.invite == nil && l.used == nil
}

func parse(path string, data []byte) ([]line, error) {
	var lines []line
	rules := 0
	for i, text := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		l, err := parseLine(strings.TrimSuffix(text, "\r"))
		if !l.isEmpty() {
			rules++
		}
		if err == nil && rules > maxRules {
			err = fmt.Errorf("more than %d rules", maxRules)
		}
		if err != nil {
			return nil, &LineError{Path: path, Line: i + 1, Err: err}
		}
		l.text = text
		lines = append(lines, l)
	}
	return lines, nil
}

// parseLine reads one line; its text is the caller's to fill in.
func parseLine(text string) (l line, err error) {
	if len(text) > maxLine {
		return l, fmt.Errorf("longer than %d bytes", maxLine)
	}
	text, comment := cutComment(text)
	comment = strings.TrimSpace(comment)
	words := strings.Fields(text)
	if len(words) == 0 {
		return l, nil
	}
	switch words[0] {
	case "allow", "deny":
		l.rule, err = parseRule(words, comment)
	case "group":
		l.group, err = parseGroup(words[1:])
	case "invite":
		l.invite, err = parseInvite(words[1:], comment)
	case "used":
		l.used, err = parseUse(words[1:])
	default:
		err = fmt.Errorf("%s is none of allow, deny, group, invite, used", proto.Printable(words[0], 64))
	}
	if err != nil {
		return line{}, err
	}
	return l, nil
}

func parseRule(words []string, comment string) (*Rule, error) {
	if len(words) < 3 {
		return nil, errors.New("want: allow|deny PROTOCOL PEER [until=TIME]")
	}
	rule := &Rule{Allow: words[0] == "allow", Comment: comment}
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

func (r *Rule) subject(protocol, who string) (err error) {
	if r.Protocol, err = proto.ParseProtocol(protocol, true); err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(who, "@"); ok {
		r.Peer = who
		return CheckGroupName(name)
	}
	r.Peer, err = parseID(who)
	return err
}

func parseID(text string) (string, error) {
	p, err := proto.ParsePeer(text)
	if err != nil || p.ID == "" {
		return "", fmt.Errorf("%s is not a peer ID", proto.Printable(text, 128))
	}
	return p.ID.String(), nil
}

func (r *Rule) options(words []string) (err error) {
	seen := map[string]bool{}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		if seen[key] {
			return fmt.Errorf("%s is there twice", proto.Printable(key, 64))
		}
		seen[key] = true
		switch key {
		case "until":
			r.Until, err = parseTime(value)
		case "max-streams":
			r.MaxStreams, err = parseNumber[int](key, value, math.MaxInt32)
		case "max-rate":
			r.MaxRate, err = parseNumber[int64](key, value, math.MaxInt64)
		default:
			err = fmt.Errorf("unknown option %s", proto.Printable(word, 64))
		}
		if err != nil {
			return err
		}
	}
	if !r.Allow && (r.MaxStreams != 0 || r.MaxRate != 0) {
		return errors.New("a limit is for an allow")
	}
	return nil
}

func parseTime(value string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339, value)
	if err != nil || at.IsZero() {
		return time.Time{}, fmt.Errorf("until: %s is not a time like 2006-01-02T15:04:05Z", proto.Printable(value, 64))
	}
	return at, nil
}

// parseNumber takes 1 to most.
func parseNumber[T int | int64](key, value string, most int64) (T, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("%s: %s is not a number from 1 to %d", key, proto.Printable(value, 64), most)
	}
	return T(n), nil
}

const preamble = `# Who may use what here: one rule a line.
#   allow|deny PROTOCOL PEER|@GROUP [until=2006-01-02T15:04:05Z] [max-streams=N] [max-rate=BYTES]  # comment
#   group NAME PEER...
# A deny wins. Changes take effect at once, on live connections too.
# Lines of invites are written by p2ptun; a line taken out takes its rights away.
`

// Set puts a rule into the file at path in place of all others for the same
// peer and protocol. Other lines, and comments, stay as they are. A file that
// can't be read, or that others may write to, is not touched. Errors:
// *ClockError, for a rule with a time; ErrNoGroup; *DeniedError.
func Set(ctx context.Context, path string, rule Rule) error {
	rule.Comment = strings.TrimSpace(rule.Comment)
	if err := rule.check(); err != nil {
		return err
	}
	if !rule.Until.IsZero() {
		if err := checkClock(path); err != nil {
			return err
		}
	}
	return edit(ctx, path, func(lines []line) ([]line, error) {
		if name, ok := rule.isGroup(); ok && lastGroupLine(lines, name) < 0 {
			return nil, fmt.Errorf("not written: %w: %s", ErrNoGroup, name)
		}
		if denial, ok := beaten(lines, rule, time.Now()); ok {
			return nil, &DeniedError{Peer: rule.Peer, Denial: denial}
		}
		return place(lines, rule), nil
	})
}

// DeniedError says that letting a peer in would change nothing, since a group
// that it is in is denied.
type DeniedError struct {
	Peer   string
	Denial Rule
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("not written: the peer is in a group that is denied, and a denial wins: %s", proto.Printable(e.Denial.String(), maxLine))
}

// Hint is what mends it.
func (e *DeniedError) Hint() string {
	name, _ := e.Denial.isGroup()
	return "p2ptun access group rm " + name + " " + e.Peer
}

// beaten finds the denial of a group that an allowance of one peer would not
// change: only rules about the same peer, or the same group, are replaced.
func beaten(lines []line, rule Rule, now time.Time) (denial Rule, ok bool) {
	for _, l := range lines {
		if !rule.Allow || l.rule == nil || l.rule.Allow || l.rule.Protocol != rule.Protocol || l.rule.expired(now) {
			continue
		}
		if name, isGroup := l.rule.isGroup(); isGroup && slices.Contains(groupOf(lines, name), rule.Peer) {
			return *l.rule, true
		}
	}
	return Rule{}, false
}

// edit changes the lines of the file. What would not be read again is not
// written.
func edit(ctx context.Context, path string, change func([]line) ([]line, error)) error {
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
		if _, err := interpret(path, lines); err != nil {
			return nil, err
		}
		if lines, err = change(lines); err != nil {
			return nil, err
		}
		return checked(path, render(lines))
	})
}

// checked gives data back where it can be read as a whole.
func checked(path string, data []byte) ([]byte, error) {
	lines, err := parse(path, data)
	if err == nil {
		_, err = interpret(path, lines)
	}
	if err != nil {
		return nil, fmt.Errorf("not written, it could not be read again: %w", err)
	}
	return data, nil
}

// place replaces the first rule about the same thing, and drops the others.
func place(lines []line, rule Rule) []line {
	same := func(l line) bool {
		return l.rule != nil && l.rule.Protocol == rule.Protocol && l.rule.Peer == rule.Peer
	}
	at := slices.IndexFunc(lines, same)
	if at < 0 {
		return append(lines, line{text: rule.String(), rule: &rule})
	}
	if rule.Comment == "" {
		rule.Comment = lastComment(lines, same)
	}
	rest := slices.DeleteFunc(slices.Clone(lines[at+1:]), same)
	return append(append(lines[:at:at], line{text: rule.String(), rule: &rule}), rest...)
}

// lastComment is the first comment among those lines.
func lastComment(lines []line, same func(line) bool) string {
	for _, l := range lines {
		if same(l) && l.rule.Comment != "" {
			return l.rule.Comment
		}
	}
	return ""
}

func render(lines []line) []byte {
	var out bytes.Buffer
	for _, l := range lines {
		out.WriteString(l.text)
		out.WriteByte('\n')
	}
	return out.Bytes()
}

// Listing is what the file says, in its order; what is over is listed too.
type Listing struct {
	Rules   []Rule   `json:"rules"`
	Invites []Invite `json:"invites"`
	Groups  []Group  `json:"groups"`
}

// List reads the file at path. One that others may write to lets nobody in, so
// what it says is not shown as if it held.
func List(path string) (Listing, error) {
	if info, err := os.Stat(path); err == nil && home.OthersMayWrite(info) {
		return Listing{}, &home.UnsafeError{Path: path}
	}
	data, err := home.ReadFile(path)
	if err != nil {
		return Listing{}, ignoreMissing(err)
	}
	lines, err := parse(path, data)
	if err != nil {
		return Listing{}, err
	}
	c, err := interpret(path, lines)
	if err != nil {
		return Listing{}, err
	}
	return c.listing(), nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
