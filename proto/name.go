package proto

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Namespace is where service names live: the same as Kubo's `ipfs p2p`, and
// the only thing about services that identify ever tells a peer.
const Namespace = "/x/"

// MaxName bounds a protocol name in bytes. multistream-select itself takes up
// to 1,024; a name must also fit a line of a screen.
const MaxName = 255

// ErrNamespace is returned for a name outside /x/. Kubo says the same words.
var ErrNamespace = errors.New("protocol name must be within '/x/' namespace")

// reserved prefixes belong to libp2p or to p2ptun; a tunnel that took one of
// them over would break the node that it runs on.
var reserved = []string{"/p2ptun/", "/libp2p/", "/ipfs/id/", "/ipfs/ping/", "/ipfs/kad/", "/ipfs/lan/kad/", "/multistream/", "/yamux/", "/noise", "/tls/"}

// ParseProtocol turns what a person typed into a protocol name: `ssh` and
// `/x/ssh` are both `/x/ssh`. Names outside /x/ need custom.
func ParseProtocol(s string, custom bool) (string, error) {
	if LooksLikeInvite(s) {
		return "", errors.New("an invite is no protocol name")
	}
	name := s
	if s != "" && !strings.HasPrefix(s, "/") {
		name = Namespace + s
	}
	if name != "" && !custom && !strings.HasPrefix(name, Namespace) {
		return "", fmt.Errorf("%w: %s", ErrNamespace, Printable(s, MaxName))
	}
	if err := checkName(name); err != nil {
		return "", err
	}
	for _, prefix := range reserved {
		if strings.HasPrefix(name, prefix) {
			return "", fmt.Errorf("protocol name %s is reserved", name)
		}
	}
	return name, nil
}

// CheckWireProtocol judges a name that a peer sent: same form, any namespace.
func CheckWireProtocol(name string) error { return checkName(name) }

func checkName(name string) error {
	switch {
	case name == "" || name == "/" || name == Namespace || name == "/x":
		return errors.New("protocol name is empty")
	case name[0] != '/':
		return errors.New("protocol name must start with /")
	case len(name) > MaxName:
		return fmt.Errorf("protocol name is longer than %d bytes", MaxName)
	case !utf8.ValidString(name):
		return errors.New("protocol name is not UTF-8")
	}
	for _, r := range name {
		if !visible(r) || unicode.IsSpace(r) {
			return fmt.Errorf("protocol name %s holds a blank, control or invisible character", Printable(name, MaxName))
		}
	}
	return nil
}

// ServiceName is the last word of a protocol name: `ssh` of `/x/ssh`. It names
// the system's port when no target is given.
func ServiceName(protocol string) string {
	return protocol[strings.LastIndexByte(protocol, '/')+1:]
}

// visible says whether a terminal shows something for r, a blank included.
// Some letters, marks and symbols never show: fillers, variation selectors.
func visible(r rune) bool {
	return unicode.IsGraphic(r) && r != '\u2800' &&
		!unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// Printable makes a string from a peer or a file safe for a terminal and a log
// line: control and invisible characters are escaped and at most limit bytes
// of the original are shown, whole characters only. The result has at most
// 4*limit+3 bytes.
func Printable(s string, limit int) string {
	var b strings.Builder
	for at := 0; at < len(s); {
		r, n := utf8.DecodeRuneInString(s[at:])
		if at+n > limit {
			b.WriteString("…")
			break
		}
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[at])
		case visible(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		at += n
	}
	return b.String()
}

// ShellQuote quotes a word for a POSIX shell where it needs that.
func ShellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=+@%,"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
