package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// testsByName lists the tests of all packages.
func testsByName(t testing.TB) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				tests[f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}

var testName = regexp.MustCompile(`\bTest[A-Z]\w+`)

func TestEachAttackThatIsDocumentedHasATestThatIsThere(t *testing.T) {
	text, err := os.ReadFile("docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "\n| attack |")
	rows := slices.DeleteFunc(strings.Split(table, "\n")[1:], func(line string) bool { return !strings.HasPrefix(line, "| ") })
	if !found || len(rows) < 10 {
		t.Fatalf("%d rows of attacks", len(rows))
	}
	for _, row := range rows {
		if !testName.MatchString(row) {
			t.Errorf("no test: %s", row)
		}
	}
	tests := testsByName(t)
	for _, name := range testName.FindAllString(string(text), -1) {
		if !tests[name] {
			t.Errorf("docs/security.md names %s, which is not there", name)
		}
	}
}
