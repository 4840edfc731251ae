package access

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// content is what a file's lines say together.
type content struct {
	rules   []Rule
	groups  map[string][]string // peers, by name
	invites []*Invite
	byID    map[string]*Invite
}

// interpret puts lines together. Errors: *LineError for a group that is not
// there, an invite that is there twice, too much of something.
func interpret(path string, lines []line) (content, error) {
	c := content{groups: map[string][]string{}, byID: map[string]*Invite{}}
	for i, l := range lines {
		if err := c.define(l); err != nil {
			return c, &LineError{Path: path, Line: i + 1, Err: err}
		}
	}
	expanded := 0
	for i, l := range lines {
		n, err := c.refer(l)
		if expanded += n; err == nil && expanded > maxExpanded {
			err = fmt.Errorf("more than %d rules, with those on groups counted for each peer", maxExpanded)
		}
		if err != nil {
			return c, &LineError{Path: path, Line: i + 1, Err: err}
		}
	}
	return c, nil
}

// salvage gives the invites of a file with a mistake, by ID.
func salvage(data []byte) (c content) {
	c.byID = map[string]*Invite{}
	for text := range strings.Lines(string(data)) {
		if l, err := parseLine(strings.TrimRight(text, "\r\n")); err == nil && l.invite != nil {
			_ = c.define(l) // what is too much, or there twice, is a mistake too
		}
	}
	return content{byID: c.byID}
}

// define takes groups and invites, which lines before and after refer to.
func (c *content) define(l line) error {
	switch {
	case l.group != nil:
		c.groups[l.group.Name] = append(c.groups[l.group.Name], l.group.Peers...)
	case l.invite != nil:
		if _, twice := c.byID[l.invite.ID]; twice {
			return fmt.Errorf("invite %s is there twice", l.invite.ID)
		}
		if len(c.invites) >= maxInvites {
			return fmt.Errorf("more than %d invites", maxInvites)
		}
		invite := *l.invite
		c.byID[invite.ID] = &invite
		c.invites = append(c.invites, &invite)
	}
	return nil
}

// refer takes rules and uses; n is the number of peers that the line is about.
// A use of an invite that is not there gives nothing.
func (c *content) refer(l line) (n int, err error) {
	switch {
	case l.rule != nil:
		name, isGroup := l.rule.isGroup()
		peers, known := c.groups[name]
		if isGroup && !known {
			return 0, fmt.Errorf("there is no group %s", name)
		}
		c.rules = append(c.rules, *l.rule)
		return max(len(peers), 1), nil
	case l.used != nil:
		if invite := c.byID[l.used.id]; invite != nil && !slices.Contains(invite.Used, l.used.peer) {
			invite.Used = append(invite.Used, l.used.peer)
		}
		return 1, nil
	}
	return 0, nil
}

// table makes the rules for each peer: a deny wins over an allow of the same
// peer and protocol, whatever their order; of two of a kind the one that lasts
// longer wins. What is over counts for nothing.
func (c *content) table(now time.Time) map[grant]Rule {
	rules := map[grant]Rule{}
	for _, r := range c.rules {
		if r.expired(now) {
			continue
		}
		for _, peer := range c.peersOf(r) {
			r.Peer = peer
			put(rules, r)
		}
	}
	for _, i := range c.invites {
		for _, peer := range i.Used {
			if r := i.rule(peer); !r.expired(now) {
				put(rules, r)
			}
		}
	}
	return rules
}

// about is what is said of some grants, those of an @GROUP too, be it over or
// not; nothing of those that no rule is about.
func (c *content) about(grants map[grant]string) map[grant]string {
	said := map[grant]string{}
	note := func(r Rule, peer string) {
		g := grant{r.Protocol, peer}
		if _, asked := grants[g]; asked {
			said[g] += r.String() + "\n"
		}
	}
	for _, r := range c.rules {
		for _, peer := range c.peersOf(r) {
			note(r, peer)
		}
		if _, ok := r.isGroup(); ok {
			note(r, r.Peer)
		}
	}
	for _, i := range c.invites {
		for _, peer := range i.Used {
			note(i.rule(peer), peer)
		}
	}
	return said
}

// put notes a rule about one peer, in place of one that it beats. Of two that
// let the peer in the limits of both hold.
func put(rules map[grant]Rule, r Rule) {
	g := grant{r.Protocol, r.Peer}
	old, there := rules[g]
	if there && old.Allow && r.Allow {
		streams, rate := stricter(old.MaxStreams, r.MaxStreams), stricter(old.MaxRate, r.MaxRate)
		old.MaxStreams, old.MaxRate = streams, rate
		r.MaxStreams, r.MaxRate = streams, rate
		rules[g] = old
	}
	if !there || r.beats(old) {
		rules[g] = r
	}
}

// stricter is the lower of two limits, of which zero is none.
func stricter[T int | int64](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func (c *content) peersOf(r Rule) []string {
	if name, ok := r.isGroup(); ok {
		return c.groups[name]
	}
	return []string{r.Peer}
}

// beats says which of two rules about the same thing counts.
func (r Rule) beats(old Rule) bool {
	if r.Allow != old.Allow {
		return old.Allow
	}
	return !old.Until.IsZero() && (r.Until.IsZero() || r.Until.After(old.Until))
}

func (c *content) listing() Listing {
	l := Listing{Rules: c.rules, Invites: []Invite{}, Groups: []Group{}}
	for _, i := range c.invites {
		l.Invites = append(l.Invites, *i)
	}
	for _, name := range slices.Sorted(maps.Keys(c.groups)) {
		l.Groups = append(l.Groups, Group{Name: name, Peers: c.groups[name]})
	}
	return l
}
