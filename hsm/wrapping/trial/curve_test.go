package trial

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"fmt"
	"math/big"
	"testing"

	"hsmbridge/hsm/wrapping"
)

// Multiples of the generator as published with the curve's test vectors, and the ends of the range.
func TestSecp256k1Public(t *testing.T) {
	for _, v := range []struct{ scalar, x, y string }{
		{"01", secp256k1Gx, secp256k1Gy},
		{"02", "c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5", "1ae168fea63dc339a3c58419466ceaeef7f632653266d0e1236431a950cfe52a"},
		{"03", "f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9", "388f7b0f632de8140fe337e62a37f3566500a99934c2231b6cb9fd7584b8e672"},
		{"14", "4ce119c96e2fa357200b559b2f7dd5a5f02d5290aff74b03f3e471b273211c97", "12ba26dcb10ec1625da61fa10a844c676162948271d96967450288ee9233dc3a"},
		{"aa5e28d6a97a2479a65527f7290311a3624d4cc0fa1578598ee3c2613bf99522", "34f9460f0e4f08393d192b3c5133a6ba099aa0ad9fd54ebccfacdfa239ff49c6", "0b71ea9bd730fd8923f6d25a7a91e7dd7728a960686cb5a901bb419e0f2ca232"},
		{"fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364140", secp256k1Gx, "b7c52588d95c3b9aa25b0403f1eef75702e84bb7597aabe663b82f6f04ef2777"},
	} {
		scalar := make([]byte, 32)
		b := unhex(t, v.scalar)
		copy(scalar[32-len(b):], b)
		got, err := secp256k1Public(scalar)
		if want := unhex(t, "04"+v.x+v.y); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s * G = %x, %v; want %x", v.scalar, got, err, want)
		}
	}
	for name, scalar := range map[string][]byte{
		"zero": make([]byte, 32), "the order": unhex(t, secp256k1N), "short": make([]byte, 31), "long": append(make([]byte, 32), 1), "empty": nil,
	} {
		if got, err := secp256k1Public(scalar); err == nil {
			t.Errorf("%s: %x, want an error", name, got)
		}
	}
}

// (a + b)G is the same as aG + bG, and every point lies on the curve.
func TestSecp256k1GroupLaw(t *testing.T) {
	p, n := hexInt(secp256k1P), hexInt(secp256k1N)
	public := func(k *big.Int) affine {
		b, err := secp256k1Public(k.FillBytes(make([]byte, 32)))
		if err != nil {
			t.Fatal(err)
		}
		a := affine{new(big.Int).SetBytes(b[1:33]), new(big.Int).SetBytes(b[33:])}
		left := new(big.Int).Exp(a.y, big.NewInt(2), p)
		right := new(big.Int).Exp(a.x, big.NewInt(3), p)
		if right.Add(right, big.NewInt(7)).Mod(right, p).Cmp(left) != 0 {
			t.Fatalf("%x * G is not on the curve", k)
		}
		return a
	}
	for range 10 {
		a, b := new(big.Int).SetBytes(random(32)), new(big.Int).SetBytes(random(32))
		a.Mod(a, n)
		b.Mod(b, n)
		sum := public(a).add(public(b), p)
		want := public(new(big.Int).Mod(new(big.Int).Add(a, b), n))
		if sum.x.Cmp(want.x) != 0 || sum.y.Cmp(want.y) != 0 {
			t.Errorf("%x G + %x G is not (a+b) G", a, b)
		}
	}
}

func TestCurvesRefuse(t *testing.T) {
	for name, c := range map[string]ecdh.Curve{"P-256": ecdh.P256(), "P-384": ecdh.P384(), "P-521": ecdh.P521()} {
		if _, err := ecdhPublic(c)(nil); !errors.Is(err, errScalar) {
			t.Errorf("%s: %v, want errScalar", name, err)
		}
	}
	if _, err := curveOf(wrapping.HMAC256); err == nil || fmt.Sprint(err) != "HMAC_256 is no elliptic curve key spec" {
		t.Errorf("curveOf(HMAC_256): %v", err)
	}
}
