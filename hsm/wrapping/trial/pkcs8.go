package trial

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/big"

	"hsmbridge/hsm/wrapping"
)

// PublicKey is the public half of a key pair, in the bytes that PKCS#11 attributes have too, so that a key
// which came out of a trial is compared with the object that went in.
type PublicKey struct {
	Spec     wrapping.KeySpec
	Modulus  []byte // RSA: big-endian, no leading zeros (CKA_MODULUS)
	Exponent []byte // RSA: big-endian, no leading zeros (CKA_PUBLIC_EXPONENT)
	Point    []byte // EC: 04 || X || Y (the content of CKA_EC_POINT); Ed25519: the 32 bytes of RFC 8032
}

// Equal tells whether two public keys are the same key. Leading zeros of numbers do not count.
func (p PublicKey) Equal(other PublicKey) bool {
	number := func(b []byte) []byte { return bytes.TrimLeft(b, "\x00") }
	return p.Spec == other.Spec &&
		bytes.Equal(number(p.Modulus), number(other.Modulus)) &&
		bytes.Equal(number(p.Exponent), number(other.Exponent)) &&
		bytes.Equal(p.Point, other.Point)
}

// ErrTrailing says that something other than zero bytes follows the PKCS#8 structure.
var ErrTrailing = errors.New("bytes that are not zero follow the PKCS#8 structure")

// KeyPair is the check for a throwaway key pair that was generated in the token: the PKCS#8 that comes out
// must be a sound private key of want.Spec, and its public half must be want.
func KeyPair(want PublicKey) Check {
	return func(material []byte) (int, error) {
		got, trailing, err := ParsePrivate(material, want.Spec)
		if err != nil {
			return 0, err
		}
		if !got.Equal(want) {
			return 0, fmt.Errorf("%w: the public halves differ", ErrOtherKey)
		}
		return trailing, nil
	}
}

// ParsePrivate reads a PKCS#8 private key of the spec: a PrivateKeyInfo or OneAsymmetricKey (RFC 5958, not
// encrypted) with an RSAPrivateKey (RFC 8017, A.1.2), an ECPrivateKey (RFC 5915) on a named curve, or a
// CurvePrivateKey (RFC 8410) inside. It returns the public half computed from the private one, and the
// number of zero bytes that follow the outer SEQUENCE (SoftHSM 2.6.1 leaves some).
//
// It is strict: DER only, no unknown elements, an EC private key of exactly the curve's length, a public
// half that agrees with the private one wherever one is given, and RSA numbers that agree with each other.
// Bytes that are not zero behind the SEQUENCE are [ErrTrailing]. An error never contains key material.
func ParsePrivate(pkcs8 []byte, want wrapping.KeySpec) (pub PublicKey, trailing int, err error) {
	format, err := formatOf(want)
	if err != nil {
		return PublicKey{}, 0, err
	}
	outer := der{rest: pkcs8}
	info := outer.sequence(tagSequence, "PrivateKeyInfo")
	version := info.integer("PrivateKeyInfo.version")
	algorithm := info.element(tagSequence, "PrivateKeyInfo.privateKeyAlgorithm")
	inner := info.element(tagOctetString, "PrivateKeyInfo.privateKey")
	if info.peek(tagContext0) {
		info.element(tagContext0, "PrivateKeyInfo.attributes")
	}
	var stated []byte // no token is known to repeat an RSA public key here, and none is accepted
	wantVersion := int64(0)
	if want.Kind() != wrapping.KindRSA && info.peek(tagPrimitive1) {
		stated = info.bits(tagPrimitive1, "OneAsymmetricKey.publicKey")
		wantVersion = 1
	}
	if err := info.end("PrivateKeyInfo"); err != nil {
		return PublicKey{}, 0, err
	}
	if version.Cmp(big.NewInt(wantVersion)) != 0 {
		return PublicKey{}, 0, fmt.Errorf("PrivateKeyInfo.version: not %d", wantVersion)
	}
	if string(algorithm) != format.algorithm {
		return PublicKey{}, 0, fmt.Errorf("PrivateKeyInfo.privateKeyAlgorithm: not that of %s", want)
	}
	pub, err = format.parse(inner)
	if err != nil {
		return PublicKey{}, 0, err
	}
	pub.Spec = want
	if stated != nil && !bytes.Equal(stated, pub.Point) {
		return PublicKey{}, 0, errors.New("OneAsymmetricKey.publicKey: is not the public half of the private key")
	}
	if !zero(outer.rest) {
		return PublicKey{}, 0, fmt.Errorf("%w: %d bytes", ErrTrailing, len(outer.rest))
	}
	return pub, len(outer.rest), nil
}

// format is how the private keys of one KMS key spec are encoded.
type format struct {
	algorithm string // content of the AlgorithmIdentifier, DER
	parse     func(inner []byte) (PublicKey, error)
}

// The content of AlgorithmIdentifiers.
const (
	algRSA     = "\x06\x09\x2A\x86\x48\x86\xF7\x0D\x01\x01\x01" + "\x05\x00" // rsaEncryption, NULL (RFC 8017, A.1)
	algEC      = "\x06\x07\x2A\x86\x48\xCE\x3D\x02\x01"                      // id-ecPublicKey (RFC 5480, 2.1.1); the curve follows
	algEd25519 = "\x06\x03\x2B\x65\x70"                                      // id-Ed25519, no parameters (RFC 8410, 3)
)

