package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"sync"

	"p2ptun/home"
	"p2ptun/registry"
)

// bookVersion is the version of the file of kept tunnels.
const bookVersion = 1

// bookFile is the file of kept tunnels.
type bookFile struct {
	Version int               `json:"version"`
	Tunnels []registry.Tunnel `json:"tunnels"`
}

// book holds the tunnels that outlive their command. Every change is on disk
// before it returns.
type book struct {
	path string

	mu      sync.Mutex
	tunnels []registry.Tunnel
}

// BookError says that the file of kept tunnels can't be used. It is never
// overwritten then.
type BookError struct {
	Path string
	Err  error
}

func (e *BookError) Error() string { return fmt.Sprintf("kept tunnels %s: %v", e.Path, e.Err) }
func (e *BookError) Unwrap() error { return e.Err }

// Hint is a command.
func (e *BookError) Hint() string {
	return "mend the file, or start without it: mv " + e.Path + " " + e.Path + ".broken"
}

// loadBook reads the file; where there is none, nothing is kept.
func loadBook(path string) ([]registry.Tunnel, error) {
	data, err := home.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var f bookFile
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, &BookError{path, err}
	}
	if f.Version != bookVersion {
		return nil, &BookError{path, fmt.Errorf("version %d; this program knows version %d", f.Version, bookVersion)}
	}
	return f.Tunnels, checkBook(path, f.Tunnels)
}

func checkBook(path string, tunnels []registry.Tunnel) error {
	ids := map[string]bool{}
	for i := range tunnels {
		t := &tunnels[i]
		if t.ID == "" || ids[t.ID] {
			return &BookError{path, fmt.Errorf("tunnel %d: id %q is empty or used twice", i+1, t.ID)}
		}
		ids[t.ID] = true
		t.Keep = true
		if err := Normalize(t); err != nil {
			return &BookError{path, fmt.Errorf("tunnel %s: %w", t.ID, err)}
		}
	}
	return nil
}

// list copies the kept tunnels.
func (b *book) list() []registry.Tunnel {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.tunnels)
}

// reload reads the file again; on an error the book stays as it is.
func (b *book) reload() error {
	tunnels, err := loadBook(b.path)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tunnels = tunnels
	return nil
}

// add keeps a tunnel.
func (b *book) add(t registry.Tunnel) error {
	return b.change(func(kept []registry.Tunnel) []registry.Tunnel { return append(kept, t) })
}

// remove forgets a tunnel; one that is not kept is no error.
func (b *book) remove(id string) error {
	return b.change(func(kept []registry.Tunnel) []registry.Tunnel {
		return slices.DeleteFunc(kept, func(t registry.Tunnel) bool { return t.ID == id })
	})
}

func (b *book) change(change func([]registry.Tunnel) []registry.Tunnel) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := change(slices.Clone(b.tunnels))
	data, err := json.MarshalIndent(bookFile{Version: bookVersion, Tunnels: next}, "", "  ")
	if err != nil {
		return err
	}
	if err := home.WriteFile(b.path, append(data, '\n')); err != nil {
		return err
	}
	b.tunnels = next
	return nil
}

// lastID is the highest number among the ids.
func lastID(tunnels []registry.Tunnel) uint64 {
	var last uint64
	for _, t := range tunnels {
		if n, err := strconv.ParseUint(t.ID, 10, 32); err == nil {
			last = max(last, n)
		}
	}
	return last
}
