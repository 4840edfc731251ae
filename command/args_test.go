package command

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// order is reorder with the real commands, as one string.
func order(t testing.TB, line string) (string, error) {
	t.Helper()
	tl := &tool{Env: Env{Out: io.Discard, Err: io.Discard, Soft: context.Background(), Hard: context.Background()}}
	out, _, err := reorder(tl.app(), append([]string{"p2ptun"}, strings.Fields(line)...))
	if err != nil {
		return "", err
	}
	return strings.Join(out[1:], " "), nil
}

func TestFlagsComeBeforeArgumentsWhereverTheyAreTyped(t *testing.T) {
	for typed, want := range map[string]string{
		"":                                      "",
		"ls":                                    "ls",
		"listen ssh 22":                         "listen -- ssh 22",
		"listen ssh 22 --allow ID":              "listen --allow ID -- ssh 22",
		"listen ssh --allow ID 22":              "listen --allow ID -- ssh 22",
		"listen --allow ID ssh 22":              "listen --allow ID -- ssh 22",
		"listen ssh 22 --allow=ID --open":       "listen --allow=ID --open -- ssh 22",
		"listen ssh 22 --allow a --allow b":     "listen --allow a --allow b -- ssh 22",
		"listen ssh 22 -r":                      "listen -r -- ssh 22",
		"listen ssh 22 --home H":                "--home H listen -- ssh 22",
		"--home H listen ssh 22 --json":         "--home H --json listen -- ssh 22",
		"stream ls -v":                          "stream ls -v",
		"stream --json ls":                      "--json stream ls",
		"stream close 3 -a":                     "stream close -a -- 3",
		"peer add bob ID":                       "peer add -- bob ID",
		"peer add ls ID":                        "peer add -- ls ID",
		"listen -- --open 22":                   "listen -- --open 22",
		"listen -- ssh -- 22":                   "listen -- ssh -- 22",
		"-- ls":                                 "ls",
		"forward ssh - ":                        "forward -- ssh -",
		"listen ssh --help":                     "listen --help -- ssh",
		"help listen":                           "help -- listen",
		"help":                                  "help",
		"close -p ssh -a 1":                     "close -p ssh -a -- 1",
		"listen ssh --generate-bash-completion": "listen ssh --generate-bash-completion",
	} {
		if got, err := order(t, typed); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", typed, got, err, want)
		}
	}
}

func TestWhatNoCommandKnowsIsWrongUse(t *testing.T) {
	for typed, says := range map[string]string{
		"nonsense":                  "unknown command nonsense",
		"-- nonsense":               "unknown command nonsense",
		"stream nonsense":           "unknown command nonsense",
		"help nonsense":             "unknown command nonsense",
		"--nope":                    "unknown flag --nope",
		"ls --nope":                 "unknown flag --nope",
		"ls --nope=1":               "unknown flag --nope=1",
		"ls -x":                     "unknown flag -x",
		"ls -":                      "",
		"listen ssh --bind 1":       "unknown flag --bind",
		"stream ls -a":              "unknown flag -a",
		"forward ssh 22 --allow ID": "unknown flag --allow",
		"listen ssh --allow":        "flag --allow needs a value",
		"listen ssh --allow --open": "flag --allow needs a value",
		"listen ssh --allow --":     "flag --allow needs a value",
		"--open listen ssh":         "unknown flag --open",
		"forward ssh 22 -1":         "unknown flag -1",
		"listen ssh 22 --=x":        "unknown flag --=x",
	} {
		_, err := order(t, typed)
		if says == "" {
			if err != nil {
				t.Errorf("%q: %v", typed, err)
			}
			continue
		}
		var e *exitError
		if !errors.As(err, &e) || e.code != exitUsage || e.Error() != says || e.hint == "" {
			t.Errorf("%q: %v, want %q with a hint", typed, err, says)
		}
	}
}
