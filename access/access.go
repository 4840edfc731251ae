// Package access decides who may use what. It holds the rules of a file that a
// person can edit, and those that live as long as a tunnel (--allow, --open).
// It is closed by default: no rule, no access. It asks nobody, dials nobody
// and resets nothing itself: daemon does, when it is told of a change.
package access

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"p2ptun/home"
)

const (
	// look is how often the file is looked at. A change takes effect when two
	// looks have seen the same: an editor may be writing.
	look = 200 * time.Millisecond
	// patience is how many looks a file may be in the middle of a change, or
	// not to be read for a reason that passes, before it counts as it is.
	patience = 4
)

// Table answers whether a peer may use a protocol. Its methods may be called
// from any goroutine. The zero value does not work: New.
type Table struct {
	path string
	// changed is called, from Serve or from the caller of a method that
	// changes something, after the answers may have changed.
	changed   func()
	now       func() time.Time
	redeeming chan struct{} // holds one while an invite's use is written
	loading   sync.Mutex    // held while the file is read and put in place

	mu    sync.RWMutex
	said  content
	rules map[grant]Rule // what said makes at the time
	// invites are by ID; never written once they are here. Of a file that can't be
	// read, they are there to be told from none, and let nobody in.
	invites map[string]*Invite
	clock   clock
	noted   time.Time      // when the time was written down
	known   map[string]int // peers with an allow rule, with the number of them
	err     error
	stamp   stamp
	retry   bool      // the file could not be read, for a reason that may pass
	next    time.Time // when the next rule or invite is over; zero for never
	lent    map[grant]int
	open    map[string]int
	// barred are denials, also of an @GROUP, that could not be written; they hold
	// until the file says something else of the same than what is here.
	barred map[grant]string
	shut   map[grant]bool // what barred denies to each peer
}

// grant is what a rule is about.
type grant struct{ protocol, peer string }

// unread is what a file that can't be read says: it is not known.
const unread = "?"

// stamp tells one state of the file from another.
type stamp struct {
	mod  time.Time
	size int64
	mode fs.FileMode
	file fs.FileInfo
	when time.Time // of the last change of mode, name or content, where the system tells
	gone bool      // not there; else, without a file, it can't be looked at
}

// New makes a table of the rules in the file at path; a file that is not there
// holds none. changed is called whenever an answer may have changed, and must
// not block.
func New(path string, changed func()) *Table {
	t := &Table{
		path: path, changed: changed, redeeming: make(chan struct{}, 1),
		lent: map[grant]int{}, open: map[string]int{}, barred: map[grant]string{},
	}
	t.now = func() time.Time { return t.clock.now() } // with mu held
	t.Reload()
	return t
}

// Allowed says whether that peer may use that protocol now. Where the file
// can't be read, nobody may.
func (t *Table) Allowed(peer, protocol string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.err != nil {
		return false
	}
	g := grant{protocol, peer}
	if t.denied(g) {
		return false
	}
	rule, ruled := t.rules[g]
	return ruled && !rule.expired(t.now()) || t.lent[g] > 0 || t.open[protocol] > 0
}

// Denied says whether a rule keeps that peer from that protocol, whatever else
// may let it in.
func (t *Table) Denied(peer, protocol string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.denied(grant{protocol, peer})
}

// denied is Denied, with mu held.
func (t *Table) denied(g grant) bool {
	rule, ruled := t.rules[g]
	return t.shut[g] || ruled && !rule.Allow && !rule.expired(t.now())
}

// Known says whether the peer is let in anywhere: such a peer may hold more
// resources than a stranger.
func (t *Table) Known(peer string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.err == nil && (t.known[peer] > 0 || t.finds(peer))
}

// finds says whether something is open to all, and so to that peer: what it is
// denied gives it nothing. Call it with mu held.
func (t *Table) finds(peer string) bool {
	for protocol := range t.open {
		if !t.denied(grant{protocol, peer}) {
			return true
		}
	}
	return false
}

// Named says whether a rule or a flag lets in that very peer anywhere.
func (t *Table) Named(peer string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.err == nil && t.known[peer] > 0
}

// Limits are those that a rule sets for a peer that it lets in; zero for none.
func (t *Table) Limits(peer, protocol string) (maxStreams int, maxRate int64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	rule, ruled := t.rules[grant{protocol, peer}]
	if !ruled || !rule.Allow || rule.expired(t.now()) {
		return 0, 0
	}
	return rule.MaxStreams, rule.MaxRate
}

// ClockBehind is a *ClockError while the clock is behind what it was, or nil.
func (t *Table) ClockBehind() error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.clock.behind()
}

// Err is why nobody is let in, or nil.
func (t *Table) Err() error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.err
}

