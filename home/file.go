package home

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

// maxFile bounds what is read of a file, in bytes.
const maxFile = 8 << 20

// ReadFile reads a file of at most 8 MiB.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("read %s: larger than %d bytes", path, maxFile)
	}
	return data, nil
}

// WriteFile replaces a file, 0600, so that whoever reads it, and whoever
// starts after a crash at any moment, finds the old content or the new, never
// a part. A symbolic link is followed: the file it points to is replaced.
func WriteFile(path string, data []byte) error {
	return replace(path, data, func() error { return nil })
}

// replace is WriteFile; ready is asked last, and its error is given back.
func replace(path string, data []byte, ready func() error) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = ready()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(dir)
}

// leftover is how old a file must be that a write which was cut short left
// behind: younger, it may be being written.
const leftover = time.Hour

// Sweep removes what writes that were cut short have left in the home.
func (d Dir) Sweep() {
	found, _ := filepath.Glob(d.join(".*.*"))
	for _, path := range found {
		info, err := os.Lstat(path)
		if err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > leftover {
			_ = os.Remove(path)
		}
	}
}

// editWait bounds how long Edit waits for another process, which holds the
// file for as long as one write takes.
const editWait = 10 * time.Second

// Edit reads a file (nothing where there is none), lets change make the new
// content and writes it, alone among all processes that use Edit. Where change
// returns an error, or the same content, nothing is written. An editor knows no
// lock: where the file has changed until the last moment, change is called again.
func Edit(ctx context.Context, path string, change func(old []byte) ([]byte, error)) error {
	lock := flock.New(path+".lock", flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(ctx, editWait)
	defer cancel()
	if _, err := lock.TryLockContext(ctx, 10*time.Millisecond); err != nil {
		return notEdited(path, err)
	}
	defer lock.Unlock()
	for ctx.Err() == nil {
		if err := editOnce(path, change); !errors.Is(err, errChanged) {
			return err
		}
	}
	return notEdited(path, ctx.Err())
}

func notEdited(path string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		err = ErrBusy
	}
	return fmt.Errorf("edit %s: %w", path, err)
}

var errChanged = errors.New("the file has changed meanwhile")

func editOnce(path string, change func(old []byte) ([]byte, error)) error {
	old, err := readIfThere(path)
	if err != nil {
		return err
	}
	data, err := change(old)
	if err != nil {
		return err
	}
	if string(data) == string(old) {
		return nil
	}
	return replace(path, data, func() error {
		if now, err := readIfThere(path); err != nil || string(now) != string(old) {
			return cmp.Or(err, errChanged)
		}
		return nil
	})
}

// readIfThere gives nothing where there is no file.
func readIfThere(path string) ([]byte, error) {
	data, err := ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}
