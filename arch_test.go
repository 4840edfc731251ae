package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowedImports says which rooms each room may import: only rooms below it,
// and no sibling. A room that is not named here is not there.
var allowedImports = map[string][]string{
	"p2ptun":          {"p2ptun/command"},
	"p2ptun/command":  {"p2ptun/daemon", "p2ptun/access", "p2ptun/node", "p2ptun/home", "p2ptun/registry", "p2ptun/proto"},
	"p2ptun/daemon":   {"p2ptun/forward", "p2ptun/listen", "p2ptun/node", "p2ptun/trunk", "p2ptun/access", "p2ptun/home", "p2ptun/registry", "p2ptun/proto"},
	"p2ptun/forward":  {"p2ptun/home", "p2ptun/registry", "p2ptun/proto"},
	"p2ptun/listen":   {"p2ptun/registry", "p2ptun/proto"},
	"p2ptun/node":     {"p2ptun/home", "p2ptun/mux", "p2ptun/record", "p2ptun/registry", "p2ptun/proto"},
	"p2ptun/trunk":    {"p2ptun/registry", "p2ptun/proto"},
	"p2ptun/access":   {"p2ptun/home", "p2ptun/proto"},
	"p2ptun/home":     {"p2ptun/proto"},
	"p2ptun/mux":      {},
	"p2ptun/record":   {},
	"p2ptun/registry": {"p2ptun/proto"},
	"p2ptun/proto":    {},
}

// toolFolder holds what is no room: programs for the work on the project,
// which may not be imported.
const toolFolder = "p2ptun/scripts/"

// withoutLibp2p are rooms that must not know libp2p's hosts and streams.
var withoutLibp2p = []string{"p2ptun/forward", "p2ptun/listen", "p2ptun/trunk", "p2ptun/access", "p2ptun/home", "p2ptun/registry", "p2ptun/command"}

type room struct {
	ImportPath string
	Dir        string
	Imports    []string
	GoFiles    []string
}

func listRooms(t testing.TB) []room {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var rooms []room
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var r room
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		rooms = append(rooms, r)
	}
	return rooms
}

func TestImportsGoDownOnly(t *testing.T) {
	for _, r := range listRooms(t) {
		if strings.HasPrefix(r.ImportPath, toolFolder) {
			continue
		}
		allowed, known := allowedImports[r.ImportPath]
		if !known {
			t.Errorf("%s is no room of ARCHITECTURE.md", r.ImportPath)
		}
		for _, imported := range r.Imports {
			ours := imported == "p2ptun" || strings.HasPrefix(imported, "p2ptun/")
			if ours && !slices.Contains(allowed, imported) {
				t.Errorf("%s imports %s", r.ImportPath, imported)
			}
		}
	}
}

func TestOnlyNodeKnowsLibp2p(t *testing.T) {
	for _, r := range listRooms(t) {
		if !slices.Contains(withoutLibp2p, r.ImportPath) {
			continue
		}
		for _, imported := range r.Imports {
			if strings.HasPrefix(imported, "github.com/libp2p/") {
				t.Errorf("%s imports %s", r.ImportPath, imported)
			}
		}
	}
}

func TestEachRoomSaysWhatItIs(t *testing.T) {
	for _, r := range listRooms(t) {
		comments := 0
		for _, name := range r.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), r.Dir+"/"+name, nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil {
				comments++
			}
		}
		if comments != 1 {
			t.Errorf("%s has %d package comments, want 1", r.ImportPath, comments)
		}
	}
}

func TestOnlyCommandPrintsAndOnlyMainExits(t *testing.T) {
	for _, r := range listRooms(t) {
		if strings.HasPrefix(r.ImportPath, toolFolder) {
			continue
		}
		for _, name := range r.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), r.Dir+"/"+name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			checkCalls(t, r.ImportPath, name, file)
		}
	}
}

func checkCalls(t *testing.T, room, name string, file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		pkg, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		call := pkg.Name + "." + sel.Sel.Name
		prints := slices.Contains([]string{"fmt.Print", "fmt.Printf", "fmt.Println", "os.Stdout", "os.Stderr", "log.Print", "log.Printf"}, call)
		if prints && room != "p2ptun" {
			t.Errorf("%s: %s: %s", room, name, call)
		}
		if call == "os.Exit" && room != "p2ptun" {
			t.Errorf("%s: %s: %s", room, name, call)
		}
		return true
	})
}

func TestMainIsShort(t *testing.T) {
	const most = 60
	data, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), "\n"); n > most {
		t.Errorf("main.go has %d lines, want at most %d", n, most)
	}
}
