package record

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
)

// Secrets are what crypto/tls says of a handshake to its KeyLogWriter: the first
// secrets of the traffic each way, in the format of RFC 9850. They are kept in
// memory only. The zero value is ready.
type Secrets struct{ client, server []byte }

// Write takes one line. It never fails.
func (s *Secrets) Write(line []byte) (int, error) {
	if fields := bytes.Fields(line); len(fields) == 3 {
		switch string(fields[0]) {
		case "CLIENT_TRAFFIC_SECRET_0":
			s.client = unhex(fields[2])
		case "SERVER_TRAFFIC_SECRET_0":
			s.server = unhex(fields[2])
		}
	}
	return len(line), nil
}

// unhex is nil for what is no hexadecimal.
func unhex(b []byte) []byte {
	to := make([]byte, hex.DecodedLen(len(b)))
	if _, err := hex.Decode(to, b); err != nil {
		return nil
	}
	return to
}

// wornAfter is how many records one key seals: RFC 8446, 5.5 allows 2^24.5 of them
// for AES-GCM.
const wornAfter = 1 << 24

// trafficKey is what one way's records are sealed with (RFC 8446, 7.3 and 5.3).
type trafficKey struct {
	hash   func() hash.Hash
	size   int // of the key
	secret []byte
	aead   cipher.AEAD
	iv     [12]byte
	nonce  [12]byte
	count  uint64 // of records
}

// init takes a suite's key. Errors: another suite than AES-GCM, no secret of its
// size, and where this system allows no such cipher.
func (k *trafficKey) init(suite uint16, secret []byte) error {
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256:
		k.hash, k.size = sha256.New, 16
	case tls.TLS_AES_256_GCM_SHA384:
		k.hash, k.size = sha512.New384, 32
	default:
		return errors.New("a TLS suite that is not AES-GCM")
	}
	if len(secret) != k.hash().Size() {
		return errors.New("no secret of the TLS connection")
	}
	return k.use(secret)
}

func (k *trafficKey) use(secret []byte) error {
	key, errKey := k.expand(secret, "key", k.size)
	iv, errIV := k.expand(secret, "iv", len(k.iv))
	if err := errors.Join(errKey, errIV); err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	k.aead, err = cipher.NewGCM(block)
	k.secret, k.count = secret, 0
	copy(k.iv[:], iv)
	return err
}

// expand is HKDF-Expand-Label without a context (RFC 8446, 7.1).
func (k *trafficKey) expand(secret []byte, label string, size int) ([]byte, error) {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(size))
	info = append(append(append(info, byte(len(label))), label...), 0)
	return hkdf.Expand(k.hash, secret, string(info), size)
}

// next is the key that follows (RFC 8446, 7.2).
func (k *trafficKey) next() error {
	secret, err := k.expand(k.secret, "traffic upd", len(k.secret))
	if err != nil {
		return err
	}
	return k.use(secret)
}

func (k *trafficKey) isWorn() bool { return k.count >= wornAfter }

// turn is the next record's nonce.
func (k *trafficKey) turn() []byte {
	k.nonce = k.iv
	last := k.nonce[4:]
	binary.BigEndian.PutUint64(last, binary.BigEndian.Uint64(last)^k.count)
	k.count++
	return k.nonce[:]
}

// seal replaces the first size bytes of b by what they are sealed to, which is
// tagSize longer.
func (k *trafficKey) seal(b []byte, size int, header []byte) {
	k.aead.Seal(b[:0], k.turn(), b[:size], header)
}

// open decrypts to the end of to.
func (k *trafficKey) open(to, sealed, header []byte) ([]byte, error) {
	return k.aead.Open(to, k.turn(), sealed, header)
}
