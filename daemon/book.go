package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
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
	seen    []byte // the file as it was read or written last; nil for none
}

// BookError says that the file of kept tunnels can't be used. It is never
// overwritten then.
type BookError struct {
	Path string
	Err  error
}

// errEdited is why a change is refused that would undo a person's.
var errEdited = errors.New("was edited since it was read")

func (e *BookError) Error() string { return fmt.Sprintf("kept tunnels %s: %v", e.Path, e.Err) }
func (e *BookError) Unwrap() error { return e.Err }

// Hint is a command.
func (e *BookError) Hint() string {
	if errors.Is(e.Err, errEdited) {
		return "to use it as it is now: p2ptun reload"
	}
	return "mend the file, or start without it: mv " + e.Path + " " + e.Path + ".broken"
}

// readBook reads the file; nil where there is none. One that others may write
// to is refused: they could open this machine with it.
func readBook(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if home.OthersMayWrite(info) {
		return nil, &home.UnsafeError{Path: path}
	}
	return home.ReadFile(path)
}

// parseBook reads the file's content; where there is none, nothing is kept.
func parseBook(path string, data []byte) ([]registry.Tunnel, error) {
	if data == nil {
		return nil, nil
	}
	var f bookFile
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err := d.Decode(&f)
	if err == nil {
		err = noMore(d)
	}
	if err != nil {
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
			return &BookError{path, fmt.Errorf("tunnel %s: %v", t.ID, err)} // it is not the command that is wrong
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
	b.mu.Lock()
	defer b.mu.Unlock()
	data, err := readBook(b.path)
	if err != nil {
		return err
	}
	tunnels, err := parseBook(b.path, data)
	if err != nil {
		return err
	}
	b.tunnels, b.seen = tunnels, data
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

// dropInvite forgets the invite of a tunnel, where it is kept and has one.
func (b *book) dropInvite(id string) error {
	has := func(t registry.Tunnel) bool { return t.ID == id && t.Invite != "" }
	if !slices.ContainsFunc(b.list(), has) {
		return nil
	}
	return b.change(func(kept []registry.Tunnel) []registry.Tunnel {
		for i := range kept {
			if kept[i].ID == id {
				kept[i].Invite = ""
			}
		}
		return kept
	})
}

// change writes the book anew. It never writes over what a person has edited
// meanwhile.
func (b *book) change(change func([]registry.Tunnel) []registry.Tunnel) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := change(slices.Clone(b.tunnels))
	data, err := json.MarshalIndent(bookFile{Version: bookVersion, Tunnels: next}, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	now, err := readBook(b.path)
	if err != nil {
		return err
	}
	if !bytes.Equal(now, b.seen) {
		return &BookError{b.path, errEdited}
	}
	if err := home.WriteFile(b.path, data); err != nil {
		return err
	}
	b.tunnels, b.seen = next, data
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
