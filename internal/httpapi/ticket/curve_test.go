package ticket

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"
)

func TestEd25519Keys(t *testing.T) {
	// The points of small order and their further encodings, as listed in
	// "Taming the many EdDSAs" (Chalkias, Garillot, Nikolaenko 2020), table 1.
	for _, c := range []struct {
		key  string
		want error
	}{
		{"0100000000000000000000000000000000000000000000000000000000000000", errSmallOrder},
		{"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", errSmallOrder},
		{"0000000000000000000000000000000000000000000000000000000000000080", errSmallOrder},
		{"0000000000000000000000000000000000000000000000000000000000000000", errSmallOrder},
		{"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", errSmallOrder},
		{"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa", errSmallOrder},
		{"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", errSmallOrder},
		{"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85", errSmallOrder},
		{"0100000000000000000000000000000000000000000000000000000000000080", errNoPoint},
		{"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", errNoPoint},
		{"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", errNoPoint},
		{"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", errNoPoint},
		{"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", errNoPoint},
		{"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", errNoPoint},
		{"0200000000000000000000000000000000000000000000000000000000000000", errNoPoint},
		// RFC 8032 §7.1, tests 1 to 3.
		{"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", nil},
		{"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", nil},
		{"fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", nil},
	} {
		key, err := hex.DecodeString(c.key)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkEd25519(key); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.key, err, c.want)
		}
		_, err = parseJWKS(fmt.Appendf(nil, `{"keys":[{"kty":"OKP","crv":"Ed25519","x":%q}]}`, b64(key)))
		if (err == nil) != (c.want == nil) {
			t.Errorf("%s in a JWKS: %v", c.key, err)
		}
	}
	for range 50 {
		key, _, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkEd25519(key); err != nil {
			t.Errorf("%x: %v", key, err)
		}
	}
}
