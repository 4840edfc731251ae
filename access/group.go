package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"p2ptun/proto"
)

// Group is peers under one name, which rules may be about.
type Group struct {
	Name  string   `json:"name"`
	Peers []string `json:"peers"` // IDs
}

// CheckGroupName takes what a peer's name may be, so that a group never reads
// as something else.
func CheckGroupName(name string) error {
	if proto.CheckPeerName(name) != nil {
		return fmt.Errorf("%s is not the name of a group: a letter, then letters, digits, - and _", proto.Printable(name, 64))
	}
	return nil
}

func parseGroup(words []string) (*Group, error) {
	if len(words) == 0 {
		return nil, errors.New("want: group NAME, then peer IDs")
	}
	g := &Group{Name: words[0]}
	if err := CheckGroupName(g.Name); err != nil {
		return nil, err
	}
	var err error
	g.Peers, err = idsOf(words[1:])
	return g, err
}

// AddToGroup puts peers, by ID, into a group of the file at path, which is
// made where there is none.
func AddToGroup(ctx context.Context, path, name string, peers []string) error {
	if err := CheckGroupName(name); err != nil {
		return err
	}
	peers, err := idsOf(peers)
	if err != nil {
		return err
	}
	return edit(ctx, path, func(lines []line) ([]line, error) {
		have := groupOf(lines, name)
		var fresh []line
		for _, peer := range peers {
			if !slices.Contains(have, peer) {
				fresh = append(fresh, line{text: "group " + name + " " + peer})
				have = append(have, peer)
			}
		}
		at := lastGroupLine(lines, name) + 1
		if at == 0 {
			at = len(lines)
		}
		return slices.Insert(lines, at, fresh...), nil
	})
}

func idsOf(texts []string) (ids []string, err error) {
	for _, text := range texts {
		id, err := parseID(text)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func groupOf(lines []line, name string) (peers []string) {
	for _, l := range lines {
		if l.group != nil && l.group.Name == name {
			peers = append(peers, l.group.Peers...)
		}
	}
	return peers
}

// lastGroupLine is -1 where there is none.
func lastGroupLine(lines []line, name string) int {
	for i := len(lines) - 1; i >= 0; i-- {
		if g := lines[i].group; g != nil && g.Name == name {
			return i
		}
	}
	return -1
}

// ErrNoGroup is returned for a group, or a peer in it, that is not there.
var ErrNoGroup = errors.New("no such group, or not in it")

// RemoveFromGroup takes peers out of a group, or the whole group where none is
// named. Errors: ErrNoGroup; a group that rules are about is not removed.
func RemoveFromGroup(ctx context.Context, path, name string, peers []string) error {
	return edit(ctx, path, func(lines []line) ([]line, error) {
		have := groupOf(lines, name)
		if lastGroupLine(lines, name) < 0 {
			return nil, fmt.Errorf("%w: %s", ErrNoGroup, proto.Printable(name, 64))
		}
		for _, peer := range peers {
			if !slices.Contains(have, peer) {
				return nil, fmt.Errorf("%w: %s in %s", ErrNoGroup, proto.Printable(peer, 128), name)
			}
		}
		if len(peers) == 0 {
			return dropGroup(lines, name)
		}
		return thinGroup(lines, name, peers), nil
	})
}

func dropGroup(lines []line, name string) ([]line, error) {
	for _, l := range lines {
		if l.rule != nil && l.rule.Peer == "@"+name {
			return nil, fmt.Errorf("a rule is about the group: %s", strings.TrimSpace(proto.Printable(l.text, 256)))
		}
	}
	return slices.DeleteFunc(lines, func(l line) bool { return l.group != nil && l.group.Name == name }), nil
}

// thinGroup keeps a group that has lost its last peer: rules may be about it.
func thinGroup(lines []line, name string, out []string) []line {
	for i, l := range lines {
		if l.group == nil || l.group.Name != name {
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(l.group.Peers), func(p string) bool { return slices.Contains(out, p) })
		if len(rest) == len(l.group.Peers) {
			continue
		}
		_, comment := cutComment(l.text)
		lines[i].text = strings.TrimSpace("group "+name+" "+strings.Join(rest, " ")) + commentText(strings.TrimSpace(comment))
	}
	return lines
}
