package home

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestSweepTakesOnlyOldLeftovers(t *testing.T) {
	dir := Dir(t.TempDir())
	old := time.Now().Add(-2 * leftover)
	for name, age := range map[string]time.Time{".access.1": old, ".access.2": time.Now(), "access": old, "access.lock": old} {
		path := filepath.Join(string(dir), name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, age, age); err != nil {
			t.Fatal(err)
		}
	}
	dir.Sweep()
	entries, err := os.ReadDir(string(dir))
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{".access.2", "access", "access.lock"}; !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}
}
