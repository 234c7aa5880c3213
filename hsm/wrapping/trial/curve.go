package trial

import (
	"crypto/ecdh"
	"errors"
	"fmt"
	"math/big"

	"hsmbridge/hsm/wrapping"
)

// curve is a named curve, as far as reading private keys needs it.
type curve struct {
	oid    string // OBJECT IDENTIFIER of the curve, DER
	public func(secret []byte) (point []byte, err error)
}

// curveOf gives the curve of an ECC key spec. Source of the OIDs: RFC 5480, 2.1.1.1; SEC 2, A.2.1.
func curveOf(spec wrapping.KeySpec) (curve, error) {
	switch spec {
	case wrapping.ECCNISTP256:
		return curve{"\x06\x08\x2A\x86\x48\xCE\x3D\x03\x01\x07", ecdhPublic(ecdh.P256())}, nil
	case wrapping.ECCNISTP384:
		return curve{"\x06\x05\x2B\x81\x04\x00\x22", ecdhPublic(ecdh.P384())}, nil
	case wrapping.ECCNISTP521:
		return curve{"\x06\x05\x2B\x81\x04\x00\x23", ecdhPublic(ecdh.P521())}, nil
	case wrapping.ECCSECGP256K1:
		return curve{"\x06\x05\x2B\x81\x04\x00\x0A", secp256k1Public}, nil
	default:
		return curve{}, fmt.Errorf("%s is no elliptic curve key spec", spec)
	}
}

var errScalar = errors.New("not a number of exactly the curve's length between 1 and its order")

// ecdhPublic computes public points with the standard library.
func ecdhPublic(c ecdh.Curve) func(secret []byte) ([]byte, error) {
	return func(secret []byte) ([]byte, error) {
		private, err := c.NewPrivateKey(secret)
		if err != nil {
			return nil, errScalar
		}
		return private.PublicKey().Bytes(), nil
	}
}

// The domain parameters of secp256k1, y^2 = x^3 + 7 over the integers modulo p. Source: SEC 2, 2.4.1.
const (
	secp256k1Size = 32                                                                 // bytes of a coordinate and of a private key
	secp256k1P    = "fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f" // field prime
	secp256k1N    = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141" // order of the generator
	secp256k1Gx   = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798" // generator, x
	secp256k1Gy   = "483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8" // generator, y
)

// secp256k1Public computes secret * G, which the standard library does not. It is double-and-add in affine
// coordinates and takes a millisecond or two; its timing depends on the secret, and only throwaway keys come here.
func secp256k1Public(secret []byte) ([]byte, error) {
	k, p := new(big.Int).SetBytes(secret), hexInt(secp256k1P)
	if len(secret) != secp256k1Size || k.Sign() == 0 || k.Cmp(hexInt(secp256k1N)) >= 0 {
		return nil, errScalar
	}
	g := affine{hexInt(secp256k1Gx), hexInt(secp256k1Gy)}
	sum := g
	for i := k.BitLen() - 2; i >= 0; i-- {
		sum = sum.add(sum, p)
		if k.Bit(i) == 1 {
			sum = sum.add(g, p)
		}
	}
	point := make([]byte, 1+2*secp256k1Size)
	point[0] = 4
	sum.x.FillBytes(point[1 : 1+secp256k1Size])
	sum.y.FillBytes(point[1+secp256k1Size:])
	return point, nil
}

// affine is a point of secp256k1 other than the point at infinity.
type affine struct{ x, y *big.Int }

// add is point addition, and doubling when a and b are the same. Neither meets the point at infinity here:
// the order is an odd prime and double-and-add from the top bit passes through multiples between 1 and n-1 only.
func (a affine) add(b affine, p *big.Int) affine {
	var rise, run *big.Int
	if a.x.Cmp(b.x) == 0 {
		rise = new(big.Int).Mul(a.x, a.x)
		rise.Mul(rise, big.NewInt(3))
		run = new(big.Int).Lsh(a.y, 1)
	} else {
		rise = new(big.Int).Sub(b.y, a.y)
		run = new(big.Int).Sub(b.x, a.x)
	}
	run.ModInverse(run.Mod(run, p), p)
	slope := rise.Mul(rise, run)
	slope.Mod(slope, p)
	x := new(big.Int).Mul(slope, slope)
	x.Sub(x, a.x).Sub(x, b.x).Mod(x, p)
	y := new(big.Int).Sub(a.x, x)
	y.Mul(y, slope).Sub(y, a.y).Mod(y, p)
	return affine{x, y}
}

// hexInt reads one of the constants above.
func hexInt(s string) *big.Int {
	n, _ := new(big.Int).SetString(s, 16)
	return n
}
