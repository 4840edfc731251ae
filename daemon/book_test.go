package daemon

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"p2ptun/home"
	"p2ptun/registry"
)

func newBook(t testing.TB) *book {
	t.Helper()
	return &book{path: filepath.Join(t.TempDir(), "tunnels.json")}
}

func keeps(id, protocol string) registry.Tunnel {
	return registry.Tunnel{ID: id, Kind: registry.KindListen, Protocol: protocol, Target: "/ip4/127.0.0.1/tcp/22", Keep: true}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func protocols(b *book) string {
	var names []string
	for _, t := range b.list() {
		names = append(names, t.ID+t.Protocol)
	}
	return strings.Join(names, " ")
}

func TestBookComesBackAsItWasWritten(t *testing.T) {
	b := newBook(t)
	must(t, b.reload())
	must(t, b.add(keeps("1", "/x/a")))
	must(t, b.add(keeps("7", "/x/b")))
	must(t, b.add(keeps("8", "/x/c")))
	must(t, b.remove("7"))
	must(t, b.remove("99"))
	again := &book{path: b.path}
	must(t, again.reload())
	if got := protocols(again); got != "1/x/a 8/x/c" {
		t.Fatalf("book %q", got)
	}
	if got := lastID(again.list()); got != 8 {
		t.Errorf("last id %d", got)
	}
	info, err := os.Stat(b.path)
	if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestMissingBookIsEmptyAndIsNotMade(t *testing.T) {
	b := newBook(t)
	must(t, b.reload())
	if _, err := os.Stat(b.path); !errors.Is(err, fs.ErrNotExist) || protocols(b) != "" {
		t.Fatalf("%v, book %q", err, protocols(b))
	}
}

func TestBookThatCanNotBeReadIsRefusedWithAHint(t *testing.T) {
	for name, text := range map[string]string{
		"empty":          "",
		"null":           "null",
		"no version":     `{"tunnels":[]}`,
		"later version":  `{"version":2}`,
		"a tail":         `{"version":1}{"version":1}`,
		"unknown key":    `{"version":1,"tunels":[]}`,
		"unknown key in": `{"version":1,"tunnels":[{"id":"1","kind":"listen","protocol":"/x/a","target":"22","opne":true}]}`,
		"no id":          `{"version":1,"tunnels":[{"kind":"listen","protocol":"/x/a","target":"22"}]}`,
		"an id twice":    `{"version":1,"tunnels":[{"id":"1","kind":"listen","protocol":"/x/a","target":"22"},{"id":"1","kind":"listen","protocol":"/x/b","target":"22"}]}`,
		"bad tunnel":     `{"version":1,"tunnels":[{"id":"1","kind":"listen","protocol":"/x/a","target":"0"}]}`,
		"bad duration":   `{"version":1,"tunnels":[{"id":"1","kind":"listen","protocol":"/x/a","target":"22","silence":"soon"}]}`,
	} {
		b := newBook(t)
		must(t, os.WriteFile(b.path, []byte(text), 0o600))
		err := b.reload()
		var broken *BookError
		if !errors.As(err, &broken) || !strings.Contains(broken.Hint(), b.path) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if e := asError(err); e.Code != CodeState || e.Hint != broken.Hint() {
			t.Errorf("%s: told as %+v", name, e)
		}
	}
}

func TestBookThatOthersMayWriteToIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such mode bits")
	}
	b := newBook(t)
	must(t, b.add(keeps("1", "/x/a")))
	must(t, os.Chmod(b.path, 0o666))
	var unsafe *home.UnsafeError
	if err := b.reload(); !errors.As(err, &unsafe) {
		t.Errorf("reload: %v", err)
	}
	if err := b.add(keeps("2", "/x/b")); !errors.As(err, &unsafe) {
		t.Errorf("add: %v", err)
	}
}

func TestBookIsNotWrittenOverWhatAPersonEdited(t *testing.T) {
	edited := `{"version":1,"tunnels":[{"id":"5","kind":"listen","protocol":"/x/mine","target":"22"}]}`
	for name, text := range map[string]string{"well": edited, "badly": "{", "to nothing": ""} {
		b := newBook(t)
		must(t, b.add(keeps("1", "/x/a")))
		must(t, os.WriteFile(b.path, []byte(text), 0o600))
		var broken *BookError
		if err := b.add(keeps("2", "/x/b")); !errors.As(err, &broken) || !strings.Contains(broken.Hint(), "p2ptun reload") {
			t.Errorf("edited %s: add: %v", name, err)
		}
		if err := b.remove("1"); !errors.As(err, &broken) {
			t.Errorf("edited %s: remove: %v", name, err)
		}
		if got, _ := os.ReadFile(b.path); string(got) != text || protocols(b) != "1/x/a" {
			t.Errorf("edited %s: file %q, book %q", name, got, protocols(b))
		}
	}
}

func TestEditedBookIsTakenByReload(t *testing.T) {
	b := newBook(t)
	must(t, b.add(keeps("1", "/x/a")))
	must(t, os.WriteFile(b.path, []byte(`{"version":1,"tunnels":[{"id":"5","kind":"listen","protocol":"mine","target":"22"}]}`), 0o600))
	must(t, b.reload())
	must(t, b.add(keeps("6", "/x/b")))
	if got := protocols(b); got != "5/x/mine 6/x/b" {
		t.Errorf("book %q", got)
	}
	must(t, os.Remove(b.path))
	must(t, b.reload())
	if got := protocols(b); got != "" {
		t.Errorf("without the file: book %q", got)
	}
}

func TestBookThatCanNotBeWrittenStaysAsItWas(t *testing.T) {
	b := newBook(t)
	must(t, b.add(keeps("1", "/x/a")))
	b.path = filepath.Join(filepath.Dir(b.path), "gone", "tunnels.json")
	b.seen = nil // as a book that has not been written yet
	if err := b.add(keeps("2", "/x/b")); err == nil {
		t.Fatal("written where there is no directory")
	}
	if got := protocols(b); got != "1/x/a" {
		t.Errorf("book %q", got)
	}
}
