package ticket

import (
	"errors"
	"math/big"
	"slices"
)

// crypto/ed25519 takes any 32 bytes for a public key. With those of a point of small order,
// such as 32 zero bytes, anybody signs: the key falls out of the equation that is checked.
// With bytes that are no point nobody's signature is good. Both are refused when the key
// is read, by arithmetic that is slow and plain: the keys are public.

var (
	errNoPoint    = errors.New("is not a point of Ed25519")
	errSmallOrder = errors.New("is a weak point of Ed25519, for which anybody can sign")

	edP = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19)) // the field's prime
	// edD is the curve's d, in -x² + y² = 1 + d·x²·y² (RFC 8032 §5.1).
	edD = modP(new(big.Int).Mul(big.NewInt(-121665), new(big.Int).ModInverse(big.NewInt(121666), edP)))
)

func modP(x *big.Int) *big.Int { return x.Mod(x, edP) }

func mulP(a, b *big.Int) *big.Int { return modP(new(big.Int).Mul(a, b)) }

// checkEd25519 tells whether 32 bytes can be a public key: the one encoding of a point
// (RFC 8032 §5.1.3) whose order is not 1, 2, 4 or 8.
func checkEd25519(key []byte) error {
	b := slices.Clone(key)
	slices.Reverse(b)
	negative := b[0]&0x80 != 0
	b[0] &= 0x7f
	y := new(big.Int).SetBytes(b)
	if y.Cmp(edP) >= 0 {
		return errNoPoint // a second encoding of a small y
	}
	// x² = (y²-1) / (d·y²+1), whose denominator is never 0.
	yy := mulP(y, y)
	one := big.NewInt(1)
	denominator := modP(new(big.Int).Add(mulP(edD, yy), one))
	xx := mulP(new(big.Int).Sub(yy, one), new(big.Int).ModInverse(denominator, edP))
	x := new(big.Int).ModSqrt(xx, edP)
	if x == nil || x.Sign() == 0 && negative {
		return errNoPoint
	}
	// Doubled three times a point of small order is (0, 1). The sign of x makes no difference.
	for range 3 {
		x, y = double(x, y)
	}
	if x.Sign() == 0 && y.Cmp(one) == 0 {
		return errSmallOrder
	}
	return nil
}

// double adds a point to itself: x' = 2xy / (1+d·x²y²), y' = (y²+x²) / (1-d·x²y²).
func double(x, y *big.Int) (*big.Int, *big.Int) {
	one := big.NewInt(1)
	xy := mulP(x, y)
	d := mulP(edD, mulP(xy, xy))
	below := func(z *big.Int) *big.Int { return new(big.Int).ModInverse(modP(z), edP) }
	return mulP(new(big.Int).Lsh(xy, 1), below(new(big.Int).Add(one, d))),
		mulP(new(big.Int).Add(mulP(y, y), mulP(x, x)), below(new(big.Int).Sub(one, d)))
}