// Peers counts the peers that may use a protocol; open says that all may.
func (t *Table) Peers(protocol string) (n int, open bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	seen := map[string]bool{}
	for g, r := range t.rules {
		if g.protocol == protocol && !r.expired(t.now()) {
			seen[g.peer] = r.Allow
		}
	}
	for g := range t.lent {
		if _, ruled := seen[g.peer]; g.protocol == protocol && !ruled {
			seen[g.peer] = true
		}
	}
	for _, allowed := range seen {
		if allowed {
			n++
		}
	}
	return n, t.open[protocol] > 0
}

// Lend lets peers, or everybody, use a protocol until the returned func is
// called: the flags of a `listen`.
func (t *Table) Lend(protocol string, peers []string, everybody bool) (end func()) {
	t.lend(protocol, peers, everybody, 1)
	var once sync.Once
	return func() { once.Do(func() { t.lend(protocol, peers, everybody, -1) }) }
}

func (t *Table) lend(protocol string, peers []string, everybody bool, by int) {
	t.mu.Lock()
	for _, p := range peers {
		count(t.lent, grant{protocol, p}, by)
	}
	if everybody {
		count(t.open, protocol, by)
	}
	t.index()
	t.mu.Unlock()
	t.changed()
}

func count[K comparable](m map[K]int, k K, by int) {
	if m[k] += by; m[k] <= 0 {
		delete(m, k)
	}
}

// Serve rereads the file when it changes and lets rules expire, until ctx
// ends.
func (t *Table) Serve(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	var w watcher
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			w.look(t)
			t.noteTime(noteEvery)
		}
	}
}

// watcher is what Serve remembers from look to look.
type watcher struct {
	last  stamp
	looks int // since the file began to differ from what was read
}

// look rereads the file where it has changed and is calm: no editor is halfway
// through. A file that has lost all its rules, or can't be read, gets as many
// looks as patience says.
func (w *watcher) look(t *Table) {
	seen := stampOf(t.path)
	changed, emptied, due := t.compare(seen)
	calm := seen.same(w.last)
	w.last = seen
	if !changed {
		w.looks = 0
		if due {
			t.expire()
			t.noteTime(-1) // what is over stays over
		}
		return
	}
	w.looks++
	if w.looks < patience && (!calm || emptied) {
		return
	}
	if t.load(w.looks >= patience) {
		w.looks = 0
	}
}

// compare says whether the file is not what was read, whether it has nothing
// where rules were read, and whether a rule has expired.
func (t *Table) compare(seen stamp) (changed, emptied, due bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	changed = t.retry || !seen.same(t.stamp) || t.clock.isGone()
	emptied = len(t.rules) > 0 && seen.size == 0
	due = !t.next.IsZero() && !t.now().Before(t.next)
	return changed, emptied, due
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{gone: errors.Is(err, fs.ErrNotExist)}
	}
	return stamp{mod: info.ModTime(), size: info.Size(), mode: info.Mode(), file: info, when: changeTime(info)}
}

func (s stamp) same(o stamp) bool {
	return s.mod.Equal(o.mod) && s.size == o.size && s.mode == o.mode && s.when.Equal(o.when) && s.gone == o.gone &&
		(s.file == nil) == (o.file == nil) && (s.file == nil || os.SameFile(s.file, o.file))
}

// Reload reads the file now, and takes it as it is.
func (t *Table) Reload() { t.load(true) }

// noteTime writes the time down, where something is to expire and that was not
// done for so long. Without it an expiry holds all the same until the end of
// the process, so an error, a full disk for one, is none. Below zero it is done
// in any case.
func (t *Table) noteTime(every time.Duration) {
	t.mu.Lock()
	c, due := t.clock, (every < 0 || !t.next.IsZero()) && t.now().Sub(t.noted) >= every && !t.clock.isGone()
	if due {
		t.noted = t.now()
	}
	t.mu.Unlock()
	if due && c.note() == nil {
		t.mu.Lock()
		t.clock.kept = true
		t.mu.Unlock()
	}
}

// expire ends what is over. It needs no file: what was read holds.
func (t *Table) expire() {
	t.mu.Lock()
	t.rules = t.said.table(t.now())
	t.index()
	t.mu.Unlock()
	t.changed()
}

// load reads the file. What changed while it was read, or failed for a reason
// that may pass, counts only where it is final; else the rules that were read
// before go on to hold. It says whether there is nothing left to try.
func (t *Table) load(final bool) (settled bool) {
	settled, tell := t.loadOnce(final)
	if tell {
		t.changed()
	}
	return settled
}

