package node

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestRacingProcessesMakeOneKey(t *testing.T) {
	dir := t.TempDir()
	const processes = 6
	ids := make([]string, processes)
	var all sync.WaitGroup
	for i := range processes {
		all.Go(func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childVar+"=id "+dir)
			out, err := cmd.Output()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			ids[i] = strings.TrimSpace(string(out))
		})
	}
	all.Wait()
	kept, err := PeerID(t.Context(), filepath.Join(dir, "key"))
	must(t, err)
	for i, id := range ids {
		if id != kept {
			t.Errorf("process %d has %q, the file %s", i, id, kept)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "key"))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestAKeyThatCannotBeUsedIsNeverReplaced(t *testing.T) {
	good := filepath.Join(t.TempDir(), "key")
	_, err := PeerID(t.Context(), good)
	must(t, err)
	key, err := os.ReadFile(good)
	must(t, err)
	for name, c := range map[string]struct {
		content []byte
		mode    os.FileMode
	}{
		"empty":              {nil, 0o600},
		"garbage":            {[]byte("hello\n"), 0o600},
		"cut short":          {key[:len(key)-1], 0o600},
		"readable by others": {key, 0o644},
		"writable by group":  {key, 0o620},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			must(t, errors.Join(os.WriteFile(path, c.content, 0o600), os.Chmod(path, c.mode)))
			var bad *KeyError
			if _, err := PeerID(t.Context(), path); !errors.As(err, &bad) || bad.Hint() == "" {
				t.Errorf("err = %v", err)
			}
			if bad != nil && strings.Contains(bad.Error(), string(key)) {
				t.Error("the key is in the error")
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != string(c.content) {
				t.Errorf("the file became %q, %v", after, err)
			}
		})
	}
}
