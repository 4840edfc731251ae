// Command funclen holds the lengths of functions to CONTRIBUTING.md: it counts
// the lines of each function's body, of the Go files that it is given on
// stdin, one name a line. It is no part of the program.
package main

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"slices"
	"strings"
)

const (
	maxMedian = 12
	maxLength = 80
	// reason starts a line of the doc comment of a function that may be longer.
	reason = "Long: "
)

func main() {
	ok, err := check(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "funclen:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func check(names io.Reader, out io.Writer) (ok bool, err error) {
	ok = true
	var lengths []int
	for lines := bufio.NewScanner(names); lines.Scan(); {
		functions, err := measure(lines.Text())
		if err != nil {
			return false, err
		}
		for _, f := range functions {
			lengths = append(lengths, f.lines)
			if f.lines > maxLength && !f.excused {
				fmt.Fprintf(out, "%s: %s has %d lines, want at most %d, or a line `%s…` in its comment\n", f.pos, f.name, f.lines, maxLength, reason)
				ok = false
			}
		}
	}
	if len(lengths) == 0 {
		return false, fmt.Errorf("no function in the files named on stdin")
	}
	slices.Sort(lengths)
	median := lengths[len(lengths)/2]
	fmt.Fprintf(out, "%d functions, median %d lines (at most %d), longest %d (at most %d)\n",
		len(lengths), median, maxMedian, lengths[len(lengths)-1], maxLength)
	return ok && median <= maxMedian, nil
}

type function struct {
	name    string
	pos     token.Position
	lines   int
	excused bool
}

// measure lists a file's functions; a generated file has none.
func measure(path string) ([]function, error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	if ast.IsGenerated(file) {
		return nil, nil
	}
	var functions []function
	for _, d := range file.Decls {
		f, isFunc := d.(*ast.FuncDecl)
		if !isFunc || f.Body == nil {
			continue
		}
		first, last := files.Position(f.Body.Lbrace), files.Position(f.Body.Rbrace)
		functions = append(functions, function{
			name: f.Name.Name, pos: files.Position(f.Pos()),
			lines: max(last.Line-first.Line-1, 1), excused: strings.Contains("\n"+f.Doc.Text(), "\n"+reason),
		})
	}
	return functions, nil
}
