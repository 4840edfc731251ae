package proto

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"unicode"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/mr-tron/base58"
	ma "github.com/multiformats/go-multiaddr"
	pb "google.golang.org/protobuf/proto"
)

// Invite is what a listener gives out: whoever redeems it first, up to its
// number of uses, is let in. invite.proto describes its text. It holds a
// secret: fmt and slog show only its ID.
type Invite struct {
	Peer     peer.ID
	Addrs    []ma.Multiaddr // without /p2p/ID at the end
	Protocol string
	ID       string // as InviteID gives it
	Secret   []byte
}

const (
	inviteWord    = "p2ptun"
	invitePrefix  = inviteWord + "1"
	inviteSum     = 4
	inviteIDBytes = 5
	inviteSecret  = 16
	maxInviteAddr = 256
)

// MaxInvite bounds the text of an invite, in bytes; MaxInviteAddrs its
// addresses.
const (
	MaxInvite      = 2048
	MaxInviteAddrs = 16
	maxPasted      = 2 * MaxInvite // with blanks and line breaks
)

var (
	// ErrInviteNewer is returned for an invite of a later version.
	ErrInviteNewer = errors.New("the invite was made by a newer p2ptun: update this one")
	// ErrInviteTypo is returned for a text that is an invite no more.
	ErrInviteTypo = errors.New("the invite is mistyped or not whole")
	// ErrInviteUnsure is returned, with ErrInviteTypo, for a text of a later
	// version that does not hold together: that version may do so in another way.
	ErrInviteUnsure = fmt.Errorf("%w, or was made by a newer p2ptun", ErrInviteTypo)
	errInviteLong   = fmt.Errorf("%w: longer than %d characters", ErrInviteTypo, MaxInvite)
)

var inviteEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// InviteID is the text of an invite's id: base32 in lower case.
func InviteID(id []byte) string { return strings.ToLower(inviteEncoding.EncodeToString(id)) }

// InviteIDBytes reads what InviteID gives.
func InviteIDBytes(text string) ([]byte, error) {
	id, err := inviteEncoding.DecodeString(strings.ToUpper(text))
	if err != nil || InviteID(id) != text || len(id) < inviteIDBytes || len(id) > 16 {
		return nil, fmt.Errorf("%s is not the id of an invite", Printable(text, 32))
	}
	return id, nil
}

// NewInvite makes an invite to a protocol of a peer, with an id and a secret
// (128 bits) of its own. Errors: more than MaxInviteAddrs addresses, one over
// 256 bytes or that ParsePeer would not read, a text over MaxInvite, a name that
// is none.
func NewInvite(id peer.ID, addrs []ma.Multiaddr, protocol string) (Invite, error) {
	key := make([]byte, inviteIDBytes+inviteSecret)
	_, _ = rand.Read(key) // never fails
	i := Invite{Peer: id, Addrs: addrs, Protocol: protocol, ID: InviteID(key[:inviteIDBytes]), Secret: key[inviteIDBytes:]}
	if err := i.check(); err != nil {
		return Invite{}, err
	}
	if len(i.Text()) > MaxInvite {
		return Invite{}, fmt.Errorf("invite: its addresses make it longer than %d characters", MaxInvite)
	}
	return i, nil
}

// Text is the invite as it is pasted. It is a secret.
func (i Invite) Text() string {
	id, _ := InviteIDBytes(i.ID)
	m := &InviteMessage{Peer: []byte(i.Peer), Protocol: i.Protocol, Id: id, Secret: i.Secret}
	for _, a := range i.Addrs {
		m.Addrs = append(m.Addrs, a.Bytes())
	}
	body, err := pb.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil { // a name that is no UTF-8: check refuses it
		return ""
	}
	return invitePrefix + base58.Encode(append(body, sumOf(invitePrefix, body)...))
}

func sumOf(prefix string, body []byte) []byte {
	sum := sha256.Sum256(append([]byte(prefix), body...))
	return sum[:inviteSum]
}