// loadOnce is load, alone: what was read first must not be put in place last.
func (t *Table) loadOnce(final bool) (settled, tell bool) {
	t.loading.Lock()
	defer t.loading.Unlock()
	seen := stampOf(t.path)
	said, err := read(t.path)
	clock, clockErr := newClock(clockPath(t.path))
	err = cmp.Or(err, clockErr)
	passes := mayPass(err)
	if !final && (passes || !seen.same(stampOf(t.path))) {
		return false, false
	}
	t.mu.Lock()
	t.setClock(clock, clockErr)
	rules, invites := said.table(t.now()), said.byID
	if err != nil {
		rules, said = nil, content{}
		if invites == nil { // those that were known are not unknown now
			invites = t.invites
		}
	}
	if err == nil {
		t.unbar(said)
	}
	again := passes && t.err != nil && t.err.Error() == err.Error()
	t.stamp, t.retry, t.err, t.said, t.rules, t.invites = seen, passes, err, said, rules, invites
	t.index()
	t.mu.Unlock()
	return !passes, !again
}

// setClock takes the clock that was read. Time goes back only where its file
// was there and is gone: a person says so by removing it. Call it with mu held.
func (t *Table) setClock(c clock, err error) {
	old := t.clock
	switch {
	case old.path == "":
	case old.kept && !c.kept && err == nil:
		t.noted = time.Time{}
	default:
		c.seen = later(old.at(c.since), c.seen)
		c.kept = c.kept || old.kept
	}
	t.clock = c
}

// unbar lifts the denials of which the file now says something new. Call it
// with mu held.
func (t *Table) unbar(said content) {
	now := said.about(t.barred)
	for g, old := range t.barred {
		if t.barred[g] = now[g]; old != unread && now[g] != "" && now[g] != old {
			delete(t.barred, g)
		}
	}
}

// mayPass tells an error of reading the file, too many open ones for instance,
// from one of what it says. One of the clock's file always may: a change of
// that is not looked for.
func mayPass(err error) bool {
	return err != nil && !errors.As(err, new(*LineError)) && !errors.As(err, new(*home.UnsafeError))
}

// Bar denies a protocol to a peer, or an @GROUP, in memory alone: where a denial
// can't be written, it must hold all the same, until the file says something of
// the same, or Lift, or the end of the process. Errors: more than 10,000 of them,
// or 100,000 with groups counted for each peer.
func (t *Table) Bar(subject, protocol string) error {
	g := grant{protocol, subject}
	t.mu.Lock()
	full := len(t.barred) >= maxRules || len(t.shut)+len(t.said.peersOf(Rule{Peer: subject})) > maxExpanded
	if !full {
		t.barred[g] = unread
		if t.err == nil {
			t.barred[g] = t.said.about(t.barred)[g]
		}
		t.index()
	}
	t.mu.Unlock()
	if full {
		return fmt.Errorf("more than %d denials that are not written", maxRules)
	}
	t.changed()
	return nil
}

// Lift ends what Bar began, since the file has a rule about the same now.
func (t *Table) Lift(subject, protocol string) {
	g := grant{protocol, subject}
	t.mu.Lock()
	_, barred := t.barred[g]
	delete(t.barred, g)
	t.index()
	t.mu.Unlock()
	if barred {
		t.changed()
	}
}

// shutOut spreads barred over the peers of its groups. Call it with mu held.
func (t *Table) shutOut() map[grant]bool {
	shut := map[grant]bool{}
	for g := range t.barred {
		for _, peer := range t.said.peersOf(Rule{Peer: g.peer}) {
			shut[grant{g.protocol, peer}] = true
		}
	}
	return shut
}

// index makes anew what is derived from the rules and from what is lent. Call it
// with mu held.
func (t *Table) index() {
	now := t.now()
	t.shut = t.shutOut()
	t.known, t.next = map[string]int{}, time.Time{}
	for g, r := range t.rules {
		if r.expired(now) {
			continue
		}
		t.expect(r.Until)
		if !t.denied(g) {
			count(t.known, g.peer, 1)
		}
	}
	for _, i := range t.invites {
		if !i.expired(now) {
			t.expect(i.Until)
		}
	}
	for g := range t.lent {
		if !t.denied(g) { // else it would have a friend's room to be refused in
			count(t.known, g.peer, 1)
		}
	}
}

// expect notes when something is over. Call it with mu held.
func (t *Table) expect(until time.Time) {
	if !until.IsZero() && (t.next.IsZero() || until.Before(t.next)) {
		t.next = until
	}
}

// read gives what the file says; of one that has a mistake, only its invites.
func read(path string) (content, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return content{}, nil
	}
	if err != nil {
		return content{}, err
	}
	if home.OthersMayWrite(info) {
		return content{}, &home.UnsafeError{Path: path}
	}
	data, err := home.ReadFile(path)
	if err != nil {
		return content{}, err
	}
	lines, err := parse(path, data)
	if err != nil {
		return salvage(data), err
	}
	c, err := interpret(path, lines)
	if err != nil {
		return salvage(data), err
	}
	return c, nil
}
