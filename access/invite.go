package access

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"p2ptun/proto"
)

// Invite lets in whoever shows its secret first, up to Uses peers, until it is
// over. The file holds a hash of the secret.
type Invite struct {
	ID       string    `json:"id"`
	Protocol string    `json:"protocol"`
	Uses     int       `json:"uses"`
	Until    time.Time `json:"until"`
	Used     []string  `json:"used"` // the peers that have redeemed it
	Comment  string    `json:"comment,omitempty"`

	hash string
}

// Left is how many peers may still redeem it.
func (i Invite) Left() int { return max(0, i.Uses-len(i.Used)) }

// rule is what a peer that has redeemed the invite may.
func (i Invite) rule(peer string) Rule {
	return Rule{Allow: true, Protocol: i.Protocol, Peer: peer, Until: i.Until, Comment: "invite " + i.ID}
}

func (i Invite) expired(now time.Time) bool { return !now.Before(i.Until) }

func (i Invite) String() string {
	return "invite " + i.ID + " " + i.Protocol + " uses=" + strconv.Itoa(i.Uses) + untilText(i.Until) + " secret=" + i.hash + commentText(i.Comment)
}

// hashOf is what the file says of a secret. One pass is enough: the secret has
// 128 random bits.
func hashOf(secret []byte) string {
	sum := sha256.Sum256(secret)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// use is a line that says who has redeemed an invite.
type use struct{ id, peer string }

func (u use) String() string { return "used " + u.id + " " + u.peer }

func parseInvite(words []string, comment string) (*Invite, error) {
	if len(words) != 5 {
		return nil, errors.New("want: invite ID PROTOCOL uses=N until=TIME secret=HASH")
	}
	i := &Invite{ID: words[0], Comment: comment, Used: []string{}}
	if _, err := proto.InviteIDBytes(i.ID); err != nil {
		return nil, err
	}
	var err error
	if i.Protocol, err = proto.ParseProtocol(words[1], true); err != nil {
		return nil, err
	}
	for _, word := range words[2:] {
		if err := i.option(word); err != nil {
			return nil, err
		}
	}
	if i.Uses == 0 || i.Until.IsZero() || i.hash == "" {
		return nil, errors.New("an invite needs uses, until and secret")
	}
	return i, nil
}

func (i *Invite) option(word string) (err error) {
	key, value, _ := strings.Cut(word, "=")
	switch key {
	case "uses":
		i.Uses, err = parseNumber[int](key, value, MaxUses)
	case "until":
		i.Until, err = parseTime(value)
	case "secret":
		raw, decodeErr := base64.RawURLEncoding.DecodeString(value)
		if decodeErr != nil || len(raw) != sha256.Size {
			return errors.New("secret: want the base64 of a SHA-256")
		}
		i.hash = value
	default:
		err = fmt.Errorf("unknown option %s", proto.Printable(word, 64))
	}
	return err
}

func parseUse(words []string) (*use, error) {
	if len(words) != 2 {
		return nil, errors.New("want: used ID PEER")
	}
	if _, err := proto.InviteIDBytes(words[0]); err != nil {
		return nil, err
	}
	peer, err := parseID(words[1])
	return &use{id: words[0], peer: peer}, err
}

// stale is how long an invite that is over stays in the file.
const stale = 7 * 24 * time.Hour

// AddInvite writes an invite into the file at path: it holds when this
// returns. Errors: *ClockError; more than 1,000 of them.
func AddInvite(ctx context.Context, path string, made proto.Invite, uses int, until time.Time, comment string) (Invite, error) {
	if err := checkClock(path); err != nil {
		return Invite{}, err
	}
	i := Invite{
		ID: made.ID, Protocol: made.Protocol, Uses: uses, Until: until.UTC().Truncate(time.Second),
		Used: []string{}, Comment: strings.TrimSpace(comment), hash: hashOf(made.Secret),
	}
	if err := i.check(); err != nil {
		return Invite{}, err
	}
	return i, edit(ctx, path, func(lines []line) ([]line, error) {
		return append(dropStale(lines, time.Now()), line{text: i.String(), invite: &i}), nil
	})
}

// check refuses an invite that would not be read back from its line as it is.
func (i Invite) check() error {
	back, err := parseLine(i.String())
	switch {
	case err != nil:
		return fmt.Errorf("invite: %w", err)
	case back.invite == nil || back.invite.String() != i.String() || strings.ContainsAny(i.Comment, "\r\n"):
		return fmt.Errorf("invite %s does not fit a line of the file", proto.Printable(i.ID, 32))
	}
	return nil
}

// dropStale takes out what has been over for long.
func dropStale(lines []line, now time.Time) []line {
	over := map[string]bool{}
	for _, l := range lines {
		if l.invite != nil && now.Sub(l.invite.Until) > stale {
			over[l.invite.ID] = true
		}
	}
	return withoutInvites(lines, over)
}

func withoutInvites(lines []line, out map[string]bool) []line {
	return slices.DeleteFunc(lines, func(l line) bool {
		return l.invite != nil && out[l.invite.ID] || l.used != nil && out[l.used.id]
	})
}

// ErrNoInvite is returned for an invite that is not there.
var ErrNoInvite = errors.New("no such invite")

// RevokeInvite takes an invite out of the file, and with it the rights of
// those who have redeemed it. Errors: ErrNoInvite.
func RevokeInvite(ctx context.Context, path, id string) error {
	return edit(ctx, path, func(lines []line) ([]line, error) {
		if !slices.ContainsFunc(lines, func(l line) bool { return l.invite != nil && l.invite.ID == id }) {
			return nil, fmt.Errorf("%w: %s", ErrNoInvite, proto.Printable(id, 32))
		}
		return withoutInvites(lines, map[string]bool{id: true}), nil
	})
}

// Why an invite was not redeemed. ErrInviteUsed and ErrInviteOver are returned
// only to who knows its secret.
var (
	ErrInviteUnknown = errors.New("no such invite, or another secret or protocol")
	ErrInviteUsed    = errors.New("the invite has no uses left")
	ErrInviteOver    = errors.New("the invite is over")
)

// Redeem lets a peer in by an invite, and gives the invite as it is then: the
// use is on disk. fresh says that it was not redeemed by that peer before,
// which costs no further use. Without the secret nothing is read from disk.
// Errors: those above; to who knows the secret, what is wrong with the file, and
// then the same peer may try again at no cost; the context's.
func (t *Table) Redeem(ctx context.Context, peer, protocol string, id, secret []byte) (i Invite, fresh bool, err error) {
	if i, err = t.recognize(peer, protocol, id, secret); err != nil || slices.Contains(i.Used, peer) {
		return i, false, err
	}
	select {
	case t.redeeming <- struct{}{}: // one after the other, in the order of their coming
		defer func() { <-t.redeeming }()
	case <-ctx.Done():
		return i, false, ctx.Err()
	}
	if i, err = t.recognize(peer, protocol, id, secret); err != nil { // others came before
		return i, false, err
	}
	err = edit(ctx, t.path, func(lines []line) ([]line, error) {
		lines, fresh, err = addUse(lines, i, peer, t.Now())
		return lines, err
	})
	if err != nil {
		return i, false, err
	}
	return t.redeemed(peer, protocol, id, secret, fresh)
}

// errNotRead is for a file that could be written and not be read again.
var errNotRead = errors.New("the use is written, but the rules can't be read now")

// redeemed reads the file with the use in it. Where that fails for a reason
// that may pass, nobody loses what he has.
func (t *Table) redeemed(peer, protocol string, id, secret []byte, fresh bool) (i Invite, _ bool, err error) {
	for range patience {
		t.load(false)
		if i, err = t.recognize(peer, protocol, id, secret); err != nil || slices.Contains(i.Used, peer) {
			return i, fresh && err == nil, err
		}
	}
	return i, false, errNotRead
}

// Now is the time that rules and invites are over by: it never goes back.
func (t *Table) Now() time.Time {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.now()
}

// addUse notes a use behind the invite, in the file as it is now. A person may
// have changed that meanwhile.
func addUse(lines []line, known Invite, peer string, now time.Time) (changed []line, fresh bool, err error) {
	at, used := -1, map[string]bool{}
	var invite *Invite
	for n, l := range lines {
		switch {
		case l.invite != nil && l.invite.ID == known.ID:
			invite, at = l.invite, n
		case l.used != nil && l.used.id == known.ID:
			used[l.used.peer] = true
			at = n
		}
	}
	switch {
	case invite == nil || invite.hash != known.hash || invite.Protocol != known.Protocol:
		return nil, false, ErrInviteUnknown
	case invite.expired(now):
		return nil, false, ErrInviteOver
	case used[peer]:
		return lines, false, nil
	case len(used) >= invite.Uses:
		return nil, false, ErrInviteUsed
	}
	u := use{known.ID, peer}
	return slices.Insert(lines, at+1, line{text: u.String(), used: &u}), true, nil
}

// recognize finds the invite that a peer shows, from memory alone. Whoever
// does not know the secret learns nothing.
func (t *Table) recognize(peer, protocol string, id, secret []byte) (Invite, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	i, known := t.invites[proto.InviteID(id)]
	var want string
	if known {
		want = i.hash
	}
	right := subtle.ConstantTimeCompare([]byte(hashOf(secret)), []byte(want)) == 1
	switch {
	case !right || i.Protocol != protocol || t.denied(grant{protocol, peer}):
		return Invite{}, ErrInviteUnknown
	case i.expired(t.now()):
		return *i, ErrInviteOver
	case t.err != nil:
		return *i, t.err
	case !slices.Contains(i.Used, peer) && i.Left() == 0:
		return *i, ErrInviteUsed
	}
	return *i, nil
}