// LooksLikeInvite says whether an argument is meant as an invite, of any
// version: no peer name, address or protocol name starts like one.
func LooksLikeInvite(s string) bool {
	s = strings.TrimSpace(s)
	return len(s) > len(inviteWord) && strings.HasPrefix(s, inviteWord) && isDigit(s[len(inviteWord)])
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// ParseInvite reads the text of an invite. Errors never hold the text.
func ParseInvite(text string) (Invite, error) {
	if len(text) > maxPasted {
		return Invite{}, errInviteLong
	}
	text = strings.Map(dropSpace, text)
	switch {
	case len(text) > MaxInvite:
		return Invite{}, errInviteLong
	case !LooksLikeInvite(text):
		return Invite{}, fmt.Errorf("%w: it starts with %s", ErrInviteTypo, invitePrefix)
	}
	prefix, rest := text[:len(invitePrefix)], text[len(invitePrefix):]
	body, err := summed(prefix, rest)
	switch {
	case err != nil && prefix > invitePrefix:
		return Invite{}, fmt.Errorf("%w: it starts with %s, not %s", ErrInviteUnsure, prefix, invitePrefix)
	case err != nil:
		return Invite{}, err
	case prefix != invitePrefix: // the sum holds for it: the digit is no typo
		return Invite{}, ErrInviteNewer
	}
	return decodeInvite(body)
}

// summed reads what is behind the prefix, and takes the checksum off.
func summed(prefix, rest string) (body []byte, err error) {
	if strings.ContainsFunc(rest, notBase58) {
		return nil, fmt.Errorf("%w: it holds a character that no invite has (0, O, I and l are not used)", ErrInviteTypo)
	}
	data, err := base58.Decode(rest)
	if err != nil || len(data) <= inviteSum || !bytes.Equal(sumOf(prefix, data[:len(data)-inviteSum]), data[len(data)-inviteSum:]) {
		return nil, fmt.Errorf("%w: its checksum is wrong", ErrInviteTypo)
	}
	return data[:len(data)-inviteSum], nil
}

func notBase58(r rune) bool {
	return !strings.ContainsRune("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", r)
}

func dropSpace(r rune) rune {
	if unicode.IsSpace(r) {
		return -1
	}
	return r
}

func decodeInvite(body []byte) (Invite, error) {
	var m InviteMessage
	if err := pb.Unmarshal(body, &m); err != nil {
		return Invite{}, errors.New("invite: it can't be decoded")
	}
	i := Invite{Peer: peer.ID(m.GetPeer()), Protocol: m.GetProtocol(), ID: InviteID(m.GetId()), Secret: m.GetSecret()}
	if len(m.GetAddrs()) > MaxInviteAddrs {
		return Invite{}, fmt.Errorf("invite: more than %d addresses", MaxInviteAddrs)
	}
	for _, raw := range m.GetAddrs() {
		if len(raw) > maxInviteAddr {
			return Invite{}, fmt.Errorf("invite: an address of more than %d bytes", maxInviteAddr)
		}
		a, err := ma.NewMultiaddrBytes(raw)
		if err != nil {
			return Invite{}, fmt.Errorf("invite: address: %s", Printable(err.Error(), maxInviteAddr))
		}
		i.Addrs = append(i.Addrs, a)
	}
	if err := i.check(); err != nil {
		return Invite{}, err
	}
	return i, nil
}

// check holds for what is made as for what is read.
func (i Invite) check() error {
	if !isPeerID(i.Peer) {
		return errors.New("invite: no peer ID in it")
	}
	if err := checkName(i.Protocol); err != nil {
		return fmt.Errorf("invite: %w", err)
	}
	if len(i.Addrs) > MaxInviteAddrs {
		return fmt.Errorf("invite: more than %d addresses", MaxInviteAddrs)
	}
	for _, a := range i.Addrs {
		if err := i.checkAddr(a); err != nil {
			return err
		}
	}
	id, err := InviteIDBytes(i.ID)
	if err != nil {
		return fmt.Errorf("invite: %w", err)
	}
	return checkKeys(id, i.Secret)
}

// checkAddr takes what ParsePeer reads again, as it is, once the peer ID is
// behind it: it is shown to people, and dialled.
func (i Invite) checkAddr(a ma.Multiaddr) error {
	if len(a) == 0 || len(a.Bytes()) > maxInviteAddr {
		return fmt.Errorf("invite: an address is empty or longer than %d bytes", maxInviteAddr)
	}
	p, err := ParsePeer(a.String() + "/p2p/" + i.Peer.String())
	if err != nil || p.ID != i.Peer || len(p.Addrs) != 1 || !p.Addrs[0].Equal(a) {
		return errors.New("invite: an address can't have a peer ID behind it")
	}
	return nil
}

func checkKeys(id, secret []byte) error {
	if len(id) < inviteIDBytes || len(id) > 16 || len(secret) < inviteSecret || len(secret) > 64 {
		return errors.New("invite: an id of 5 to 16 and a secret of 16 to 64 bytes are wanted")
	}
	return nil
}

// Peers are the invite's addresses as ParsePeer reads them.
func (i Invite) Peers() []string {
	suffix := "/p2p/" + i.Peer.String()
	if len(i.Addrs) == 0 {
		return []string{suffix}
	}
	var peers []string
	for _, a := range i.Addrs {
		peers = append(peers, a.String()+suffix)
	}
	return peers
}

var (
	_ fmt.Stringer           = Invite{}
	_ fmt.Formatter          = Invite{}
	_ slog.LogValuer         = Invite{}
	_ encoding.TextMarshaler = Invite{}
)

// String is what a log may hold.
func (i Invite) String() string { return "invite " + Printable(i.ID, 32) }

// Format is as String, whatever the verb.
func (i Invite) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, i.String()) }

