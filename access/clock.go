package access

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"p2ptun/home"
	"p2ptun/proto"
)

// What expires does so by the wall clock. A clock that goes back, since a
// battery is empty or somebody sets it, must not bring back what is over: the
// latest time seen is kept in a file beside the rules, and time goes on from
// there.

const (
	// noteEvery is how often the time is written down while rules have one.
	noteEvery = time.Minute
	// clockSlack is how far a clock may be behind without a word.
	clockSlack = 2 * time.Minute
	// maxClockFile bounds the file, in bytes.
	maxClockFile = 256
)

// clock is a wall clock that never goes back.
type clock struct {
	path  string
	seen  time.Time // the latest that was written down, or that the wall clock said
	since time.Time // when that was so; with the time that no setting changes
	kept  bool      // it is written down
}

// ClockError says that the clock is behind what it was.
type ClockError struct {
	Path      string
	Now, Seen time.Time
}

func (e *ClockError) Error() string {
	return fmt.Sprintf("the clock is in the past: it says %s, and said %s before", e.Now.UTC().Format(time.RFC3339), e.Seen.UTC().Format(time.RFC3339))
}

// Hint is what mends it.
func (e *ClockError) Hint() string {
	return "set the clock; if it is right now, and was wrong before: rm " + proto.ShellQuote(e.Path)
}

func clockPath(rules string) string { return rules + ".seen" }

// readClock reads the time that was seen last; a file that is not there says
// nothing.
func readClock(path string) (seen time.Time, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	switch {
	case err == nil && home.OthersMayWrite(info):
		return time.Time{}, &clockFileError{path, "others may write to it"}
	case err == nil && info.Size() > maxClockFile && info.Mode().IsRegular():
		return time.Time{}, &clockFileError{path, "it is too long for a time"}
	}
	data, err := home.ReadFile(path)
	if err != nil {
		return time.Time{}, err
	}
	seen, err = time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
	if err != nil || seen.IsZero() {
		return time.Time{}, &clockFileError{path, proto.Printable(strings.TrimSpace(string(data)), 64) + " is not a time"}
	}
	return seen, nil
}

// clockFileError says that the file of the clock can't be used.
type clockFileError struct{ path, reason string }

func (e *clockFileError) Error() string { return e.path + ": " + e.reason }

// Hint is what mends it.
func (e *clockFileError) Hint() string { return "rm " + proto.ShellQuote(e.path) }

func newClock(path string) (clock, error) {
	seen, err := readClock(path)
	wall := time.Now()
	return clock{path: path, seen: later(seen, wall.Round(0)), since: wall, kept: !seen.IsZero()}, err
}

// now is the wall clock, or the time seen before with what has passed since.
func (c clock) now() time.Time { return c.at(time.Now()) }

// at is now where that is what time.Now says. Its two times are taken apart:
// the wall clock may be set, what passes may not.
func (c clock) at(now time.Time) time.Time {
	return later(c.seen.Add(now.Sub(c.since)), now.Round(0))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// isGone says whether a person has removed the file that was there.
func (c clock) isGone() bool { return c.kept && stampOf(c.path).gone }

// behind says by how much the clock is behind, where that is worth a word.
func (c clock) behind() error { return behind(c.path, c.now()) }

func behind(path string, seen time.Time) error {
	if wall := time.Now().Round(0); seen.Sub(wall) > clockSlack {
		return &ClockError{Path: path, Now: wall, Seen: seen}
	}
	return nil
}

// checkClock refuses to make what expires by a clock that is behind.
func checkClock(rules string) error {
	_, err := LastSeen(rules)
	return err
}

// LastSeen is the latest time that was written down beside the file of rules,
// or zero. Errors: *ClockError where the clock is behind it by more than two
// minutes; else that it can't be read.
func LastSeen(rules string) (time.Time, error) {
	path := clockPath(rules)
	seen, err := readClock(path)
	if err != nil {
		return time.Time{}, err
	}
	return seen, behind(path, seen)
}

// Now is the time as a Table of those rules would have it, where none serves.
func Now(rules string) time.Time {
	seen, _ := LastSeen(rules) // zero where it can't be read
	return later(seen, time.Now())
}

// note writes the time down.
func (c clock) note() error {
	return home.WriteFile(c.path, []byte(c.now().UTC().Format(time.RFC3339Nano)+"\n"))
}