func formatOf(spec wrapping.KeySpec) (format, error) {
	switch spec.Kind() {
	case wrapping.KindRSA:
		return format{algorithm: algRSA, parse: func(inner []byte) (PublicKey, error) {
			return parseRSA(inner, wrapping.WrappingKeySpec(spec).Bits())
		}}, nil
	case wrapping.KindEC:
		c, err := curveOf(spec)
		if err != nil {
			return format{}, err
		}
		return format{algorithm: algEC + c.oid, parse: func(inner []byte) (PublicKey, error) {
			return parseEC(inner, c)
		}}, nil
	case wrapping.KindEd25519:
		return format{algorithm: algEd25519, parse: parseEd25519}, nil
	case wrapping.KindSymmetric, wrapping.KindHMAC, wrapping.KindRefused:
	}
	return format{}, fmt.Errorf("%s is no private key spec that can be imported", spec)
}

// parseRSA reads an RSAPrivateKey of two primes and checks every number of it against the others.
func parseRSA(b []byte, bits int) (PublicKey, error) {
	outer := der{rest: b}
	key := outer.sequence(tagSequence, "RSAPrivateKey")
	version := key.integer("RSAPrivateKey.version")
	n, e := key.integer("RSAPrivateKey.modulus"), key.integer("RSAPrivateKey.publicExponent")
	d := key.integer("RSAPrivateKey.privateExponent")
	p, q := key.integer("RSAPrivateKey.prime1"), key.integer("RSAPrivateKey.prime2")
	dp, dq := key.integer("RSAPrivateKey.exponent1"), key.integer("RSAPrivateKey.exponent2")
	qInv := key.integer("RSAPrivateKey.coefficient")
	if err := cmp.Or(key.end("RSAPrivateKey"), outer.end("PrivateKeyInfo.privateKey")); err != nil {
		return PublicKey{}, err
	}
	one := big.NewInt(1)
	switch {
	case version.Sign() != 0:
		return PublicKey{}, errors.New("RSAPrivateKey.version: not 0 (two primes)")
	case n.BitLen() != bits:
		return PublicKey{}, fmt.Errorf("RSAPrivateKey.modulus: %d bits, want %d", n.BitLen(), bits)
	case p.Cmp(one) <= 0 || q.Cmp(one) <= 0 || new(big.Int).Mul(p, q).Cmp(n) != 0:
		return PublicKey{}, errors.New("RSAPrivateKey: prime1 * prime2 is not the modulus")
	}
	for _, half := range []struct {
		prime, exponent *big.Int
		name            string
	}{{p, dp, "exponent1"}, {q, dq, "exponent2"}} {
		order := new(big.Int).Sub(half.prime, one)
		product := new(big.Int).Mul(e, half.exponent)
		if product.Mod(product, order).Cmp(one) != 0 || new(big.Int).Mod(d, order).Cmp(half.exponent) != 0 {
			return PublicKey{}, fmt.Errorf("RSAPrivateKey.%s: does not agree with the other exponents", half.name)
		}
	}
	if product := new(big.Int).Mul(q, qInv); qInv.Cmp(p) >= 0 || product.Mod(product, p).Cmp(one) != 0 {
		return PublicKey{}, errors.New("RSAPrivateKey.coefficient: not the inverse of prime2 modulo prime1")
	}
	return PublicKey{Modulus: n.Bytes(), Exponent: e.Bytes()}, nil
}

// parseEC reads an ECPrivateKey on the curve. Its parameters and public point are optional (RFC 5915, 3).
func parseEC(b []byte, c curve) (PublicKey, error) {
	outer := der{rest: b}
	key := outer.sequence(tagSequence, "ECPrivateKey")
	version := key.integer("ECPrivateKey.version")
	secret := key.element(tagOctetString, "ECPrivateKey.privateKey")
	if key.peek(tagContext0) {
		if params := key.element(tagContext0, "ECPrivateKey.parameters"); string(params) != c.oid {
			return PublicKey{}, errors.New("ECPrivateKey.parameters: not the named curve of the privateKeyAlgorithm")
		}
	}
	var stated []byte
	if key.peek(tagContext1) {
		wrapper := key.sequence(tagContext1, "ECPrivateKey.publicKey")
		stated = wrapper.bits(tagBitString, "ECPrivateKey.publicKey")
		if err := wrapper.end("ECPrivateKey.publicKey"); err != nil {
			return PublicKey{}, err
		}
	}
	if err := cmp.Or(key.end("ECPrivateKey"), outer.end("PrivateKeyInfo.privateKey")); err != nil {
		return PublicKey{}, err
	}
	if version.Cmp(big.NewInt(1)) != 0 {
		return PublicKey{}, errors.New("ECPrivateKey.version: not 1")
	}
	point, err := c.public(secret)
	if err != nil {
		return PublicKey{}, fmt.Errorf("ECPrivateKey.privateKey: %w", err)
	}
	if stated != nil && !bytes.Equal(stated, point) {
		return PublicKey{}, errors.New("ECPrivateKey.publicKey: not the uncompressed public point of the private key")
	}
	return PublicKey{Point: point}, nil
}

// parseEd25519 reads a CurvePrivateKey: an OCTET STRING of the 32 bytes of the seed.
func parseEd25519(b []byte) (PublicKey, error) {
	outer := der{rest: b}
	seed := outer.element(tagOctetString, "CurvePrivateKey")
	if err := outer.end("CurvePrivateKey"); err != nil {
		return PublicKey{}, err
	}
	if len(seed) != ed25519.SeedSize {
		return PublicKey{}, fmt.Errorf("CurvePrivateKey: %d bytes, want %d", len(seed), ed25519.SeedSize)
	}
	private := ed25519.NewKeyFromSeed(seed)
	return PublicKey{Point: private[ed25519.SeedSize:]}, nil
}