// LogValue is as String.
func (i Invite) LogValue() slog.Value { return slog.StringValue(i.String()) }

// MarshalText is as String, for what writes JSON.
func (i Invite) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// A word that starts an invite, whole or broken, and one that may be its next
// part: behind blanks and line breaks, also as a log writes these.
var (
	inviteInText = regexp.MustCompile(inviteWord + `[0-9][0-9A-Za-z]{5,}`)
	nextPart     = regexp.MustCompile(`^(?:\s|\\+[nrt]|\\+x[0-9a-f]{2}|\\+u[0-9a-f]{4})+([0-9A-Za-z]+)`)
)

// Bounds of what Redact takes for parts of one invite.
const (
	maxParts = 64
	longPart = 16 // characters that no word of a sentence has
)

// Redact takes the secrets of invites out of a text that is to be shown or
// logged.
func Redact(text string) string {
	var out strings.Builder
	for {
		at := inviteInText.FindStringIndex(text)
		if at == nil {
			out.WriteString(text)
			return out.String()
		}
		out.WriteString(text[:at[0]+len(invitePrefix)+4] + "…")
		text = text[at[0]+inviteEnd(text[at[0]:], at[1]-at[0]):]
	}
}

// inviteEnd is where the invite ends that a text starts with, and whose first
// word has so many bytes. A broken one ends before the first short word.
func inviteEnd(text string, word int) int {
	joined, end, broken := text[:word], word, word
	for range maxParts {
		if _, err := ParseInvite(joined); !errors.Is(err, ErrInviteTypo) {
			return end
		}
		next := nextPart.FindStringSubmatchIndex(text[end:])
		if next == nil || len(joined) > MaxInvite {
			break
		}
		if end == broken && next[3]-next[2] >= longPart {
			broken += next[1]
		}
		joined += text[end+next[2] : end+next[3]]
		end += next[1]
	}
	return broken
}
