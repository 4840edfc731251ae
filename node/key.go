package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"p2ptun/home"
	"p2ptun/proto"
)

// KeyError says that the identity key can't be used, and what to type.
type KeyError struct {
	Path string
	Err  error
	hint string
}

func (e *KeyError) Error() string { return fmt.Sprintf("identity key %s: %v", e.Path, e.Err) }
func (e *KeyError) Unwrap() error { return e.Err }

// Hint is a command or a word of advice.
func (e *KeyError) Hint() string { return e.hint }

// LoadKey reads the identity key, or makes one (Ed25519, in libp2p's protobuf
// form; specs: peer-ids) where there is none. A key that can't be read is
// refused, never replaced: its peer ID is what others have written down.
func LoadKey(ctx context.Context, path string) (crypto.PrivKey, error) {
	var key crypto.PrivKey
	err := home.Edit(ctx, path, func(old []byte) (data []byte, err error) {
		if len(old) == 0 {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				return nil, &KeyError{path, errors.New("the file is empty"), keyHint(path)}
			}
			key, data, err = newKey()
			return data, err
		}
		key, err = parseKey(path, old)
		return old, err
	})
	if err != nil {
		return nil, err
	}
	return key, nil
}

func newKey() (crypto.PrivKey, []byte, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	data, err := crypto.MarshalPrivateKey(key)
	return key, data, err
}

func parseKey(path string, data []byte) (crypto.PrivKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, &KeyError{path, errors.New("others may read or write it"), "chmod 600 " + proto.ShellQuote(path)}
	}
	key, err := crypto.UnmarshalPrivateKey(data)
	if err != nil {
		return nil, &KeyError{path, errors.New("not a libp2p private key"), keyHint(path)}
	}
	return key, nil
}

func keyHint(path string) string {
	return "restore it from a backup; or, for a new peer ID: mv " + proto.ShellQuote(path) + " " + proto.ShellQuote(path+".broken")
}

// PeerID is the peer ID of the identity key, made if there is none.
func PeerID(ctx context.Context, keyPath string) (string, error) {
	key, err := LoadKey(ctx, keyPath)
	if err != nil {
		return "", err
	}
	id, err := peer.IDFromPrivateKey(key)
	return id.String(), err
}
