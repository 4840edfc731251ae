package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// source is a Go file with one function of that many lines.
func source(t testing.TB, comment string, lines int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f.go")
	text := fmt.Sprintf("package p\n\n%sfunc f() {\n%s}\n", comment, strings.Repeat("\tg()\n", lines))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLengthsAreHeldToTheirBounds(t *testing.T) {
	for _, c := range []struct {
		about   string
		comment string
		lines   []int
		ok      bool
	}{
		{"short", "", []int{1, 12}, true},
		{"a median too long", "", []int{13}, false},
		{"one at the bound among short ones", "", []int{1, 1, 80}, true},
		{"one above it", "", []int{1, 1, 81}, false},
		{"one above it with a reason", "// f is long.\n//\n// Long: a table.\n", []int{1, 1, 81}, true},
	} {
		t.Run(c.about, func(t *testing.T) {
			var names, out strings.Builder
			for _, n := range c.lines {
				fmt.Fprintln(&names, source(t, c.comment, n))
			}
			ok, err := check(strings.NewReader(names.String()), &out)
			if err != nil || ok != c.ok {
				t.Errorf("ok %v, err %v, want ok %v\n%s", ok, err, c.ok, out.String())
			}
		})
	}
}

func TestNothingMeasuredIsAnError(t *testing.T) {
	if _, err := check(strings.NewReader(""), &strings.Builder{}); err == nil {
		t.Error("no error for no files")
	}
}
