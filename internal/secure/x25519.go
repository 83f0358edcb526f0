package secure

import (
	"crypto/ecdh"
	"fmt"
	"io"
)

// newPrivate takes 32 bytes from rand as an X25519 private key. It does not use
// ecdh's GenerateKey, which may read more, or not from rand at all: test vectors
// must come out the same everywhere.
func newPrivate(rand io.Reader) (*ecdh.PrivateKey, error) {
	var b [32]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return nil, fmt.Errorf("read random bytes for X25519 key: %w", err)
	}
	k, err := ecdh.X25519().NewPrivateKey(b[:])
	if err != nil {
		return nil, fmt.Errorf("make X25519 key: %w", err)
	}
	return k, nil
}

func shareOf(k *ecdh.PrivateKey) [32]byte { return [32]byte(k.PublicKey().Bytes()) }

// agree returns the shared secret, or [RefusedSecret] when the peer's share makes
// it all zeros.
func agree(k *ecdh.PrivateKey, peer *[32]byte) ([]byte, error) {
	p, err := ecdh.X25519().NewPublicKey(peer[:])
	if err != nil {
		return nil, RefusedSecret
	}
	shared, err := k.ECDH(p)
	if err != nil {
		return nil, RefusedSecret // its only cause is an all-zero result
	}
	return shared, nil
}
