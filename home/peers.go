package home

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"p2ptun/proto"
)

// NamedPeer is one entry of the book of peer names.
type NamedPeer struct {
	Name  string   `json:"name"`
	Addrs []string `json:"addrs"` // as proto.ParsePeer reads them
}

// MaxPeers bounds the book.
const MaxPeers = 10_000

// ErrNoPeer is returned for a name that is not in the book.
var ErrNoPeer = errors.New("no peer of that name")

// Names lists the book, by name. A line that can't be read is an error.
func (d Dir) Names() ([]NamedPeer, error) {
	data, err := ReadFile(d.Peers())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parsePeers(d.Peers(), data)
}

// FindName gives the addresses of one name, or ErrNoPeer.
func (d Dir) FindName(name string) ([]string, error) {
	book, err := d.Names()
	if err != nil {
		return nil, err
	}
	if i := indexName(book, name); i >= 0 {
		return book[i].Addrs, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNoPeer, name)
}

// SetName adds a peer to the book or replaces it.
func (d Dir) SetName(ctx context.Context, p NamedPeer) error {
	if err := checkPeer(p); err != nil {
		return err // written, it would spoil the whole book
	}
	return d.editPeers(ctx, func(book []NamedPeer) ([]NamedPeer, error) {
		if i := indexName(book, p.Name); i >= 0 {
			book[i] = p
			return book, nil
		}
		if len(book) >= MaxPeers {
			return nil, fmt.Errorf("more than %d peer names", MaxPeers)
		}
		return append(book, p), nil
	})
}

// RemoveName takes a peer out of the book, or returns ErrNoPeer.
func (d Dir) RemoveName(ctx context.Context, name string) error {
	return d.editPeers(ctx, func(book []NamedPeer) ([]NamedPeer, error) {
		i := indexName(book, name)
		if i < 0 {
			return nil, fmt.Errorf("%w: %s", ErrNoPeer, name)
		}
		return slices.Delete(book, i, i+1), nil
	})
}

// editPeers writes the book sorted, after its comments.
func (d Dir) editPeers(ctx context.Context, change func([]NamedPeer) ([]NamedPeer, error)) error {
	return Edit(ctx, d.Peers(), func(old []byte) ([]byte, error) {
		book, err := parsePeers(d.Peers(), old)
		if err != nil {
			return nil, err
		}
		if book, err = change(book); err != nil {
			return nil, err
		}
		slices.SortFunc(book, func(a, b NamedPeer) int { return strings.Compare(a.Name, b.Name) })
		var out strings.Builder
		for line := range strings.Lines(string(old)) {
			if strings.HasPrefix(strings.TrimSpace(line), "#") {
				fmt.Fprintln(&out, strings.TrimSpace(line))
			}
		}
		for _, p := range book {
			fmt.Fprintf(&out, "%s %s\n", p.Name, strings.Join(p.Addrs, " "))
		}
		return []byte(out.String()), nil
	})
}

func indexName(book []NamedPeer, name string) int {
	return slices.IndexFunc(book, func(p NamedPeer) bool { return p.Name == name })
}

// parsePeers reads lines of a name and one or more addresses.
func parsePeers(path string, data []byte) ([]NamedPeer, error) {
	var book []NamedPeer
	for i, line := range strings.Split(string(data), "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		p := NamedPeer{Name: words[0], Addrs: words[1:]}
		if err := checkPeer(p); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, i+1, err)
		}
		book = append(book, p)
	}
	return book, nil
}

func checkPeer(p NamedPeer) error {
	if err := proto.CheckPeerName(p.Name); err != nil {
		return err
	}
	if len(p.Addrs) == 0 {
		return errors.New("no address")
	}
	for _, addr := range p.Addrs {
		ref, err := proto.ParsePeer(addr)
		if err != nil {
			return err
		}
		if ref.Name != "" {
			return fmt.Errorf("%s is a name, not an address", addr)
		}
	}
	return nil
}
