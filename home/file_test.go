package home

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

func mode(t testing.TB, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

// names lists a directory.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func wantContent(t testing.TB, path, want string) {
	t.Helper()
	got, err := ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v; want %q", filepath.Base(path), got, err, want)
	}
}

func TestAReaderNeverSeesAPartOfAWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	a, b := bytes.Repeat([]byte("a"), 1<<20), bytes.Repeat([]byte("b"), 1<<20+1)
	if err := WriteFile(path, a); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	var readers sync.WaitGroup
	var reads atomic.Int64
	for range 2 {
		readers.Go(func() {
			for !done.Load() {
				got, err := ReadFile(path)
				if err != nil || !bytes.Equal(got, a) && !bytes.Equal(got, b) {
					t.Errorf("read %d bytes, %v", len(got), err)
					return
				}
				reads.Add(1)
			}
		})
	}
	for n := 0; n < 30 || reads.Load() < 100 && !t.Failed(); n++ {
		if err := WriteFile(path, [][]byte{a, b}[n%2]); err != nil {
			t.Fatal(err)
		}
	}
	done.Store(true)
	readers.Wait()
}

func TestAWrittenFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if m := mode(t, path); m != 0o600 {
		t.Errorf("mode %v", m)
	}
}

func TestAFailedWriteLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil { // no rename goes over it
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("x")); err == nil {
		t.Error("wrote over a directory")
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
	if err := WriteFile(filepath.Join(dir, "nowhere", "f"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestAWriteFollowsASymbolicLink(t *testing.T) {
	real, link := filepath.Join(t.TempDir(), "real"), filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.WriteFile(real, []byte("old"), 0o600), os.Symlink(real, link)); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(link, []byte("new")); err != nil {
		t.Fatal(err)
	}
	wantContent(t, real, "new")
	if to, err := os.Readlink(link); err != nil || to != real {
		t.Errorf("the link became %q, %v", to, err)
	}
}

func TestReadFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for size, ok := range map[int64]bool{maxFile: true, maxFile + 1: false, 1 << 40: false} {
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
		data, err := ReadFile(path)
		if ok != (err == nil) || ok && int64(len(data)) != size {
			t.Errorf("%d bytes: read %d, %v", size, len(data), err)
		}
	}
}

func TestEditGetsTheOldContentAndWritesTheNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for i := range 3 {
		if err := increment(path); err != nil {
			t.Fatal(err)
		}
		wantContent(t, path, strconv.Itoa(i+1))
	}
	if m := mode(t, path); m != 0o600 {
		t.Errorf("mode %v", m)
	}
	if m := mode(t, path+".lock"); m != 0o600 {
		t.Errorf("the lock's mode is %v", m)
	}
}

func TestAnEditThatFailsOrChangesNothingDoesNotWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(path)
	failure := errors.New("no")
	err := Edit(t.Context(), path, func([]byte) ([]byte, error) { return []byte("new"), failure })
	if !errors.Is(err, failure) {
		t.Errorf("err = %v", err)
	}
	if err := Edit(t.Context(), path, func(old []byte) ([]byte, error) { return old, nil }); err != nil {
		t.Error(err)
	}
	after, _ := os.Stat(path)
	if !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Error("the file was written")
	}
	wantContent(t, path, "old")
}

func TestAnEditKeepsWhatAnEditorWritesMeanwhile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	calls := 0
	err := Edit(t.Context(), path, func(old []byte) ([]byte, error) {
		if calls++; calls <= 3 { // saved between the reading and the writing
			if err := os.WriteFile(path, []byte(strings.Repeat("mine ", calls)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return append(old, "ours"...), nil
	})
	if err != nil || calls != 4 {
		t.Errorf("%d calls, %v", calls, err)
	}
	wantContent(t, path, "mine mine mine ours")
	if got := names(t, filepath.Dir(path)); len(got) != 2 { // and the lock
		t.Errorf("left behind: %v", got)
	}
}

func TestAnEditOfAFileThatNeverRestsGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := Edit(ctx, path, func([]byte) ([]byte, error) {
		if calls++; calls == 5 {
			cancel()
		}
		return []byte("ours"), os.WriteFile(path, []byte(strconv.Itoa(calls)), 0o600)
	})
	if !errors.Is(err, context.Canceled) || calls != 5 {
		t.Errorf("%d calls, %v", calls, err)
	}
	wantContent(t, path, "5")
}

func TestEditsOfSeveralProcessesLoseNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	const children = 4
	var all sync.WaitGroup
	for range children {
		all.Go(func() {
			if out, err := childCommand("count", path).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	for range perChild {
		if err := increment(path); err != nil {
			t.Error(err)
		}
	}
	all.Wait()
	wantContent(t, path, strconv.Itoa((children+1)*perChild))
}

func TestEditSaysWhyItCannotLock(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "nowhere", "f")
	if err := increment(missing); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrBusy) {
		t.Errorf("no directory: %v", err)
	}
	path := filepath.Join(t.TempDir(), "f")
	lock := flock.New(path + ".lock")
	if err := lock.Lock(); err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	called := false
	err := Edit(ctx, path, func([]byte) ([]byte, error) { called = true; return nil, nil })
	if !errors.Is(err, ErrBusy) || called {
		t.Errorf("held by another: %v, called %v", err, called)
	}
}
